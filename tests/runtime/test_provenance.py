"""The stamps of a run: commit, versions and machine."""

import importlib.metadata
import json
import subprocess
import sys
from pathlib import Path

import torch

from fer_lightning.runtime import provenance


def test_git_commit_of_a_checkout(tmp_path: Path) -> None:
    def git(*arguments: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        command = ["git", *identity, "-C", str(tmp_path), *arguments]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout.strip()

    assert provenance.git_commit(tmp_path) is None
    git("init", "-q")
    (tmp_path / "installed").mkdir()
    (tmp_path / "file.py").write_text("a = 1\n")
    assert provenance.git_commit(tmp_path) is None, "nothing is tracked yet"
    git("add", "file.py")
    git("commit", "-qm", "first")
    commit = git("rev-parse", "HEAD")
    (tmp_path / "installed" / "other.py").write_text("")
    assert provenance.git_commit(tmp_path) == commit
    assert provenance.git_commit(tmp_path / "installed") is None, "code that the repository does not track"
    (tmp_path / "file.py").write_text("a = 2\n")
    assert provenance.git_commit(tmp_path) == f"{commit}-dirty"


def test_environment_names_versions_and_machine() -> None:
    stamp = provenance.environment()
    assert stamp["torch"] == importlib.metadata.version("torch")
    assert stamp["hydra-core"] == importlib.metadata.version("hydra-core")
    assert stamp["python"] == ".".join(map(str, sys.version_info[:3]))
    assert stamp["cpu"]
    assert ("gpu" in stamp) == torch.cuda.is_available()
    json.dumps(stamp)
