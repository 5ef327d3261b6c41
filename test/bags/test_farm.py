"""Many processes on one bag, and many bags at once, come to the bytes of a single process."""

import json

import pytest
import recorded
import yaml
from recorded import SETTINGS, contents, drive, record, replay

from dino_perception.bags.farm import Farm, LocalWorkers, RayWorkers
from dino_perception.bags.job import Job, run
from dino_perception.bags.several_bags import find_bags, outputs_for, run_many, sized_to_machine
from dino_perception.bags.storage.problems import EMPTY, PROBLEMS, UNREADABLE, BagError
from dino_perception.cli.__main__ import main


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """(input, output, result) of a single process: two cameras, one image that is damaged, one of another size."""
    folder = tmp_path_factory.mktemp("plain")
    messages = list(drive(13, cameras=("/front", "/rear"), gap=60_000_000))
    images = [index for index, entry in enumerate(messages) if entry[0] == "/front/image_raw"]
    messages[images[2]][2].data = messages[images[2]][2].data[:100]
    topic, time, old = messages[images[9]]
    messages[images[9]] = (
        topic,
        time,
        recorded.image(old.header.stamp.sec * 10**9 + old.header.stamp.nanosec, recorded.picture(9)[:60, :80]),
    )
    source = record(folder / "in", messages)
    return source, folder / "out.mcap", replay(source, folder / "out.mcap")


def test_worker_processes_come_to_the_same_file(plain, tmp_path):
    source, output, result = plain
    farm = Farm(SETTINGS, LocalWorkers(SETTINGS, 2))
    try:
        spread = run(Job(source, tmp_path / "out.mcap", SETTINGS), lambda: farm)
    finally:
        farm.close()
    assert spread.code == result.code == PROBLEMS["images"][0]
    assert spread.figures["output_sha256"] == result.figures["output_sha256"]
    assert (tmp_path / "out.mcap").read_bytes() == output.read_bytes()


def test_a_local_ray_of_two_workers_comes_to_the_same_file(plain, tmp_path):
    pytest.importorskip("ray", reason="ray is not installed (pip install ray)")
    source, output, result = plain
    farm = Farm(SETTINGS, RayWorkers(SETTINGS, "local", 2))
    try:
        spread = run(Job(source, tmp_path / "out.mcap", SETTINGS), lambda: farm)
    finally:
        farm.close()
    assert spread.figures["output_sha256"] == result.figures["output_sha256"]
    assert (tmp_path / "out.mcap").read_bytes() == output.read_bytes()


def test_without_ray_the_command_says_what_to_install(plain, tmp_path, capfd):
    try:
        import ray  # noqa: F401
    except ImportError:
        assert main(["replay", str(plain[0]), str(tmp_path / "out.mcap"), "--ray", "local"]) == 2
        assert "pip install ray" in capfd.readouterr().err and not (tmp_path / "out.mcap").exists()
    else:
        pytest.skip("ray is installed")


def test_a_folder_of_bags_is_worked_through_by_processes(tmp_path, capfd):
    """Good bags give what they give alone; bad ones say so and keep nobody up."""
    bags = tmp_path / "bags"
    (bags / "day2").mkdir(parents=True)
    record(bags / "a", drive(3))
    record(bags / "day2" / "a", drive(4))
    (bags / "empty.mcap").write_bytes(b"")
    (bags / "notes.txt").write_text("not a bag")
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"/**": {"ros__parameters": recorded.SMALL}}))
    code = main(
        [
            "replay",
            str(bags),
            str(tmp_path / "out"),
            "--config",
            str(tmp_path / "config.yaml"),
            "--workers",
            "2",
            "--json",
            str(tmp_path / "figures.json"),
        ]
    )
    assert code == EMPTY and "empty.mcap is empty" in " ".join(capfd.readouterr().out.split())
    figures = json.loads((tmp_path / "figures.json").read_text())["bags"]
    assert [f.get("frames_out") for f in figures] == [3, 4, None]
    assert sorted(p.name for p in (tmp_path / "out").iterdir()) == ["a.mcap", "a_2.mcap"]
    for name, source in (("a", bags / "a"), ("a_2", bags / "day2" / "a")):
        replay(source, tmp_path / "alone.mcap", force=True)
        assert contents(tmp_path / "out" / f"{name}.mcap") == contents(tmp_path / "alone.mcap")


def test_a_process_that_dies_is_named(tmp_path, monkeypatch):
    monkeypatch.setenv("DINO_PERCEPTION_TEST", "1")
    jobs = [
        Job(
            record(tmp_path / "in", drive(2)), tmp_path / "out.mcap", SETTINGS.changed({"backbone": "no-such-backbone"})
        )
    ]
    (result,) = run_many(jobs, 1)
    assert result.code == 7 and result.figures["stopped"]


def test_bags_are_found_to_the_bottom_and_named_once(tmp_path):
    (tmp_path / "x" / "y").mkdir(parents=True)
    one, two = record(tmp_path / "x" / "one", drive(1)), record(tmp_path / "x" / "y" / "one", drive(1))
    assert find_bags([tmp_path / "x"]) == [one, two]
    assert find_bags([one / "one.mcap", two]) == [one / "one.mcap", two]
    assert outputs_for([one, two, one / "one.mcap"], tmp_path, ".mcap") == [
        tmp_path / n for n in ("one.mcap", "one_2.mcap", "one_3.mcap")
    ]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(BagError, match="holds no bag") as caught:
        find_bags([tmp_path / "nothing"])
    assert caught.value.code == UNREADABLE


def test_processes_fit_the_machine():
    import os

    cores = len(os.sched_getaffinity(0))
    count, threads = sized_to_machine(100, SETTINGS.changed({"threads": 0}))
    assert count >= 1 and threads >= 1 and count * threads <= max(cores, 1)
    assert sized_to_machine(1, SETTINGS)[0] == 1
