"""The methods against class imbalance: ``python -m fer_lightning.methods [NAME]``.

Everything is read from ``conf/imbalance``: the first three comment lines of a method's file are its description, its
formula and its source; the comment behind a knob says what it accepts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml  # type: ignore[import-untyped]
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fer_lightning.config.command_line import Parser, run_tool
from fer_lightning.config.messages import did_you_mean
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.runtime.errors import UserError

FOLDER = CONF_DIR / "imbalance"
NOT_KNOBS = ("_target_", "name", "defaults")


class Knob(NamedTuple):
    """A setting of a method: what to type, its default, and what it accepts or means."""

    key: str
    default: str
    meaning: str


@dataclass(frozen=True)
class Method:
    """What the file of a method says.

    Attributes:
        name: the word after ``imbalance=``.
        description: one sentence.
        formula: plain text.
        paper: authors, year, title and place.
        notes: further comment lines, possibly none.
        knobs: in the order of the files.
    """

    name: str
    description: str
    formula: str
    paper: str
    notes: tuple[str, ...]
    knobs: tuple[Knob, ...]


def read_methods(folder: Path = FOLDER) -> dict[str, Method]:
    """All methods by name, the baseline first."""
    methods = {path.stem: read_method(path) for path in sorted(folder.glob("*.yaml"))}
    return dict(sorted(methods.items(), key=lambda item: item[0] != "none"))


def read_method(path: Path) -> Method:
    """What the file of a method says.

    Raises:
        ValueError: when it does not begin with three comment lines.
    """
    head = []
    for line in path.read_text().splitlines():
        if not line.startswith("#"):
            break
        head.append(line[1:].strip())
    if len(head) < 3:
        raise ValueError(f"{path}: the first three lines must be comments: description, formula, paper")
    description, formula, paper, *notes = head
    return Method(path.stem, description, formula, paper, tuple(notes), tuple(_knobs(path, "imbalance").values()))


def _knobs(path: Path, prefix: str) -> dict[str, Knob]:
    """The knobs of one file by key, after those of the files that its ``defaults`` name."""
    text = path.read_text()
    knobs: dict[str, Knob] = {}
    for entry in yaml.safe_load(text).get("defaults", []):
        if isinstance(entry, str):  # another file of the same group, which this one changes
            knobs |= _knobs(path.with_name(f"{entry}.yaml"), prefix)
            continue
        ((group, choice),) = entry.items()
        group = group.removeprefix("override ")
        choices = " | ".join(sorted(other.stem for other in (path.parent / group).glob("*.yaml")))
        knobs = {key: knob for key, knob in knobs.items() if not key.startswith(f"{prefix}.{group}.")}
        knobs[f"{prefix}/{group}"] = Knob(f"{prefix}/{group}", str(choice or "null"), choices)
        if choice:
            knobs |= _knobs(path.parent / group / f"{choice}.yaml", f"{prefix}.{group}")
    for knob in _leaves(yaml.compose(text), text, prefix):
        inherited = knobs.get(knob.key)
        knobs[knob.key] = knob if knob.meaning or not inherited else knob._replace(meaning=inherited.meaning)
    return knobs


def _leaves(node: yaml.Node, text: str, prefix: str) -> list[Knob]:
    if isinstance(node, yaml.MappingNode):
        children = [(str(key.value), value) for key, value in node.value if key.value not in NOT_KNOBS]
        return [knob for key, value in children for knob in _leaves(value, text, f"{prefix}.{key}")]
    value = " ".join(text[node.start_mark.index : node.end_mark.index].split())
    rest_of_line = text[node.end_mark.index :].partition("\n")[0]
    meaning = rest_of_line.partition("# ")[2]
    follows = value.startswith("${") and not meaning  # another knob, which is the one to set
    return [] if follows else [Knob(prefix, value, meaning)]


def show_all(methods: dict[str, Method], console: Console) -> None:
    """Print a table of all methods."""
    table = Table("imbalance=", "what it does, formula, source", show_lines=True)
    for method in methods.values():
        text = Group(
            Text(method.description), Text(method.formula, style="cyan"), Text(method.paper, style="dim italic")
        )
        table.add_row(Text(method.name, style="bold"), text)
    console.print(table)
    console.print(
        "One method with its knobs: python -m fer_lightning.methods NAME\n"
        "Losses go with other samplers, and with mixing, where that corrects nothing twice: "
        "imbalance=focal imbalance/sampler=oversample imbalance/mix=mixup",
        markup=False,
        highlight=False,
    )


def show_one(method: Method, console: Console) -> None:
    """Print one method in full."""
    for line, style in (
        (f"imbalance={method.name}", "bold"),
        (method.description, ""),
        (method.formula, "cyan"),
        (method.paper, "dim italic"),
        *((note, "") for note in method.notes),
    ):
        console.print(Text(line, style=style), soft_wrap=True)
    for knob in method.knobs:
        console.print(Text(f"\n{knob.key}={knob.default}", style="bold"), soft_wrap=True)
        console.print(Padding(Text(knob.meaning), (0, 0, 0, 4), expand=False))


def main() -> None:
    """The command line."""
    parser = Parser("python -m fer_lightning.methods", description="The methods against imbalance.")
    parser.add_argument("name", nargs="?", help="show this method in full")
    name = parser.parse_args().name
    methods = read_methods()
    if name is not None and name not in methods:
        raise UserError(f"{name}: no such method{did_you_mean(name, list(methods))}; one of: {', '.join(methods)}")
    if name is None:
        show_all(methods, Console())
    else:
        show_one(methods[name], Console())


if __name__ == "__main__":
    run_tool(main)
