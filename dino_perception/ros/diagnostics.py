"""The node's state on /diagnostics once a second: a level, a plain sentence, and the figures behind it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from rclpy.clock import Clock, ClockType
from rclpy.logging import LoggingSeverity
from rclpy.node import Node

from dino_perception.messages.printable import printable

try:
    from diagnostic_updater import Updater
except ImportError:
    Updater = None

OK, WARN, ERROR = DiagnosticStatus.OK, DiagnosticStatus.WARN, DiagnosticStatus.ERROR
PERIOD_S = 1.0
HARDWARE_ID = "dino_perception"
"""The same on every machine: viewers choose a status by it, and their layouts travel."""
LONGEST = 4000
"""Characters of one value."""


class Finding(NamedTuple):
    """What a status says: a level of `DiagnosticStatus`, a sentence, and figures by name."""

    level: bytes
    message: str
    values: Mapping[str, Any]


class Diagnostics:
    """Publishes what every source finds. Sources may come and go.

    Where diagnostic_updater is installed it does the publishing, with its parameters; the messages are the same.
    """

    def __init__(self, node: Node):
        self._node = node
        self._sources: dict[str, Callable[[], Finding]] = {}
        self._updater = Updater(node) if Updater is not None else None
        period = PERIOD_S
        if self._updater is None:
            self._publisher = node.create_publisher(DiagnosticArray, "/diagnostics", 10)
        else:
            period = self._updater.period
            node.destroy_timer(self._updater.timer)
        # Real time, also while simulated time stands: a paused simulation is no reason to fall silent.
        self._timer = node.create_timer(period, self.publish, clock=Clock(clock_type=ClockType.STEADY_TIME))

    def add(self, name: str, source: Callable[[], Finding]) -> None:
        """Ask this source from now on."""
        self._sources[name] = source
        if self._updater is not None:
            self._updater.add(name, lambda status: filled(status, self._ask(name, source)))

    def remove(self, name: str) -> None:
        """Ask it no longer."""
        if self._sources.pop(name, None) is not None and self._updater is not None:
            self._updater.removeByName(name)

    def publish(self) -> None:
        """Ask every source and publish, now."""
        if self._updater is not None:
            self._updater.setHardwareID(HARDWARE_ID)
            self._updater.force_update()
            return
        array = DiagnosticArray()
        array.header.stamp = self._node.get_clock().now().to_msg()
        for name, source in list(self._sources.items()):  # configuring adds sources from its own thread
            status = DiagnosticStatus(name=f"{self._node.get_name()}: {name}", hardware_id=HARDWARE_ID)
            array.status.append(filled(status, self._ask(name, source)))
        self._publisher.publish(array)

    def _ask(self, name: str, source: Callable[[], Finding]) -> Finding:
        """What the source finds; told to the log, too, where that is asked for details."""
        finding = source()
        if self._node.get_logger().is_enabled_for(LoggingSeverity.DEBUG):
            figures = ", ".join(f"{key} {value}" for key, value in flat(finding.values).items() if value)
            self._node.get_logger().debug(f"{name}: {finding.message} ({figures})")
        return finding


def filled(status: DiagnosticStatus, finding: Finding) -> DiagnosticStatus:
    """The status with the finding written into it."""
    status.level, status.message = finding.level, printable(finding.message, LONGEST)
    status.values.extend(KeyValue(key=key, value=value) for key, value in flat(finding.values).items())
    return status


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested figures as dotted names and texts a person reads."""
    lines: dict[str, str] = {}
    for key, value in values.items():
        if isinstance(value, Mapping):
            lines.update(flat(value, f"{prefix}{key}."))
        else:
            lines[printable(f"{prefix}{key}")] = printable(_text(value), LONGEST)
    return lines


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.4g}" if abs(value) < 1e4 else f"{value:.0f}"
    if isinstance(value, (list, tuple)):
        return ", ".join(_text(item) for item in value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "" if value is None else str(value)
