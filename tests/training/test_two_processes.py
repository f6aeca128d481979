"""Every method trains on two processes: real ones, and one pair for all methods, for starting costs the most."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from command_line import TINY

from fer_lightning.config.safety import CONF_DIR

METHODS = sorted(path.stem for path in (CONF_DIR / "imbalance").glob("*.yaml"))
FEW = ["focal_sam", "crt"]
"""A loss and three passes, two stages and a sampler."""

DRIVER = """
import os, sys
from fer_lightning.__main__ import main
_, methods, *arguments = sys.argv
for place in methods.split(","):
    method, os.environ["MASTER_PORT"] = place.split(":")
    sys.argv = ["fer_lightning", *arguments, f"imbalance={method}", f"hydra.run.dir={method}"]
    try:
        main()
    except SystemExit as stop:
        if stop.code:
            raise
"""
"""Runs one method after the other in the same process."""


def free_ports(count: int) -> list[int]:
    sockets = [socket.socket() for _ in range(count)]
    for one in sockets:
        one.bind(("127.0.0.1", 0))
    ports = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return ports


@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    "methods",
    [pytest.param(FEW, id="few", marks=pytest.mark.slow), pytest.param(METHODS, id="all", marks=pytest.mark.nightly)],
)
def test_every_method_trains_on_two_processes(tmp_path, methods):
    arguments = [*TINY, "trainer.devices=2", "trainer.max_epochs=3", "data.source.images=300"]
    # A port each: the process that is done first would find the other's last meeting place.
    places = ",".join(f"{method}:{port}" for method, port in zip(methods, free_ports(len(methods)), strict=True))
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", DRIVER, places, *arguments],
            cwd=tmp_path,
            env={**os.environ, "LOCAL_RANK": str(rank), "NODE_RANK": "0", "WORLD_SIZE": "2"}
            | {"MASTER_ADDR": "127.0.0.1"},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in (0, 1)
    ]
    errors = [process.communicate(timeout=850)[1] for process in ranks]
    assert [process.returncode for process in ranks] == [0, 0], errors
    for method in methods:
        metrics = json.loads((tmp_path / method / "metrics.json").read_text())
        assert metrics["devices"] == 2
        assert metrics["imbalance"] == method
        assert metrics["train/steps"] == 15, method  # the same for all: 5 batches, 3 epochs
        state = torch.load(tmp_path / method / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        assert all(bool(value.isfinite().all()) for value in state.values() if value.is_floating_point())


def test_there_are_as_many_methods_as_promised():
    assert len(METHODS) == 31
    assert Path(CONF_DIR / "imbalance" / "none.yaml").exists()
