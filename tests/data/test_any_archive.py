"""Any bytes as a csv, a zip or a tar: faces, or one line."""

import io
import tarfile
import zipfile
from contextlib import suppress
from pathlib import Path

import cv2
import numpy as np
import pytest
from archives import csv_text, tiny_faces
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fer_lightning.data import fer2013, images
from fer_lightning.runtime.errors import UserError

FUZZ = settings(
    max_examples=60,
    deadline=20_000,  # a hang, not a slow machine
    suppress_health_check=[HealthCheck.function_scoped_fixture],
    derandomize=True,
    database=None,
)
HEAD, *ROWS = csv_text(tiny_faces(1, 1, 1)).splitlines()
NAMES = st.sampled_from(["train/angry/a.png", "train/0/a.png", "val/happy/b.jpg", "x.csv", "a.zip", "\x1b/\udce9.png"])
FILES = st.dictionaries(NAMES | st.text(max_size=8), st.binary(max_size=30), max_size=4)


def read(path: Path) -> None:
    with suppress(UserError):
        fer2013.read(path)


@FUZZ
@given(content=st.binary(max_size=600), name=st.sampled_from(["a.csv", "a.zip", "a.tar", "a.tar.gz", "a.csv.gz", "a"]))
def test_any_bytes(content: bytes, name: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    read(tmp_path / name)


@FUZZ
@given(head=st.sampled_from([HEAD, HEAD.replace(",", ";"), "emotion,pixels"]) | st.text(max_size=30), text=st.text())
def test_any_text_as_a_csv(head: str, text: str, tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("\n".join([head, *ROWS[:2], text]), errors="surrogatepass", newline="")
    read(tmp_path / "a.csv")


@FUZZ
@given(row=st.integers(0, 20), column=st.integers(0, 2), cell=st.text(max_size=8) | st.floats().map(str))
def test_any_cell_of_a_csv(row: int, column: int, cell: str, tmp_path: Path) -> None:
    cells = ROWS[row].split(",")
    cells[column] = cell
    lines = [HEAD, *ROWS[:row], ",".join(cells), *ROWS[row + 1 :]]
    (tmp_path / "a.csv").write_text("\n".join(lines), errors="surrogatepass")
    read(tmp_path / "a.csv")


@pytest.mark.filterwarnings("ignore:Duplicate name")
@FUZZ
@given(files=FILES, flips=st.dictionaries(st.integers(0, 2000), st.integers(0, 255), max_size=4))
def test_any_members_with_any_damage(files: dict[str, bytes], flips: dict[int, int], tmp_path: Path) -> None:
    packed = {"a.zip": io.BytesIO(), "a.tar": io.BytesIO()}
    with zipfile.ZipFile(packed["a.zip"], "w") as archive, tarfile.open(fileobj=packed["a.tar"], mode="w") as tar:
        for name, data in files.items():
            archive.writestr(name.encode(errors="replace").decode() or "x", data)
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    for name, buffer in packed.items():
        content = bytearray(buffer.getvalue())
        for place, value in flips.items():
            content[place % len(content)] = value
        (tmp_path / name).write_bytes(content)
        read(tmp_path / name)


@pytest.mark.parametrize("kind", [".png", ".tiff"])
def test_a_broken_image_is_reported_once(kind: str, capfd: pytest.CaptureFixture[str]) -> None:
    content = cv2.imencode(kind, np.random.default_rng(0).integers(0, 256, (48, 48), dtype=np.uint8))[1].tobytes()
    with suppress(UserError):
        images.decode(content[: len(content) * 2 // 3], "a")
    assert capfd.readouterr().err == ""
