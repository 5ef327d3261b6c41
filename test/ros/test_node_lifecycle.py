"""Lifecycle transitions through the real services, bad configurations, and ways to end."""

import re
import signal
import time

import pytest
from diagnostic_msgs.msg import DiagnosticStatus
from lifecycle_msgs.srv import GetState
from live_node import SMALL, image, wait_for
from rcl_interfaces.srv import ListParameters


@pytest.fixture(scope="module")
def live(start):
    """A node that waits for a lifecycle manager and whose configuration is bad in two places."""
    return start({**SMALL, "autostart": False, "engine": "warp", "output_height": 3, "max_agee": 1.0}, name="managed")


def test_without_autostart_it_waits_and_answers(live):
    _, client = live
    assert client.state() == "unconfigured"
    names = client.call(ListParameters, "list_parameters").result.names
    assert {"backbone", "engine", "points.max_range", "correspondences.min_score"} <= set(names)
    wait_for(lambda: client.values("perception"), "diagnostics")
    assert client.values("perception")["state"] == "unconfigured"
    assert client.found("perception").level == DiagnosticStatus.OK


def test_a_misspelt_parameter_is_pointed_out(live):
    node, client = live
    client.state()
    assert "'max_agee' was given but is no parameter of this node" in node.log()


def test_a_bad_configuration_fails_to_configure_with_a_sentence_and_the_node_lives(live):
    node, client = live
    assert client.transition("configure") is False
    assert client.state() == "unconfigured" and node.alive()
    sentences = (
        "'engine' is 'warp'; accepted are auto, tensorrt, cuda, openvino, torch",
        "'output_height' is 3; accepted is 8 to 2048",
    )
    assert all(sentence in node.log() for sentence in sentences)
    assert "Traceback" not in node.log()
    wait_for(lambda: client.found("perception").level == DiagnosticStatus.ERROR, "the diagnostics to show it")
    assert all(sentence in client.found("perception").message for sentence in sentences)


@pytest.mark.parametrize(
    "values, sentence",
    [
        ({"backbone": "dinov9"}, "dinov9"),
        ({"weights": "/nowhere/model.safetensors"}, "/nowhere/model.safetensors"),
        ({"depth__weights": "/nowhere/depth.safetensors"}, "/nowhere/depth.safetensors"),
        ({"input_height": 100}, "100"),
        ({"cameras": ["front camera"]}, "'front camera'"),
        ({"cameras": []}, "at least one camera"),
        ({"heads": ["segmentation", "x_ray"]}, "x_ray"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_only_loading_can_find_wrong_is_a_sentence_too(live, values, sentence):
    node, client = live
    before = {name: client.get(name.replace("__", ".")) for name in values}
    assert client.set(engine="torch", output_height=48, **values).successful
    assert client.transition("configure") is False
    assert client.state() == "unconfigured"
    last = [line for line in node.log().splitlines() if "not configured" in line][-1]
    assert sentence in last and "Traceback" not in node.log() and "Error:" not in last
    assert client.set(**before).successful


def test_mended_it_configures_activates_deactivates_and_cleans_up(live):
    node, client = live
    assert client.set(engine="torch", output_height=48).successful
    assert not client.node.count_publishers(client.topic("segmentation/mask"))
    assert client.transition("configure") is True and client.state() == "inactive"
    assert client.node.count_publishers(client.topic("segmentation/mask")) == 1
    assert not client.node.count_subscribers("/image")
    assert client.transition("activate") is True and client.state() == "active"
    masks = client.listen("segmentation/mask", "sensor_msgs/msg/Image")

    def looked():
        client.send(image(client.now_ns()))
        time.sleep(0.02)
        return masks

    wait_for(looked, "a mask")
    assert client.transition("deactivate") is True and client.state() == "inactive"
    wait_for(lambda: not client.node.count_subscribers("/image"), "the images to be let go")
    assert client.transition("activate") is True
    masks.clear()
    wait_for(looked, "a mask after the pause")
    assert client.transition("deactivate") is True and client.transition("cleanup") is True
    assert client.state() == "unconfigured"
    wait_for(lambda: not client.node.count_publishers(client.topic("segmentation/mask")), "the outputs to be gone")


def test_a_transition_that_the_state_does_not_allow_is_refused_and_the_node_lives(live):
    node, client = live
    assert client.state() == "unconfigured"
    assert client.transition("activate") is False
    assert client.transition("no such thing") is False
    assert client.state() == "unconfigured" and node.alive()


def test_while_it_configures_it_answers_and_refuses_a_second_transition(live):
    from lifecycle_msgs.msg import Transition
    from lifecycle_msgs.srv import ChangeState

    _, client = live
    assert client.set(engine="torch", output_height=48).successful
    service = client.node.create_client(ChangeState, client.topic("change_state"))
    assert service.wait_for_service(20)
    future = service.call_async(ChangeState.Request(transition=Transition(id=Transition.TRANSITION_CONFIGURE)))
    seen = set()
    refused = None
    while not future.done():
        seen.add(client.call(GetState, "get_state").current_state.label)
        if "configuring" in seen and refused is None:
            refused = client.transition("activate")
    assert "configuring" in seen and refused is False
    assert future.result().success and client.state() == "inactive"


def test_after_shutdown_an_interrupt_ends_the_process_cleanly(live):
    node, client = live
    assert client.transition("shutdown") is True and client.state() == "finalized"
    assert node.stop() == 0
    assert "Traceback" not in node.log()


@pytest.mark.parametrize("arguments", [("--params-file", "/nowhere/rover.yaml"), ("--no-such-argument",)], ids=" ".join)
def test_arguments_that_ros_refuses_end_it_with_one_line(start, arguments):
    node, _ = start({}, *arguments, name="mistyped")
    wait_for(lambda: not node.alive(), "the end of the process")
    assert node.stop() == 2
    assert arguments[-1] in node.log() and "Traceback" not in node.log()


def test_while_it_starts_by_itself_it_answers_and_an_interrupt_ends_it_at_once(start, tmp_path):
    slow = {**SMALL, "engine": "openvino", "engine_cache": str(tmp_path)}  # an engine to build: seconds at least
    node, client = start(slow, name="still_building")
    client.wait_for_state("configuring")
    building = lambda: re.match(
        r"configuring for (\d+) s: \w+: building engine openvino .*\(graph \d of 4\)",
        client.found("perception").message,
    )
    wait_for(building, "diagnostics to tell of the build")
    first = int(building().group(1))
    wait_for(lambda: building() and int(building().group(1)) > first, "its seconds to be counted")
    assert client.get("engine") == "openvino"
    assert client.state() == "configuring"
    assert node.stop(signal.SIGINT) == 0
    assert "Traceback" not in node.log() and "terminate called" not in node.log()


def test_a_node_whose_device_is_gone_ends_with_a_sentence_so_that_launch_can_start_it_again(tmp_path, start):
    # A process whose engine fails from the first frame on, as after a CUDA error that does not go away.
    script = tmp_path / "node.py"
    script.write_text(
        "import sys\n"
        "from dino_perception.perception.perceiver import Perceiver\n"
        "def look(self, *arguments):\n"
        "    raise RuntimeError('CUDA error: an illegal memory access was encountered')\n"
        "Perceiver.look = Perceiver.queue = look\n"
        "Perceiver.alive = lambda self: False\n"
        "from dino_perception.ros.node import main\n"
        "sys.exit(main())\n"
    )
    node, client = start(SMALL, name="bereft", program=[str(script)])
    client.wait_for_state("active")
    client.listen("segmentation/mask", "sensor_msgs/msg/Image")
    wait_for(lambda: client.send(image(client.now_ns())) or not node.alive(), "the end of the node")
    assert node.stop() == 3
    assert (
        "the device does not answer any more, leaving: RuntimeError: CUDA error: an illegal memory access" in node.log()
    )


@pytest.mark.parametrize("first, code", [("rclpy.shutdown()", 0), ("pass", 1)], ids=["shut down", "running"])
def test_an_error_of_a_callback_ends_it_badly_only_while_ros_is_up(tmp_path, start, first, code):
    script = tmp_path / "node.py"
    script.write_text(
        "import sys, rclpy\n"
        "from rclpy.executors import SingleThreadedExecutor\n"
        "def spin(self):\n"
        f"    {first}\n"
        "    raise RuntimeError('publisher is invalid')\n"
        "SingleThreadedExecutor.spin = spin\n"
        "from dino_perception.ros.node import main\n"
        "sys.exit(main())\n"
    )
    node, _ = start({**SMALL, "autostart": False}, name="interrupted", program=[str(script)])
    wait_for(lambda: not node.alive(), "the end of the process")
    assert node.stop() == code
    assert ("publisher is invalid" in node.log()) == bool(code)
