"""The tasks of a SLURM job, read from inside one of them."""

import os
from typing import Any

from fer_lightning.runtime.errors import UserError


def inside() -> bool:
    """Whether Hydra's submitit launcher runs this process as a task of a SLURM job."""
    return os.environ.get("SUBMITIT_EXECUTOR") == "slurm" and "SLURM_PROCID" in os.environ


def tasks() -> int:
    """How many processes ``srun`` started together, this one included; 1 outside of SLURM."""
    return int(os.environ.get("SLURM_STEP_NUM_TASKS", 1))


def first_task() -> bool:
    """Whether this is the task that writes and prints; also true outside of SLURM."""
    return tasks() == 1 or os.environ["SLURM_PROCID"] == "0"


def cluster_environment(processes: int | None) -> list[Any]:
    """Lightning's plugin for the launcher of a run's processes; none outside of SLURM.

    Args:
        processes: devices times nodes of the run; None where only Lightning can determine it.

    Raises:
        UserError: SLURM started several tasks, but not one for each device.
    """
    if "SLURM_JOB_ID" not in os.environ:
        return []
    from lightning.pytorch.plugins.environments import LightningEnvironment, SLURMEnvironment

    if tasks() == 1:  # in an allocation, Lightning would assume that srun started the processes
        return [LightningEnvironment()]
    if processes != tasks():
        raise UserError(
            f"trainer.devices, trainer.num_nodes: ask for {processes or 'any number of'} processes, but SLURM started "
            f"{tasks()} tasks; use one number of devices in the whole sweep, or one sweep for each number"
        )
    return [SLURMEnvironment(auto_requeue=False)]  # settle() does, after the run has saved exactly
