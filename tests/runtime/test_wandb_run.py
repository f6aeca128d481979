"""What W&B is set up with."""

from pathlib import Path

import pytest

from fer_lightning.runtime import wandb_run


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
