"""Keep the runs behind docs/results.md in the repository, without their checkpoints and pictures.

    python benchmarks/results.py pack outputs/results/paper
    python benchmarks/results.py unpack docs/results/paper

The first writes the finished runs of a sweep to docs/results/paper/runs.tar.xz. The second puts them back into
outputs/results/paper, in this checkout or in another one: there ``python -m fer_lightning.sweep resume`` continues with
the runs that are missing, and ``python -m fer_lightning.compare`` reads them. A folder of several
sweeps is kept likewise. The scores of searches (trials.csv) are also written beside the archive.
"""

import argparse
import fnmatch
import io
import lzma
import re
import sys
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT))  # the checkout beside it, not an installed copy

from fer_lightning.comparison.runs import find_runs
from fer_lightning.runtime.errors import one_line
from fer_lightning.runtime.files import read_json
from fer_lightning.runtime.run_folder import read_status

RUNS, KEPT = ROOT / "outputs" / "results", ROOT / "docs" / "results"

OF_SWEEP = ("sweep.json", "multirun.yaml", "trials.csv")
MAX_UNPACKED, MAX_FILES = 1 << 30, 10_000
"""Bytes and number of the files that are put back."""

OF_RUN = ("status.json", "metrics.json", "metrics.csv", ".hydra/*.yaml", "predictions.csv", "tta/metrics.json")


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("command", choices=["pack", "unpack"])
    parser.add_argument("folder", type=Path, help="of the sweep, or of what was kept of it")
    options = parser.parse_args()
    file = KEPT / options.folder.absolute().name / "runs.tar.xz"
    if options.command == "pack":
        print(f"{file}: {pack(options.folder, file)} finished runs, {file.stat().st_size / 2**20:.1f} MiB")
    elif not file.exists():
        kept = ", ".join(sorted(str(path.parent.relative_to(ROOT)) for path in KEPT.glob("*/runs.tar.xz")))
        sys.exit(f"error: {options.folder}: no runs are kept there (no {file.name}); there are runs in {kept}")
    else:
        try:
            unpack(file)
        except (EOFError, OSError, ValueError, lzma.LZMAError, tarfile.TarError) as error:
            sys.exit(f"error: {file}: is damaged, or not what pack writes ({one_line(error)}); check it out again")
        print(RUNS / file.parent.name)


def pack(folder: Path, file: Path) -> int:
    """Write the finished runs of a sweep, or of the sweeps in a folder, to an archive; returns how many."""
    folder = folder.resolve()
    sweeps = sorted(path.parent for path in folder.rglob("sweep.json"))
    checkouts = {sweep: read_json(sweep / "sweep.json")["cwd"] for sweep in sweeps}
    if "/" in checkouts.values():  # it is replaced in every file
        sys.exit(f"error: {folder}: was started in /; start a sweep in the checkout")
    runs = [run for run in find_runs([folder]) if read_status(run)["status"] == "done"]
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w:xz", preset=9) as archive:
        for path in _kept(sweeps, runs):
            sweep = next(sweep for sweep in sweeps if path.is_relative_to(sweep))
            content = _content(path, checkouts[sweep])
            member = tarfile.TarInfo(str(path.relative_to(folder.parent)))
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    trials = {sweep.name: pd.read_csv(sweep / "trials.csv") for sweep in sweeps if (sweep / "trials.csv").exists()}
    if trials:
        named = [frame.assign(sweep=name) if len(sweeps) > 1 else frame for name, frame in trials.items()]
        pd.concat(named).to_csv(file.with_name("trials.csv"), index=False)
    return len(runs)


def unpack(file: Path) -> None:
    """Put the runs of an archive back, if all its members are files of runs or sweeps of its name, and small enough.

    Raises:
        ValueError: they are not; nothing was written.
    """
    kept = re.compile(
        rf"{re.escape(file.parent.name)}/([^/]+/){{0,2}}({'|'.join(map(fnmatch.translate, OF_SWEEP + OF_RUN))})"
    )
    with tarfile.open(file) as archive:
        members, total = [], 0
        for member in archive:
            members.append(member)
            total += member.size
            if not member.isfile() or ".." in member.name.split("/") or not kept.fullmatch(member.name):
                raise ValueError(f"it holds {member.name[:100]!r}")
            if total > MAX_UNPACKED or len(members) > MAX_FILES:
                raise ValueError(f"more than {MAX_UNPACKED >> 20} MiB or {MAX_FILES:,} files")
        archive.extractall(RUNS, members, filter="data")


def _kept(sweeps: list[Path], runs: list[Path]) -> Iterator[Path]:
    yield from (sweep / name for sweep in sweeps for name in OF_SWEEP if (sweep / name).exists())
    for pattern in OF_RUN:  # files of one kind together: they compress better
        yield from (path for run in runs for path in sorted(run.glob(pattern)))


def _content(path: Path, started_in: str) -> bytes:
    """Of a file: without the path of the checkout, and probabilities to six significant digits.

    What was unpacked has no such path. Six decimals would make zeros of small probabilities, each of which adds 87 nats
    to a likelihood.
    """
    if path.name == "predictions.csv":
        return pd.read_csv(path).to_csv(index=False, float_format="%.6g").encode()
    text = path.read_text()
    return (text.replace(started_in, ".") if Path(started_in).is_absolute() else text).encode()


if __name__ == "__main__":
    main()
