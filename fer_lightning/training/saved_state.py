"""Whether a checkpoint holds a complete training state, so that resuming from it does not silently start anew."""

import math
import re
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fer_lightning.runtime.errors import UserError, check

SAVED_CALLBACKS = ("Curves", "TrainClock")
"""Callbacks of every run that have a state."""

PER_RUN = {"params", "lr", "foreach", "fused", "capturable", "differentiable"}
"""Options of an optimizer's group that change in a run, or with the machine."""

MT19937_KEYS = 624
"""Keys of the random state of NumPy, which does not check that its position is one of them."""

CYCLED = {"betas", "momentum"}
"""Further ones that ``optim.schedule=one_cycle`` changes."""

MOVING = {"last_epoch", "_step_count", "_last_lr", "_get_lr_called_within_step", "_is_initial"}
"""Parts of a schedule's state that change in a run."""


def check_training_state(checkpoint: dict[str, Any], path: Path) -> None:
    """Check that weights, position, counters, optimizer, schedule, scores and random states are there and agree.

    Args:
        checkpoint: from ``read_checkpoint``.
        path: its file.

    Raises:
        UserError: something is missing, of another type, or contradicts the rest.
    """
    try:
        _check_weights(checkpoint)
        _check_position(checkpoint)
        _check_optimizer(checkpoint)
        _check_schedule(checkpoint)
        _check_callbacks(checkpoint)
        _check_curves(checkpoint)
        _check_best(checkpoint)
        _check_early_stopping(checkpoint)
        _check_average(checkpoint)
    except (ArithmeticError, AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        reason = str(error) if type(error) is ValueError else f"a part is missing or of another type: {error}"
        raise UserError(
            f"{path}: incomplete training state ({reason[:200]}); give a run's last.ckpt, or train anew in another "
            "hydra.run.dir"
        ) from None


def check_fits(checkpoint: dict[str, Any], optimizer: torch.optim.Optimizer, schedule: Any) -> None:
    """Check that the optimizer and the schedule of a checkpoint are those of a run, whose own are still as built.

    Restoring replaces the options of both by the checkpoint's, so that others would train with other settings than the
    recorded ones.

    Args:
        checkpoint: passed ``check_training_state``.
        optimizer: of the run, before anything was restored.
        schedule: of the run, before anything was restored.

    Raises:
        ValueError: naming what differs.
    """
    saved, made = checkpoint["optimizer_states"][0], checkpoint["lr_schedulers"][0]
    if len(saved["param_groups"]) != len(optimizer.param_groups):
        return  # torch refuses it
    cycles = isinstance(schedule, torch.optim.lr_scheduler.OneCycleLR)
    for group, own in zip(saved["param_groups"], optimizer.param_groups, strict=True):
        for key in own.keys() - PER_RUN - (CYCLED if cycles else set()):
            same = key in group and group[key] == own[key]
            check(same, f"its optimizer has {key}={str(group.get(key))[:40]}, and this run {own[key]}")
    rates = [group["lr"] for group in saved["param_groups"]]
    check(all(map(_is_number, rates)) and rates == list(made["_last_lr"]), "its learning rates are not its schedule's")
    for key, value in schedule.state_dict().items():
        same = key in MOVING or (key in made and made[key] == value)
        check(same, f"its schedule has {key}={str(made.get(key))[:60]}, and this run {str(value)[:60]}")
    check(made.keys() <= schedule.state_dict().keys(), "its schedule is of another kind")
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    for place, state in saved["state"].items():
        for name, value in state.items():
            fits = not isinstance(value, Tensor) or value.ndim == 0 or value.shape == parameters[place].shape
            check(fits, f"its optimizer's {str(name)[:40]} has another shape than the parameter")


def _check_weights(checkpoint: dict[str, Any]) -> None:
    state, current = checkpoint["state_dict"], checkpoint.get("current_model_state") or {}
    check(state, "it has no weights")
    for name, value in (*state.items(), *current.items()):
        check(not value.is_floating_point() or bool(value.isfinite().all()), f"{str(name)[:80]} is not finite")
        rounded = value.is_floating_point() and value.dtype != torch.float32  # torch would silently convert it
        check(not rounded, f"{str(name)[:80]} is of type {value.dtype}, and training keeps float32")
        check(not name.endswith("running_var") or bool((value >= 0).all()), f"{str(name)[:80]} is negative")
    for name in state.keys() & current.keys():
        same_kind = state[name].is_floating_point() == current[name].is_floating_point()
        check(same_kind, f"{str(name)[:80]} is of type {current[name].dtype}")


def _check_position(checkpoint: dict[str, Any]) -> None:
    position, loop = checkpoint["position"], checkpoint["loops"]["fit_loop"]
    epoch, batches, step = position["epoch"], position["batches"], checkpoint["global_step"]
    check(set(position) == {"epoch", "batches"}, "position is not an epoch and its batches")
    for name, number in (("epoch", epoch), ("batches", batches), ("global_step", step)):
        check(type(number) is int and number >= 0, f"its {name} is {number!r}")
    _check_counters(checkpoint["loops"])
    check(0 <= epoch - checkpoint["epoch"] <= 1, f"its position is epoch {epoch}, its epoch {checkpoint['epoch']}")
    count = loop["epoch_progress"]["current"]
    processed = count["processed"]
    check(0 <= epoch - processed <= 1, f"its position is epoch {epoch}, and {processed} are processed")
    in_order = count["completed"] <= processed <= count["started"] <= count["ready"] <= processed + 1
    check(in_order and processed - count["completed"] <= 1, "the counters of its epochs contradict each other")
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
    # torch numbers them in their order; in another one, moments would be applied to other parameters.
    check(parameters == list(range(len(parameters))), "its optimizer's parameters are not in their order")
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
    made = [float(state.get("step", step)) if step else 0.0 for state in states.values()]
    for state, steps in zip(states.values(), made, strict=True):
        finite = all(bool(value.isfinite().all()) for value in state.values() if isinstance(value, Tensor))
        check(finite, "its optimizer's moments are not finite numbers")
        check(0 <= steps <= step, f"its optimizer made {steps:g} steps of {step}")
        squares = [value for name, value in state.items() if name.endswith("_sq") and isinstance(value, Tensor)]
        check(all(bool((value >= 0).all()) for value in squares), "its optimizer's second moments are negative")
    check(not (adam and whole) or len(set(made)) <= 1, "its optimizer's parameters made different numbers of steps")


def _check_schedule(checkpoint: dict[str, Any]) -> None:
    (schedule,) = checkpoint["lr_schedulers"]
    made, step = schedule["last_epoch"], checkpoint["global_step"]
    check(type(made) is int and made == step, f"its learning rate is of step {made}, not {step}")
    check(schedule["_step_count"] == made + 1, f"its schedule counts {schedule['_step_count']} steps")


def _check_callbacks(checkpoint: dict[str, Any]) -> None:
    callbacks, processes = checkpoint["callbacks"], checkpoint["processes"]
    missing = [name for name in SAVED_CALLBACKS if not isinstance(callbacks[name], dict)]
    check(not missing, f"it has no state of {', '.join(missing)}")
    for state in callbacks.values():
        longest = state.get("longest", 1.0) if isinstance(state, dict) else 1.0
        check(_is_number(longest) and 0 < longest < math.inf, f"its bound on weights is {str(longest)[:40]}")
    seconds, rows = callbacks["TrainClock"]["seconds"], callbacks["Curves"]["rows"]
    is_time = _is_number(seconds) and 0 <= seconds < math.inf
    check(is_time, f"its training took {str(seconds)[:40]} seconds")
    for row in rows:  # written to metrics.csv as they are
        named = all(re.fullmatch(r"[a-z][\w/]{0,60}", key) for key in row)
        check(named and all(map(_is_number, row.values())), "its curves are not scores")
    check(isinstance(processes, list) and processes, "it has no random states")
    for process in processes:
        for name in ("numpy", "python", "torch"):
            check(isinstance(process["random"][name], tuple | Tensor), f"its random state of {name} is not one")
        _, keys, position, *_ = process["random"]["numpy"]
        fits = _is_number(position) and position % 1 == 0 and 0 <= position <= len(keys) == MT19937_KEYS
        check(fits, "its random state of numpy is not one")


def _check_curves(checkpoint: dict[str, Any]) -> None:
    """Raise ValueError unless the curves have a row of each epoch before the position, and of none after it."""
    rows, epoch = checkpoint["callbacks"]["Curves"]["rows"], checkpoint["position"]["epoch"]
    complete = [row["epoch"] for row in rows] == list(range(len(rows))) and epoch <= len(rows) <= epoch + 1
    check(complete, f"its curves are not those of {epoch} epochs")
    steps = [row["step"] for row in rows]
    check(
        steps == sorted(steps) and all(step <= checkpoint["global_step"] for step in steps),
        "the steps of its curves are out of order or beyond its own",
    )
    # Checkpoints within an epoch are written after whole steps.
    per_step = checkpoint["hyper_parameters"]["config"]["trainer"]["accumulate_grad_batches"]
    made = (steps[epoch - 1] if epoch else 0) + checkpoint["position"]["batches"] // per_step
    check(
        made == checkpoint["global_step"],
        f"its position is after {made} steps, its global_step {checkpoint['global_step']}",
    )


def _check_best(checkpoint: dict[str, Any]) -> None:
    """Raise ValueError unless the best checkpoint so far is called as this project's, and its score is in a row."""
    rows, monitor = checkpoint["callbacks"]["Curves"]["rows"], checkpoint["hyper_parameters"]["config"]["monitor"]
    scores = [row[monitor] for row in rows if monitor in row]
    for name, state in checkpoint["callbacks"].items():
        if not name.startswith("MovableCheckpoint"):
            continue
        path, best, kept = state["best_model_path"], state["best_model_score"], state["best_k_models"]
        same = state["monitor"] == monitor or (state["monitor"] is None and not scores)
        check(same, f"its best checkpoint is that of {str(state['monitor'])[:40]}, not of {monitor}")
        if path:
            called = Path(path).name
            check(called == "best.ckpt", f"its best checkpoint is called {called[:40]!r}, not best.ckpt")
        if not path or state["monitor"] is None:
            none = best is None and kept == {} and not state["kth_best_model_path"]
            check(none, "it has the score of a best checkpoint, and no best checkpoint")
            continue
        check(_is_score(best), f"the score of its best checkpoint is a {type(best).__name__}")
        check(any(math.isclose(best, score, rel_tol=1e-6) for score in scores), f"its best {monitor} is in no epoch")
        check(list(kept) == [path] and state["kth_best_model_path"] == path, "it has two best checkpoints")
        same = all(_is_score(score) and score == best for score in (*kept.values(), state["kth_value"]))
        check(same, f"it has two best scores of {monitor}")


def _check_early_stopping(checkpoint: dict[str, Any]) -> None:
    for name, state in checkpoint["callbacks"].items():
        if not name.startswith("EarlyStopping"):
            continue
        waited, rows, best = state["wait_count"], checkpoint["callbacks"]["Curves"]["rows"], state["best_score"]
        epochs = len(rows)
        check(type(waited) is int and 0 <= waited <= epochs, f"it waited {str(waited)[:40]} of {epochs} epochs")
        check(_is_score(best), f"the best score that it waits to exceed is a {type(best).__name__}")
        start = -math.inf if "'mode': 'max'" in name else math.inf
        was_scored = best == start or any(
            math.isclose(best, value, rel_tol=1e-6) for row in rows for value in row.values()
        )
        check(was_scored, "the best score that it waits to exceed is in no epoch")


def _check_average(checkpoint: dict[str, Any]) -> None:
    if not {"ema", "swa"} & set(checkpoint["hyper_parameters"]["config"].get("callbacks") or {}):
        return
    missing = [key for key in ("current_model_state", "averaging_state") if not checkpoint.get(key)]
    check(not missing, f"it has no {' and no '.join(missing)}")
    step, averaged = checkpoint["global_step"], int(checkpoint["averaging_state"]["n_averaged"])
    for state in checkpoint["callbacks"].values():
        if "latest_update_step" in state:
            latest = state["latest_update_step"]
            check(type(latest) is int and 0 <= latest <= step, f"its average is of step {str(latest)[:40]}")
            check(bool(latest) <= averaged <= step + 1, f"its average is of {averaged} states")


def _is_score(value: object) -> bool:
    """Whether a value is a tensor of one number, as Lightning's callbacks keep scores."""
    return isinstance(value, Tensor) and value.ndim == 0 and value.is_floating_point()


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
