"""Mistakes on the command line: refused in one line, at once, leaving nothing behind."""

import ast
import inspect
import os
import subprocess
import sys
from dataclasses import fields
from pathlib import Path

import lightning as L
import pytest
from legs import every_nth, every_third
from omegaconf import OmegaConf

from fer_lightning import __version__
from fer_lightning.config import safety, schema
from fer_lightning.config.compose import compose_config
from fer_lightning.runtime import processes
from fer_lightning.runtime.errors import UserError

MISTAKES = [
    (["imbalance=focul"], "imbalance=focul: no such choice (did you mean focal?)"),
    (["data=cifar"], "data is one of: affectnet, ck48, fer2013, ferplus8, folder, jaffe, rafdb, synthetic"),
    (
        ["optim=[adam,sgd]"],
        "optim=[adam,sgd]: no such choice; optim is one of: adam, adamw, sgd; leave optim out for its default",
    ),
    (["optim=null"], "optim=null: no such choice; optim is one of: adam, adamw, sgd; leave optim out for its default"),
    (
        ["imbalance=focal", "imbalance/mix=null"],
        "imbalance/mix=null: no such choice; imbalance/mix is one of: cmo, mixup, remix",
    ),
    (["model=18"], "model=18: no such choice; model is one of: efficientnet_b0, "),
    (["trainr.devices=2"], "trainr.devices: no such key (did you mean trainer.devices?)"),
    (["+typo=1"], "typo: no such key"),
    (["+trainer.device=2"], "trainer.device: no such key (did you mean trainer.devices?)"),
    (["++optim.lrr=1"], "optim.lrr: no such key (did you mean optim.lr?)"),
    (["imbalance=focal", "imbalance.loss.gama=3"], "did you mean imbalance.loss.gamma?"),
    (["imbalance=focal", "+imbalance.loss.gama=3"], "did you mean imbalance.loss.gamma?"),
    (
        ["+imbalance.sampler.per_klass=3", "imbalance=undersample"],
        "did you mean imbalance.sampler.per_class?",
    ),
    (["split.fold=1"], "split has: train_size, seed, "),
    (["+split.fold=1"], "split.fold=1: no such key"),
    (["callbacks=ema", "+callbacks.ema.dekay=.9"], "did you mean callbacks.ema.decay?"),
    (["~seed"], "seed: is missing"),
    (["optim.lr=fast"], "optim.lr"),
    (["optim.lr=-1"], "optim.lr=-1.0: must be positive"),
    (["optim.lr=inf"], "optim.lr=inf: must be a finite number"),
    (["imbalance=focal", "imbalance.loss.gamma=nan"], "imbalance.loss.gamma=nan: must be a finite number"),
    (["trainer.max_epochs=2.5"], "trainer.max_epochs"),
    (["trainer.max_epochs=0"], "trainer.max_epochs=0: must be at least 1"),
    (["trainer.precision=8"], "trainer.precision=8: must be one of"),
    (["trainer.precision=16-mixed", "trainer.accelerator=cpu"], "16-bit floats need a GPU"),
    (["trainer.accelerator=abacus"], "trainer.accelerator=abacus: must be one of"),
    (["trainer.devices=500", "trainer.accelerator=cpu"], "trainer.devices=500"),
    (["trainer.devices=[0,1]", "trainer.accelerator=cpu"], "chooses among GPUs"),
    (["trainer.devices=-1", "trainer.accelerator=cpu"], "chooses among GPUs"),
    (["trainer.strategy=ddp_spawn"], "trainer.strategy=ddp_spawn: must be one of"),
    (["imbalance=undersample", "imbalance.sampler.per_class=abc"], "per_class=abc: must be a number of images"),
    (["imbalance=none,focal"], "add -m"),
    (["hydra.job.chdir=true"], "paths are relative to the folder you start in"),
    (["name=a/b"], "name=a/b: is part of folder names"),
    (["hydra.run.dir=/proc/nope"], "/proc/nope: cannot be created"),
    (["hydra.run.dir=/proc/${hydra:job.name}"], "/proc/train: cannot be created"),
    (["-m", "seed=0,1", "hydra.sweep.dir=s/${hydra:job.name}"], "hydra.sweep.dir: ${hydra:...} has no value yet"),
    (["trainer.devices=0"], "trainer.devices=0: must be at least 1"),
    (["trainer.devices=many"], "trainer.devices=many: must be a number"),
    (["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=63"], "use 64"),
    (["data.batch_size=0"], "data.batch_size=0: must be at least 1"),
    (["data.batch_size=1"], "data.batch_size=1: batch normalization needs two images for each device; use 2"),
    (["trainer.devices=2", "trainer.accelerator=cpu", "data.batch_size=2"], "for each device; use 4"),
    (["trainer.precision=64-true"], "trainer.precision=64-true: must be one of"),
    (["trainer.precision=bf16-true"], "trainer.precision=bf16-true: must be one of"),
    (["trainer.accumulate_grad_batches=0"], "trainer.accumulate_grad_batches=0: must be at least 1"),
    (["trainer.check_val_every_n_epoch=0"], "trainer.check_val_every_n_epoch=0: must be at least 1"),
    (["save_every_n_steps=0"], "save_every_n_steps=0: must be at least 1, or null"),
    (["trainer.gradient_clip_val=-1"], "trainer.gradient_clip_val=-1.0: must be 0 (no clipping) or more"),
    (["data.num_workers=100000"], "data.num_workers=100000: must be from 0 to"),
    (["trainer.max_time=abc"], "trainer.max_time=abc: must be text of the form DD:HH:MM:SS"),
    (["trainer.limit_train_batches=0"], "trainer.limit_train_batches=0: trains on nothing; give 1 or more"),
    (["trainer.max_time=99"], "trainer.max_time=99: must be text of the form DD:HH:MM:SS"),
    (["optim=sgd", "optim.momentum=5"], "optim.momentum=5.0: must be in [0, 1), or null"),
    (["data=folder"], "data.path is missing; give data.path=DIR"),
    (["data=rafdb", "data.path="], "data.path is missing; give data.path=DIR"),
    (["data=synthetic", "data.path=fer2013.zip"], "data=synthetic reads no files"),
    (["data=synthetic", "data.source.images=few"], "data.source.images=few: expected a whole number"),
    (["imbalance=focal", "imbalance.loss.gamma=-1"], "imbalance.loss.gamma=-1: must be 0 or more"),
    (["imbalance=focal", "imbalance.loss.gamma=high"], "imbalance.loss.gamma=high: expected a number"),
    (["imbalance=oversample", "imbalance.loss.weighting=inverse"], "correct twice"),
    (["imbalance=undersample", "imbalance.loss.weighting=effective"], "correct twice"),
    (["split.val_fraction=1.5"], "split.val_fraction=1.5: must lie between 0 and 1"),
    (["split.val_fraction=0"], "split.val_fraction=0: must lie between 0 and 1"),
    (["split.val_fraction=high"], "split.val_fraction=high: must lie between 0 and 1"),
    (["split.train_size=many"], "split.train_size=many: must be a number of images"),
    (["split=paper", "callbacks=early_stopping"], "no validation set"),
    (["callbacks=[ema,swa]"], "callbacks=[ema,swa]: both average the weights"),
    (["augment.backend=kornia"], "augment.backend=kornia: must be batched"),
    (["augment.rotate=999"], "augment.rotate=999.0 is out of range"),
    (["augment.hflip=2"], "augment.hflip=2.0 is out of range: it must be from 0 to 1"),
    (["data.drop_duplicates=test"], "data.drop_duplicates=test: must be train"),
    (["data.device=cuda:1"], "data.device=cuda:1: must be auto"),
    (["model.first_image_size=200"], "model.first_image_size=200: must be from 32 to model.image_size"),
    (["model.compile=fast"], "model.compile=fast: must be false, true or a mode of torch.compile"),
    (["optim.sam_rho=0"], "optim.sam_rho=0.0: must be positive"),
    (["optim.sam_rho=0.05", "trainer.accumulate_grad_batches=2"], "SAM makes two passes over each batch"),
    (["model.in_channels=2"], "model.in_channels=2: must be 1 or 3"),
    (["model.weights=nowhere.pth"], "model.weights=nowhere.pth: no such file"),
    (["labels=ferplus", "labels.votes='~nobody-here/v.csv'"], "labels.votes=~nobody-here/v.csv: no such file"),
    (["model.head.dropout=1"], "model.head.dropout"),
    (["resume=nowhere"], "resume=nowhere: no such run folder or checkpoint"),
    (["imbalance/mix=null"], "imbalance/mix=null: no such choice; imbalance/mix is one of: cmo, "),
    (["data=3"], "data=3: no such choice; data is one of: affectnet, "),
    (["=1"], "=1: has no key before the sign ="),
    (["+imbalance=focal"], "+imbalance: imbalance has a value already; leave out the +"),
    (["+seed=1"], "+seed: seed has a value already; leave out the +"),
    (["~callbacks"], "callbacks: is missing, and every run has it; leave ~callbacks out"),
    (["imbalance.loss={gamma:3}"], "imbalance.loss: was removed, or got keys that it does not have"),
    (["hydra.run.dir="], "hydra.run.dir=: is empty; give a folder"),
    (["-m", "seed=0,1", "hydra.sweep.dir="], "hydra.sweep.dir=: is empty; give a folder"),
    (["-m", "--cfg", "job", "seed=0,1"], "--multirun --cfg: exclude each other"),
    (["--run", "-m"], "--run --multirun: exclude each other"),
    (["--resolve"], "--resolve: shows values with --cfg"),
    (["-sc", "query=bash"], "is for the shell; give -sc install=bash"),
    (["data.path=["], "cannot be read as key=value"),
    (["logger=wandb", "logger.project=a/b"], "logger.project=a/b: W&B accepts 1 to 128 characters without / "),
    (["logger=wandb", f"logger.project={'a' * 129}"], "W&B accepts 1 to 128 characters"),
    (["imbalance"], "imbalance: must be key=value, such as imbalance=balanced_softmax"),
    (["focal"], "focal: must be key=value, such as imbalance=focal"),
    (["--imbalance", "focal"], "--imbalance; settings have no dashes, such as imbalance=balanced_softmax; "),
    (["optim.learning_rate=0.1"], "optim.learning_rate: no such key (did you mean optim.lr?)"),
    (["epochs=3"], "epochs: no such key (did you mean trainer.max_epochs?)"),
    (["trainer.max_epochs=ten"], "trainer.max_epochs=ten: must be a whole number"),
    (["optim.lr=small"], "optim.lr=small: must be a number"),
    (["test=maybe"], "test=maybe: must be true or false"),
    (["model=resnet50"], "for another network of timm give model=resnet18 model.name=resnet50"),
    (
        ["imbalance=weighted", "imbalance.loss.weights.disgust=5"],
        "imbalance.loss.weights has no keys of its own; give it whole, as in imbalance.loss.weights={disgust: ...}",
    ),
    (
        ["-m", "hydra/sweeper=halving", "hydra.sweeper.etaa=3", "optim.lr=0.1,0.2"],
        "hydra.sweeper.etaa: no such key (did you mean hydra.sweeper.eta?); hydra.sweeper has: eta, rungs, ",
    ),
    (["optim.lr.disgust=5"], "optim.lr.disgust: optim.lr has no keys of its own; give it whole, as in optim.lr=..."),
]


def test_weights_larger_than_any_are_refused_before_they_are_hashed(cli, tmp_path):
    path = tmp_path / "w.safetensors"
    path.touch()
    os.truncate(path, 2**40)
    outcome = cli(f"model.weights={path}")
    assert outcome.code == 2
    assert f"model.weights={path}: has 1,099,511,627,776 bytes, more than the 4,294,967,296 of any" in outcome.error


@pytest.mark.parametrize(
    ("overrides", "message"),
    every_nth(6, MISTAKES),
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_mistake_is_one_line_and_leaves_nothing(cli, tmp_path, overrides, message):
    outcome = cli(*overrides)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "outputs").exists()


WRONG_KINDS = {
    "seed='0'": "seed='0': is text where a whole number is expected; write it as 0",
    "seed=01": "seed='01': is text where a whole number is expected; write it as 1",
    "test=no": "test='no': is text where true or false is expected; write it as false",
    "figures='false'": "figures='false': is text where true or false is expected; write it as false",
    "optim.lr='0.1'": "optim.lr='0.1': is text where a number is expected; write it as 0.1",
    "model.head.hidden=['8']": "model.head.hidden='8': is text where a whole number is expected; write it as 8",
    "trainer.deterministic='false'": "trainer.deterministic=false: is text; give true, false or a number",
    "data.cache_dir=2024": "data.cache_dir=2024: is not text, but must name a file or a folder; write it as ./2024",
    "resume=2024": "resume=2024: is not text, but must name a file or a folder; write it as ./2024",
}


@pytest.mark.parametrize("override", every_third(WRONG_KINDS))
def test_a_value_that_the_run_would_read_as_another_is_refused(override: str) -> None:
    with pytest.raises(UserError) as refused:
        compose_config([override])
    assert WRONG_KINDS[override] in str(refused.value)


def test_other_values_are_accepted() -> None:
    compose_config(["seed=1", "test=false", "name=3", "tags=[1,true]", "optim.lr=1", "resume=null"])


def test_mistakes_are_reported_before_heavy_imports():
    code = """
import sys
from fer_lightning.__main__ import main
sys.argv = ["fer_lightning", "imbalance=focal", "imbalance.loss.gamma=-1"]
try:
    main()
except SystemExit as stop:
    assert stop.code == 2
heavy = ("torch", "lightning", "timm", "wandb", "albumentations", "pandas", "matplotlib")
print([module for module in heavy if module in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_a_type_from_an_experiment_file_is_checked_too(cli, tmp_path):
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "bad.yaml").write_text("# @package _global_\nimbalance:\n  loss:\n    gamme: 3\n")
    outcome = cli("--config-dir", str(tmp_path / "mine"), "experiment=bad", "imbalance=focal")
    assert outcome.code == 2
    assert "imbalance.loss.gamme=3: no such key" in outcome.error


def test_help_lists_every_group_with_its_choices(cli):
    outcome = cli("--help")
    assert outcome.code == 0
    for group in (path for path in safety.CONF_DIR.iterdir() if path.is_dir() and path.name != "hydra"):
        line = next(line for line in outcome.out.splitlines() if line.startswith(f"{group.name}:"))
        for choice in group.glob("*.yaml"):
            assert choice.stem in line
    assert "python -m fer_lightning -m" in outcome.out


def test_cfg_job_prints_the_run(cli):
    outcome = cli("--cfg", "job", "imbalance=focal", "imbalance.loss.gamma=3")
    cfg = OmegaConf.create(outcome.out)
    assert cfg.imbalance.loss.gamma == 3
    assert cfg.imbalance.name == "focal"


def test_shell_completion(process, tmp_path):
    outcome = process("-sc", "query=bash", COMP_LINE="fer-lightning imbalance=un", COMP_POINT="26")
    assert {"imbalance=undersample", "imbalance=undersample_redraw"} <= set(outcome.out.split())


@pytest.mark.parametrize("group", ["data", "split", "imbalance", "model", "augment", "optim", "logger"])
def test_the_name_of_a_choice_is_its_file_name(group):
    for path in (safety.CONF_DIR / group).glob("*.yaml"):
        assert OmegaConf.load(path).name == path.stem


def test_trainer_keys_are_lightnings_own():
    accepted = set(inspect.signature(L.Trainer).parameters)
    assert {field.name for field in fields(schema.Trainer)} <= accepted


def test_light_modules_import_nothing_heavy():
    package = Path(schema.__file__).parent.parent
    modules = [package / f"{name}.py" for name in ("__init__", "__main__", "sweep")]
    modules += [*(package / "config").glob("*.py"), *(package / "runtime").glob("*.py")]
    modules += [path for path in (package / "sweeps").glob("*.py") if path.stem not in ("trials", "search_table")]
    for path in modules:
        tree = ast.parse(path.read_text())
        top = {alias.name.split(".")[0] for node in tree.body if isinstance(node, ast.Import) for alias in node.names}
        top |= {(node.module or "").split(".")[0] for node in tree.body if isinstance(node, ast.ImportFrom)}
        assert not top & {
            "torch",
            "lightning",
            "timm",
            "pandas",
            "numpy",
            "wandb",
            "albumentations",
            "matplotlib",
        }, path


@pytest.mark.parametrize(
    ("environment", "first"),
    [
        ({}, True),
        ({"LOCAL_RANK": "0", "NODE_RANK": "0", "RANK": "0", "SLURM_PROCID": "0"}, True),
        ({"LOCAL_RANK": ""}, True),
        ({"LOCAL_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "NODE_RANK": "1"}, False),
        ({"LOCAL_RANK": "0", "RANK": "2"}, False),
        ({"SLURM_PROCID": "3"}, False),
    ],
)
def test_ranks_of_the_first_process(monkeypatch, environment, first):
    for rank in ("LOCAL_RANK", "NODE_RANK", "RANK", "SLURM_PROCID"):
        monkeypatch.delenv(rank, raising=False)
    for rank, value in environment.items():
        monkeypatch.setenv(rank, value)
    assert processes.is_first_process() == first


@pytest.mark.parametrize("rank", ["0", "1"])
def test_only_the_first_process_prints(cli, monkeypatch, rank):
    monkeypatch.setenv("LOCAL_RANK", rank)
    outcome = cli("optim.lr=-1")
    assert outcome.code == 2
    assert ("error: optim.lr=-1.0: must be positive" in outcome.err) == (rank == "0")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("name: [", "found.yaml"),
        ("optim: [3]", "raised while composing config: "),
        ("imbalance: {loss: {gamma: '${nowhere}'}}", "nowhere"),
    ],
)
def test_what_is_wrong_with_a_file_is_one_line(cli, tmp_path, text, message):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "found.yaml").write_text(f"# @package _global_\n{text}\n")
    outcome = cli("--config-dir=mine", "imbalance=focal", "experiment=found")
    assert outcome.code == 2
    assert message in outcome.error


def test_version_is_that_of_this_project(cli):
    outcome = cli("--version")
    assert (outcome.code, outcome.out, outcome.err) == (0, f"fer_lightning {__version__}\n", "")
