"""Training speed on a GPU: images/s by network, size, batch and way of compiling; and what of it the input costs.

    python benchmarks/gpu.py --data fer2013.zip throughput
    python benchmarks/gpu.py --data fer2013.zip accuracy      # seconds to 65 and 70 % of PrivateTest
    python benchmarks/gpu.py --data fer2013.zip sweep         # four methods x five seeds, wall time

Without a GPU it says so and ends; ``--rehearse`` runs a tiny cut of it on the CPU instead.

``throughput``: the bare step of ``step_overhead.py`` in bfloat16 with augmentation, fed by the data path, and the same
step fed one resident batch, which is the ceiling; their difference is the input-bound share. Rounds alternate. The
memory roof is 20 passes over the activations of efficientnet_b0 in two bytes each at the card's bandwidth, which
``--bandwidth`` gives in TB/s (an H100 SXM has 3.35, an H200 4.8 by their data sheets).
"""

import argparse
import json
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import torch

from measure import alternate, median, show

ACTIVATIONS = {48: 0.33e6, 64: 0.55e6, 96: 1.24e6, 112: 1.73e6, 224: 6.74e6}
"""Outputs of efficientnet_b0's convolutions per image, by input size."""

SIZES, BATCHES = (48, 64, 96, 112, 224), (24, 128, 512, 1024, 2048)
MODES: dict[str, dict[str, Any] | None] = {
    "eager": None,
    "compiled": {"dynamic": False},
    "graphs": {"dynamic": False, "mode": "reduce-overhead"},
}


class Step:
    """One training step of one set-up, warm."""

    def __init__(self, name: str, size: int, batch: int, mode: str, faces: Any, device: torch.device) -> None:
        import timm.optim
        from step_overhead import compose, parts

        from fer_lightning.model.optimizer import parameter_groups

        accelerator = [] if device.type == "cuda" else ["trainer.accelerator=cpu"]
        cfg = compose(name, size, batch, 1, ["augment=light", *accelerator])
        self.datamodule, model = parts(cfg, faces)
        self.device, self.size, self.batch = device, size, batch
        self.model = model.to(device).train()
        if (arguments := MODES[mode]) is not None:
            self.model.network.compile(**arguments)
        groups = parameter_groups(self.model.network, 1e-3, 0.05, None, 1.0)
        self.optimizer = timm.optim.create_optimizer_v2(groups, opt="adamw", lr=1e-3, fused=True)
        self.loss = model.loss.to(device)
        images = torch.randint(0, 256, (batch, size, size), device=device).float()
        self.resident = (images, torch.arange(batch, device=device) % 7)
        # As the trainer would: its batches are made on its device.
        self.datamodule.trainer = _TrainerOn(device)
        for _ in range(3):
            self(self.resident)

    def __call__(self, batch: tuple[torch.Tensor, torch.Tensor]) -> None:
        images, labels = batch
        self.optimizer.zero_grad()
        with torch.autocast(self.device.type, torch.bfloat16, enabled=self.device.type == "cuda"):
            loss = self.loss(self.model.network(self.model.prepare(images, self.size)), labels).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(self.model.network.parameters(), 1.0)
        self.optimizer.step()

    def batches(self) -> Iterator[Any]:
        """The data path's own, epoch after epoch."""
        loader = self.datamodule.train_dataloader()
        for epoch in range(10**6):
            self.datamodule.sampler.set_epoch(epoch)
            for batch in loader:
                yield self.datamodule.on_after_batch_transfer(batch, 0)

    def images_per_second(self, batches: Iterator[Any], steps: int) -> float:
        """Of some steps, the device awaited at the end alone."""
        self(next(batches))
        _wait(self.device)
        before = time.perf_counter()
        for _ in range(steps):
            self(next(batches))
        _wait(self.device)
        return self.batch * steps / (time.perf_counter() - before)


class _TrainerOn:
    """As much of a trainer as the data module asks for."""

    world_size = 1

    def __init__(self, device: torch.device) -> None:
        self.strategy = type("Strategy", (), {"root_device": device})


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize()


def throughput(arguments: argparse.Namespace, faces: Any, device: torch.device) -> None:
    """Print one row for each set-up; what does not fit into memory is reported and skipped."""
    rows = []
    for name in arguments.models:
        for size in arguments.sizes:
            for batch in arguments.batches:
                for mode in arguments.modes:
                    torch.compiler.reset()
                    started = time.perf_counter()
                    try:
                        step = Step(name, size, batch, mode, faces, device)
                    except torch.OutOfMemoryError:
                        print(f"{name} {size} px, batch {batch}, {mode}: out of memory", flush=True)
                        continue
                    warm = time.perf_counter() - started
                    steps = max(2, arguments.images // batch)
                    feeds: dict[str, Callable[[], Iterator[Any]]] = {
                        "input": step.batches,
                        "ceiling": lambda step=step: iter(lambda: step.resident, None),  # type: ignore[misc]  # a default in a lambda
                    }
                    measured = alternate(
                        {key: partial(_fed, step, feed, steps) for key, feed in feeds.items()}, arguments.rounds
                    )
                    fed, ceiling = median(measured["input"]), median(measured["ceiling"])
                    roof = ""
                    if arguments.bandwidth and name == "efficientnet_b0" and size in ACTIVATIONS:
                        roof = 100 * fed * 40 * ACTIVATIONS[size] / (arguments.bandwidth * 1e12)
                    rows.append([name, size, batch, mode, fed, ceiling, 100 * (1 - fed / ceiling), roof, warm])
                    print(json.dumps(rows[-1]), flush=True)
    columns = [
        "network",
        "px",
        "batch",
        "mode",
        "images/s",
        "ceiling",
        "input-bound, %",
        "of 20-pass roof, %",
        "warm-up, s",
    ]
    show("training throughput", columns, rows)


def _fed(step: Step, feed: Callable[[], Iterator[Any]], steps: int) -> float:
    return step.images_per_second(feed(), steps)


def _train(overrides: list[str], out: Path) -> float:
    command = [sys.executable, "-m", "fer_lightning", *overrides]
    out.mkdir(parents=True, exist_ok=True)
    before = time.perf_counter()
    with (out / "output.log").open("w") as log:
        root = Path(__file__).parent.parent
        code = subprocess.run(command, stdout=log, stderr=subprocess.STDOUT, cwd=root).returncode
    if code:
        raise SystemExit(f"error: a run failed with {code}: {out / 'output.log'} says why")
    return time.perf_counter() - before


def accuracy(arguments: argparse.Namespace) -> None:
    """Print wall and training seconds, and the test accuracy, of runs of growing length."""
    rows = []
    for epochs in arguments.epochs:
        for seed in range(arguments.seeds):
            folder = arguments.out / f"accuracy-{epochs}-{seed}"
            wall = _train(
                [*arguments.run, f"trainer.max_epochs={epochs}", f"seed={seed}", f"hydra.run.dir={folder}"], folder
            )
            metrics = json.loads((folder / "metrics.json").read_text())
            found = (metrics["train/seconds"], 100 * metrics["val/accuracy"], 100 * metrics["test/accuracy"])
            rows.append([epochs, seed, wall, *found])
            print(json.dumps(rows[-1]), flush=True)
    columns = ["epochs", "seed", "wall, s", "training, s", "PublicTest, %", "PrivateTest, %"]
    show("time to accuracy", columns, rows, command=arguments.run)


def sweep(arguments: argparse.Namespace) -> None:
    """Print the wall time of the four methods over several seeds."""
    folder = arguments.out / "sweep"
    methods, seeds = "none,undersample,weighted,focal", ",".join(map(str, range(arguments.seeds)))
    overrides = ["-m", "hydra/launcher=parallel", f"imbalance={methods}", f"seed={seeds}", *arguments.run]
    wall = _train(
        [*overrides, f"trainer.max_epochs={arguments.epochs[-1]}", f"hydra.sweep.dir={folder}"], folder.parent / "log"
    )
    jobs = len(list(folder.rglob("metrics.json")))
    show("sweep of four methods", ["jobs done", "wall, s"], [[jobs, wall]], command=overrides)


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["throughput", "accuracy", "sweep"])
    parser.add_argument("--data", help="fer2013.zip; default: drawn faces, which the output states")
    parser.add_argument("--models", nargs="+", default=["efficientnet_b0", "tf_efficientnetv2_b0"])
    parser.add_argument("--sizes", type=int, nargs="+", default=SIZES)
    parser.add_argument("--batches", type=int, nargs="+", default=BATCHES)
    parser.add_argument("--modes", nargs="+", choices=list(MODES), default=list(MODES))
    parser.add_argument("--images", type=int, default=20_000, help="of one measurement")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--bandwidth", type=float, help="of the card's memory, TB/s")
    parser.add_argument("--epochs", type=int, nargs="+", default=[3, 6, 12, 30])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--run", nargs="*", default=["experiment=official"], help="overrides of the runs")
    parser.add_argument(
        "--out",
        type=Path,
        default=Path("outputs/benchmarks/gpu", time.strftime("%Y-%m-%d_%H-%M-%S")),
        help="new folder",
    )
    parser.add_argument("--rehearse", action="store_true", help="a tiny cut on the CPU")
    arguments = parser.parse_args()
    arguments.out = arguments.out.absolute()
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu" and not arguments.rehearse:
        print("no GPU here: nothing was measured (--rehearse runs a tiny cut on the CPU)")
        return
    arguments.run = [*arguments.run, *([f"data.path={Path(arguments.data).absolute()}"] if arguments.data else [])]
    if arguments.rehearse:
        torch.set_num_threads(1)
        arguments.models, arguments.sizes, arguments.batches = ["test_efficientnet"], [48], [24]
        arguments.modes, arguments.images, arguments.rounds = ["eager"], 100, 1
        arguments.epochs, arguments.seeds = [1], 1
        arguments.run = ["experiment=demo", "data.source.images=500"]
    if arguments.part == "throughput":
        from fer_lightning.data import fer2013, synthetic

        use_files = arguments.data and not arguments.rehearse
        throughput(arguments, fer2013.load(arguments.data) if use_files else synthetic.draw(6000), device)
    else:
        {"accuracy": accuracy, "sweep": sweep}[arguments.part](arguments)


if __name__ == "__main__":
    main()
