"""What a drive looks like: the map from above with the truth, what was marked and the way taken, and a video of it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import cv2
import numpy as np

from dino_perception.measuring.driving.course import CELL_COUNT, GRID, Course
from dino_perception.measuring.driving.drive import FRAME_S, Moment, Record
from dino_perception.measuring.driving.rover import LENGTH, WIDTH, Pose
from dino_perception.measuring.driving.senses import CAMERA, REACH, Perceived
from dino_perception.models import palette

SCALE = 3
"""Pixels of a map a cell."""
SIDE = CELL_COUNT * SCALE
ROCK, STEEP, MARKED, GOAL = (30, 30, 30), (120, 70, 40), palette.PURPLE, palette.GREEN
DRIVEN, WANTED, HIT = palette.BLUE, palette.SKY_BLUE, palette.VERMILION
COLOURS = {"the perception": palette.BLUE, "perfect perception": palette.GREEN, "blind": palette.ORANGE}
"""Of the ways of driving on one map."""
VIDEO_SIDE = 480
RATE = 5.0
"""Frames of the video a second."""
FONT = cv2.FONT_HERSHEY_SIMPLEX


class MapPicture:
    """The course from above, north up: shaded ground, steep ground brown, rocks in the way black."""

    def __init__(self, course: Course):
        self._course = course
        height = course.world.ground.grid(0).cpu().numpy()
        gy, gx = np.gradient(cv2.boxFilter(height, -1, (7, 7)))
        shade = 205 + 30 * np.tanh(-8 * (gx - gy))
        picture = np.repeat(shade[..., None], 3, axis=2)
        picture[course.steep.T] = 0.5 * picture[course.steep.T] + 0.5 * np.array(STEEP)
        picture = cv2.resize(picture.clip(0, 255).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        rock = cv2.resize((course.rock.T > 0).astype(np.float32), (SIDE, SIDE), interpolation=cv2.INTER_AREA)
        picture[rock > 0.15] = ROCK
        self._ground = np.ascontiguousarray(picture[::-1])

    def draw(self, closed: np.ndarray | None = None) -> np.ndarray:
        """(SIDE, SIDE, 3) uint8 RGB with start, goal and the cells (X, Y) that are taken for closed."""
        picture = self._ground.copy()
        if closed is not None:
            marked = cv2.resize(closed.T[::-1].astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_NEAREST) > 0
            rock = (picture == ROCK).all(-1)
            picture[marked] = (0.35 * picture[marked] + 0.65 * np.array(MARKED)).astype(np.uint8)
            picture[rock & marked] = (0.5 * np.array(MARKED)).astype(np.uint8)
        start, goal = (
            self.pixels(np.array([p])) for p in ((self._course.start.x, self._course.start.y), self._course.goal)
        )
        cv2.drawMarker(picture, start[0].tolist(), (0, 0, 0), cv2.MARKER_CROSS, 14, 2, cv2.LINE_AA)
        cv2.circle(picture, goal[0].tolist(), 8, GOAL, 2, cv2.LINE_AA)
        return picture

    @staticmethod
    def pixels(places: np.ndarray) -> np.ndarray:
        """(N, 2) int32 pixels of (N, 2) places."""
        across = (places - (GRID.x, GRID.y)) / GRID.resolution * SCALE
        return np.rint(np.stack([across[:, 0], SIDE - 1 - across[:, 1]], 1)).astype(np.int32)

    def line(self, picture: np.ndarray, places: np.ndarray, colour: tuple[int, int, int], width: int = 2) -> None:
        cv2.polylines(picture, [self.pixels(places[:, :2])], False, colour, width, cv2.LINE_AA)

    def rover(self, picture: np.ndarray, pose: Pose) -> None:
        corners = Pose(pose.x, pose.y, pose.yaw).footprint(max(LENGTH, WIDTH))[[0, 1, 3, 2]]
        cv2.fillPoly(picture, [self.pixels(corners)], DRIVEN, cv2.LINE_AA)


def overview(course: Course, records: Mapping[str, Record], closed: np.ndarray | None) -> np.ndarray:
    """The map with the ways that were driven, by how, and crosses where something was touched."""
    drawn = MapPicture(course)
    picture = drawn.draw(closed)
    for name, record in records.items():
        drawn.line(picture, record.places, COLOURS.get(name, DRIVEN))
        for index, _ in record.touched:
            (place,) = drawn.pixels(record.places[index : index + 1, :2])
            cv2.drawMarker(picture, place.tolist(), HIT, cv2.MARKER_TILTED_CROSS, 16, 3, cv2.LINE_AA)
    entries = [(name, COLOURS.get(name, DRIVEN)) for name in records]
    entries += [("rock over 0.15 m", ROCK), ("steep", STEEP), ("marked", MARKED), ("touched", HIT)]
    return np.concatenate([picture, _legend(entries)])


def _legend(entries: list[tuple[str, tuple[int, int, int]]]) -> np.ndarray:
    strip, x = np.full((56, SIDE, 3), 255, np.uint8), 8
    for number, (name, colour) in enumerate(entries):
        if number == (len(entries) + 1) // 2:
            x = 8
        y = 20 if number < (len(entries) + 1) // 2 else 44
        cv2.rectangle(strip, (x, y - 11), (x + 14, y + 3), colour, -1)
        cv2.putText(strip, name, (x + 20, y), FONT, 0.5, (0, 0, 0), 1, cv2.LINE_AA)
        x += 36 + cv2.getTextSize(name, FONT, 0.5, 1)[0][0]
    return strip


def _marked(picture: np.ndarray, points: np.ndarray) -> np.ndarray:
    """The picture with the points (M, 3) of the optical frame that are near enough to count."""
    points = points[np.linalg.norm(np.nan_to_num(points, nan=np.inf), axis=1) <= REACH]
    at = np.rint((points @ CAMERA.k.T)[:, :2] / points[:, 2:]).astype(int)
    at = at[((at >= 0) & (at < (CAMERA.width, CAMERA.height))).all(1)]
    tint = np.zeros(picture.shape[:2], np.uint8)
    tint[at[:, 1], at[:, 0]] = 1
    tint = cv2.dilate(tint, np.ones((3, 3), np.uint8)) > 0
    marked = picture.copy()
    marked[tint] = (0.5 * marked[tint] + 0.5 * np.array(MARKED)).astype(np.uint8)
    return marked


class Video:
    """Written while one drives: what the camera sees with what is taken to be in the way, and the map beside it."""

    def __init__(self, path: Path, course: Course, sense: Perceived):
        self._map, self._sense = MapPicture(course), sense
        self._places: list[tuple[float, float]] = []
        self._course = course
        self._writer = cv2.VideoWriter(
            str(path), cv2.VideoWriter_fourcc(*"mp4v"), RATE, (VIDEO_SIDE * 4 // 3 + VIDEO_SIDE, VIDEO_SIDE)
        )
        if not self._writer.isOpened():
            raise OSError(f"{path} cannot be written as a video by this OpenCV")

    def __call__(self, moment: Moment) -> None:
        self._places.append((moment.pose.x, moment.pose.y))
        self._writer.write(cv2.cvtColor(self.frame(moment), cv2.COLOR_RGB2BGR))

    def frame(self, moment: Moment) -> np.ndarray:
        """One frame (480, 1120, 3) uint8 RGB."""
        picture, closed = self._sense.last
        left = _marked(picture, closed)
        above = self._map.draw(moment.closed)
        if moment.path is not None:
            self._map.line(above, moment.path, WANTED, 2)
        self._map.line(above, np.array(self._places), DRIVEN, 2)
        self._map.rover(above, moment.pose)
        right = cv2.resize(above, (VIDEO_SIDE, VIDEO_SIDE), interpolation=cv2.INTER_AREA)
        left_m = np.hypot(*(self._course.goal - (moment.pose.x, moment.pose.y)))
        text = f"{moment.view.number * FRAME_S:.0f} s, {left_m:.1f} m to the goal" + (
            "" if moment.path is not None else ", no way"
        )
        cv2.putText(left, text, (10, 24), FONT, 0.6, (0, 0, 0), 3, cv2.LINE_AA)
        cv2.putText(left, text, (10, 24), FONT, 0.6, (255, 255, 255), 1, cv2.LINE_AA)
        return np.concatenate([left, right], axis=1)

    def close(self) -> None:
        self._writer.release()
