"""What a type checker knows of ``import fer_lightning as fl``; `make lint` runs mypy over it, as does the suite."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, assert_type

import numpy as np
import numpy.typing as npt
import pandas as pd
from PIL import Image

import fer_lightning as fl
import fer_lightning.compare  # the command, whose name the function keeps


def uses(array: npt.NDArray[np.uint8]) -> None:
    run = fl.train(["imbalance=focal"], folder=Path("run"))
    assert_type(run, fl.Run)
    assert_type(run.metrics, dict[str, Any])
    assert_type(run.predictions, pd.DataFrame)
    assert_type(run.folder, Path)

    classifier = fl.load(run)
    assert_type(classifier, fl.Classifier)
    assert_type(classifier.scorecard, Mapping[str, Any] | None)
    classifier.predict("face.png"), classifier.predict(Path("faces")), classifier.predict(Image.new("L", (48, 48)))
    classifier.predict([array, "face.png"]), classifier.predict((array, array))
    prediction = classifier.predict(array)
    assert_type(prediction.labels, list[str])
    assert_type(prediction.probabilities, npt.NDArray[np.float64])
    assert_type(prediction.confidence, npt.NDArray[np.float64])
    assert_type(prediction.to_frame(), pd.DataFrame)

    comparison = fl.compare([run, "outputs/sweeps/demo", Path("other")], out="report")
    assert_type(comparison, fl.Comparison)
    assert_type(comparison.summary, pd.DataFrame)
    assert_type(comparison.differences, pd.DataFrame)
    assert_type(comparison.per_class, pd.DataFrame)


def mistakes() -> None:
    fl.trian()  # type: ignore[attr-defined]
    fl.train([3], folder=3)  # type: ignore[list-item, arg-type]
    fl.load(3)  # type: ignore[arg-type]
    fl.load("run").predict(3.5)  # type: ignore[arg-type]
    fl.compare([3])  # type: ignore[list-item]
