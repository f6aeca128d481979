"""What a training step of each method costs, relative to one of ``none``.

    python benchmarks/method_cost.py
    python benchmarks/method_cost.py --steps 12 --write    # on an idle machine, for the table of docs/methods.md

Real runs of ``python -m fer_lightning``, with Lightning's loop, augmentation, mixing, passes and stages, all at once in
one process and one step of each in turn: what slows the machine for a while slows all of them. A run has four epochs,
so that a second stage is the last quarter, as by default. The cost is the mean over epochs of the median, over steps,
of the step's time to that of ``none`` in the same turn; processor time on a CPU, wall time on a GPU. ``none`` runs
twice: the second one shows the noise, some 5 %. Where nothing but the loss differs, it is measured alone, forward and
backward, and takes the place of the plain one in a step of ``none``. ``--write`` keeps the cost of other methods.
"""

import argparse
import contextlib
import io
import json
import logging
import tempfile
import threading
import warnings
from collections import deque
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import OmegaConf
from step_overhead import now

from measure import machine, median, show, spread

PIXELS, BATCH, EPOCHS = 48, 64, 4
CONTROL = "none again"


class Turns:
    """Lets one of several threads run at a time, each in turn."""

    def __init__(self, names: list[str]) -> None:
        self.waiting, self.changed = deque(names), threading.Condition()

    def take(self, name: str) -> None:
        """Wait for the turn of ``name``."""
        with self.changed:
            self.changed.wait_for(lambda: self.waiting[0] == name)

    def give(self, last: bool = False) -> None:
        """End a turn; the last one of its thread when ``last``."""
        with self.changed:
            self.waiting.popleft() if last else self.waiting.rotate(-1)
            self.changed.notify_all()


class Clock(L.Callback):
    """Seconds of each step of each epoch, from the start of its turn to its end; another run's turn follows."""

    def __init__(self, name: str, turns: Turns) -> None:
        self.name, self.turns = name, turns
        self.seconds: list[list[float]] = [[] for _ in range(EPOCHS)]
        self.since = now()

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        if batch_idx:  # the first step of an epoch comes after its sampling, and the checkpoint of the last
            self.seconds[trainer.current_epoch].append(now() - self.since)
        self.turns.give()
        self.turns.take(self.name)
        self.since = now()


def compose(method: str, network: str, steps: int) -> Any:
    """The configuration of a run."""
    from hydra import compose, initialize_config_dir

    from fer_lightning.config.safety import CONF_DIR

    overrides = [
        *("data=synthetic", f"data.batch_size={BATCH}", "logger=csv", f"imbalance={method}", f"model={network}"),
        *("model.weights=none", f"model.image_size={PIXELS}", f"trainer.max_epochs={EPOCHS}"),
        *(f"trainer.limit_train_batches={steps + 1}", "trainer.limit_val_batches=0"),
        *([] if torch.cuda.is_available() else ["trainer.accelerator=cpu"]),
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=overrides)


def train(cfg: Any, faces: Any, clock: Clock) -> None:
    """Train as a run does, without its reports."""
    from fer_lightning.data.splits import official
    from fer_lightning.training import build

    L.seed_everything(0, verbose=False)
    datamodule = build.build_datamodule(cfg, faces, official(faces, 0))
    counts = dict(zip(faces.classes, datamodule.class_counts, strict=True))
    loss = build.build_loss(cfg, datamodule.class_counts, faces.classes)
    second = build.build_second_stage(cfg)
    model = build.build_model(cfg, counts, faces.form, {"data_hash": "none"}, loss, second, None, resumed=False)
    with tempfile.TemporaryDirectory() as folder:
        callbacks: list[L.Callback] = [clock] if second is None else [second, clock]
        trainer = build.build_trainer(cfg, Path(folder), [], callbacks, has_validation=True)
        trainer.fit(model, datamodule)


def step_seconds(methods: list[str], network: str, steps: int, faces: Any) -> dict[str, list[list[float]]]:
    """Seconds of the steps of each epoch of each method, and of ``none`` once more as a control."""
    names = [*methods, CONTROL]
    turns, failed = Turns(names), []
    clocks = {name: Clock(name, turns) for name in names}

    def work(name: str, cfg: Any) -> None:
        turns.take(name)
        try:
            train(cfg, faces, clocks[name])
        except BaseException as error:
            failed.append((name, error))
        turns.give(last=True)

    threads = [
        threading.Thread(target=work, args=(name, compose("none" if name == CONTROL else name, network, steps)))
        for name in names
    ]
    with contextlib.redirect_stdout(io.StringIO()):
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    if failed:
        raise RuntimeError(f"{failed[0][0]} failed") from failed[0][1]
    return {name: clock.seconds for name, clock in clocks.items()}


def loss_seconds(method: str, faces: Any, times: int = 300) -> float:
    """Seconds of a method's loss on a batch, forward and backward, median; processor time on a CPU."""
    from fer_lightning.training import build

    loss = build.build_loss(compose(method, "test_efficientnet", 1), faces.count(), faces.classes)
    logits, target = torch.randn(BATCH, len(faces.classes), requires_grad=True), torch.arange(BATCH) % 7
    taken = []
    for _ in range(times):
        before = now()
        torch.autograd.grad(loss(logits, target).mean(), logits)
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        taken.append(now() - before)
    return median(taken)


def only_a_loss(method: str) -> bool:
    """Whether a method's configuration is that of ``none`` in all but its loss."""
    from fer_lightning.imbalance.combinations import stage

    plain, other = (OmegaConf.to_container(compose(name, "test_efficientnet", 1)) for name in ("none", method))
    for cfg in (plain, other):
        del cfg["imbalance"]["loss"], cfg["imbalance"]["name"]
    return stage(method) == "loss" and plain == other


def step_rows(methods: list[str], network: str, steps: int, faces: Any) -> tuple[list[list[Any]], float]:
    """A row for each method, measured in whole steps, and the seconds of a step of ``none``."""
    seconds = step_seconds(methods, network, steps, faces)
    rows = []
    for name, epochs in seconds.items():
        pairs = zip(epochs, seconds["none"], strict=True)
        ratios = [[value / base for value, base in zip(*pair, strict=True)] for pair in pairs]
        rows.append([name, sum(map(median, ratios)) / EPOCHS, spread([one for epoch in ratios for one in epoch])])
    return rows, median([value for epoch in seconds["none"] for value in epoch])


def main() -> None:
    """Print one row for each method."""
    from fer_lightning.data import synthetic
    from fer_lightning.imbalance.catalog import STEP_COST, markdown_table, read_methods, read_step_cost
    from fer_lightning.runtime.provenance import git_commit

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=4, help="timed steps of each of the four epochs")
    parser.add_argument("--network", default="tf_efficientnetv2_b0")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--methods", default=",".join(read_methods()), help="none,focal,...; none must be the first")
    parser.add_argument("--write", action="store_true", help=f"write {STEP_COST.name} and the table of docs/methods.md")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning").setLevel(logging.ERROR)
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    methods = arguments.methods.split(",")
    losses = [name for name in methods if only_a_loss(name)]
    faces = synthetic.draw(max(2000, 100 * (arguments.steps + 1)))
    rows, plain = step_rows([n for n in methods if n not in losses], arguments.network, arguments.steps, faces)
    loss_of_none = loss_seconds("none", faces)
    rows += [[name, 1 + (loss_seconds(name, faces) - loss_of_none) / plain, "loss alone"] for name in losses]
    columns = ["method", "cost, x none", "range"]
    show(f"step cost; a step of none takes {1000 * plain:,.0f} ms", columns, rows, steps=arguments.steps)
    if arguments.write:
        cost = {name: value for name, value, _ in rows if name != CONTROL}
        content = {
            "network": arguments.network,
            "pixels": PIXELS,
            "batch": BATCH,
            "machine": machine(),
            "commit": git_commit(),
            "command": f"python benchmarks/method_cost.py --steps {arguments.steps} --write",
            "cost": read_step_cost()["cost"] | {name: round(value, 3) for name, value in cost.items()},
        }
        page, before = Path(__file__).parent.parent / "docs/methods.md", markdown_table()
        STEP_COST.write_text(json.dumps(content, indent=2) + "\n")
        page.write_text(page.read_text().replace(before, markdown_table()))


if __name__ == "__main__":
    main()
