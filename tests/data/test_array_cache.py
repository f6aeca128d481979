"""Computed arrays on disk: stored once, read by all, computed again where they are damaged."""

from pathlib import Path

import numpy as np
import pytest

from fer_lightning.data import array_cache
from fer_lightning.data.array_cache import VALUES, cached_array

SHAPE = (3, 4)


class Filling:
    """Fills with ones and counts how often."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self, values: np.ndarray) -> None:
        self.calls += 1
        values[:] = 1


@pytest.fixture
def fill() -> Filling:
    return Filling()


def test_is_computed_once(tmp_path: Path, fill: Filling) -> None:
    first, again = (cached_array("key", SHAPE, fill, tmp_path) for _ in range(2))
    np.testing.assert_array_equal(first, np.ones(SHAPE, np.float32))
    np.testing.assert_array_equal(again, first)
    assert fill.calls == 1
    cached_array("other", SHAPE, fill, tmp_path)
    assert fill.calls == 2


@pytest.mark.parametrize("damage", ["shape", "bytes", "cut", "meta", "nesting"])
def test_a_damaged_entry_is_computed_again(tmp_path: Path, fill: Filling, damage: str) -> None:
    cached_array("key", SHAPE, fill, tmp_path)
    stored = tmp_path / "key" / VALUES
    if damage == "shape":
        np.save(stored, np.ones((2, 2), np.float32))
    elif damage in ("meta", "nesting"):
        (tmp_path / "key" / "meta.json").write_text("[]" if damage == "meta" else "[" * 200_000)
    else:
        content = stored.read_bytes()
        stored.write_bytes(content[:-4] + (b"" if damage == "cut" else b"\0\0\0\1"))
    np.testing.assert_array_equal(cached_array("key", SHAPE, fill, tmp_path), np.ones(SHAPE, np.float32))
    assert fill.calls == 2


def test_a_failure_leaves_nothing(tmp_path: Path, fill: Filling) -> None:
    def fail(values: np.ndarray) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cached_array("key", SHAPE, fail, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
    cached_array("key", SHAPE, fill, tmp_path)
    assert fill.calls == 1


def test_without_a_folder_it_is_computed_in_memory(tmp_path: Path, fill: Filling) -> None:
    (tmp_path / "file").write_text("")
    values = cached_array("key", SHAPE, fill, tmp_path / "file")
    np.testing.assert_array_equal(values, np.ones(SHAPE, np.float32))


def test_without_room_it_is_computed_in_memory(
    tmp_path: Path, fill: Filling, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(array_cache, "RESERVE", 2**62)
    values = cached_array("key", SHAPE, fill, tmp_path)
    np.testing.assert_array_equal(values, np.ones(SHAPE, np.float32))
    assert "key could not be stored (no room for 0.0 GB, or not writable): continuing without it" in caplog.text
    assert [path.name for path in tmp_path.iterdir()] == ["key.lock"]
