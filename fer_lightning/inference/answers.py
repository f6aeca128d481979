"""The result for a face, and its output as a table, CSV or JSON lines."""

import csv
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import IO, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from fer_lightning.data.faces import class_noun
from fer_lightning.inference.detect import Box
from fer_lightning.metrics import conformal, prior
from fer_lightning.presentation.escapes import to_csv
from fer_lightning.presentation.printable import printable

OK, NO_FACE = "ok", "no face"

PLACE = ("path", "frame", "time", "face", "x", "y", "width", "height", "status")

WIDE = 100
"""Terminal columns from which a table also shows the second-best class, if it shows no sets."""

Write = Callable[[list["Row"]], None]
"""Writes the rows of one picture."""


@dataclass(frozen=True)
class Answerer:
    """What the answers are about.

    Attributes:
        classes: names of the model's C classes.
        card: the model's scorecard.
        tracked: whether the faces are those of a video, followed from frame to frame.
        level: the rate at which the sets of classes hold the true class; None for no sets.
        thresholds: of the sets, shape (C,), see ``conformal.prediction_sets``.
        priors: the shares of classes that the probabilities of a row assume, and those of the place of use.
    """

    classes: tuple[str, ...]
    card: Mapping[str, Any] | None
    tracked: bool = False
    level: float | None = None
    thresholds: np.ndarray | None = None
    priors: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def noun(self) -> str:
        """What a class is called."""
        return class_noun(self.classes)

    @property
    def columns(self) -> tuple[str, ...]:
        """Columns of a table of answers."""
        place = (*PLACE[:4], "track", *PLACE[4:]) if self.tracked else PLACE
        unsmoothed = (f"raw_{name}" for name in self.classes) if self.tracked else ()
        probabilities = (f"p_{name}" for name in self.classes)
        sets = () if self.level is None else (f"set_{self.level:g}",)
        return (*place, self.noun, "confidence", *probabilities, *unsmoothed, "model_recall", *sets)

    def probabilities(self, row: "Row") -> np.ndarray | None:
        """Probabilities in the place of use, shape (C,); None where there are none."""
        return self._in_place(row.probabilities)

    def _in_place(self, probabilities: np.ndarray | None) -> np.ndarray | None:
        if probabilities is None or self.priors is None:
            return probabilities
        return np.asarray(prior.shift(probabilities[None], *self.priors)[0])

    def set_of(self, row: "Row") -> list[str] | None:
        """The classes in a row's set, the most probable first; None without a level or without probabilities.

        It does not depend on the prior: its rate holds within each class.
        """
        if row.probabilities is None or self.thresholds is None:
            return None
        return conformal.named_sets(row.probabilities[None], self.thresholds, self.classes)[0]

    def answer(self, row: "Row") -> str | None:
        """The most probable class; None without probabilities."""
        probabilities = self.probabilities(row)
        return None if probabilities is None else self.classes[int(probabilities.argmax())]

    def ranked(self, row: "Row") -> list[str]:
        """All classes with their probability, the most probable first, such as ``happy 92 %``; empty without one."""
        probabilities = self.probabilities(row)
        if probabilities is None:
            return []
        order = np.argsort(-probabilities, kind="stable")
        return [f"{self.classes[k]} {100 * probabilities[k]:.0f} %" for k in order]

    def recall(self, row: "Row") -> float | None:
        """The model's test recall of the answer, from its scorecard; None when unknown."""
        name = self.answer(row)
        value = self.card.get(f"test/recall/{name}") if self.card and name else None
        return None if value is None else round(value, 6)

    def as_dict(self, row: "Row") -> dict[str, Any]:
        """A row by ``columns`` as plain Python values; None for missing values."""
        shown = self.probabilities(row)
        confidence = None if shown is None else round(float(shown.max()), 6)
        values = (
            *(str(row.path), row.frame, None if row.seconds is None else round(row.seconds, 3), row.face),
            *((row.track,) if self.tracked else ()),
            *(row.box or (None, None, None, None)),
            *(row.status, self.answer(row), confidence, *self._rounded(shown)),
            *(self._rounded(self._in_place(row.unsmoothed)) if self.tracked else ()),
            self.recall(row),
            *((self.set_of(row),) if self.level is not None else ()),
        )
        return dict(zip(self.columns, values, strict=True))

    def _rounded(self, probabilities: np.ndarray | None) -> list[float | None]:
        if probabilities is None:
            return [None] * len(self.classes)
        return [round(float(value), 6) for value in probabilities]


@dataclass(frozen=True)
class Row:
    """The prediction for one face, or the reason why there is none.

    Attributes:
        path: of the picture.
        frame: of a video or camera, counted from 0.
        seconds: since the start of the video, or since the camera was opened.
        face: number within the picture, from 1, from left to right; None when the whole picture is the face.
        box: of the face in pixels of the picture; None when the whole picture is the face.
        status: ``ok``, ``no face``, or why the picture could not be read.
        probabilities: (C,), smoothed over the track if there is one; None unless ``ok``.
        track: number of the face within a video, from 1, in order of appearance; None in images.
        unsmoothed: (C,), of this frame alone; None in images.
    """

    path: str
    frame: int | None
    seconds: float | None
    face: int | None
    box: Box | None
    status: str
    probabilities: np.ndarray | None
    track: int | None = None
    unsmoothed: np.ndarray | None = None


def csv_writer(stream: IO[str], answerer: Answerer) -> Write:
    """Write comma-separated values; the header is written immediately. Control characters of names are escaped."""
    columns = answerer.columns
    writer = csv.DictWriter(stream, columns, lineterminator="\n")
    writer.writerow({name: to_csv(name) for name in columns})

    def write(rows: list[Row]) -> None:
        for row in rows:
            values = {**answerer.as_dict(row), "path": printable(row.path)}
            texts = {key: " | ".join(value) if isinstance(value, list) else value for key, value in values.items()}
            writer.writerow({key: to_csv(value) for key, value in texts.items()})
        stream.flush()

    return write


def jsonl_writer(stream: IO[str], answerer: Answerer) -> Write:
    """Write one JSON object per line."""

    def write(rows: list[Row]) -> None:
        stream.writelines(json.dumps(answerer.as_dict(row), allow_nan=False) + "\n" for row in rows)
        stream.flush()

    return write


def table_writer(console: Console, answerer: Answerer, times: bool, boxes: bool) -> Write:
    """Print table rows one picture at a time, all with the same column widths.

    Args:
        console: to print to.
        answerer: the model's classes and scores.
        times: show the time of video frames.
        boxes: show number and box of detected faces; of videos, the number of the track.
    """
    columns = [("time", 9)] if times else []
    columns += [("track" if times else "face", 5 if times else 4), ("x, y, width, height", 22)] if boxes else []
    wide = console.width >= WIDE
    sets = answerer.level is not None
    second_best = wide and not sets
    columns += [(answerer.noun, 14), *([("or", 14)] if second_best else []), ("recall", 6)]
    has_header = False

    def write(rows: list[Row]) -> None:
        nonlocal has_header
        if rows[0].status not in (OK, NO_FACE):
            console.print(printable(f"{rows[0].path}: {rows[0].status}"), soft_wrap=True)
            return
        table = Table(box=None, show_header=not has_header, expand=True, pad_edge=False)
        table.add_column("path", ratio=1, overflow="fold")
        for name, width in columns:
            table.add_column(name, width=width)
        if sets:
            table.add_column(f"{100 * (answerer.level or 0):g} % set", ratio=1, overflow="fold")
        for row in rows:
            first, second, *_ = (*answerer.ranked(row), row.status, "")
            known_recall = answerer.recall(row)
            cells = [f"{row.seconds or 0:.2f} s"] if times else []
            cells += [str(row.track or row.face or ""), ", ".join(map(str, row.box or ()))] if boxes else []
            cells += [first, *([second] if second_best else [])]
            cells += ["" if known_recall is None else f"{100 * known_recall:.0f} %"]
            cells += [", ".join(answerer.set_of(row) or ())] if sets else []
            table.add_row(printable(row.path), *cells)
        console.print(table)
        has_header = True

    return write
