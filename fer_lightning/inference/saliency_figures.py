"""Pictures of saliency maps: pure functions from arrays to a colour image or a matplotlib ``Figure``."""

from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_lightning.data.images import as_picture
from fer_lightning.inference.saliency import MeanMaps
from fer_lightning.presentation.plotting import BLUE, FAINT, GREY, INK, head, styled
from fer_lightning.presentation.words import cut

HEAT = matplotlib.colormaps["YlOrRd"]
SHOWN_CLASSES, COLUMNS, LETTERS = 10, 5, 24
"""Classes that are shown of many, and panels in a row where there are more than FER-2013's seven, letters of a name."""

STRENGTH = 0.75
"""Opacity of the map at its most salient pixel."""


def overlay(face: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Blend a face with its saliency map: salient pixels are redder and more opaque.

    Args:
        face: (H, W) gray or (3, H, W) red, green, blue, 0..255.
        saliency: (H, W), 0..1.

    Returns:
        uint8, (H, W, 3), red, green, blue.
    """
    gray = np.repeat(face[..., None], 3, axis=2) if face.ndim == 2 else as_picture(face)
    colour = 255 * HEAT(saliency)[..., :3]
    opacity = STRENGTH * np.clip(saliency, 0, 1)[..., None]
    return np.round((1 - opacity) * gray + opacity * colour).astype(np.uint8)


@styled
def explained_face(
    face: np.ndarray,
    saliency: np.ndarray,
    classes: Sequence[str],
    probabilities: np.ndarray,
    explained: int,
    title: str,
    subtitle: str,
) -> Figure:
    """Draw a face, its saliency map for one class, and the probabilities: of many classes the most probable ones.

    Args:
        face: uint8, (H, H) or (3, H, H).
        saliency: (H, H), 0..1.
        classes: names of the C classes.
        probabilities: (C,).
        explained: the class that the map explains, index into ``classes``.
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(9.6, 3.4))  # wide enough for the subtitle
    head(figure, title, subtitle)
    plain, evidence, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    _picture(plain, as_picture(face), "model input")
    _picture(evidence, overlay(face, saliency), f"evidence for {classes[explained]}")
    shown = np.arange(len(classes))
    if len(classes) > SHOWN_CLASSES:
        shown = np.argsort(-probabilities, kind="stable")[:SHOWN_CLASSES]
        if explained not in shown:
            shown[-1] = explained
        bars.set_title(f"{SHOWN_CLASSES} of {len(classes):,} classes", fontsize=10, color=INK)
    places = np.arange(len(shown))
    bars.barh(places, probabilities[shown], color=np.where(shown == explained, BLUE, GREY), height=0.7)
    for place, value in enumerate(probabilities[shown]):
        bars.text(value, place, f" {100 * value:.0f} %", va="center", fontsize=9)
    bars.set_yticks(places, [cut(classes[k], LETTERS) for k in shown.tolist()])
    bars.get_yticklabels()[int(np.flatnonzero(shown == explained)[0])].set_fontweight("bold")
    bars.set_xlim(0, 1.2)
    bars.set_xticks([])
    bars.invert_yaxis()
    bars.spines["bottom"].set_visible(False)
    bars.tick_params(axis="y", length=0)
    return figure


@styled
def mean_maps(means: MeanMaps, classes: Sequence[str], title: str, subtitle: str = "") -> Figure:
    """Draw the mean face of each class blended with its mean map, each scaled to its own maximum.

    Of more than ``SHOWN_CLASSES`` classes, those with the most test images are drawn, and the subtitle says so.

    Args:
        means: of each class; a panel without faces is empty.
        classes: names of the classes.
        title: the bold first line.
        subtitle: the second line.
    """
    shown = list(range(len(classes)))
    if len(classes) > SHOWN_CLASSES:
        shown = np.argsort(-means.total, kind="stable")[:SHOWN_CLASSES].tolist()
        subtitle = f"{subtitle} · the {SHOWN_CLASSES} of {len(classes):,} classes with the most images".removeprefix(
            " · "
        )
    columns = len(shown) if len(shown) <= 7 else COLUMNS
    lines = -(-len(shown) // columns)
    figure = Figure(figsize=(11.2, 2.75 if lines == 1 else 3.1 * lines))
    head(figure, title, subtitle)
    panels = figure.subplots(lines, columns, squeeze=False).flat
    for k, axes in zip(shown, panels, strict=False):
        _picture(axes, overlay(means.faces[k], means.maps[k] / (means.maps[k].max() or 1.0)), cut(classes[k], LETTERS))
        axes.set_xlabel(f"{means.right[k]:,} of {means.total[k]:,}", fontsize=9, color=FAINT)
        if not means.right[k]:
            axes.images[0].set_visible(False)
            axes.text(0.5, 0.5, "none correct", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    for axes in figure.axes[len(shown) :]:
        axes.set_axis_off()
    return figure


def _picture(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
