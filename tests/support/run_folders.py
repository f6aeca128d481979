"""Run folders with known predictions, as training leaves them."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from omegaconf import OmegaConf

from fer_lightning.data.faces import EMOTIONS
from fer_lightning.metrics.classification import classification_metrics

TEST_COUNTS = (49, 6, 53, 88, 59, 42, 63)
TRAIN_COUNTS = dict(zip(EMOTIONS, (3995, 436, 4097, 7215, 4830, 3171, 4965), strict=True))


def write_run(
    folder: Path,
    imbalance: str = "none",
    seed: int = 0,
    skill: float = 0.6,
    rare_skill: float = 0.3,
    counts: Sequence[int] = TEST_COUNTS,
    images: np.ndarray | None = None,
    sets: dict[str, np.ndarray] | None = None,
    settings: dict[str, Any] | None = None,
    **metrics: Any,
) -> Path:
    """Write a finished run folder; ``skill`` is the share of images that are right, disgust (``rare_skill``) apart.

    Each test names the few of the many arguments that it is about.

    Args:
        folder: made.
        imbalance: method.
        seed: of the run; with the method it decides which images are right. Hard images are hard for all.
        skill: see above.
        rare_skill: see above.
        counts: images of each emotion in a pool, ordered by emotion; images 0 and 1, 2 and 3, ... of the first twenty
            have twins.
        images: tested places in the pool, the union of ``sets``; default: all.
        sets: test set -> places in the pool; default: ``test``, and ``test_dedup`` without the first five.
        settings: dotted keys of the configuration.
        metrics: put into ``metrics.json``.
    """
    (folder / ".hydra").mkdir(parents=True)
    pool = np.repeat(np.arange(7), counts)
    images = np.arange(len(pool)) if images is None else np.sort(images)
    sets = {"test": images, "test_dedup": images[5:]} if sets is None else sets
    answers = answered(pool, imbalance, seed, skill, rare_skill)[images]
    probabilities = 0.3 / 7 + 0.7 * np.eye(7)[answers]
    predictions_table(pool, images, answers, probabilities, sets).to_csv(folder / "predictions.csv", index=False)
    recorded = {"imbalance": imbalance, **about(seed)}
    for name, places in sets.items():
        rows = np.isin(images, places)
        recorded |= classification_metrics(probabilities[rows], pool[images][rows], EMOTIONS, f"{name}/")
    recorded |= metrics
    (folder / "metrics.json").write_text(json.dumps(recorded))
    (folder / "status.json").write_text(json.dumps({"status": "done"}))
    OmegaConf.save(configuration(recorded, settings or {}), folder / ".hydra" / "config.yaml")
    return folder


def answered(pool: np.ndarray, imbalance: str, seed: int, skill: float, rare_skill: float) -> np.ndarray:
    """The answer to each image of a pool, int (n,)."""
    own, common = np.random.default_rng([seed, *map(ord, imbalance)]), np.random.default_rng(99)
    ease = 0.5 * common.random(len(pool)) + 0.5 * own.random(len(pool))
    right = ease < np.where(pool == 1, rare_skill, skill)
    return np.where(right, pool, (pool + own.integers(1, 7, len(pool))) % 7)


def predictions_table(
    pool: np.ndarray, images: np.ndarray, answers: np.ndarray, probabilities: np.ndarray, sets: dict[str, np.ndarray]
) -> pd.DataFrame:
    named = np.array(EMOTIONS)
    return pd.DataFrame(
        {
            "id": [f"test/{named[pool[i]]}/PrivateTest_{i}.jpg" for i in images],
            "usage": "PrivateTest",
            "label": named[pool[images]],
            "prediction": named[answers],
            **{f"p_{emotion}": probabilities[:, k] for k, emotion in enumerate(EMOTIONS)},
            "twin_group": np.where(images < 20, images // 2 * 2, images),
            **{name: np.isin(images, places).astype(int) for name, places in sets.items()},
        }
    )


def about(seed: int) -> dict[str, Any]:
    """What ``metrics.json`` holds besides scores."""
    return {
        "train/seconds": 60.0 + seed,
        "train/images_per_second": 1000.0,
        "train/steps": 1200,
        "train/class_counts": TRAIN_COUNTS,
        "devices": 1,
        "precision": "32-true",
        "epoch": 2,
        "seed": seed,
        "model": "efficientnet_b0",
        "split": "official",
        "data": "fer2013",
        "data_hash": "abc",
        "synthetic": False,
        "git_commit": "1234",
        "temperature": 1.5,
        "budget": "steps",
        "labels": "fer",
        "tau": None,
    }


def configuration(recorded: dict[str, Any], settings: dict[str, Any]) -> dict[str, Any]:
    """The configuration that agrees with the content of ``metrics.json``, with some dotted keys set."""
    config: dict[str, Any] = {
        "seed": recorded["seed"],
        "budget": recorded["budget"],
        "name": "x",
        "imbalance": {"loss": {"_target_": "L"}},
        "augment": {"name": "none"},
        "optim": {"lr": 0.001},
        "trainer": {"max_epochs": 2},
    }
    for group in ("imbalance", "model", "split", "data", "labels"):
        config.setdefault(group, {})["name"] = recorded[group]
    for key, value in settings.items():
        group, name = key.rsplit(".", 1)
        node = config
        for part in group.split("."):
            node = node.setdefault(part, {})
        node[name] = value
    return config


SKILLS = {"none": (0.6, 0.0), "undersample": (0.45, 0.6), "weighted": (0.56, 0.5), "focal": (0.61, 0.2)}


def write_sweep(folder: Path, seeds: int = 1, skills: dict[str, tuple[float, float]] = SKILLS, **common: Any) -> Path:
    """Write a run of every method for every seed."""
    for seed in range(seeds):
        for number, (method, (skill, rare)) in enumerate(skills.items()):
            write_run(
                folder / f"{seed * len(skills) + number}-{method}-seed{seed}", method, seed, skill, rare, **common
            )
    return folder
