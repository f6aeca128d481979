"""Origin of a result: the commit of the code, the versions of the libraries, the machine."""

import hashlib
import platform
import subprocess
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

PACKAGES = (
    "fer_lightning",
    "torch",
    "lightning",
    "timm",
    "hydra-core",
    "torchmetrics",
    "albumentations",
    "numpy",
)
"""Distributions whose versions are recorded with every run."""


def git_commit(folder: Path = Path(__file__).parent) -> str | None:
    """The commit that ``folder`` is checked out from, with ``-dirty`` when tracked files were changed.

    None when the code is not under version control, as for an installed wheel.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(folder), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout.strip()

    try:
        if not git("ls-files", "."):  # a virtual environment inside another repository
            return None
        commit = git("rev-parse", "HEAD")
        return f"{commit}-dirty" if git("status", "--porcelain", "--untracked-files=no") else commit
    except (OSError, subprocess.SubprocessError):
        return None


def file_hash(path: str | Path) -> str | None:
    """128 bits of a file's SHA-256, hexadecimal; None where there is no such file."""
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()[:32]
    except OSError:
        return None


def environment() -> dict[str, str]:
    """Versions of Python and the main libraries, and the names of platform, CPU and GPU."""
    stamp = {"python": platform.python_version(), "platform": platform.platform(), "cpu": _cpu_model()}
    for package in PACKAGES:
        try:
            stamp[package] = version(package)
        except PackageNotFoundError:
            stamp[package] = "not installed"
    import torch  # a sweep's own process does not need it

    if torch.cuda.is_available():
        stamp["cuda"] = str(torch.version.cuda)
        stamp["gpu"] = torch.cuda.get_device_name()
    return stamp


def _cpu_model() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
