"""The node under a long drive's worth of trouble: 60 images a second from publishers that come and go and change their
size, parameters set, services called, the node disabled and deactivated, and nonsense in between.

    .venv/bin/python test/faults/soak.py --minutes 30 --json soak.json

Every output is held against what was sent: its stamp and its frame_id must be those of one image, its size must fit that
image, it must have left the node within `max_age` of its stamp, and the stamps of a topic may not go back. The node's
resident memory is read every second; its growth is the median of the last tenth of the time against that of the third
tenth (pools and the caches of calibrations fill first). Exit code 1 when anything of this is wrong.
"""

from __future__ import annotations

import argparse
import collections
import json
import os
import random
import struct
import sys
import threading
import time
from pathlib import Path

import numpy as np

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "test" / "ros")]

MAX_AGE_S = 0.5
SLACK_S = 0.1
"""The age is looked at just before a message is handed over; on a busy machine the thread may be sent to sleep there."""
TOPICS = {
    "segmentation/mask": "sensor_msgs/msg/Image",
    "depth/image": "sensor_msgs/msg/Image",
    "points": "sensor_msgs/msg/PointCloud2",
    "correspondences": "dino_perception/msg/Correspondences",
    "segmentation/overlay": "sensor_msgs/msg/Image",
}
SIZES = ((96, 128), (96, 160), (120, 128))
SETTABLE = {
    "points.max_range": (30.0, 5.0, 1e300, "far"),
    "correspondences.max_matches": (400, 50, -1),
    "correspondences.reference": ("previous", "keyframe", "none"),
    "correspondences.rate": (0.0, 5.0, 1e-300),
    "depth.rate": (0.0, 10.0),
    "depth.enabled": (True, False, True),
    "overlay.alpha": (0.1, 0.9, float("nan")),
    "max_age": (MAX_AGE_S,),
    "no.such": (1,),
}
SILENT_S = 15.0
"""Without its diagnostics, which come once a second, for so long the node hangs. So it does when a call gets no answer."""


class Outputs:
    """Hears the node and holds every message against the images that were sent."""

    def __init__(self, client):
        self.sent: collections.OrderedDict[int, tuple[int, int]] = collections.OrderedDict()
        self.counts = collections.Counter()
        self.wrong: list[str] = []
        self.oldest_s = 0.0
        self.heard_s = time.monotonic()
        self.silence_s = 0.0
        self.alive_s = time.monotonic()
        """When the node last sent its diagnostics: it is not hung while it does, even where every image is too old."""
        from diagnostic_msgs.msg import DiagnosticArray

        client.node.create_subscription(DiagnosticArray, "/diagnostics", self._diagnosed, 10)
        self._last: dict[str, int] = {}
        self._client, self._subscriptions = client, {}

    def _diagnosed(self, array) -> None:
        self.alive_s = time.monotonic()

    def note(self, stamp_ns: int, size: tuple[int, int]) -> None:
        self.sent[stamp_ns] = size
        while len(self.sent) > 3000:
            self.sent.popitem(last=False)

    def listen(self, topic: str) -> None:
        from live_node import TYPES

        if topic not in self._subscriptions:
            self._subscriptions[topic] = self._client.node.create_subscription(
                TYPES.type(TOPICS[topic]), self._client.topic(topic), self._hearer(topic), 5, raw=True
            )

    def leave(self, topic: str) -> None:
        self._client.node.destroy_subscription(self._subscriptions.pop(topic))

    def _hearer(self, topic):
        def hear(data: bytes, info) -> None:
            now = time.monotonic()
            self.silence_s, self.heard_s = max(self.silence_s, now - self.heard_s), now
            self.counts[topic] += 1
            order = "<" if data[1] & 1 else ">"
            seconds, nanoseconds, length = struct.unpack_from(order + "iII", data, 4)
            stamp, frame = seconds * 10**9 + nanoseconds, bytes(data[16 : 16 + length - 1]).decode()
            age = (info["source_timestamp"] - stamp) / 1e9
            self.oldest_s = max(self.oldest_s, age)
            if stamp not in self.sent:
                self._say(topic, "wrong stamp", f"{stamp} was never sent")
            elif frame != f"f{stamp}":
                self._say(topic, "wrong frame", f"stamp {stamp} with frame_id {frame}")
            elif topic != "correspondences":
                at = 4 + -(-(12 + length) // 4) * 4
                height, width = struct.unpack_from(order + "II", data, at)
                image = self.sent[stamp]
                if (height, width) != (image if topic.endswith("overlay") else fitted(image)):
                    self._say(topic, "wrong size", f"{width}x{height} for an image of {self.sent[stamp]}")
            if age > MAX_AGE_S + SLACK_S:
                self._say(topic, "stale", f"left {age:.3f} s after its stamp")
            if stamp < self._last.get(topic, 0):
                self._say(topic, "went back", f"{stamp} after {self._last[topic]}")
            self._last[topic] = stamp

        return hear

    def _say(self, topic: str, kind: str, detail: str) -> None:
        self.counts[kind] += 1
        if len(self.wrong) < 20:
            self.wrong.append(f"{topic}: {kind}: {detail}")


def fitted(size: tuple[int, int]) -> tuple[int, int]:
    """The output's size for an image of `size` (height, width), by the package's own geometry."""
    from live_node import SMALL

    from dino_perception.perception.geometry import letterbox

    box = letterbox(*size, *(SMALL[f"{of}_{side}"] for of in ("input", "output") for side in ("height", "width")))
    return box.output_height, box.output_width


class Camera(threading.Thread):
    """Sends images at a rate; its publishers flap, its size changes, and now and then it sends what is no image."""

    def __init__(self, client, outputs: Outputs, hz: float, random_: random.Random):
        super().__init__(daemon=True)
        self._client, self._outputs, self._hz, self._random = client, outputs, hz, random_
        self.going, self.sent, self.flaps = True, 0, 0

    def run(self) -> None:
        from live_node import BEST_EFFORT, image, info
        from sensor_msgs.msg import CameraInfo, Image

        node, random_ = self._client.node, self._random
        due = time.monotonic()
        while self.going:
            size = random_.choice(SIZES)
            pictures = [image(0, *size, seed=seed) for seed in range(4)]
            calibration = info(0, *size)
            images = node.create_publisher(Image, "/image", BEST_EFFORT)
            infos = node.create_publisher(CameraInfo, "/camera_info", BEST_EFFORT)
            ends = time.monotonic() + random_.uniform(3, 20)
            while self.going and time.monotonic() < ends:
                time.sleep(max(0.0, due - time.monotonic()))
                due = max(due + 1 / self._hz, time.monotonic() - 0.1)
                message, stamp = pictures[self.sent % 4], self._client.now_ns()
                for each in (message, calibration):
                    each.header.stamp.sec, each.header.stamp.nanosec = divmod(stamp, 10**9)
                    each.header.frame_id = f"f{stamp}"
                self._outputs.note(stamp, size)
                infos.publish(calibration)
                images.publish(message)
                self.sent += 1
                if random_.random() < 0.005:
                    self._nonsense(images, infos, image(1, *size), info(1, *size))
            for publisher in (images, infos):
                node.destroy_publisher(publisher)
            self.flaps += 1
            time.sleep(random_.uniform(0, 1))

    def _nonsense(self, images, infos, picture, calibration) -> None:
        which = self._random.randrange(6)
        if which == 0:
            picture.step = 3
        elif which == 1:
            picture.encoding = "\x1b[31m" + "x" * self._random.randrange(40)
        elif which == 2:
            picture.data = picture.data[: self._random.randrange(1, 500)]
        elif which == 3:
            picture.height = 0
        elif which == 4:
            calibration.d = [1e300] * 5
            infos.publish(calibration)
            return
        else:
            images.publish(self._random.randbytes(60))
            return
        images.publish(picture)


class Operator(threading.Thread):
    """Sets parameters, calls services, comes and goes as a listener."""

    def __init__(self, client, outputs: Outputs, random_: random.Random):
        super().__init__(daemon=True)
        self._client, self._outputs, self._random = client, outputs, random_
        self.going, self.calls, self.error = True, collections.Counter(), ""

    def run(self) -> None:
        try:
            while self.going:
                self._act()
                time.sleep(self._random.uniform(0.1, 0.6))
            self._client.call(*_enable(), data=True)
        except (AssertionError, Exception) as error:  # a call that got no answer
            self.error = f"{type(error).__name__}: {error}"

    def _act(self) -> None:
        from rcl_interfaces.msg import Parameter, ParameterValue
        from rcl_interfaces.srv import SetParameters
        from std_srvs.srv import Trigger

        client, random_ = self._client, self._random
        what = random_.choices(("set", "bad set", "enable", "reset", "listener", "lifecycle"), (8, 2, 1, 2, 3, 0.3))[0]
        self.calls[what] += 1
        if what == "set":
            name = random_.choice(list(SETTABLE))
            client.set(**{name: random_.choice(SETTABLE[name])})
        elif what == "bad set":
            value = ParameterValue(type=random_.randrange(10, 255))
            client.call(SetParameters, "set_parameters", parameters=[Parameter(name="max_age", value=value)])
        elif what == "enable":
            for on in (False, True):
                client.call(*_enable(), data=on)
        elif what == "reset":
            client.call(Trigger, "reset_tracks")
        elif what == "listener":
            topic = random_.choice([topic for topic in TOPICS if topic != "segmentation/mask"])
            if topic in self._outputs._subscriptions:
                self._outputs.leave(topic)
            else:
                self._outputs.listen(topic)
        else:
            client.transition("deactivate")
            time.sleep(random_.uniform(0, 0.5))
            client.transition("activate")


def _enable():
    from std_srvs.srv import SetBool

    return SetBool, "enable"


def resident(pid: int) -> int:
    """Resident bytes of a process."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * 4096


def soak(minutes: float, hz: float, seed: int) -> dict:
    """Run it. Returns the figures."""
    import rclpy
    from live_node import SMALL, Client, LiveNode

    rclpy.init(args=[])
    node, client = LiveNode({**SMALL, "max_age": MAX_AGE_S}), Client()
    client.wait_for_state("active")
    outputs = Outputs(client)
    for topic in TOPICS:
        outputs.listen(topic)
    camera = Camera(client, outputs, hz, random.Random(seed))
    operator = Operator(client, outputs, random.Random(seed + 1))
    memory: list[int] = []
    begun, hangs, load = time.monotonic(), 0, 0.0
    outputs.heard_s = begun
    camera.start()
    operator.start()
    while time.monotonic() - begun < 60 * minutes and node.alive() and not operator.error:
        memory.append(resident(node.pid))
        time.sleep(1)
        if time.monotonic() - outputs.alive_s > SILENT_S:
            hangs += 1
            outputs.alive_s = time.monotonic()
        load = max(load, os.getloadavg()[0])
    seconds, alive = time.monotonic() - begun, node.alive()
    camera.going = operator.going = False
    camera.join(10)
    operator.join(90)
    errors = {key: value for key, value in client.values("perception").items() if "error" in key}
    code = node.stop() if alive else None
    tenth = max(len(memory) // 10, 1)
    early, late = (float(np.median(part)) / 2**20 for part in (memory[2 * tenth : 3 * tenth], memory[-tenth:]))
    client.close()
    rclpy.try_shutdown()
    return {
        "seconds": round(seconds, 1),
        "sent": camera.sent,
        "sent a second": round(camera.sent / seconds, 1),
        "publishers came and went": camera.flaps,
        "calls": dict(operator.calls),
        "outputs": {topic: outputs.counts[topic] for topic in TOPICS},
        "oldest output [s]": round(outputs.oldest_s, 3),
        "longest silence [s]": round(outputs.silence_s, 2),
        "resident [MiB]": [round(early, 2), round(late, 2)],
        "growth [%]": round(100 * (late / early - 1), 3),
        "resident each minute [MiB]": [
            round(float(np.median(memory[i : i + 60])) / 2**20, 1) for i in range(0, len(memory), 60)
        ],
        "node": errors,
        "highest load average": round(load, 1),
        "deaths": int(not alive),
        "exit code": code,
        "hangs": hangs + bool(operator.error),
        "unanswered": operator.error,
        "tracebacks": node.log().count("Traceback"),
        **{kind: outputs.counts[kind] for kind in ("wrong stamp", "wrong frame", "wrong size", "stale", "went back")},
        "examples": outputs.wrong,
        "log lines": len(node.log().splitlines()),
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--minutes", type=float, default=30.0)
    parser.add_argument("--hz", type=float, default=60.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    from dino_perception.ros.rig.isolation import isolated

    with isolated():
        figures = soak(args.minutes, args.hz, args.seed)
    text = json.dumps(figures, indent=1)
    print(text)
    if args.json:
        args.json.write_text(text + "\n")
    zero = ("deaths", "hangs", "tracebacks", "wrong stamp", "wrong frame", "wrong size", "stale", "went back")
    return int(any(figures[kind] for kind in zero) or figures["growth [%]"] > 1.0 and args.minutes >= 10)


if __name__ == "__main__":
    sys.exit(main())
