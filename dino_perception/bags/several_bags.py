"""Several bags at once: which they are, how many processes, and what each comes to."""

from __future__ import annotations

import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

from dino_perception.bags.job import Job, Result, run
from dino_perception.bags.storage.problems import FAILED, INTERRUPTED, UNREADABLE, USAGE, BagError
from dino_perception.bags.storage.reader import is_bag
from dino_perception.child_processes import end_with_parent
from dino_perception.engines.runtimes import RUNTIMES
from dino_perception.perception.settings import Settings

_THREADS = 4
"""Cores that a worker on a CPU gets where there are enough; a perceiver gains little from more."""
_MOST_FILES = 20_000
"""Most files in a folder that is searched for bags; more of them are taken for a mistake."""
_MEMORY = 2 << 30
"""Bytes of memory that a worker is expected to need."""

Progress = Callable[[int, int, int], None]
"""Told (number of the bag, frames done, frames in all)."""


def find_bags(paths: Sequence[Path], out: Path | None = None) -> list[Path]:
    """The bags that paths name: each a bag, or a folder of bags, searched to the bottom in the order of names but for
    the folder `out`, which the outputs go to. Raises BagError."""
    found: list[Path] = []
    for path in paths:
        if is_bag(path) or not path.is_dir():
            found.append(path)
            continue
        if out is not None and out.exists() and out.samefile(path):
            raise BagError(f"{out} is the folder of the recordings; give another one for the outputs", USAGE)
        inside = list(_inside(path, out))
        if not inside:
            raise BagError(f"{path} holds no bag: no rosbag2 folder and no .mcap, .db3 or .bag file", UNREADABLE)
        found += inside
    return found


def outputs_for(bags: Sequence[Path], folder: Path, suffix: str) -> list[Path]:
    """An output file of its own for every bag, named after it."""
    taken: dict[str, int] = {}
    outputs = []
    for bag in bags:
        name = bag.name.removesuffix(".zstd")
        name = Path(name).stem if Path(name).suffix in (".mcap", ".db3", ".bag") else name
        taken[name] = taken.get(name, 0) + 1
        outputs.append(folder / (name + (f"_{taken[name]}" if taken[name] > 1 else "") + suffix))
    return outputs


def sized_to_machine(bags: int, settings: Settings) -> tuple[int, int]:
    """(processes, threads of each) for this many bags: a process for each GPU where the engine may use one, else one
    for every few cores, and no more than there is memory for."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    devices = _gpus() if settings.engine == "auto" or RUNTIMES[settings.engine].on_gpu else 0
    threads = settings.threads or min(_THREADS, cores)
    fitting = max(1, _free_memory() // _MEMORY)
    count = max(1, min(bags, devices or cores // threads, fitting))
    return count, settings.threads or max(1, cores // count)


def run_many(jobs: Sequence[Job], workers: int, progress: Progress | None = None) -> list[Result]:
    """Do the jobs, which have the same settings, in this many processes. Results come in the order of the jobs; a bag
    that cannot be processed does not keep the others from it. After Ctrl-C or SIGTERM every process ends its bag
    orderly, and what has not begun says so."""
    context = multiprocessing.get_context("spawn")
    reports, devices = context.Queue(), context.Queue()
    for number in range(workers):
        devices.put(number % max(1, _gpus()))
    listener = _Listener(reports, progress)
    pool = ProcessPoolExecutor(workers, context, initializer=_begin, initargs=(jobs[0].settings, reports, devices))
    futures = [pool.submit(_work, number, job) for number, job in enumerate(jobs)]
    interrupted = False
    before = _pass_on(signal.SIGTERM)
    try:
        while any(not future.done() for future in futures):
            time.sleep(0.1)
            if any(
                future.done()
                and not future.cancelled()
                and not future.exception()
                and future.result().code == INTERRUPTED
                for future in futures
            ):
                raise KeyboardInterrupt
    except KeyboardInterrupt:
        interrupted = True
    finally:
        pool.shutdown(wait=True, cancel_futures=interrupted)
        listener.close()
        if before is not None:
            signal.signal(signal.SIGTERM, before)
    return [_result(job, future) for job, future in zip(jobs, futures)]


def _pass_on(number: int) -> Any:
    """From now on this signal goes to the workers, which end orderly. Returns what it did before, None when it is not
    for this thread to say."""
    if threading.current_thread() is not threading.main_thread():
        return None

    def pass_on(*_: object) -> None:
        for worker in multiprocessing.active_children():
            if worker.pid:
                os.kill(worker.pid, number)
        raise KeyboardInterrupt

    return signal.signal(number, pass_on)


def _inside(folder: Path, out: Path | None) -> Iterator[Path]:
    """The bags below a folder, each folder once, whatever links lead to it."""
    seen: set[str] = set() if out is None else {os.path.realpath(out)}
    todo, looked = [folder], 0
    while todo:
        path = todo.pop()
        if path != folder and is_bag(path):
            yield path
        elif path.is_dir() and os.path.realpath(path) not in seen:
            seen.add(os.path.realpath(path))
            try:
                inside = sorted(path.iterdir(), reverse=True)
            except OSError:  # not for this user to read
                continue
            looked += len(inside)
            if looked > _MOST_FILES:
                raise BagError(f"{folder} holds more than {_MOST_FILES} files; name the folder with the bags", USAGE)
            todo += inside


def _gpus() -> int:
    import torch

    return torch.cuda.device_count() if torch.cuda.is_available() else 0


def _free_memory() -> int:
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError):
        return 1 << 40


def _result(job: Job, future: Any) -> Result:
    if future.cancelled():
        return _not_begun(job)
    error = future.exception()
    if error is None:
        return future.result()
    sentence = f"{type(error).__name__}: {error}"
    return Result(FAILED, {"input": str(job.source), "stopped": sentence}, [f"{job.source.name}: {sentence}"])


def _not_begun(job: Job) -> Result:
    about = {"input": str(job.source), "stopped": "interrupted before it began"}
    return Result(INTERRUPTED, about, [f"{job.source.name}: not begun"])


class _Listener:
    """Passes the workers' progress on."""

    def __init__(self, reports: Any, progress: Progress | None):
        self._reports, self._progress = reports, progress
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def close(self) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                report = self._reports.get(timeout=0.1)
            except queue.Empty:
                if self._ended.is_set():
                    return
                continue
            if self._progress:
                self._progress(*report)


_perceiver: Any = None  # of a worker process, with what it reports to
_reports: Any = None
_interrupted = False  # the next bag waits in this process already when Ctrl-C comes


def _begin(settings: Settings, reports: Any, devices: Any) -> None:
    global _perceiver, _reports
    end_with_parent()
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", str(devices.get()))
    import torch

    from dino_perception.perception.perceiver import Perceiver

    if settings.threads:
        torch.set_num_threads(settings.threads)
    _perceiver, _reports = Perceiver(settings, batch_sizes={1}), reports


def _work(number: int, job: Job) -> Result:
    global _interrupted
    last = 0.0

    def progress(done: int, total: int) -> None:
        nonlocal last
        if time.monotonic() - last > 0.2 or done == total:
            last = time.monotonic()
            _reports.put((number, done, total))

    if _interrupted:
        return _not_begun(job)
    try:
        result = run(job, lambda: _perceiver, progress)
        _interrupted = result.code == INTERRUPTED
        return result
    except BagError as error:
        return Result(
            error.code,
            {"input": str(job.source), "stopped": str(error), "exit_code": error.code},
            [f"{job.source.name}: {error}"],
        )
