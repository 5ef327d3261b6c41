"""The service `~/teach`: somebody shows a class in what a camera sees, and from the next frame on the node finds it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rclpy.node import Node

from dino_perception.messages.printable import printable
from dino_perception.messages.types import RclpyTypes

if TYPE_CHECKING:  # torch takes seconds to import
    from dino_perception.ros.worker import Worker


@dataclass(frozen=True)
class Lesson:
    """What a request asks for."""

    camera: str
    name: str
    box: tuple[int, ...]
    points: tuple[int, ...]


class Refusal(ValueError):
    """Why a lesson is not taken, in a sentence."""


def offer_teaching(node: Node, types: RclpyTypes, teach: Callable[[Lesson], tuple[str, int]]) -> None:
    """Offer the service where this package's services are built. `teach` gives what was understood and the class's id, or
    raises a ValueError with a sentence."""
    try:
        service = types.service("dino_perception/srv/Teach")
    except ImportError:  # messages built before there was the service
        return

    def answer(request: Any, response: Any) -> Any:
        lesson = Lesson(request.camera, request.class_name, tuple(request.box), tuple(request.points))
        try:
            response.message, response.class_id = teach(lesson)
            response.success = True
        except ValueError as error:
            response.success, response.message = False, printable(error)
        return response

    node.create_service(service, "~/teach", answer)


def taught(
    lesson: Lesson, perceiver: Any, worker: Worker, tell: Callable[[], None], complain: Callable[..., None]
) -> tuple[str, int]:
    """Have the worker learn the lesson before its next batch; the sentence and the id for the answer. `tell` is called when
    the classes have changed. Raises ValueError for what can be seen to be wrong beforehand."""
    from dino_perception.perception.teacher import Region, TeachError, check_name, label_of

    if perceiver.learner is None:
        raise TeachError(
            "the segmentation head is none that classes can be shown to; make one with `dino-perception teach` and set "
            "segmentation.weights to it"
        )
    newest = dict(worker.newest)
    camera = lesson.camera or (next(iter(newest)) if len(newest) == 1 else "")
    if camera not in newest:
        seen = ", ".join(newest) or "none yet"
        raise Refusal(f"there is no frame of a camera '{lesson.camera}'; frames came from {seen}")
    if len(lesson.box) not in (0, 4) or len(lesson.points) % 2:
        raise Refusal("a box has 4 numbers, and points have two each")
    frame = newest[camera]
    region = Region(lesson.box or None, tuple(zip(lesson.points[::2], lesson.points[1::2])))
    region.check(*frame.image.shape[:2])
    check_name(perceiver.learner, lesson.name)
    label = label_of(perceiver.learner.spec.labels, lesson.name)

    def learn() -> None:
        try:
            perceiver.teach(frame, region, lesson.name)
            tell()
        except Exception as error:  # it must not cost the frame that waits
            complain(f"'{lesson.name}' was not learnt: {error}", error, "teach")

    worker.between_batches(learn)
    what = "box" if lesson.box else f"{len(lesson.points) // 2} points"
    return f"'{lesson.name}' is learnt from a {what} in the newest frame of '{camera}', for the next frame", label.id
