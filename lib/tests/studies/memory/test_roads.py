"""A model that may only take stored hops, and its store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.judging.floors import stored_hops
from citypaths.judging.queries import Queries
from citypaths.map.paths import Paths
from citypaths.models import build
from citypaths.models.check import assert_consistent
from studies.memory import Hops, Roads


@pytest.fixture(scope="module")
def model(tennessee):
    torch.manual_seed(0)
    return build("rnn", tennessee, width=16).eval()


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").first(40)


def test_a_row_for_every_distinct_hop():
    paths = [Paths.from_lists([[0, 2, 3], [2, 3]]), Paths.from_lists([[1, 2], [3]])]
    store = Hops.of(paths, 4)
    assert store.rows.tolist() == [[0, 2], [1, 2], [2, 3]]
    assert store.table.tolist() == [[2], [2], [3], [4]]
    assert store.without([[2, 3], [3, 0]]).rows.tolist() == [[0, 2], [1, 2]]
    more = store.joined([[0, 1], [0, 2]])
    assert more.rows.tolist() == [[0, 1], [0, 2], [1, 2], [2, 3]] and len(store) == 3
    assert more.table.tolist() == [[1, 2], [2, 4], [3, 4], [4, 4]]
    assert len(Hops.of([], 4)) == 0
    with pytest.raises(ValueError, match="0 to 3"):
        store.joined([[0, 4]])


def test_the_map_of_a_store_is_that_of_the_stitching_floor(tiny_dataset, tennessee):
    memory = tiny_dataset.rows("train").paths
    held = Hops.of([memory], len(tennessee)).on(tennessee)
    assert held.fingerprint == stored_hops(tennessee, [memory]).fingerprint
    assert len(held.indices) < len(tennessee.indices)


def test_probabilities_are_the_models_over_stored_hops(model, tennessee, queries):
    store = Hops.of([queries.rows.paths], len(tennessee))
    batch = batch_of(queries.rows)
    with torch.no_grad():
        own, found = model(batch).softmax(-1), Roads(model, store)(batch).exp()
    for row, step in ((0, 0), (7, 2), (39, 1)):
        ends = store.rows[store.rows[:, 0] == int(batch.cities[row, step]), 1]
        expected = torch.zeros(len(tennessee))
        expected[ends] = own[row, step, ends] / own[row, step, ends].sum()
        torch.testing.assert_close(found[row, step], expected, atol=1e-6, rtol=1e-4)
    assert_consistent(Roads(model, store), batch, tolerance=1e-4)


def test_only_stored_hops_are_taken(model, tennessee, queries):
    """An untrained model on the whole map walks legally; without rows it stays where it is."""
    everything = np.stack([tennessee.edge_sources, tennessee.indices], 1)
    store = Hops(np.zeros((0, 2), np.int64), len(tennessee)).joined(everything)
    found = queries.decode(decoding.greedy, Roads(model, store))
    checked = queries.decode(decoding.greedy, model, checked_by=tennessee)
    judged = queries.judge(found)
    moved = [path[: np.unique(path, return_index=True)[1].size] for path in found.paths]
    assert all(a.tolist() == b.tolist() for a, b in zip(moved, checked.paths, strict=True))
    assert judged.loc[judged["arrives"], "legal"].all()
    blind = queries.decode(decoding.greedy, Roads(model, store.without(everything)))
    assert all((p == p[0]).all() for p in blind.paths)
    beam = queries.decode(decoding.beam, Roads(model, store), width=8)
    judged = queries.judge(beam)
    assert judged["arrives"].mean() > 0.3 and judged.loc[judged["arrives"], "legal"].all()


def test_a_closed_road_is_not_taken(model, tennessee, queries):
    store = Hops.of([queries.rows.paths], len(tennessee))
    before = queries.decode(decoding.greedy, Roads(model, store)).paths
    gone = np.array([[p[0], p[1]] for p in before])
    after = queries.decode(decoding.greedy, Roads(model, store.without(gone))).paths
    keys = {tuple(hop) for hop in gone.tolist()}
    taken = {hop for p in after for hop in zip(p[:-1].tolist(), p[1:].tolist(), strict=True)}
    assert not keys & taken


def test_another_vocabulary_is_refused(model):
    with pytest.raises(ValueError, match="cities"):
        Roads(model, Hops(np.zeros((0, 2), np.int64), 3))
