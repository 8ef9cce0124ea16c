"""Cheaper retrieval, and stores that one query alone may read."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths.data.batches import batch_of, batch_of_paths
from citypaths.judging.queries import Queries
from citypaths.models import build
from citypaths.models.base import nats
from citypaths.models.check import assert_consistent
from studies.memory import Cached, KeyValueCache, Private, Probed, Truncated, fit
from studies.memory.cache import rounded, states_of
from studies.memory.mixture import familiarity
from studies.memory.remembering import OWN_THETAS, OWN_WEIGHTS, recall


@pytest.fixture(scope="module")
def model(tennessee):
    torch.manual_seed(1)
    return build("rnn", tennessee, width=16).eval()


@pytest.fixture(scope="module")
def stored(tiny_dataset):
    return tiny_dataset.rows("train").paths.take(np.arange(0, 2000, 10))


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").first(30)


def clustered(rows: int = 400, width: int = 12, seed: int = 0) -> KeyValueCache:
    random = torch.Generator().manual_seed(seed)
    centres = torch.randn(8, width, generator=random)
    keys = centres[torch.arange(rows) % 8] + 0.3 * torch.randn(rows, width, generator=random)
    numbers = torch.arange(rows)
    return KeyValueCache(F.normalize(keys, dim=-1), numbers % 5, numbers % 7, numbers)


def test_a_key_is_the_state_before_the_head(model, stored, queries):
    batch = batch_of(queries.rows)
    with torch.no_grad():
        states, logits = states_of(model, batch)
        torch.testing.assert_close(logits, model(batch))
        goal = model.inputs.goal(batch.target)[:, None]
        torch.testing.assert_close(states, model.rnn(model.inputs.city(batch.cities) + goal)[0])
    cache = KeyValueCache.of(model, stored)
    assert cache.keys.shape == ((stored.lengths - 1).sum(), 16)
    assert cache.numbers == 17 * len(cache)
    cached = Cached(model, cache, theta=10.0, weight=0.5, k=8)
    assert_consistent(cached, batch, tolerance=1e-4)
    assert cached.flops_per_step() == model.flops_per_step() + 2 * 16 * len(cache)


def test_a_head_called_more_than_once_gives_no_key(model, queries, monkeypatch):
    batch, head = batch_of(queries.rows), model.head
    monkeypatch.setattr(
        model, "forward", lambda batch: [head(torch.zeros(2, 16)), head(torch.zeros(1, 16))]
    )
    with pytest.raises(ValueError, match="once for all steps"):
        states_of(model, batch)


def test_all_probes_and_all_directions_are_exact():
    cache, states = clustered(), torch.randn(20, 12)
    near, rows = cache.nearest(states, 9)
    for store in (Probed(cache, 6, 6), Truncated(cache, 12)):
        found = store.nearest(states, 9)
        torch.testing.assert_close(found[0], near, atol=1e-5, rtol=0)
        assert recall(rows, found[1]) == 1.0
        torch.testing.assert_close(
            store.predict(states, 5, 9.0, 9), cache.predict(states, 5, 9.0, 9)
        )


def test_fewer_probes_find_less_and_cost_less():
    cache = clustered()
    states = cache.keys[::7] + 0.5 * torch.randn(58, 12, generator=torch.Generator().manual_seed(3))
    exact = cache.nearest(states, 30)[1]
    found = [recall(exact, Probed(cache, 16, p).nearest(states, 30)[1]) for p in (1, 4, 16)]
    assert found[0] < found[1] < found[2] == 1.0 and found[1] > 0.6
    cost = [Probed(cache, 16, p).flops for p in (1, 4, 16)]
    assert cost == [2 * 12 * (16 + 25 * p) for p in (1, 4, 16)]


@settings(deadline=None, max_examples=25)
@given(st.integers(1, 12), st.integers(1, 12), st.integers(1, 60), st.integers(0, 5))
def test_probed_rows_are_true_rows(centroids, probes, k, seed):
    """Whatever is probed: similarities are exact, in order, and no row comes twice."""
    cache = clustered(50, 4, seed)
    store = Probed(cache, centroids, min(probes, centroids))
    assert sorted(torch.cat(list(store.lists)).tolist()) == list(range(50))
    near, rows = store.nearest(cache.keys[:10], k)
    real = near > float("-inf")
    cosine = (cache.keys[:10, None] * cache.keys[rows]).sum(-1)
    torch.testing.assert_close(near[real], cosine[real], atol=1e-5, rtol=0)
    assert (near[:, 1:] <= near[:, :-1] + 1e-6).all()
    for i in range(10):
        mine = rows[i][real[i]].tolist()
        assert len(set(mine)) == len(mine)


def test_recall_by_hand():
    exact, found = torch.tensor([[1, 2], [3, 4]]), torch.tensor([[2, 9, 1], [7, 8, 4]])
    assert recall(exact, found) == 0.75


def test_rounded_keys():
    cache, states = clustered(), torch.randn(20, 12)
    near = cache.nearest(states, 5)[0]
    gap = {kind: (rounded(cache, kind).nearest(states, 5)[0] - near).abs().max().item()
           for kind in (torch.float16, torch.float8_e4m3fn)}  # fmt: skip
    assert 0 < gap[torch.float16] < 1e-3 < gap[torch.float8_e4m3fn] < 0.1


def test_dimensions_out_of_range():
    with pytest.raises(ValueError, match="cut to 1 to 12"):
        Truncated(clustered(), 13)
    with pytest.raises(ValueError, match="centroids"):
        Probed(clustered(), 4, 5)


@pytest.fixture(scope="module")
def own(model, queries):
    """A store in which query i holds its own shortest path, but for every third."""
    held = np.flatnonzero(np.arange(len(queries)) % 3)
    return KeyValueCache.of(model, queries.rows.paths.take(held), owners=held)


@pytest.fixture(scope="module")
def private(queries, own):
    return Private(own, queries.rows.source, queries.rows.target)


def test_a_query_reads_its_own_rows_alone(model, queries, private):
    batch = batch_of(queries.rows)
    with torch.no_grad():
        out = Cached(model, private, theta=300.0, weight=1.0)(batch).exp()
        alone = model(batch).softmax(-1)
    real = batch.labels >= 0
    right = out.gather(-1, batch.labels.clamp_min(0)[..., None])[..., 0]
    told = torch.arange(len(queries)) % 3 > 0
    assert right[told][real[told]].min() > 0.99
    torch.testing.assert_close(out[~told], alone[~told], atol=1e-6, rtol=1e-4)
    assert_consistent(Cached(model, private, theta=9.0, weight=0.5), batch, tolerance=1e-4)


def test_a_private_store_is_a_cache_of_its_rows(model, queries, own, private):
    """The same answers as a cache that holds one query's rows and nothing else."""
    mixed = Cached(model, private, theta=7.0, weight=0.6)
    for i in (1, 4):
        batch = batch_of(queries.rows.take(np.array([i])))
        alone = Cached(model, own.rows(own.owners == i), theta=7.0, weight=0.6, k=10**6)
        torch.testing.assert_close(mixed(batch), alone(batch), atol=1e-5, rtol=1e-4)


def test_a_query_without_a_store(model, private, tiny_dataset):
    mixed = Cached(model, private, theta=7.0, weight=0.6)
    other = batch_of(tiny_dataset.rows("test").take(np.arange(5)))
    with torch.no_grad():
        torch.testing.assert_close(mixed(other), model(other).log_softmax(-1))


def test_fit_of_a_private_store_is_the_best_of_a_grid(model, queries, private):
    best, table = fit(model, private, queries.rows.paths, OWN_THETAS, OWN_WEIGHTS)
    batch = batch_of(queries.rows)
    loss = {}
    with torch.no_grad():
        for theta, weight in ((5.0, 0.0), (80.0, 0.99), (best.theta, best.weight)):
            mixed = Cached(model, private, theta=theta, weight=weight)
            loss[theta, weight] = float(nats(mixed(batch), batch))
            assert table[theta, weight] == pytest.approx(loss[theta, weight], rel=1e-4, abs=1e-6)
    assert min(loss, key=lambda pair: loss[pair]) == (80.0, 0.99) == (best.theta, best.weight)


def test_private_flops(model, own, private):
    mixed = Cached(model, private, theta=7.0, weight=0.6)
    assert mixed.flops_per_step() == model.flops_per_step() + round(2 * 16 * len(own) / 30)
    with pytest.raises(ValueError, match="weight"):
        Cached(model, private, theta=7.0, weight=1.1)


def test_familiarity_leaves_a_path_out_of_its_own_store(model, stored):
    cache = KeyValueCache.of(model, stored)
    some = np.arange(20)
    itself = familiarity(model, cache, stored.take(some))
    others = familiarity(model, cache, stored.take(some), owners=some)
    assert (itself > 1 - 1e-4).all() and (others < itself - 1e-3).mean() > 0.9


def test_fit_works_on_any_store(model, stored, queries):
    cache = KeyValueCache.of(model, stored)
    exact = fit(model, cache, queries.rows.paths)[1]
    probed = fit(model, Probed(cache, 8, 8), queries.rows.paths)[1]
    assert probed == pytest.approx(exact, abs=1e-4)
    few = batch_of_paths(queries.rows.paths)
    cached = Cached(model, Truncated(cache, 8), theta=9.0, weight=0.3, k=32)
    assert torch.isfinite(nats(cached(few), few))
