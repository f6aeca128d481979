"""Resuming from checkpoints whose state of training is damaged: refused in one line, never a silent new start."""

import copy
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.callbacks import EarlyStopping
from torchmetrics import MeanMetric, MetricCollection

from fer_lightning.runtime.errors import UserError
from fer_lightning.training.checkpoints import ExactResume, MovableCheckpoint, _random_state
from fer_lightning.training.saved_state import check_fits, check_training_state

COUNT = {"ready": 4, "completed": 4, "started": 4, "processed": 4}
BEST = "MovableCheckpoint{'monitor': 'val/f1_macro'}"
STOPPER = "EarlyStopping{'monitor': 'val/f1_macro', 'mode': 'max'}"
NUMPY_STATE = ("MT19937", torch.zeros(624), 624.0, 0.0, 0.0)
ROWS = [{"epoch": 0, "step": 2, "val/f1_macro": 0.5}, {"epoch": 1, "step": 4, "val/f1_macro": 0.25}]
WHOLE: dict[str, Any] = {
    "state_dict": {"weight": torch.zeros(2), "norm.running_var": torch.ones(1)},
    "epoch": 1,
    "global_step": 4,
    "position": {"epoch": 2, "batches": 0},
    "loops": {
        "fit_loop": {
            "state_dict": {},
            "epoch_progress": {"current": {"ready": 2, "completed": 1, "started": 2, "processed": 2}},
            "epoch_loop.batch_progress": {"current": {**COUNT, "ready": 2}, "is_last_batch": True},
            "epoch_loop.automatic_optimization.optim_progress": {"optimizer": {"step": {"total": COUNT}}},
        }
    },
    "optimizer_states": [
        {
            "state": {
                k: {"step": torch.tensor(4.0), "exp_avg": torch.zeros(2), "exp_avg_sq": torch.zeros(2)}
                for k in range(2)
            },
            "param_groups": [{"lr": 0.1, "params": [0]}, {"lr": 0.1, "params": [1]}],
        }
    ],
    "lr_schedulers": [{"last_epoch": 4, "_step_count": 5}],
    "callbacks": {
        "Curves": {"rows": ROWS},
        "TrainClock": {"seconds": 1.0},
        BEST: {
            "monitor": "val/f1_macro",
            "best_model_path": "/x/best.ckpt",
            "best_model_score": torch.tensor(0.5),
            "best_k_models": {"/x/best.ckpt": torch.tensor(0.5)},
            "kth_best_model_path": "/x/best.ckpt",
            "kth_value": torch.tensor(0.5),
        },
        STOPPER: {"wait_count": 1, "best_score": torch.tensor(0.5)},
        "EMAWeightAveraging": {"latest_update_step": 4},
    },
    "current_model_state": {"weight": torch.zeros(2)},
    "averaging_state": {"n_averaged": torch.tensor(4)},
    "processes": [{"random": {"python": (3, (1,), None), "numpy": NUMPY_STATE, "torch": torch.zeros(3)}}],
    "hyper_parameters": {
        "model": {"freeze_epochs": 0, "head": {"class_scale": False}},
        "optim": {"name": "adamw", "momentum": None},
        "config": {
            "imbalance": {},
            "callbacks": {"ema": {}, "early_stopping": {}},
            "monitor": "val/f1_macro",
            "trainer": {"accumulate_grad_batches": 1},
        },
    },
}


def put(*place: Any) -> Callable[[dict[str, Any]], None]:
    *above, key, value = place

    def change(content: dict[str, Any]) -> None:
        node: Any = content
        for part in above:
            node = node[part]
        node[key] = value

    return change


DAMAGED: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "a negative epoch": (put("position", "epoch", -5), "its epoch is -5"),
    "an epoch far away": (put("position", "epoch", 500), "its position is epoch 500"),
    "an epoch of text": (put("position", "epoch", "2"), "its epoch is '2'"),
    "a fraction of an epoch": (put("position", "epoch", 1.5), r"its epoch is 1\.5"),
    "a batch that was not read": (put("position", "batches", 7), "its position is batch 7"),
    "a position of more": (put("position", "evil", 7), "not an epoch and its batches"),
    "no position": (put("position", None), "of another type"),
    "no loops": (put("loops", {}), "a part is missing"),
    "a negative counter": (put("loops", "fit_loop", "epoch_progress", "total", -1), "a counter of its loops is -1"),
    "other steps": (put("global_step", 9), "its global_step is 9, and 4 steps"),
    "no optimizer": (put("optimizer_states", []), "not enough values"),
    "an empty optimizer": (put("optimizer_states", [{}]), "a part is missing"),
    "no states": (put("optimizer_states", 0, "state", {}), "its optimizer has no state"),
    "half of the states": (lambda content: content["optimizer_states"][0]["state"].pop(0), "has 1 of 2 states"),
    "an empty state": (put("optimizer_states", 0, "state", 1, {}), "of several kinds"),
    "states of nothing": (put("optimizer_states", 0, "state", 7, {}), "states of no parameter"),
    "moments that are no numbers": (
        put("optimizer_states", 0, "state", 1, "exp_avg", torch.full((2,), torch.nan)),
        "moments are not finite",
    ),
    "fewer steps of one parameter": (put("optimizer_states", 0, "state", 1, "step", 1.0), "different numbers of steps"),
    "steps of the future": (put("optimizer_states", 0, "state", 1, "step", 1e9), "made 1e.09 steps of 4"),
    "no schedule": (put("lr_schedulers", []), "not enough values"),
    "a schedule of the next step": (put("lr_schedulers", 0, "last_epoch", 5), "its learning rate is of step 5, not 4"),
    "a schedule of other steps": (put("lr_schedulers", 0, "_step_count", 9), "its schedule counts 9 steps"),
    "parameters in another order": (
        put("optimizer_states", 0, "param_groups", [{"lr": 0.1, "params": [1]}, {"lr": 0.1, "params": [0]}]),
        "its optimizer's parameters are not in their order",
    ),
    "a schedule of another step": (put("lr_schedulers", 0, "last_epoch", 77), "its learning rate is of step 77"),
    "a time of nan": (put("callbacks", "TrainClock", "seconds", float("nan")), "its training took nan seconds"),
    "a time of text": (put("callbacks", "TrainClock", "seconds", "x"), "its training took x seconds"),
    "curves of text": (put("callbacks", "Curves", "rows", "x"), "of another type"),
    "a formula in the curves": (put("callbacks", "Curves", "rows", [{"=cmd|x": 1}]), "its curves are not scores"),
    "escape codes in the curves": (put("callbacks", "Curves", "rows", [{"lr": "\x1b"}]), "its curves are not scores"),
    "no callbacks": (put("callbacks", {}), "a part is missing"),
    "no random states": (put("processes", []), "it has no random states"),
    "a random state of text": (put("processes", 0, "random", "torch", "x"), "random state of torch is not one"),
    "a random state beyond its keys": (
        put("processes", 0, "random", "numpy", (*NUMPY_STATE[:2], 50_000_000.0, 0.0, 0.0)),
        "random state of numpy is not one",
    ),
    "a random state at a half": (
        put("processes", 0, "random", "numpy", (*NUMPY_STATE[:2], 2.5, 0.0, 0.0)),
        "random state of numpy is not one",
    ),
    "a tensor for the average": (put("current_model_state", torch.zeros(2)), "is missing or of another type"),
    "no average": (put("current_model_state", {}), "no current_model_state"),
    "no equal mean": (
        lambda content: (
            content.pop("current_model_state"),
            put("hyper_parameters", "config", "callbacks", {"swa": {}})(content),
        ),
        "no current_model_state",
    ),
    "weights that are no numbers": (put("state_dict", "weight", torch.full((2,), torch.inf)), "weight is not finite"),
    "weights of half precision": (
        lambda content: content["state_dict"].update(weight=content["state_dict"]["weight"].half()),
        r"weight is of type torch\.float16",
    ),
    "a negative variance": (put("state_dict", "norm.running_var", torch.tensor([-1.0])), "running_var is negative"),
    "raw weights that are no numbers": (
        put("current_model_state", "weight", torch.full((2,), torch.nan)),
        "weight is not finite",
    ),
    "raw weights of another type": (
        put("current_model_state", "weight", torch.zeros(2, dtype=torch.int8)),
        r"weight is of type torch\.int8",
    ),
    "epochs of the future": (
        put("loops", "fit_loop", "epoch_progress", "current", "ready", 99),
        "counters of its epochs contradict",
    ),
    "negative second moments": (
        put("optimizer_states", 0, "state", 1, "exp_avg_sq", torch.tensor([-1.0, 1.0])),
        "second moments are negative",
    ),
    "a bound on weights that is no number": (
        put("callbacks", "SecondStage", {"longest": "x"}),
        "bound on weights is x",
    ),
    "no curves": (put("callbacks", "Curves", "rows", []), "not those of 2 epochs"),
    "a row twice": (put("callbacks", "Curves", "rows", [*ROWS, ROWS[1]]), "not those of 2 epochs"),
    "rows of the future": (
        put("callbacks", "Curves", "rows", [ROWS[0], {"epoch": 1, "step": 9}]),
        "the steps of its curves are out of order",
    ),
    "another best file": (put("callbacks", BEST, "best_model_path", "/etc/passwd"), "is called 'passwd', not best"),
    "a best file above the folder": (
        lambda content: content["callbacks"][BEST].update(
            best_model_path="", best_k_models={"/x/..": torch.tensor(0.0)}, kth_best_model_path="/x/.."
        ),
        "and no best checkpoint",
    ),
    "a best score without a file": (put("callbacks", BEST, "best_model_path", ""), "and no best checkpoint"),
    "another file to delete": (
        put("callbacks", BEST, "best_k_models", {"/x/..": torch.tensor(0.5)}),
        "has two best checkpoints",
    ),
    "another file to replace": (put("callbacks", BEST, "kth_best_model_path", "/y"), "has two best checkpoints"),
    "the best of another score": (
        put("callbacks", BEST, "monitor", "train/loss"),
        "is that of train/loss, not of val/",
    ),
    "the best of no score": (put("callbacks", BEST, "monitor", None), "is that of None, not of val/"),
    "a best score of text": (put("callbacks", BEST, "best_model_score", "0.5"), "its best checkpoint is a str"),
    "a second best score of text": (put("callbacks", BEST, "kth_value", "0.5"), "has two best scores"),
    "a score to wait for of no tensor": (put("callbacks", STOPPER, "best_score", 0.5), "waits to exceed is a float"),
    "a score to wait for that is never exceeded": (
        put("callbacks", STOPPER, "best_score", torch.tensor(torch.inf)),
        "waits to exceed is in no epoch",
    ),
    "a position after other steps": (put("callbacks", "Curves", "rows", [ROWS[0], {"epoch": 1, "step": 3}]), "after 3"),
    "a best score of no epoch": (
        put("callbacks", BEST, "best_model_score", torch.tensor(5.0)),
        "is in no epoch",
    ),
    "a best score of nan": (
        put("callbacks", BEST, "best_model_score", torch.tensor(torch.nan)),
        "is in no epoch",
    ),
    "another score to beat": (
        put("callbacks", BEST, "kth_value", torch.tensor(0.0)),
        "has two best scores",
    ),
    "another score of the best": (
        put("callbacks", BEST, "best_k_models", {"/x/best.ckpt": torch.tensor(0.0)}),
        "has two best scores",
    ),
    "a wait of no epochs": (put("callbacks", STOPPER, "wait_count", 100), "it waited 100 of 2 epochs"),
    "a best score to wait for of nan": (
        put("callbacks", STOPPER, "best_score", torch.tensor(torch.nan)),
        "waits to exceed",
    ),
    "an average of nothing": (put("averaging_state", "n_averaged", torch.tensor(0)), "its average is of 0 states"),
    "an average of the future": (
        put("callbacks", "EMAWeightAveraging", "latest_update_step", 10**9),
        "its average is of step 1000000000",
    ),
    "an average of text": (
        put("callbacks", "EMAWeightAveraging", "latest_update_step", "2"),
        "its average is of step 2",
    ),
}


def test_a_whole_state_passes() -> None:
    check_training_state(copy.deepcopy(WHOLE), Path("last.ckpt"))


@pytest.mark.parametrize("case", DAMAGED)
def test_a_damaged_state_is_refused(case: str) -> None:
    change, reason = DAMAGED[case]
    content = copy.deepcopy(WHOLE)
    change(content)
    with pytest.raises(UserError, match=rf"last\.ckpt: incomplete training state \(.*{reason}"):
        check_training_state(content, Path("last.ckpt"))


VALUES = st.none() | st.integers() | st.floats() | st.text(max_size=5) | st.lists(st.integers(), max_size=2)


@settings(max_examples=200, deadline=20_000, derandomize=True, database=None)
@given(key=st.sampled_from([key for key in WHOLE if key != "hyper_parameters"]), value=VALUES | st.just({}))
def test_any_value_of_any_part(key: str, value: Any) -> None:
    with pytest.raises(UserError, match="incomplete training state"):
        check_training_state({**copy.deepcopy(WHOLE), key: value}, Path("last.ckpt"))


def _run(one_cycle: bool = False) -> tuple[torch.optim.Optimizer, Any]:
    """The optimizer and the schedule of a new run."""
    parameters = [torch.zeros(2, 3, requires_grad=True), torch.zeros(2, requires_grad=True)]
    optimizer = torch.optim.AdamW(parameters, lr=0.1, weight_decay=0.05)
    if one_cycle:
        return optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, [0.1], 9)
    return optimizer, torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 / (step + 1))


GROUP = ("optimizer_states", 0, "param_groups", 0)


def remove(*place: Any) -> Callable[[dict[str, Any]], None]:
    *above, key = place

    def change(content: dict[str, Any]) -> None:
        node: Any = content
        for part in above:
            node = node[part]
        del node[key]

    return change


@pytest.mark.parametrize(
    ("one_cycle", "change", "reason"),
    [
        (False, put(*GROUP, "weight_decay", 5.0), "has weight_decay=5.0, and this run 0.05"),
        (False, put(*GROUP, "betas", (0.1, 0.1)), r"has betas=\(0.1, 0.1\)"),
        (False, put(*GROUP, "amsgrad", True), "has amsgrad=True"),
        (False, remove(*GROUP, "maximize"), "has maximize=None, and this run False"),
        (False, put(*GROUP, "lr", 5.0), "learning rates are not its schedule's"),
        (False, put("lr_schedulers", 0, "base_lrs", [0.5]), r"base_lrs=\[0.5\], and this run \[0.1\]"),
        (False, put("lr_schedulers", 0, "get_lr", None), "its schedule is of another kind"),
        (False, put("optimizer_states", 0, "state", 0, "exp_avg", torch.zeros(3)), "exp_avg has another shape"),
        (True, put("lr_schedulers", 0, "total_steps", 9000), "has total_steps=9000, and this run 9"),
        (True, put("lr_schedulers", 0, "_schedule_phases", 0, "end_step", 900.0), "its schedule has _schedule_phases"),
        (True, put(*GROUP, "initial_lr", 5.0), "has initial_lr=5.0"),
        (True, put(*GROUP, "max_lr", 5.0), "has max_lr=5.0"),
    ],
)
def test_settings_of_a_checkpoint_do_not_replace_those_of_the_run(
    one_cycle: bool, change: Callable[[dict[str, Any]], None], reason: str
) -> None:
    optimizer, schedule = _run(one_cycle)
    for parameter in optimizer.param_groups[0]["params"]:
        parameter.grad = torch.ones_like(parameter)
    for _ in range(2):
        optimizer.step()
        schedule.step()
    content: dict[str, Any] = copy.deepcopy(
        {"optimizer_states": [optimizer.state_dict()], "lr_schedulers": [schedule.state_dict()]}
    )
    check_fits(content, *_run(one_cycle))
    change(content)
    with pytest.raises(ValueError, match=reason):
        check_fits(content, *_run(one_cycle))


def test_a_resumed_run_waits_as_long_as_its_own_setting_says() -> None:
    stopper = EarlyStopping("val/f1_macro", patience=5)
    trainer: Any = SimpleNamespace(
        callbacks=[stopper],
        global_rank=0,
        optimizers=[SimpleNamespace(param_groups=[])],
        lr_scheduler_configs=[SimpleNamespace(scheduler=SimpleNamespace(state_dict=lambda: {"_last_lr": []}))],
    )
    exact: Any = ExactResume()
    empty = {
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [{"_last_lr": []}],
    }
    exact.on_load_checkpoint(trainer, None, {"processes": [{}], "position": {"batches": 0}, **empty})
    stopper.load_state_dict({**stopper.state_dict(), "patience": 0})
    exact.on_fit_start(trainer, None)
    assert stopper.patience == 5


def test_no_path_of_a_state_is_deleted_later(tmp_path: Path) -> None:
    """Lightning removes the best file so far, by the path in the state."""
    (tmp_path / "best.ckpt").touch()
    best = MovableCheckpoint(dirpath=tmp_path, filename="best", monitor="val/f1_macro", mode="max")
    score = torch.tensor(0.5)
    paths = {"best_model_path": "/x/..", "kth_best_model_path": "/x/..", "last_model_path": "/x/.."}
    best.load_state_dict({**best.state_dict(), **paths, "best_model_score": score, "best_k_models": {"/x/..": score}})
    own = str(tmp_path / "best.ckpt")
    assert (best.best_model_path, best.kth_best_model_path, best.last_model_path) == (own, own, "")
    assert best.best_k_models == {own: score}


def test_a_position_beyond_the_epoch_is_refused() -> None:
    exact: Any = ExactResume()
    exact.batches = 3
    with pytest.raises(ValueError, match="it stopped at batch 3 of 3 of an epoch"):
        exact.on_train_start(SimpleNamespace(num_training_batches=3), None)


def test_sums_of_other_metrics_are_refused() -> None:
    exact: Any = ExactResume()
    model = SimpleNamespace(
        train_metrics=MetricCollection([MeanMetric()]), train_loss=MeanMetric(), device=torch.device("cpu")
    )
    random = _random_state(torch.device("cpu"))
    for sums in ({"compute": torch.zeros(())}, {"mean_value": torch.zeros(3)}):
        exact.state = {"random": random, "metrics": {"loss": sums}}
        with pytest.raises(ValueError, match="its sums of loss are not those of this run"):
            exact.on_train_batch_start(None, model, None, 0)
