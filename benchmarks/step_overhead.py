"""What the Trainer costs: one training step of a bare PyTorch loop against that of a run.

    python benchmarks/step_overhead.py

The same network, loss, optimizer and batches. The run is what ``python -m fer_lightning`` does: Lightning's loop, all
callbacks, metrics, batches made by the data module. The bare loop indexes the images, normalises them as the model
does, and steps. Rounds alternate; a round is the median of ``--steps`` steps, in processor time on a CPU and wall time
on a GPU.
"""

import argparse
import contextlib
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch

from measure import alternate, median, show, spread

NETWORKS = {  # name, input size, batch sizes
    "test_efficientnet": (48, (16, 64)),
    "efficientnet_b0": (48, (16, 64)),
}


def compose(name: str, size: int, batch: int, steps: int, more: list[str]) -> Any:
    """The configuration of a run."""
    from hydra import compose, initialize_config_dir

    from fer_lightning.config.safety import CONF_DIR

    overrides = [
        *("data=synthetic", "data.source.images=6000", f"data.batch_size={batch}", "logger=csv", "augment=none"),
        *(f"model={name}", "model.weights=none", f"model.image_size={size}", "model.stem_stride=2"),
        *(f"trainer.limit_train_batches={steps}", "trainer.limit_val_batches=0", "trainer.max_epochs=1"),
    ]
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        return compose("config", overrides=[*overrides, *more])


def parts(cfg: Any, faces: Any) -> tuple[Any, Any]:
    """The data module and the model of a run."""
    from omegaconf import OmegaConf

    from fer_lightning.data.splits import official
    from fer_lightning.model.classifier import EmotionClassifier
    from fer_lightning.training.build import build_datamodule, build_loss

    L.seed_everything(0, verbose=False)
    datamodule = build_datamodule(cfg, faces, official(faces, 0, train_size=cfg.split.train_size))
    plain: Any = OmegaConf.to_container(cfg, resolve=True)
    loss = build_loss(cfg, datamodule.class_counts, datamodule.faces.classes)
    model = EmotionClassifier(plain["model"], plain["optim"], datamodule.class_counts, plain, {}, loss)
    return datamodule, model.to(memory_format=torch.channels_last)


def now() -> float:
    """Seconds of processor time where the CPU computes, which other programs disturb less; of wall time on a GPU."""
    return time.perf_counter() if torch.cuda.is_available() else time.process_time()


class Clock(L.Callback):
    """Seconds from the end of one step to the end of the next: the step, its batch, and all hooks between."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(now())


def run_times(cfg: Any, faces: Any) -> list[float]:
    """When each step of a run ended."""
    from fer_lightning.training.build import build_trainer

    datamodule, model = parts(cfg, faces)
    clock = Clock()
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        trainer = build_trainer(cfg, Path(folder), [], [clock], has_validation=True)
        trainer.fit(model, datamodule)
    return clock.times


def bare_loop(
    cfg: Any, faces: Any, device: torch.device, batches: Iterable[Any] | None = None, ready: bool = False
) -> list[float]:
    """When each step of a plain loop ended.

    Args:
        cfg: of the run.
        faces: the data.
        device: where to compute.
        batches: images and labels; None takes those of the run, indexed from a tensor.
        ready: whether the images are the network's input already.
    """
    import timm.optim

    from fer_lightning.model.optimizer import build_schedule, parameter_groups

    datamodule, model = parts(cfg, faces)
    optim, steps = cfg.optim, cfg.trainer.limit_train_batches
    model = model.to(device).train()
    groups = parameter_groups(model.network, optim.lr, optim.weight_decay, None, 1.0)
    optimizer = timm.optim.create_optimizer_v2(groups, opt=optim.name, lr=optim.lr, fused=True)
    schedule = build_schedule(optimizer, "cosine", steps, 0.05)
    loss_of, parameters = model.loss.to(device), list(model.network.parameters())
    half = device.type == "cuda"
    times = []
    for images, labels in batches or _indexed(datamodule, device):
        pixels = images if ready else model.prepare(images, cfg.model.image_size)
        optimizer.zero_grad()
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            loss = loss_of(model.network(pixels), labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, cfg.trainer.gradient_clip_val)
        optimizer.step()
        schedule.step()
        if half:
            torch.cuda.synchronize()
        times.append(now())
        if len(times) == steps:
            break
    return times


def _indexed(datamodule: Any, device: torch.device) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
    images = torch.from_numpy(np.array(datamodule.faces.images[datamodule.split.train])).to(device)
    labels = torch.from_numpy(datamodule.labels).to(device)
    for rows in datamodule.sampler.rank_entries()[0].to(device).split(datamodule.loading.batch_size):
        yield images[rows], labels[rows]


def _timed(way: Callable[[], list[float]]) -> float:
    return step(way())


def step(times: list[float]) -> float:
    """Seconds of a typical step; the first few are warm-up."""
    return float(np.median(np.diff(times)[3:]))


def main() -> None:
    """Print one row for each network and batch size."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|could not find the monitored key).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from fer_lightning.data import synthetic

    faces = synthetic.draw(6000)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    more = [] if device.type == "cuda" else ["trainer.accelerator=cpu"]
    rows = []
    for name, (size, batches) in NETWORKS.items():
        for batch in batches:
            cfg = compose(name, size, batch, arguments.steps, more)
            ways = {"bare": partial(bare_loop, cfg, faces, device), "run": partial(run_times, cfg, faces)}
            found = alternate({name: partial(_timed, way) for name, way in ways.items()}, arguments.rounds)
            bare, run = (1000 * median(found[each]) for each in ("bare", "run"))
            ranges = [spread([1000 * value for value in found[each]]) for each in ("bare", "run")]
            rows.append([name, size, batch, bare, ranges[0], run, ranges[1], run - bare, 100 * (run / bare - 1)])
    columns = ["network", "px", "batch", "bare, ms", "range", "run, ms", "range ", "overhead, ms", "overhead, %"]
    kind = "wall" if torch.cuda.is_available() else "processor"
    show(f"step overhead, milliseconds of {kind} time", columns, rows)


if __name__ == "__main__":
    main()
