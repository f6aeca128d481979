"""``import fer_lightning``: light, complete, and its ``compare`` is the function."""

import subprocess
import sys
import types

import pytest

import fer_lightning as fl

HEAVY = ("torch", "lightning", "matplotlib", "pandas", "numpy", "hydra", "omegaconf")


def fresh(code: str) -> str:
    """What a Python process prints that starts with this code."""
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout.strip()


def test_the_import_is_light_and_sets_nothing_up():
    code = f"""
import logging, os, signal, sys, threading
before = dict(os.environ), list(logging.root.handlers), signal.getsignal(signal.SIGTERM), threading.active_count()
import fer_lightning as fl
dir(fl)
after = dict(os.environ), list(logging.root.handlers), signal.getsignal(signal.SIGTERM), threading.active_count()
changed = {{key for key in after[0] if after[0][key] != before[0].get(key)}} - {{"OMP_WAIT_POLICY"}}
print(sorted(set({HEAVY}) & set(sys.modules)), changed, before[1:] == after[1:])
print(sorted(name for name in sys.modules if name.startswith("fer_lightning.")))
"""
    assert fresh(code).splitlines() == ["[] set() True", "[]"]


def test_comparing_needs_no_torch():
    code = "import sys, fer_lightning as fl; fl.compare, fl.Run; print({'torch', 'lightning'} & set(sys.modules))"
    assert fresh(code) == "set()"


def test_every_public_name_is_there():
    assert set(fl.__all__) <= set(dir(fl))
    for name in fl.__all__:
        assert getattr(fl, name) is not None
    with pytest.raises(AttributeError, match="module 'fer_lightning' has no attribute 'trian'"):
        fl.trian  # type: ignore[attr-defined]  # noqa: B018


API = "import fer_lightning.api.compare, fer_lightning.api.load, fer_lightning.api.train"


@pytest.mark.nightly
@pytest.mark.parametrize(
    ("first", "api"), [("import fer_lightning.compare", API), ("fl.compare", "import fer_lightning.api.compare")]
)
def test_compare_stays_the_function_beside_the_command_of_that_name(first, api):
    code = f"""
import importlib
import fer_lightning as fl
{first}
steps = (
    "import fer_lightning.compare",
    "from fer_lightning.compare import main",
    "assert importlib.import_module('fer_lightning.compare').main is not None",
    "{api}",
    "importlib.reload(fl)",
    "from fer_lightning import compare",
)
for step in ("", *steps):
    exec(step)
    assert type(fl.compare).__name__ == "function" and fl.compare.__module__ == "fer_lightning.api.compare", step
print(compare is fl.compare)
"""
    assert fresh(code) == "True"


def test_other_commands_can_be_imported_from_the_package():
    from fer_lightning import sweep

    assert isinstance(sweep, types.ModuleType)
