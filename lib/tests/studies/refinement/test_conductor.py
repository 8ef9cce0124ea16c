"""Conducting against exact middles and perfect fillers, plain loops and hand counts."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from toys import START, STEP, Perfect, counted_flops, lists, next_cities

from citypaths.data.batches import IGNORE, batch_of
from citypaths.decoding import greedy
from citypaths.judging.metrics import judge
from citypaths.models import build, registered
from citypaths.training import loop as train_module
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, train
from studies.refinement import conduct

ASK = 11  # what `Exact` says it costs
SHORT = TrainSettings(steps=30, batch_tokens=256, evaluations=2, save_seconds=0)
SMALL = {"width": 8}


class Exact(nn.Module):
    """Names true middles, given the next city [V, V] towards each target (rows) from each city."""

    def __init__(self, onward: np.ndarray) -> None:
        super().__init__()
        self.cities = len(onward)
        self.onward = onward
        self.weight = nn.Parameter(torch.zeros(1))

    def path(self, a: int, b: int) -> list[int]:
        way = [a]
        while way[-1] != b and self.onward[b, way[-1]] >= 0:
            way.append(int(self.onward[b, way[-1]]))
        return way

    def forward(self, source, target):
        logits = torch.zeros(len(source), self.cities + 1)
        for i, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            way = self.path(a, b)
            logits[i, self.cities if len(way) <= 2 else way[(len(way) - 1) // 2]] = 9.0
        return logits

    def flops_per_step(self, loops=None):
        return ASK


@pytest.fixture(scope="module")
def onward(tennessee):
    return next_cities(tennessee)


@pytest.fixture(scope="module")
def rows(tiny_dataset):
    rows = tiny_dataset.rows("test")
    return rows.take(np.arange(0, len(rows), 4))


@pytest.fixture(scope="module")
def networks(tennessee):
    torch.manual_seed(3)
    conductor = build("conductor", tennessee, width=8)
    return conductor.eval(), build("rnn", tennessee, width=8)


# Exact networks


def test_exact_middles_and_a_perfect_filler_find_shortest_paths(tennessee, onward, rows):
    found = conduct(Exact(onward), Perfect(onward), rows.source, rows.target, 60, rounds=4)
    assert len(found) == 5
    for after in found:
        judged = judge(tennessee, rows.source, rows.target, rows.km, after.paths)
        assert judged["optimal"].all()
        assert np.allclose(judged["km"], rows.km)


def test_waypoints_alone_are_the_path_once_all_are_adjacent(tennessee, onward, rows):
    conductor = Exact(onward)
    found = conduct(conductor, None, rows.source, rows.target, 60, rounds=6)
    truth = [conductor.path(a, b) for a, b in zip(rows.source, rows.target, strict=True)]
    assert lists(found[-1]) == truth
    for done, after in enumerate(found):
        for path, way in zip(lists(after), truth, strict=True):
            assert len(path) == min(2**done + 1, len(way)) or len(way) > len(path)
            assert set(path) <= set(way) and path == sorted(path, key=way.index)
        short = [i for i, way in enumerate(truth) if len(way) - 1 <= 2**done]
        assert [lists(after)[i] for i in short] == [truth[i] for i in short]


def test_costs_by_hand(chain):
    onward = np.full((5, 5), -1)
    for target in range(5):
        onward[target, :target] = np.arange(1, target + 1)
    found = conduct(Exact(onward), Perfect(onward), [0, 1, 2], [4, 2, 2], 9, rounds=3)
    whole = START + 4 * STEP
    halves, quarters = 2 * START + 4 * STEP, 4 * (START + STEP)
    assert found[0].flops.tolist() == [whole, START + STEP, 0]
    assert found[1].flops.tolist() == [whole + ASK + halves, START + STEP + ASK, 0]
    third = whole + ASK + halves + 2 * ASK + quarters
    assert found[2].flops.tolist() == [third, START + STEP + ASK, 0]
    assert found[3].flops.tolist() == [third + 4 * ASK, START + STEP + ASK, 0]
    assert lists(found[3]) == [[0, 1, 2, 3, 4], [1, 2], [2]]


def test_a_missed_waypoint_is_put_in_and_a_missed_target_is_not(chain):
    onward = np.full((5, 5), -1)
    for target in range(5):
        onward[target, :target] = np.arange(1, target + 1)
    lost = Perfect(onward, blocked=(1, 2))
    found = conduct(Exact(onward), lost, [0], [4], 4, rounds=1)
    assert lists(found[0]) == [[0, 1, 2, 3, 4]]
    assert lists(found[1]) == [[0, 1, 1, 1, 1]], "stuck at 1 for four hops; the rest is cut"
    late = Perfect(onward, blocked=(3, 4))
    assert lists(conduct(Exact(onward), late, [0], [4], 5, rounds=0)[0]) == [[0, 1, 2, 3, 3, 3]]


# Real networks


def plain(conductor, filler, source, target, max_hops, rounds) -> list[list[int]]:
    """Waypoints by recursion, one query at a time, each segment decoded alone."""

    def between(a, b, depth):
        """The path after its first city, and with the last where the filler misses it."""
        logits = conductor(torch.tensor([a]), torch.tensor([b]))[0].detach()
        logits[[a, b]] = -torch.inf
        middle = int(logits.argmax())
        if depth and middle == conductor.cities:
            return [b]
        if depth:
            half = between(a, middle, depth - 1)
            half += [middle] if half[-1:] != [middle] else []
            return half + between(middle, b, depth - 1)
        return [b] if filler is None else lists(greedy(filler, [a], [b], max_hops))[0][1:]

    out = []
    for a, b in zip(source.tolist(), target.tolist(), strict=True):
        path = [a, *between(a, b, rounds)]
        path = path[: path.index(b) + 1] if b in path else path
        out.append(path[: max_hops + 1])
    return out


@pytest.mark.parametrize("filled", [True, False])
def test_conducting_is_the_plain_recursion(networks, rows, filled):
    conductor, filler = networks
    some = rows.take(np.arange(0, len(rows), 6))
    fill = filler if filled else None
    found = conduct(conductor, fill, some.source, some.target, 7, rounds=3)
    for done in range(4):
        expected = plain(conductor, fill, some.source, some.target, 7, done)
        assert lists(found[done]) == expected
    assert any(len(set(path)) > 3 for path in lists(found[3])), "waypoints were named"
    assert all((np.diff([f.flops for f in found], axis=0) >= 0).ravel())


def test_round_zero_is_greedy_and_a_batch_is_its_queries(networks, rows):
    conductor, filler = networks
    args = rows.source, rows.target, 9
    found = conduct(conductor, filler, *args, rounds=2)
    alone = greedy(filler, *args)
    assert lists(found[0]) == lists(alone) and np.array_equal(found[0].flops, alone.flops)
    for i in range(0, len(rows), 17):
        one = conduct(
            conductor, filler, rows.source[i : i + 1], rows.target[i : i + 1], 9, rounds=2
        )
        for done in range(3):
            assert lists(one[done])[0] == lists(found[done])[i]
            assert one[done].flops[0] == found[done].flops[i]


def test_no_query_and_malformed_input(networks):
    conductor, filler = networks
    none = conduct(conductor, filler, [], [], 5, rounds=2)
    assert len(none) == 3 and all(len(f.paths) == len(f.flops) == 0 for f in none)
    with pytest.raises(ValueError, match="rounds are 0 or more"):
        conduct(conductor, filler, [0], [1], 5, rounds=-1)
    with pytest.raises(ValueError, match="max_hops at least 1"):
        conduct(conductor, filler, [0], [1], 0, rounds=1)
    with pytest.raises(ValueError, match="2 sources but 1 targets"):
        conduct(conductor, filler, [0, 1], [1], 5, rounds=1)


# The network


def test_operations(tennessee):
    conductor, ends = build("conductor", tennessee, width=8), (torch.tensor([3]), torch.tensor([9]))
    assert counted_flops(lambda: conductor(*ends)) == conductor.flops_per_step()
    assert conductor(*ends).shape == (1, len(tennessee) + 1)
    assert "conductor" not in registered()


def test_parts_are_parts_with_their_middles(networks, rows):
    conductor, _ = networks
    batch = batch_of(rows)
    source, target, middle = (x.view(batch.labels.shape) for x in conductor.parts(batch))
    spans = []
    for i, path in enumerate(rows.paths):
        way, hops = path.tolist(), len(path) - 1
        assert (middle[i, hops:] == IGNORE).all()
        assert (source[i, 0], target[i, 0]) == (way[0], way[-1]), "the first part is the whole"
        for t in range(hops):
            a, b = way.index(source[i, t]), way.index(target[i, t])
            spans.append(b - a)
            assert b > a
            expected = conductor.cities if b == a + 1 else way[a + (b - a) // 2]
            assert middle[i, t] == expected
    assert {1, 2, 3} <= set(spans) and max(spans) == rows.hops.max()


def test_an_evaluation_repeats_and_draws_nothing(networks, rows):
    conductor, batch = networks[0], batch_of(rows)
    state = torch.get_rng_state()
    assert float(conductor.loss(batch)) == float(conductor.loss(batch))
    assert torch.equal(torch.get_rng_state(), state)
    conductor.train()
    losses = {float(conductor.loss(batch)) for _ in range(3)}
    conductor.eval()
    assert len(losses) == 3


def test_it_learns_middles(tiny_dataset, tmp_path):
    settings = TrainSettings(steps=120, batch_tokens=512, learning_rate=6e-3, evaluations=2)
    batch = batch_of(tiny_dataset.rows("valid"))
    watch = lambda model: {"valid_loss": float(model.loss(batch))}  # noqa: E731
    trained = train("conductor", tiny_dataset, tmp_path, settings, {"width": 32}, watch)
    first, last = trained.history["valid_loss"]
    assert last < 0.7 * first
    tokens = trained.history["tokens"].iloc[-1]
    assert trained.training_flops == 3 * trained.model.flops_per_step() * tokens


def test_a_stopped_training_ends_with_the_same_bits(tiny_dataset, tmp_path, monkeypatch):
    whole = train("conductor", tiny_dataset, tmp_path / "whole", SHORT, SMALL)
    advance = train_module._Run._advance

    def stops(self, batch):
        if self.step == 20:
            raise KeyboardInterrupt
        return advance(self, batch)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train_module._Run, "_advance", stops)
        train("conductor", tiny_dataset, tmp_path / "stopped", SHORT, SMALL)
    resumed = train("conductor", tiny_dataset, tmp_path / "stopped", SHORT, SMALL)
    loaded = load_trained(tmp_path / "stopped", tiny_dataset.graph)
    for a, b, c in zip(
        *(m.parameters() for m in (whole.model, resumed.model, loaded)), strict=True
    ):
        assert torch.equal(a, b) and torch.equal(a, c)
    again = train(
        "conductor", tiny_dataset, tmp_path / "stopped", replace(SHORT, save_seconds=9), SMALL
    )
    assert again.steps == 30 and again.seconds == resumed.seconds, "it is finished: it is loaded"
