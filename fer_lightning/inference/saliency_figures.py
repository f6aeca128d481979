"""Pictures of saliency maps: pure functions from arrays to a colour image or a matplotlib ``Figure``."""

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.presentation.plotting import BLUE, FAINT, GREY, INK, head, styled

HEAT = matplotlib.colormaps["YlOrRd"]
STRENGTH = 0.75
"""Opacity of the map at its most salient pixel."""


def overlay(face: np.ndarray, saliency: np.ndarray) -> np.ndarray:
    """Blend a face with its saliency map: salient pixels are redder and more opaque.

    Args:
        face: gray, (H, W), 0..255.
        saliency: (H, W), 0..1.

    Returns:
        uint8, (H, W, 3), red, green, blue.
    """
    gray = np.repeat(face[..., None].astype(np.float64), 3, axis=2)
    colour = 255 * HEAT(saliency)[..., :3]
    opacity = STRENGTH * np.clip(saliency, 0, 1)[..., None]
    return np.round((1 - opacity) * gray + opacity * colour).astype(np.uint8)


@styled
def explained_face(
    face: np.ndarray,
    saliency: np.ndarray,
    probabilities: np.ndarray,
    emotion: int,
    title: str,
    subtitle: str = "",
) -> Figure:
    """Draw a face, its saliency map for one emotion, and the probabilities of all seven.

    Args:
        face: uint8, (48, 48).
        saliency: (48, 48), 0..1.
        probabilities: (7,).
        emotion: the one that the map explains, index into ``EMOTIONS``.
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(9.6, 3.4))  # wide enough for the subtitle
    head(figure, title, subtitle)
    plain, explained, bars = figure.subplots(1, 3, width_ratios=(1, 1, 1.1))
    _picture(plain, face, "model input")
    _picture(explained, overlay(face, saliency), f"evidence for {EMOTIONS[emotion]}")
    places = np.arange(len(EMOTIONS))
    bars.barh(places, probabilities, color=np.where(places == emotion, BLUE, GREY), height=0.7)
    for place, value in enumerate(probabilities):
        bars.text(value, place, f" {100 * value:.0f} %", va="center", fontsize=9)
    bars.set_yticks(places, EMOTIONS)
    bars.get_yticklabels()[emotion].set_fontweight("bold")
    bars.set_xlim(0, 1.2)
    bars.set_xticks([])
    bars.invert_yaxis()
    bars.spines["bottom"].set_visible(False)
    bars.tick_params(axis="y", length=0)
    return figure


@styled
def mean_maps(
    faces: np.ndarray, maps: np.ndarray, right: np.ndarray, total: np.ndarray, title: str, subtitle: str = ""
) -> Figure:
    """Draw the mean face of each emotion blended with its mean map, each scaled to its own maximum.

    Args:
        faces: gray, (7, 48, 48), 0..255.
        maps: (7, 48, 48), 0..1.
        right: number of faces averaged for each emotion, (7,); a panel with none is empty.
        total: number of faces of each emotion, (7,).
        title: the bold first line.
        subtitle: the second line.
    """
    figure = Figure(figsize=(11.2, 2.75))
    head(figure, title, subtitle)
    panels = figure.subplots(1, len(EMOTIONS))
    for emotion, axes in enumerate(panels):
        _picture(axes, overlay(faces[emotion], maps[emotion] / (maps[emotion].max() or 1.0)), EMOTIONS[emotion])
        axes.set_xlabel(f"{right[emotion]:,} of {total[emotion]:,}", fontsize=9, color=FAINT)
        if not right[emotion]:
            axes.images[0].set_visible(False)
            axes.text(0.5, 0.5, "none correct", transform=axes.transAxes, ha="center", va="center", color=FAINT)
    return figure


def _picture(axes: Axes, image: np.ndarray, title: str) -> None:
    axes.imshow(image, cmap="gray", vmin=0, vmax=255, interpolation="bicubic")
    axes.set_title(title, fontsize=10, color=INK)
    axes.set_xticks([])
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
