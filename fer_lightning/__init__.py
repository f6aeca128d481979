"""Class-imbalance experiments on FER-2013 with PyTorch Lightning and Hydra.

Examples:
    >>> import fer_lightning as fl
    >>> run = fl.train(["experiment=demo", "imbalance=focal"])
    >>> run.metrics["test/f1_macro"], len(run.predictions)
    >>> classifier = fl.load(run)
    >>> classifier.predict("face.png").labels
    ['happy']
    >>> fl.compare(["outputs/sweeps/demo"]).summary
"""

# nothing is imported before the working directory is out of the way
import os
import sys

if sys.argv[:1] == ["-m"] or "FER_LIGHTNING_TRUSTED_FOLDER" in os.environ:  # a command, or a process that one started
    from fer_lightning.runtime import imports

    imports.drop_working_directory()

import importlib
import types
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from fer_lightning.api.compare import compare as compare
    from fer_lightning.api.load import Classifier as Classifier
    from fer_lightning.api.load import Prediction as Prediction
    from fer_lightning.api.load import load as load
    from fer_lightning.api.run import Run as Run
    from fer_lightning.api.train import train as train
    from fer_lightning.comparison.analysis import Comparison as Comparison
    from fer_lightning.runtime.errors import Interrupted as Interrupted
    from fer_lightning.runtime.errors import UserError as UserError
    from fer_lightning.runtime.version import __version__ as __version__

# Before anything imports torch: idle OpenMP threads that spin starve the other processes of a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
# Before torch allocates: memory of a batch, which is freed and allocated in each step, comes in large pages, since
# clearing small ones takes a part of each step on a CPU.
os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")

_MODULES = {
    "Classifier": "fer_lightning.api.load",
    "Comparison": "fer_lightning.comparison.analysis",
    "Interrupted": "fer_lightning.runtime.errors",
    "Prediction": "fer_lightning.api.load",
    "Run": "fer_lightning.api.run",
    "UserError": "fer_lightning.runtime.errors",
    "__version__": "fer_lightning.runtime.version",
    "compare": "fer_lightning.api.compare",
    "load": "fer_lightning.api.load",
    "train": "fer_lightning.api.train",
}
"""The public names, and where they are imported from at their first use: torch and pandas take seconds."""

__all__ = [
    "Classifier",
    "Comparison",
    "Interrupted",
    "Prediction",
    "Run",
    "UserError",
    "__version__",
    "compare",
    "load",
    "train",
]

if not TYPE_CHECKING:  # a type checker would take any misspelt name for one of these

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)


class _Package(types.ModuleType):
    """Keeps ``compare`` the function: Python binds an imported submodule, here the command's, to its name."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in _MODULES and isinstance(value, types.ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Package
