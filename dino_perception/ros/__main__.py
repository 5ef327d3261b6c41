"""Start the node: `python -m dino_perception.ros --ros-args ...`."""

from __future__ import annotations

import sys

from dino_perception.missing_packages import missing


def main() -> int:
    try:
        from dino_perception.ros.node import main as run  # rclpy's own handling of Ctrl-C begins after its import

        return run()
    except KeyboardInterrupt:
        return 0
    except ModuleNotFoundError as error:
        if sentence := missing(error):
            print(f"perception_node: {sentence}", file=sys.stderr)
            return 2
        raise


if __name__ == "__main__":
    sys.exit(main())
