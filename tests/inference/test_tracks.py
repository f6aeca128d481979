"""Faces of a video followed from frame to frame: numbers, smoothed probabilities, and what is drawn."""

import csv
import math
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest
from command_line import TINY

from fer_lightning import predict
from fer_lightning.inference import detect
from fer_lightning.inference.annotate import annotate
from fer_lightning.inference.answers import NO_FACE, OK, Answerer, Row
from fer_lightning.inference.detect import Box
from fer_lightning.inference.pictures import Picture, Source
from fer_lightning.inference.stream import PictureFaces
from fer_lightning.inference.tracks import MOST_MISSED, Followed, Tracker, follow, overlaps

RATE = 25.0
SURE, UNSURE = np.array([0.9, 0.1]), np.array([0.4, 0.6])
VIDEO = Source(Path("clip.mp4"), "video", Path("clip.mp4"))


def frame(number: int, faces: list[tuple[Box | None, np.ndarray]], source: Source = VIDEO, rate: float = RATE):
    """A picture and its rows, as ``classify_pictures`` yields them."""
    seconds = number / rate if rate else 0.0
    rows = [Row("clip.mp4", number, seconds, place, box, OK, p) for place, (box, p) in enumerate(faces, start=1)]
    missing = [Row("clip.mp4", number, seconds, None, None, NO_FACE, None)]
    return PictureFaces(source, Picture(None, frame=number, seconds=seconds, rate=rate), []), rows or missing


def followed(frames: list[list[tuple[Box | None, np.ndarray]]], smoothing: float = 0.5) -> list[Followed]:
    return list(follow((frame(number, faces) for number, faces in enumerate(frames)), smoothing))


def box(left: float, top: float = 100, side: int = 60) -> Box:
    return Box(round(left), round(top), side, side)


def numbers(result: Followed) -> list[int | None]:
    return [row.track for row in result.rows]


def test_overlap_is_intersection_over_union() -> None:
    a, b = np.array([[0, 0, 10, 10.0]]), np.array([[5, 0, 15, 10.0], [20, 20, 30, 30], [0, 0, 10, 10]])
    np.testing.assert_allclose(overlaps(a, b), [[50 / 150, 0, 1]])


class TestNumbers:
    def test_two_faces_that_pass_in_front_of_each_other(self) -> None:
        """At frame 15 they are at the same place, and the one behind is not detected for five frames."""
        frames = []
        for k in range(31):
            one, two = (box(40 + 8 * k), SURE), (box(280 - 8 * k, 108), UNSURE)
            frames.append([one] if 13 <= k <= 17 else sorted([one, two], key=lambda face: face[0]))
        results = followed(frames)
        for k, result in enumerate(results):
            for row in result.rows:
                assert row.track == (1 if row.unsmoothed is SURE else 2), k
                assert (row.probabilities[0] > 0.5) == (row.track == 1)
        assert {row.face for row in results[-1].rows} == {1, 2}, "left to right, whoever it is"

    def test_one_leaves_and_another_comes(self) -> None:
        here = [(box(100), SURE)]
        results = followed([here * 1] * 5 + [[]] * 40 + [[(box(105), SURE)]])
        assert numbers(results[4]) == [1]
        assert results[10].rows[0].status == NO_FACE
        assert numbers(results[-1]) == [2], "more than a second later"
        results = followed([here] * 5 + [[]] * 10 + [[(box(105), SURE)]] + [[(box(400), SURE)]])
        assert [numbers(result) for result in results[-2:]] == [[1], [2]]

    def test_frames_far_apart_are_still_neighbours(self) -> None:
        results = list(follow((frame(100 * k, [(box(100), SURE)]) for k in range(3)), 0.5))
        assert [numbers(result) for result in results] == [[1], [1], [1]]

    def test_every_video_begins_anew_and_images_have_no_tracks(self) -> None:
        other, image = Source(Path("b.mp4"), "video", Path("b.mp4")), Source(Path("a.png"), "image", Path("a.png"))
        faces = [(box(100), SURE), (box(300), SURE)]
        items = [frame(0, faces), frame(0, faces[:1], image), frame(0, faces[1:], other)]
        results = list(follow(items, 0.5))
        assert [numbers(result) for result in results] == [[1, 2], [None], [1]]
        assert results[1].rows == items[1][1]
        assert results[1].drawn == [(box(100), items[1][1][0])]

    def test_a_whole_picture_is_one_face(self) -> None:
        results = followed([[(None, SURE)], [(None, UNSURE)]])
        assert [numbers(result) for result in results] == [[1], [1]]
        assert results[1].drawn == [(None, results[1].rows[0])]

    def test_a_video_without_times_is_ten_frames_a_second(self) -> None:
        here, gone = [(box(100), SURE)], []
        frames = [frame(k, here if k < 3 or k == 20 else gone, rate=0.0) for k in range(21)]
        results = list(follow(frames, 0.5))
        assert (numbers(results[2]), numbers(results[20])) == ([1], [2])


class TestSmoothing:
    def test_by_time_and_not_by_frame(self) -> None:
        """The weight of the past is exp(-seconds / constant), however many frames there are."""
        past = math.exp(-0.4 / 0.5)
        for step in (1, 5, 10):
            frames = [frame(0, [(box(100), SURE)])]
            frames += [frame(k, [(box(100), UNSURE)]) for k in range(step, 11, step)]
            (row,) = list(follow(frames, 0.5))[-1].rows
            np.testing.assert_allclose(row.probabilities, past * SURE + (1 - past) * UNSURE)
            assert row.unsmoothed is UNSURE

    def test_zero_changes_nothing(self) -> None:
        for result in followed([[(box(100), p)] for p in (SURE, UNSURE, SURE)], smoothing=0):
            (row,) = result.rows
            np.testing.assert_array_equal(row.probabilities, row.unsmoothed)

    def test_columns(self) -> None:
        (row,) = followed([[(box(100), SURE)], [(box(100), UNSURE)]])[-1].rows
        answerer = Answerer(("happy", "sad"), None, tracked=True)
        values = answerer.as_dict(row)
        assert list(values)[:5] == ["path", "frame", "time", "face", "track"]
        assert (values["track"], values["emotion"], values["raw_sad"]) == (1, "happy", 0.6)
        assert values["p_happy"] == values["confidence"] == round(float(row.probabilities[0]), 6)
        assert "track" not in Answerer(("happy", "sad"), None).columns


class TestDrawn:
    def test_missed_frames_do_not_flicker(self) -> None:
        frames = [[(box(100 + 4 * k), SURE)] if k % 4 else [] for k in range(1, 30)]
        for k, result in enumerate(followed(frames), start=1):
            ((place, row),) = result.drawn
            assert row.track == 1
            assert abs(place.x - (100 + 4 * k)) <= 4, k

    def test_trembling_boxes_are_steadied(self) -> None:
        rng = np.random.default_rng(0)
        found = [box(100 + rng.normal(0, 4)) for _ in range(100)]
        drawn = [result.drawn[0][0].x for result in followed([[(each, SURE)] for each in found])]
        assert np.abs(np.diff(drawn[10:])).mean() < 0.5 * np.abs(np.diff([each.x for each in found[10:]])).mean()

    def test_a_single_detection_is_a_row_and_not_drawn(self) -> None:
        steady, mistake = (box(100), SURE), (box(400), SURE)
        results = followed([[steady], [steady, mistake], [steady]])
        assert len(results[1].rows) == 2
        assert [[row.track for _, row in result.drawn] for result in results] == [[1], [1], [1]]

    def test_a_face_that_left_is_gone_after_half_a_second(self) -> None:
        results = followed([[(box(100), SURE)]] * 3 + [[]] * 20)
        assert [row.track for _, row in results[14].drawn] == [1]
        assert [row.status for _, row in results[-1].drawn] == [NO_FACE]

    def test_times_that_jump_are_drawn_within_opencvs_numbers(self) -> None:
        """A damaged video may jump by months, also back, after two frames almost at once."""
        found = [[(box(100), SURE)], [(box(120), SURE)], [], [], []]
        times = (2e7, 2e7 + 1e-7, 2e7 + 0.1, 2e7 + 0.2, 0.5)
        frames = [frame(number, faces) for number, faces in enumerate(found)]
        moved = [
            (replace(item, picture=replace(item.picture, seconds=time)), rows)
            for (item, rows), time in zip(frames, times, strict=True)
        ]
        results = list(follow(moved, 0.5))
        assert [[row.track for _, row in result.drawn] for result in results] == [[1], [1], [1], [1], [None]]
        for result in results[:-1]:
            annotate(np.zeros((48, 48), np.uint8), [(place, "a") for place, _ in result.drawn])
        assert max(abs(edge) for result in results[:-1] for place, _ in result.drawn for edge in place) <= 2e6

    def test_a_track_ends_where_time_stands_still(self) -> None:
        tracker = Tracker(0.0)
        tracker.add([box(100)], [SURE], 1.0)
        for _ in range(MOST_MISSED + 1):
            tracker.add([], [], 1.0)
        assert tracker.add([box(100)], [SURE], 1.0)[0].number == 2


@pytest.fixture
def film(tmp_path: Path) -> Path:
    """Two squares of 48 pixels, a bright one before a dim one, cross from side to side in two seconds; then both go."""
    path = tmp_path / "clip.mp4"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter.fourcc(*"mp4v"), RATE, (480, 240))
    for k in range(60):
        picture = np.zeros((240, 480, 3), np.uint8)
        if k < 50:
            picture[104:152, 400 - 8 * k + 20 :][:, :48] = 120
            picture[100:148, 8 * k + 20 :][:, :48] = 240
        writer.write(picture)
    writer.release()
    return path


def find_squares(image: np.ndarray, detector: Path | None = None) -> list[Box]:
    """Stands in for the detector: bright and dim squares of which at least half is seen."""
    gray = cv2.medianBlur(cv2.cvtColor(image, cv2.COLOR_BGR2GRAY), 5)
    boxes = []
    for low, high in ((90, 160), (200, 255)):
        mask = ((gray >= low) & (gray <= high)).astype(np.uint8)
        stats = cv2.connectedComponentsWithStats(mask)[2][1:]
        boxes += [Box(*(int(value) for value in row[:4])) for row in stats if row[4] > 48 * 24]
    return sorted(boxes)


def run(checkpoint: Path, *arguments: str) -> list[dict[str, str]]:
    predict.main([str(checkpoint), *arguments, "--faces", "--out", "rows.csv", "--draw", "drawn"])
    with open("rows.csv", encoding="utf-8") as file:
        return list(csv.DictReader(file))


@pytest.mark.slow
def test_a_film_through_the_command(
    trained_once: Callable[..., Path], film: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(detect, "find_faces", find_squares)
    rows = run(trained_once(*TINY) / "checkpoints" / "best.ckpt", "clip.mp4")
    found = [row for row in rows if row["status"] == OK]
    assert {row["track"] for row in found} == {"1", "2"}
    of_first = [row for row in found if row["track"] == "1"]
    assert len(of_first) == 50, "one row per track and time"
    assert len(found) < 100, "the dim square is hidden while they cross"
    # The bright square starts on the left.
    assert [abs(int(row["x"]) - (8 * int(row["frame"]) + 20)) <= 8 for row in of_first] == [True] * 50
    for row in found:
        raw, smoothed = ([float(row[f"{kind}_{name}"]) for name in ("happy", "sad")] for kind in ("raw", "p"))
        assert all(0 <= value <= 1 for value in raw + smoothed)
    capture = cv2.VideoCapture(str(tmp_path / "drawn" / "clip.mp4"))
    assert (capture.get(cv2.CAP_PROP_FRAME_COUNT), capture.get(cv2.CAP_PROP_FPS)) == (60, RATE)


@pytest.mark.slow
@pytest.mark.real
def test_real_faces_are_followed(
    trained_once: Callable[..., Path], real_archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two faces of FER-2013, enlarged, with OpenCV's detector; one leaves."""
    monkeypatch.chdir(tmp_path)
    names = ("test/angry/PrivateTest_1290484.jpg", "test/angry/PrivateTest_14494003.jpg")
    with zipfile.ZipFile(real_archive) as archive:
        faces = [cv2.imdecode(np.frombuffer(archive.read(name), np.uint8), cv2.IMREAD_COLOR) for name in names]
    one, two = (cv2.resize(face, (160, 160), interpolation=cv2.INTER_CUBIC) for face in faces)
    writer = cv2.VideoWriter("clip.mp4", cv2.VideoWriter.fourcc(*"mp4v"), 10, (560, 240))
    for k in range(12):
        picture = np.full((240, 560, 3), 128, np.uint8)
        picture[40:200, 30 + 4 * k :][:, :160] = one
        if k < 6:
            picture[40:200, 350 - 4 * k :][:, :160] = two
        writer.write(picture)
    writer.release()
    rows = run(trained_once(*TINY) / "checkpoints" / "best.ckpt", "clip.mp4")
    frames = {track: [int(row["frame"]) for row in rows if row["track"] == track] for track in ("1", "2")}
    assert frames["1"][-1] == 11
    assert frames["2"][-1] == 5
    assert len(frames["1"]) >= 8
    assert {row["track"] for row in rows} <= {"1", "2", ""}
