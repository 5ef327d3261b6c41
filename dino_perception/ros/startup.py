"""Autostart: configure and activate at start, try again when a parameter was set after a failure, or leave."""

from __future__ import annotations

from collections.abc import Callable

from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.clock import Clock, ClockType

from dino_perception.ros.parameters import Parameters
from dino_perception.ros.transitions import PatientLifecycleNode

NOT_CONFIGURED = 4
"""Exit code of a node that cannot be configured and shall not wait to be mended."""
RETRY_S = 0.5
"""How long after a parameter was set the node tries again: others may follow."""


class Startup:
    """Brings `node` up once it spins, where the parameter `autostart` says so. `problem` tells why the last configure
    has failed, and nothing when it has not. `exit_code` is what the process shall end with."""

    def __init__(self, node: PatientLifecycleNode, parameters: Parameters, problem: Callable[[], str]):
        self.exit_code = 0
        self._node, self._parameters, self._problem = node, parameters, problem
        self._coming_up = node.get_parameter("autostart").value is not False
        # Coroutines of the executor in a group of their own, so that everything is answered while engines are built.
        group, clock = ReentrantCallbackGroup(), Clock(clock_type=ClockType.STEADY_TIME)
        self._timers = [
            node.create_timer(seconds, self._bring_up, callback_group=group, clock=clock) for seconds in (0.0, RETRY_S)
        ]
        self._timers[1].cancel()
        if not self._coming_up:
            self._timers[0].cancel()

    def mended(self) -> None:
        """A parameter was set while the node is not configured."""
        if self._coming_up and self._problem():
            self._timers[1].reset()

    def next_step(self) -> str:
        """What helps after a configure that has failed."""
        wrong = self._parameters.named_in(self._problem()) or "<parameter>"
        name = self._node.get_fully_qualified_name()
        if self._leaves():
            return f"Give {wrong} another value and start again (exit_on_failure is true)"
        then = (
            "the node then tries again by itself" if self._coming_up else f"then `ros2 lifecycle set {name} configure`"
        )
        return f"Next: `ros2 param set {name} {wrong} <value>`; {then}"

    def _leaves(self) -> bool:
        return self._coming_up and self._node.get_parameter("exit_on_failure").value is True

    async def _bring_up(self) -> None:
        for timer in self._timers:
            timer.cancel()
        if await self._node.bring_up():
            self._coming_up = False  # from now on whoever asks for transitions decides
            self._node.get_logger().info("ready")
        elif self._problem() and self._leaves():
            self.exit_code = NOT_CONFIGURED
            self._node.context.try_shutdown()
