"""The tables of notebook 05 on a real graph and a trained model."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from toys import counted_flops

from citypaths.data.batches import batch_of
from citypaths.decoding import PathLength
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.queries import Queries
from citypaths.models import build
from citypaths.training.loop import TrainSettings, train
from studies.search import ExactValue, Inconsistency
from studies.search import study as searching


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).uncontained().first(60)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    settings = TrainSettings(steps=150, batch_tokens=1024, evaluations=1)
    folder = tmp_path_factory.mktemp("gru")
    return train("rnn", tiny_dataset, folder, settings, {"width": 24, "tied": True})


@pytest.fixture(scope="module")
def value(tiny_dataset, tmp_path_factory):
    settings = TrainSettings(steps=250, batch_tokens=2048, evaluations=1, learning_rate=1e-2)
    return train("value", tiny_dataset, tmp_path_factory.mktemp("value"), settings, {"width": 32})


@pytest.fixture(scope="module")
def reverse(tiny_dataset, tmp_path_factory):
    settings = TrainSettings(steps=100, batch_tokens=1024, evaluations=1)
    folder = tmp_path_factory.mktemp("reverse")
    return train("reverse", tiny_dataset, folder, settings, {"width": 24, "tied": True})


def test_search_table(queries, trained, reverse):
    scored = searching.search_table(queries, "gru", trained, 0, (4, 32), reverse)
    rows = {s.row["method"]: s for s in scored}
    assert all(set(s.row) <= set(COLUMNS) for s in rows.values())
    success = {name: s.row["success"] for name, s in rows.items()}
    assert success["best of 32, checked"] > success["greedy"] + 0.1
    assert success["best of 32, checked"] >= success["best of 4, checked"] - 0.05
    km = {name: s.judged["ratio"].where(s.judged["arrives"]).to_numpy() for name, s in rows.items()}
    both = ~np.isnan(km["best of 32, checked"]) & ~np.isnan(km["stitched 32"])
    assert rows["best of 32, checked"].row["lookups"] > 0 == rows["beam 8"].row["lookups"]
    assert (km["stitched 32"][both] <= km["best of 32, checked"][both] + 1e-9).mean() > 0.7
    for name, s in rows.items():
        assert s.row["regime"] == ("closed_book" if s.row["lookups"] == 0 else "checked"), name
    blind = searching.blind_row(queries, 8, 0)
    assert blind.row["success"] < success["best of 32, checked"] and blind.row["expansions"] > 0


def test_learned_heuristics(queries, value):
    scored = searching.a_star_rows(queries, value, (None, 0.1))
    table = searching.heuristics(scored)
    assert list(table.index[2:]) == ["A*, learned mean", "A*, learned quantile 0.1"]
    assert table.loc["A*", "ratio"] == pytest.approx(1, abs=1e-9)
    assert (table["expansions"].iloc[2:] < table.loc["A*", "expansions"]).all()
    assert table["ratio"].iloc[3] <= table["ratio"].iloc[2] and (table["ratio"] >= 1 - 1e-9).all()
    assert searching.safest(scored, 1e9) == table["expansions"].iloc[2:].idxmin()
    assert searching.safest(scored, 0.5) == table["ratio"].iloc[2:].idxmin()


def test_cost_to_go(queries, value, tennessee):
    model, rows = value.model.eval(), queries.rows
    source, target = torch.as_tensor(rows.source).long(), torch.as_tensor(rows.target).long()
    with torch.no_grad():
        mean, low = model.togo(source, target), model.togo(source, target, 0.1)
        assert (low >= model.straight_km(source, target) - 1e-3).all() and (low <= mean + 20).all()
        assert not model.togo(target, target).any(), "nothing is left at the target"
        table = model.table(target[:3])
        same = model.togo(source, target[1].expand(60))
        np.testing.assert_allclose(table[1, source].numpy(), same.numpy(), rtol=1e-4)
        p = model.distribution(source, target)
        np.testing.assert_allclose(p.sum(-1).numpy(), 1, rtol=1e-5)
    assert counted_flops(lambda: model(source, target)) == model.flops_per_call * len(source)
    error = (mean.numpy() / rows.km - 1).__abs__().mean()
    straight = (queries.straight_km / rows.km - 1).__abs__().mean()
    assert error < 0.7 * straight, "better than the great circle"


def test_inconsistency_of_a_shortest_path_is_nothing(queries, tennessee):
    exact = ExactValue(tennessee, queries.rows.target)
    energies = Inconsistency(exact, tennessee).score(
        queries.rows.source, queries.rows.target, queries.rows.paths
    )
    np.testing.assert_allclose(energies, 0, atol=1e-4)
    length = PathLength(tennessee).score(
        queries.rows.source, queries.rows.target, queries.rows.paths
    )
    np.testing.assert_allclose(length, queries.rows.km, rtol=1e-6)


def test_reach_learns_who_is_near(tiny_dataset, tmp_path):
    settings = TrainSettings(steps=150, batch_tokens=2048, evaluations=1, learning_rate=1e-2)
    batch = batch_of(tiny_dataset.rows("valid"))
    torch.manual_seed(0)
    untrained = build("reach", tiny_dataset.graph, width=32)
    trained = train("reach", tiny_dataset, tmp_path, settings, {"width": 32}).model
    with torch.no_grad():
        before, after = (float(model.loss(batch)) for model in (untrained, trained))
    assert after < 0.7 * before
