"""Whether a checkpoint holds a whole state of training, so that resuming from it is no silent new start."""

import math
import re
from pathlib import Path
from typing import Any

from torch import Tensor

from fer_lightning.runtime.errors import UserError, check

SAVED_CALLBACKS = ("Curves", "TrainClock")
"""Callbacks of every run that have a state."""


def check_training_state(checkpoint: dict[str, Any], path: Path) -> None:
    """Check that position, counters, optimizer, schedule and random states are there and agree with each other.

    Args:
        checkpoint: from ``read_checkpoint``.
        path: its file.

    Raises:
        UserError: something is missing, of another type, or contradicts the rest.
    """
    try:
        _check_position(checkpoint)
        _check_optimizer(checkpoint)
        _check_schedule(checkpoint)
        _check_callbacks(checkpoint)
    except (AttributeError, IndexError, KeyError, TypeError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else f"a part is missing or of another type: {error}"
        raise UserError(f"{path}: no whole state of training ({reason[:200]}); give a run's last.ckpt") from None


def _check_position(checkpoint: dict[str, Any]) -> None:
    position, loop = checkpoint["position"], checkpoint["loops"]["fit_loop"]
    epoch, batches, step = position["epoch"], position["batches"], checkpoint["global_step"]
    check(set(position) == {"epoch", "batches"}, "position is not an epoch and its batches")
    for name, number in (("epoch", epoch), ("batches", batches), ("global_step", step)):
        check(type(number) is int and number >= 0, f"its {name} is {number!r}")
    _check_counters(checkpoint["loops"])
    check(0 <= epoch - checkpoint["epoch"] <= 1, f"its position is epoch {epoch}, its epoch {checkpoint['epoch']}")
    processed = loop["epoch_progress"]["current"]["processed"]
    check(0 <= epoch - processed <= 1, f"its position is epoch {epoch}, and {processed} are processed")
    ready = loop["epoch_loop.batch_progress"]["current"]["ready"]
    check(batches in (0, ready), f"its position is batch {batches}, and {ready} were read")
    steps = loop["epoch_loop.automatic_optimization.optim_progress"]["optimizer"]["step"]["total"]["completed"]
    check(steps == step, f"its global_step is {step}, and {steps} steps were made")


def _check_counters(node: Any) -> None:
    if isinstance(node, dict):
        for value in node.values():
            _check_counters(value)
    else:
        check(isinstance(node, int) and node >= 0, f"a counter of its loops is {str(node)[:40]}")


def _check_optimizer(checkpoint: dict[str, Any]) -> None:
    step, hyper = checkpoint["global_step"], checkpoint["hyper_parameters"]
    (saved,) = checkpoint["optimizer_states"]
    states, groups = saved["state"], saved["param_groups"]
    parameters = [parameter for group in groups for parameter in group["params"]]
    check(set(states) <= set(parameters) and parameters, "its optimizer has states of no parameter")
    adam = str(hyper["optim"]["name"]).startswith("adam")
    if step and (adam or hyper["optim"].get("momentum")):
        check(states, "its optimizer has no state")
    whole = not hyper["model"]["freeze_epochs"] and not hyper["model"]["head"]["class_scale"]
    whole = whole and not hyper["config"]["imbalance"].get("second_stage")
    if step and adam and whole:
        check(len(states) == len(parameters), f"its optimizer has {len(states)} of {len(parameters)} states")
    kinds = {frozenset(state) for state in states.values()}
    check(len(kinds) <= 1, "its optimizer's states are of several kinds")
    for state in states.values():
        finite = all(bool(value.isfinite().all()) for value in state.values() if isinstance(value, Tensor))
        check(finite, "its optimizer's moments are not finite numbers")
        made = float(state.get("step", step)) if step else 0.0
        check(0 <= made <= step, f"its optimizer made {made:g} steps of {step}")


def _check_schedule(checkpoint: dict[str, Any]) -> None:
    (schedule,) = checkpoint["lr_schedulers"]
    made = schedule["last_epoch"]
    check(type(made) is int and abs(made - checkpoint["global_step"]) <= 1, f"its learning rate is of step {made}")


def _check_callbacks(checkpoint: dict[str, Any]) -> None:
    callbacks, processes = checkpoint["callbacks"], checkpoint["processes"]
    missing = [name for name in SAVED_CALLBACKS if not isinstance(callbacks[name], dict)]
    check(not missing, f"it has no state of {', '.join(missing)}")
    seconds, rows = callbacks["TrainClock"]["seconds"], callbacks["Curves"]["rows"]
    is_time = _is_number(seconds) and 0 <= seconds < math.inf
    check(is_time, f"its training took {str(seconds)[:40]} seconds")
    for row in rows:  # written to metrics.csv as they are
        named = all(re.fullmatch(r"[a-z][\w/]{0,60}", key) for key in row)
        check(named and all(map(_is_number, row.values())), "its curves are no scores")
    check(isinstance(processes, list) and processes, "it has no random states")
    for process in processes:
        for name in ("numpy", "python", "torch"):
            check(isinstance(process["random"][name], tuple | Tensor), f"its random state of {name} is none")
    if {"ema", "swa"} & set(checkpoint["hyper_parameters"]["config"].get("callbacks") or {}):
        missing = [key for key in ("current_model_state", "averaging_state") if not checkpoint.get(key)]
        check(not missing, f"it has no {' and no '.join(missing)}")


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
