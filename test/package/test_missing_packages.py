"""What the code imports, what setup.py and package.xml ask for, and what a user is told where it is missing."""

import ast
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest

from dino_perception.missing_packages import WHEELS, missing

ROOT = Path(__file__).resolve().parents[2]
ROSDEP = {"numpy", "opencv", "yaml", "matplotlib", "pil", "rich", "torch"}
"""python3-* keys of rosdep that package.xml names; everything else is pip's."""


def imported() -> set[str]:
    found = set()
    for path in (ROOT / "dino_perception").rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found.add(node.module.split(".")[0])
    return found


def test_every_wheel_that_is_imported_is_known_and_asked_for():
    ros = re.compile(r"rclpy|launch.*|.*_(msgs|srvs|interfaces|python)|cv_bridge|diagnostic_updater")
    standard = sys.stdlib_module_names | {"compression", "dino_perception"}
    wheels = {name for name in imported() - standard if not ros.fullmatch(name)}
    assert wheels <= set(WHEELS), "name what pip calls it in missing_packages.py"
    asked = (ROOT / "setup.py").read_text()
    tools = {"torch_tensorrt", "transformers", "huggingface_hub", "ray"}  # only for those who have them anyway
    for name in wheels - tools:
        assert re.search(rf'"{re.escape(WHEELS[name])}\b', asked), f"setup.py does not ask for {WHEELS[name]}"


def test_the_manifest_names_what_rosdep_can_bring():
    depends = {e.text for e in ElementTree.parse(ROOT / "package.xml").getroot().iter("exec_depend")}
    assert {f"python3-{name}" for name in ROSDEP} <= depends


@pytest.mark.parametrize(
    "module, command",
    [
        ("rosbags", ["replay", "a.mcap", "b.mcap"]),
        ("backports", ["replay", "a.mcap", "b.mcap"]),
        ("torch", ["models", "--json", "x.json"]),
        ("rich", ["models"]),
        ("yaml", ["replay", "a.mcap", "b.mcap"]),
    ],
)
def test_a_missing_wheel_is_one_sentence_with_its_pip_line(module, command, tmp_path):
    if module == "backports" and sys.version_info >= (3, 14):
        pytest.skip("Python 3.14 has zstd itself")
    code = (
        "import sys\n"
        "class Missing:\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        f"        if name.split('.')[0] == {module!r}:\n"
        "            raise ModuleNotFoundError(f'No module named {name!r}', name=name)\n"
        "sys.meta_path.insert(0, Missing())\n"
        "from dino_perception.cli.__main__ import main\n"
        f"sys.exit(main({command!r}))\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path)
    pip = WHEELS[module]
    assert done.returncode == 1 and len(done.stderr.splitlines()) == 1, done.stderr
    assert done.stderr.endswith(f"{pip} is not installed here; install it with: python3 -m pip install {pip}\n")


def test_only_a_missing_wheel_is_told_so():
    assert missing(ModuleNotFoundError("No module named 'dino_perception.gone'", name="dino_perception.gone")) == ""
    assert missing(ImportError("cannot import name 'x'", name="numpy")) == "" == missing(ValueError("numpy"))
