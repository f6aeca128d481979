"""A run's own environment inside a SLURM job."""

import os

import pytest
from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

from fer_lightning.runtime import slurm_task
from fer_lightning.runtime.errors import UserError


def test_cluster_environment_of_a_run(monkeypatch):
    for name in [name for name in os.environ if name.startswith("SLURM_")]:
        monkeypatch.delenv(name)
    assert slurm_task.cluster_environment(2) == []
    # In an allocation, without srun: Lightning alone would wait for the allocation's other tasks.
    for name in ("JOB_ID", "NTASKS", "NTASKS_PER_NODE"):
        monkeypatch.setenv(f"SLURM_{name}", "2")
    monkeypatch.setenv("SLURM_PROCID", "0")
    [plugin] = slurm_task.cluster_environment(2)
    assert isinstance(plugin, LightningEnvironment)
    assert slurm_task.first_task()
    monkeypatch.setenv("SLURM_STEP_NUM_TASKS", "2")
    monkeypatch.setenv("SLURM_PROCID", "1")
    [plugin] = slurm_task.cluster_environment(2)
    assert isinstance(plugin, SLURMEnvironment)
    assert not plugin.auto_requeue
    assert not slurm_task.first_task()
    with pytest.raises(UserError, match="ask for 1 processes, but SLURM started 2 tasks"):
        slurm_task.cluster_environment(1)
