"""What a prior shift and sets of classes do where the classes have other shares: test images resampled by class.

Usage: python benchmarks/prior_shift.py RUN...

RUN is a finished run's folder whose checkpoint holds validation scores (see ``evaluate --store``). Nothing is predicted
again: the probabilities are those of ``predictions.csv``, calibrated by the checkpoint's temperature. Every place draws
2,000 test images with replacement, five times. CK+'s shares are those of its 309 labelled sequences of the six emotions
that it shares with FER-2013 (Lucey et al. 2010, table 1); it has no neutral ones.
"""

import argparse
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.evaluation.reference import from_card
from fer_lightning.metrics import conformal, prior
from fer_lightning.metrics.calibration import apply_temperature, nll
from fer_lightning.metrics.classification import confusion_matrix, precision_recall_f1
from fer_lightning.metrics.predictions import class_indices, probability_columns, read_predictions_csv, reported
from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.presentation.escapes import table_from_csv

PLACES = {
    "uniform": (1, 1, 1, 1, 1, 1, 1),
    "CK+": (45, 59, 25, 69, 28, 83, 0),
    "mostly neutral": (1, 1, 1, 1, 1, 1, 14),
}
"""Shares of angry, disgust, fear, happy, sad, surprise and neutral."""

IMAGES, DRAWS = 2_000, 5


def scores(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float, float]:
    """NLL, accuracy and balanced accuracy."""
    matrix = confusion_matrix(labels, probabilities.argmax(axis=1), probabilities.shape[1])
    recall = precision_recall_f1(matrix)[1]
    return nll(probabilities, labels), float(np.trace(matrix) / len(labels)), float(np.nanmean(recall))


def measure(run: Path) -> tuple[dict[tuple[str, str], np.ndarray], dict[str, np.ndarray]]:
    """Mean scores by place and prior, and mean coverage and size of 90 % sets by place."""
    card = read_checkpoint(run / "checkpoints" / "best.ckpt")["hyper_parameters"]["scorecard"]
    reference = from_card(card, EMOTIONS)
    if reference is None:
        raise SystemExit(f"{run}: its checkpoint holds no validation scores; run fer_lightning.evaluate with --store")
    table = reported(table_from_csv(read_predictions_csv(run / "predictions.csv")))
    labels = class_indices(table["label"].tolist(), EMOTIONS)
    probabilities = apply_temperature(table[probability_columns(EMOTIONS)].to_numpy(), card["temperature"])
    thresholds = reference.scores.thresholds(conformal.LEVEL)
    counts = np.bincount(labels, minlength=len(EMOTIONS))
    by_prior: dict[tuple[str, str], list[tuple[float, float, float]]] = {}
    by_set: dict[str, list[tuple[float, float, float]]] = {}
    for place, given in {"PrivateTest": tuple(counts), **PLACES}.items():
        shares = np.array(given) / sum(given)
        for seed in range(DRAWS):
            chance = (shares / counts)[labels]
            rows = np.random.default_rng(seed).choice(len(labels), IMAGES, p=chance / chance.sum())
            mine, truth = probabilities[rows], labels[rows]
            priors = {"true shares": shares, "estimated": prior.estimate(mine, reference.prior).prior}
            answers = {"none": mine} | {key: prior.shift(mine, reference.prior, new) for key, new in priors.items()}
            for key, each in answers.items():
                by_prior.setdefault((place, key), []).append(scores(each, truth))
            held, by_class, size = conformal.coverage(conformal.prediction_sets(mine, thresholds), truth)
            by_set.setdefault(place, []).append((held, float(np.nanmin(by_class)), size))
    means = {key: np.mean(values, axis=0) for key, values in by_prior.items()}
    return means, {key: np.mean(values, axis=0) for key, values in by_set.items()}


def main() -> None:
    """Print two tables per run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("runs", nargs="+", type=Path, metavar="RUN")
    console = Console(width=100)
    for run in parser.parse_args().runs:
        by_prior, by_set = measure(run)
        shifts = Table("place", "--prior", "NLL", "accuracy", "balanced accuracy", title=str(run))
        for (place, key), (loss, accuracy, balanced) in by_prior.items():
            shifts.add_row(place, key, f"{loss:.3f}", f"{accuracy:.1%}", f"{balanced:.1%}")
        sets = Table("place", "90 % sets hold the label", "worst class", "classes in a set")
        for place, (held, worst, size) in by_set.items():
            sets.add_row(place, f"{held:.1%}", f"{worst:.1%}", f"{size:.2f}")
        console.print(shifts)
        console.print(sets)


if __name__ == "__main__":
    main()
