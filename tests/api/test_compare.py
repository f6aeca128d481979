"""``fl.compare``: the command's numbers as DataFrames; silent, and without a file, unless asked."""

import json
import shutil

import pandas as pd
import pytest
from omegaconf import OmegaConf

import fer_lightning as fl


@pytest.fixture(scope="module")
def sweep(run, tmp_path_factory):
    """Two methods with two seeds each: copies of one run under other names."""
    folder = tmp_path_factory.mktemp("sweep")
    for number, (method, seed) in enumerate([("none", 0), ("focal", 0), ("none", 1), ("focal", 1)]):
        copy = folder / f"{number}-{method}-seed{seed}"
        shutil.copytree(run.folder, copy, ignore=shutil.ignore_patterns("checkpoints"))
        metrics = json.loads((copy / "metrics.json").read_text())
        (copy / "metrics.json").write_text(json.dumps({**metrics, "imbalance": method, "seed": seed}))
        table = pd.read_csv(copy / "predictions.csv", dtype={"id": str})
        table["p_happy"] *= 1 - seed * 1e-9  # predictions of another seed are never the same to the last digit
        table.to_csv(copy / "predictions.csv", index=False)
        config = OmegaConf.load(copy / ".hydra" / "config.yaml")
        OmegaConf.update(config, "imbalance.name", method)
        OmegaConf.update(config, "seed", seed)
        OmegaConf.save(config, copy / ".hydra" / "config.yaml")
    return folder


@pytest.mark.nightly
def test_runs_folders_and_sweeps_compare_alike(sweep, capfd):
    folders = sorted(sweep.iterdir())
    before = sorted(sweep.rglob("*"))
    capfd.readouterr()
    frames = []
    for runs in (
        sweep,
        str(sweep),
        folders,
        [fl.Run(folder) for folder in folders],
        (fl.Run(folders[0]), *folders[1:]),
    ):
        comparison = fl.compare(runs)
        assert isinstance(comparison, fl.Comparison)
        assert list(comparison.rows) == ["none", "focal"]
        frames.append(comparison.summary)
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert capfd.readouterr() == ("", "")
    assert sorted(sweep.rglob("*")) == before


def test_the_frames_hold_the_runs_scores(run, sweep):
    comparison = fl.compare(sweep)
    summary = comparison.summary.set_index(["test_set", "method", "metric"])
    assert summary.loc[("test", "focal", "f1_macro"), "mean"] == pytest.approx(run.metrics["test/f1_macro"])
    assert summary.loc[("test", "focal", "f1_macro"), "seeds"] == 2
    assert set(comparison.differences["method"]) == {"focal"}
    assert (comparison.differences["difference"] == 0).all()
    assert set(comparison.per_class["method"]) == {"none", "focal"}
    assert set(fl.compare(sweep, baseline="focal").differences["method"]) == {"none"}


def test_one_run_can_be_summarised(run):
    comparison = fl.compare(run)
    assert comparison.summary["seeds"].unique().tolist() == [1]
    assert comparison.differences.empty


@pytest.mark.nightly
def test_a_report_where_asked(sweep, tmp_path, cli, monkeypatch):
    from fer_lightning.compare import main

    fl.compare(sweep, out=tmp_path / "ours")
    main([str(sweep), "--out", str(tmp_path / "theirs")])
    ours, theirs = ({file.name for file in (tmp_path / name).iterdir()} for name in ("ours", "theirs"))
    assert ours == theirs
    for name in ("summary.csv", "differences.csv"):
        assert (tmp_path / "ours" / name).read_text() == (tmp_path / "theirs" / name).read_text()


def test_printed_where_asked(sweep, capfd):
    fl.compare(sweep, show=True)
    assert "focal" in capfd.readouterr().out


def test_what_is_left_out_is_a_warning(run, sweep, tmp_path):
    (tmp_path / "status.json").write_text('{"status": "failed", "reason": "disk full"}')
    with pytest.warns(UserWarning, match=f"left out of the comparison: {tmp_path}: failed: disk full") as warned:
        comparison = fl.compare([run, tmp_path])
    assert warned[0].filename == __file__
    assert list(comparison.skipped) == [tmp_path]
    with pytest.warns(UserWarning, match="left out"):
        fl.compare([run, tmp_path], out=tmp_path / "report")
    assert {path.name for path in tmp_path.iterdir()} == {"status.json", "report"}
    assert (tmp_path / "report" / "report.html").exists()
    with pytest.raises(fl.UserError, match=r"no run can be compared \(1 found\)"):
        fl.compare([tmp_path])
    with pytest.raises(fl.UserError, match="is not a folder; give the folders of runs or of sweeps"):
        fl.compare([tmp_path / "missing"])
    for given in ({"runs": "a" * 300}, {"runs": sweep, "votes": "a" * 300}):
        with pytest.raises(fl.UserError, match=r"(runs|votes)='a*': must be a path of at most 4095 bytes, 255 in a"):
            fl.compare(**given)
    for nothing in ([], 3, [3]):
        with pytest.raises(fl.UserError, match="must be runs, folders of runs or sweeps, or a list of these"):
            fl.compare(nothing)  # type: ignore[arg-type]
    with pytest.raises(fl.UserError, match=r"status.json: cannot be made as a folder \(File exists\); give another"):
        fl.compare(sweep, out=tmp_path / "status.json")
    with pytest.raises(fl.UserError, match="out=3: must be a path"):
        fl.compare(sweep, out=3)  # type: ignore[arg-type]
