"""Where one training step spends its time: by section, and by operation of torch.

    python benchmarks/profile_step.py

The step of ``gpu.py`` with its input, on the GPU where there is one, else on the CPU with one thread.
"""

import argparse
import logging
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from gpu import Step
from torch.profiler import ProfilerActivity, profile, record_function

from measure import show


def main() -> None:
    """Print two tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="efficientnet_b0")
    parser.add_argument("--size", type=int, default=96)
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--mode", default="eager")
    parser.add_argument("--steps", type=int, default=5)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    from fer_lightning.data import synthetic
    from fer_lightning.model.step_metrics import training_metrics

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    step = Step(arguments.model, arguments.size, arguments.batch, arguments.mode, synthetic.draw(6000), device)
    batches = step.batches()
    step(next(batches))
    metrics = training_metrics(7).to(device)
    on_gpu = device.type == "cuda"
    with profile(activities=[ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_gpu else [])]) as profiler:
        for _ in range(arguments.steps):
            profiled_step(step, batches, metrics)
    title = f"{arguments.model} at {arguments.size} px, batches of {arguments.batch}, {arguments.mode}"
    show_tables(profiler.key_averages(), title, arguments.steps, on_gpu)


def profiled_step(step: Step, batches: Iterator[Any], metrics: Any) -> None:
    """One training step, its sections recorded under their names."""
    model, optimizer = step.model, step.optimizer
    device = step.device.type
    with record_function("section: input (index, augment)"):
        images, labels = next(batches)
    with record_function("section: normalise"):
        pixels = model.prepare(images, step.size)
    optimizer.zero_grad()
    with record_function("section: forward"), torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
        logits = model.network(pixels)
    with record_function("section: loss and metrics"):
        loss = step.loss(logits, labels).mean()
        metrics.update(logits.detach(), labels)
    with record_function("section: backward"):
        loss.backward()
    with record_function("section: clip"):
        torch.nn.utils.clip_grad_norm_(model.network.parameters(), 1.0)
    with record_function("section: optimizer"):
        optimizer.step()


def show_tables(events: Any, title: str, steps: int, on_gpu: bool) -> None:
    """Print the sections, and the 14 operations that take the most time."""

    def total(event: object) -> float:
        return getattr(event, "device_time_total" if on_gpu else "cpu_time_total") / 1000 / steps

    def own(event: object) -> float:
        return getattr(event, "self_device_time_total" if on_gpu else "self_cpu_time_total") / 1000 / steps

    sections = [event for event in events if event.key.startswith("section: ")]
    whole = sum(total(event) for event in sections)
    rows = [[event.key.removeprefix("section: "), total(event), 100 * total(event) / whole] for event in sections]
    show(f"sections of a step, {title}", ["section", "ms", "%"], sorted(rows, key=lambda row: -float(row[1])))
    operations = sorted((event for event in events if not event.key.startswith("section: ")), key=own, reverse=True)[
        :14
    ]
    rows = [[event.key, event.count // steps, own(event), 100 * own(event) / whole] for event in operations]
    show(f"operations of a step, {title}", ["operation", "calls", "ms", "%"], rows)


if __name__ == "__main__":
    main()
