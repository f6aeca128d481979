"""What W&B is set up with."""

from pathlib import Path

import pytest

from fer_lightning.runtime import wandb_run
from fer_lightning.runtime.errors import UserError


def test_settings_of_the_working_directory_are_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """They could send the key through a proxy without a check of certificates, or name files to upload."""
    import wandb
    from wandb.sdk import wandb_setup

    hostile, own = tmp_path / "here" / "wandb", tmp_path / "config"
    for folder, lines in (
        (hostile, "https_proxy = http://127.0.0.1:9\ninsecure_disable_ssl = true\nentity = other"),
        (own, "entity = own"),
    ):
        folder.mkdir(parents=True)
        (folder / "settings").write_text(f"[default]\n{lines}\n")
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(own))
    monkeypatch.chdir(hostile.parent)
    wandb.teardown()
    try:
        wandb_run.load_settings()
        settings = wandb_setup.singleton().settings
        assert settings.entity == "own"
        assert settings.https_proxy is None
        assert not settings.insecure_disable_ssl
        assert Path.cwd() == hostile.parent
    finally:
        wandb.teardown()


@pytest.mark.parametrize(
    ("variable", "value"),
    [("WANDB_QUIET", "maybe"), ("WANDB_SILENT", ""), ("WANDB_RUN_ID", "a/b"), ("WANDB_PROJECT", "a/b")],
)
def test_what_wandb_does_not_accept_in_the_environment_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variable: str, value: str
) -> None:
    import wandb

    monkeypatch.setenv(variable, value)
    wandb.teardown()
    try:
        with pytest.raises(UserError, match=r"^logger=wandb: .*; correct that .*variable"):
            wandb_run.start("offline", dir=tmp_path)
    finally:
        monkeypatch.undo()
        wandb.teardown()
