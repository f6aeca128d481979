"""The methods against class imbalance, read from the files in ``conf/imbalance``.

The first three comment lines of a method's file are its description, its formula and its source; the comment after a
setting says which values it accepts.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fer_lightning.config.messages import did_you_mean
from fer_lightning.config.yaml_files import subgroup
from fer_lightning.imbalance.combinations import (
    FOLDER,
    choices,
    combinations,
    in_words,
    second_stages,
    stage,
)
from fer_lightning.runtime.errors import UserError

STEP_COST = Path(__file__).parent / "step_cost.json"
NOT_SETTINGS = ("_target_", "name", "defaults")


class Setting(NamedTuple):
    """A setting of a method: its key on the command line, its default, and what it accepts or means."""

    key: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Method:
    """The content of a method's file.

    Attributes:
        name: the value for ``imbalance=``.
        description: one sentence.
        formula: plain text.
        paper: authors, year, title and section.
        notes: further comment lines, possibly none.
        settings: in the order of the files.
    """

    name: str
    description: str
    formula: str
    paper: str
    notes: tuple[str, ...]
    settings: tuple[Setting, ...]


def read_methods() -> dict[str, Method]:
    """Read all methods, by name, the baseline first."""
    methods = {path.stem: read_method(path) for path in sorted(FOLDER.glob("*.yaml"))}
    return dict(sorted(methods.items(), key=lambda item: item[0] != "none"))


def read_method(path: Path) -> Method:
    """Read the file of a method.

    Raises:
        ValueError: the file does not begin with three comment lines.
    """
    comments = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        comments.append(line[1:].strip())
    if len(comments) < 3:
        raise ValueError(f"{path}: the first three lines must be comments: description, formula, paper")
    description, formula, paper, *notes = comments
    return Method(path.stem, description, formula, paper, tuple(notes), tuple(_settings(path, "imbalance").values()))


def _settings(path: Path, prefix: str) -> dict[str, Setting]:
    """The settings of one file by key, after those of the files in its ``defaults``."""
    text = path.read_text()
    settings: dict[str, Setting] = {}
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str):  # another file of the group, or of its folder _base, which this one changes
            settings |= _settings(path.parent / f"{entry}.yaml", prefix)
            continue
        ((group, choice),) = entry.items()
        group, folder = subgroup(path, group)
        choices = " | ".join(sorted(other.stem for other in folder.glob("*.yaml")))
        settings = {key: setting for key, setting in settings.items() if not key.startswith(f"{prefix}.{group}.")}
        settings[f"{prefix}/{group}"] = Setting(f"{prefix}/{group}", str(choice or "null"), choices)
        if choice:
            settings |= _settings(folder / f"{choice}.yaml", f"{prefix}.{group}")
    root = yaml.compose(text)
    for setting in _leaves(root, text, prefix) if root else []:
        inherited = settings.get(setting.key)
        meaning = setting.meaning or (inherited.meaning if inherited else "")
        settings[setting.key] = setting._replace(meaning=meaning)
    return settings


def _leaves(node: yaml.Node, text: str, prefix: str) -> list[Setting]:
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), value) for key, value in node.value if key.value not in NOT_SETTINGS]
        return [setting for key, value in children for setting in _leaves(value, text, f"{prefix}.{key}")]
    value = " ".join(text[node.start_mark.index : node.end_mark.index].split())
    rest_of_line = text[node.end_mark.index :].partition("\n")[0]
    meaning = rest_of_line.partition("# ")[2]
    is_reference = value.startswith("${") and not meaning  # the setting it refers to is the one to change
    return [] if is_reference else [Setting(prefix, value, meaning)]


def read_step_cost() -> dict[str, Any]:
    """What ``benchmarks/method_cost.py`` measured: ``cost``, by method, and of what, where and by which code."""
    content: dict[str, Any] = json.loads(STEP_COST.read_text())
    return content


class Row(NamedTuple):
    """One method in a few words; the fields are the columns of both tables."""

    name: str
    stage: str
    cost: str
    sampler: str
    mix: str
    second_stage: str


STAGES = ("-", "loss", "optimizer", "sampler", "data", "second stage", "after training")


def table_rows() -> list[Row]:
    """A row for each method, by stage; the baseline first."""
    cost = read_step_cost()["cost"]
    rows = []
    for name in read_methods():
        accepted = combinations(name)
        rows.append(
            Row(
                name,
                stage(name),
                f"{cost[name]:.2f}" if name in cost else "-",
                in_words(accepted.sampler, choices("sampler")),
                in_words(accepted.mix, choices("mix")),
                in_words(accepted.second_stage, second_stages()),
            )
        )
    return sorted(rows, key=lambda row: STAGES.index(row.stage))


def cost_note() -> str:
    """How the costs were measured, in one sentence."""
    measured = read_step_cost()
    task = f"{measured['network']}, {measured['pixels']} px, batch {measured['batch']}"
    return (
        f"Cost: a training step relative to `none`, mean over a run with the method's defaults; {task}; "
        f"{measured['machine']}; commit `{measured['commit'][:12]}`; -: not measured."
    )


def markdown_table() -> str:
    """The table of all methods for docs/methods.md."""
    header = "| `imbalance=` | stage | cost x `none` | `imbalance/sampler=` | `imbalance/mix=` | second stage |"
    rows = [f"| [`{row.name}`](#{row.name}) | {' | '.join(row[1:])} |" for row in table_rows()]
    return "\n".join([header, "|" + "---|" * len(Row._fields), *rows, "", cost_note()])


def print_methods(name: str | None, full: bool = False, markdown: bool = False) -> None:
    """Print a table of all methods, or one method with its settings.

    Args:
        name: of one method; None for all.
        full: each method with its description, formula and source.
        markdown: as docs/methods.md has the table.

    Raises:
        UserError: no method has this name.
    """
    methods, console = read_methods(), Console()
    if name is not None and name not in methods:
        raise UserError(f"{name}: no such method{did_you_mean(name, list(methods))}; one of: {', '.join(methods)}")
    if name is not None:
        _print_method(methods[name], console)
    elif markdown:
        print(markdown_table())
    elif full:
        _print_formulas(methods, console)
    else:
        _print_table(console)


def _print_table(console: Console) -> None:
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("imbalance=", "stage", "cost", "sampler=", "mix=", "2nd stage"):
        table.add_column(column, no_wrap=True)
    for row in table_rows():
        second = combinations(row.name).second_stage
        count = "own" if second is None else f"{len(second)} of {len(second_stages())}"
        table.add_row(Text(row.name, style="bold"), *row[1:-1], count)
    console.print(table)
    console.print(f"\n{cost_note()}\n{HINT}", markup=False, highlight=False)


HINT = """\
sampler=, mix=: the choices of imbalance/sampler and imbalance/mix that are accepted; the others would correct the \
imbalance twice. 2nd stage: how many methods can start from a run of this one (imbalance.first_stage=RUN).
One method, with formula, source, settings and what is refused: python -m fer_lightning.methods NAME
The formulas of all: --full"""


def _print_formulas(methods: dict[str, Method], console: Console) -> None:
    table = Table("imbalance=", "description, formula, source", show_lines=True)
    for method in methods.values():
        text = Group(
            Text(method.description), Text(method.formula, style="cyan"), Text(method.paper, style="dim italic")
        )
        table.add_row(Text(method.name, style="bold"), text)
    console.print(table)


def _print_method(method: Method, console: Console) -> None:
    row = next(row for row in table_rows() if row.name == method.name)
    for line, style in (
        (f"imbalance={method.name}", "bold"),
        (method.description, ""),
        (method.formula, "cyan"),
        (method.paper, "dim italic"),
        *((note, "") for note in method.notes),
        ("", ""),
        (f"stage: {row.stage}; cost of a step: {row.cost} x none", ""),
        (f"imbalance/sampler: {row.sampler}; imbalance/mix: {row.mix}; second stage: {row.second_stage}", ""),
        *((f"refused: {refused}", "") for refused in _refused(method.name)),
    ):
        console.print(Text(line, style=style), soft_wrap=True)
    for setting in method.settings:
        console.print(Text(f"\n{setting.key}={setting.default}", style="bold"), soft_wrap=True)
        console.print(Padding(Text(setting.meaning), (0, 0, 0, 4), expand=False))


def _refused(name: str) -> list[str]:
    """The choices that are refused, those of one reason together."""
    by_reason: dict[str, list[str]] = {}
    for choice, reason in combinations(name).refused.items():
        by_reason.setdefault(reason.partition(": ")[2], []).append(choice)
    return [f"{', '.join(names)}: {reason}" for reason, names in by_reason.items()]
