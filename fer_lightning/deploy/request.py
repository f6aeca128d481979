"""What to export, checked before torch is imported."""

import importlib.util
from dataclasses import dataclass
from pathlib import Path

from fer_lightning.runtime.errors import UserError

SUFFIXES = {"onnx": ".onnx", "exported_program": ".pt2", "safetensors": ".safetensors"}
"""File suffix of each format."""

INT8_SUFFIX = ".int8.onnx"
ONNX_PACKAGES = ("onnx", "onnxscript", "onnxruntime")


@dataclass(frozen=True)
class ExportRequest:
    """The options of the ``export`` command.

    Attributes:
        checkpoint: a run's ``checkpoints/best.ckpt``.
        format: a key of ``SUFFIXES``.
        overrides: ``key=value`` of the run's configuration.
        out: file to write; None for ``exports/MODEL.SUFFIX`` in the run folder.
        int8: quantise the ONNX file.
        drawn_faces: compare on drawn faces instead of the test images.
    """

    checkpoint: Path
    format: str
    overrides: list[str]
    out: Path | None = None
    int8: bool = False
    drawn_faces: bool = False

    @property
    def suffix(self) -> str:
        """Suffix of the exported file."""
        return INT8_SUFFIX if self.int8 else SUFFIXES[self.format]

    def check(self) -> None:
        """Refuse contradictory options.

        Raises:
            UserError: options that exclude each other, an unsuitable file name, or a package that is not installed.
        """
        if self.int8 and self.format != "onnx":
            raise UserError(f"--int8 with --format {self.format}: only onnx can be quantised; use --format onnx")
        if self.int8 and self.drawn_faces:
            raise UserError(
                "--int8 with --drawn-faces: int8 is calibrated on the run's own validation images; leave one out"
            )
        if self.overrides and self.drawn_faces:
            raise UserError(f"{self.overrides[0]} with --drawn-faces: no data are read; leave one out")
        if self.out is not None and (not self.out.name.endswith(self.suffix) or self.out.is_dir()):
            raise UserError(f"--out {self.out}: must be a file whose name ends in {self.suffix}")
        missing = [name for name in ONNX_PACKAGES if self.format == "onnx" and importlib.util.find_spec(name) is None]
        if missing:
            raise UserError(f"--format onnx: {missing[0]} is not installed; pip install 'fer_lightning[export]'")
