"""The settings as ROS parameters: declared with description and range, checked when set, live where they may be."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

from rcl_interfaces.msg import FloatingPointRange, IntegerRange, ParameterDescriptor, SetParametersResult
from rclpy.exceptions import InvalidParameterValueException
from rclpy.node import Node
from rclpy.parameter import Parameter

from dino_perception.perception import settings as s


class Parameters:
    """Declares every setting on `node` and keeps the two in step.

    Before `lock` any parameter may be set to a value that is accepted. Between `lock` and `unlock` (while the node is
    configured) only live ones change, all or none of a request, and `changed(settings)` is called with the result. While
    it is not, `set_free()` is called after a change.

    A value from a parameter file that cannot be used does not stop the node from coming up: `settings` raises for it,
    so that configuring fails with a sentence and may be tried again once the value is set.
    """

    def __init__(self, node: Node, changed: Callable[[s.Settings], None], set_free: Callable[[], None] = lambda: None):
        self._node, self._changed, self._set_free = node, changed, set_free
        self._settings: s.Settings | None = None
        self._known: dict[str, s.Parameter] = {}
        self._declare(s.Settings(head={}))
        self._declare_heads(self._value("heads"))
        node.add_on_set_parameters_callback(self._check)
        # Humble has no callback for "has been set"; there the check, the last to be asked, applies what it accepts.
        self._applies_after = hasattr(node, "add_post_set_parameters_callback")
        if self._applies_after:
            node.add_post_set_parameters_callback(self._apply)

    def settings(self) -> s.Settings:
        """What the parameters say now. Raises SettingError, which names every value that cannot be used."""
        wrong = []
        for name, parameter in self._known.items():
            try:
                s.check(name, parameter.field, self._value(name))
            except s.SettingError as error:
                wrong.append(str(error))
        if wrong:
            raise s.SettingError("; ".join(wrong))
        heads = self._value("heads")
        known = {p.name for p in s.Settings(heads=heads, head=s.default_heads(heads)).parameters()}
        return s.Settings.from_flat({name: self._value(name) for name in self._known if name in known})

    def lock(self) -> s.Settings:
        """What the parameters say now; only live ones change from now on. Raises SettingError, without locking."""
        self._settings = self.settings()
        return self._settings

    def unlock(self) -> None:
        """From now on every parameter changes."""
        self._settings = None

    def named_in(self, sentence: str) -> str:
        """The first parameter whose name stands quoted in a sentence; empty when none does."""
        return next((name for name in re.findall(r"'([\w.]+)'", sentence) if name in self._known), "")

    def unknown(self) -> list[str]:
        """Names given at start, in a parameter file or on the command line, that no parameter has."""
        given = getattr(self._node, "_parameter_overrides", {})
        # A file may well say something about a head that is not loaded, or about what others declare later.
        expected = {p.name for p in s.Settings().parameters()}
        return sorted(
            name
            for name in given
            if not self._node.has_parameter(name)
            and name not in expected
            and not name.startswith(("qos_overrides.", "diagnostic_updater."))
        )

    def _declare(self, settings: s.Settings) -> None:
        for parameter in settings.parameters():
            if parameter.name in self._known:
                continue
            self._known[parameter.name] = parameter
            self._node.declare_parameter(parameter.name, parameter.value, descriptor(parameter, ranges=False))
            try:
                self._node.set_descriptor(parameter.name, descriptor(parameter))
            except InvalidParameterValueException:
                pass  # out of range since the start: `settings` says so

    def _declare_heads(self, heads: Any) -> None:
        if isinstance(heads, (list, tuple)) and all(isinstance(head, str) for head in heads):
            self._declare(s.Settings(head=s.default_heads([head for head in heads if head])))

    def _value(self, name: str) -> Any:
        value = self._node.get_parameter(name).value
        if value is None and isinstance(self._known[name].value, list):
            return []  # an empty list in a parameter file arrives as a parameter without a value
        return list(value) if isinstance(value, (tuple, bytes)) or hasattr(value, "typecode") else value

    def _check(self, parameters: Sequence[Parameter]) -> SetParametersResult:
        ours = {p.name: p.value for p in parameters if p.name in self._known}
        ours = {name: list(value) if isinstance(value, (tuple, bytes)) else value for name, value in ours.items()}
        try:
            if self._settings is not None:
                self._settings.changed(ours, live_only=True)
            else:
                for name, value in ours.items():
                    s.check(name, self._known[name].field, value)
        except s.SettingError as error:
            return SetParametersResult(successful=False, reason=str(error))
        if not self._applies_after:
            self._apply(parameters)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: Sequence[Parameter]) -> None:
        ours = {p.name: p.value for p in parameters if p.name in self._known}
        if self._settings is not None and ours:
            self._settings = self._settings.changed(
                {name: value for name, value in ours.items() if self._known[name].field.metadata["live"]}
            )
            self._changed(self._settings)
        elif ours:
            if "heads" in ours:
                self._declare_heads(ours["heads"])  # a new head's own parameters can then be set before configuring
            self._set_free()


def descriptor(parameter: s.Parameter, *, ranges: bool = True) -> ParameterDescriptor:
    """What `ros2 param describe` shows: meaning, accepted values, and when it takes effect.

    Typing is dynamic: 1 is a fine value for a number, and the settings' own check says more than a type mismatch."""
    low, high, choices, live = (parameter.field.metadata[key] for key in ("low", "high", "choices", "live"))
    constraints = []
    if choices:
        kind = "any of" if isinstance(parameter.value, list) else "one of"
        constraints.append(f"{kind}: {', '.join(choices)}")
    constraints.append("takes effect at once" if live else "takes effect when the node is configured")
    result = ParameterDescriptor(
        description=parameter.field.metadata["description"],
        additional_constraints="; ".join(constraints),
        dynamic_typing=True,
    )
    if low is None or not ranges:
        return result
    if isinstance(parameter.value, float):
        result.floating_point_range = [FloatingPointRange(from_value=float(low), to_value=float(high))]
    else:
        result.integer_range = [IntegerRange(from_value=low, to_value=high)]
    return result
