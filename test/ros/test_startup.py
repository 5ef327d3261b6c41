"""A node that starts by itself and cannot be configured: it says what to do, is mended while it runs, or leaves."""

from __future__ import annotations

from live_node import SMALL, wait_for


def test_it_says_what_to_do_next_and_tries_again_once_the_parameter_is_set(start):
    node, client = start({**SMALL, "engine": "warp"}, name="hopeful")
    wait_for(lambda: "not configured" in node.log(), "the failure")
    assert "Next: `ros2 param set /hopeful engine <value>`; the node then tries again by itself" in node.log()
    assert client.state() == "unconfigured"
    assert client.set(engine="torch").successful
    client.wait_for_state("active")
    # From now on it does what it is asked to, and nothing by itself.
    assert client.transition("deactivate") and client.transition("cleanup")
    assert client.set(backbone="dinov3-vits16plus", output_height=64).successful
    assert client.transition("configure") is False
    last = [line for line in node.log().splitlines() if "not configured" in line][-1]
    assert "dino-perception models --download dinov3-vits16plus" in last  # no weights, no masks
    assert "`ros2 param set /hopeful weights <value>`; then `ros2 lifecycle set /hopeful configure`" in last
    assert client.set(backbone="rover-tiny").successful
    assert client.state() == "unconfigured"
    assert node.stop() == 0


def test_with_exit_on_failure_it_ends_with_a_code_of_its_own(start):
    node, _ = start({**SMALL, "engine": "warp", "exit_on_failure": True}, name="resolute")
    wait_for(lambda: not node.alive(), "the end of the process")
    assert node.stop() == 4
    assert "'engine' is 'warp'; accepted are" in node.log()
    assert "Give engine another value and start again" in node.log() and "Traceback" not in node.log()


def test_a_lifecycle_manager_decides_for_itself(start):
    node, client = start({**SMALL, "engine": "warp", "exit_on_failure": True, "autostart": False}, name="led")
    assert client.transition("configure") is False
    assert node.alive() and "then `ros2 lifecycle set /led configure`" in node.log()


def test_debug_tells_figures_once_a_second(start):
    node, client = start(SMALL, "--log-level", "talkative:=debug", name="talkative")
    client.wait_for_state("active")
    wait_for(lambda: "perception: running rover-tiny on torch float32 (" in node.log(), "a line with figures")
