"""Batches: every path once an epoch, padded right, and the same again after a stop anywhere."""

from __future__ import annotations

import json
import weakref
from collections import Counter
from functools import cache
from itertools import islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths.data import batches as batches_module
from citypaths.data.batches import IGNORE, Batches, batch_of
from citypaths.data.dataset import make_dataset
from citypaths.data.splits import Recipe, recipe_for

POOLS = [60, 300, 2_000_000]  # shard by shard, a few shards together, all at once


def pooled(dataset, batch_tokens: int, pool_paths: int, seed: int = 0, hindsight: float = 0.0):
    """Batches with pools of another size."""
    batches = Batches(dataset, batch_tokens, seed, hindsight=hindsight)
    batches.pool_paths = pool_paths
    return batches


def first_epochs(batches: Batches, epochs: int = 1) -> list:
    """The batches of the first epochs, each with the position that follows it."""
    found = []
    for batch in batches:
        if batches.position[0] >= epochs:
            return found
        found.append((batches.position, batch))


def paths_in(batch) -> list[tuple[int, ...]]:
    """The paths that a batch teaches, from its input and the last of its labels."""
    rows = zip(batch.cities.tolist(), batch.labels.tolist(), strict=True)
    lengths = (batch.labels != IGNORE).sum(1).tolist()
    return [(*c[:n], y[n - 1]) for (c, y), n in zip(rows, lengths, strict=True)]


def assert_same_batch(a, b) -> None:
    for name in ("source", "target", "cities", "labels"):
        assert torch.equal(getattr(a, name), getattr(b, name))


@pytest.fixture(scope="module")
def train_paths(tiny_dataset) -> Counter:
    return Counter(tuple(path.tolist()) for path in tiny_dataset.rows("train").paths)


# What is in a batch


def assert_is_padded_right(batch) -> None:
    inside = batch.labels != IGNORE
    lengths = inside.sum(1)
    assert all(t.dtype == torch.int64 for t in (batch.source, batch.target, batch.cities))
    assert torch.equal(inside, torch.arange(inside.shape[1]) < lengths[:, None])
    assert lengths.min() >= 1 and lengths.max() == inside.shape[1]
    assert (batch.cities[~inside] == 0).all()
    assert torch.equal(batch.cities[:, 0], batch.source)
    assert torch.equal(batch.labels[torch.arange(len(batch)), lengths - 1], batch.target)
    follows = inside[:, 1:]
    assert torch.equal(batch.labels[:, :-1][follows], batch.cities[:, 1:][follows])


def test_batch_of_rows_is_the_rows(tiny_dataset):
    rows = tiny_dataset.rows("test").take(np.arange(50))
    batch = batch_of(rows)
    assert_is_padded_right(batch)
    assert len(batch) == 50
    np.testing.assert_array_equal(batch.source, rows.source)
    np.testing.assert_array_equal(batch.target, rows.target)
    assert batch.labels.shape == (50, rows.hops.max())
    assert paths_in(batch) == [tuple(path.tolist()) for path in rows.paths]


def test_batch_of_one_hop(tiny_dataset):
    rows = tiny_dataset.rows("train")
    batch = batch_of(rows.take(rows.hops == 1))
    assert torch.equal(batch.cities[:, 0], batch.source)
    assert torch.equal(batch.labels[:, 0], batch.target)
    assert batch.labels.shape[1] == 1


def test_batch_moves_whole(tiny_dataset):
    batch = batch_of(tiny_dataset.rows("valid"))
    assert_same_batch(batch.to("cpu"), batch)
    assert {t.device.type for t in vars(batch.to("meta")).values()} == {"meta"}


# An epoch


@pytest.mark.parametrize(
    ("batch_tokens", "pool_paths"),
    [(1, 300), (33, 2_000_000), *((500, pool) for pool in POOLS), (10**9, 60), (10**9, 2_000_000)],
)
def test_every_epoch_has_every_path_once(tiny_dataset, train_paths, batch_tokens, pool_paths):
    batches = pooled(tiny_dataset, batch_tokens, pool_paths)
    seen = [Counter(), Counter()]
    for (epoch, *_), batch in first_epochs(batches, 2):
        assert_is_padded_right(batch)
        assert batch.labels.numel() <= batch_tokens or len(batch) == 1
        seen[epoch].update(paths_in(batch))
    assert seen == [train_paths, train_paths]


def test_batches_are_nearly_full(tiny_dataset):
    found = first_epochs(Batches(tiny_dataset, 500))
    full = [batch.labels.numel() for _, batch in found]
    used = sum(int((batch.labels != IGNORE).sum()) for _, batch in found)
    assert used / sum(full) > 0.93  # little padding
    assert np.mean(full) > 0.9 * 500


def test_positions_count_batches(tiny_dataset):
    batches = Batches(tiny_dataset, 500)
    assert batches.position == (0, 0, 0)
    positions = [position for position, _ in first_epochs(batches, 2)]
    per_epoch = len(positions) // 2
    expected = [(epoch, 0, i + 1) for epoch in (0, 1) for i in range(per_epoch)]
    assert positions == expected


@pytest.mark.parametrize("pool_paths", POOLS)
def test_order_is_a_function_of_seed_and_epoch(tiny_dataset, pool_paths):
    def order(seed: int, epoch: int) -> list:
        batches = pooled(tiny_dataset, 500, pool_paths, seed)
        batches.position = (epoch, 0, 0)
        return [paths_in(batch) for batch in islice(batches, 10)]

    orders = [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert orders == [order(seed, epoch) for seed in (0, 1) for epoch in (0, 1)]
    assert all(a != b for i, a in enumerate(orders) for b in orders[:i])


def test_batches_are_shuffled_in_length_and_place(tiny_dataset):
    found = [batch for _, batch in first_epochs(Batches(tiny_dataset, 500))]
    width = np.array([batch.labels.shape[1] for batch in found])
    assert abs(np.corrcoef(width, np.arange(len(width)))[0, 1]) < 0.4
    spread = np.mean([batch.target.double().std() for batch in found if len(batch) > 10])
    assert spread > 40  # of 371 targets: a batch is not one shard of 16


# Resumption


@pytest.fixture(scope="module")
def unbroken(tiny_dataset):
    """Return a function that runs two epochs without a stop, once for each way of batching."""
    return cache(lambda *way: first_epochs(batches_for(tiny_dataset, *way), 2))


def batches_for(dataset, pool_paths: int, tokens: int, hindsight: float) -> Batches:
    return pooled(dataset, tokens, pool_paths, 11, hindsight)


ways = st.tuples(st.sampled_from(POOLS), st.sampled_from([90, 700]), st.sampled_from([0.0, 0.6]))


@settings(max_examples=40, deadline=None)
@given(st.data(), ways)
def test_resumes_anywhere_as_if_nothing_happened(tiny_dataset, unbroken, data, way):
    found = unbroken(*way)
    stop = data.draw(st.integers(0, len(found) - 1), label="stop")
    resumed = batches_for(tiny_dataset, *way)
    position = found[stop - 1][0] if stop else (0, 0, 0)
    resumed.position = json.loads(json.dumps(position))
    for (expected, a), b in zip(found[stop : stop + 60], resumed, strict=False):
        assert resumed.position == expected
        assert_same_batch(a, b)


@pytest.mark.parametrize("pool_paths", POOLS)
def test_a_new_iterator_goes_on_where_the_last_one_stopped(tiny_dataset, pool_paths):
    whole = first_epochs(pooled(tiny_dataset, 300, pool_paths), 2)
    batches, pieces = pooled(tiny_dataset, 300, pool_paths), []
    while len(pieces) < len(whole):
        pieces += list(islice(batches, 17))
    for (_, a), b in zip(whole, pieces, strict=False):
        assert_same_batch(a, b)


def test_a_late_resume_reads_no_earlier_pool(tiny_dataset, monkeypatch):
    found = first_epochs(pooled(tiny_dataset, 300, 300), 1)
    (epoch, pool, index), _ = found[-2]
    assert pool >= 5
    read, original = [], type(tiny_dataset).shard
    monkeypatch.setattr(
        type(tiny_dataset), "shard", lambda self, i: read.append(i) or original(self, i)
    )
    resumed = pooled(tiny_dataset, 300, 300)
    resumed.position = (epoch, pool, index)
    assert_same_batch(next(iter(resumed)), found[-1][1])
    assert set(read) <= set(sum(resumed._pools(epoch)[pool:], ()))


# Memory


@pytest.mark.parametrize("pool_paths", [200, 300, 900])
def test_pools_hold_each_shard_once_within_the_bound(tiny_dataset, pool_paths):
    sizes = np.array([shard["train"] for shard in tiny_dataset.shards])
    assert sizes.max() < pool_paths < sizes.sum()
    batches, orders = pooled(tiny_dataset, 100, pool_paths), []
    for epoch in range(3):
        pools = batches._pools(epoch)
        assert sorted(sum(pools, ())) == list(range(len(sizes)))
        assert max(sizes[list(pool)].sum() for pool in pools) <= pool_paths
        assert len(pools) <= 2 * sizes.sum() / pool_paths + 1
        orders.append(sum(pools, ()))
    assert len(set(orders)) == 3


def test_streaming_holds_one_pool_at_a_time(tiny_dataset, monkeypatch):
    held, original = [], batches_module._narrow

    def watched(given):
        assert not any(pool() is not None for pool in held), "two pools in memory"
        tokens = original(given)
        held.append(weakref.ref(tokens))
        return tokens

    monkeypatch.setattr(batches_module, "_narrow", watched)
    first_epochs(pooled(tiny_dataset, 500, 300), 2)
    assert len(held) >= 2 * sum(s["train"] for s in tiny_dataset.shards) / 300


def test_one_pool_is_read_once(tiny_dataset, monkeypatch):
    loads = Counter()
    original = type(tiny_dataset).shard

    def counted(self, i):
        loads[i] += 1
        return original(self, i)

    monkeypatch.setattr(type(tiny_dataset), "shard", counted)
    first_epochs(Batches(tiny_dataset, 500), 3)
    assert loads == Counter(range(len(tiny_dataset.shards)))


# Sub-paths


def test_hindsight_teaches_parts_of_training_paths(tiny_dataset, train_paths):
    allowed = {p[i:j] for p in train_paths for i in range(len(p)) for j in range(i + 2, len(p) + 1)}
    for share in (0.3, 1.0):
        batches = Batches(tiny_dataset, 500, seed=2, hindsight=share)
        taught = []
        for _, batch in first_epochs(batches):
            assert_is_padded_right(batch)
            assert batch.labels.numel() <= 500
            taught += paths_in(batch)
        assert len(taught) == train_paths.total()
        assert set(taught) <= allowed
        whole = sum(path in train_paths for path in taught) / len(taught)
        assert 1 - share - 0.05 < whole < 1 - share + 0.35
    assert {len(path) for path in taught} >= set(range(2, 15))


def test_hindsight_keeps_out_of_the_target_split(tennessee, tmp_path):
    recipe = recipe_for(tennessee, train=500, valid=10, test=10, split="target")
    dataset = make_dataset(tennessee, recipe, tmp_path)
    assert Batches(dataset, 100)
    with pytest.raises(ValueError, match="held-out targets"):
        Batches(dataset, 100, hindsight=0.1)


# Refusals


@pytest.mark.parametrize("tokens", [0, -5])
def test_batches_need_room(tiny_dataset, tokens):
    with pytest.raises(ValueError, match="batch_tokens is a positive number"):
        Batches(tiny_dataset, tokens)


@pytest.mark.parametrize("share", [-0.1, 1.1, float("nan")])
def test_hindsight_is_a_share(tiny_dataset, share):
    with pytest.raises(ValueError, match="hindsight is a share"):
        Batches(tiny_dataset, 100, hindsight=share)


def test_batches_need_training_paths(chain, tmp_path):
    dataset = make_dataset(chain, Recipe(chain.fingerprint, 0, "pair", 0, 0.0, 1.0), tmp_path)
    with pytest.raises(ValueError, match="has no training path"):
        Batches(dataset, 100)
