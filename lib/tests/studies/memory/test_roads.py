"""A model that may only take stored hops, and its store."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.judging.floors import stored_hops
from citypaths.judging.queries import Queries
from citypaths.models import build
from citypaths.models.check import assert_consistent
from studies.memory import Roads
from studies.memory.editing import closed


@pytest.fixture(scope="module")
def model(tennessee):
    torch.manual_seed(0)
    return build("rnn", tennessee, width=16).eval()


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").first(40)


def test_probabilities_are_the_models_over_stored_hops(model, tennessee, queries):
    store = stored_hops(tennessee, [queries.rows.paths])
    batch = batch_of(queries.rows)
    with torch.no_grad():
        own, found = model(batch).softmax(-1), Roads(model, store)(batch).exp()
    for row, step in ((0, 0), (7, 2), (39, 1)):
        ends = store.neighbours(int(batch.cities[row, step]))
        expected = torch.zeros(len(tennessee))
        expected[ends] = own[row, step, ends] / own[row, step, ends].sum()
        torch.testing.assert_close(found[row, step], expected, atol=1e-6, rtol=1e-4)
    assert_consistent(Roads(model, store), batch, tolerance=1e-4)


def test_only_stored_hops_are_taken(model, tennessee, queries):
    """An untrained model on the whole map walks legally; without rows it stays where it is."""
    found = queries.decode(decoding.greedy, Roads(model, tennessee))
    checked = queries.decode(decoding.greedy, model, checked_by=tennessee)
    judged = queries.judge(found)
    moved = [path[: np.unique(path, return_index=True)[1].size] for path in found.paths]
    assert all(a.tolist() == b.tolist() for a, b in zip(moved, checked.paths, strict=True))
    assert judged.loc[judged["arrives"], "legal"].all()
    nothing = tennessee.with_edges(np.zeros(len(tennessee.indices), bool))
    blind = queries.decode(decoding.greedy, Roads(model, nothing))
    assert all((p == p[0]).all() for p in blind.paths)
    beam = queries.decode(decoding.beam, Roads(model, tennessee), width=8)
    judged = queries.judge(beam)
    assert judged["arrives"].mean() > 0.3 and judged.loc[judged["arrives"], "legal"].all()


def test_a_closed_road_is_not_taken(model, tennessee, queries):
    store = stored_hops(tennessee, [queries.rows.paths])
    before = queries.decode(decoding.greedy, Roads(model, store)).paths
    gone = np.unique([[p[0], p[1]] for p in before], axis=0)
    after = queries.decode(decoding.greedy, Roads(model, closed(store, gone))).paths
    keys = {tuple(hop) for hop in gone.tolist()}
    taken = {hop for p in after for hop in zip(p[:-1].tolist(), p[1:].tolist(), strict=True)}
    assert not keys & taken


def test_another_vocabulary_is_refused(model, chain):
    with pytest.raises(ValueError, match="cities"):
        Roads(model, chain)
