"""Sets of classes and the prior of the place of use: options, files, the scorecard's entries, scores."""

import itertools
import json
import string
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from fer_lightning.evaluation.prior_options import GivenPrior, PriorOptions, describe_prior, given_prior
from fer_lightning.evaluation.prior_scores import add_prior_scores, find_reference
from fer_lightning.evaluation.reference import fit_reference, from_card, score_sets, to_card
from fer_lightning.evaluation.score import Evaluation, print_table
from fer_lightning.metrics import prior
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.runtime.errors import UserError

CLASSES = ("angry", "happy", "sad")


def answers(n: int, shares: list[float], seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    labels = rng.choice(3, n, p=shares)
    place = rng.normal(size=(n, 3)) + 1.5 * np.eye(3)[labels]
    logits = 1.5 * place + np.log(np.array([0.6, 0.3, 0.1]))  # the exact posteriors under these shares
    weights = np.exp(logits)
    return weights / weights.sum(axis=1, keepdims=True), labels


def evaluation_of(n: int, shares: list[float]) -> Evaluation:
    """Of n test images with these shares; the reference is of other images with shares .6, .3 and .1."""
    reference = fit_reference(*answers(3000, [0.6, 0.3, 0.1], seed=1))
    probabilities, labels = answers(n, shares)
    columns = {f"p_{name}": probabilities[:, k] for k, name in enumerate(CLASSES)}
    names = np.array(CLASSES)
    predictions = {"id": np.arange(n), "label": names[labels], "prediction": names[probabilities.argmax(1)], **columns}
    metrics = classification_metrics(probabilities, labels, CLASSES)
    metrics |= {"temperature": 1.0, "test/nll_calibrated": metrics["test/nll"]}
    return Evaluation(metrics, pd.DataFrame({**predictions, "test": 1}), reference=reference)


MODEL = SimpleNamespace(classes=CLASSES, hparams={"class_counts": [60, 30, 10], "scorecard": None})


def shares_of(given: GivenPrior) -> np.ndarray:
    shares = given_prior(PriorOptions(prior=given), CLASSES, [6, 3, 1])
    assert shares is not None
    return shares


class TestFilesOfShares:
    @pytest.mark.parametrize(
        ("name", "text"),
        [
            ("a.json", '{"happy": 3, "angry": 1, "sad": 0}'),
            ("a.csv", "class,count\nhappy,3\nangry,1\nsad,0\n"),
            ("a.csv", "\ufeffsad,0\r\nhappy,0.75\r\n\r\nangry,0.25\r\n"),
            ("a.txt", "sad , 0\nhappy, 0.75\nangry, 0.25"),
        ],
    )
    def test_shares_and_counts(self, tmp_path: Path, name: str, text: str) -> None:
        (tmp_path / name).write_text(text)
        np.testing.assert_allclose(shares_of(tmp_path / name), [0.25, 0.75, 0])

    @pytest.mark.parametrize(
        ("name", "text", "message"),
        [
            ("a.json", '{"happy": 1, "angry": 1}', "lacks sad; give 0 for a class that does not occur"),
            ("a.json", '{"hapy": 1}', r"'hapy' is not a class of the model \(did you mean happy\?\)"),
            ("a.json", '{"happy": 1, "happy": 2}', "'happy' is given twice"),
            ("a.json", "[1, 2, 3]", "must be a JSON object"),
            ("a.json", '{"happy": -1, "angry": 1, "sad": 1}', "happy: '-1'; a share or count is a number from 0 to 1e"),
            ("a.json", '{"happy": 0, "angry": 0, "sad": 0}', "are all 0"),
            ("a.json", '{"happy": NaN, "angry": 1, "sad": 1}', "happy: 'nan'; a share or count is a number"),
            ("a.json", '{"happy": true, "angry": 1, "sad": 1}', "must be a JSON object"),
            ("a.json", '{"happy": [1], "angry": 1, "sad": 1}', "happy: '\\[1\\]'; a share or count is a number"),
            ("a.json", '{"happy":' * 20_000, "is nested too deeply for shares"),
            ("a.json", "{", "--prior"),
            ("a.csv", "happy,1,2", "must hold lines of two columns"),
            ("a.csv", "happy,1\nangry,many\nsad,1", "angry: 'many'; a share or count is a number"),
            ("a.csv", "happy,1\nangry,1_0\nsad,1", "angry: '1_0'; a share or count is a number"),
            ("a.csv", "happy,1\nangry,\uff11\nsad,1", "angry: '\uff11'; a share or count is a number"),
            ("a.csv", "", "lacks angry, happy, sad"),
            ("a.csv", "happy,1e308\nangry,1e308\nsad,1e308", "angry: '1e308'; a share or count is a number"),
        ],
    )
    def test_mistakes_are_one_line(self, tmp_path: Path, name: str, text: str, message: str) -> None:
        (tmp_path / name).write_text(text)
        with pytest.raises(UserError, match=message) as caught:
            shares_of(tmp_path / name)
        assert "\n" not in str(caught.value)

    def test_many_names_take_bounded_time(self, tmp_path: Path) -> None:
        names = ("".join(letters) for letters in itertools.product(string.ascii_letters, repeat=4))
        (tmp_path / "a.json").write_text(json.dumps(dict.fromkeys(itertools.islice(names, 80_000), 1)))
        begun = time.process_time()
        with pytest.raises(UserError, match="'aaaa' is not a class of the model"):
            shares_of(tmp_path / "a.json")
        assert time.process_time() - begun < 10

    def test_bytes_that_are_no_text(self, tmp_path: Path) -> None:
        (tmp_path / "a.csv").write_bytes(b"\xff\xfe\x00")
        with pytest.raises(UserError, match="--prior"):
            shares_of(tmp_path / "a.csv")


class TestOptions:
    @pytest.mark.parametrize("level", [0.0, 1.0, -0.1, 90, float("nan")])
    def test_levels_that_are_none(self, level: float) -> None:
        with pytest.raises(UserError, match="must lie between 0 and 1, such as"):
            PriorOptions(level=level).check()

    def test_a_file_that_is_missing(self) -> None:
        with pytest.raises(UserError, match="--prior unifrom: no such file; give uniform, training, estimated"):
            PriorOptions(prior="unifrom").check()

    def test_named_priors(self) -> None:
        np.testing.assert_allclose(shares_of("uniform"), [1 / 3] * 3)
        np.testing.assert_allclose(shares_of("training"), [0.6, 0.3, 0.1])
        np.testing.assert_allclose(shares_of({"happy": 3, "angry": 1, "sad": 0}), [0.25, 0.75, 0])
        assert given_prior(PriorOptions(prior="estimated"), CLASSES, [6, 3, 1]) is None
        with pytest.raises(UserError, match="--prior training: the checkpoint does not know its training images"):
            given_prior(PriorOptions(prior="training"), CLASSES, [0, 0, 0])

    def test_a_checkpoint_without_validation_scores_names_the_remedy(self) -> None:
        with pytest.raises(UserError, match=r"--set 0\.9: best\.ckpt holds no scores .*\.evaluate best\.ckpt --store"):
            find_reference(MODEL, Path("best.ckpt"), PriorOptions(level=0.9))

    def test_few_images_are_said(self) -> None:
        shares = np.array([0.2, 0.5, 0.3])
        assert describe_prior("uniform", shares, CLASSES, None) == "prior uniform: happy 50 %, sad 30 %, angry 20 %"
        line = describe_prior("estimated", shares, CLASSES, prior.Estimate(shares, 12, few=True))
        assert line.endswith("(from 12 images; too few for a steady estimate, which takes 60)")


def test_a_scorecard_keeps_the_reference() -> None:
    reference = fit_reference(*answers(500, [0.6, 0.3, 0.1]))
    card = json.loads(json.dumps(to_card(reference, CLASSES)))
    read = from_card(card, CLASSES)
    assert read is not None
    np.testing.assert_array_equal(read.scores.thresholds(0.9), reference.scores.thresholds(0.9))
    np.testing.assert_array_equal(read.prior, reference.prior)
    assert from_card({"temperature": 1.2}, CLASSES) is None
    assert to_card(None, CLASSES) == {}


def test_sets_of_test_images() -> None:
    evaluation = evaluation_of(2000, [0.1, 0.3, 0.6])
    assert evaluation.reference is not None
    metrics = score_sets(evaluation.predictions, ["test"], CLASSES, 1.0, evaluation.reference)
    assert metrics["set_level"] == 0.9
    assert all(abs(metrics[f"test/set_coverage/{name}"] - 0.9) < 0.05 for name in CLASSES)
    assert 1 <= metrics["test/set_size"] <= 3


class TestPriorShift:
    def test_the_true_shares_help(self) -> None:
        evaluation = evaluation_of(2000, [0.1, 0.3, 0.6])
        scored, line = add_prior_scores(evaluation, PriorOptions(prior="estimated"), MODEL)
        metrics = scored.metrics
        assert metrics["test_prior/nll"] < metrics["test/nll"] - 0.1
        assert metrics["test_prior/accuracy"] > metrics["test/accuracy"] + 0.05
        assert metrics["prior/sad"] == pytest.approx(0.6, abs=0.05)
        assert metrics["test/accuracy"] == evaluation.metrics["test/accuracy"]
        assert (scored.augmented["prior"]["prediction"] != evaluation.predictions["prediction"]).any()
        assert "prior estimated: sad" in line

    def test_the_shares_of_training_change_little(self) -> None:
        scored, _ = add_prior_scores(evaluation_of(1000, [0.6, 0.3, 0.1]), PriorOptions(prior="training"), MODEL)
        assert scored.metrics["test_prior/nll"] == pytest.approx(scored.metrics["test/nll"], abs=0.02)

    def test_nothing_asked_for_changes_nothing(self) -> None:
        evaluation = evaluation_of(100, [0.6, 0.3, 0.1])
        assert add_prior_scores(evaluation, PriorOptions(), MODEL) == (evaluation, "")


def test_the_share_of_a_class_called_n_is_no_set(capsys: pytest.CaptureFixture[str]) -> None:
    metrics = classification_metrics(np.eye(2), np.arange(2), ("n", "sad"))
    print_table({**metrics, "synthetic": False, "prior/n": 0.5, "prior/sad": 0.5}, ("n", "sad"))
    assert "prior" not in capsys.readouterr().out
