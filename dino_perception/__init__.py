"""One frozen DINOv3 pass per camera frame; segmentation, depth and matches for navigation."""

# A sourced ROS 2 workspace holds the generated `dino_perception.msg` beside the installed modules. Extending the
# path merges the two when Python starts inside the source tree, where the messages are not.
__path__ = __import__("pkgutil").extend_path(__path__, __name__)

__version__ = "0.1.0"
