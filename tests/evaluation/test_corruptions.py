"""Corrupted images: deterministic, stronger by strength, of any size and colour; their scores, table and picture."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from command_line import TINY

from fer_lightning import evaluate
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.data.synthetic import draw
from fer_lightning.evaluation import robustness as robustness_module
from fer_lightning.evaluation.corruptions import KINDS, STRENGTHS, corrupt
from fer_lightning.evaluation.robustness import CLEAN, Robustness, print_robustness, score_corruptions, subset
from fer_lightning.evaluation.robustness_figure import robustness_figure
from fer_lightning.runtime.errors import UserError
from fer_lightning.runtime.files import read_json

FACES = draw(200, seed=3)
ROWS = np.arange(8)
every_kind = pytest.mark.parametrize("kind", KINDS)


def coloured(images: np.ndarray) -> np.ndarray:
    """Red, green and blue differ."""
    return np.stack([images, images // 2, 255 - images], axis=1)


@every_kind
@pytest.mark.parametrize("images", [FACES.images[:8], coloured(FACES.images[:8])], ids=["gray", "colour"])
def test_every_strength_changes_more(kind: str, images: np.ndarray) -> None:
    before = images.copy()
    changes = [np.abs(corrupt(images, ROWS, kind, k).astype(float) - images).mean() for k in STRENGTHS]
    assert changes[0] > 0
    assert changes == sorted(changes)
    assert corrupt(images, ROWS, kind, 3).shape == images.shape
    np.testing.assert_array_equal(images, before)


@every_kind
@pytest.mark.parametrize("side", [1, 17, 97])
def test_any_size(kind: str, side: int) -> None:
    images = np.random.default_rng(0).integers(0, 256, (2, side, side), dtype=np.uint8)
    for strength in STRENGTHS:
        assert corrupt(images, np.arange(2), kind, strength).shape == images.shape


@every_kind
def test_an_image_is_corrupted_alike_among_any_others(kind: str) -> None:
    together = corrupt(FACES.images, ROWS, kind, 2)
    np.testing.assert_array_equal(corrupt(FACES.images, ROWS[5:6], kind, 2)[0], together[5])
    random = kind in ("noise", "occlusion")
    assert (corrupt(FACES.images, ROWS, kind, 2, seed=1) != together).any() == random


def test_random_kinds_differ_between_images() -> None:
    flat = np.full((2, 48, 48), 90, np.uint8)
    for kind in ("noise", "occlusion"):
        one, two = corrupt(flat, np.arange(2), kind, 3)
        assert (one != two).any()


def test_what_each_kind_does() -> None:
    flat = np.full((1, 48, 48), 100, np.uint8)

    def of(kind: str, strength: int, images: np.ndarray = flat) -> np.ndarray:
        return corrupt(images, np.arange(1), kind, strength)[0].astype(float)

    assert (of("darkness", 2) == 50).all()
    assert of("noise", 1).std() == pytest.approx(0.02 * 255, rel=0.05)
    assert (of("occlusion", 4) == 128).sum() == round(0.3**0.5 * 48) ** 2
    stripes = np.tile(np.array([0, 200], np.uint8), (1, 48, 24))
    assert of("low_resolution", 2, stripes).std() < 1, "stripes of one pixel are gone at half the resolution"
    assert of("blur", 5, stripes)[:, 10:-10].std() < 1
    red = np.zeros((1, 3, 48, 48), np.uint8)
    red[:, 0] = 200
    np.testing.assert_allclose(of("jpeg", 1, red)[0], 200, atol=8, err_msg="channels keep their order")


def test_a_subset_has_every_class_in_proportion() -> None:
    rows = np.arange(200)
    counts = np.array(FACES.count(rows))
    some = np.array(FACES.count(subset(FACES, rows, 70)))
    assert some.sum() == 70
    assert (some[counts > 0] >= 1).all()
    assert np.abs(some - 0.35 * counts).max() < 1.5
    assert (subset(FACES, rows, 70) == subset(FACES, rows, 70)).all()
    assert subset(FACES, rows, 200) is subset(FACES, rows, None) is rows
    assert len(subset(FACES, rows, 2)) == len(EMOTIONS), "one of each"


class TestScores:
    def test_table_and_means(self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
        """Of a model that knows every face, but takes the darkest for angry; its images are only their rows."""
        labels = FACES.labels[:100]
        faces = SimpleNamespace(images=np.arange(100)[:, None], labels=labels, classes=EMOTIONS)
        sizes: list[int] = []

        def mark(images: np.ndarray, rows: np.ndarray, kind: str, strength: int) -> np.ndarray:
            return np.stack([rows, np.full(len(rows), kind == "darkness" and strength >= 4)], axis=1)

        def predict(model: object, images: np.ndarray, device: object) -> np.ndarray:
            sizes.append(len(images))
            return np.eye(7)[[0 if any(mark) else labels[row] for row, *mark in images]]

        monkeypatch.setattr(robustness_module, "corrupt", mark)
        monkeypatch.setattr(robustness_module, "predict", predict)
        monkeypatch.setattr(robustness_module, "CHUNK", 32)
        result = score_corruptions(None, faces, np.arange(100), torch.device("cpu"))  # type: ignore[arg-type]
        assert max(sizes) == 32
        table = result.table
        assert list(table) == ["kind", "strength", "n", "accuracy", "f1_macro", "accuracy_drop", "f1_macro_drop"]
        assert [(row.kind, row.strength) for row in table.itertuples()] == [
            (CLEAN, 0),
            *((kind, strength) for kind in KINDS for strength in STRENGTHS),
        ]
        angry = (labels == 0).mean()
        expected = np.where((table["kind"] == "darkness") & (table["strength"] >= 4), 1 - angry, 0)
        np.testing.assert_allclose(table["accuracy_drop"], expected)
        assert result.drops()["darkness"] == pytest.approx(0.4 * (1 - angry))
        summary = result.summary
        assert summary["corruptions/accuracy_drop"] == pytest.approx(0.4 * (1 - angry) / 6)
        assert summary["corruptions/accuracy/darkness/4"] == pytest.approx(angry)
        assert summary["corruptions/images"] == 100
        print_robustness(result)
        shown = capsys.readouterr().out
        assert "100 test images" in shown
        assert f"{100 * summary['corruptions/accuracy_drop']:.1f} │" in shown

    def test_picture(self) -> None:
        grid = [(kind, strength) for kind in KINDS for strength in STRENGTHS]
        records = [(CLEAN, 0, 0.7, 0.6), *((kind, k, 0.7 - 0.1 * k, 0.6 - 0.1 * k) for kind, k in grid)]
        table = pd.DataFrame(records, columns=["kind", "strength", "accuracy", "f1_macro"])
        table["accuracy_drop"] = 0.7 - table["accuracy"]
        scores = Robustness(table, np.array([2, 3]))
        figure = robustness_figure(scores, coloured(FACES.images[:4]), "title", "subtitle")
        accuracy, f1, *faces = figure.axes
        assert len(faces) == len(KINDS) * (len(STRENGTHS) + 1)
        assert [len(axes.lines) for axes in (accuracy, f1)] == [6, 6]
        np.testing.assert_allclose(np.asarray(accuracy.lines[0].get_ydata()), [0.7, 0.6, 0.5, 0.4, 0.3, 0.2])


@pytest.mark.nightly
def test_the_command(trained_once: Callable[..., Path], tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    checkpoint, out = str(trained_once(*TINY) / "checkpoints" / "best.ckpt"), tmp_path / "scores"
    with pytest.raises(UserError, match=r"--limit=3: is the number of images that --corruptions uses"):
        evaluate.main([checkpoint, "--limit", "3"])
    evaluate.main([checkpoint, "--corruptions", "--limit", "14", "--out", str(out)])
    assert "low resolution" in capfd.readouterr().out
    metrics, table = read_json(out / "metrics.json"), pd.read_csv(out / "corruptions.csv")
    assert metrics["corruptions/images"] == 14
    assert table["n"].tolist() == [14] * 31
    drops = table[table["strength"] > 0]["accuracy_drop"]
    assert metrics["corruptions/accuracy_drop"] == pytest.approx(drops.mean())
    assert (out / "corruptions.png").read_bytes().startswith(b"\x89PNG")
