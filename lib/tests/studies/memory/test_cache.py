"""A key-value cache beside a frozen model."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of, batch_of_paths
from citypaths.judging.queries import Queries
from citypaths.map.paths import Paths
from citypaths.models import build
from citypaths.models.base import nats
from citypaths.models.check import assert_consistent
from studies.memory import Cached, KeyValueCache, fit
from studies.memory.cache import states_of
from studies.memory.mixture import familiarity


@pytest.fixture(scope="module")
def model(trained):
    return trained.model.eval()


@pytest.fixture(scope="module")
def stored(tiny_dataset) -> Paths:
    return tiny_dataset.rows("train").paths.take(np.arange(0, 2000, 5))


@pytest.fixture(scope="module")
def cache(model, stored):
    return KeyValueCache.of(model, stored)


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").uncontained().first(60)


def test_a_row_for_every_hop(cache, stored, model):
    assert len(cache) == (stored.lengths - 1).sum()
    torch.testing.assert_close(cache.keys.norm(dim=-1), torch.ones(len(cache)))
    for owner in range(0, len(stored), 57):
        rows = (cache.owners == owner).nonzero().flatten()
        assert cache.origins[rows].tolist() == stored[owner][:-1].tolist()
        assert cache.values[rows].tolist() == stored[owner][1:].tolist()
        alone = states_of(model, batch_of_paths(stored.take(np.array([owner]))))[0][0]
        expected = torch.nn.functional.normalize(alone, dim=-1)
        torch.testing.assert_close(cache.keys[rows], expected, atol=1e-5, rtol=0)


def test_all_neighbours_are_the_full_kernel(cache, model, queries):
    states = states_of(model, batch_of(queries.rows))[0].flatten(0, 1)[:50]
    cosine = torch.nn.functional.cosine_similarity(states[:, None], cache.keys[None], dim=-1)
    kernel = (9.0 * cosine).exp()
    expected = torch.zeros(50, model.cities).index_add_(1, cache.values, kernel)
    expected /= kernel.sum(1, keepdim=True)
    found = cache.predict(states, model.cities, 9.0, len(cache))
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-4)
    near = cache.nearest(states, 7)[0]
    best = cosine.sort(descending=True, dim=1)
    torch.testing.assert_close(near, best.values[:, :7], atol=1e-5, rtol=0)
    few = cache.predict(states, model.cities, 9.0, 7)
    torch.testing.assert_close(few.sum(1), torch.ones(50))
    assert (few > 0).sum(1).max() <= 7


@pytest.mark.parametrize("k", [1, 5, 300])
def test_blocks_and_slices_decide_nothing(cache, model, queries, monkeypatch, k):
    states = states_of(model, batch_of(queries.rows))[0].flatten(0, 1)[:40]
    whole = cache.nearest(states, k)
    for name, value in {"FEW": 0, "PIECE": 256, "STATES": 7}.items():
        monkeypatch.setattr(f"studies.memory.cache.{name}", value)
    assert len(cache) % 32, "the last block is not full"
    near, rows = cache.nearest(states, k)
    torch.testing.assert_close(near, whole[0], atol=1e-6, rtol=0)
    unit = torch.nn.functional.normalize(states, dim=-1)
    torch.testing.assert_close((unit[:, None] * cache.keys[rows]).sum(-1), near)
    assert all(len(set(each)) == k for each in rows.tolist())


def test_leave_one_out(cache, model, stored):
    """What is stored finds itself first, unless its own rows are left out."""
    some = stored.take(np.arange(8))
    batch = batch_of_paths(some)
    real = batch.labels >= 0
    states = states_of(model, batch)[0][real]
    near, _ = cache.nearest(states, 1)
    assert (near > 1 - 1e-4).all()
    left = familiarity(model, cache, some, owners=np.arange(8))
    for i in range(8):
        others = familiarity(model, cache.rows(cache.owners != i), some.take(np.array([i])))
        assert left[i] == pytest.approx(others[0], abs=1e-6)
    only = cache.rows(cache.owners == 0)
    assert familiarity(model, only, some.take(np.array([0])), owners=[0])[0] == -np.inf


def test_the_mixture(cache, model, queries):
    batch = batch_of(queries.rows)
    own = model(batch).log_softmax(-1)
    none = Cached(model, cache, theta=20.0, weight=0.0)(batch)
    torch.testing.assert_close(none, own)
    states = states_of(model, batch)[0]
    recalled = cache.predict(states.flatten(0, 1), model.cities, 20.0, 64).view_as(own)
    mixed = Cached(model, cache, theta=20.0, weight=0.4)(batch).exp()
    torch.testing.assert_close(mixed, 0.6 * own.exp() + 0.4 * recalled, atol=1e-6, rtol=1e-4)
    torch.testing.assert_close(mixed.sum(-1), torch.ones(batch.cities.shape))


@pytest.mark.parametrize("name", ["rnn", "transformer"])
def test_steps_are_the_whole(tennessee, tiny_dataset, stored, name):
    torch.manual_seed(0)
    model = build(name, tennessee, width=16).eval()
    cached = Cached(model, KeyValueCache.of(model, stored), theta=10.0, weight=0.5, k=8)
    rows = tiny_dataset.rows("valid").take(np.array([0, 5, 40, 90]))
    assert_consistent(cached, batch_of(rows), tolerance=1e-4)


def test_fit_is_the_best_of_a_grid(cache, model, queries):
    paths = queries.rows.paths
    best, table = fit(model, cache, paths)
    batch = batch_of_paths(paths)
    with torch.no_grad():
        for theta, weight in ((20.0, 0.3), (80.0, 0.9), (best.theta, best.weight)):
            whole = Cached(model, cache, theta=theta, weight=weight)(batch)
            assert float(nats(whole, batch)) == pytest.approx(table[theta, weight], rel=1e-4)
        own = float(nats(model(batch), batch))
    assert table[best.theta, best.weight] == min(table.values()) <= own + 1e-6
    assert best.weight > 0, "other paths help a model that was trained briefly"


def test_familiarity_tells_stored_paths_from_new_ones(cache, model, stored, queries):
    seen = familiarity(model, cache, stored.take(np.arange(60)))
    new = familiarity(model, cache, queries.rows.paths)
    assert seen == pytest.approx(np.ones(60), abs=1e-4)
    assert (new <= 1 + 1e-5).all() and (seen[:, None] > new).mean() > 0.8


def test_closed_hops_leave_the_store(cache, model):
    origin, value = cache.origins[:1], cache.values[:1]
    left = cache.without_hops(torch.stack([origin, value], 1), model.cities)
    gone = (cache.origins == origin) & (cache.values == value)
    assert len(left) == len(cache) - int(gone.sum()) and gone.any()
    again = left.joined(cache.rows(gone))
    assert (
        len(again) == len(cache)
        and again.values.bincount().tolist() == cache.values.bincount().tolist()
    )


def test_a_cached_model_decodes(cache, model, queries):
    cached = Cached(model, cache, theta=40.0, weight=0.3)
    found = queries.decode(decoding.greedy, cached)
    steps = found.flops / cached.flops_per_step()
    assert cached.flops_per_step() == model.flops_per_step() + 2 * len(cache) * 32
    assert len(found.paths) == len(queries) and (steps > 0).all()


BAD = [{"theta": 0.0, "weight": 0.5}, {"theta": 1.0, "weight": 1.5}]


@pytest.mark.parametrize("bad", [*BAD, {"theta": 1.0, "weight": 0.5, "k": 0}])
def test_arguments_out_of_range(cache, model, bad):
    with pytest.raises(ValueError, match="weight"):
        Cached(model, cache, **bad)


def test_what_has_no_head_is_refused(tennessee, queries):
    model = build("rnn", tennessee, width=8)
    model.head = None
    with pytest.raises(ValueError, match="has no head"):
        states_of(model, batch_of(queries.rows))
