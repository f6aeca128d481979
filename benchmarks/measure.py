"""What every benchmark here shares: rounds that alternate, medians, the machine, a table and one JSON line."""

import json
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("NO_ALBUMENTATIONS_UPDATE", "1")
sys.path.insert(0, str(Path(__file__).parent.parent))  # the checkout beside it, not an installed copy

from rich.console import Console
from rich.table import Table


def alternate(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Measure A B C A B C ...: what slows the machine for a while slows all of them.

    Args:
        contestants: each returns one measurement.
        rounds: of all of them; one more before is thrown away.
    """
    found: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, measure in contestants.items():
            value = measure()
            if number:
                found[name].append(value)
    return found


def cpu_seconds(work: Callable[[], Any]) -> float:
    """Processor time of this process, its threads included."""
    before = time.process_time()
    work()
    return time.process_time() - before


def machine() -> str:
    """Processor, cores, GPU and versions in one line."""
    import torch

    names = [line.split(":")[1] for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line]
    parts = [f"{(names or [platform.processor()])[0].strip()}, {os.cpu_count()} cores"]
    if torch.cuda.is_available():
        parts.append(torch.cuda.get_device_name())
    return ", ".join([*parts, f"torch {torch.__version__.split('+')[0]}, {torch.get_num_threads()} thread(s)"])


def show(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]], **more: Any) -> None:
    """Print a table, the machine, and everything again as the last line for programs."""
    table = Table(*columns, title=title, title_justify="left")
    for row in rows:
        table.add_row(*(f"{cell:,.3g}" if isinstance(cell, float) else str(cell) for cell in row))
    console = Console(width=max(100, Console().width))
    console.print(table)
    console.print(machine(), highlight=False)
    result = {"benchmark": title, "machine": machine(), **more}
    print(json.dumps({**result, "rows": [dict(zip(columns, row, strict=True)) for row in rows]}), flush=True)


def median(values: Sequence[float]) -> float:
    """The middle value."""
    return float(statistics.median(values))


def spread(values: Sequence[float]) -> str:
    """Smallest and largest value."""
    return f"{min(values):,.3g} to {max(values):,.3g}"
