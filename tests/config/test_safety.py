"""Configurations, command lines and checkpoints from anywhere: nothing in them runs.

Every trap is sprung once without the guard, so that it is known to be one.
"""

import ast
import contextlib
import dataclasses
import os
import pickle
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import hydra._internal.hydra as hydra_internals
import pytest
import yaml
from command_line import TINY, Outcome
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.sources_registry import SourcesRegistry
from hydra.types import RunMode
from legs import every_third
from submitit.slurm.slurm import _make_sbatch_string

from fer_lightning.config import hydra_keys, safety
from fer_lightning.runtime.errors import UserError

TRAP = """
import logging
from pathlib import Path

def touch(*_, **__):
    Path("SPRUNG").touch()
    raise SystemExit(0)

class Handler(logging.Handler):
    def __init__(self, **_):
        super().__init__()
        touch()
"""


@dataclass(frozen=True)
class Attack:
    """Files of a configuration folder below ``mine``, a command line, and what the refusal must name."""

    named: str
    arguments: tuple[str, ...] = ()
    files: dict[str, str] = field(default_factory=dict)


def experiment(text: str) -> dict[str, str]:
    return {"experiment/found.yaml": f"# @package _global_\n{text}"}


FOUND = ("--config-dir=mine", "experiment=found")
ATTACKS = {
    "a Hydra callback": Attack("hydra.callbacks.x._target_=trap.touch", ("+hydra.callbacks.x._target_=trap.touch",)),
    "a Hydra callback in a file": Attack(
        "hydra.callbacks.x._target_=trap.touch", FOUND, experiment("hydra: {callbacks: {x: {_target_: trap.touch}}}")
    ),
    "through this package": Attack(
        "hydra.callbacks.x._target_=fer_lightning.sweeps.hook.os.mkdir",
        ("+hydra.callbacks.x._target_=fer_lightning.sweeps.hook.os.mkdir", "+hydra.callbacks.x.path=SPRUNG"),
    ),
    "a node elsewhere": Attack(
        "hydra.callbacks.x=${bait}",
        FOUND,
        experiment("bait: {_target_: trap.touch}\nhydra: {callbacks: {x: '${bait}'}}"),
    ),
    "a computed name": Attack(
        "hydra.callbacks.x._target_=${bait}",
        FOUND,
        experiment("bait: trap.touch\nhydra: {callbacks: {x: {_target_: '${bait}'}}}"),
    ),
    "a node made from text": Attack(
        "hydra.callbacks.x=${oc.create:",
        FOUND,
        experiment("hydra: {callbacks: {x: '${oc.create:\"{_target_: trap.touch}\"}'}}"),
    ),
    "a default value that is a node": Attack(
        "hydra.callbacks.x=${oc.select:",
        FOUND,
        experiment("hydra: {callbacks: {x: '${oc.select:a,{_target_: trap.touch}}'}}"),
    ),
    "a computed function": Attack(
        "hydra.callbacks.x=${oc.${bait}:",
        FOUND,
        experiment("bait: create\nhydra: {callbacks: {x: '${oc.${bait}:\"{_target_: trap.touch}\"}'}}"),
    ),
    "all callbacks from elsewhere": Attack(
        "hydra.callbacks=${bait}",
        FOUND,
        experiment("bait: {x: {_target_: trap.touch}}\nhydra: {callbacks: '${bait}'}"),
    ),
    "nested in a callback": Attack(
        "hydra.callbacks.validate.knob._target_=trap.touch",
        ("+hydra.callbacks.validate.knob._target_=trap.touch",),
    ),
    "in a list": Attack(
        "hydra.callbacks.validate._args_._target_=trap.touch",
        ("+hydra.callbacks.validate._args_=[{_target_:trap.touch}]",),
    ),
    "the default of a group": Attack(
        "hydra.callbacks.x._target_=trap.touch",
        ("--config-dir=mine", "optim=found"),
        {"optim/found.yaml": "# @package hydra.callbacks.x\n_target_: trap.touch"},
    ),
    "another main file": Attack(
        "hydra.callbacks.x._target_=trap.touch",
        ("--config-dir=mine", "--config-name=found"),
        {"found.yaml": "defaults: [config]\nhydra: {callbacks: {x: {_target_: trap.touch}}}"},
    ),
    "a search path": Attack(
        "hydra.callbacks.x._target_=trap.touch",
        ("hydra.searchpath=[mine]", "experiment=found"),
        experiment("hydra: {callbacks: {x: {_target_: trap.touch}}}"),
    ),
    "a package to search": Attack("pkg://bait", ("hydra.searchpath=[pkg://bait]",)),
    "a package to search in a file": Attack(
        "pkg://bait",
        ("--config-dir=mine", "--config-name=found"),
        {"found.yaml": "defaults: [config]\nhydra: {searchpath: ['pkg://bait']}"},
    ),
    "a package of configurations": Attack("pkg://bait", ("--config-path=pkg://bait",)),
    "a logging factory": Attack(
        "hydra.hydra_logging.formatters.plain.()=trap.touch",
        ("--config-dir=mine", "hydra/hydra_logging=found"),
        {"hydra/hydra_logging/found.yaml": "defaults: [plain]\nformatters: {plain: {(): trap.touch}}"},
    ),
    "a logging handler": Attack(
        "hydra.hydra_logging.handlers.console.class=trap.Handler",
        ("hydra.hydra_logging.handlers.console={class: trap.Handler}",),
    ),
    "a logging import": Attack(
        "hydra.hydra_logging.handlers.console.stream=ext://bait.x",
        ("hydra.hydra_logging.handlers.console.stream='ext://bait.x'",),
    ),
    "a computed logging handler": Attack(
        "hydra.hydra_logging.handlers.console.class=${bait}",
        FOUND,
        experiment("bait: trap.Handler\nhydra: {hydra_logging: {handlers: {console: {class: '${bait}'}}}}"),
    ),
    "a log that is another file": Attack(
        "hydra.job_logging.handlers.file.filename=SPRUNG", ("hydra.job_logging.handlers.file.filename=SPRUNG",)
    ),
    "a log by YAML's path": Attack(
        "hydra.job_logging.handlers.file.filename=SPRUNG",
        FOUND,
        experiment(
            "hydra: {job_logging: {handlers: {file: {filename: !!python/object/apply:pathlib.Path [SPRUNG]}}}}"
        ),
    ),
    "a program in the way": Attack(
        "hydra.job.env_set.PATH=", FOUND, experiment("hydra: {job: {env_set: {PATH: 'bin:/usr/bin:/bin'}}}")
    ),
    "a data source": Attack(
        "data.source._target_=trap.touch",
        ("--config-dir=mine", "data=found"),
        {"data/found.yaml": "defaults: [synthetic]\nname: found\nsource: {_target_: trap.touch}"},
    ),
    "a setting of a loss": Attack(
        "imbalance.loss.bait._target_=trap.touch",
        ("--config-dir=mine", "imbalance=found"),
        {"imbalance/found.yaml": "defaults: [focal]\nname: found\nloss: {bait: {_target_: trap.touch}}"},
    ),
    "a pickle": Attack("--experimental-rerun=mine/config.pickle", ("--experimental-rerun=mine/config.pickle",)),
    "a pickle, abbreviated": Attack("--experimental-rerun=mine/config.pickle", ("--exp=mine/config.pickle",)),
}  # fmt: skip


class Pickled:
    def __reduce__(self):
        return Path.touch, (Path("SPRUNG"),)


@pytest.fixture
def attack(cli, tmp_path, monkeypatch) -> Callable[[Attack], Outcome]:
    """Lay the trap in ``tmp_path`` and walk into it."""
    (tmp_path / "trap.py").write_text(TRAP)
    (tmp_path / "bait").mkdir()
    (tmp_path / "bait" / "__init__.py").write_text("import trap\ntrap.touch()\nx = None\n")
    program = tmp_path / "bin" / "git"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\ntouch SPRUNG\n")
    program.chmod(0o755)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "config.pickle").write_bytes(pickle.dumps(Pickled()))
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delenv(safety.TRUST, raising=False)

    def call(laid: Attack) -> Outcome:
        for name, text in laid.files.items():
            (tmp_path / "mine" / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / "mine" / name).write_text(text)
        # Later words win, and an attack may need its own data.
        tiny = [word for word in TINY if not (laid.arguments[-1].startswith("data=") and word.startswith("data"))]
        # argparse reads key=value from one place only.
        options = [word for word in laid.arguments[:-1] if word.startswith("-")]
        return cli(*options, *tiny, *(word for word in laid.arguments if word not in options))

    yield call
    for name in ("trap", "bait"):
        sys.modules.pop(name, None)


@pytest.fixture
def unguarded(monkeypatch) -> None:
    """Hydra as it is."""
    monkeypatch.setattr(safety, "guard_hydra", lambda: None)
    monkeypatch.setattr(hydra_internals, "ConfigLoaderImpl", ConfigLoaderImpl)
    monkeypatch.setattr(sys.modules["hydra.main"], "_get_rerun_conf", RERUN)


RERUN = sys.modules["hydra.main"]._get_rerun_conf


@pytest.mark.parametrize("name", every_third(ATTACKS))
def test_trap_does_not_spring(attack, tmp_path, name):
    outcome = attack(ATTACKS[name])
    assert outcome.code == 2
    assert ATTACKS[name].named in outcome.error
    assert not (tmp_path / "SPRUNG").exists()
    assert not (tmp_path / "outputs").exists()


@pytest.mark.nightly
@pytest.mark.parametrize("name", ATTACKS)
@pytest.mark.usefixtures("unguarded")
def test_it_is_a_trap(attack, tmp_path, name):
    with contextlib.suppress(Exception):  # what it leaves is of no use to the run
        attack(ATTACKS[name])
    assert (tmp_path / "SPRUNG").exists()


class TestLauncher:
    """Its words end in a shell script that the scheduler runs."""

    @pytest.mark.parametrize(
        ("text", "named"),
        every_third(
            [
                ("launcher: {setup: [touch SPRUNG]}", "hydra.launcher.setup=touch SPRUNG"),
                ("launcher: {additional_parameters: {prolog: x}}", "hydra.launcher.additional_parameters.prolog=x"),
                ("launcher: '${bait}'", "hydra.launcher=${bait}"),
                (
                    'launcher: {partition: "x\\ntouch SPRUNG #"}',
                    "hydra.launcher.partition=x touch SPRUNG #: changes what",
                ),
                ('job: {name: "x\\ntouch SPRUNG #"}', "hydra.job.name=x touch SPRUNG #: changes what programs do"),
                (
                    "sweeper: {params: {+hydra.job.env_set.PATH: bin}}",
                    "hydra.sweeper.params.+hydra.job.env_set.PATH=bin",
                ),
                ("sweeper: {params: {' hydra': '{}'}}", "hydra.sweeper.params. hydra={}"),
                ("sweeper: {_target_: trap.touch}", "hydra.sweeper._target_=trap.touch"),
                (
                    "overrides: {hydra: [hydra.job.env_set.PATH=bin]}",
                    "hydra.overrides.hydra=hydra.job.env_set.PATH=bin",
                ),
                ("job: {env_copy: [PATH]}", "hydra.job.env_copy=PATH"),
            ]
        ),
    )
    def test_files_cannot_set_up_programs(self, attack, tmp_path, text, named):
        defaults = "defaults: [{override /hydra/launcher: submitit_slurm}]\nbait: {partition: x}\n"
        outcome = attack(Attack(named, ("-m", *FOUND), experiment(f"{defaults}hydra: {{{text}}}")))
        assert outcome.code == 2
        assert named in outcome.error
        assert not (tmp_path / "SPRUNG").exists()

    @pytest.mark.parametrize("words", [{"setup": ["touch SPRUNG"]}, {"partition": "x\ntouch SPRUNG #"}])
    def test_such_values_run_code(self, tmp_path, words):
        script = _make_sbatch_string(command="true", folder=tmp_path, **words)
        subprocess.run(["bash", "-c", script], cwd=tmp_path, capture_output=True, timeout=20, check=False)
        assert (tmp_path / "SPRUNG").exists()

    def test_plain_values_of_a_file_are_accepted(self, tmp_path):
        (tmp_path / "hydra" / "launcher").mkdir(parents=True)
        (tmp_path / "hydra" / "launcher" / "ours.yaml").write_text(
            "defaults: [submitit_slurm]\npartition: gpu\naccount: me\ntimeout_min: 600\ngpus_per_node: 2\n"
        )
        cfg = composed("hydra/launcher=ours", f"hydra.searchpath=[{tmp_path}]")
        assert (cfg.hydra.launcher.partition, cfg.hydra.launcher.timeout_min) == ("gpu", 600)

    def test_the_user_may_type_it(self):
        setup = "hydra.launcher.setup=[module load cuda]"
        cfg = composed("hydra/launcher=submitit_slurm", setup, "+hydra.job.env_set={A: b}", "hydra.job.env_copy=[HOME]")
        assert list(cfg.hydra.launcher.setup) == ["module load cuda"]
        assert dict(cfg.hydra.job.env_set) == {"A": "b", "HOME": os.environ["HOME"]}
        with pytest.raises(UserError, match=r"hydra\.launcher\.setup=module load cuda: is only taken from your own"):
            hydra_keys.check_recorded(["-m", "seed=0,1", setup])
        with pytest.raises(UserError, match=r"hydra\.job\.env_set\.A=b: is only taken from your own"):
            hydra_keys.check_recorded(["-m", "+hydra.job.env_set={A: b}"])

    def test_a_recorded_command_line_may_set_everything_else(self):
        hydra_keys.check_recorded(["-m", *TINY, "hydra.launcher.n_jobs=2", "hydra/launcher=joblib"])


def composed(*overrides: str):
    """What the guarded Hydra makes of the overrides, with ``hydra`` itself."""
    safety.guard_hydra()
    with initialize_config_dir(str(safety.CONF_DIR), version_base="1.3"):
        return compose("config", overrides=list(overrides), return_hydra_config=True)


class TestTrust:
    """The user's own methods, trusted through an environment variable."""

    OWN = Attack(
        "imbalance.sampler._target_=trap.Sampler",
        ("--config-dir=mine", "imbalance=found"),
        {
            "imbalance/found.yaml": "name: found\nloss: {_target_: fer_lightning.imbalance.losses.CrossEntropy}\n"
            "sampler: {_target_: trap.Sampler}\n"
        },
    )
    SAMPLER = "\nfrom fer_lightning.imbalance.samplers import InstanceSampler\nclass Sampler(InstanceSampler): pass\n"

    @pytest.mark.nightly
    @pytest.mark.parametrize("trust", ["trap", "other.module, trap.Sampler"])
    def test_own_code_runs(self, attack, tmp_path, monkeypatch, trust):
        monkeypatch.setenv(safety.TRUST, trust)
        (tmp_path / "trap.py").write_text(TRAP + self.SAMPLER)
        outcome = attack(self.OWN)
        assert outcome.code == 0, outcome.err
        assert outcome.json["imbalance"] == "found"

    @pytest.mark.nightly
    def test_own_code_runs_in_the_jobs_of_a_sweep(self, process, tmp_path):
        """It is found where the sweep was started, as in a single run."""
        (tmp_path / "trap.py").write_text(self.SAMPLER)
        (tmp_path / "mine" / "imbalance").mkdir(parents=True)
        for name, text in self.OWN.files.items():
            (tmp_path / "mine" / name).write_text(text)
        outcome = process(
            "--config-dir=mine", "-m", *TINY, "imbalance=found", FER_LIGHTNING_TRUST="trap", PYTHONSAFEPATH=""
        )
        assert outcome.code == 0, outcome.out + outcome.err

    @pytest.mark.parametrize("trust", ["trap, needed", "hydra.launcher.setup"])
    def test_nothing_else_of_the_folder_is_imported(self, process, tmp_path, trust):
        """Libraries import plugins, entry points and modules that may be installed from wherever they find them."""
        for name in ("hydra_plugins/evil/__init__", "evil-1.0.dist-info/x", "torch_xla/__init__", "colorama", "other"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / f"{name}.py").write_text("open('SPRUNG', 'w')")
        (tmp_path / "evil-1.0.dist-info" / "METADATA").write_text("Metadata-Version: 2.1\nName: evil\nVersion: 1.0\n")
        (tmp_path / "evil-1.0.dist-info" / "entry_points.txt").write_text(
            "[lightning.pytorch.callbacks_factory]\na=other:a"
        )
        (tmp_path / "needed.py").write_text("")
        (tmp_path / "trap.py").write_text("import needed\n" + self.SAMPLER)
        (tmp_path / "mine" / "imbalance").mkdir(parents=True)
        for name, text in self.OWN.files.items():
            (tmp_path / "mine" / name).write_text(text)
        found = ["--config-dir=mine", "imbalance=found"] if trust.startswith("trap") else []
        outcome = process(*found, *TINY, "figures=false", FER_LIGHTNING_TRUST=trust, PYTHONSAFEPATH="")
        assert outcome.code == 0, outcome.err
        assert not (tmp_path / "SPRUNG").exists()

    def test_a_module_that_trusted_code_imports_is_named(self, process, tmp_path):
        (tmp_path / "needed.py").write_text("")
        (tmp_path / "trap.py").write_text("import needed\n" + self.SAMPLER)
        (tmp_path / "mine" / "imbalance").mkdir(parents=True)
        for name, text in self.OWN.files.items():
            (tmp_path / "mine" / name).write_text(text)
        given = ("--config-dir=mine", *TINY, "imbalance=found")
        outcome = process(*given, FER_LIGHTNING_TRUST="trap", PYTHONSAFEPATH="")
        assert outcome.code == 2
        assert "(No module named 'needed')" in outcome.error
        assert "FER_LIGHTNING_TRUST names each module of the folder you start in" in outcome.error

    @pytest.mark.parametrize(
        "trust", every_third(["", "tra", "trap.Sample", "trap.Sampler.x", "imbalance", "imbalance.sampler"])
    )
    def test_what_is_not_named_does_not(self, attack, monkeypatch, trust):
        monkeypatch.setenv(safety.TRUST, trust)
        outcome = attack(self.OWN)
        assert outcome.code == 2
        assert self.OWN.named in outcome.error
        assert "FER_LIGHTNING_TRUST=trap.Sampler" in outcome.error

    def test_a_trusted_module_is_not_a_way_to_what_it_imports(self, attack, tmp_path, monkeypatch):
        monkeypatch.setenv(safety.TRUST, "trap")
        (tmp_path / "trap.py").write_text("import torch\n" + self.SAMPLER)
        text = {name: text.replace("trap.Sampler", "trap.torch.hub.load") for name, text in self.OWN.files.items()}
        assert any("trap.torch.hub.load" in each for each in text.values())
        outcome = attack(dataclasses.replace(self.OWN, files=text))
        assert outcome.code == 2
        assert "trap.torch.hub.load: is no name of a module that you trust" in outcome.error

    def test_a_trusted_package_does_not_trust_a_key_of_its_name(self, attack, tmp_path, monkeypatch):
        monkeypatch.setenv(safety.TRUST, "bait")
        assert attack(ATTACKS["a node elsewhere"]).code == 2
        assert not (tmp_path / "SPRUNG").exists()

    @pytest.mark.nightly
    def test_keys_of_hydra_can_be_trusted(self, attack, monkeypatch):
        laid = ATTACKS["a program in the way"]
        monkeypatch.setenv(safety.TRUST, "hydra.job.env_set.PATH")
        assert attack(laid).code == 0
        monkeypatch.setenv(safety.TRUST, "hydra.job.env_set.PAT")
        assert attack(laid).code == 2


class TestAllowList:
    def test_it_holds_the_targets_of_the_package(self):
        def targets(node):
            if isinstance(node, dict):
                yield from [node["_target_"]] if "_target_" in node else []
            for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else []:
                yield from targets(child)

        files = [yaml.safe_load(path.read_text()) for path in safety.CONF_DIR.rglob("*.yaml")]
        assert safety.project_targets() == {target for file in files for target in targets(file)}
        assert "fer_lightning.data.synthetic.draw" in safety.project_targets()

    @pytest.mark.slow
    def test_every_choice_of_the_package_passes(self):
        safety.guard_hydra()
        with initialize_config_dir(str(safety.CONF_DIR), version_base="1.3"):
            loader = sys.modules["hydra.core.global_hydra"].GlobalHydra.instance().config_loader()
            groups = [group for group in loader.list_groups("") if group != "hydra"]
            groups += ["hydra/launcher", "hydra/job_logging", "hydra/hydra_logging", "hydra/sweeper"]
            choices = {group: loader.get_group_options(group) for group in groups}
            assert "joblib" in choices["hydra/launcher"]
            for number in range(max(map(len, choices.values()))):
                overrides = [f"{group}={options[number % len(options)]}" for group, options in choices.items()]
                loader.load_configuration("config", overrides, RunMode.RUN)

    def test_a_job_of_a_sweep_is_composed_once(self, monkeypatch):
        safety.guard_hydra()
        for source in SourcesRegistry.instance().types.values():  # another test may have loaded their modules anew
            monkeypatch.setattr(sys.modules[source.__module__], source.__name__, source)
        with initialize_config_dir(str(safety.CONF_DIR), version_base="1.3"):
            loader = sys.modules["hydra.core.global_hydra"].GlobalHydra.instance().config_loader()
            master = loader.load_configuration("config", ["seed=0,1"], RunMode.MULTIRUN)
            first = loader.load_sweep_config(master, ["seed=1"])
            assert len(pickle.dumps(loader)) < 100_000, "launchers pickle it with every job"
            monkeypatch.setattr(loader, "load_configuration", lambda *arguments, **options: pytest.fail("again"))
            second = loader.load_sweep_config(master, ["seed=1"])
        assert first == second
        first.seed = 7
        assert second.seed == 1

    def test_a_checkpoint_cannot_point_to_other_parts_of_itself(self):
        with pytest.raises(UserError, match=r"bait\._target_=os\.mkdir"):
            safety.check({"data": {"source": "${bait}"}, "bait": {"_target_": "os.mkdir"}})

    def test_the_check_is_fast(self):
        cfg = composed()
        started = time.process_time()
        for _ in range(10):
            safety.check(cfg)
        assert (time.process_time() - started) / 10 < 0.02


@pytest.mark.parametrize(
    ("text", "message"),
    every_third(
        [
            ("x: {_target_: trap.touch}", "callbacks.x._target_=trap.touch: is not code of this project"),
            ("x: [", "YAML"),
        ]
    ),
)
def test_a_file_that_is_not_chosen_is_named(attack, tmp_path, text, message):
    outcome = attack(Attack("", ("--config-dir=mine", "seed=1"), {"callbacks/evil.yaml": text}))
    assert outcome.code == 2
    assert outcome.error.startswith("error: callbacks/evil.yaml: ")
    assert not (tmp_path / "SPRUNG").exists()


def test_an_environment_variable_that_is_not_set(cli):
    outcome = cli(*TINY, "hydra.job.env_copy=[HOME,FER_UNSET]")
    assert outcome.code == 2
    assert "hydra.job.env_copy: 'FER_UNSET' is not set in the environment" in outcome.error


def test_yaml_makes_no_objects(attack, tmp_path):
    outcome = attack(Attack("", FOUND, experiment("name: !!python/object/apply:os.system [touch SPRUNG]")))
    assert outcome.code == 2
    assert "experiment/found.yaml" in outcome.error
    assert not (tmp_path / "SPRUNG").exists()


KEY = "5afe" * 10


class TestWandbKey:
    @pytest.mark.parametrize(
        "words",
        [
            [f"+hydra.job.env_set.WANDB_API_KEY={KEY}"],
            ["hydra.job.env_copy=[WANDB_API_KEY]"],
            [f"tags=[a{KEY}]"],
            ["name=${oc.env:WANDB_API_KEY}"],
            [f"WANDB_API_KEY={KEY}"],
            [f"+wandb_api_key={'1' * 40}"],
            ["-m", f"tags=[{KEY}],[a]"],
            [f"hydra.run.dir={KEY}"],
        ],
    )
    def test_it_is_refused_on_the_command_line(self, cli, tmp_path, monkeypatch, words):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        outcome = cli(*words, *TINY)
        assert outcome.code == 2
        assert "set it in the environment only" in outcome.error
        assert KEY not in outcome.err + outcome.out
        assert list(tmp_path.iterdir()) == []

    @pytest.mark.parametrize("text", [f"tags: [{KEY}]", "name: x_WANDB_API_KEY"])
    def test_it_is_refused_in_a_file(self, attack, monkeypatch, text):
        monkeypatch.setenv("WANDB_API_KEY", KEY)
        outcome = attack(Attack("", FOUND, experiment(text)))
        assert outcome.code == 2
        assert "set it in the environment only" in outcome.error
        assert KEY not in outcome.err + outcome.out

    @pytest.mark.parametrize(
        ("words", "environment"),
        [
            pytest.param(["logger=csv"], {}, marks=pytest.mark.slow),
            pytest.param(["-m", "seed=0,1", "logger=wandb"], {"WANDB_MODE": "offline"}, marks=pytest.mark.nightly),
            pytest.param(["logger=wandb"], {"WANDB_BASE_URL": "http://127.0.0.1:9"}, marks=pytest.mark.nightly),
        ],
        ids=["csv", "sweep, offline", "unreachable"],
    )
    def test_it_is_written_nowhere(self, process, tmp_path, words, environment):
        home = tmp_path / "home"
        home.mkdir()
        places = {"HOME": str(home), "TMPDIR": str(home), "WANDB_API_KEY": KEY, "WANDB_SILENT": "false"}
        outcome = process(*words[:-1], *TINY[:5], *TINY[6:], words[-1], **places, **environment)
        assert outcome.code == 0, outcome.err
        assert KEY not in outcome.out + outcome.err
        files = [path for path in tmp_path.rglob("*") if path.is_file()]
        assert not [path for path in files if KEY.encode() in path.read_bytes()]
        assert any(b"test_efficientnet" in path.read_bytes() for path in files), "the search finds what is there"
        assert any(path.suffix == ".wandb" for path in files) == ("logger=wandb" in words)


UNSAFE_MODULES = {"pickle", "cPickle", "dill", "cloudpickle", "shelve", "marshal"}
UNSAFE_CALLS = {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "yaml.load"}
UNSAFE_METHODS = {"load_from_checkpoint", "read_pickle", "unsafe_load", "full_load"}
NEEDS_WEIGHTS_ONLY = {"torch.load", "read_weights", "trainer.fit"}


def unsafe(code: str) -> list[str]:
    """What in some code unpickles, evaluates or starts a shell."""
    matches = []
    text_loaders = {"yaml.BaseLoader"}  # these make text alone
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.ClassDef) and [ast.unparse(base) for base in node.bases] == ["yaml.BaseLoader"]:
            text_loaders.add(node.name)
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [getattr(node, "module", None) or "", *(alias.name for alias in node.names)]
            matches += [name for name in names if name.split(".")[-1] in UNSAFE_MODULES]
        if isinstance(node, ast.Call):
            name = ast.unparse(node.func)
            given = {word.arg: ast.unparse(word.value) for word in node.keywords}
            if name == "yaml.load" and given.get("Loader") in text_loaders:
                continue
            if (
                name in UNSAFE_CALLS
                or name.split(".")[-1] in UNSAFE_METHODS
                or (name in NEEDS_WEIGHTS_ONLY and given.get("weights_only") != "True")
                or given.get("allow_pickle", "False") != "False"
                or given.get("shell", "False") != "False"
            ):
                matches.append(ast.unparse(node))
    return matches


def test_nothing_in_the_package_can_unpickle_or_evaluate():
    """Whatever reads files here reads data."""
    package = {str(path): path.read_text() for path in Path(safety.__file__).parent.parent.rglob("*.py")}
    assert {name: unsafe(code) for name, code in package.items() if unsafe(code)} == {}
    assert all(f"{name}(" in "".join(package.values()) for name in NEEDS_WEIGHTS_ONLY), "so does it read weights"


@pytest.mark.parametrize(
    "code",
    [
        "import pickle",
        "from dill import loads",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "trainer.fit(model, ckpt_path=path)",
        "Model.load_from_checkpoint(path)",
        "np.load(path, allow_pickle=True)",
        "pd.read_pickle(path)",
        "yaml.load(text, yaml.Loader)",
        "class Loader(yaml.Loader): ...\nyaml.load(text, Loader=Loader)",
        "eval(text)",
        "exec(text)",
        "subprocess.run(text, shell=True)",
    ],
)
def test_that_search_finds(code):
    assert unsafe(code)
