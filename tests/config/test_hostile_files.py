"""Configuration files of unknown origin: each kind of fault that one could cause ends in one line, in bounded time."""

import re
import time
from contextlib import suppress
from pathlib import Path

import pytest
import yaml
from command_line import TINY
from hydra.errors import HydraException
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from fer_lightning.config import hydra_keys, interpolations, safety, schema, yaml_files
from fer_lightning.config.compose import composed
from fer_lightning.config.secrets import check_secrets
from fer_lightning.config.targets import target
from fer_lightning.config.yaml_files import read_yaml
from fer_lightning.runtime.errors import UserError

FEW = settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
TOKEN = "hf_not_a_real_token"


def refuse(folder: Path, text: str, *overrides: str) -> str:
    """Compose a run with a found file, and return the one line with which it is refused."""
    (folder / "experiment").mkdir()
    (folder / "experiment" / "found.yaml").write_text(f"# @package _global_\n{text}")
    line = [*TINY, f"hydra.searchpath=[{folder}]", "experiment=found", *overrides]
    with pytest.raises(UserError) as refusal, composed(line, folder / "run"):
        pass
    assert not (folder / "run").exists()
    assert "\n" not in str(refusal.value)
    return str(refusal.value)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("mode: MULTIRUN", "hydra.mode=MULTIRUN"),
        ("job: {chdir: true}", "hydra.job.chdir=True"),
        ("job: {name: ../x}", "hydra.job.name=../x"),
        ("job: {env_copy: []}", "hydra.job.env_copy=[]"),
        ("run: {dir: /x}", "hydra.run.dir=/x"),
        ("output_subdir: ../x", "hydra.output_subdir=../x"),
        ("output_subdir: record", "hydra.output_subdir=record"),
        ("sweep: {subdir: ../x}", "hydra.sweep.subdir=../x"),
        ("callbacks: null", "hydra.callbacks=None"),
        ("callbacks: {validate: null}", "hydra.callbacks.validate=None"),
        ("callbacks: {validate: {_partial_: true}}", "hydra.callbacks.validate._partial_=True"),
        ("job_logging: {handlers: {file: {mode: w}}}", "hydra.job_logging.handlers.file.mode=w"),
        ("runtime: {choices: {data: x}}", "hydra.runtime.choices.data=x"),
        ("launcher: {setup: null}", "hydra.launcher.setup=None"),
        ("help: {footer: '$FOO'}", "hydra.help.footer=$FOO"),
        ("'${x}'", "hydra=${x}"),
    ],
)
def test_a_file_sets_next_to_nothing_of_hydras(text, named):
    config = OmegaConf.create(yaml.safe_load(f"hydra: {text if text[0] in chr(39) else '{' + text + '}'}"))
    with pytest.raises(UserError) as refusal:
        hydra_keys.check_file(config, "experiment/found")
    assert str(refusal.value).startswith(f"{named}: ")


PLAIN = ("help: {footer: ours}", "launcher: {partition: gpu, timeout_min: 9}", "sweeper: {params: {seed: '1,2'}}")


@pytest.mark.parametrize("text", PLAIN)
def test_a_file_may_set_help_texts_and_plain_options(text):
    hydra_keys.check_file(OmegaConf.create(yaml.safe_load(f"hydra: {{{text}}}")), "experiment/ours")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("hydra: {job: {chdir: true}}", "hydra.job.chdir=True"),
        ("defaults: [{override /hydra/launcher: joblib}]", "hydra.launcher=joblib"),
        ("defaults: [{/callbacks@hydra.callbacks.validate: ema}]", "callbacks/ema@hydra.callbacks.validate"),
        ("defaults: [{override /hydra/job_logging: none}]", "override /hydra/job_logging: has no effect"),
    ],
)
def test_hydra_asks_before_it_uses_a_file(tmp_path, text, named):
    assert refuse(tmp_path, text).startswith(named)


def test_a_file_with_the_name_of_the_projects_own_is_not_ignored_in_silence(tmp_path):
    (tmp_path / "imbalance").mkdir()
    (tmp_path / "imbalance" / "focal.yaml").write_text("defaults: [none]\nname: focal\n")
    refusal = refuse(tmp_path, "imbalance: {loss: {gamma: 3}}", "imbalance=focal")
    assert "imbalance/focal.yaml: has the name of a file of this project" in refusal


def test_more_callbacks_than_can_be_composed_in_time_are_one_line(cli, tmp_path):
    (tmp_path / "callbacks").mkdir()
    for number in range(60):
        (tmp_path / "callbacks" / f"c{number}.yaml").write_text(f"c{number}: {{a: 1, b: 2}}\n")
    outcome = cli(f"--config-dir={tmp_path}", *TINY, "hydra.run.dir=run")
    assert outcome.code == 2
    assert re.search(r"callbacks/: has \d\d files, and at most 50 are read", outcome.error)


@pytest.mark.parametrize("key", ["loss", "sampler"])
def test_a_method_without_a_part_is_one_line(tmp_path, key):
    (tmp_path / "imbalance").mkdir()
    (tmp_path / "imbalance" / "mine.yaml").write_text(f"defaults: [none@_here_]\nname: mine\n{key}: null\n")
    line = [*TINY, f"hydra.searchpath=[{tmp_path}]", "imbalance=mine"]
    with pytest.raises(UserError, match=rf"^imbalance\.{key}=null: must say what makes it"), composed(line):
        pass


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("fer_lightning.imbalance.losses.CrossEntropy", "missing a required argument: 'class_counts'"),
        ("fer_lightning.config.hook.Validate", "got an unexpected keyword argument"),
        ("fer_lightning.data.folder.load", "missing a required argument: 'path'"),
    ],
)
def test_a_class_of_another_place_is_one_line(name, reason):
    with pytest.raises(UserError, match=r"^imbalance\.sampler\._target_=") as refusal:
        target(OmegaConf.create({"_target_": name}), "imbalance.sampler")(labels=[0, 1], seed=0)
    assert reason in str(refusal.value)


@pytest.mark.parametrize("name", ["../x", "/x", "..", ".x", "a=b", "a" * 101, "", None, "a\nb"])
def test_a_name_stays_within_its_folder(name):
    for names in ((name, "none"), ("run", name)):
        with pytest.raises(UserError, match="part of folder names"):
            schema.check_names(*names)


@pytest.mark.parametrize("names", [("../x", None), ("x", "../x"), ("x", "/x"), ("x", None, "../x"), ("x", None, ".")])
def test_names_of_hydras_files_stay_within_the_folder(names):
    with pytest.raises(UserError, match=r"^hydra\."):
        hydra_keys.check_file_names(*names)


@pytest.mark.parametrize("node", [None, {}, {"_target_": "x"}, {**hydra_keys.CALLBACKS["validate"], "_partial_": True}])
def test_validation_cannot_be_switched_off(node):
    callbacks = {**hydra_keys.CALLBACKS, "validate": node}
    with pytest.raises(UserError, match=r"hydra\.callbacks\.validate="):
        hydra_keys.check_callbacks(OmegaConf.create({"callbacks": callbacks}))


@pytest.mark.parametrize(
    "changed", [{"verbose": {}}, {"launcher": None}, {"sweeper": {"_target_": "x", "max_batch_size": 0}}]
)
def test_what_hydra_only_asserts_is_one_line(changed):
    node = {"verbose": False, "launcher": {"_target_": "x"}, "sweeper": {"_target_": "x"}, **changed}
    with pytest.raises(UserError, match=rf"^hydra\.{next(iter(changed))}"):
        hydra_keys.check_types(OmegaConf.create(node))


def test_nor_by_the_command_line(cli, tmp_path):
    outcome = cli(*TINY, "~hydra.callbacks.validate", "optim.lr=-1")
    assert outcome.code == 2
    assert "hydra.callbacks.validate=None" in outcome.error
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "text",
    [
        "${oc.env:HF_TOKEN}",
        '${oc.env:"HF_TOKEN"}',
        "${oc.env:NOPE,${oc.env:HF_TOKEN}}",
        "${oc.env:${x}_TOKEN}",
        "${oc.env:HF_${oc.select:nope,TOKEN}}",
        "${oc${x}.env:HF_TOKEN}",
        "${oc.${x}env:HF_TOKEN}",
        "${oc.select:nope,'${oc.env:HF_TOKEN}'}",
        r"\${oc.env:HF_TOKEN}",
        "${ oc.env : HF_TOKEN }",
        "${oc.decode:x}",
        "${oc.env:PATH}",
    ],
)
def test_a_text_reads_no_secret(text):
    with pytest.raises(UserError, match=r"^name="):
        interpolations.check_interpolation("name", text, typed=False)
    with suppress(UserError):
        interpolations.check_interpolation("name", text, typed=True)
        assert "HF_" not in text, "PATH may be typed"


def test_what_resolves_to_a_secret_is_refused_after_resolving_too(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    text = f"tags: ['{TOKEN[:8]}', '${{.0}}{TOKEN[8:]}']"
    line = refuse(tmp_path, text)
    assert line.startswith("tags: holds the secret HF_TOKEN")
    assert TOKEN not in line


@pytest.mark.parametrize(
    ("address", "part"),
    [
        ("postgresql://u:pw@db/x", "postgresql://u:pw@db/x"),
        ("http://user:correct-horse@proxy:3128", "correct-horse"),
        ("https://host/api?user=me&api_key=0123456789", "0123456789"),
        ("https://0123456789abcdef@host/1", "0123456789abcdef"),
        ("https://host/c?sv=1&sig=0123456789", "0123456789"),
        ("https://host/#access_token=0123456789", "0123456789"),
        ("host=db user=u password=correct-horse dbname=x", "correct-horse"),
        ('{"user": "u", "password": "correct-horse"}', "correct-horse"),
        ("Authorization: Bearer 0123456789", "0123456789"),
    ],
    ids=["database", "proxy", "query", "user alone", "signed", "fragment", "settings", "JSON", "header"],
)
def test_passwords_and_tokens_of_addresses_are_secrets(monkeypatch, address, part):
    monkeypatch.setenv("ANY_URL", address)
    with pytest.raises(UserError, match=r"^tags: holds the secret ANY_URL"):
        check_secrets([("tags", f"[{part}]")])
    check_secrets([("tags", "https://host/api?user=me, http://proxy:3128")])


@pytest.mark.parametrize(
    "name",
    [
        *("API_CREDS", "AUTH_HEADER", "SESSION_COOKIE", "A_JWT", "SLACK_WEBHOOK", "GPG_PRIVATE", "SENTRY_DSN"),
        *("OTP", "MY_PIN_CODE", "SESSION_ID", "HASH_SALT"),
    ],
)
def test_names_of_secrets(monkeypatch, name):
    monkeypatch.setenv(name, f"first-line-{TOKEN[:4]}\nsecond-line")
    monkeypatch.setenv("GIT_AUTHOR_NAME", "somebody")
    check_secrets([("tags", "somebody")])
    for text in ("first-line-" + TOKEN[:4], "second-line"):
        with pytest.raises(UserError, match=f"tags: holds the secret {name}"):
            check_secrets([("tags", text)])


def test_a_word_of_this_project_is_no_secret(monkeypatch):
    monkeypatch.setenv("API_TOKEN", "undersample")
    monkeypatch.setenv("DB_SECRET", "focal")
    check_secrets([("the command line", "imbalance=undersample,focal")])


def test_a_checkpoints_configuration_reads_no_secret():
    with pytest.raises(UserError, match=r"^resume=x: name=.*may not read this environment variable"):
        safety.recorded({"name": "${oc.env:HF_TOKEN}"}, "resume=x")


FILES = {
    "aliases": "a0: &a0 [x, x]\n" + "".join(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 9)}]\n" for i in range(1, 9)),
    "merged keys": f"a: &a {{x: 1}}\nb: &b {{<<: [{', '.join(['*a'] * 90)}]}}\nc: {{<<: [{', '.join(['*b'] * 90)}]}}",
    "itself": "a: &a [*a]",
    "nested": "a: " + "[" * 5000 + "]" * 5000,
    "digits": f"seed: {'9' * 5000}",
    "tag": "seed: !!timestamp 2001-99-99",
    "key": "? [a]\n: b",
}


@pytest.mark.parametrize("name", FILES)
def test_a_small_file_takes_bounded_time(tmp_path, name):
    (tmp_path / "config.yaml").write_text(FILES[name])
    started = time.process_time()
    with pytest.raises(UserError, match=r"config\.yaml"):
        yaml_files.read_yaml(tmp_path / "config.yaml")
    assert time.process_time() - started < 1


@pytest.mark.parametrize(
    "text",
    [
        "b0: xxx\n" + "".join(f"b{i}: {f'${{b{i - 1}}}' * 9}\n" for i in range(1, 9)),
        "c0: [1]\n" + "".join(f"c{i}: ['${{c{i - 1}}}', '${{c{i - 1}}}']\n" for i in range(1, 25)),
    ],
    ids=["texts", "lists"],
)
def test_resolving_is_bounded(text):
    started = time.process_time()
    with pytest.raises(UserError, match="expand to more than"):
        interpolations.check_expansion(OmegaConf.create(yaml.safe_load(text)))
    assert time.process_time() - started < 5


@FEW
@given(st.binary(max_size=40) | st.text(alphabet="ab:-&*!<>[]{}?|%@'#,\n 1.~$\x00", max_size=40).map(str.encode))
def test_any_bytes_are_yaml_or_one_line(tmp_path, content):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with suppress(UserError):
        assert isinstance(yaml_files.read_yaml(path), dict | list)


@pytest.mark.parametrize("number", ["1" + "0" * 400, "0x" + "f" * 6000, "-1_" + "0" * 200])
def test_a_whole_number_that_is_no_float_is_refused(tmp_path, number):
    (tmp_path / "a.yaml").write_text(f"optim: {{lr: {number}}}")
    with pytest.raises(UserError, match=r"a whole number has [0-9,]+ digits, and at most 100 are read"):
        read_yaml(tmp_path / "a.yaml")


@pytest.mark.parametrize("setting", ["optim.lr", "trainer.max_epochs", "seed"])
def test_a_typed_whole_number_that_is_no_float_is_refused(tmp_path, setting):
    line = [*TINY, f"{setting}=1{'0' * 400}"]
    message = rf"^{setting}: a whole number has 401 digits, and at most 100 are read"
    with pytest.raises(UserError, match=message), composed(line, tmp_path / "run"):
        pass


def test_half_of_a_character_in_yaml_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text(r'name: "\ud800"')
    with pytest.raises(UserError, match=r"config.yaml.*surrogates not allowed"):
        yaml_files.read_yaml(tmp_path / "config.yaml")


KEYS = st.sampled_from(["name", "seed", "data", "hydra", "_target_", "${x}", ""])
JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.sampled_from(["", "${name}", "???", "${", "\x1b"]),
    lambda children: st.lists(children, max_size=2) | st.dictionaries(KEYS, children, max_size=2),
    max_leaves=4,
)


@FEW
@given(st.dictionaries(KEYS, JSON, max_size=3))
def test_any_recorded_configuration_is_one_or_one_line(content):
    with suppress(UserError):
        interpolations.check_expansion(safety.recorded(content, "x"))


PARTS = ("hydra", ".", "/", "=", "launcher", "setup", "seed", "1,2", "[", "{", "~", "+", "'", "@", "-", "glob(*)", " ")
WORDS = st.lists(st.sampled_from(PARTS), max_size=6).map("".join)


@FEW
@given(st.lists(WORDS, max_size=3))
def test_any_recorded_command_line_is_accepted_or_one_line(argv):
    with suppress(UserError, HydraException):
        hydra_keys.check_recorded(["-m", *argv])


def test_a_choice_whose_name_controls_a_terminal_is_not_offered(cli, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "a\x1b[31m.yaml").write_text("# @package _global_\nseed: 1\n")
    outcome = cli("--config-dir=mine", "--help")
    assert outcome.code == 0, outcome.err
    assert "experiment: demo" in outcome.out
    assert "\x1b" not in outcome.out


def test_a_byte_order_mark_is_reported(cli, tmp_path):
    """Behind one, Hydra does not see where the file belongs."""
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "marked.yaml").write_text("\ufeff# @package _global_\nseed: 3\n", encoding="utf-8")
    outcome = cli(f"--config-dir={tmp_path / 'mine'}", "experiment=marked")
    assert outcome.code == 2
    assert outcome.error.endswith("marked.yaml: begins with a byte order mark; save it as UTF-8 without one")
