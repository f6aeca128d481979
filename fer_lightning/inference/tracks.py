"""Faces followed from frame to frame of a video, and their probabilities smoothed over time.

The faces of a frame are assigned to the tracks so that the sum of the overlaps (intersection over union) is largest, as
in SORT (Bewley et al. 2016, arXiv:1602.00763), with a constant velocity in place of its Kalman filter.
"""

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from scipy.optimize import linear_sum_assignment

from fer_lightning.inference.annotate import CAMERA_RATE
from fer_lightning.inference.answers import OK, Row
from fer_lightning.inference.detect import FARTHEST, Box
from fer_lightning.inference.pictures import Source
from fer_lightning.inference.stream import PictureFaces

LEAST_OVERLAP = 0.3
"""Smallest intersection over union of a face and the expected place of its track."""
LONGEST_GAP = 1.0
"""Seconds after which a track without a face ends, at the first frame without one; times may jump back."""
MOST_MISSED = 250
"""Frames after which it ends in any case: in a damaged video, time may stand still."""
HELD = 0.5
"""Seconds for which the box of a track stays drawn while its face is not detected."""
SIGHTINGS = 2
"""Faces of a track before it is drawn, unless it begins with the video: single detections are often mistakes."""
BOX_SMOOTHING = 0.1
"""Time constant in seconds of drawn boxes and of velocities; detected boxes tremble."""

WHOLE = Box(0, 0, 1, 1)
"""Stands for the box of a face that is the whole picture."""


@dataclass(eq=False)
class Track:
    """A face over the frames so far.

    Attributes:
        number: from 1, in order of appearance.
        began: seconds, of the first frame.
        seen: seconds, of the last frame with this face.
        box: left, top, right and lower edge, float64, (4,), in the last frame with this face.
        drawn: the same, smoothed; (4,).
        probabilities: smoothed, (C,).
        velocity: of the box's centre, x and y, in pixels per second.
        sightings: frames with this face.
        missed: frames since then.
    """

    number: int
    began: float
    seen: float
    box: np.ndarray
    drawn: np.ndarray
    probabilities: np.ndarray
    velocity: np.ndarray = field(default_factory=lambda: np.zeros(2))
    sightings: int = 1
    missed: int = 0

    def expected(self, seconds: float) -> np.ndarray:
        """Where the box would be now, edges (4,)."""
        return self.box + np.tile(self.velocity * (seconds - self.seen), 2)

    def add(self, box: np.ndarray, probabilities: np.ndarray, seconds: float, smoothing: float) -> None:
        """Continue with the face of a frame."""
        # Some damaged videos give several frames the same time.
        passed = seconds - self.seen if seconds > self.seen else 1 / CAMERA_RATE
        moved = (box - self.box).reshape(2, 2).mean(axis=0) / passed
        kept = weight_of_past(passed, BOX_SMOOTHING) if self.sightings > 1 else 0.0
        self.velocity = kept * self.velocity + (1 - kept) * moved
        steady = weight_of_past(passed, BOX_SMOOTHING)
        carried = self.drawn + np.tile(self.velocity * passed, 2)  # so that it does not lag behind a moving face
        self.drawn = steady * carried + (1 - steady) * box
        past = weight_of_past(passed, smoothing)
        self.probabilities = past * self.probabilities + (1 - past) * probabilities
        self.box, self.seen = box, seconds
        self.sightings += 1
        self.missed = 0


def weight_of_past(passed: float, constant: float) -> float:
    """exp(-passed / constant): the weight of the smoothed value after ``passed`` seconds; 0 without smoothing."""
    return math.exp(-passed / constant) if constant > 0 else 0.0


def overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of boxes given by their edges, (n, 4) and (m, 4): (n, m)."""
    low, high = np.maximum(a[:, None, :2], b[None, :, :2]), np.minimum(a[:, None, 2:], b[None, :, 2:])
    common = np.clip(high - low, 0, None).prod(axis=2)
    areas = [(boxes[:, 2:] - boxes[:, :2]).prod(axis=1) for boxes in (a, b)]
    return np.asarray(common / (areas[0][:, None] + areas[1][None, :] - common))


class Tracker:
    """The tracks of one video.

    Args:
        smoothing: time constant of the probabilities, in seconds; 0 leaves them as they are.
    """

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._tracks: list[Track] = []
        self._count = 0
        self._start: float | None = None

    def add(self, boxes: list[Box | None], probabilities: list[np.ndarray], seconds: float) -> list[Track]:
        """Assign the faces of the next frame to tracks, and begin tracks for the others.

        Args:
            boxes: of the faces; None for the whole picture.
            probabilities: of each face, (C,).
            seconds: of the frame.

        Returns:
            The track of each face, up to date.
        """
        self._start = seconds if self._start is None else self._start
        edges = np.array([_edges(box or WHOLE) for box in boxes]).reshape(-1, 4)
        chosen: dict[int, Track] = {}
        if self._tracks and boxes:
            shares = overlaps(np.array([track.expected(seconds) for track in self._tracks]), edges)
            shares[shares < LEAST_OVERLAP] = 0
            for row, column in zip(*linear_sum_assignment(shares, maximize=True), strict=True):
                if shares[row, column] > 0:
                    chosen[int(column)] = self._tracks[row]
        for track in self._tracks:
            track.missed += 1
        for place, track in chosen.items():
            track.add(edges[place], probabilities[place], seconds, self._smoothing)
        self._tracks = [
            track for track in self._tracks if abs(seconds - track.seen) <= LONGEST_GAP and track.missed <= MOST_MISSED
        ]
        for place in range(len(boxes)):
            if place not in chosen:
                self._count += 1
                box = edges[place]
                chosen[place] = Track(self._count, seconds, seconds, box, box, probabilities[place])
                self._tracks.append(chosen[place])
        return [chosen[place] for place in range(len(boxes))]

    def shown(self, seconds: float) -> list[tuple[int, np.ndarray]]:
        """Number and edges of the tracks to draw in the frame that was added last, also those whose face it misses."""
        return [
            (track.number, track.drawn + np.tile(track.velocity * (seconds - track.seen), 2))
            for track in self._tracks
            if 0 <= seconds - track.seen <= HELD and (track.sightings >= SIGHTINGS or track.began == self._start)
        ]


@dataclass(frozen=True)
class Followed:
    """A frame's rows, and what is drawn in it: of each track the box, None for the whole picture, and the row."""

    item: PictureFaces
    rows: list[Row]
    drawn: list[tuple[Box | None, Row]]


def follow(classified: Iterable[tuple[PictureFaces, list[Row]]], smoothing: float) -> Iterator[Followed]:
    """Give the faces of videos and cameras their tracks, and the rows smoothed probabilities.

    Args:
        classified: pictures with their rows, those of a video in order.
        smoothing: time constant in seconds of an exponential mean over a track; 0 for none.

    Yields:
        Each picture in order. Images are left as they are.
    """
    source: Source | None = None
    tracker, last = Tracker(smoothing), {}
    for item, rows in classified:
        if not item.source.moves or item.picture.problem:
            yield Followed(item, rows, [(row.box, row) for row in rows])
            continue
        if item.source is not source:
            source, tracker, last = item.source, Tracker(smoothing), dict[int, Row]()
        # A video that names no rate has no times.
        seconds = item.picture.seconds or (item.picture.frame or 0) / CAMERA_RATE
        faces = [row for row in rows if row.status == OK and row.probabilities is not None]
        tracks = tracker.add([row.box for row in faces], [row.probabilities for row in faces], seconds)  # type: ignore[misc]
        tracked = [
            replace(row, track=track.number, probabilities=track.probabilities, unsmoothed=row.probabilities)
            for row, track in zip(faces, tracks, strict=True)
        ]
        last |= {row.track: row for row in tracked if row.track is not None}
        drawn = [
            (None if last[number].box is None else _box(edges), last[number])
            for number, edges in tracker.shown(seconds)
        ]
        yield Followed(item, tracked or rows, drawn if drawn or tracked else [(None, row) for row in rows])


def _edges(box: Box) -> tuple[float, float, float, float]:
    return box.x, box.y, box.x + box.width, box.y + box.height


def _box(edges: np.ndarray) -> Box:
    # The velocity of two frames almost at once may be any, and OpenCV draws 32 bits.
    left, top, right, bottom = np.rint(np.clip(edges, -FARTHEST, FARTHEST)).astype(int).tolist()
    return Box(left, top, right - left, bottom - top)
