"""The exchange rate: small models that search against larger ones alone."""

from __future__ import annotations

import pandas as pd
import pytest

from citypaths.judging.ledger import _check
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.sizes import get_size
from studies.search import exchange

SIZE = {"budget": 3e8, "batch_tokens": 128}


def a_row(width, seed, method, flops, success, regime="closed_book") -> dict:
    names = {"model": f"gru-{width}", "parameters": 100 * width, "seed": seed}
    rest = {"method": method, "regime": regime, "inference_flops": flops, "success": success}
    return names | rest


@pytest.fixture
def rows() -> pd.DataFrame:
    table = []
    for seed, luck in ((0, -0.02), (1, 0.0), (2, 0.02)):
        table += [
            a_row(8, seed, "greedy", 10, 0.30),
            a_row(8, seed, "beam 4", 40, 0.50 + luck),
            a_row(8, seed, "beam 8", 80, 0.60 + luck),
            a_row(8, seed, "beam 4", 41, 0.8, "checked"),
            a_row(32, seed, "greedy", 50, 0.45 + luck),
            a_row(32, seed, "beam 4", 200, 0.7),
            a_row(128, seed, "greedy", 200, 0.65),
        ]
    return pd.DataFrame(table)


def test_gaps_by_hand(rows):
    table = exchange.gaps(rows).set_index(["regime", "small", "large"])
    small, middle, large = (f"gru-{w}" for w in (8, 32, 128))
    near = table.loc["closed_book", small, middle]
    assert near["method"] == "beam 4" and near["times"] == 4  # beam 8 costs more than 50
    assert near["gap"] == pytest.approx(0.05) and near["low"] == pytest.approx(0.05)
    far = table.loc["closed_book", small, large]
    assert far["method"] == "beam 8" and far["gap"] == pytest.approx(-0.05)
    half = 4.302653 * 0.02 / 3**0.5  # t of two degrees of freedom, spread over three seeds
    assert far["high"] - far["gap"] == pytest.approx(half, rel=1e-5)
    assert table.loc["closed_book", middle, large]["method"] == "beam 4"
    assert table.loc["checked", small, large]["gap"] == pytest.approx(0.15)
    assert far["alone"] == pytest.approx(-0.35)
    shown = exchange.matrix(table.reset_index())
    assert shown.loc[("closed_book", "gru-8"), "gru-32"] == "+5.0 (+5 to +5); alone -15.0"
    assert shown.loc[("checked", "gru-8"), "gru-128"].startswith("+15.0")
    assert len(table) == 5  # no checked search of the middle one


def test_matched_is_the_largest_ratio(rows):
    best = exchange.matched(exchange.gaps(rows))
    assert best.loc["checked", "times"] == 16 and best.loc["closed_book", "times"] == 4
    alone = exchange.gaps(rows[rows["seed"] == 0])
    assert alone["low"].isna().all()
    assert exchange.matched(alone).loc["checked", "times"] == 16
    none = exchange.matched(
        exchange.gaps(rows[rows["method"] == "greedy"].assign(success=[0.1, 0.2, 0.3] * 3))
    )
    assert none.empty


def test_seeds_that_only_one_of_them_has_are_left_out(rows):
    fewer = rows[(rows["seed"] == 0) | (rows["model"] != "gru-8")]
    table = exchange.gaps(fewer).set_index(["regime", "small", "large"])
    small, middle, large = (f"gru-{w}" for w in (8, 32, 128))
    assert table.loc["closed_book", small, large]["gap"] == pytest.approx(0.58 - 0.65)
    assert pd.isna(table.loc["closed_book", small, large]["low"])
    assert not pd.isna(table.loc["closed_book", middle, large]["low"])


def test_the_ladder_climbs(tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    size = get_size("tiny", SIZE)
    queries = Queries.of(tiny_dataset).uncontained().first(12)
    scored = exchange.climb(size, tiny_dataset, queries, [0])
    frame = pd.DataFrame([s.row for s in scored])
    for row in frame.to_dict("records"):
        _check(row)
    assert set(frame["study"]) == {"ladder"} and set(frame["seed"]) == {0}
    assert frame["parameters"].is_monotonic_increasing and frame["model"].nunique() == 5
    assert set(frame["model"]) == {f"gru-{w}" for w in (8, 16, 32, 64, 128)}
    assert (frame["training_flops"] <= 3e8).all() and (frame["training_flops"] > 2e8).all()
    assert (frame.loc[frame["regime"] == "closed_book", "lookups"] == 0).all()
    table = exchange.gaps(frame)
    assert set(table["regime"]) <= {"closed_book", "checked"} and (table["times"] > 1).all()
    again = train_arm(size, tiny_dataset, "gru", 0)
    assert again.model.parameters_count == frame["parameters"].unique()[2]
