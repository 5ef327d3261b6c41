"""What a person should know about a camera or the node: level and sentence from the account of what happened."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from rclpy.qos import QoSCompatibility, qos_check_compatible

from dino_perception import process_memory
from dino_perception.ros.camera_height import disagreement
from dino_perception.ros.complaints import CallbackErrors
from dino_perception.ros.diagnostics import ERROR, OK, WARN, Finding
from dino_perception.ros.frame_statistics import WINDOW_S, Account, CameraAccount
from dino_perception.ros.inputs import CameraInput
from dino_perception.ros.large_messages import VARIABLES

SILENT_S = 2.0
"""A camera that has sent nothing for this long, or for five of its own periods, counts as silent."""


def camera_finding(
    node: Any,
    inputs: CameraInput,
    account: CameraAccount,
    max_age: float,
    enabled: bool,
    mast: tuple[float | None, str] = (None, ""),
) -> Finding:
    """One camera: are images coming, are they usable, are they looked at in time, are distances to be believed. `mast`
    is the camera's height over the ground in metres, where that is known, and what says so."""
    now = time.monotonic()
    rate = account.received.hz(now)
    values = {
        "image topic": inputs.image_topic,
        "camera_info topic": inputs.info_topic,
        "image": account.image,
        "received [Hz]": rate,
        "published [Hz]": account.published.hz(now),
        "received": account.received.total,
        "published": account.published.total,
        "dropped: newer came": account.replaced.total,
        "dropped: older than max_age": account.too_old.total,
        "dropped: not usable": account.bad.total,
        "dropped: error": account.failed.total,
        "not watched": account.unwatched.total,
        "unlike the training": account.unlike.total,
        "age at processing [ms]": None if account.age_s is None else account.age_s * 1e3,
        "camera_info [Hz]": inputs.infos_seen.hz(now),
        "points": account.no_points or "available",
        "height over ground by depth [m]": account.heights.metres(),
        "height over ground as told [m]": mast[0],
    }
    level, message = _camera_state(node, inputs, account, max_age, enabled, now, rate)
    doubts = [doubt for doubt in (_unlike(account, now), disagreement(account.heights.metres(), *mast)) if doubt]
    if not doubts or not enabled:
        return Finding(level, message, values)
    if level == OK:
        return Finding(WARN, "; ".join(doubts), values)
    return Finding(level, "; ".join([message, *doubts]), values)


def _unlike(account: CameraAccount, now: float) -> str:
    """What to say where more than half of the frames are unlike what a head was trained on."""
    if account.unlike.hz(now) <= 0.5 * account.published.hz(now):
        return ""
    return (
        f"this camera's pictures are unlike what the {account.unlike_head} head was trained on: do not believe it; "
        "train one on such pictures, or choose another preset"
    )


def _camera_state(
    node: Any, inputs: CameraInput, account: CameraAccount, max_age: float, enabled: bool, now: float, rate: float
) -> tuple[bytes, str]:
    if not enabled:
        return OK, "not subscribed: the node is not active or is disabled"
    last = account.received.last_s
    quiet = now - max(last or 0.0, inputs.opened_s)
    if quiet > max(SILENT_S, 5 / rate if rate else 0.0) or (last or 0.0) < inputs.opened_s:
        return _silence(node, inputs, quiet, account.received.total > 0)
    if account.bad.hz(now) and not account.published.hz(now):
        return ERROR, f"no image is usable: {account.bad_reason}"
    if account.failed.hz(now):
        return ERROR, "frames are lost to errors; see the perception status"
    if account.too_old.hz(now):
        return _old(account, max_age, now)
    if account.bad.hz(now):
        return WARN, f"some images are not usable: {account.bad_reason}"
    announced = inputs.infos_seen.hz(now)
    if announced >= 1.0 and rate < 0.7 * announced:
        return WARN, (
            f"only {rate:.1f} images a second come while camera_info comes at {announced:.1f} Hz: images are "
            f"lost on the way; {_remedy(inputs.image_topic)}"
        )
    dropping = account.replaced.hz(now)
    if dropping > max(0.5, 0.1 * rate):
        return WARN, (
            f"overloaded: {dropping:.1f} of {rate:.1f} images a second are replaced by newer ones "
            "before their turn comes"
        )
    if account.no_points:
        return WARN, f"everything but points is published: {account.no_points}"
    if not account.published.hz(now):
        return OK, f"{rate:.1f} images a second come in; nobody listens to an output"
    return OK, f"{account.published.hz(now):.1f} of {rate:.1f} images a second are published"


def _silence(node: Any, inputs: CameraInput, quiet: float, before: bool) -> tuple[bytes, str]:
    """Why no image comes."""
    topic = inputs.image_topic
    publishers = node.get_publishers_info_by_topic(topic)
    since = f"no image for {quiet:.0f} s" if before else "no image yet"
    if not publishers:
        return (ERROR if before else WARN), f"{since}: nobody publishes {topic}"
    wanted = type_name(inputs.image_type)
    offered = {info.topic_type for info in publishers}
    if wanted not in offered:
        return ERROR, (
            f"{since}: {topic} carries {', '.join(sorted(offered))}, this node reads {wanted} there; "
            "check the remapping and the parameter image_transport"
        )
    verdicts = [qos_check_compatible(info.qos_profile, inputs.wish()) for info in publishers]
    if all(verdict == QoSCompatibility.ERROR for verdict, _ in verdicts):
        reason = verdicts[0][1].removeprefix("ERROR: ").rstrip(";").lower()
        return ERROR, f"{since}: the publisher of {topic} and this node do not agree on QoS: {reason}"
    if quiet <= SILENT_S:
        return OK, f"waiting for the first image on {topic}"
    return ERROR, (
        f"{since}: {topic} is announced by {len(publishers)} publisher(s) but nothing comes. Either the "
        f"camera is not running, or its images are lost on the way; {_remedy(topic)}"
    )


def _remedy(topic: str) -> str:
    """What helps against images that are lost between two processes."""
    return (
        "Fast DDS with its own settings loses best-effort messages above 0.45 MB: set "
        f"{VARIABLES[0]} to config/fastdds/large_images.xml of this package in the camera's process, or, where the "
        f"camera publishes reliable, set qos_overrides.{topic}.subscription.reliability of this node to reliable"
    )


def _old(account: CameraAccount, max_age: float, now: float) -> tuple[bytes, str]:
    level = WARN if account.published.hz(now) else ERROR
    age = account.age_s or 0.0
    if age > 3600:
        return level, (
            f"images are dropped: by their stamps they are {age:.0f} s old. The stamps and the node's clock "
            "do not belong together; set use_sim_time when a bag or a simulator plays, or mend the "
            "camera's clock"
        )
    if account.late:
        return level, (
            f"frames are dropped: they were {age * 1e3:.0f} ms old when they were done, max_age is "
            f"{max_age * 1e3:.0f} ms; raise it or take a smaller backbone or input"
        )
    return level, (
        f"images are dropped: they were {age * 1e3:.0f} ms old when their turn came, max_age is {max_age * 1e3:.0f} ms"
    )


def node_finding(
    state: str,
    enabled: bool,
    doing: str,
    problem: str,
    warnings: Sequence[str],
    account: Account,
    perceiver: Any,
    callback_errors: CallbackErrors,
) -> Finding:
    """The node: what it runs on, how long each stage takes, and what a person should know first.

    `doing` is how long a configure under way has taken and its present step, `problem` why the last one failed, `warnings` what stays true until
    the next one. `perceiver` is None while the node is not configured.
    """
    memory = process_memory.resident()
    values: dict[str, Any] = {
        "state": state,
        "enabled": enabled,
        "memory [MiB]": None if memory is None else memory / 2**20,
    }
    about = perceiver.describe() if perceiver is not None else {}
    if about:
        values.update(_engine_values(about))
    for stage, (p50, p95, p99) in account.latencies().items():
        values[f"{stage} [ms]"] = {"p50": p50, "p95": p95, "p99": p99}
    values["errors"], values["last error"] = account.errors, account.last_error
    values["callback errors"], values["last callback error"] = callback_errors.total, callback_errors.last
    values["warnings"] = "; ".join(warnings)
    level, message = _node_state(state, enabled, doing, problem, warnings, account, about)
    if level == OK and callback_errors.recent:
        level, message = WARN, f"something that was sent to the node could not be handled: {callback_errors.last}"
    return Finding(level, message, values)


def _node_state(
    state: str,
    enabled: bool,
    doing: str,
    problem: str,
    warnings: Sequence[str],
    account: Account,
    about: Mapping[str, Any],
) -> tuple[bytes, str]:
    if doing:
        return OK, f"configuring for {doing}"
    if problem:
        return ERROR, f"not configured: {problem}"
    if state != "active":
        return OK, state
    if account.last_error_s is not None and time.monotonic() - account.last_error_s < WINDOW_S:
        return ERROR, f"frames are lost to an error: {account.last_error}"
    if not enabled:
        return OK, "disabled by ~/enable"
    if about.get("overridden"):
        return WARN, f"running although the parity gate failed for {', '.join(about['overridden'])} (parity_override)"
    if warnings:
        return WARN, warnings[0]
    return OK, f"running {about['backbone']} on {about['engine']} {about['precision']}"


def _engine_values(about: Mapping[str, Any]) -> dict[str, Any]:
    """What `Perceiver.describe` says, as a person wants to read it."""
    from dino_perception.engines.parity import summary

    (in_height, in_width), (out_height, out_width) = about["input"], about["output"]
    untrained = [name for name, part in about["parts"].items() if not part["trained"]]
    return {
        "engine": about["engine"],
        "precision": about["precision"],
        "device": about["device"],
        "engine reason": about["reason"],
        "engines from cache": about["from_cache"],
        "start [s]": about["start_s"],
        "parity": {name: summary(record) for name, record in about["parity"].items()},
        "parity overridden": about["overridden"],
        "trained": about["trained"],
        "backbone": about["backbone"],
        "backbone weights": about["parts"]["backbone"]["hash"],
        "heads": about["heads"],
        "untrained": untrained,
        "input": f"{in_width}x{in_height}",
        "output": f"{out_width}x{out_height}",
        "device memory [MiB]": about["device_memory_mb"],
    }


def type_name(kind: type) -> str:
    """package/msg/Name of a message class."""
    return f"{kind.__module__.split('.')[0]}/msg/{kind.__name__}"
