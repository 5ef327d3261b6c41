"""What keeps the process alive whatever is sent to it: an executor that outlives callbacks, and services that always answer."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters, SetParametersAtomically
from rclpy.executors import (
    ConditionReachedException,
    ExternalShutdownException,
    ShutdownException,
    SingleThreadedExecutor,
    TimeoutException,
)
from rclpy.node import Node
from rclpy.parameter import Parameter

from dino_perception.messages.printable import printable

Failed = Callable[..., None]
MOST_WAITS = 20
"""Failures of the waiting itself, one right after another, after which there is no use in going on."""


class LastingExecutor(SingleThreadedExecutor):
    """rclpy raises out of `spin` what a callback raised, or what a message that cannot be converted raised before one.
    Here `failed(error)` is told, and the next callback has its turn."""

    def __init__(self, failed: Failed, **options: Any):
        super().__init__(**options)
        self._failed = failed
        self._waits = 0

    def spin_once(self, timeout_sec: float | None = None) -> None:
        try:
            super().spin_once(timeout_sec)
        except ExternalShutdownException:
            raise
        except Exception as error:
            # A signal shuts ROS down under a callback that was just about to publish: that is an end like any other.
            if not self._context.ok() or self._waits >= MOST_WAITS:
                raise
            self._failed(error)

    def wait_for_ready_callbacks(self, *arguments: Any, **named: Any) -> Any:
        try:
            ready = super().wait_for_ready_callbacks(*arguments, **named)
        except (ConditionReachedException, ExternalShutdownException, ShutdownException, TimeoutException):
            raise
        except Exception:
            self._waits += 1
            raise
        self._waits = 0
        return ready


def answer_always(node: Node, failed: Failed) -> None:
    """Let every service that `node` has answer whatever it is asked: a client that gets no answer waits for ever.

    The two that set parameters refuse with the reason what they cannot read (a value of a type that does not exist),
    each parameter by itself; the others answer with an empty response, whose `success` is false.
    """
    for service in node.services:
        if service.srv_type is SetParameters:
            service.callback = lambda request, response: _set_each(node, request, response)
        elif service.srv_type is SetParametersAtomically:
            service.callback = lambda request, response: _set_all(node, request, response)
        service.callback = _answering(service.callback, service.srv_type, service.srv_name, failed)


def _answering(callback: Callable, kind: Any, name: str, failed: Failed) -> Callable:
    async def answer(request: Any, response: Any) -> Any:
        try:
            answered = callback(request, response)
            return await answered if inspect.isawaitable(answered) else answered
        except Exception as error:
            failed(error, f"the service {name}")
            refusal = kind.Response()
            if hasattr(refusal, "message"):
                refusal.message = printable(f"{type(error).__name__}: {error}")
            return refusal

    return answer


def _set_each(node: Node, request: Any, response: Any) -> Any:
    response.results = [_set(node, [parameter]) for parameter in request.parameters]
    return response


def _set_all(node: Node, request: Any, response: Any) -> Any:
    response.result = _set(node, request.parameters)
    return response


def _set(node: Node, messages: Any) -> SetParametersResult:
    parameters = []
    for message in messages:
        try:
            parameters.append(Parameter.from_parameter_msg(message))
        except Exception as error:
            return _refused(f"'{message.name}' has a value of type {message.value.type}: {error}")
    try:
        return node.set_parameters_atomically(parameters)
    except Exception as error:  # a name that is not declared, a value that one of rclpy's own callbacks cannot take
        return _refused(str(error) or type(error).__name__)


def _refused(reason: str) -> SetParametersResult:
    return SetParametersResult(successful=False, reason=printable(reason))
