"""``pause_after_epochs``: a run that stops after some epochs and is resumed ends as if it had not stopped."""

import pytest
from command_line import TINY
from kill_and_resume import differences, fingerprint
from legs import every_third

from fer_lightning.runtime.run_folder import RESUMABLE, read_status

RUN = (*TINY, "augment=light", "trainer.max_epochs=3")


@pytest.mark.slow
def test_a_paused_run_ends_with_the_bits_of_a_whole_one(cli, tmp_path, trained_once):
    parts = tmp_path / "parts"
    run = (*RUN, f"hydra.run.dir={parts}")
    paused = cli(*run, "pause_after_epochs=1")
    assert paused.code == RESUMABLE
    assert "paused by pause_after_epochs=1; saved at step 9, resume with resume=auto" in paused.out
    assert "error" not in paused.err
    status = {"status": "interrupted", "reason": "paused by pause_after_epochs=1", "step": 9, "pause_after_epochs": 1}
    assert read_status(parts) == status
    assert not (parts / "metrics.json").exists(), "nothing is tested"
    again = cli(*run, "pause_after_epochs=1", "resume=auto")
    assert again.code == RESUMABLE
    assert (parts / "metrics.csv").read_bytes().count(b"\n") == 2, "no further epoch was trained"
    assert cli(*run, "resume=auto").code == 0
    assert differences(parts, fingerprint(trained_once(*RUN))) == []


@pytest.mark.nightly
def test_a_run_that_stops_early_is_paused_too(cli, tmp_path):
    stops = ("callbacks=early_stopping", "callbacks.early_stopping.patience=1", "optim.lr=1e-12")
    run = (*TINY, *stops, "trainer.max_epochs=9", f"hydra.run.dir={tmp_path / 'parts'}")
    assert cli(*run, "pause_after_epochs=5").code == RESUMABLE
    assert read_status(tmp_path / "parts")["pause_after_epochs"] == 5
    assert not (tmp_path / "parts" / "metrics.json").exists()
    assert (tmp_path / "parts" / "metrics.csv").read_bytes().count(b"\n") < 6
    assert cli(*run, "resume=auto").code == 0
    assert (tmp_path / "parts" / "metrics.json").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    every_third(
        [
            (["pause_after_epochs=3"], "pause_after_epochs=3: must be from 1 to 2, below trainer.max_epochs, or null"),
            (["pause_after_epochs=1", "trainer.max_epochs=1"], "pause_after_epochs=1: one epoch cannot be paused"),
        ]
    ),
)
def test_a_pause_that_cannot_be_is_refused(cli, words, message):
    outcome = cli(*RUN, *words)
    assert outcome.code == 2
    assert message in outcome.error
