"""Seconds from Enter: to the help, to a mistake's one line, to the end of the first training step.

    python benchmarks/start.py --data fer2013.zip

Real processes, wall time. The first training step is there when its checkpoint is (``save_every_n_steps=1``), so a few
hundredths of a second later. The data are in the cache, as from the second run on.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from measure import median, show, spread

ROOT = Path(__file__).parent.parent
COMMANDS = {
    "--help": ["--help"],
    "a mistake": ["imbalance=focal", "imbalance.loss.gama=3"],
    "a wrong choice": ["imbalance=focul"],
}


def whole(arguments: list[str], folder: str) -> float:
    """Seconds of a command."""
    before = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "fer_lightning", *arguments], cwd=folder, env=_environment(), capture_output=True
    )
    return time.perf_counter() - before


def first_step(arguments: list[str], folder: str) -> float:
    """Seconds until a run's first checkpoint."""
    with tempfile.TemporaryDirectory(dir=folder) as name:
        run = Path(name) / "run"
        command = [sys.executable, "-m", "fer_lightning", *arguments, "save_every_n_steps=1", f"hydra.run.dir={run}"]
        before = time.perf_counter()
        process = subprocess.Popen(
            command, cwd=folder, env=_environment(), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        try:
            while not (run / "checkpoints" / "last.ckpt").exists():
                if process.poll() is not None:
                    raise SystemExit(process.stderr.read() if process.stderr else "the run ended")
                time.sleep(0.01)
            return time.perf_counter() - before
        finally:
            process.kill()
            process.wait()


def _environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(ROOT)}


def main() -> None:
    """Print one row for each command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="fer2013.zip; without it drawn faces, which are drawn first")
    parser.add_argument("--rounds", type=int, default=5)
    arguments = parser.parse_args()
    source = [f"data.path={Path(arguments.data).absolute()}"] if arguments.data else ["data=synthetic"]
    training = [*source, "model.weights=none", "trainer.accelerator=cpu", "logger=csv"]
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for name, command in COMMANDS.items():
            times = [whole(command, folder) for _ in range(arguments.rounds + 1)][1:]
            rows.append([name, median(times), spread(times)])
        times = [first_step(training, folder) for _ in range(arguments.rounds + 1)][1:]
        rows.append(
            [
                f"first step, {'FER-2013' if arguments.data else 'drawn faces'}, efficientnet_b0",
                median(times),
                spread(times),
            ]
        )
    show("seconds from Enter", ["what", "seconds", "range"], rows)


if __name__ == "__main__":
    main()
