"""A whole training epoch: timm's loader and a bare loop against a run.

    python benchmarks/epoch.py --data fer2013.zip

The same network, optimizer, number of images and of steps, and the same kind of changes as ``data_path.py``. Time of
the training steps, without validation and start: processor time on a CPU, wall time on a GPU. Rounds alternate.
"""

import argparse
import logging
import tempfile
import warnings
from pathlib import Path

import numpy as np
import torch
from data_path import timm_loader, write_folder
from step_overhead import bare_loop, compose, run_times

from measure import alternate, median, show, spread


def main() -> None:
    """Print one row for each contestant."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="fer2013.zip; default: drawn faces, which the output states")
    parser.add_argument("--images", type=int, default=1024)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int, default=48)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    warnings.filterwarnings("ignore", message=".*(LeafSpec|could not find the monitored key).*")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from fer_lightning.data import fer2013, synthetic

    faces = fer2013.load(arguments.data) if arguments.data else synthetic.draw(arguments.images * 5 // 4 + 200)
    training = np.flatnonzero(faces.usage == 0)
    rows = np.sort(np.random.default_rng(0).choice(training, min(arguments.images, len(training)), replace=False))
    steps = len(rows) // 64
    more = [f"split.train_size={len(rows)}", "augment=light"]
    more += [] if torch.cuda.is_available() else ["trainer.accelerator=cpu"]
    cfg = compose(arguments.model, arguments.size, 64, steps, more)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    with tempfile.TemporaryDirectory() as name:
        write_folder(faces, rows, Path(name))
        loader = timm_loader(Path(name), arguments.size)

        def peer() -> float:
            batches = ((images.to(device), labels.to(device)) for images, labels in loader)
            times = bare_loop(cfg, faces, device, batches, ready=True)
            return times[-1] - times[0]

        def ours() -> float:
            times = run_times(cfg, faces)
            return times[-1] - times[0]

        contestants = {"timm's loader, bare loop": peer, "a run": ours}
        found = alternate(contestants, arguments.rounds)
    baseline = median(found["timm's loader, bare loop"])
    images = (steps - 1) * 64  # between the end of the first step and that of the last
    table = []
    for key, values in found.items():
        seconds = median(values)
        table.append([key, seconds, spread(values), images / seconds, seconds / baseline])
    data = "drawn faces" if faces.synthetic else "FER-2013"
    show(
        f"whole epoch, {len(rows):,} images of {data}, {arguments.model} at {arguments.size} px, batches of 64",
        ["contestant", "seconds", "range", "images/s", "relative to the peer"],
        table,
    )


if __name__ == "__main__":
    main()
