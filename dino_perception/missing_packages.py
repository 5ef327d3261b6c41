"""The Python packages that the code imports, and what to say where one is missing.

A ROS installation by rosdep has NumPy, OpenCV, PyYAML, Pillow, Rich, Matplotlib and torch; the others have no rosdep key
and come by pip, also on a robot.
"""

from __future__ import annotations

WHEELS = {
    "PIL": "pillow",
    "aiohttp": "aiohttp",
    "av": "av",
    "backports": "backports.zstd",
    "cv2": "opencv-python-headless",
    "evo": "evo",
    "huggingface_hub": "huggingface_hub",
    "lz4": "lz4",
    "matplotlib": "matplotlib",
    "numpy": "numpy",
    "openvino": "openvino",
    "rasterio": "rasterio",
    "ray": "ray",
    "pycocotools": "pycocotools",
    "rich": "rich",
    "rosbags": "rosbags",
    "safetensors": "safetensors",
    "simplejpeg": "simplejpeg",
    "torch": "torch",
    "torch_tensorrt": "torch-tensorrt",
    "transformers": "transformers",
    "yaml": "PyYAML",
}
"""Module -> what pip calls it."""


def missing(error: BaseException) -> str:
    """One sentence with the line that helps, for an import that failed because a wheel is not installed; empty for any
    other error."""
    top = (getattr(error, "name", None) or "").split(".")[0]
    if not isinstance(error, ModuleNotFoundError) or top not in WHEELS:
        return ""
    return (
        f"the Python package {WHEELS[top]} is not installed here; install it with: python3 -m pip install {WHEELS[top]}"
    )
