"""`ros2 launch` as a person types it: bad arguments and files are named, and a failure has a code.

Run where ROS 2's ros2launch is installed, in a sourced workspace: `python -m pytest test/launch`.
"""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
import yaml

from dino_perception.models import catalog, head_reference, layouts, weights_folder
from dino_perception.models.checkpoints import untrained
from dino_perception.share import share

pytest.importorskip("ros2launch", reason="ros2launch is not installed")

SMALL = {"engine": "torch", "threads": 1, "input_height": 96, "input_width": 128}


def ros2_launch(file: str, *arguments: str) -> subprocess.CompletedProcess:
    program = "import sys; sys.argv[0] = 'ros2'; from ros2cli.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "launch", "dino_perception", file, *arguments]
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=120)


def described(file: str) -> set[str]:
    lines = ros2_launch(file, "--show-args").stdout.splitlines()
    return {line.strip(" ':") for line in lines if line.startswith("    '")}


def test_the_replay_takes_every_argument_of_the_rover_and_says_so():
    rover = described("rover.launch.py")
    assert {"backbone", "params_file", "respawn", "exit_on_failure"} <= rover < described("replay.launch.py")


@pytest.mark.parametrize("file", ["rover.launch.py", "replay.launch.py"])
@pytest.mark.parametrize(
    "argument, sentence",
    [
        ("imgae:=/front/image_raw", "there is no launch argument 'imgae'; did you mean 'image'?"),
        ("params_file:=/nowhere/rover.yaml", "there is no parameter file /nowhere/rover.yaml"),
        ("log_level:=loud", "'log_level' is 'loud'; accepted are debug, info, warn, error, fatal"),
        ("respawn:=maybe", "'respawn' is 'maybe'; accepted are true and false"),
        ("preset:=desert", "there is no preset 'desert'; the presets are dinov3, indoor"),
        ("preset:=/nowhere/mine.yaml", "there is no parameter file /nowhere/mine.yaml"),
    ],
)
def test_what_cannot_be_meant_ends_the_launch_with_a_sentence(file, argument, sentence):
    done = ros2_launch(file, argument)
    assert done.returncode == 1 and sentence in done.stdout
    assert "process started" not in done.stdout


@pytest.mark.parametrize("rate", ["fast", "0"])
def test_a_rate_is_a_number(rate):
    done = ros2_launch("replay.launch.py", f"rate:={rate}")
    assert done.returncode == 1 and f"'rate' is '{rate}'; accepted is a number above 0" in done.stdout


def test_a_parameter_file_of_another_node_is_refused_with_its_key(tmp_path):
    path = tmp_path / "camera.yaml"
    path.write_text(yaml.safe_dump({"camera": {"ros__parameters": SMALL}}))
    done = ros2_launch("rover.launch.py", f"params_file:={path}", "namespace:=fleet/rover")
    assert done.returncode == 1
    assert f"{path} is for '/camera', but the node is /fleet/rover/dino_perception" in done.stdout


def test_a_node_that_cannot_be_configured_ends_the_launch_with_a_code(tmp_path):
    path = tmp_path / "rover.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": {**SMALL, "weights": "/nowhere/model.safetensors"}}}))
    done = ros2_launch("rover.launch.py", f"params_file:={path}")
    assert done.returncode == 1
    assert "not configured: /nowhere/model.safetensors" in done.stdout and "exit code 4" in done.stdout


def test_debug_reaches_a_node_in_a_namespace(tmp_path):
    path = tmp_path / "rover.yaml"
    path.write_text(yaml.safe_dump({"/**": {"ros__parameters": SMALL}}))
    done = ros2_launch("replay.launch.py", f"params_file:={path}", "namespace:=fleet", "log_level:=debug", "rate:=10")
    assert done.returncode == 0
    assert "[DEBUG]" in done.stdout and "[fleet.dino_perception]: camera camera: " in done.stdout


def test_a_preset_without_its_weights_ends_the_launch_with_the_command_that_fetches_them(tmp_path, monkeypatch):
    monkeypatch.setenv(weights_folder.VARIABLE, str(tmp_path))
    done = ros2_launch("rover.launch.py", "preset:=outdoor", "image:=/camera/image_raw")
    assert done.returncode == 1 and "exit code 4" in done.stdout
    assert "dino-perception models --download" in done.stdout and "dinov2-vits14" in done.stdout


def test_a_preset_runs_the_released_models_over_a_bag(tmp_path, monkeypatch):
    """The outdoor preset but for its size and the lighter depth head, with random weights as they are released."""
    monkeypatch.setenv(weights_folder.VARIABLE, str(tmp_path))
    spec = catalog.get("dinov2-vits14")
    torch.save(layouts.to_layout(untrained(spec).state_dict(), spec, "original"), tmp_path / spec.file)
    wanted = {"dinov2_vits14_ade20k_linear_head.pth", "dinov2_vits14_kitti_linear4_head.pth"}
    for case in (case for case in head_reference.CASES if case.file in wanted):
        torch.save(case.prepare(case)[1], tmp_path / case.file)
    preset = yaml.safe_load(share("config", "presets", "outdoor_fast.yaml").read_text())
    preset["/**"]["ros__parameters"].update(
        engine="torch", threads=1, input_height=98, input_width=126, output_height=49, output_width=63
    )
    small = tmp_path / "small.yaml"
    small.write_text(yaml.safe_dump(preset))
    done = ros2_launch("replay.launch.py", f"preset:={small}", "rate:=10")
    assert done.returncode == 0, done.stdout
    assert "dinov2-vits14 on torch float32" in done.stdout and done.stdout.count("process started") == 2, done.stdout
