"""The methods against class imbalance, read from the files in ``conf/imbalance``.

The first three comment lines of a method's file are its description, its formula and its source; the comment after a
setting says which values it accepts.
"""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import yaml
from rich.console import Console, Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from fer_lightning.config.messages import did_you_mean
from fer_lightning.config.safety import CONF_DIR
from fer_lightning.runtime.errors import UserError

FOLDER = CONF_DIR / "imbalance"
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
        if isinstance(entry, str):  # another file of the same group, which this one changes
            settings |= _settings(path.with_name(f"{entry}.yaml"), prefix)
            continue
        ((group, choice),) = entry.items()
        group = group.removeprefix("override ")
        choices = " | ".join(sorted(other.stem for other in (path.parent / group).glob("*.yaml")))
        settings = {key: setting for key, setting in settings.items() if not key.startswith(f"{prefix}.{group}.")}
        settings[f"{prefix}/{group}"] = Setting(f"{prefix}/{group}", str(choice or "null"), choices)
        if choice:
            settings |= _settings(path.parent / group / f"{choice}.yaml", f"{prefix}.{group}")
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


def print_methods(name: str | None) -> None:
    """Print a table of all methods, or one method with its settings.

    Raises:
        UserError: no method has this name.
    """
    methods, console = read_methods(), Console()
    if name is None:
        _print_table(methods, console)
    elif name in methods:
        _print_method(methods[name], console)
    else:
        raise UserError(f"{name}: no such method{did_you_mean(name, list(methods))}; one of: {', '.join(methods)}")


def _print_table(methods: dict[str, Method], console: Console) -> None:
    table = Table("imbalance=", "description, formula, source", show_lines=True)
    for method in methods.values():
        text = Group(
            Text(method.description), Text(method.formula, style="cyan"), Text(method.paper, style="dim italic")
        )
        table.add_row(Text(method.name, style="bold"), text)
    console.print(table)
    console.print(
        "One method with its settings: python -m fer_lightning.methods NAME\n"
        "Losses can be combined with another sampler and with mixing, unless the frequencies would be corrected twice: "
        "imbalance=focal imbalance/sampler=oversample imbalance/mix=mixup",
        markup=False,
        highlight=False,
    )


def _print_method(method: Method, console: Console) -> None:
    for line, style in (
        (f"imbalance={method.name}", "bold"),
        (method.description, ""),
        (method.formula, "cyan"),
        (method.paper, "dim italic"),
        *((note, "") for note in method.notes),
    ):
        console.print(Text(line, style=style), soft_wrap=True)
    for setting in method.settings:
        console.print(Text(f"\n{setting.key}={setting.default}", style="bold"), soft_wrap=True)
        console.print(Padding(Text(setting.meaning), (0, 0, 0, 4), expand=False))
