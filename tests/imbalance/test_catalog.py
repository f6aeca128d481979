"""The catalogue of methods, and which combinations compose on the command line and which are refused."""

import functools
import math
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import yaml
from command_line import TINY
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from legs import every_nth, every_third
from omegaconf import OmegaConf

from fer_lightning.config.imbalance_rules import imbalance_rules
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.config.schema import validate
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.imbalance import catalog, combinations
from fer_lightning.imbalance.mixing import COLUMNS
from fer_lightning.runtime.errors import UserError
from fer_lightning.training.build import build_loss, build_second_stage

FILES = sorted((CONF_DIR / "imbalance").glob("*.yaml"))
NAMES = {
    "none", "undersample", "undersample_redraw", "oversample", "sqrt_sampler", "progressive_sampler", "weighted",
    "weighted_bce", "sqrt_weighted", "class_balanced", "focal", "class_balanced_focal", "balanced_softmax",
    "logit_adjusted", "posthoc_logit_adjusted", "ldam_drw", "crt", "tau_norm", "lws", "mixup", "remix", "cmo",
    "vs", "dbm", "label_aware_smoothing", "los", "gcl",
    "weight_balancing", "imbsam", "focal_sam", "marc",
}  # fmt: skip


def test_every_method_is_one_file():
    assert {path.stem for path in FILES} == NAMES


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
class TestFiles:
    def test_begins_with_description_formula_and_paper(self, path):
        method = catalog.read_method(path)
        assert re.fullmatch(r"[A-Z].{20,120}\.", method.description)
        assert re.search(r"[=_^]", method.formula)
        assert not method.formula.endswith(".")
        assert re.fullmatch(r"[A-Z].{30,}\.", method.paper)
        assert re.search(r"(19|20)\d\d|Elizabeth and Sadeddin", method.paper)

    def test_every_setting_is_explained(self, path):
        assert [setting.key for setting in catalog.read_method(path).settings if not setting.meaning] == []


@pytest.mark.parametrize("path", every_third(FILES), ids=lambda path: path.stem)
def test_the_listed_defaults_are_those_of_a_run(cli, path):
    cfg = OmegaConf.create(cli("--cfg", "job", f"imbalance={path.stem}").out)
    settings = catalog.read_method(path).settings
    listed = {setting.key: setting.default for setting in settings if "/" not in setting.key}
    assert listed
    raw = OmegaConf.to_container(cfg, resolve=False)
    for key, default in listed.items():
        assert functools.reduce(dict.__getitem__, key.split("."), raw) == yaml.safe_load(default), key


class TestCommand:
    def test_all(self, capsys, monkeypatch):
        monkeypatch.setenv("COLUMNS", "80")
        catalog.print_methods(None)
        lines = capsys.readouterr().out.splitlines()
        assert max(map(len, lines)) <= 80
        rows = {line.split()[0]: line for line in lines[1 : len(NAMES) + 1]}
        assert set(rows) == NAMES
        assert lines[1].split() == ["none", "-", "1.00", "any", "any", "8", "of", "9"]
        assert "…" not in "".join(lines)

    def test_formulas(self, forked):
        outcome = forked("--full", module="fer_lightning.methods", COLUMNS="200")
        assert outcome.code == 0
        rows = re.findall(r"^│ (\w+)", outcome.out, re.M)
        assert set(rows) == NAMES
        assert rows[0] == "none"
        for path in FILES:
            method = catalog.read_method(path)
            assert method.description in outcome.out
            assert method.formula in outcome.out
            assert method.paper in outcome.out

    def test_one(self, forked):
        outcome = forked("focal", module="fer_lightning.methods")
        assert outcome.code == 0
        assert "-alpha_y (1 - p_y)^gamma log p_y" in outcome.out
        assert "\nimbalance.loss.gamma=2.0\n    0 is cross-entropy\n" in outcome.out
        assert "\nimbalance/mix=null\n    cmo | mixup | remix\n" in outcome.out

    def test_settings_of_the_chosen_parts_are_shown(self, forked):
        outcome = forked("cmo", module="fer_lightning.methods")
        assert "\nimbalance.mix.off_share=0.015\n" in outcome.out
        assert "${trainer.max_epochs}" not in outcome.out

    def test_unknown(self, forked):
        outcome = forked("focl", module="fer_lightning.methods")
        assert outcome.code == 2
        assert "focl: no such method (did you mean focal?)" in outcome.error

    def test_imports_nothing_heavy(self):
        code = (
            "import sys; sys.argv = ['methods']; from fer_lightning import methods; methods.main(); "
            "print([name for name in ('torch', 'lightning', 'numpy', 'pandas') if name in sys.modules])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
        assert done.stdout.strip().splitlines()[-1] == "[]"

    def test_what_methods_share_is_no_choice(self, cli):
        shared = sorted((CONF_DIR / "imbalance" / "_base").glob("*.yaml"))
        assert shared
        assert "_base" not in cli("--help").out
        outcome = cli(*TINY, f"imbalance=_base/{shared[0].stem}")
        assert outcome.code == 2
        assert f"imbalance=_base/{shared[0].stem}: no such choice; imbalance is one of: balanced_" in outcome.error

    def test_help_of_a_run_lists_methods_samplers_and_mixing(self, cli):
        out = cli("--help").out
        assert all(name in re.search(r"^imbalance: (.*)$", out, re.M)[1] for name in NAMES)
        assert re.search(r"^imbalance/mix: cmo, mixup, remix$", out, re.M)
        assert re.search(r"^imbalance/sampler: instance, oversample, ", out, re.M)


class TestTable:
    def test_the_page_of_methods_has_it(self):
        """After a change: python -m fer_lightning.methods --markdown."""
        assert catalog.markdown_table() in (CONF_DIR.parent / "docs" / "methods.md").read_text()

    def test_stages(self):
        stages = {row.name: row.stage for row in catalog.table_rows()}
        assert stages | {
            "none": "-", "focal": "loss", "ldam_drw": "loss", "weighted": "loss", "imbsam": "optimizer",
            "oversample": "sampler", "cmo": "data", "gcl": "second stage", "los": "second stage",
            "tau_norm": "after training",
        } == stages  # fmt: skip

    def test_no_loss_costs_more_than_three_percent_of_a_step(self):
        cost = catalog.read_step_cost()["cost"]
        assert cost["none"] == 1
        assert set(cost) <= NAMES
        losses = [row.name for row in catalog.table_rows() if row.stage == "loss"]
        assert {name: cost[name] for name in losses if cost.get(name, 1) > 1.03} == {}

    @pytest.mark.parametrize(
        ("method", "sampler", "mix", "second"),
        every_third(
            [
                ("none", "any", "any", "all but gcl"),
                ("weighted", "instance", "any", "all but gcl, posthoc_logit_adjusted, tau_norm"),
                ("oversample", "any", "all but cmo", "all but gcl, posthoc_logit_adjusted, tau_norm"),
                ("cmo", "instance", "any", "all but gcl, posthoc_logit_adjusted, tau_norm"),
                ("ldam_drw", "instance", "any", "gcl"),
                ("dbm", "any", "any", "none"),
                ("crt", "own", "all but cmo", "own"),
                ("tau_norm", "instance", "all but cmo", "own"),
            ]
        ),
    )
    def test_combinations(self, method, sampler, mix, second):
        row = next(row for row in catalog.table_rows() if row.name == method)
        assert (row.sampler, row.mix, row.second_stage) == (sampler, mix, second)

    def test_the_reasons_are_those_of_the_rules(self):
        refused = combinations.combinations("balanced_softmax").refused
        assert refused["imbalance/sampler=sqrt"].endswith("with imbalance/sampler=instance or imbalance.loss.tau=0")
        reason = refused["imbalance=gcl imbalance.first_stage=RUN"]
        assert reason.endswith("model.head.cosine_scale of balanced_softmax is null, here it is 30.0")
        reason = refused["imbalance=tau_norm imbalance.first_stage=RUN"]
        assert reason.startswith("imbalance=tau_norm: its training had class sizes in the loss, and an adjustment ")

    @pytest.mark.parametrize(
        "methods",
        [
            pytest.param(["tau_norm"], id="one"),
            pytest.param(sorted(NAMES), id="all", marks=pytest.mark.nightly),
        ],
    )
    def test_hydra_composes_and_refuses_the_same(self, methods):
        for method in methods:
            accepted = combinations.combinations(method)
            for group in ("sampler", "mix"):
                for choice in combinations.choices(group):
                    if group == "sampler" and accepted.sampler is None:
                        continue
                    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
                        cfg = compose("config", overrides=[f"imbalance={method}", f"imbalance/{group}={choice}"])
                    own = combinations.compose_method(method, **{group: choice})
                    assert OmegaConf.to_container(cfg.imbalance) == OmegaConf.to_container(own)
                    try:
                        imbalance_rules(cfg)
                        refused = False
                    except UserError:
                        refused = True
                    assert (f"imbalance/{group}={choice}" in accepted.refused) == refused, (method, choice)


@pytest.mark.parametrize(
    "epochs", [pytest.param(1, marks=pytest.mark.slow), pytest.param(2, marks=pytest.mark.nightly)]
)
def test_every_method_runs_at_any_budget(epochs):
    labels = np.arange(70) % 7
    for name in sorted(NAMES) if epochs == 2 else ["cmo", "crt", "gcl", "ldam_drw", "los", "progressive_sampler"]:
        with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
            cfg = compose("config", overrides=[f"imbalance={name}", f"trainer.max_epochs={epochs}"])
        imbalance_rules(cfg)
        build_loss(cfg, [10] * 7, EMOTIONS)
        build_second_stage(cfg)
        instantiate(cfg.imbalance.sampler, _partial_=True)(labels=labels, seed=0)
        if cfg.imbalance.get("mix"):
            mixer = instantiate(cfg.imbalance.mix, _partial_=True)(labels=labels)
            drawn = mixer.sample_mixes(0, np.full((70, COLUMNS), 0.4, np.float32))
            assert (drawn.partner >= 0).any(), name


def test_a_file_without_the_three_lines_is_named(tmp_path):
    (tmp_path / "mine.yaml").write_text("# Mine.\nname: mine\n")
    with pytest.raises(ValueError, match=r"mine\.yaml: the first three lines"):
        catalog.read_method(tmp_path / "mine.yaml")


SOUND = [
    ["imbalance=focal", "imbalance/mix=mixup"],
    ["imbalance=focal", "imbalance/sampler=oversample"],
    ["imbalance=focal", "imbalance/sampler=sqrt", "imbalance/mix=remix"],
    ["imbalance=oversample", "imbalance/mix=mixup"],
    ["imbalance=class_balanced_focal", "imbalance/mix=mixup"],
    ["imbalance=balanced_softmax", "imbalance/mix=cmo", "trainer.max_epochs=7"],
    ["imbalance=ldam_drw", "imbalance/mix=cmo", "trainer.max_epochs=7"],
    ["imbalance=ldam_drw", "imbalance.loss.deferred_share=0", "imbalance/sampler=oversample"],
    ["imbalance=ldam_drw", "imbalance.loss.scale=16"],
    ["imbalance=logit_adjusted", "imbalance.loss.tau=0", "imbalance/sampler=progressive"],
    ["imbalance=cmo", "trainer.max_epochs=2"],
    ["imbalance=crt", "imbalance/mix=mixup", "trainer.max_epochs=2"],
    ["imbalance=posthoc_logit_adjusted", "imbalance/mix=mixup"],
    ["imbalance=posthoc_logit_adjusted", "imbalance.adjust.tau=0", "imbalance/sampler=oversample"],
    ["imbalance=tau_norm", "split=paper", "imbalance.adjust.tau=0.7"],
    ["imbalance=tau_norm", "split=paper", "split.val_fraction=0.1"],
]


@pytest.mark.parametrize("overrides", every_nth(6, SOUND), ids=[" ".join(case) for case in SOUND])
def test_sound_combinations_are_accepted(overrides):
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=overrides, return_hydra_config=True)
        validate(OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"]), cfg.hydra.runtime.choices)


@pytest.mark.parametrize(
    ("method", "setting", "values"),
    every_third(
        [
            ("focal", "loss.gamma", (-1.0, math.inf, math.nan)),
            ("class_balanced_focal", "loss.gamma", (-1.0,)),
            ("none", "loss.label_smoothing", (-0.1, 1.0)),
            ("oversample", "sampler.num_samples", (0, 1.5, True)),
            ("undersample", "sampler.per_class", (0,)),
            ("crt", "second_stage.share", (0.0, 1.0)),
            ("crt", "sampler.share", (0.0, 1.0)),
            ("posthoc_logit_adjusted", "adjust.tau", (-1.0, math.inf, math.nan, True)),
        ]
    ),
)
def test_values_out_of_range_are_refused(method: str, setting: str, values: tuple[float, ...]) -> None:
    with initialize_config_dir(str(CONF_DIR), version_base="1.3"):
        cfg = compose("config", overrides=[f"imbalance={method}"])
    imbalance_rules(cfg)
    for value in values:
        OmegaConf.update(cfg, f"imbalance.{setting}", value)
        with pytest.raises(UserError, match=rf"(?i)^imbalance\.{setting}={value}: must "):
            imbalance_rules(cfg)


TWICE = "correct twice; keep one, with "
REFUSED = [
    (["imbalance=weighted", "imbalance/sampler=oversample"], TWICE + "imbalance/sampler=instance or imbalance.loss."),
    (["imbalance=oversample", "imbalance.loss.weighting=effective"], "or imbalance.loss.weighting=none"),
    (["imbalance=weighted_bce", "imbalance/sampler=undersample"], TWICE),
    (["imbalance=focal", "imbalance.loss.alpha=inverse", "imbalance/sampler=sqrt"], "imbalance.loss.alpha=none"),
    (["imbalance=class_balanced_focal", "imbalance/sampler=progressive"], "or imbalance.loss.beta=0"),
    (["imbalance=balanced_softmax", "imbalance/sampler=oversample"], "or imbalance.loss.tau=0"),
    (["imbalance=logit_adjusted", "imbalance/sampler=undersample_redraw"], TWICE),
    (["imbalance=vs", "imbalance/sampler=oversample"], "class sizes in the loss " + TWICE),
    (["imbalance=ldam_drw", "imbalance/sampler=oversample"], "or imbalance.loss.deferred_share=0"),
    (["imbalance=crt", "imbalance.loss.weighting=inverse", "trainer.max_epochs=2"], TWICE + "a method of one stage or"),
    (["imbalance=cmo", "imbalance/sampler=oversample"], "or imbalance.mix.weighted_alpha=0"),
    (["imbalance=posthoc_logit_adjusted", "imbalance/sampler=sqrt"], "an adjustment after training " + TWICE),
    (["imbalance=posthoc_logit_adjusted", "imbalance.loss.weighting=inverse"], TWICE),
    (["imbalance=tau_norm", "imbalance/sampler=oversample"], TWICE),
    (["imbalance=crt", "optim.schedule=one_cycle"], "optim.schedule=one_cycle: imbalance=crt has a schedule per stage"),
    (["imbalance=lws", "callbacks=early_stopping"], "callbacks=early_stopping: imbalance.sampler depends on"),
    (["imbalance=ldam_drw", "callbacks=early_stopping"], "callbacks=early_stopping: imbalance.loss depends on"),
    (["imbalance=crt", "trainer.max_time=00:00:10:00"], "trainer.max_time=00:00:10:00: imbalance.sampler depends on"),
    (["imbalance=crt", "trainer.check_val_every_n_epoch=2"], "validates each; use 1"),
    (["imbalance=lws", "trainer.strategy=ddp"], "trainer.strategy=ddp: waits for gradients of the backbone"),
    (["imbalance=crt", "callbacks=ema"], "callbacks=ema: would average weights of both stages"),
    (["imbalance=crt", "callbacks=swa"], "callbacks=swa: would average weights of both stages"),
    (["imbalance=crt", "model.freeze_epochs=1"], "model.freeze_epochs=1: imbalance=crt freezes the backbone itself"),
    (["imbalance=crt", "trainer.max_steps=9"], "trainer.max_steps=9: imbalance.sampler depends on trainer.max_epochs"),
    (
        ["imbalance=ldam_drw", "trainer.max_steps=9"],
        "trainer.max_steps=9: imbalance.loss depends on trainer.max_ep",
    ),
    (["imbalance=crt", "imbalance.first_stage=nowhere.ckpt"], "imbalance.first_stage=nowhere.ckpt: no such run"),
    (["imbalance=marc", "imbalance.class_margin=false"], "there are no margins; set imbalance.class_margin=true"),
    (["imbalance=marc", "model.head.cosine_scale=16"], "imbalance=marc has margins of a linear layer; use null"),
    (["imbalance=los", "imbalance.feature_views=-1"], "imbalance.feature_views=-1: must be a number of views"),
    (["imbalance=crt", "imbalance.second_stage.share=1"], "imbalance.second_stage.share=1: must lie between 0 and 1"),
    (
        ["imbalance=crt", "imbalance.second_stage.max_norm=0.1"],
        "imbalance.second_stage.max_norm=0.1: bounds weights of",
    ),
    (["imbalance=imbsam", "optim.sam_rho=0.05"], "optim.sam_rho=0.05: imbalance=imbsam has a radius of its own"),
    (["imbalance=focal_sam", "trainer.accumulate_grad_batches=2"], "imbalance=focal_sam makes three passes"),
    (["imbalance=lws", "imbalance.class_scale=false"], "there are no factors; set imbalance.class_scale=true"),
    (["imbalance=tau_norm", "split=paper"], "split=paper has no validation images to choose tau on; set split.val_fr"),
    (["imbalance=tau_norm", "imbalance.adjust.tau=much"], "imbalance.adjust.tau=much: must be 0 or more, or null"),
    (["imbalance=posthoc_logit_adjusted", "model.head.cosine_scale=16"], "which a cosine head does not have; use null"),
    (["imbalance=ldam_drw", "imbalance.cosine_scale=null"], "imbalance.cosine_scale=null: this loss has margins betw"),
    (["imbalance=ldam_drw", "imbalance.cosine_scale=16"], "it must be imbalance.loss.scale=30.0"),
    (["imbalance=cmo", "imbalance.mix.off_share=0.5"], "imbalance.mix.off_share=0.5: must be 0 or more and below 0.5"),
    (
        ["imbalance=cmo", "imbalance.mix.off_epochs=3"],
        "imbalance.mix.off_epochs: is given as a share of the epochs; use imbalance.mix.off_share",
    ),
    (["imbalance=crt", "imbalance/sampler=oversample"], "imbalance/sampler: this method has a sampler of its own"),
    (["imbalance=focal", "imbalance/mix=mixupp"], "imbalance/mix=mixupp: no such choice (did you mean mixup?)"),
    (["imbalance=mixup", "imbalance.mix.alpa=1"], "imbalance.mix.alpa: no such key"),
    (["imbalance=mixup", "imbalance.mix.alpha=much"], "imbalance.mix.alpha=much: expected a number"),
    (["imbalance.loss.power=-1"], "imbalance.loss.power=-1: must be 0 or more, or null"),
    (
        ["imbalance=focal", "imbalance.loss.alpha=inverse", "imbalance.loss.power=0.5"],
        "imbalance.loss.alpha=inverse: imbalance.loss.power is given too, in its place; use one of them",
    ),
    (
        ["imbalance=focal", "imbalance.loss.alpha=inverse", "imbalance.loss.weights={disgust: 5}"],
        "imbalance.loss.alpha=inverse: imbalance.loss.weights is given too",
    ),
    (["imbalance.loss.weights=5"], "imbalance.loss.weights=5: must name classes with their weights"),
    (["imbalance.loss.weights={disgust: 5}", "imbalance.loss.power=1"], "imbalance.loss.weights is given too"),
    (["imbalance=oversample", "imbalance.loss.weights={disgust: 5}"], "or imbalance.loss.weights=null"),
    (["imbalance=oversample", "imbalance.loss.power=0.5"], "or imbalance.loss.power=0"),
    (["budget=images"], "budget=images: must be steps or epochs"),
]


@pytest.mark.parametrize(("overrides", "message"), every_nth(6, REFUSED), ids=[" ".join(case[0]) for case in REFUSED])
def test_unsound_combinations_are_refused_in_one_line(cli, tmp_path, overrides, message):
    outcome = cli(*overrides)
    assert outcome.code == 2
    assert message in outcome.error
    assert not (tmp_path / "outputs").exists()


@pytest.mark.nightly
def test_mixing_with_another_method_trains(cli, tmp_path):
    outcome = cli(*TINY, "imbalance=focal", "imbalance/sampler=sqrt", "imbalance/mix=remix", "hydra.run.dir=run")
    assert outcome.code == 0, outcome.err
    assert Path(tmp_path, "run", "metrics.json").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    every_third(
        [
            (
                ["imbalance=crt", "imbalance/sampler=oversample"],
                "imbalance/sampler: this method has a sampler of its own",
            ),
            (["imbalance=none", "imbalance.first_stage=x"], "imbalance.first_stage: only methods of two stages, such"),
            (
                ["imbalance=focal", "imbalance.mix.alpha=3"],
                "imbalance.mix.alpha: this run mixes no images; choose imbalance/mix=",
            ),
            (["imbalance=focal", "imbalance/mix=mixup", "imbalance.mix.alfa=3"], "did you mean imbalance.mix.alpha?"),
        ]
    ),
    ids=" ".join,
)
def test_settings_of_other_methods_are_refused(cli, arguments, message):
    outcome = cli(*TINY, *arguments)
    assert outcome.code == 2
    assert message in outcome.error
