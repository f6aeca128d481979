"""What a comparison says, in words: the answer first, then what the data support, and what they do not."""

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import pandas as pd

from fer_lightning.comparison.rows import Rows, is_tested, paired, share_images, varying
from fer_lightning.comparison.runs import Run
from fer_lightning.comparison.statistics import RESAMPLES, Estimate, holm
from fer_lightning.data.faces import EMOTIONS
from fer_lightning.presentation import words
from fer_lightning.presentation.words import count, interval, listed, p_value, percent, points, signed

NAMES = {"f1_macro": "macro F1", "accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
"""The tested metrics, the primary one first."""

SIGNIFICANT = 0.05

PAPER = {
    "undersample": ("test_balanced", 0.494286),
    "weighted_bce": ("test_large", 0.498982),
    "weighted": ("test_large", 0.498982),
    "focal": ("test_large", 0.558316),
}
"""The paper's results: method -> test set (519 of 1,050; 3,675 and 4,112 of 7,365 fit its digits), accuracy."""


PAPER_TRAINING = {"large": 17182, "balanced": 2450}
"""Training images of the paper's protocol: its weighted and focal arms, its undersampled one."""


def winner(
    means: Mapping[str, float], pairs: Mapping[tuple[str, str], Estimate], seeds: int, metric: str = "f1_macro"
) -> str:
    """Which row is first, by how much, and whether that is real.

    Real is what stays significant when all pairs of rows are corrected for together (Holm): the first of many is
    chosen after looking, and a test of the chosen pair alone would not know that.

    Args:
        means: row -> mean of ``metric``.
        pairs: two rows -> the first minus the second; every pair once.
        seeds: of the row with the fewest, or that the two rows with the fewest common ones share.
        metric: what is compared.
    """
    name = NAMES[metric]
    ranked = sorted((row for row in means if not np.isnan(means[row])), key=lambda row: -means[row])
    if len(ranked) < 2:
        return "There is one method only, so there is nothing to compare it with."
    first, second = ranked[:2]
    if means[first] == means[second]:
        return f"{first} and {second} have the same {name}, {percent(means[first])}, and no other has a higher one."
    lead = f"{first} has the highest {name}, {percent(means[first])}"
    if seeds == 1:
        return (
            f"{lead}, {points(means[first] - means[second])} above {second}; with one seed that ranks these models, "
            "not the methods."
        )
    adjusted = dict(zip(pairs, holm([pair.p for pair in pairs.values()]), strict=True))
    against: dict[str, tuple[Estimate, float]] = {}
    for (left, right), estimate in pairs.items():
        if first in (left, right):
            sign = 1 if left == first else -1
            low, high = sorted((sign * estimate.low, sign * estimate.high))
            turned = Estimate(sign * estimate.value, low, high, estimate.p)
            against[right if left == first else left] = (turned, float(adjusted[left, right]))
    beaten = {other for other, (gap, p) in against.items() if gap.value > 0 and p < SIGNIFICANT}
    close = [other for other in ranked[1:] if other not in beaten]
    correction = "" if len(pairs) == 1 else f" over all {len(pairs)} pairs"
    if not close:
        estimate, p = against[second]
        return (
            f"{first} wins: its {name} of {percent(means[first])} beats {second} by {points(estimate.value)} "
            f"({interval(estimate.low, estimate.high)}; {p_value(p, 'Holm ')}{correction})"
            + (f", and every other of the {len(ranked)} methods." if len(ranked) > 2 else ".")
        )
    if second not in close or second not in against:
        told = "" if second not in against else f", and beats {second}"
        return f"No clear winner: {lead}{told}, but cannot be told apart from {listed(close)}."
    estimate, p = against[second]
    who = f"none of the other {len(ranked) - 1} methods" if len(close) == len(ranked) - 1 > 3 else None
    return (
        f"No clear winner: {lead}, {points(estimate.value)} above {second} ({interval(estimate.low, estimate.high)}; "
        f"{p_value(p, 'Holm ')}{correction}), "
        + (f"and {who} can be told apart from it." if who else f"so it cannot be told apart from {listed(close)}.")
    )


def against_baseline(differences: pd.DataFrame, baselines: Mapping[str, str], test_set: str) -> list[str]:
    """One sentence for each clear difference to the baseline, and one for each metric's unclear ones."""
    found = differences[(differences["test_set"] == test_set) & differences["difference"].notna()]
    sentences = []
    for metric, name in NAMES.items():
        unclear: dict[tuple[str, bool], list[str]] = {}
        rows = found[found["metric"] == metric].to_dict("records")
        for row in rows:
            method, base, gap = row["method"], baselines[row["method"]], row["difference"]
            models = "" if row["pairs"] > 1 else ", as far as one seed tells"
            if row["p_holm"] < SIGNIFICANT:
                low, high = (row["low"], row["high"]) if gap > 0 else (-row["high"], -row["low"])
                verb = "beats" if gap > 0 else "is worse than"
                sentences.append(
                    f"{method} {verb} {base} in {name} by {points(abs(gap))} "
                    f"({interval(low, high)}; {p_value(row['p_holm'], 'Holm ')}){models}."
                )
            else:
                spread = interval(row["low"], row["high"])
                told = f"{method} ({signed(gap)} points, {spread}; {p_value(row['p_holm'], 'Holm ')})"
                unclear.setdefault((base, row["p"] < SIGNIFICANT), []).append(told)
        for (base, alone), methods in unclear.items():
            told = f"a difference to {base} in {name}: {', '.join(methods)}."
            sentences.append(
                f"Not clear once {len(rows)} methods are corrected for: {told}" if alone else f"No evidence for {told}"
            )
    return sentences + _trades(found, baselines) + _twins(differences, baselines, test_set)


def _trades(found: pd.DataFrame, baselines: Mapping[str, str]) -> list[str]:
    records = found[found["p_holm"] < SIGNIFICANT].to_dict("records")
    clear = {(row["method"], row["metric"]): row["difference"] for row in records}
    return [
        f"{method} trades accuracy ({signed(clear[method, 'accuracy'])} points to {baselines[method]}) for macro F1 "
        f"({signed(gap)} points): which is better depends on what a mistake on a rare emotion costs."
        for (method, metric), gap in clear.items()
        if metric == "f1_macro" and gap > 0 > clear.get((method, "accuracy"), 0)
    ]


def _twins(differences: pd.DataFrame, baselines: Mapping[str, str], test_set: str) -> list[str]:
    """Differences in the primary metric that are clear only with, or only without, the twins of training images."""
    primary = differences[differences["metric"] == "f1_macro"].to_dict("records")
    table = {(row["test_set"], row["method"]): row for row in primary}
    sentences = []
    for (name, method), whole in table.items():
        dedup = table.get((f"{test_set}_dedup", method))
        if name != test_set or dedup is None or np.isnan(whole["p_holm"]) or np.isnan(dedup["p_holm"]):
            continue
        if (whole["p_holm"] < SIGNIFICANT) != (dedup["p_holm"] < SIGNIFICANT):
            only = "with" if whole["p_holm"] < SIGNIFICANT else "without"
            sentences.append(
                f"The difference between {method} and {baselines[method]} in macro F1 is clear only {only} the test "
                "images that have a pixel-identical twin in training "
                f"({signed(whole['difference'])} points with, {signed(dedup['difference'])} without)."
            )
    return sentences


def limits(
    differences: pd.DataFrame, per_class: pd.DataFrame, test_set: str, seeds: Sequence[int], synthetic: bool
) -> list[str]:
    """What the data cannot show."""
    sentences = []
    if synthetic:
        sentences.append("The faces are drawn: nothing here is about FER-2013 or real faces.")
    rows = differences[(differences["test_set"] == test_set) & (differences["metric"] == "f1_macro")]
    half = ((rows["high"] - rows["low"]) / 2).median()
    if max(seeds) == 1:
        sentences.append(
            "One seed cannot rank methods: a second seed may turn the order round. Repeat with more seeds, as in "
            "`-m seed=0,1,2,3,4`."
        )
    elif half > 0:
        number = str(max(seeds)) if min(seeds) == max(seeds) else f"{min(seeds)} to {max(seeds)}"
        sentences.append(
            f"Differences in macro F1 below about {points(half)} cannot be shown with these {number} seeds and test "
            "images; that none is shown does not mean that there is none."
        )
    counts = {str(emotion): int(n) for emotion, n in zip(per_class["emotion"], per_class["n"], strict=True)}
    present = {emotion: n for emotion, n in counts.items() if n}
    if present:
        rarest = min(present, key=present.__getitem__)
        n = present[rarest]
        recall = float(per_class[per_class["emotion"] == rarest]["recall"].max())
        error = np.sqrt(recall * (1 - recall) / n)
        sentences.append(
            f"The test set has {count(n)} images of {rarest}: one of them is {points(1 / n)} of its recall and "
            f"{points(1 / n / len(present))} of balanced accuracy"
            + (f"; the standard error of its recall is about {points(error)}." if error > 0 else ".")
        )
    absent = [emotion for emotion in EMOTIONS if counts.get(emotion, 0) == 0]
    if absent:
        sentences.append(f"The test set has no image of {listed(absent)}: nothing is known about it.")
    return sentences


def paper(methods: Mapping[str, str], summary: pd.DataFrame, sizes: Mapping[str, float]) -> pd.DataFrame:
    """The paper's numbers beside ours.

    Args:
        methods: row -> imbalance method.
        summary: as in ``Comparison``.
        sizes: test set -> images in it.

    Returns:
        As in ``Comparison``; empty when none of the methods is the paper's.
    """
    accuracies = summary[summary["metric"] == "accuracy"].to_dict("records")
    table = {(row["method"], row["test_set"]): row for row in accuracies}
    records = []
    for row, method in methods.items():
        test_set, accuracy = PAPER.get(method, ("", np.nan))
        if (row, test_set) in table:
            ours = table[row, test_set]
            interval = {key: float(ours[key]) for key in ("mean", "low", "high")}
            records.append(
                {"method": row, "test_set": test_set, "paper_accuracy": accuracy, **interval, "n": sizes[test_set]}
            )
    columns = ["method", "test_set", "paper_accuracy", "mean", "low", "high", "n"]
    return pd.DataFrame(records, columns=columns)


def honest_sentence(
    rows: Rows, table: pd.DataFrame, summary: pd.DataFrame, sizes: Mapping[str, float], seeds: int
) -> str:
    """What the paper's numbers and ours can and cannot say to each other."""
    large = count(sizes["test_large"])
    each = "one seed" if seeds == 1 else f"{seeds} seeds, each with a sample and split of its own"
    accuracy = summary[(summary["metric"] == "accuracy") & (summary["test_set"] == "test_large")]
    ours = ", ".join(f"{row['method']} {percent(row['mean'])}" for row in accuracy.to_dict("records"))
    text = (
        "The paper reports 49.43 % on 1,050 balanced images (519 right), and 49.90 % (weighted) and 55.83 % (focal) on "
        "7,365 images (3,675 and 4,112 right; the counts are inferred from its digits): two different test sets, "
        "single runs, no baseline, so its numbers do not rank undersampling against the other two. Under our reading "
        "of its protocol, whose optimizer, learning rates and head it leaves open, with "
        f"{each} and {large} test images common to all methods, accuracy is {ours}."
    )
    # An interval for the mean of k runs, times sqrt(k + 1): where 95 % of single runs, as the paper's, would be.
    half = (table["high"] - table["low"]) / 2 * np.sqrt(seeds + 1)
    inside = table[(table["paper_accuracy"] - table["mean"]).abs() <= half]
    known = table[table["low"].notna()]
    if len(known):
        names = listed(list(inside["method"])) if len(inside) else "no method"
        text += f" The paper's number is one that a further run of ours could give (95 %) for {names}."
    smaller = [
        f"{name} {_span(training_images(run) for run in members)} instead of {full:,}"
        for name, members in rows.items()
        for full in (PAPER_TRAINING["balanced" if members[0].metrics["imbalance"] == "undersample" else "large"],)
        if any((training_images(run) or full) < full for run in members)
    ]
    cut = [f"training images: {', '.join(smaller)}"] * bool(smaller)
    cut += [f"test images: {large} instead of 7,365"] * (sizes["test_large"] < 7365)
    if cut:
        text += f" Our data are a cut of the paper's ({'; '.join(cut)}), so our numbers are no replication of it."
    return text


def key(runs: Sequence[Run], test_set: str, n: int) -> str:
    """What is compared on what, in a line."""
    metrics = runs[0].metrics
    size = f"{len({run.repeat for run in runs})} folds" if metrics["split"] == "kfold" else f"{test_set} n = {n:,}"
    return f"{words.data_name(metrics)} · split {metrics['split']} · {size}"


def protocol(rows: Rows, test_set: str, sizes: Mapping[str, int], shared: bool, baseline: str | None) -> dict[str, str]:
    """The head of a report: heading -> words."""
    runs = [run for members in rows.values() for run in members]
    metrics = runs[0].metrics
    own = "" if shared else "up to " * (len({run.members[test_set].sum() for run in runs}) > 1)
    images = f"{own}{sizes[test_set]:,}" + ("" if shared else ", other ones for each seed or fold")
    if f"{test_set}_dedup" in sizes:
        without = _span(int(run.members[f"{test_set}_dedup"].sum()) for run in runs)
        images += f"; {without} of them without a pixel-identical twin in training"
    repeats = {"seed": sorted({str(run.metrics["seed"]) for run in runs}, key=_by_number)}
    if metrics["split"] == "kfold":
        repeats["fold"] = sorted({str(run.fold) for run in runs}, key=_by_number)
    budgets = {"steps": "equal optimizer steps", "epochs": "equal epochs"}
    chosen = {budgets[run.metrics.get("budget") or "epochs"] for run in runs}
    commits = sorted({str(run.metrics.get("git_commit"))[:12] for run in runs})
    return {
        "data": words.data_name(metrics),
        "data hash": str(metrics["data_hash"]),
        "labels": {"fer": "FER-2013", "ferplus": "FER+"}.get(runs[0].protocol["labels"], runs[0].protocol["labels"]),
        "split": str(metrics["split"]),
        "test set": test_set,
        "test images": images,
        "seeds": ", folds ".join(", ".join(values) for values in repeats.values()),
        "budget": " and ".join(sorted(chosen)),
        "training images": _by_row(rows, training_images),
        "training steps": _by_row(rows, training_steps),
        "baseline": baseline or "none given",
        "tuning": "as configured; trials before these runs are not known here and not corrected for",
        "code version": ", ".join(commits),
    }


def _by_number(text: str) -> tuple[int, str]:
    return (int(text) if text.isdigit() else 0, text)


def training_images(run: Run) -> int | None:
    """How many images a run was trained with; None where it did not say."""
    counts = run.metrics.get("train/class_counts")
    return sum(counts.values()) if counts else None


def training_steps(run: Run) -> int | None:
    """How many optimizer steps a run's model took, another run's first stage included; None where it did not say."""
    steps = run.metrics.get("train/steps")
    return None if steps is None else steps + run.metrics.get("first_stage/steps", 0)


def _by_row(rows: Rows, number: Callable[[Run], int | None]) -> str:
    """A number of every row in words, told once where they agree."""
    words = {name: _span(number(run) for run in members) for name, members in rows.items()}
    first, *others = dict.fromkeys(words.values())
    return "; ".join(f"{name} {span}" for name, span in words.items()) if others else first


def _span(numbers: Iterable[int | None]) -> str:
    known = sorted({number for number in numbers if number is not None})
    return " to ".join(f"{number:,}" for number in dict.fromkeys((known[0], known[-1]))) if known else "not recorded"


def notes(rows: Rows, baselines: Mapping[str, str], test_set: str, shared: bool, ranks: pd.DataFrame) -> list[str]:
    """How the numbers were made, and what in the runs could mislead; ``shared``: all have the same test images."""
    runs = [run for members in rows.values() for run in members]
    counts = {len(members) for members in rows.values()}
    differs = any(base != name for name, base in baselines.items())
    said = []
    if len(counts) > 1:
        said.append(f"The methods have unequal numbers of seeds ({min(counts)} to {max(counts)}).")
    said += _unpaired(rows, baselines)
    if max(counts) > 1:
        said.append(
            "The interval of a single method is Student's over seeds: how its trainings vary"
            + (" on these test images" if shared else "")
            + ". Methods are compared by the intervals of their differences, not by whether their own overlap."
        )
    if differs:
        said.append(
            f"Differences: methods are paired by seed and by test image. {RESAMPLES:,} bootstrap resamples of the test "
            "images (twins together) give the variance that images cause, the seeds give that of training (Obuchowski "
            "and Rockette 1995; critical values of Cochran and Cox 1957). Holm's p-values are over all methods, for "
            "each metric by itself." + " With one seed the variance of training is left out." * (max(counts) == 1)
        )
    if differs and 2 in counts:
        said.append(
            "Two seeds are too few: in simulations their intervals, very wide, still hold, but Holm's p-values over "
            "several methods found a difference where there was none in up to 10 % of cases. Take three at least."
        )
    if not shared:
        said.append(
            "Each seed or fold has test images of its own; all methods with one seed share them. An image that several "
            "seeds test is resampled in all of them together. There is no McNemar test."
        )
    elif differs:
        said.append(
            "McNemar's exact test compares the majority votes of these very models on these images; that another "
            "training would vote otherwise is not in it, so a small p is weaker evidence about the methods."
        )
    if len(ranks):
        blocks = ranks.attrs["blocks"]
        said.append(
            f"Ranks are within {blocks} blocks, the seeds{' or folds' * (not shared)} of one data set, not several "
            "data sets: they say how stable the order is here"
            + (", and so few blocks rarely show a difference." if blocks < 10 else ".")
        )
    steps = list(dict.fromkeys(_span(training_steps(run) for run in members) for members in rows.values()))
    if len(steps) > 1:
        said.append(
            f"The methods made unequal numbers of optimizer steps ({'; '.join(steps)}): part of a difference may come "
            "from longer training."
        )
    follows = ("model.name", "model.head.cosine_scale", "model.head.class_scale")  # told by the rows, or by the method
    different = varying([run.settings for run in runs])
    other = [key for key in different if not key.startswith("imbalance.") and key not in follows]
    if other:
        said.append(f"Not the same in all runs: {', '.join(other)}.")
    commits = {str(run.metrics.get("git_commit")) for run in runs}
    if len(commits) > 1:
        said.append(f"The runs come from different versions of the code: {', '.join(sorted(commits))}.")
    if all(run.metrics.get("temperature") is None for run in runs):
        said.append("No run has a temperature (none had validation images to fit it on): calibration is as trained.")
    dedup = f"{test_set}_dedup"
    same_seed = [run for run in runs if run.repeat == runs[0].repeat]
    if is_tested(runs, dedup) and not share_images(same_seed, dedup):
        said.append(
            f"The methods train on different images, so {dedup} differs between them; differences on it are taken on "
            "the images that are in all of them."
        )
    return said


def _unpaired(rows: Rows, baselines: Mapping[str, str]) -> list[str]:
    notes = []
    for name, base in baselines.items():
        pairs = len(paired(rows[name], rows[base]))
        if pairs == 0:
            notes.append(f"{name} and {base} share no seed, so there is no difference between them.")
        elif pairs < max(len(rows[name]), len(rows[base])):
            notes.append(f"The difference between {name} and {base} is over the {pairs} seeds that both have.")
    return notes
