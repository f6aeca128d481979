"""How well probabilities separate each class from the others: areas under the ROC and the precision-recall curve.

Equal to torchmetrics' values (a test compares them), but in numpy, because reading finished runs imports no torch.
"""

import numpy as np
import scipy.stats


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the ROC curve: the chance that an image of the class scores higher than one of another class.

    The Mann-Whitney statistic (Hanley and McNeil 1982); ties count one half.

    Args:
        scores: shape (n,).
        positive: bool, shape (n,): which images are of the class.

    Returns:
        NaN where all images, or none, are of the class.
    """
    inside, outside = int(positive.sum()), int((~positive).sum())
    if not inside or not outside:
        return np.nan
    ranks = scipy.stats.rankdata(scores)
    return float((ranks[positive].sum() - inside * (inside + 1) / 2) / (inside * outside))


def average_precision(scores: np.ndarray, positive: np.ndarray) -> float:
    """Area under the precision-recall curve: sum of precision times the step of recall at each distinct score.

    Args:
        scores: shape (n,).
        positive: bool, shape (n,): which images are of the class.

    Returns:
        NaN where no image is of the class.
    """
    if not positive.any():
        return np.nan
    order = np.argsort(-scores, kind="stable")
    hits = np.cumsum(positive[order])
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    precision, recall = hits[last] / (last + 1), hits[last] / hits[-1]
    return float(np.sum(np.diff(recall, prepend=0.0) * precision))


def macro_areas(probabilities: np.ndarray, labels: np.ndarray) -> tuple[float, float]:
    """``auroc`` and ``average_precision`` of each class against the rest, averaged over the classes that have them.

    Args:
        probabilities: shape (n, C).
        labels: int in 0..C-1, shape (n,).

    Returns:
        Macro AUROC, NaN where all images are of one class; macro average precision, NaN without images.
    """
    present = np.unique(labels)
    members = [(probabilities[:, k], labels == k) for k in present]
    both = np.array([[auroc(*each), average_precision(*each)] for each in members]).reshape(-1, 2)
    return (float(both[:, 0].mean()), float(both[:, 1].mean())) if len(present) else (np.nan, np.nan)
