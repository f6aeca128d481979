"""Probabilities for a place where the classes have other shares than in the validation images.

If only the shares of the classes differ and not how each class looks (label shift), Bayes' rule gives the probabilities
of the new place: those of the old one times new share / old share, divided by their sum (Saerens, Latinne and
Decaestecker 2002, "Adjusting the outputs of a classifier to new a priori probabilities", eq. 2.4). On logits this adds
log(new / old).
"""

from typing import NamedTuple

import numpy as np

_TINY = np.finfo(np.float64).tiny

TOLERANCE = 1e-7
MOST_STEPS = 5_000

IMAGES_PER_CLASS = 20
"""Weight of the old prior in an estimate, in images per class; an estimate from fewer is reported as unsteady."""


class Estimate(NamedTuple):
    """A prior estimated from images without labels.

    Attributes:
        prior: float64, shape (C,).
        images: how many it is estimated from.
        few: whether these are too few for a steady estimate.
    """

    prior: np.ndarray
    images: int
    few: bool


def shift(probabilities: np.ndarray, old: np.ndarray, new: np.ndarray) -> np.ndarray:
    """Probabilities under another prior, shape (n, C).

    Args:
        probabilities: shape (n, C), under the prior ``old``.
        old: shares of the classes, shape (C,), none of them 0.
        new: shares of the classes, shape (C,); a class with share 0 gets probability 0.
    """
    with np.errstate(divide="ignore"):
        logits = np.log(np.maximum(probabilities, _TINY)) + np.log(new) - np.log(old)
    weights = np.exp(logits - logits.max(axis=1, keepdims=True))
    return np.asarray(weights / weights.sum(axis=1, keepdims=True))


def model_prior(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """The shares of classes that a model's probabilities assume, float64, shape (C,), none of them 0.

    A model that was trained against imbalance assumes other shares than those of the validation images. The prior is
    the one whose shift to the validation images' own shares maximises their likelihood: the bias of bias-corrected
    temperature scaling (Alexandari, Kundaje and Shrikumar 2020, "Maximum likelihood with bias-corrected calibration is
    hard-to-beat at label shift adaptation"), at a given temperature. The shifted probabilities of the validation images
    then have the shares of the labels as their mean. For a model trained without a correction, it is close to the
    validation images' own shares.

    Args:
        probabilities: of the validation images, shape (n, C), calibrated by a temperature.
        labels: int in 0..C-1, shape (n,), n > 0.
    """
    counts = np.bincount(labels, minlength=probabilities.shape[1])
    present = counts > 0
    shares = counts[present] / len(labels)
    logits = np.log(np.maximum(probabilities[:, present], _TINY))
    bias = np.zeros(len(shares))
    for _ in range(MOST_STEPS):  # generalised iterative scaling: each step raises the likelihood
        weights = np.exp(logits + bias - (logits + bias).max(axis=1, keepdims=True))
        step = np.log(shares / np.maximum((weights / weights.sum(axis=1, keepdims=True)).mean(axis=0), _TINY))
        bias += step
        if np.abs(step).max() < TOLERANCE:
            break
    prior = np.full(len(counts), 0.5 / len(labels))  # of a class without images, about which nothing is known
    prior[present] = shares * np.exp(-(bias - shares @ bias))
    return np.asarray(np.maximum(prior / prior.sum(), 1e-12))


def estimate(probabilities: np.ndarray, old: np.ndarray) -> Estimate:
    """Estimate the shares of classes from images without labels, by the EM algorithm of Saerens et al. (2002, eq. 2.9).

    The old prior counts as ``IMAGES_PER_CLASS`` images per class (a Dirichlet prior on the shares): with few images the
    estimate stays near it. Without this, EM on the probabilities of a weak model gives classes a share near 0.

    Args:
        probabilities: of the images, shape (n, C), under the prior ``old``; without images the estimate is ``old``.
        old: shares of the classes, shape (C,), none of them 0.
    """
    classes, images = len(old), len(probabilities)
    likelihoods = np.maximum(probabilities, _TINY) / old
    pseudo = IMAGES_PER_CLASS * classes * old
    prior = old
    for _ in range(MOST_STEPS):
        posteriors = likelihoods * prior
        expected = (posteriors / posteriors.sum(axis=1, keepdims=True)).sum(axis=0)
        improved = (expected + pseudo) / (images + pseudo.sum())
        change = np.abs(improved - prior).max()
        prior = improved
        if change < TOLERANCE:
            break
    return Estimate(np.asarray(prior), images, images < IMAGES_PER_CLASS * classes)
