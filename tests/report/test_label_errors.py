"""The audit of labels: what it reads, lists, draws and prints, and what it refuses."""

import json
from pathlib import Path

import cv2
import numpy as np
import pandas as pd
import pytest
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from fer_lightning import audit
from fer_lightning.comparison.out_of_fold import read_out_of_fold
from fer_lightning.data import synthetic
from fer_lightning.data.faces import EMOTIONS, Faces
from fer_lightning.data.ferplus import CATEGORIES
from fer_lightning.data.splits import kfold
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.runtime.errors import UserError

IMAGES = 210


def wrong_labels(faces: Faces) -> np.ndarray:
    """Places of the images that the runs find to have another emotion: every tenth."""
    return np.arange(0, len(faces), 10)


def write_fold(
    folder: Path, faces: Faces, fold: int, seed: int = 0, folds: int = 3, dealt: int | None = None, **changes: object
) -> Path:
    """A finished run of ``split=kfold`` whose model knows the emotion, the next one of ``wrong_labels``.

    ``dealt`` is the seed of the folds, where they are not those of ``seed``.
    """
    rows = kfold(faces, seed if dealt is None else dealt, folds, fold).tests["test"]
    seen = np.where(np.isin(rows, wrong_labels(faces)), (faces.labels[rows] + 1) % 7, faces.labels[rows])
    probabilities = 0.3 / 7 + 0.7 * np.eye(7)[seen]
    names = np.array(EMOTIONS)
    table = {"id": faces.ids[rows], "usage": "Training", "label": names[faces.labels[rows]]}
    table |= {"prediction": names[seen], **{f"p_{name}": probabilities[:, k] for k, name in enumerate(EMOTIONS)}}
    run = folder / f"{seed}-{fold}"
    (run / ".hydra").mkdir(parents=True)
    pd.DataFrame({**table, "twin_group": rows, "test": 1}).to_csv(run / "predictions.csv", index=False)
    about = {"imbalance": "none", "model": "efficientnet_b0", "split": "kfold", "data": "synthetic", "labels": "fer"}
    about |= {"data_hash": faces.data_hash, "budget": "steps", "seed": seed, "test/n": len(rows), "synthetic": True}
    counts = dict.fromkeys(EMOTIONS, 20)
    scores = classification_metrics(probabilities, faces.labels[rows], EMOTIONS, "test/")
    scores |= {"train/steps": 9, "train/class_counts": counts}
    metrics = {**about, **scores, **changes}
    (run / "metrics.json").write_text(json.dumps(metrics))
    (run / "status.json").write_text('{"status": "done"}')
    source = {"_target_": "fer_lightning.data.synthetic.draw", "images": IMAGES}
    config = {group: {"name": metrics[group]} for group in ("imbalance", "model", "split", "data", "labels")}
    config |= {"seed": seed, "budget": "steps", "augment": {"name": "none"}, "optim": {"lr": 1}, "trainer": {"x": 1}}
    config["data"] |= {"path": None, "source": source}
    config["split"] |= {"folds": folds, "fold": fold}
    config["labels"] |= {"votes": None, "targets": None}
    OmegaConf.save(config, run / ".hydra" / "config.yaml")
    return run


@pytest.fixture(scope="module")
def faces() -> Faces:
    return synthetic.draw(images=IMAGES)


def write_votes(path: Path, faces: Faces) -> Path:
    """Votes by which every image has its label, but every twentieth the next emotion, and the last a tie."""
    counts = np.zeros((len(faces), len(CATEGORIES)), int)
    voted = np.where(np.arange(len(faces)) % 20 == 0, (faces.labels + 1) % 7, faces.labels)
    counts[np.arange(len(faces)), voted] = 6
    counts[-1, -2] = 6  # unknown
    pd.DataFrame(counts, columns=list(CATEGORIES)).assign(path=faces.ids).to_csv(path, index=False)
    return path


def test_the_list_the_sheet_and_the_votes(tmp_path, faces, capsys):
    for fold in range(3):
        write_fold(tmp_path / "sweep", faces, fold)
    votes = write_votes(tmp_path / "votes.csv", faces)
    audit.main(["--label-errors", str(tmp_path / "sweep"), "--out", str(tmp_path / "out"), "--votes", str(votes)])
    printed = capsys.readouterr().out
    assert "Out-of-fold probabilities of 210 of 210 images (folds 0, 1, 2 of 3); 21 labels are listed" in printed
    table = pd.read_csv(tmp_path / "out" / "label_errors.csv")
    assert sorted(table["id"]) == sorted(faces.ids[wrong_labels(faces)])
    label = dict(zip(faces.ids, faces.labels, strict=True))
    assert all(EMOTIONS[label[row.id]] == row.label for row in table.itertuples())
    assert all(EMOTIONS[(label[row.id] + 1) % 7] == row.suggested for row in table.itertuples())
    assert table["rank"].tolist() == list(range(1, 22))
    assert table["wrong_by_votes"].sum() == 11
    facts = json.loads(printed.splitlines()[-1])
    assert (facts["listed"], facts["precision"], facts["recall"]) == (21, pytest.approx(11 / 21), 1.0)
    assert cv2.imread(str(tmp_path / "out" / "label_errors.png")).shape[0] > 300


def test_seeds_are_averaged_and_missing_folds_are_said(tmp_path, faces):
    for seed, fold in ((0, 0), (0, 1), (0, 2), (1, 0), (1, 2)):
        write_fold(tmp_path, faces, fold, seed)
    folds = read_out_of_fold([tmp_path])
    assert folds.folds == "folds 0, 1, 2 of 3 and folds 0, 2 of 3, 2 seeds"
    assert (len(folds.ids), len(folds.runs)) == (len(faces), 5)
    np.testing.assert_allclose(folds.probabilities.sum(axis=1), 1)
    part = read_out_of_fold([tmp_path / "0-1"])
    assert (part.folds, len(part.ids)) == ("folds 1 of 3", len(kfold(faces, 0, 3, 1).tests["test"]))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"data_hash": "other"}, "its folds do not agree: .* differ in data hash"),
        ({"folds": 4}, "has runs of 2 settings .*; give the run folders of one"),
        ({"imbalance": "focal"}, r"has runs of 2 settings \(none, focal\)"),
        ({"split": "official"}, "has split=official, whose training images have no out-of-fold probabilities"),
    ],
)
def test_folds_that_do_not_agree_are_refused(tmp_path, faces, changes, message):
    write_fold(tmp_path, faces, 0)
    write_fold(tmp_path, faces, 1, **changes)
    with pytest.raises(UserError, match=message):
        read_out_of_fold([tmp_path])


def test_images_in_two_folds_are_refused(tmp_path, faces):
    write_fold(tmp_path, faces, 0)
    write_fold(tmp_path, faces, 1, dealt=5)
    with pytest.raises(UserError, match=r"tests \d+ images that another fold of seed 0 tests"):
        read_out_of_fold([tmp_path])


def test_a_key_is_looked_up_in_bounded_time(tmp_path, faces):
    """Its value may resolve to others, each of which resolves twice."""
    file = write_fold(tmp_path / "sweep", faces, 0) / ".hydra" / "config.yaml"
    config = OmegaConf.load(file)
    config.zz = {f"a{level}": f"${{zz.a{level + 1}}}" * 2 for level in range(25)} | {"a25": "x"}
    config.data.path = "${zz.a0}"
    OmegaConf.save(config, file)
    with pytest.raises((UserError, OmegaConfBaseException)):
        audit.main(["--label-errors", str(tmp_path / "sweep"), "data.path=x"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--votes", "votes.csv"], "--votes=votes.csv: judges a list of labels; give --label-errors"),
        (["--label-errors", "{sweep}", "optim.lr=1"], "optim.lr=1: with --label-errors give where the runs' data are"),
        (["--label-errors", "{sweep}", "data.source.images=224"], "holds other images than the runs were trained on"),
        (["--label-errors", "{sweep}", "--votes", "{votes}"], "names images such as 'x.jpg', and none such as"),
    ],
)
def test_mistakes_are_refused_in_one_line(tmp_path, faces, words, message):
    write_fold(tmp_path / "sweep", faces, 0)
    pd.DataFrame({"path": ["x.jpg"], **{name: [1] for name in CATEGORIES}}).to_csv(tmp_path / "v.csv", index=False)
    with pytest.raises(UserError, match=message):
        audit.main([word.format(sweep=tmp_path / "sweep", votes=tmp_path / "v.csv") for word in words])
