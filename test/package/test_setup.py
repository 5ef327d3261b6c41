"""`make`'s set-up: what it says when a machine lacks something, and that it keeps to its folder."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def setup(tmp_path, monkeypatch):
    """tools/setup.py, working in a folder of its own that holds what it reads."""
    spec = importlib.util.spec_from_file_location("dino_setup", ROOT / "tools" / "setup.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    for name in ("VENV", "PYTHON", "STAMP", "LOG"):
        monkeypatch.setattr(module, name, tmp_path / getattr(module, name).relative_to(ROOT))
    (tmp_path / "log").mkdir()
    module.VENV.mkdir()
    return module


def refuse(*_, **__):
    raise AssertionError("this must not run")


def test_missing_packages_are_named_in_one_sentence_with_the_command(setup, monkeypatch):
    monkeypatch.setattr(setup.shutil, "which", lambda name: None)
    monkeypatch.setattr(setup, "have_module", lambda name: False)
    with pytest.raises(setup.SetupError) as error:
        setup.require_system_packages()
    sentence = str(error.value)
    assert "\n" not in sentence
    command = sentence.partition("install with: ")[2]
    assert command.split()[:3] == ["sudo", "apt", "install"]
    assert {"cmake", "g++", "make", "python3-venv"} <= set(command.split()[3:])


def test_a_complete_machine_is_not_complained_about(setup):
    setup.require_system_packages()


@pytest.mark.parametrize("version, word", [((3, 8, 10), "old"), ((3, 15, 0), "new")])
def test_another_python_is_refused_with_what_is_accepted(setup, monkeypatch, version, word):
    monkeypatch.setattr(setup.sys, "version_info", version)
    with pytest.raises(setup.SetupError, match=f"too {word}: .* 3.11 to 3.14"):
        setup.require_system_packages()


def test_with_everything_in_place_nothing_runs(setup, monkeypatch):
    for step in (
        "require_system_packages",
        "create_environment",
        "install_wheels",
        "name_this_interpreter",
        "enter_workspace",
        "build",
    ):
        monkeypatch.setattr(setup, step, lambda: None)
    monkeypatch.setattr(setup, "environment_fits", lambda: True)
    setup.set_up()
    for step in ("run", "output", "require_system_packages", "install_wheels", "build"):
        monkeypatch.setattr(setup, step, refuse)
    setup.set_up()


@pytest.mark.parametrize("changed, steps", [("environment", {"wheels", "build"}), ("workspace", {"build"})])
def test_only_what_changed_is_done_again(setup, monkeypatch, changed, steps):
    done = set()
    for step in ("require_system_packages", "name_this_interpreter", "enter_workspace"):
        monkeypatch.setattr(setup, step, lambda: None)
    monkeypatch.setattr(setup, "environment_fits", lambda: True)
    monkeypatch.setattr(setup, "create_environment", refuse)
    monkeypatch.setattr(setup, "install_wheels", lambda: done.add("wheels"))
    monkeypatch.setattr(setup, "build", lambda: done.add("build"))
    setup.set_up()
    stamp = json.loads(setup.STAMP.read_text())
    stamp[changed] = "older"
    setup.STAMP.write_text(json.dumps(stamp))
    done.clear()
    setup.set_up()
    assert done == steps


def test_a_failing_command_is_told_with_its_last_lines(setup):
    setup.LOG.write_text("")
    with pytest.raises(setup.SetupError, match="(?s)no such wheel.*it failed; the whole output"):
        setup.run(["sh", "-c", "echo no such wheel; exit 3"], "it failed")


def test_include_folders_of_the_wheels_builder_are_replaced_and_others_kept(setup, monkeypatch):
    monkeypatch.setattr(setup, "output", lambda command: "/numpy/include")
    folder = setup.VENV / "share" / "std_msgs" / "cmake"
    folder.mkdir(parents=True)
    foreign = (
        '  INTERFACE_INCLUDE_DIRECTORIES "/opt/python/cp311-cp311/include/python3.11;/opt/python/cp311-cp311/lib/numpy"'
    )
    own = '  INTERFACE_INCLUDE_DIRECTORIES "${_IMPORT_PREFIX}/include/std_msgs"'
    file = folder / "export_std_msgs__rosidl_generator_pyExport.cmake"
    file.write_text(f"set_target_properties(x\n{foreign}\n)\n{own}\n")
    for _ in range(2):
        setup.name_this_interpreter()
        lines = file.read_text().splitlines()
        assert lines[0] == "set_target_properties(x" and lines[2:] == [")", own]
        assert "/opt/python" not in lines[1] and "/numpy/include" in lines[1]


def test_commands_see_no_other_workspace_and_write_only_into_the_folder(setup, monkeypatch):
    for name in setup.FOREIGN:
        monkeypatch.setenv(name, "/opt/ros/jazzy")
    environment = setup.clean_environment()
    assert "/opt/ros/jazzy" not in environment.values()
    for name in ("TMPDIR", "PIP_CACHE_DIR", "COLCON_HOME", "COLCON_LOG_PATH"):
        assert Path(environment[name]).is_relative_to(ROOT), name


def test_python_of_the_environment_sees_the_workspace_wherever_it_starts(tmp_path):
    if not (Path(sys.prefix) / "setup.json").exists():
        pytest.skip("this is not the environment that tools/setup.py makes")
    code = (
        "import dino_perception.msg, dino_perception.cli.play, rclpy, os\n"
        "print(os.environ['ROS_LOG_DIR'], os.environ['XDG_CACHE_HOME'])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=tmp_path, env={"PATH": os.defpath}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert all(Path(path).is_relative_to(Path(sys.prefix).parent) for path in done.stdout.split())


def library_paths(seeds: range, **environment: str) -> list[list[str]]:
    """LD_LIBRARY_PATH as Python of the environment has it when it runs, once for each seed of its hashes."""
    return [
        subprocess.run(
            [sys.executable, "-c", "import os; print(os.environ['LD_LIBRARY_PATH'])"],
            env={"PATH": os.defpath, "PYTHONHASHSEED": str(seed), **environment},
            capture_output=True,
            text=True,
            check=True,
        )
        .stdout.strip()
        .split(os.pathsep)
        for seed in seeds
    ]


def test_libraries_are_looked_for_in_one_order_as_modules_are(tmp_path):
    """A message's module and its library must come from one place: with two vision_msgs, one of them sourced, a mix of
    both crashes whoever subscribes."""
    if not (Path(sys.prefix) / "setup.json").exists():
        pytest.skip("this is not the environment that tools/setup.py makes")
    sourced = [str(tmp_path / name) for name in ("zebra", "aardvark")]
    paths = library_paths(range(4), LD_LIBRARY_PATH=os.pathsep.join(sourced))
    assert paths.count(paths[0]) == len(paths), "the order changes from run to run"
    assert paths[0][:2] == sourced, "what is sourced does not come first"
    wheels, workspace = (
        [i for i, path in enumerate(paths[0]) if Path(path).is_relative_to(folder)]
        for folder in (sys.prefix, Path(sys.prefix).parent / "install")
    )
    assert wheels and workspace and max(wheels) < min(workspace)
    assert sorted(set(paths[0])) == sorted(paths[0]), "a folder stands there twice"
    # A process of another environment that has done its own start-up hands its mark on to this one.
    assert (
        library_paths(range(1), LD_LIBRARY_PATH=sourced[0], _ROS_WHEELS_BOOTSTRAP_COMPLETE="1")[0][1:] == paths[0][2:]
    )
