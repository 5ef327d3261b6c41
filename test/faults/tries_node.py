"""The campaign's torment of a running node: every service and topic, with nonsense and with bytes that are no message."""

from __future__ import annotations

import importlib
import random
import time


def torment(seed: int, seconds: float, tries):
    """Yields (what, detail) of each finding. Needs rclpy; nothing happens without."""
    try:
        import rclpy
    except ImportError:
        return
    from live_node import SMALL, Client, LiveNode

    from dino_perception.ros.rig.isolation import isolated

    with isolated():
        rclpy.init(args=[])
        node, client = LiveNode({**SMALL, "max_age": 600.0}, name="tormented"), Client("tormented")
        try:
            yield from _torment(node, client, random.Random(seed), seconds, tries)
        except AssertionError as error:  # a service that does not answer, a state that does not come
            yield ("hangs" if node.alive() else "deaths"), f"{error}; {node.log()[-500:]}"
        finally:
            code = node.stop()
            if code:
                yield "deaths", f"the node ended with code {code}: {node.log()[-500:]}"
            if "Traceback" in node.log():
                yield "tracebacks", node.log()[-2000:]
            client.close()
            rclpy.try_shutdown()


def _torment(node, client, random_, seconds, tries):
    from live_node import BEST_EFFORT, image, info
    from mutations import damaged
    from nonsense import fill
    from rclpy.serialization import serialize_message
    from sensor_msgs.msg import CameraInfo, Image

    client.wait_for_state("active")
    services = [
        (name, getattr(importlib.import_module(f"{kind.split('/')[0]}.srv"), kind.split("/")[2]))
        for name, (kind, *_) in client.node.get_service_names_and_types_by_node(client.target, "/")
    ]
    senders = {
        kind: client.node.create_publisher(kind, topic, BEST_EFFORT)
        for kind, topic in ((Image, "/image"), (CameraInfo, "/camera_info"))
    }
    client.listen("segmentation/mask", "sensor_msgs/msg/Image").append(None)
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if random_.random() < 0.3:
            name, service = random_.choice(services)
            request = fill(service.Request(), random_)
            if hasattr(request, "transition"):
                request.transition.id, request.transition.label = random_.choice(((77, ""), (0, "nonsense")))
            client.call(service, name, **{f: getattr(request, f) for f in request.get_fields_and_field_types()})
            tries["node, service"] += 1
        else:
            kind = random_.choice((Image, CameraInfo))
            stamp = client.now_ns()
            message = (image if kind is Image else info)(stamp)
            how = random_.randrange(4)
            if how == 0:
                senders[kind].publish(fill(kind(), random_))
            elif how == 1:
                data = bytes(serialize_message(message))
                senders[kind].publish(data[:4] + damaged(data[4:], random_, 200))
            elif how == 2:
                _spoil(message, random_)
                senders[kind].publish(message)
            else:
                senders[kind].publish(message)
            tries["node, message"] += 1
        time.sleep(0.005)
        if not node.alive():
            yield "deaths", node.log()[-2000:]
            return
    assert client.state() == "active"


def _spoil(message, random_) -> None:
    """One field that does not fit the others."""
    fields = (
        ("height", "width", "step", "encoding") if hasattr(message, "step") else ("height", "width", "d", "k", "r", "p")
    )
    field = random_.choice(fields)
    if field in ("height", "width", "step"):
        setattr(message, field, random_.choice((0, 1, 2**16, 2**32 - 1)))
    elif field == "encoding":
        message.encoding = random_.choice(("", "\x1b[31m", "bayer_rggb16", "nv12", "x" * 3000))
    else:
        values = list(getattr(message, field))
        values[random_.randrange(len(values))] = random_.choice(
            (float("nan"), float("inf"), 1e300, -1e300, 1e-310, 0.0)
        )
        setattr(message, field, values)
