"""Proof that a killed and resumed run ends with the same bits: ``python tests/kill_and_resume.py``.

Each trial is a real process that is ended with SIGKILL at a random moment (in a training step, while validating, in the
middle of writing a checkpoint, while the results are written, or at any time), resumed with ``resume=auto``, sometimes
killed again, and compared with a run that nobody disturbed: raw and averaged weights, optimizer, schedule, random
states, curves, scores and predictions. Processes are forked from one that has imported everything, so that a trial
takes seconds.
"""

import argparse
import hashlib
import itertools
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import pandas as pd
import torch

from fer_lightning.__main__ import main as fer_lightning
from fer_lightning.evaluation import artifacts
from fer_lightning.model.classifier import EmotionClassifier
from fer_lightning.runtime import files
from fer_lightning.training import tracking

RUN = (
    "data=synthetic",
    "data.source.images=400",
    "data.batch_size=16",
    "model=test_efficientnet",
    "model.head.dropout=0.5",
    "augment=light",
    "logger=csv",
    "figures=false",
    "trainer.accelerator=cpu",
    "trainer.max_epochs=3",
    "save_every_n_steps=4",
)
MOMENTS = ("training", "training", "training", "validating", "checkpoint", "results", "any time")
SAMPLERS = (
    "none",
    "undersample",
    "undersample_redraw",
    "oversample",
    "sqrt_sampler",
    "progressive_sampler",
    "crt",  # two stages: another sampler, a new head, another schedule
    "cmo",  # partners for mixing
    "ldam_drw",  # a loss that changes with the epoch
)

Bomb = Callable[[], None]


def on_call(
    owner: Any,
    name: str,
    count: int,
    before: Callable[..., None] | None = None,
    signum: signal.Signals = signal.SIGKILL,
) -> Bomb:
    """A bomb that goes off in the ``count``-th call of a function, after ``before`` has done its part of the call.

    It sends ``signum`` to this process.
    """

    def arm() -> None:
        original, calls = getattr(owner, name), itertools.count()

        def call(*arguments: Any, **keywords: Any) -> Any:
            if next(calls) == count:
                if before is not None:
                    before(*arguments, **keywords)
                os.kill(os.getpid(), signum)
            return original(*arguments, **keywords)

        setattr(owner, name, call)

    return arm


def half_a_file(path: Path, content: Any, keep: Path | None = None) -> None:
    """What a kill in the middle of ``files.replace_file`` leaves."""
    path.with_name(f".{path.name}.part").write_bytes(bytes(content)[: len(content) // 2])


def no_last_file(path: Path, content: Any, keep: Path | None = None) -> None:
    """What a kill between its two renames leaves."""
    path.with_name(f".{path.name}.part").write_bytes(bytes(content))
    if keep is not None and path.exists():
        path.replace(keep)


def half_a_table(self: pd.DataFrame, path: Path, **keywords: Any) -> None:
    """What a kill in the middle of writing ``predictions.csv`` leaves."""
    path.write_text("id,usage,label\ntrain/angry/1.jpg,Priv")


def draw_bomb(moment: str, dice: random.Random, steps: int) -> Bomb | None:
    """Where to end a run; None for a time that its parent chooses."""
    if moment == "training":
        return on_call(EmotionClassifier, "training_step", dice.randrange(1, steps))
    if moment == "validating":
        return on_call(EmotionClassifier, "validation_step", dice.randrange(3))
    if moment == "checkpoint":
        return on_call(files, "replace_file", dice.randrange(1, 12), dice.choice((half_a_file, no_last_file)))
    if moment == "results":
        return dice.choice(
            (
                on_call(pd.DataFrame, "to_csv", 0, half_a_table),
                on_call(artifacts, "write_json", 0),
                on_call(tracking, "finish", 0),
            )
        )
    return None


def run_forked(folder: Path, overrides: list[str], bomb: Bomb | None = None, after: float | None = None) -> int:
    """Run ``python -m fer_lightning`` in a fork; its exit code, negative for the signal that ended it."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(log, 1)
            os.dup2(log, 2)
            sys.argv = ["fer_lightning", *overrides, f"hydra.run.dir={folder}"]
            if bomb is not None:
                bomb()
            fer_lightning()
            code = 0
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            os._exit(code)
    if after is not None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def run_processes(folder: Path, overrides: list[str], dice: random.Random, kill: bool) -> int:
    """The same as real processes of two devices, one of which is killed at a random moment once they train."""
    command = [sys.executable, "-m", "fer_lightning", *overrides, f"hydra.run.dir={folder}"]
    with folder.with_suffix(".log").open("a") as log:
        leader = subprocess.Popen(command, stdout=log, stderr=log, start_new_session=True)
        if kill:
            last = folder / "checkpoints" / "last.ckpt"
            before = last.stat().st_mtime_ns if last.exists() else None
            while leader.poll() is None and (last.stat().st_mtime_ns if last.exists() else None) == before:
                time.sleep(0.05)
            time.sleep(dice.uniform(0, 4))
            children = Path(f"/proc/{leader.pid}/task/{leader.pid}/children")
            ranks = [leader.pid, *map(int, children.read_text().split())] if children.exists() else [leader.pid]
            os.kill(dice.choice(ranks), signal.SIGKILL)
        code = leader.wait(120)
        deadline = time.monotonic() + 60
        while _group_alive(leader.pid):
            if time.monotonic() > deadline:
                raise RuntimeError("an orphan is left")
            time.sleep(0.1)
        return code


def _group_alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except ProcessLookupError:
        return False
    return True


def fingerprint(folder: Path) -> dict[str, str]:
    """What two runs must share, by name."""

    def digest(value: Any) -> str:
        hashed = hashlib.blake2b(digest_size=8)

        def walk(node: Any) -> None:
            if isinstance(node, dict):
                for key in sorted(node, key=str):
                    hashed.update(str(key).encode())
                    walk(node[key])
            elif isinstance(node, list | tuple):
                for child in node:
                    walk(child)
            elif isinstance(node, torch.Tensor):
                hashed.update(node.contiguous().numpy().tobytes())
            else:
                hashed.update(repr(node).encode())

        walk(value)
        return hashed.hexdigest()

    last = torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)
    best = torch.load(folder / "checkpoints" / "best.ckpt", weights_only=True)
    metrics = json.loads((folder / "metrics.json").read_text())
    parts = {key: last[key] for key in ("state_dict", "optimizer_states", "lr_schedulers", "processes", "position")}
    parts |= {key: last.get(key) for key in ("current_model_state", "averaging_state", "MixedPrecision")}
    parts["best"] = best["state_dict"]
    passing = ("train/seconds", "train/images_per_second", "git_commit")  # somebody may commit between the two runs
    parts["scores"] = {key: value for key, value in metrics.items() if key not in passing}
    for name in ("metrics.csv", "predictions.csv"):
        parts[name] = (folder / name).read_text()
    return {key: digest(value) for key, value in parts.items()}


def differences(folder: Path, expected: dict[str, str]) -> list[str]:
    """The parts of a finished run that are not as expected."""
    actual = fingerprint(folder)
    return [key for key in expected if actual[key] != expected[key]]


def trial(folder: Path, overrides: list[str], dice: random.Random, steps: int, seconds: float, devices: int) -> str:
    """Kill a run once or more at random moments and resume it to its end; returns where it was killed."""
    shutil.rmtree(folder, ignore_errors=True)
    moments: list[str] = []
    wanted = 1 if dice.random() < 0.6 else 2
    while len(moments) < wanted:
        resume = ["resume=auto"] if moments else []
        moment = dice.choice(MOMENTS) if devices == 1 else "any time"
        if devices == 1:
            bomb = draw_bomb(moment, dice, steps)
            after = dice.uniform(0.2, seconds) if bomb is None else None
            code = run_forked(folder, [*overrides, *resume], bomb, after)
            if code not in (0, -signal.SIGKILL):
                raise RuntimeError(f"code {code} before the kill: {folder.with_suffix('.log').read_text()[-2000:]}")
        else:
            code = run_processes(folder, [*overrides, *resume], dice, kill=True)
        if code == 0:  # done before it was killed: that proves nothing
            shutil.rmtree(folder)
            moments.clear()
        else:
            moments.append(moment)
    resume = ["resume=auto"]
    code = (
        run_forked(folder, [*overrides, *resume])
        if devices == 1
        else run_processes(folder, [*overrides, *resume], dice, kill=False)
    )
    if code:
        log = folder.with_suffix(".log").read_text()
        raise RuntimeError(f"killed {moments}, the resumed run ended with code {code}: {log[-2000:]}")
    return ", ".join(moments)


def prove(name: str, overrides: list[str], trials: int, seed: int, devices: int, work: Path) -> dict[str, Any]:
    """Compare ``trials`` killed and resumed runs with an undisturbed one."""
    dice = random.Random(f"{name} {seed}")
    whole, parts = work / "whole", work / "parts"
    shutil.rmtree(whole, ignore_errors=True)
    started = time.monotonic()
    undisturbed = [setting for setting in overrides if not setting.startswith("save_every_n_steps")]
    code = run_forked(whole, undisturbed) if devices == 1 else run_processes(whole, undisturbed, dice, kill=False)
    seconds = time.monotonic() - started
    if code:
        raise RuntimeError(f"the undisturbed run of {name} ended with code {code}: {whole.with_suffix('.log')}")
    expected = fingerprint(whole)
    steps = json.loads((whole / "metrics.json").read_text())["train/steps"]
    wrong = []
    for number in range(trials):
        where = trial(parts, overrides, dice, steps, seconds, devices)
        different = differences(parts, expected)
        print(f"{name}: trial {number + 1}: killed: {where}: {different or 'identical'}", file=sys.stderr, flush=True)
        if different:
            wrong.append({"killed": where, "different": different})
    return {"set-up": name, "trials": trials, "identical": trials - len(wrong), "wrong": wrong}


def control(forget: str, work: Path) -> dict[str, Any]:
    """Resume from a checkpoint that lacks one part: the comparison must notice."""
    whole, parts = work / "whole", work / "parts"
    for folder in (whole, parts):
        shutil.rmtree(folder, ignore_errors=True)
    run_forked(whole, list(RUN))
    run_forked(parts, list(RUN), on_call(EmotionClassifier, "training_step", 11))
    path = parts / "checkpoints" / "last.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    if forget == "random states":
        other = torch.Generator().manual_seed(1).get_state()
        checkpoint["processes"][0]["random"]["torch"] = other
    elif forget == "position":
        checkpoint["position"]["batches"] = 0
    elif forget == "metric sums":
        checkpoint["processes"][0]["metrics"] = {}
    torch.save(checkpoint, path)
    run_forked(parts, [*RUN, "resume=auto"])
    return {"forgotten": forget, "different": differences(parts, fingerprint(whole))}


def setups(samplers: list[str], workers: list[int], devices: list[int]) -> dict[str, tuple[list[str], int]]:
    """Name, overrides and number of processes of every set-up in the table."""
    averaged = ["callbacks=ema", "callbacks.ema.decay=0.9"]
    cycle = ["optim.schedule=one_cycle", "optim.warmup_fraction=0.3"]
    chosen: dict[str, tuple[list[str], int]] = {}
    for sampler in samplers:
        for number in workers:
            for processes in devices:
                # Averaged weights of both stages would be refused.
                extra = {"crt": []}.get(sampler, averaged)
                backend = "albumentations" if number else "batched"  # which has no workers
                loading = [f"data.num_workers={number}", f"augment.backend={backend}"]
                settings = [*RUN, f"imbalance={sampler}", *loading, *extra]
                name = (
                    f"{sampler}{', EMA' if averaged[0] in extra else ''}, {f'{number} workers' if number else backend}"
                )
                if sampler == "none":
                    settings += cycle
                    name += ", one-cycle"
                if processes == 2:
                    settings += ["trainer.devices=2"]
                    name += ", 2 processes"
                chosen[name] = (settings, processes)
    if "none" in samplers and 1 in devices:
        settings = [*RUN[:-1], "save_every_n_steps=null", "trainer.max_steps=50", "trainer.check_val_every_n_epoch=2"]
        chosen["none, EMA, saved after epochs alone, max_steps"] = ([*settings, *averaged], 1)
    return chosen


def main() -> None:
    """Print one JSON object per set-up, and a table in the end; exit code 1 when any trial differs."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--trials", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--samplers", nargs="+", default=list(SAMPLERS), choices=SAMPLERS)
    parser.add_argument("--workers", nargs="+", type=int, default=[0, 2])
    parser.add_argument("--devices", nargs="+", type=int, default=[1], choices=[1, 2])
    parser.add_argument("--controls", action="store_true", help="only the negative controls")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        if arguments.controls:
            for forget in ("nothing", "random states", "position", "metric sums"):
                print(json.dumps(control(forget, work)), flush=True)
            return
        rows = []
        for name, (overrides, devices) in setups(arguments.samplers, arguments.workers, arguments.devices).items():
            rows.append(prove(name, overrides, arguments.trials, arguments.seed, devices, work))
            print(json.dumps(rows[-1]), flush=True)
    print("\n| set-up | identical |\n|---|---:|", file=sys.stderr)
    for row in rows:
        print(f"| {row['set-up']} | {row['identical']} of {row['trials']} |", file=sys.stderr)
    raise SystemExit(any(row["wrong"] for row in rows))


if __name__ == "__main__":
    main()
