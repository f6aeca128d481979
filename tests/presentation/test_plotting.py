"""The style of all pictures."""

import matplotlib
import numpy as np

from fer_lightning.presentation import plotting


def test_colours_differ_in_lightness_for_any_colour_vision() -> None:
    lightness = matplotlib.colormaps["Blues"](np.linspace(0, 1, 20))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0).all()
    assert plotting.SCALE.name == "Blues"
