"""Lifecycle transitions that leave the node answering: the slow one runs beside the executor."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from lifecycle_msgs.msg import Transition
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.lifecycle import LifecycleNode, LifecycleNodeMixin, TransitionCallbackReturn
from rclpy.node import Node
from rclpy.task import Future


class PatientLifecycleNode(LifecycleNode):
    """A LifecycleNode whose configure transition, asked for by service or by `bring_up`, runs in a thread of its own,
    while every other callback (state queries, parameters, diagnostics, services) is answered as usual.

    The other transitions are quick and run in the executor's thread, where subscriptions may safely come and go.
    One transition runs at a time; another one asked for meanwhile is refused.
    """

    def __init__(self, name: str, **options: Any):
        Node.__init__(self, name, **options)
        # Reentrant: the state can be asked while a transition is under way.
        LifecycleNodeMixin.__init__(self, callback_group=ReentrantCallbackGroup())
        self._in_transition = False
        self._configuring: threading.Thread | None = None
        self._change_state = self._service_change_state.callback
        self._service_change_state.callback = self._on_change_state_request

    async def bring_up(self) -> bool:
        """Configure and activate. False when one of them failed."""
        for trigger, slow in ((self.trigger_configure, True), (self.trigger_activate, False)):
            if await self._transition(trigger, slow) != TransitionCallbackReturn.SUCCESS:
                return False
        return True

    def leave(self, seconds: float) -> bool:
        """Wait for a configure under way to end; it cannot be interrupted. False when it did not within `seconds`."""
        if self._configuring is not None:
            self._configuring.join(seconds)
        return self._configuring is None or not self._configuring.is_alive()

    async def _on_change_state_request(self, request: Any, response: Any) -> Any:
        asked = request.transition
        slow = asked.label == "configure" if asked.label else asked.id == Transition.TRANSITION_CONFIGURE
        response.success = False
        changed = await self._transition(lambda: self._change_state(request, response), slow)
        return changed if changed is not None else response

    async def _transition(self, trigger: Callable[[], Any], slow: bool) -> Any:
        """What `trigger` returns; None when it was refused."""
        if self._in_transition:
            self.get_logger().warn("a lifecycle transition was refused: another one is still under way")
            return None
        self._in_transition = True
        try:
            return await self._beside(trigger) if slow else trigger()
        except Exception as error:  # rcl refuses what the present state does not allow; that must not end the node
            self.get_logger().warn(f"a lifecycle transition was refused: {error}")
            return None
        finally:
            self._in_transition = False

    async def _beside(self, trigger: Callable[[], Any]) -> Any:
        done = Future()

        def run() -> None:
            try:
                done.set_result(trigger())
            except Exception as error:
                done.set_exception(error)
            if self.executor is not None:
                self.executor.wake()  # it looks at waiting coroutines only when it wakes

        self._configuring = threading.Thread(target=run, name="configure", daemon=True)
        self._configuring.start()
        return await done
