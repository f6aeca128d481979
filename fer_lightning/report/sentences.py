"""What the numbers of a comparison support, in sentences: the answer, then one group for each part of the report."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fer_lightning.comparison.analysis import PRIMARY, TESTED, Comparison
from fer_lightning.comparison.differences import POWER
from fer_lightning.comparison.ratios import OverRatio, over_ratio
from fer_lightning.metrics.names import SCORES
from fer_lightning.presentation.words import count, interval, listed, p_value, percent, points, signed, span
from fer_lightning.report.tables import is_tied

SYNTHETIC = "SYNTHETIC DATA: drawn faces. The scores say nothing about FER-2013 or real faces."

SIGNIFICANT = 0.05

ROUNDED = 5e-4
"""Differences of scores up to here are the same on the screen."""


def answer(c: Comparison) -> str:
    """Which method wins, by how much, and whether that is clear, or which at each ratio; drawn data are named first."""
    over = over_ratio(c)
    if over is not None:
        return _with_data(c, first_at_each_ratio(over))
    rows = c.summary[(c.summary["test_set"] == c.test_set) & (c.summary["metric"] == PRIMARY)]
    means = {str(row["method"]): float(row["mean"]) for row in rows.to_dict("records")}
    common = c.pairs["seeds"]
    seeds = min([*(len(members) for members in c.rows.values()), *common[common > 0]])
    return _with_data(c, winner(means, c.pairs, seeds))


def _with_data(c: Comparison, sentence: str) -> str:
    if not c.synthetic:
        return sentence
    begins_with_a_name = sentence.startswith(tuple(c.rows))
    return f"On drawn, not real, faces: {sentence if begins_with_a_name else sentence[0].lower() + sentence[1:]}"


def first_at_each_ratio(over: OverRatio) -> str:
    """The method with the highest primary score at each ratio, and where one is clearly better than the baseline."""
    name = SCORES[PRIMARY].heading
    scores = over.scores[(over.scores["metric"] == PRIMARY) & over.scores["mean"].notna()]
    first = []
    for ratio, at in scores.groupby("ratio"):
        best = at["mean"].max()
        tied = {row["method"] for row in at.to_dict("records") if is_tied(row["mean"], best)}
        names = listed([method for method in over.methods if method in tied])
        first.append(f"{names} at {ratio:g} ({percent(best)})")
    gaps = over.differences
    better = gaps[(gaps["metric"] == PRIMARY) & (gaps["p_holm"] < SIGNIFICANT) & (gaps["difference"] > 0)]
    clear = (
        ["no method"]
        if better.empty
        else [f"{row['method']} at {row['ratio']:g}" for row in better.sort_values("ratio").to_dict("records")]
    )
    return (
        f"Highest {name} by the ratio of the training classes: {listed(first) if first else 'unknown'}. "
        f"Clearly better than the baseline at the same ratio (Holm p < 0.05): {listed(clear)}."
    )


def winner(means: Mapping[str, float], pairs: pd.DataFrame, seeds: int) -> str:
    """Which row is first, by how much, and whether that is clear.

    Clear is what stays significant when all pairs of rows are corrected for together (Holm): the first of many is
    chosen after looking, and a test of the chosen pair alone would ignore that.

    Args:
        means: row -> mean of ``PRIMARY``.
        pairs: as ``Comparison.pairs``.
        seeds: of the row with the fewest, or that the two rows with the fewest common ones share.
    """
    name = SCORES[PRIMARY].heading
    ranked = sorted((row for row in means if not np.isnan(means[row])), key=lambda row: -means[row])
    if len(ranked) < 2:
        return "There is one method only, so there is nothing to compare it with."
    first, second = ranked[:2]
    if means[first] == means[second]:
        return f"{first} and {second} have the same {name}, {percent(means[first])}, and no other has a higher one."
    lead = f"{first} has the highest {name}, {percent(means[first])}"
    gaps = _gaps_of(first, pairs)
    if seeds == 1:
        paired = gaps[second]["difference"] if second in gaps else np.nan
        gap = means[first] - means[second] if np.isnan(paired) else paired
        shared = _shared_seeds(gap, means[first] - means[second])
        lead += (
            f", {points(gap)} above {second}{shared}"
            if gap > 0
            else f", though {second} has no lower one with its seed"
        )
        return f"{lead}; with one seed that ranks these models, not the methods."
    correction = "" if len(pairs) == 1 else f" over all {len(pairs)} pairs"
    beaten = {other for other, gap in gaps.items() if gap["difference"] > 0 and gap["p_holm"] < SIGNIFICANT}
    close = [other for other in ranked[1:] if other not in beaten]
    if not close:
        gap = gaps[second]
        return (
            f"{first} wins: its {name} of {percent(means[first])} beats {second} by {points(gap['difference'])}"
            f"{_shared_seeds(gap['difference'], means[first] - means[second])} ({_evidence(gap)}{correction})"
            + (f", and every other of the {len(ranked)} methods." if len(ranked) > 2 else ".")
        )
    if second not in close or second not in gaps:
        also = "" if second not in gaps else f", and beats {second}"
        return f"No clear winner: {lead}{also}, but cannot be distinguished from {listed(close)}."
    gap = gaps[second]
    others = len(ranked) - 1
    shared = _shared_seeds(gap["difference"], means[first] - means[second])
    above = f"{points(gap['difference'])} above {second}{shared}"
    return f"No clear winner: {lead}, {above} ({_evidence(gap)}{correction}), " + (
        f"and none of the other {others} methods can be distinguished from it."
        if len(close) == others > 3
        else f"so it cannot be distinguished from {listed(close)}."
    )


def _shared_seeds(paired: float, of_means: float) -> str:
    """Says that a difference is not that of the two means beside it: one row has seeds that the other lacks."""
    return "" if np.isnan(of_means) or abs(paired - of_means) < ROUNDED else " over the seeds that both have"


def _gaps_of(row: str, pairs: pd.DataFrame) -> dict[str, dict[Any, Any]]:
    """Other row -> ``row`` minus it: difference, low, high, p, p_holm."""
    gaps: dict[str, dict[Any, Any]] = {}
    for pair in pairs.to_dict("records"):
        if pair["first"] == row:
            gaps[pair["second"]] = {**pair}
        elif pair["second"] == row:
            gaps[pair["first"]] = _turned(pair)
    return gaps


def _turned(row: Mapping[Any, Any]) -> dict[Any, Any]:
    """The same difference, taken the other way round."""
    ends = {"low": -row["high"], "high": -row["low"], "low_all": -row["high_all"], "high_all": -row["low_all"]}
    return {**row, "difference": -row["difference"], **ends}


def _evidence(row: Mapping[Any, Any]) -> str:
    """The interval of one difference, the simultaneous one where there are several, and Holm's p."""
    together = "" if row["low"] == row["low_all"] or np.isnan(row["low_all"]) else _simultaneous(row)
    return f"{interval(row['low'], row['high'])}{together}; {p_value(row['p_holm'], 'Holm ')}"


def _simultaneous(row: Mapping[Any, Any]) -> str:
    return f", simultaneous {_range(row['low_all'], row['high_all'])}"


def _range(low: float, high: float) -> str:
    return f"{100 * low:z.1f} to {100 * high:z.1f}"


def _with_interval(name: str, row: Mapping[Any, Any]) -> str:
    """``focal +0.3 (-0.6 to 1.1)``."""
    ends = "" if np.isnan(row["low"]) else f" ({_range(row['low'], row['high'])})"
    return f"{name} {signed(row['difference'])}{ends}"


def on_differences(c: Comparison) -> list[str]:
    """Which rows differ clearly from their baselines, and in which metric; by ratio where that was varied."""
    over = over_ratio(c)
    return against_baseline(c.differences, c.baselines, c.test_set) if over is None else at_each_ratio(over)


def at_each_ratio(over: OverRatio) -> list[str]:
    """One sentence per ratio: the methods that differ clearly in the primary metric from the baseline there."""
    rows = over.differences
    known = rows[(rows["metric"] == PRIMARY) & rows["p_holm"].notna()]
    sentences = []
    for ratio in over.ratios:
        better: list[str] = []
        worse: list[str] = []
        unclear: list[str] = []
        for row in known[known["ratio"] == ratio].sort_values("difference", ascending=False).to_dict("records"):
            group = unclear if row["p_holm"] >= SIGNIFICANT else better if row["difference"] > 0 else worse
            group.append(_with_interval(row["method"], row))
        parts = [
            f"{verdict}: {', '.join(names)}"
            for names, verdict in ((better, "better"), (worse, "worse"), (unclear, "inconclusive after correction"))
            if names
        ]
        if parts:
            sentences.append(
                f"At a ratio of {ratio:g}, in points of {SCORES[PRIMARY].heading} to the baseline with 95 % CI, "
                f"{'; '.join(parts)}."
            )
    return sentences


def against_baseline(differences: pd.DataFrame, baselines: Mapping[str, str], test_set: str) -> list[str]:
    """One sentence for each clear difference to a row's baseline, one for each metric's unclear ones, and trades."""
    known = differences[(differences["test_set"] == test_set) & differences["difference"].notna()]
    sentences = []
    for metric in sorted(TESTED, key=lambda metric: metric != PRIMARY):
        name = SCORES[metric].heading
        unclear: dict[tuple[str, bool], list[str]] = {}
        equal: dict[str, list[str]] = {}
        rows = known[known["metric"] == metric].to_dict("records")
        for row in rows:
            method, base, gap = row["method"], baselines[row["method"]], row["difference"]
            if row["p_holm"] < SIGNIFICANT:
                size = row if gap > 0 else _turned(row)
                verb = "beats" if gap > 0 else "is worse than"
                seeds = "" if row["pairs"] > 1 else ", as far as one seed can show"
                sentences.append(f"{method} {verb} {base} in {name} by {points(abs(gap))} ({_evidence(size)}){seeds}.")
            elif row["low"] == row["high"]:
                equal.setdefault(base, []).append(method)
            else:
                unclear.setdefault((base, row["p"] < SIGNIFICANT), []).append(_with_interval(method, row))
        for base, methods in equal.items():
            sentences.append(f"{listed(methods)}: the same {name} as {base} on every resample of the test images.")
        for (base, alone), methods in unclear.items():
            start = f"Not clear once {len(rows)} methods are corrected for" if alone else "Inconclusive"
            sentences.append(
                f"{start}: the difference to {base} in {name}, in points with 95 % CI: {', '.join(methods)}."
            )
    return sentences + _trades(known, baselines)


def _trades(known: pd.DataFrame, baselines: Mapping[str, str]) -> list[str]:
    records = known[known["p_holm"] < SIGNIFICANT].to_dict("records")
    clear = {(row["method"], row["metric"]): row["difference"] for row in records}
    return [
        f"{method} trades accuracy ({signed(clear[method, 'accuracy'])} points to {baselines[method]}) for macro F1 "
        f"({signed(gap)} points): which is better depends on what a mistake on a rare class costs."
        for (method, metric), gap in clear.items()
        if metric == PRIMARY and gap > 0 > clear.get((method, "accuracy"), 0)
    ]


def on_ratio(over: OverRatio, baselines: Mapping[str, str]) -> list[str]:
    """From which ratio on each method is better than its baseline, by metric; and where it is worse."""
    sentences = []
    for method in over.methods:
        for metric in ("f1_macro", "balanced_accuracy"):
            rows = over.differences[(over.differences["method"] == method) & (over.differences["metric"] == metric)]
            records = rows[rows["p_holm"].notna()].sort_values("ratio").to_dict("records")
            if len(records) < 2 or all(baselines.get(row["row"], row["row"]) == row["row"] for row in records):
                continue
            sentences.append(_where_it_improves(method, metric, records))
    return sentences


def _where_it_improves(method: str, metric: str, records: Sequence[Mapping[Any, Any]]) -> str:
    """Of the differences of one method to the baseline, ascending in the ratio."""
    name = SCORES[metric].heading
    clear = [row["p_holm"] < SIGNIFICANT for row in records]
    better = [is_clear and row["difference"] > 0 for is_clear, row in zip(clear, records, strict=True)]
    worse = [
        f"{row['ratio']:g}" for is_clear, row in zip(clear, records, strict=True) if is_clear and row["difference"] < 0
    ]
    cost = f"; it is worse at {listed(worse)}" if worse else ""
    first = next((place for place in range(len(records)) if all(better[place:])), None)
    if first is not None:
        row = records[first]
        since = "at every ratio" if first == 0 else f"from ratio {row['ratio']:g} upwards"
        return f"{method} improves {name} {since}: {signed(row['difference'])} points there ({_evidence(row)}){cost}."
    if any(better):
        where = listed([f"{row['ratio']:g}" for row, is_better in zip(records, better, strict=True) if is_better])
        return f"{method} is better in {name} at {where}, and not clearly at larger ratios{cost}."
    gaps = ", ".join(f"{signed(row['difference'])} at {row['ratio']:g}" for row in records)
    return f"{method} is at no ratio clearly better in {name} ({gaps} points; inconclusive, not equal){cost}."


def on_twins(changes: pd.DataFrame, baselines: Mapping[str, str], has_twins: bool) -> list[str]:
    """How much leaving out the twins of training images changes each difference in the primary metric."""
    if not has_twins:
        return ["No test image has a pixel-identical twin in training: the scores without twins are the same."]
    clear, unclear = [], []
    name = SCORES[PRIMARY].heading
    for row in changes[changes["p_holm"].notna()].to_dict("records"):
        if row["p_holm"] < SIGNIFICANT:
            clear.append(
                "Without the test images that have a pixel-identical twin in training, the difference of "
                f"{row['method']} to {baselines[row['method']]} in {name} changes by {signed(row['difference'])} "
                f"points ({_evidence(row)})."
            )
        else:
            unclear.append(_with_interval(row["method"], row))
    if unclear:
        clear.append(
            "Inconclusive: the change of the difference to the baseline when test images with a pixel-identical twin "
            f"in training are left out, in points of {name} with 95 % CI: {', '.join(unclear)}."
        )
    return clear


def on_seeds(c: Comparison) -> list[str]:
    """How large a difference must be for these seeds and images to find it in most cases."""
    rows = c.differences[(c.differences["test_set"] == c.test_set) & (c.differences["metric"] == PRIMARY)]
    if max(len(members) for members in c.rows.values()) == 1 or (len(rows) and rows["pairs"].max() == 1):
        return [
            "One seed cannot rank methods: a second seed may reverse the order. Repeat with more seeds, as in "
            "-m seed=0,1,2,3,4."
        ]
    rows = rows[(rows["detectable"] > 0) & (rows["pairs"] > 1)]
    if rows.empty:
        return []
    number = span(rows["pairs"])
    alone, corrected = (float(rows[key].median()) for key in ("detectable", "detectable_all"))
    if alone > 1:
        return [
            f"With {number} seeds and this test set, no true difference in macro F1 is found with {percent(POWER, 0)} "
            "power: it would have to be larger than 100 points. Take more seeds or more test images."
        ]
    size = points(corrected) if corrected <= 1 else "none of up to 100 points"
    holm = f", or {size} where Holm's correction for {len(rows)} methods begins" * (len(rows) > 1)
    return [
        f"With {number} seeds, a true difference in macro F1 of {points(alone)} is found with about "
        f"{percent(POWER, 0)} power when tested alone{holm}; smaller ones are often missed."
    ]


def on_classes(c: Comparison) -> list[str]:
    """What one image of the rarest class weighs, and which classes are absent."""
    sentences = []
    counts = {str(name): int(n) for name, n in zip(c.per_class["class"], c.per_class["n"], strict=True)}
    present = {name: n for name, n in counts.items() if n}
    if present:
        rarest = min(present, key=present.__getitem__)
        n = present[rarest]
        recall = float(c.per_class[c.per_class["class"] == rarest]["recall"].max())
        error = np.sqrt(recall * (1 - recall) / n)
        images, one = ("image", "it") if n == 1 else ("images", "one of them")
        sentences.append(
            f"The test set has {count(n)} {images} of {rarest}: {one} is {points(1 / n)} of its recall and "
            f"{points(1 / n / len(present))} of balanced accuracy"
            + (f"; the standard error of its recall is about {points(error)}." if error > 0 else ".")
        )
    if absent := [name for name in c.classes if counts.get(name, 0) == 0]:
        sentences.append(f"The test set has no image of {listed(absent)}: nothing is known about it.")
    return sentences


def highlights(c: Comparison) -> list[str]:
    """At most three sentences for a terminal: the answer, the baseline in short, what the seeds can show."""
    return [answer(c), *_against_baseline_in_short(c), *on_seeds(c)][:3]


def _against_baseline_in_short(c: Comparison) -> list[str]:
    rows = c.differences[(c.differences["test_set"] == c.test_set) & (c.differences["metric"] == PRIMARY)]
    rows = rows[rows["p_holm"].notna()]
    if len(rows) < 2:  # the answer already names the only difference
        return []
    clear = rows[rows["p_holm"] < SIGNIFICANT]
    bases = sorted({c.baselines[name] for name in rows["method"]})
    against = bases[0] if len(bases) == 1 else "their baselines"
    better, worse = ([str(name) for name in clear[sign * clear["difference"] > 0]["method"]] for sign in (1, -1))
    parts = [
        f"{_some(names)} {'is' if len(names) == 1 else 'are'} {word}"
        for names, word in ((better, "better"), (worse, "worse"))
        if names
    ]
    clearly = " and ".join(parts) or "no method differs clearly"
    return [f"Compared with {against} in macro F1, {clearly} (Holm p < 0.05, {len(rows)} comparisons)."]


def _some(names: Sequence[str]) -> str:
    return listed(names) if len(names) <= 3 else f"{len(names)} methods"
