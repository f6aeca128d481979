"""Samplers: right classes, right order, the same for any number of processes."""

import json
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch import distributed, multiprocessing
from torch.utils.data import DataLoader

from fer_lightning.imbalance.samplers import (
    ClassWeightedSampler,
    Entry,
    EpochSampler,
    EvalShard,
    InstanceSampler,
    ProgressiveSampler,
    TwoStageSampler,
    UnderSampler,
    first_stage_epochs,
)
from fer_lightning.runtime.errors import UserError

COUNTS = np.array([3995, 436, 4097, 7215, 4830, 3171, 4965])
"""FER-2013's Training counts, in label order."""

LABELS = np.random.default_rng(0).permutation(np.repeat(np.arange(7), COUNTS))
SMALL = np.random.default_rng(0).permutation(np.repeat(np.arange(7), [15, 3, 16, 28, 18, 12, 19]))


def build_all(labels: np.ndarray, seed: int) -> dict[str, EpochSampler]:
    return {
        "instance": InstanceSampler(labels, seed),
        "undersample": UnderSampler(labels, seed),
        "undersample redraw": UnderSampler(labels, seed, redraw=True),
        "undersample, one pass": UnderSampler(labels, seed, budget="epochs"),
        "oversample": ClassWeightedSampler(labels, seed),
        "sqrt": ClassWeightedSampler(labels, seed, power=0.5, num_samples=101),
        "progressive": ProgressiveSampler(labels, seed, epochs=3),
        "two stages": TwoStageSampler(labels, seed, epochs=2, share=0.5),
    }


def draws(sampler: EpochSampler, epoch: int) -> list[Entry]:
    sampler.set_epoch(epoch)
    return list(sampler)


def indices(sampler: EpochSampler, epoch: int) -> list[int]:
    return [draw.index for draw in draws(sampler, epoch)]


class TestInstanceSampler:
    def test_every_image_once_in_a_new_order_each_epoch(self):
        sampler = InstanceSampler(LABELS, seed=3)
        first, second = indices(sampler, 0), indices(sampler, 1)
        assert sorted(first) == sorted(second) == list(range(28709))
        assert first != second
        assert first != sorted(first)


class TestUnderSampler:
    @pytest.mark.parametrize(("per_class", "each"), [(None, 436), (350, 350), (1, 1)])
    @pytest.mark.parametrize("redraw", [False, True])
    def test_one_pass_has_the_same_number_of_every_class_without_repetition(self, per_class, each, redraw):
        sampler = UnderSampler(LABELS, seed=0, per_class=per_class, redraw=redraw, budget="epochs")
        chosen = indices(sampler, 0)
        assert len(sampler) == len(chosen) == len(set(chosen)) == 7 * each
        assert np.bincount(LABELS[chosen]).tolist() == [each] * 7

    @pytest.mark.parametrize("redraw", [False, True])
    def test_a_budget_of_steps_repeats_passes_to_the_length_of_the_training_set(self, redraw):
        chosen = np.array(indices(UnderSampler(LABELS, seed=0, redraw=redraw), 0))
        assert len(chosen) == 28709
        for first in range(0, 9 * 3052, 3052):  # whole passes; the tenth is cut
            one_pass = chosen[first : first + 3052]
            assert len(set(one_pass)) == 3052
            assert np.bincount(LABELS[one_pass]).tolist() == [436] * 7
        assert len(set(chosen[9 * 3052 :])) == 28709 - 9 * 3052
        share = 436 / COUNTS  # of a class, in one pass
        missed = (1 - share) ** 9 * (1 - (28709 / 3052 - 9) * share)
        expected = (COUNTS * (1 - missed)).sum() if redraw else 3052
        assert len(set(chosen)) == pytest.approx(expected, rel=0.01 if redraw else 0)

    def test_both_budgets_begin_with_the_same_pass(self):
        steps, epochs = (indices(UnderSampler(LABELS, seed=0, budget=budget), 0) for budget in ("steps", "epochs"))
        assert steps[:3052] == epochs

    def test_fixed_keeps_its_images_and_changes_their_order(self):
        sampler = UnderSampler(LABELS, seed=0)
        first, second = indices(sampler, 0), indices(sampler, 1)
        assert set(first) == set(second)
        assert first != second
        assert first[:3052] != first[3052:6104]
        assert set(indices(UnderSampler(LABELS, seed=1), 0)) != set(first)

    def test_redraw_sees_the_data_over_epochs(self):
        sampler = UnderSampler(SMALL, seed=0, redraw=True, budget="epochs")
        seen = [set(indices(sampler, epoch)) for epoch in range(60)]
        assert seen[0] != seen[1]
        assert set.union(*seen) == set(range(len(SMALL)))

    def test_redraw_is_uniform_within_a_class(self):
        sampler = UnderSampler(SMALL, seed=0, redraw=True, budget="epochs")
        drawn = np.bincount(np.concatenate([indices(sampler, epoch) for epoch in range(400)]), minlength=len(SMALL))
        happy = drawn[SMALL == 3]
        assert happy.sum() == 400 * 3
        assert chisquare(happy).pvalue > 1e-4

    def test_order_mixes_the_classes(self):
        labels = LABELS[indices(UnderSampler(LABELS, seed=0), 0)]
        assert np.mean(labels[:-1] == labels[1:]) == pytest.approx(1 / 7, abs=0.03)


class TestClassWeightedSampler:
    @pytest.mark.parametrize("power", [0.0, 0.5, 1.0])
    def test_class_shares(self, power):
        sampler = ClassWeightedSampler(LABELS, seed=0, power=power, num_samples=100_000)
        drawn = np.bincount(LABELS[indices(sampler, 0)])
        shares = COUNTS**power / (COUNTS**power).sum()
        assert drawn.sum() == 100_000
        assert chisquare(drawn, 100_000 * shares).pvalue > 1e-4

    def test_uniform_within_a_class(self):
        sampler = ClassWeightedSampler(LABELS, seed=0, num_samples=100_000)
        drawn = np.bincount(indices(sampler, 0), minlength=len(LABELS))
        assert chisquare(drawn[LABELS == 1]).pvalue > 1e-4

    def test_balanced_copies_and_unique_shares_per_epoch(self):
        chosen = np.array(indices(ClassWeightedSampler(LABELS, seed=0), 0))
        assert len(chosen) == 28709
        copies = np.bincount(LABELS[chosen]) / COUNTS
        assert copies == pytest.approx([1.03, 9.41, 1.00, 0.57, 0.85, 1.29, 0.83], rel=0.05)
        unique = np.bincount(LABELS[np.unique(chosen)]) / COUNTS
        assert unique == pytest.approx([0.64, 1.0, 0.63, 0.43, 0.57, 0.73, 0.56], abs=0.02)

    def test_epochs_are_independent(self):
        sampler = ClassWeightedSampler(LABELS, seed=0)
        assert indices(sampler, 0) != indices(sampler, 1)


class TestProgressiveSampler:
    @pytest.mark.parametrize(("epoch", "balanced"), [(0, 0.0), (1, 0.25), (3, 0.75), (4, 1.0), (9, 1.0)])
    def test_class_shares(self, epoch, balanced):
        sampler = ProgressiveSampler(LABELS, seed=0, epochs=5)
        drawn = np.bincount(np.concatenate([LABELS[indices(reseeded, epoch)] for reseeded in reseed(sampler, 4)]))
        shares = (1 - balanced) * COUNTS / COUNTS.sum() + balanced / 7
        assert drawn.sum() == 4 * 28709
        assert chisquare(drawn, drawn.sum() * shares).pvalue > 1e-4

    def test_uniform_within_a_class(self):
        sampler = ProgressiveSampler(LABELS, seed=0, epochs=3)
        drawn = np.concatenate([indices(reseeded, 1) for reseeded in reseed(sampler, 4)])
        assert chisquare(np.bincount(drawn, minlength=len(LABELS))[LABELS == 1]).pvalue > 1e-4

    def test_a_run_of_one_epoch_is_instance_sampled(self):
        drawn = np.bincount(LABELS[indices(ProgressiveSampler(LABELS, seed=0, epochs=1), 0)])
        assert chisquare(drawn, COUNTS).pvalue > 1e-4


def reseed(sampler: EpochSampler, times: int) -> Iterator[EpochSampler]:
    for seed in range(times):
        sampler.seed = seed
        yield sampler


class TestTwoStageSampler:
    def test_first_every_image_then_every_class_equally_often(self):
        sampler = TwoStageSampler(LABELS, seed=0, epochs=4, share=0.25)
        for epoch in range(3):
            assert sorted(indices(sampler, epoch)) == list(range(28709))
        drawn = np.bincount(LABELS[indices(sampler, 3)])
        assert drawn.sum() == 28709
        assert chisquare(drawn).pvalue > 1e-4

    def test_power_of_the_second_stage(self):
        drawn = np.bincount(LABELS[indices(TwoStageSampler(LABELS, 0, epochs=2, share=0.5, power=0.5), 1)])
        shares = COUNTS**0.5 / (COUNTS**0.5).sum()
        assert chisquare(drawn, drawn.sum() * shares).pvalue > 1e-4

    def test_the_first_stage_is_that_of_the_baseline(self):
        baseline, two = InstanceSampler(LABELS, 3), TwoStageSampler(LABELS, 3, epochs=4)
        assert indices(two, 1) == indices(baseline, 1)

    def test_after_a_given_first_stage_all_epochs_are_balanced(self):
        sampler = TwoStageSampler(LABELS, seed=0, epochs=1, first_stage="best.ckpt")
        assert chisquare(np.bincount(LABELS[indices(sampler, 0)])).pvalue > 1e-4

    @pytest.mark.parametrize(
        ("epochs", "share", "first"),
        [(30, 0.25, 22), (2, 0.25, 1), (2, 0.9, 1), (10, 0.01, 9), (10, 0.99, 1), (1, 0.25, 0)],
    )
    def test_first_stage_epochs(self, epochs, share, first):
        assert first_stage_epochs(epochs, share, None) == first
        assert first_stage_epochs(epochs, share, "best.ckpt") == 0


@pytest.mark.parametrize("name", build_all(SMALL, 0))
class TestEverySampler:
    def test_order_is_a_pure_function_of_seed_and_epoch(self, name):
        sampler = build_all(SMALL, 5)[name]
        epochs = [indices(sampler, epoch) for epoch in range(3)]
        torch.manual_seed(123)
        again = build_all(SMALL, 5)[name]
        assert [indices(again, epoch) for epoch in (2, 0, 1)] == [epochs[2], epochs[0], epochs[1]]
        assert indices(build_all(SMALL, 6)[name], 0) != epochs[0]

    def test_global_random_state_is_left_alone(self, name):
        torch.manual_seed(0)
        np.random.seed(0)
        before = torch.get_rng_state(), np.random.get_state()[1].copy()
        indices(build_all(SMALL, 0)[name], 0)
        assert torch.equal(before[0], torch.get_rng_state())
        assert np.array_equal(before[1], np.random.get_state()[1])

    def test_entries_have_epoch_and_position(self, name):
        sampler = build_all(SMALL, 0)[name]
        drawn = draws(sampler, 4)
        assert [draw.epoch for draw in drawn] == [4] * len(sampler)
        assert [draw.position for draw in drawn] == list(range(len(sampler)))
        assert all(type(draw.index) is int for draw in drawn)

    def test_length_is_the_same_in_every_epoch(self, name):
        sampler = build_all(SMALL, 0)[name]
        assert {len(draws(sampler, epoch)) for epoch in range(4)} == {len(sampler)}

    def test_a_resumed_epoch_continues_where_it_stopped(self, name):
        sampler = build_all(SMALL, 0)[name]
        whole, following = draws(sampler, 1), draws(sampler, 2)
        again = build_all(SMALL, 0)[name]
        again.leave_out(1, 8)
        assert draws(again, 1) == whole[8:]
        assert draws(again, 2) == following

    @pytest.mark.parametrize("workers", [0, 2])
    def test_data_loader_hands_the_draws_on(self, name, workers):
        sampler = build_all(SMALL, 0)[name]
        loader = DataLoader(Echo(), batch_size=8, sampler=sampler, num_workers=workers, collate_fn=list)
        assert [draw for batch in loader for draw in batch] == list(sampler)


class Echo:
    """A data set that returns what it was asked for."""

    def __getitem__(self, draw: Entry) -> Entry:
        return draw


def test_eval_shard_on_one_process_is_everything_in_order():
    shard = EvalShard(3589)
    assert len(shard) == 3589
    assert list(shard) == list(range(3589))


def deal(rank: int, world: int, folder: str) -> None:
    """Write what one process of a real gloo group draws."""
    samplers = build_all(SMALL, 7)  # built before the group exists, as a data module does
    distributed.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=world)
    torch.manual_seed(100 + rank)
    drawn = {name: [draws(sampler, epoch) for epoch in range(2)] for name, sampler in samplers.items()}
    lengths = {name: len(sampler) for name, sampler in samplers.items()}
    shard = EvalShard(3589)
    result = {"drawn": drawn, "lengths": lengths, "shard": list(shard), "shard_length": len(shard)}
    Path(folder, f"{rank}.json").write_text(json.dumps(result))
    distributed.destroy_process_group()


@pytest.fixture(scope="module")
def two_processes(tmp_path_factory) -> list[dict]:
    folder = tmp_path_factory.mktemp("gloo")
    method = "spawn" if torch.cuda.is_available() else "fork"  # much faster, and forbidden once CUDA has begun
    multiprocessing.start_processes(deal, args=(2, str(folder)), nprocs=2, start_method=method)
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.nightly
@pytest.mark.parametrize("name", build_all(SMALL, 0))
def test_two_processes_share_the_global_draw_of_one(two_processes, name):
    alone = build_all(SMALL, 7)[name]
    even = len(alone) // 2 * 2
    for epoch in range(2):
        expected = [list(draw) for draw in draws(alone, epoch)][:even]
        ranks = [result["drawn"][name][epoch] for result in two_processes]
        assert len(ranks[0]) == len(ranks[1]) == two_processes[0]["lengths"][name] == even // 2
        together = [draw for pair in zip(*ranks, strict=True) for draw in pair]
        assert together == expected


@pytest.mark.slow
def test_two_processes_evaluate_every_image_exactly_once(two_processes):
    shards = [result["shard"] for result in two_processes]
    assert [result["shard_length"] for result in two_processes] == [len(s) for s in shards] == [1795, 1794]
    assert sorted(shards[0] + shards[1]) == list(range(3589))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: UnderSampler(LABELS, 0, per_class=500), ["per_class=500", "rarest", "436"]),
        (lambda: UnderSampler(LABELS, 0, per_class=0), ["per_class=0", "1 to 436"]),
        (lambda: UnderSampler(LABELS, 0, budget="images"), ["budget=images", "steps, epochs"]),
        (lambda: TwoStageSampler(LABELS, 0, epochs=4, power=2), ["power=2"]),
        (lambda: ClassWeightedSampler(LABELS, 0, power=1.5), ["power=1.5"]),
        (lambda: ClassWeightedSampler(LABELS, 0, power=-0.5), ["power=-0.5"]),
    ],
)
def test_mistakes_are_named_in_one_line(build, words):
    with pytest.raises(UserError) as error:
        build()
    assert all(word in str(error.value) for word in words)
    assert "\n" not in str(error.value)
