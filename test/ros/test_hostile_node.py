"""Whatever is sent to any service or topic of the node, by whatever program: the node lives, answers and says so once."""

import importlib
import random
import time

import pytest
from live_node import SMALL, image, info, wait_for
from nonsense import fill
from rcl_interfaces.msg import Parameter, ParameterValue
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.serialization import serialize_message
from sensor_msgs.msg import CameraInfo, Image
from std_srvs.srv import SetBool, Trigger

from dino_perception.ros.complaints import CallbackErrors, Complaints
from dino_perception.ros.lasting_executor import LastingExecutor, answer_always


@pytest.fixture(scope="module")
def live(start):
    node, client = start({**SMALL, "max_age": 600.0})
    client.wait_for_state("active")
    return node, client


def test_every_service_answers_nonsense_and_the_node_lives(live):
    node, client = live
    services = dict(client.node.get_service_names_and_types_by_node(client.target, "/"))
    assert {f"/dino_perception/{name}" for name in ("enable", "reset_tracks", "set_parameters", "change_state")} <= set(
        services
    )
    random_ = random.Random(5)
    for name, (kind, *_) in services.items():
        package, _, leaf = kind.split("/")
        service = getattr(importlib.import_module(f"{package}.srv"), leaf)
        for _ in range(8):
            request = fill(service.Request(), random_)
            if hasattr(request, "transition"):
                request.transition.id, request.transition.label = random_.choice(((77, ""), (0, "nonsense")))
            fields = {field: getattr(request, field) for field in request.get_fields_and_field_types()}
            client.call(service, name, **fields)
            assert node.alive(), node.log()
    client.call(SetBool, "enable", data=True)
    assert client.state() == "active"


@pytest.mark.parametrize("kind", [SetParameters, SetParametersAtomically])
def test_a_parameter_of_a_type_that_does_not_exist_is_refused_with_the_reason(live, kind):
    node, client = live
    name = "set_parameters" + ("_atomically" if kind is SetParametersAtomically else "")
    bad = Parameter(name="points.max_range", value=ParameterValue(type=77))
    answer = client.call(kind, name, parameters=[bad])
    result = answer.result if hasattr(answer, "result") else answer.results[0]
    assert not result.successful and "points.max_range" in result.reason and "77" in result.reason
    assert node.alive(), node.log()


def test_bytes_that_are_no_message_leave_the_node_looking_at_the_next_image(live):
    node, client = live
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    stamp = client.now_ns()
    client.send(image(stamp), info(stamp))
    random_ = random.Random(6)
    for topic, kind, message in (("/image", Image, image(stamp)), ("/camera_info", CameraInfo, info(stamp))):
        good = bytearray(serialize_message(message))
        sender = client.node.create_publisher(kind, topic, 10)
        wait_for(sender.get_subscription_count, f"a subscriber of {topic}")
        not_text = good[:]
        not_text[good.index(b"camera_optical")] = 0xFF  # no UTF-8: rclpy cannot make a str of it
        huge = good[:]
        huge[12:16] = b"\xff\xff\xff\x7f"  # the length of frame_id
        for data in (not_text, huge, good[:20], good[:-7], b"", b"\0", random_.randbytes(400), good + b"more"):
            sender.publish(bytes(data))
            time.sleep(0.03)
        for _ in range(20):
            data = good[:]
            for _ in range(5):
                data[random_.randrange(min(len(data), 200))] = random_.randrange(256)
            sender.publish(bytes(data))
            time.sleep(0.01)
        client.node.destroy_publisher(sender)
    assert node.alive(), node.log()
    masks.clear()

    def seen():
        stamp = client.now_ns()
        client.send(image(stamp), info(stamp))
        time.sleep(0.02)
        return masks

    wait_for(seen, "a mask of the image after all that")
    assert "Traceback" not in node.log()
    client.deafen()


def test_a_calibration_that_cannot_be_used_costs_the_points_and_is_said(live):
    node, client = live
    topics = {"depth/image": "sensor_msgs/msg/Image", "points": "sensor_msgs/msg/PointCloud2"}
    masks, clouds = (client.listen(topic, kind) for topic, kind in topics.items())
    for distortion, with_points in ((1e300, False), (0.0, True)):
        camera_info = info(client.now_ns())
        camera_info.d = [distortion] * 5
        masks.clear()
        clouds.clear()

        def seen(camera_info=camera_info):
            client.send(image(client.now_ns()), camera_info)
            time.sleep(0.05)
            return len(masks) > 5

        wait_for(seen, "depth with a bad calibration")
        if with_points:
            wait_for(lambda: seen() and clouds, "points")
            continue
        assert not clouds
        wait_for(lambda: seen() and "D of the camera" in client.found("camera camera").message, "the sentence")
    assert node.alive(), node.log()
    client.deafen()


def test_an_executor_goes_on_after_a_callback_that_raises_and_a_service_that_raises_answers(ros):
    logged = []
    errors = CallbackErrors(Complaints(logged.append))
    context = ros.Context()
    ros.init(args=[], context=context)
    node = ros.create_node("raises", context=context)
    calls = []

    def raises(*_):
        calls.append(1)
        raise KeyError(f"defect {len(calls)}")

    node.create_timer(0.005, raises)
    service = node.create_service(Trigger, "~/raises", raises)
    answer_always(node, errors)
    executor = LastingExecutor(errors, context=context)
    executor.add_node(node)
    caller = node.create_client(Trigger, "~/raises").call_async(Trigger.Request())
    deadline = time.monotonic() + 20
    while time.monotonic() < deadline and not (caller.done() and errors.total > 20):
        executor.spin_once(0.1)
    assert caller.done() and not caller.result().success and "defect" in caller.result().message
    assert errors.total > 20 and errors.recent and len(logged) == 1, logged  # counted each time, told once
    assert "test_hostile_node.py" in logged[0]
    executor.shutdown()
    node.destroy_service(service)
    node.destroy_node()
    ros.shutdown(context=context)


def test_ninety_damaged_pictures_of_ninety_sizes_are_one_complaint():
    lines = []
    complain = Complaints(lines.append)
    for size in range(90):
        try:
            raise ValueError(f"the JPEG of {size} bytes is damaged \x1b[31m")
        except ValueError as error:
            complain(f"camera 'front': {error}", error, "front")
    assert len(lines) == 1 and "\x1b" not in lines[0] and "\\x1b" in lines[0]
