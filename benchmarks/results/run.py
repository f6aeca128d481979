"""One part of the results on all of FER-2013: a sweep within a time limit, and what is to be kept of it, packed.

    python benchmarks/results/run.py paper --data fer2013.zip --weights tf_efficientnetv2_b0.safetensors --out packed

Parts: ``paper_tune``, ``paper``, ``paper_full``, ``tune``, ``methods``, ``search``, ``strongest``, ``speed`` and
``speed_sweep``; ``PARTS`` says what each is for. Words at the end are further overrides, such as the recipe that
``tune`` found. At the limit the running jobs save and stop, and the finished ones are packed. The same command
continues with the missing ones, in the same checkout or, with the archives given by ``--packed``, in another one.
``page.py`` writes the page of the packed parts.

``--rehearse`` runs a cut of a few hundred images and one epoch, on any machine: it shows that the scripts work and
nothing else.
"""

import argparse
import json
import lzma
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT / "benchmarks"))

import pandas as pd
import torch
from safetensors.torch import save_file

from fer_lightning.model.checkpoint import read_checkpoint
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime.provenance import git_commit
from measure import machine

MAX_BYTES = 12 * 2**20
"""Size in bytes from which another archive is started, so that none is larger than 16 MiB."""

SECONDS_TO_SAVE = 45

ALL = (
    "none,undersample,undersample_redraw,oversample,sqrt_sampler,progressive_sampler,weighted,sqrt_weighted,"
    "class_balanced,weighted_bce,focal,class_balanced_focal,balanced_softmax,logit_adjusted,posthoc_logit_adjusted,"
    "vs,ldam_drw,dbm,gcl,crt,lws,label_aware_smoothing,los,marc,weight_balancing,tau_norm,imbsam,focal_sam,mixup,remix,cmo"
)
ARMS = "experiment=paper,paper_undersample,paper_weighted,paper_focal"


@dataclass(frozen=True)
class Part:
    """A sweep.

    Attributes:
        purpose: what it is for, one line.
        overrides: of the sweep.
        cut: instead of these, for a rehearsal.
        strongest: its runs are scored with test-time augmentation too, and the best one's weights are packed.
    """

    purpose: str
    overrides: Sequence[str]
    cut: Sequence[str]
    strongest: bool = False


SMALL = ("split.train_size=300", "trainer.max_epochs=1", "model.image_size=48", "trainer.accelerator=cpu")
PARTS = {
    "paper_tune": Part(
        "the backbone's learning rate, which the paper leaves open, chosen on images cut from its training set",
        (
            *("experiment=paper,paper_undersample", "test=false", "split.val_fraction=0.15", "seed=100,101"),
            "optim.backbone_lr_scale=0.1,0.3,1.0",
        ),
        (
            *("experiment=paper,paper_undersample", "test=false", "split.val_fraction=0.15", "seed=100"),
            *("optim.backbone_lr_scale=0.1,0.3", *SMALL),
        ),
    ),
    "paper": Part(
        "the paper's protocol, two epochs, both test sets",
        (ARMS, "seed=range(10)"),
        (ARMS, "seed=0,1", *SMALL),
    ),
    "paper_full": Part(
        "the paper's split and arms with a full training budget",
        (
            *(ARMS, "seed=range(5)", "optim=adamw", "augment=light", "budget=steps"),
            *("data.batch_size=128", "model.image_size=112", "trainer.max_epochs=20", "trainer.gradient_clip_val=1.0"),
        ),
        (ARMS, "seed=0,1", *SMALL),
    ),
    "tune": Part(
        "the baseline's recipe, chosen on validation for the plain loss; the methods share it",
        (
            *("experiment=official", "test=false", "seed=0,1", "model.image_size=64", "trainer.max_epochs=12"),
            *("data.batch_size=256", "optim.lr=0.0005,0.001,0.002", "augment=light,strong"),
        ),
        ("experiment=official", "test=false", "optim.lr=0.001,0.002", *SMALL),
    ),
    "methods": Part(
        "all methods with one recipe and equal steps",
        (
            *("experiment=official", f"imbalance={ALL}", "seed=range(5)"),
            *("model.image_size=64", "trainer.max_epochs=12", "data.batch_size=256"),
        ),
        ("experiment=official", "imbalance=none,weighted,crt", "seed=0,1", *SMALL, "trainer.max_epochs=2"),
    ),
    "search": Part(
        "the recipe of the strongest single model, chosen on validation",
        (
            *("experiment=strong", "test=false", "trainer.max_epochs=20", "augment=light,strong"),
            *("model.image_size=112,160", "optim.lr=0.0003,0.001", "optim.sam_rho=null,0.05"),
        ),
        ("experiment=strong", "test=false", "optim.sam_rho=null,0.05", *SMALL),
    ),
    "strongest": Part(
        "the chosen recipe, three seeds, tested once",
        ("experiment=strong", "seed=range(3)"),
        ("experiment=strong", "seed=0,1", *SMALL),
        strongest=True,
    ),
    "speed_sweep": Part(
        "the wall time of four methods and five seeds",
        ("experiment=official", "imbalance=none,undersample,weighted,focal", "seed=range(5)", "data.batch_size=256"),
        ("experiment=official", "imbalance=none,focal", "seed=0", *SMALL),
    ),
}

KEPT = ("metrics.json", "metrics.csv", "status.json", "train.log")
"""Of each finished run, besides its configuration, its predictions and the results with test-time augmentation."""


def main() -> None:
    """See above."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=[*PARTS, "speed"])
    parser.add_argument("overrides", nargs="*", help="further overrides of the sweep")
    parser.add_argument("--data", type=Path, required=True, help="fer2013.zip")
    parser.add_argument("--model", default="tf_efficientnetv2_b0", help="a choice of the model group")
    parser.add_argument("--weights", type=Path, help="its ImageNet weights; default: timm's hub")
    parser.add_argument(
        "--minutes", type=float, default=7.5, help="after which running jobs are asked to save and stop"
    )
    parser.add_argument("--at-once", type=int, default=8, help="jobs that share a GPU")
    parser.add_argument("--work", type=Path, default=Path("outputs/results"), help="folder of the sweeps")
    parser.add_argument("--packed", type=Path, nargs="*", default=[], help="archives of earlier calls to continue from")
    parser.add_argument("--out", type=Path, default=Path("outputs/results/packed"), help="folder for the archives")
    parser.add_argument("--commit", help="of the code, where it is not in a git checkout")
    parser.add_argument("--rehearse", action="store_true", help="a tiny cut, on any machine")
    options = parser.parse_intermixed_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if options.part == "speed":
        _measure_speed(options)
        return
    part, folder = PARTS[options.part], options.work.absolute() / options.part
    for archive in options.packed:
        with tarfile.open(archive) as content:
            content.extractall(folder.parent, filter="data")
    began = time.monotonic()
    words = sweep_words(part, options, folder)
    print(shlex.join(words), flush=True)
    code = run_within(words, 60 * options.minutes)
    if not folder.exists():
        raise SystemExit(code)  # refused; the reason is printed
    done = finished(folder)
    if part.strongest:
        for run in done:
            _augment_test(run, options.data)
    _note_call(folder, words, code, time.monotonic() - began, len(done), options)
    files = pack(folder, done, options.out, options.part)
    if part.strongest and done and (best_of(done) / "checkpoints" / "best.ckpt").exists():
        files += _pack_weights(best_of(done), options.out)
    for file in files:
        print(f"{file}: {file.stat().st_size / 2**20:.1f} MiB", flush=True)
    print(json.dumps({"part": options.part, "code": code, "finished": len(done), "files": list(map(str, files))}))


def sweep_words(part: Part, options: argparse.Namespace, folder: Path) -> list[str]:
    """The command line of a part's sweep, from ``fer_lightning`` on, as a user would type it."""
    weights = [f"model.weights={options.weights.absolute()}"] if options.weights else []
    given = {setting(word) for word in options.overrides}
    planned = [word for word in (part.cut if options.rehearse else part.overrides) if setting(word) not in given]
    return [
        *("-m", "hydra/launcher=parallel", f"jobs_per_device={options.at_once}", "logger=csv"),
        *(f"model={options.model}", *weights, f"data.path={options.data.absolute()}"),
        *planned,
        *options.overrides,
        f"hydra.sweep.dir={folder}",
    ]


def setting(override: str) -> str:
    """What an override sets."""
    return override.partition("=")[0].lstrip("+~")


def run_within(words: Sequence[str], seconds: float) -> int:
    """Run ``python -m fer_lightning``; ask it to save and stop when its time is over. Returns its exit code."""
    process = subprocess.Popen([sys.executable, "-m", "fer_lightning", *words], cwd=ROOT)
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.terminate()
    try:
        return process.wait(SECONDS_TO_SAVE)
    except subprocess.TimeoutExpired:
        process.kill()
        return process.wait()


def finished(folder: Path) -> list[Path]:
    """The run folders of the jobs that are done, in order."""
    status = {file.parent: json.loads(file.read_text())["status"] for file in sorted(folder.glob("*/status.json"))}
    return [run for run, word in status.items() if word == "done"]


def pack(folder: Path, runs: Sequence[Path], out: Path, name: str) -> list[Path]:
    """Write the sweep's record and its finished runs to ``<name>-1.tar.xz``, ``<name>-2.tar.xz``, ...

    Probabilities are rounded to six significant digits, which halves them and keeps small ones: six decimals would make
    zeros of them, each of which adds 87 nats to a likelihood. Scores were computed before.
    """
    for old in out.glob(f"{name}-*.tar.xz"):
        old.unlink()
    left, files = list(runs), []
    while left or not files:
        path = out / f"{name}-{len(files) + 1}.tar.xz"
        with (
            path.open("wb") as raw,
            lzma.open(raw, "wb", preset=3) as packed,
            tarfile.open(fileobj=packed, mode="w|") as archive,
        ):
            for record in () if files else ("sweep.json", "calls.jsonl", "trials.csv"):
                if (folder / record).exists():
                    archive.add(folder / record, f"{folder.name}/{record}")
            while left and raw.tell() < MAX_BYTES:
                _add(archive, left.pop(0), folder)
        files.append(path)
    return files


def _add(archive: tarfile.TarFile, run: Path, folder: Path) -> None:
    tables = [file for file in (run / "predictions.csv", *run.glob("tta/predictions*.csv")) if file.exists()]
    others = [*(run / name for name in KEPT), *(run / ".hydra").glob("*"), *run.glob("tta/metrics.json")]
    for file in others:
        if file.exists():
            archive.add(file, str(file.relative_to(folder.parent)))
    for file in tables:
        rounded = folder / "rounded.csv"
        pd.read_csv(file).to_csv(rounded, index=False, float_format="%.6g")
        archive.add(rounded, str(file.relative_to(folder.parent)))
        rounded.unlink()


def best_of(runs: Sequence[Path]) -> Path:
    """The run that scored best on validation."""
    metrics = {run: json.loads((run / "metrics.json").read_text()) for run in runs}
    return max(runs, key=lambda run: metrics[run][metrics[run]["monitor"]])


def _augment_test(run: Path, data: Path) -> None:
    if (run / "tta" / "metrics.json").exists() or not (run / "checkpoints" / "best.ckpt").exists():
        return
    command = [sys.executable, "-m", "fer_lightning.evaluate", run / "checkpoints" / "best.ckpt"]
    command += [f"data.path={data.absolute()}", "--out", run / "tta", "--tta", "flip,ten_crop"]
    subprocess.run(list(map(str, command)), cwd=ROOT, check=True)


def _pack_weights(run: Path, out: Path) -> list[Path]:
    """The weights of a run as float16, with what is needed to build the network again; and two of its pictures."""
    checkpoint = run / "checkpoints" / "best.ckpt"
    network = EmotionClassifier.load(checkpoint).network
    weights = {
        key: value.half().contiguous() if value.is_floating_point() else value
        for key, value in network.state_dict().items()
    }
    settings: dict[str, Any] = read_checkpoint(checkpoint)["hyper_parameters"]
    about = {"model": json.dumps(settings["model"]), "scorecard": json.dumps(settings["scorecard"])}
    file = out / f"{run.parent.name}.fp16.safetensors"
    save_file(weights, file, metadata=about)
    pictures = ("confusion_matrix", "mistakes")
    return [file, *(Path(shutil.copy(run / f"{name}.png", out / f"{run.parent.name}_{name}.png")) for name in pictures)]


def _note_call(
    folder: Path, words: Sequence[str], code: int, seconds: float, done: int, options: argparse.Namespace
) -> None:
    places = {str(options.data.absolute()): "fer2013.zip", str(folder): f"outputs/results/{folder.name}"}
    if options.weights:
        places[str(options.weights.absolute())] = "tf_efficientnetv2_b0.safetensors"
    line = " ".join(words)
    for place, name in places.items():
        line = line.replace(place, name)
    call = {
        "command": f"python -m fer_lightning {line}",
        "commit": options.commit or git_commit(),
        "machine": machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "seconds": round(seconds),
        "code": code,
        "finished": done,
        "rehearsal": options.rehearse,
    }
    with (folder / "calls.jsonl").open("a") as file:
        file.write(json.dumps(call) + "\n")


def _measure_speed(options: argparse.Namespace) -> None:
    """The GPU's benchmarks, alone on the machine; the JSON line of each is kept, and what has one is not run again."""
    weights = [f"model.weights={options.weights.absolute()}"] if options.weights else []
    recipe = ["experiment=official", "data.batch_size=256", "logger=csv", *weights, *options.overrides]
    file = options.out / "speed.jsonl"
    measured = [json.loads(line)["part"] for line in file.read_text().splitlines()] if file.exists() else []
    until = time.monotonic() + 60 * options.minutes
    missing = []
    for part, arguments in {
        "throughput": ["--models", "efficientnet_b0", "--sizes", "96", "112", "224", "--batches", "512", "1024"],
        "accuracy": ["--seeds", "1", "--run", *recipe],
    }.items():
        if part in measured:
            continue
        command = [sys.executable, ROOT / "benchmarks" / "gpu.py", part, "--data", options.data, *arguments]
        command += ["--rehearse"] if options.rehearse else []
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, start_new_session=True)
        try:
            output, _ = process.communicate(timeout=max(1, until - time.monotonic()))
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)  # the training that it started, too
            output, _ = process.communicate()
            print(output, flush=True)
            missing.append(f"{part} (out of time)")
            continue
        print(output, flush=True)
        if process.returncode == 0 and (line := output.strip().splitlines()[-1]).startswith("{"):
            about = {"part": part, "commit": options.commit or git_commit(), "rehearsal": options.rehearse}
            with file.open("a") as lines:
                lines.write(json.dumps({**json.loads(line), **about}) + "\n")
        else:
            missing.append(part)
    if missing:
        raise SystemExit(f"error: not measured: {', '.join(missing)}")


if __name__ == "__main__":
    main()
