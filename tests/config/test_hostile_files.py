"""Configuration files of unknown origin: each kind of fault that one could cause ends in one line, in bounded time."""

import time
from contextlib import suppress

import pytest
import yaml
from command_line import TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fer_lightning.config import hydra_keys, interpolations, safety, yaml_files
from fer_lightning.config.compose import composed
from fer_lightning.runtime.errors import UserError

FEW = settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKEN = "hf_not_a_real_token"


@pytest.fixture
def refused(tmp_path, monkeypatch):
    """Compose a run with a found file, and return the one line with which it is refused."""
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    (tmp_path / "experiment").mkdir()

    def compose(text: str | bytes) -> str:
        content = text if isinstance(text, bytes) else f"# @package _global_\n{text}".encode()
        (tmp_path / "experiment" / "found.yaml").write_bytes(content)
        with (
            pytest.raises(UserError) as refusal,
            composed([*TINY, f"hydra.searchpath=[{tmp_path}]", "experiment=found"], tmp_path / "run"),
        ):
            pass
        assert not (tmp_path / "run").exists()
        assert TOKEN not in str(refusal.value)
        return str(refusal.value)

    return compose


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hydra: {mode: MULTIRUN}", "hydra.mode=MULTIRUN"),
        ("hydra: {job: {chdir: true}}", "hydra.job.chdir=True"),
        ("hydra: {job: {name: ../x}}", "hydra.job.name=../x"),
        ("hydra: {output_subdir: ../x}", "hydra.output_subdir=../x"),
        ("hydra: {sweep: {subdir: ../x}}", "hydra.sweep.subdir=../x"),
        ("hydra: {callbacks: {validate: null}}", "hydra.callbacks.validate=None"),
        ("hydra: {callbacks: {validate: {_partial_: true}}}", "hydra.callbacks.validate._partial_=True"),
        ("hydra: {job_logging: {handlers: {file: {mode: w}}}}", "hydra.job_logging.handlers.file.mode=w"),
        ("hydra: {job: {env_copy: []}}", "hydra.job.env_copy=[]"),
        ("hydra: null", "hydra=None"),
        ("hydra: {help: {footer: '$FOO'}}", "hydra.help.footer=$FOO"),
        ("defaults: [{override /hydra/launcher: joblib}]", "hydra.launcher=joblib"),
        ("defaults: [{/callbacks@hydra.callbacks.validate: ema}]", "callbacks/ema@hydra.callbacks.validate"),
    ],
)
def test_a_file_sets_next_to_nothing_of_hydras(refused, text, named):
    assert refused(text).startswith(named)


def test_a_file_may_set_help_texts_and_other_keys(tmp_path):
    (tmp_path / "experiment").mkdir()
    text = "# @package _global_\nhydra: {help: {footer: ours}}\noptim: {lr: 0.5}\n"
    (tmp_path / "experiment" / "ours.yaml").write_text(text)
    with composed([*TINY, f"hydra.searchpath=[{tmp_path}]", "experiment=ours"], tmp_path / "run") as cfg:
        assert (cfg.hydra.help.footer, cfg.optim.lr) == ("ours", 0.5)


@pytest.mark.parametrize("key", ["name", "imbalance.name"])
@pytest.mark.parametrize("name", ["../x", "/x", "..", ".x", "a=b", "a" * 101, "''"])
def test_a_name_stays_within_its_folder(tmp_path, key, name):
    with pytest.raises(UserError, match="part of folder names"), composed([*TINY, f"{key}={name}"], tmp_path / "run"):
        pass


@pytest.mark.parametrize(
    "names", [("../x", None), ("x", "../x"), ("x", "/x"), ("x", ".hydra", "../x"), ("x", None, ".")]
)
def test_names_of_hydras_files_stay_within_the_folder(names):
    with pytest.raises(UserError, match=r"^hydra\."):
        hydra_keys.check_file_names(*names)


@pytest.mark.parametrize("change", ["~hydra.callbacks.validate", "hydra.callbacks.validate=null", "+hydra.callbacks.validate._partial_=true"])  # fmt: skip
def test_validation_cannot_be_switched_off(cli, tmp_path, change):
    outcome = cli(*TINY, change, "optim.lr=-1")
    assert outcome.code == 2
    assert "hydra.callbacks.validate" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "name: ${oc.env:HF_TOKEN}",
        "name: '${oc.env:\"HF_TOKEN\"}'",
        "name: ${oc.env:NOPE,${oc.env:HF_TOKEN}}",
        "x: HF\nname: ${oc.env:${x}_TOKEN}",
        "x: ''\nname: ${oc${x}.env:HF_TOKEN}",
        "name: \"${oc.select:nope,'${oc.env:HF_TOKEN}'}\"",
        "tags: ['\\${oc.env:HF_TOKEN}']",
        f"tags: [a{TOKEN}]",
        "name: ${oc.env:PATH}",
    ],
)
def test_a_file_reads_no_secret(refused, text):
    assert "HF_TOKEN" in refused(text) or "may not read" in refused(text) or "interpolation" in refused(text)


def test_a_text_that_stands_for_an_interpolation_is_not_resolved_again(tmp_path):
    overrides = [*TINY, "+a='$'", "+b='{oc.env:HOME}'", "name='${a}${b}'"]
    with pytest.raises(UserError), composed(overrides, tmp_path / "run"):
        pass


def test_a_secret_is_refused_after_resolving_too(tmp_path, monkeypatch):
    monkeypatch.setenv("SOME_PASSWORD", "correct horse")
    with pytest.raises(UserError, match="SOME_PASSWORD"), composed([*TINY, "tags=[correct,'${.0} horse']"], tmp_path / "run"):  # fmt: skip
        pass


def test_a_checkpoints_configuration_reads_no_secret():
    with pytest.raises(UserError, match=r"^resume=x: name=.*may not read this environment variable"):
        safety.recorded({"name": "${oc.env:HF_TOKEN}"}, "resume=x")


BOMBS = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "merged keys": f"a: &a {{x: 1}}\nb: &b {{<<: [{', '.join(['*a'] * 90)}]}}\nc: {{<<: [{', '.join(['*b'] * 90)}]}}",
    "itself": "a: &a [*a]",
    "nested": "a: " + "[" * 500 + "]" * 500,
    "texts": "b0: xxx\n" + "".join(f"b{i}: {'${b%d}' % (i - 1) * 9}\n" for i in range(1, 9)) + "name: ${b8}",
    "lists": "c0: [1]\n" + "".join(f"c{i}: ['${{c{i - 1}}}', '${{c{i - 1}}}']\n" for i in range(1, 25)),
    "defaults": "defaults: [found]",
    "values": f"tags: [{', '.join('a' * 4000)}]",
    "digits": f"seed: {'9' * 5000}",
}


@pytest.mark.parametrize("name", BOMBS)
def test_a_small_file_takes_bounded_time(refused, name):
    started = time.process_time()
    assert "\n" not in refused(BOMBS[name])
    assert time.process_time() - started < 10


@pytest.mark.parametrize("name", ["aliases", "itself", "nested", "digits"])
def test_so_does_the_configuration_of_a_run_folder(tmp_path, name):
    (tmp_path / "config.yaml").write_text(BOMBS[name])
    with pytest.raises(UserError, match="config.yaml"):
        yaml_files.read_yaml(tmp_path / "config.yaml")


def test_resolving_is_bounded_where_an_error_is_caught():
    config = OmegaConf.create(yaml.safe_load(BOMBS["texts"]))
    with pytest.raises(UserError, match="stand for more than"):
        interpolations.check_expansion(config)


@FEW
@given(st.binary(max_size=60) | st.text(alphabet="ab:-&*!<>[]{}?|%@`'\"#,\n 1.~${}\x00é", max_size=60).map(str.encode))
def test_any_bytes_are_yaml_or_one_line(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with suppress(UserError):
        assert isinstance(yaml_files.read_yaml(path), dict | list)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("${name}"),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(max_size=8), children, max_size=3),
    max_leaves=6,
)


@FEW
@given(st.dictionaries(st.sampled_from(["name", "seed", "data", "hydra", "optim", "${x}"]), JSON))
def test_any_recorded_configuration_is_one_or_one_line(content):
    with suppress(UserError):
        interpolations.check_expansion(safety.recorded(content, "x"))


WORD = st.sampled_from(
    ["-m", "--multirun", "-x", "--config-dir", "hydra.mode=MULTIRUN", "seed=1,2", "hydra", "=", "a=["]
)


@FEW
@given(st.lists(WORD | st.text(max_size=12) | st.text(max_size=8).map("hydra.{}".format), max_size=4))
def test_any_recorded_command_line_is_accepted_or_one_line(argv):
    with suppress(UserError, safety.HydraException):
        hydra_keys.check_recorded(["-m", *argv])
