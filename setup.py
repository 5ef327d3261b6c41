"""`pip install .`: the part that needs no ROS (offline commands, training). In a ROS 2 workspace colcon builds the
package by CMakeLists.txt instead, which adds the messages, and this file is not looked at."""

import platform
from pathlib import Path

from setuptools import Extension, find_packages, setup

ROOT = Path(__file__).parent


def shared(*folders: str) -> list[tuple[str, list[str]]]:
    """Folders with all they hold, to where `dino_perception.share` looks for them."""
    found: dict[str, list[str]] = {}
    for folder in folders:
        for path in sorted((ROOT / folder).rglob("*")):
            if path.is_file() and "__pycache__" not in path.parts:
                inside = path.relative_to(ROOT)
                found.setdefault(f"share/dino_perception/{inside.parent}", []).append(str(inside))
    return sorted(found.items())


# Nothing contracted, so that every machine computes the same bits.
COMPILE = ["-O3", "-std=c++17", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math", "-Wno-psabi"]
COMPILE += ["-mavx2"] if platform.machine() in ("x86_64", "AMD64") else []

setup(
    name="dino_perception",
    version="0.1.0",
    description="One frozen DINOv3 pass per camera frame; segmentation, metric depth and correspondences for rovers",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.10",
    packages=find_packages(include=["dino_perception", "dino_perception.*"]),
    package_data={
        "": ["*.safetensors", "*.json", "*.yaml", "*.html", "*.jpg", "*.png", "*.npz", "pictures/*.jpg", "weights/*"]
    },
    # Without a C++ compiler the package installs all the same and matches with arrays, which takes longer.
    ext_modules=[
        Extension(
            "dino_perception.perception._matching",
            ["src/matching/refine.cpp", "src/matching/descriptors.cpp", "src/matching/field.cpp"],
            extra_compile_args=COMPILE,
            optional=True,
        )
    ],
    data_files=shared("config", "launch", "data"),
    entry_points={"console_scripts": ["dino-perception = dino_perception.cli.__main__:main"]},
    # The versions that the tests passed with stand in requirements/.
    install_requires=[
        "backports.zstd; python_version < '3.14'",
        "lz4",
        "numpy>=1.21",
        "opencv-python-headless>=4.5.4",
        "pillow",
        "PyYAML",
        "rich",
        "rosbags>=0.11",
        "safetensors",
        "torch>=2.4",
    ],
    extras_require={
        "canopy": ["rasterio"],
        "evaluation": ["pycocotools"],
        "openvino": ["openvino"],
        "pictures": ["matplotlib"],
        "odometry": ["evo"],
        "strict": ["simplejpeg"],
        "video": ["av"],
        "viewer": ["aiohttp"],
    },
)
