"""The style of all pictures."""

import io

import matplotlib
import numpy as np
from matplotlib.figure import Figure

from fer_lightning.presentation import plotting


def test_colours_differ_in_lightness_for_any_colour_vision() -> None:
    lightness = matplotlib.colormaps["Blues"](np.linspace(0, 1, 20))[:, :3] @ [0.2126, 0.7152, 0.0722]
    assert (np.diff(lightness) < 0).all()
    assert plotting.SCALE.name == "Blues"


def test_a_matplotlibrc_of_the_folder_changes_no_picture() -> None:
    @plotting.styled
    def draw() -> Figure:
        figure = Figure(figsize=(2, 1))
        figure.text(0.5, 0.5, "a_b $x")
        return figure

    def written() -> bytes:
        file = io.BytesIO()
        plotting.write_figure(draw(), file)
        return file.getvalue()

    plain = written()
    with matplotlib.rc_context({"text.usetex": True, "font.size": 30, "savefig.facecolor": "red"}):
        assert written() == plain
        assert matplotlib.rcParams["font.size"] == 30, "the user's own settings are as they were"
