"""The documentation names only what exists: links, paths, tests, commands, choices, settings, make targets."""

import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from command_line import COMMANDS

from fer_lightning.config.safety import CONF_DIR, TRUST
from fer_lightning.imbalance.losses import CrossEntropy

ROOT = Path(__file__).parent.parent
DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", *sorted(DOCS.glob("*.md"))]
GROUPS = sorted(folder.name for folder in CONF_DIR.iterdir() if folder.is_dir() and folder.name != "hydra")
OWN = {"imbalance=mine", "data=mine", "imbalance.loss.power", "imbalance.loss.gama"}  # additions, and a mistake

every_page = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)


@every_page
def test_links_lead_to_files(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if not link.startswith(("http://", "https://", "#")):
            assert (page.parent / link.partition("#")[0]).exists(), link


@every_page
def test_named_paths_exist(page: Path) -> None:
    design = page.name == "design.md"  # its paths are relative to the package
    bases = [ROOT, ROOT / "tests", *([ROOT / "fer_lightning"] if design else [])]
    for path in re.findall(r"`((?:[\w.-]+/)*[\w.-]+\.(?:py|yaml|toml|md))(?:::\w+)*`", page.read_text()):
        if ("/" in path or design) and not path.endswith(("/mine.yaml", "/root.yaml", "report.md")):
            assert any((base / path).exists() for base in bases), path


@every_page
def test_named_tests_exist(page: Path) -> None:
    for path, *names in re.findall(r"`(?:tests/)?([\w/]+\.py)::(\w+)(?:::(\w+))?", page.read_text()):
        text = (ROOT / "tests" / path).read_text()
        for name in filter(None, names):
            assert re.search(rf"^ *(?:def|class) {name}\b", text, re.M), f"{path}::{name}"


def test_every_fault_has_a_test() -> None:
    tables = re.findall(r"^\| fault \|.*\n\|-.*\n((?:\|.*\n)+)", (DOCS / "faults.md").read_text(), re.M)
    rows = [row for table in tables for row in table.splitlines()]
    assert len(rows) > 50
    assert all("::" in row or "| the same" in row for row in rows)


@pytest.mark.slow
def test_every_fault_has_a_test_that_each_commit_runs() -> None:
    """The nightly leg alone proves none of them."""
    line = [sys.executable, "-m", "pytest", "tests", "--collect-only", "-m", "not nightly"]
    collected = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for row in (DOCS / "faults.md").read_text().splitlines():
        named = re.findall(r"`([\w/]+\.py(?:::\w+)+)`", row) if row.startswith("| ") else []
        assert not named or any(re.search(rf"^tests/{name}\b", collected, re.M) for name in named), row


@every_page
def test_named_commands_exist(page: Path) -> None:
    text = page.read_text()
    for module in re.findall(r"python -m (fer_lightning\.\w+)", text):
        assert (ROOT / f"{module.replace('.', '/')}.py").exists(), module
    for script in re.findall(r"python ((?:benchmarks|tests)/\S+\.py)", text):
        assert (ROOT / script).exists(), script
    for target in re.findall(r"\bmake ([a-z]+(?:-[a-z]+)*)(?=[`\s])", code(text)):
        assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.M), target


@every_page
def test_named_choices_and_settings_exist(page: Path) -> None:
    text = page.read_text()
    for group, choices in re.findall(rf"(?<![\w./-])({'|'.join(GROUPS)})=([a-z0-9_,]+)", code(text)):
        for choice in set(choices.split(",")) - {""}:
            assert f"{group}={choice}" in OWN or (CONF_DIR / group / f"{choice}.yaml").exists(), f"{group}={choice}"
    for group, key in re.findall(rf"(?<![\w./-])({'|'.join(GROUPS)})\.([a-z_.]+)\b(?=[=`])", code(text)):
        leaf = rf"^ *{key.split('.')[-1]}:"
        files = (CONF_DIR / group).rglob("*.yaml")
        assert f"{group}.{key}" in OWN or any(re.search(leaf, f.read_text(), re.M) for f in files), f"{group}.{key}"


def code(text: str) -> str:
    """What stands in code of a page, inline or in blocks; prose such as "make sure" is left out."""
    blocks = re.findall(r"```.*?```", text, re.S)
    return "\n".join([*blocks, *re.findall(r"`[^`\n]+(?:\n[^`\n]+)?`", re.sub(r"```.*?```", "", text, flags=re.S))])


@pytest.mark.parametrize("path", sorted((CONF_DIR / "imbalance").glob("*.yaml")), ids=lambda path: path.stem)
def test_the_page_of_methods_says_what_the_files_say(path: Path) -> None:
    lines = [line[1:].strip() for line in path.read_text().splitlines()[:3]]
    assert f"### `{path.stem}`" in (DOCS / "methods.md").read_text()
    assert all(line in (DOCS / "methods.md").read_text() for line in lines)
    assert f"`{path.stem}`" in (ROOT / "README.md").read_text()


@pytest.mark.parametrize("page", ["README.md", "docs/index.md"])
def test_the_number_of_methods_is_right(page: str) -> None:
    methods = list((CONF_DIR / "imbalance").glob("*.yaml"))
    assert f" {len(methods)} methods" in (ROOT / page).read_text()


def test_the_readme_is_read_in_three_minutes() -> None:
    text = (ROOT / "README.md").read_text()
    assert len(text.split()) <= 1500
    assert len(text.splitlines()) <= 150


def test_the_readme_and_the_design_name_every_package() -> None:
    packages = sorted(path.parent.name for path in (ROOT / "fer_lightning").glob("*/__init__.py"))
    for name in packages:
        assert re.search(rf"^  {name}/ ", (ROOT / "README.md").read_text(), re.M), name
        assert re.search(rf"^\| .*`{name}`.* \|", (DOCS / "design.md").read_text(), re.M), name


def test_the_site_has_every_page() -> None:
    nav = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["nav"]
    listed = set(pages_of(nav))
    assert {path.name for path in DOCS.glob("*.md")} <= listed
    assert all((DOCS / page).exists() for page in listed)


def test_the_api_pages_leave_out_the_commands_alone() -> None:
    [pattern] = tomllib.loads((ROOT / "zensical.toml").read_text())["project"]["plugins"]["api-autonav"]["exclude"]
    modules = [path.relative_to(ROOT) for path in (ROOT / "fer_lightning").rglob("*.py") if path.stem != "__init__"]
    names = [".".join(path.with_suffix("").parts) for path in modules]
    left_out = {name for name in names if re.search(pattern.removeprefix("re:"), name)}
    assert left_out == {f"fer_lightning.{name}" for name in ("__main__", *COMMANDS)}


def pages_of(nav: list[dict]) -> Iterator[str]:
    for entry in nav:
        for value in entry.values():
            yield from [value] if isinstance(value, str) else pages_of(value)


def test_the_example_of_a_method_works(cli, tmp_path, monkeypatch) -> None:
    """The two files that docs/contributing.md shows."""
    text = (DOCS / "contributing.md").read_text()
    config, sampler_config = re.findall(r"```yaml\n(.*?)```", text, re.S)
    module, sampler_module = re.findall(r"```python\n(.*?)```", text, re.S)
    (tmp_path / "mydir" / "imbalance").mkdir(parents=True)
    (tmp_path / "mydir" / "imbalance" / "mine.yaml").write_text(config)
    monkeypatch.setenv(TRUST, "my_methods")
    outcome = cli("--config-dir", "mydir", "imbalance=mine", "imbalance.loss.power=1", "--cfg", "job")
    assert outcome.code == 0, outcome.err
    typo = cli("--config-dir", "mydir", "imbalance=mine", "imbalance.loss.powr=1")
    assert (
        typo.error
        == "error: imbalance.loss.powr: no such key (did you mean imbalance.loss.power?); imbalance.loss has: power"
    )
    _, power = yaml.safe_load(outcome.out)["imbalance"]["loss"].values()
    names: dict = {}
    exec(module, names)
    counts, logits, labels = [5, 1, 4, 9, 6, 4, 6], torch.randn(7, 7), torch.arange(7)
    expected = CrossEntropy(counts, weighting="inverse")(logits, labels)
    torch.testing.assert_close(names["PowerWeighted"](counts, power=power)(logits, labels), expected)

    exec(sampler_module, names)
    settings = yaml.safe_load(sampler_config)["sampler"]
    assert settings.pop("_target_").endswith("RootSampler")
    sizes = np.array([8000, 500])
    sampler = names["RootSampler"](np.repeat([0, 1], sizes), seed=0, **settings)
    share = (sampler.sample_epoch(torch.Generator().manual_seed(0)) < sizes[0]).double().mean().item()
    assert share == pytest.approx((sizes**0.25 / (sizes**0.25).sum())[0], abs=0.02)
