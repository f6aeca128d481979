"""GPUs and processes, counted without torch."""

import pytest

from fer_lightning.runtime import processes


@pytest.mark.parametrize(("masked", "expected"), [("", 0), ("-1", 0)])
def test_masked_gpus_are_not_counted(monkeypatch, masked, expected):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", masked)
    assert processes.visible_gpus() == expected
