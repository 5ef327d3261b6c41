"""A place that cannot be written is refused before the work, and a disk that is full after it loses no result."""

from __future__ import annotations

import argparse
import importlib
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from dino_perception import results
from dino_perception.cli.__main__ import COMMANDS, main

OUTPUTS = {"json", "page", "out", "report", "pictures", "video", "plots", "to", "cache"}
OPTIONS = [
    "train segmentation --data terrain:1 --out {}",
    "train segmentation --data terrain:1 --out x --json {}",
    "train segmentation --data terrain:1 --json y --curve 5 --page {}",
    "evaluate --terrain 9000 --json {}",
    "evaluate --terrain 9000 --page {}",
    "evaluate --terrain 9000 --plots {}",
    "extract a {}",
    "demo --out {}",
    "demo --json {}",
    "benchmark --json {}",
    "benchmark --page {}",
    "compile --json {}",
    "compile --page {}",
    "models --json {}",
    "models --parity --page {}",
    "models --download dinov2-vits14 --to {}",
    "doctor --json {}",
    "calibrate segmentation --bag a --out {}",
    "teach --out {}",
    "teach --out x --json {}",
    "places fit a --out {}",
    "places match a --json {}",
    "label a --out x --json {}",
    "calibrate segmentation --bag a --out x --json {}",
    "play a --json {}",
    "replay a b --json {}",
    "replay a b --report {}",
    "replay a b --pictures {}",
    "replay a b --video {}",
    "train segmentation --data terrain:1 --out x --cache {}",
    "evaluate --terrain 9000 --cache {}",
    "calibrate segmentation --bag a --out x --cache {}",
    "benchmark --cache {}",
    "compile --cache {}",
    "doctor --cache {}",
]


@pytest.fixture(autouse=True)
def nothing_displaced():
    results.displaced.clear()
    yield
    results.displaced.clear()


def listing(folder: Path) -> list[tuple[str, int, int]]:
    return sorted((str(p), p.lstat().st_size, p.lstat().st_mtime_ns) for p in [folder, *folder.rglob("*")])


@pytest.mark.parametrize("line", OPTIONS)
def test_a_place_that_cannot_be_written_is_refused_before_the_work(line, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder").mkdir()
    (tmp_path / "nowhere").symlink_to(tmp_path / "gone" / "away")
    before = listing(tmp_path)
    is_folder = (
        line.split()[-2] in ("a", "--plots", "--to", "--report", "--pictures", "--cache") or line == "demo --out {}"
    )
    wrong = {"file/below/x": "no folder", "/proc/x": "No such file", "y" * 300: "too long"}
    wrong |= {"file": "is a file; name a folder"} if is_folder else {"folder": "is a folder; name a file"}
    for place, sentence in wrong.items():
        with pytest.raises(SystemExit) as end:
            main(line.format(place).split())
        said = capsys.readouterr().err.splitlines()[-1]
        sentence = "is no file; tables are put" if "--page" in line else sentence
        assert end.value.code == 2 and sentence in said, said
    assert listing(tmp_path) == before


def test_a_file_or_a_folder_is_checked_as_what_it_is(tmp_path):
    assert results.file_or_folder(str(tmp_path)) == tmp_path
    assert results.file_or_folder(str(tmp_path / "map.tif")) == tmp_path / "map.tif"
    (tmp_path / "text").write_text("")
    with pytest.raises(argparse.ArgumentTypeError):
        results.file_or_folder(str(tmp_path / "text" / "map.tif"))


def test_every_option_that_names_an_output_is_checked():
    for name in COMMANDS:
        parser = argparse.ArgumentParser()
        importlib.import_module(f"dino_perception.cli.{name}").add_arguments(parser)
        for action in parser._actions:
            if action.dest in OUTPUTS and not (name, action.dest) == ("view", "json"):
                assert action.type in (results.file, results.folder, results.file_or_folder, results.page), (
                    name,
                    action.dest,
                )


def test_a_page_without_its_marks_is_refused_before_the_work(tmp_path, capsys):
    page = tmp_path / "page.md"
    page.write_text("# Nothing\n")
    for line in (
        "evaluate --terrain 9000 --page",
        "models --parity --page",
        "models --parity --heads --page",
        "compile --page",
        "benchmark --page",
        "train segmentation --data nothing --curve 5 --json x --page",
    ):
        assert main([*line.split(), str(page)]) == 1
        assert "has no place for the table" in capsys.readouterr().err


def test_the_check_leaves_nothing_and_changes_nothing(tmp_path):
    (tmp_path / "file").write_text("kept")
    os.mkfifo(tmp_path / "pipe")
    before = listing(tmp_path)
    for place in ("file", "new", "a/b/c/new", "pipe"):
        assert results.refusal(tmp_path / place) == ""
    assert results.refusal(tmp_path / "a/b", folder=True) == results.refusal(tmp_path, folder=True) == ""
    assert listing(tmp_path) == before
    assert "no name of a file: it has a zero in it" in results.refusal(Path("a\0b"))
    (tmp_path / "round").symlink_to(tmp_path / "round")
    assert "symbolic links" in results.refusal(tmp_path / "round")


def test_a_result_that_finds_no_room_is_beside_the_working_directory(tmp_path, monkeypatch, capsys):
    """/dev/full takes what is opened and has no room for what is written."""
    monkeypatch.chdir(tmp_path)
    assert main(["models", "--json", "/dev/full"]) == results.ELSEWHERE
    said = capsys.readouterr()
    assert f"/dev/full cannot be written (No space left on device): the result is in {tmp_path}/full" in said.err
    assert len(json.loads((tmp_path / "full").read_text())) > 10
    assert main(["models", "--json", "/dev/full"]) == results.ELSEWHERE and (tmp_path / "full-2").is_file()
    capsys.readouterr()
    assert main(["models", "--json", "fits.json"]) == 0 and capsys.readouterr().err == ""


def test_trained_weights_are_kept_when_their_disk_is_full(tmp_path, monkeypatch, capsys):
    from dino_perception.models.checkpoints import load_backbone
    from dino_perception.models.heads import create_head, load_head, packed_head

    monkeypatch.chdir(tmp_path)
    backbone = load_backbone("rover-tiny")
    head = create_head("segmentation", backbone, "linear")
    place = results.keep(Path("/dev/full"), packed_head(head))
    assert place == tmp_path / "full" and results.code(0) == results.ELSEWHERE
    again = load_head("segmentation", backbone, str(place)).state_dict()
    assert all((again[name] == value).all() for name, value in head.state_dict().items())


def in_a_small_disk(code: str, folder: Path, size: str = "64k") -> subprocess.CompletedProcess:
    """Run Python with `full` a disk of that size that nobody else sees."""
    (folder / "full").mkdir()
    (folder / "work").mkdir()
    (folder / "temporary").mkdir()
    private = ["unshare", "--mount", "--propagation", "private"]
    if subprocess.run([*private, "mount", "-t", "tmpfs", "t", folder / "full"], capture_output=True).returncode:
        pytest.skip("only root may mount a small disk")
    code = (
        "import os\nfrom pathlib import Path\nfrom dino_perception import results\nfull = Path(os.environ['FULL'])\n"
        + code
    )
    command = f'mount -t tmpfs -o size={size} t "$FULL" && exec "{sys.executable}" -c "$CODE"'
    environment = {**os.environ, "FULL": str(folder / "full"), "CODE": code, "TMPDIR": str(folder / "temporary")}
    return subprocess.run(
        [*private, "sh", "-c", command], cwd=folder / "work", env=environment, capture_output=True, text=True
    )


def test_a_disk_that_fills_up_keeps_the_old_page_and_gives_the_new_one(tmp_path):
    done = in_a_small_disk(
        """
page = full / 'page.md'
page.write_text('old')
assert results.refusal(page) == ''
(full / 'rest').write_bytes(bytes(55 << 10))
assert results.refusal(page) == ''                                    # a block fits
assert results.keep(page, 'new' * 10000) == Path('page.md').absolute()  # the page does not
assert page.read_text() == 'old' and sorted(os.listdir(full)) == ['page.md', 'rest'], os.listdir(full)
(full / 'more').write_bytes(bytes(4096)) if results.refusal(full / 'x') == '' else None
try:
    (full / 'last').write_bytes(bytes(9000))
except OSError:
    pass
assert 'No space left' in results.refusal(page), results.refusal(page)
assert 'No space left' in results.refusal(full / 'a' / 'new')
assert results.keep(full / 'a' / 'b' / 'new.json', 'x' * 50000) == Path('new.json').absolute()
assert not (full / 'a').exists()
""",
        tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "work" / "page.md").read_text() == "new" * 10000
    assert done.stderr.count("cannot be written (No space left on device): the result is in") == 2


def test_frames_that_do_not_fit_stay_together_elsewhere(tmp_path):
    bag = Path(__file__).resolve().parents[2] / "data" / "sample_drive"
    code = f"from dino_perception.cli.__main__ import main\nraise SystemExit(main(['extract', {str(bag)!r}, str(full / 'set'), '--count', '4', '--truth']))"
    done = in_a_small_disk(code + "\n", tmp_path, "300k")
    elsewhere = tmp_path / "work" / "set"
    assert done.returncode == results.ELSEWHERE, done.stderr
    assert done.stderr.count("cannot be written") == 1 and str(elsewhere / "images") in done.stderr
    assert {p.parent.name for p in elsewhere.rglob("*.png")} <= {"images", "masks", "depth"}
    assert 1 <= len(list(elsewhere.glob("images/*.png"))) <= 4


@pytest.mark.parametrize("size, words", [(20_000, "the result is printed here"), (200_000, "the result is lost")])
def test_where_no_disk_takes_it_a_small_text_is_printed(size, words, tmp_path):
    code = f"""
import resource
from pathlib import Path
from dino_perception import results
resource.setrlimit(resource.RLIMIT_FSIZE, (8192, 8192))
assert results.keep(Path('new/a.json'), 'x' * {size}) is None
assert results.code(0) == results.ELSEWHERE and results.code(4) == 4
"""
    environment = {**os.environ, "TMPDIR": str(tmp_path / "temporary")}
    (tmp_path / "temporary").mkdir()
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0 and words in done.stderr and done.stderr.count("\n") == 1, done.stderr
    assert done.stdout == ("x" * size + "\n" if "printed" in words else "")
    assert [p.name for p in tmp_path.rglob("*")] == ["temporary"]


def test_the_working_directory_is_left_alone_when_it_takes_nothing(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tempfile.tempdir = None

    def never(path: Path) -> None:
        path.mkdir()
        (path / "half").write_text("half")
        raise OSError(28, "No space left on device")

    monkeypatch.setenv("TMPDIR", str(tmp_path / "temporary"))
    (tmp_path / "temporary").mkdir()
    try:
        assert results.keep(tmp_path / "asked" / "bag", never) is None
    finally:
        tempfile.tempdir = None
    assert tmp_path.is_dir() and [p.name for p in tmp_path.rglob("*")] == ["temporary"]


def test_a_link_stays_a_link_and_a_page_keeps_its_mode(tmp_path):
    real = tmp_path / "real"
    real.write_text("old")
    real.chmod(0o640)
    (tmp_path / "link").symlink_to(real)
    assert results.keep(tmp_path / "link", "new") == tmp_path / "link"
    assert (tmp_path / "link").is_symlink() and real.read_text() == "new" and real.stat().st_mode & 0o777 == 0o640
    assert sorted(os.listdir(tmp_path)) == ["link", "real"]


def test_results_can_go_to_the_terminal_or_a_pipe():
    command = [sys.executable, "-m", "dino_perception.cli", "models", "--json", "/dev/stdout"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert '"dinov3-vits16plus"' in done.stdout


def test_a_replay_to_a_place_that_cannot_be_written_begins_nothing(tmp_path, capsys):
    from dino_perception.bags.storage.problems import UNWRITABLE

    bag = Path(__file__).resolve().parents[2] / "data" / "sample_drive"
    assert main(["replay", str(bag), "/proc/out.mcap"]) == UNWRITABLE == results.ELSEWHERE
    assert "'/proc' cannot be written" in capsys.readouterr().err


def test_what_people_look_at_finds_no_room_and_costs_neither_the_bag_nor_the_figures(tmp_path):
    bag = Path(__file__).resolve().parents[2] / "data" / "sample_drive"
    out, figures = tmp_path / "out.mcap", tmp_path / "f.json"
    code = f"""
(full / 'rest').write_bytes(bytes(50 << 10))
from dino_perception.cli.__main__ import main
raise SystemExit(main(['replay', {str(bag)!r}, {str(out)!r}, '--duration', '0.4', '--set', 'engine=torch', '--set', 'input_height=96', '--set', 'input_width=128',
                       '--report', str(full / 'report'), '--pictures', str(full / 'pictures'), '--video', str(full / 'v.mp4'), '--json', {str(figures)!r}]))
"""
    done = in_a_small_disk(code, tmp_path)
    assert done.returncode == results.ELSEWHERE, done.stderr
    told = json.loads(figures.read_text())
    assert told["exit_code"] == results.ELSEWHERE and told["stopped"] is None and out.stat().st_size > 1000
    assert (tmp_path / "work" / "report" / "index.html").read_text().endswith("</html>\n")
    pictures = list((tmp_path / "work" / "pictures").iterdir())
    assert len(pictures) == told["frames_out"] > 1 and min(p.stat().st_size for p in pictures) > 10_000
    assert frames_of(tmp_path / "work" / "v.mp4") == told["frames_out"]
    for part in ("pictures: from camera_", "v.mp4, it is", "report: "):
        assert part in done.stdout


def test_a_video_whose_disk_fills_up_goes_on_elsewhere(tmp_path):
    code = """
import numpy as np
from dino_perception.bags.report.pictures import Video
from dino_perception.perception.frame import Frame, Percept
from dino_perception.perception.settings import Settings
video, noise = Video(full / 'v.avi', Settings(), 10.0, 'camera'), np.random.default_rng(0)
for number in range(40):
    pixels = noise.integers(0, 256, (480, 640, 3), dtype=np.uint8)
    video(Percept(Frame('camera', number, 'c', pixels), 480, 640, None), number, 0.0)
video.close()
import cv2
counts = [int(cv2.VideoCapture(str(path)).get(cv2.CAP_PROP_FRAME_COUNT)) for path in (full / 'v.avi', Path('v.avi'))]
assert sum(counts) == 40 and min(counts) > 5, counts
assert len(video.notes) == 1 and 'it goes on in' in video.notes[0], video.notes
"""
    done = in_a_small_disk(code, tmp_path, "12m")
    assert done.returncode == 0, done.stderr


def frames_of(video: Path) -> int:
    import cv2

    return int(cv2.VideoCapture(str(video)).get(cv2.CAP_PROP_FRAME_COUNT))
