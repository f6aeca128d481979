"""Scores with other sets and another prior: sets of classes at another level, probabilities under another prior."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from fer_lightning.evaluation.prior_options import PriorOptions, describe_prior, given_prior
from fer_lightning.evaluation.reference import Reference, from_card, score_sets
from fer_lightning.evaluation.score import Evaluation
from fer_lightning.metrics import prior
from fer_lightning.metrics.calibration import apply_temperature
from fer_lightning.metrics.classification import classification_metrics
from fer_lightning.metrics.predictions import class_indices, probability_columns, reported
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.presentation.words import percent
from fer_lightning.runtime.errors import UserError


def find_reference(model: EmotionClassifier, checkpoint: Path, options: PriorOptions) -> Reference:
    """The reference in a model's checkpoint.

    Args:
        model: read from the checkpoint.
        checkpoint: named in the error.
        options: the options that need it, named in the error.

    Raises:
        UserError: the checkpoint has none.
    """
    reference = from_card(model.hparams["scorecard"], model.classes)
    if reference is None:
        option = options.prior_given if options.level is None else options.level_given
        raise UserError(
            f"{option}: {checkpoint} holds no scores of validation images; add them with "
            f"python -m fer_lightning.evaluate {checkpoint} --store data.path=DATA"
        )
    return reference


def find_shares(
    model: EmotionClassifier, reference: Reference, options: PriorOptions, calibrated: Callable[[], np.ndarray]
) -> tuple[np.ndarray, prior.Estimate | None]:
    """The shares of classes in the place of use, float64, shape (C,), and the estimate that they are from, if any.

    Args:
        model: the model.
        reference: of the model.
        options: with a prior.
        calibrated: gives the calibrated probabilities of all images, shape (n, C), for an estimate.

    Raises:
        UserError: what cannot be read as shares of the model's classes.
    """
    shares = given_prior(options, model.classes, model.hparams["class_counts"])
    if shares is not None:
        return shares, None
    estimate = prior.estimate(calibrated(), reference.prior)
    return estimate.prior, estimate


def add_prior_scores(evaluation: Evaluation, options: PriorOptions, model: EmotionClassifier) -> tuple[Evaluation, str]:
    """Add the scores at another level and under another prior to an evaluation.

    Args:
        evaluation: of the test images; with a temperature and a reference where an option is given.
        options: level and prior.
        model: the model.

    Returns:
        The evaluation with the sets at another level, with ``<test set>_prior/<metric>``, ``prior/`` + class and the
        shifted predictions; and a line about the prior, empty without one.
    """
    temperature, reference = evaluation.metrics["temperature"], evaluation.reference
    if temperature is None or reference is None or options == PriorOptions():
        return evaluation, ""
    tests = [str(name) for name in evaluation.predictions if f"{name}/n" in evaluation.metrics]
    metrics, augmented, line = dict(evaluation.metrics), dict(evaluation.augmented), ""
    if options.level is not None:
        level = options.level
        metrics |= score_sets(evaluation.predictions, tests, model.classes, temperature, reference, level)
    if options.prior is not None:
        columns = probability_columns(model.classes)
        calibrated = apply_temperature(evaluation.predictions[columns].to_numpy(), temperature)
        shares, estimate = find_shares(model, reference, options, lambda: calibrated)
        shifted = prior.shift(calibrated, reference.prior, shares)
        names = np.array(model.classes)
        table = evaluation.predictions.assign(**dict(zip(columns, shifted.T, strict=True)))
        augmented["prior"] = table.assign(prediction=names[shifted.argmax(axis=1)])
        for name in tests:
            rows = reported(augmented["prior"], name)
            labels = class_indices(rows["label"].tolist(), model.classes)
            metrics |= classification_metrics(rows[columns].to_numpy(), labels, model.classes, f"{name}_prior/")
        metrics |= {f"prior/{name}": float(share) for name, share in zip(model.classes, shares, strict=True)}
        line = describe_prior(options.prior, shares, model.classes, estimate)
        line += f"; NLL {metrics['test/nll_calibrated']:.3f} -> {metrics['test_prior/nll']:.3f}, balanced accuracy "
        line += " -> ".join(percent(metrics[f"{each}/balanced_accuracy"]) for each in ("test", "test_prior"))
    return replace(evaluation, metrics=metrics, augmented=augmented), line
