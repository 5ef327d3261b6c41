"""Start the node: `python -m dino_perception.ros --ros-args ...`."""

from __future__ import annotations

import sys


def main() -> int:
    try:
        from dino_perception.ros.node import main as run  # rclpy's own handling of Ctrl-C begins after its import

        return run()
    except KeyboardInterrupt:
        return 0


if __name__ == "__main__":
    sys.exit(main())
