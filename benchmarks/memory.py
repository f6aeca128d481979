"""Memory of a training run by workers and by processes, from what Linux says of the processes themselves.

    python benchmarks/memory.py --data fer2013.zip

Each row is a real run. Counted is the proportional set size (``/proc/PID/smaps_rollup``) of all its processes, in
which a page that several share is divided among them: a plain resident size would count the images once for each. The
largest of some seconds in mid-training.
"""

import argparse
import os
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import median, show

BARE = """
import sys, time, torch
torch.set_num_threads(1)
import fer_lightning.training.run
from fer_lightning.model.classifier import EmotionClassifier
head = {"hidden": [512], "activation": "ReLU", "batch_norm": True, "dropout": 0.5}
settings = {"name": "test_efficientnet", "weights": "none", "in_channels": 1, "image_size": 48, "stem_stride": 2}
model = EmotionClassifier({**settings, "drop_path": 0.0, "head": head, "freeze_epochs": 0}, {}, [1] * 7, {}, {})
optimizer = torch.optim.AdamW(model.parameters(), fused=True)
for _ in range(3):
    model(torch.zeros(32, 48, 48, dtype=torch.uint8)).sum().backward()
    optimizer.step()
print("ready", flush=True)
time.sleep(60)
"""
"""A process with everything imported and a model trained, but without data: what a rank costs in any case."""


def tree(root: int) -> list[int]:
    """A process and all below it."""
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                parents[int(entry.name)] = int((entry / "stat").read_text().rpartition(")")[2].split()[1])
            except OSError:
                continue
    found = [root]
    for process in found:
        found += [child for child, parent in parents.items() if parent == process]
    return found


def megabytes(root: int) -> float:
    """Proportional set size of a process and all below it."""
    total = 0
    for process in tree(root):
        try:
            lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        except OSError:
            continue
        total += sum(int(line.split()[1]) for line in lines if line.startswith("Pss:"))
    return total / 1024


def peak(root: int, seconds: float) -> float:
    """The largest of ``megabytes`` for some seconds."""
    until, largest = time.monotonic() + seconds, 0.0
    while time.monotonic() < until:
        largest = max(largest, megabytes(root))
        time.sleep(0.25)
    return largest


def run(data: str | None, backend: str, workers: int, ranks: int, seconds: float) -> float:
    """Memory of one run in mid-training."""
    source = [f"data.path={Path(data).absolute()}"] if data else ["data=synthetic", "data.source.images=20000"]
    overrides = [
        *source,
        *(
            "model=test_efficientnet",
            "model.image_size=48",
            "model.stem_stride=2",
            "logger=csv",
            "trainer.accelerator=cpu",
        ),
        *(f"augment.backend={backend}", f"data.num_workers={workers}", f"trainer.devices={ranks}"),
        *("data.batch_size=64", "trainer.max_epochs=1000", "save_every_n_steps=20"),
    ]
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fer_lightning", *overrides, f"hydra.run.dir={folder}/run"]
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parent.parent)}
        errors = Path(folder) / "errors"
        with errors.open("w") as file:  # a pipe that nobody reads would fill up and stop the run
            process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL, stderr=file)
        try:
            while not (Path(folder) / "run" / "checkpoints" / "last.ckpt").exists():
                if process.poll() is not None:
                    raise SystemExit(errors.read_text() or "the run ended")
                time.sleep(0.2)
            return peak(process.pid, seconds)
        finally:
            process.send_signal(signal.SIGINT)
            try:
                process.wait(30)
            except subprocess.TimeoutExpired:
                process.kill()


def bare() -> float:
    """Memory of a process without data."""
    root = str(Path(__file__).parent.parent)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": root}
    with subprocess.Popen([sys.executable, "-c", BARE], env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == "ready"
        found = peak(process.pid, 1)
        process.kill()
    return found


def main() -> None:
    """Print one row for each set-up."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="fer2013.zip; without it drawn faces, which each process draws for itself")
    parser.add_argument("--seconds", type=float, default=5)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    alone = median([bare() for _ in range(arguments.rounds)])
    setups = [(backend, workers, 1) for backend in ("batched", "albumentations") for workers in (0, 2, 4)]
    setups.append(("batched", 0, 2))
    found = {
        setup: median([run(arguments.data, *setup, arguments.seconds) for _ in range(arguments.rounds)])
        for setup in setups
    }
    rows: list[list[object]] = [["a process without data", 0, 1, alone, "", ""]]
    for (backend, workers, ranks), value in found.items():
        first = found[backend, 0, 1]
        extra = (value - first) / (ranks - 1) - alone if ranks > 1 else ""
        rows.append([backend, workers, ranks, value, value / first, extra])
    columns = ["augment.backend", "workers", "processes", "MB", "relative to 0 workers", "MB per rank beyond a process"]
    data = "FER-2013" if arguments.data else "drawn faces"
    show(f"memory while training on {data}", columns, rows)


if __name__ == "__main__":
    main()
