"""The scoreboard reads the ledger alone: hand-made runs, and what must come of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from citypaths.judging.ledger import GREAT_CIRCLE, record
from citypaths.sizes import get_size
from studies.scoreboard import board as scoreboard


def a_row(model: str, method: str, regime: str, flops: float, success: float, **more) -> dict:
    row = {"model": model, "method": method, "regime": regime, "inference_flops": flops}
    row |= {"success": success, "success_low": max(0.0, success - 0.1)}
    row |= {"success_high": min(1.0, success + 0.1), "hard_success": success / 2, "lookups": 0.0}
    return {"split": "uncontained"} | row | {"parameters": 10, "queries": 50} | more


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path))
    tiny = get_size("tiny")
    base = [
        a_row("none", "A*", "open_map", 0.0, 1.0, lookups=40.0),
        a_row("none", "Dijkstra", "open_map", 0.0, 1.0, lookups=90.0),
        a_row("gru-16", "greedy", "closed_book", 5e5, 0.4, parameters=100),
        a_row("gru-16", "beam 8", "closed_book", 4e6, 0.6, parameters=100),
        a_row("gru-32", "greedy", "closed_book", 5e6, 0.5, parameters=400),
        a_row("gru-16", "waterfall 1: a fix", "closed_book", 1e5, 0.1),
        a_row("gru-16", "greedy", "closed_book", 1e5, 0.9, split="ordered"),
    ]
    again = [a_row("gru-16", "greedy", "closed_book", 7e5, 0.5, parameters=100)]
    by_own = {"study": "curve", "verifier": "own likelihood"}
    curve = [
        a_row("gru-16", f"best of {n}", "closed_book", 0, rate, attempts=n, subset=subset, **by_own)
        for subset, rates in {
            "": (0.3, 0.5, 0.4),
            "2-8 hops": (0.5, 0.6, 0.6),
            "9-12 hops": (0.2, 0.3, 0.1),
        }.items()
        for n, rate in zip((1, 4, 16), rates, strict=True)
    ]
    rung = a_row("gru-8", "greedy", "closed_book", 1e4, 0.2, study="ladder")
    record("03-rnn-baselines", tiny, 0, base)
    record("03-rnn-baselines", tiny, 1, again)
    record(
        "05-search",
        tiny,
        0,
        [*curve, rung, a_row("gru-16", "best of 8, checked", "checked", 9e6, 0.8, lookups=100.0)],
    )
    record("01-city-dag", tiny, 0, [a_row("none", "greedy", "open_map", 0, 0.5)])


def test_what_is_on_the_board(ledger):
    rows = scoreboard.recorded("tiny")
    assert sorted(rows["method"]) == sorted(
        ["A*", "Dijkstra", "greedy", "greedy", "greedy", "beam 8", "best of 8, checked"]
    )
    assert scoreboard.recorded("tiny", seed=1)["success"].tolist() == [0.5]
    assert scoreboard.recorded("small").empty
    priced = rows.set_index(["method", "model", "seed"])["operations"]
    assert priced["A*", "none", 0] == 40 * GREAT_CIRCLE
    assert priced["best of 8, checked", "gru-16", 0] == 9e6 + 100 * GREAT_CIRCLE


def test_seeds_are_averaged_and_their_range_told(ledger):
    table = scoreboard.best_of_each(scoreboard.recorded("tiny")).set_index(["model", "method"])
    greedy = table.loc["gru-16", "greedy"]
    assert greedy["success"] == pytest.approx(0.45) and greedy["seeds"] == 2
    assert (greedy["low"], greedy["high"]) == (0.4, 0.5)
    assert greedy["inference_flops"] == 6e5
    single = table.loc["gru-16", "beam 8"]
    assert (single["low"], single["high"]) == pytest.approx((0.5, 0.7)) and single["seeds"] == 1
    rounds = [
        a_row("masked", "masked", "closed_book", 1e6 * n, 0.3 + n / 10, budget=n) for n in (1, 2)
    ]
    same = [a_row("gru-16", "beam 8", "closed_book", 3e6, 0.9, queries=20)]
    record("06-iterative-refinement", get_size("tiny"), 0, rounds + same)
    more = scoreboard.best_of_each(scoreboard.recorded("tiny")).set_index(["model", "method"])
    assert more.loc[("masked", "masked"), "success"] == 0.5  # after the last round
    assert more.loc[("gru-16", "beam 8"), "success"] == 0.6  # of more queries
    shown = scoreboard.board(table.reset_index().assign(size="tiny")).set_index(["model", "method"])
    assert shown.loc["gru-16", "greedy"]["success"] == "45.0 % (40.0-50.0)"
    assert shown.loc["none", "A*"]["command"] == "make run SIZE=tiny # 03-rnn-baselines"


def test_the_frontier_by_brute_force():
    rng = np.random.default_rng(0)
    rows = pd.DataFrame(
        {"operations": rng.integers(1, 20, 60), "success": rng.integers(0, 30, 60) / 30}
    )
    kept = scoreboard.frontier(rows)
    for i, row in rows.iterrows():
        cheaper = rows[(rows["operations"] < row["operations"])]["success"].max()
        same = rows[rows["operations"] == row["operations"]]["success"].max()
        best = row["success"] == same and not cheaper >= row["success"]
        alike = (kept["operations"] == row["operations"]) & (kept["success"] == row["success"])
        assert bool(alike.any()) == best, i
    assert kept["success"].is_monotonic_increasing and kept["operations"].is_monotonic_increasing


def test_where_curves_turn(ledger):
    turn = scoreboard.overshoot(scoreboard.curve_rows("tiny"))
    assert turn.loc[("9-12 hops", "own likelihood"), "best N"] == 4
    assert turn.loc[("9-12 hops", "own likelihood"), "lost at most"] == pytest.approx(0.2)
    assert turn.loc[("2-8 hops", "own likelihood"), "lost at most"] == 0


def test_rows_for_the_exchange_rate(ledger):
    assert scoreboard.ladder_rows("tiny")["method"].tolist() == ["greedy"]
    assert set(scoreboard.baseline_rows("tiny")["model"]) == {"gru-16", "gru-32"}


@pytest.mark.parametrize(
    ("method", "kind"),
    [
        ("A*, learned quantile 0.1", "graph search"),
        ("tree search 16, learned value", "tree search"),
        ("beam 16 by value", "tree search"),
        ("best of 64, checked", "best of N"),
        ("stitched 64", "best of N"),
        ("beam 8, checked", "beam"),
        ("greedy, 4 loops", "more loops"),
        ("greedy, checked", "greedy or sample"),
        ("stitched hops", "graph search"),
        ("random walk", "graph search"),
    ],
)
def test_families(method, kind):
    assert scoreboard.family(method) == kind


def test_words_and_figure(ledger):
    methods = scoreboard.best_of_each(scoreboard.recorded("tiny")).assign(size="tiny")
    fronts = {r: scoreboard.frontier(p, "hard_success") for r, p in methods.groupby("regime")}
    said = scoreboard.tops(fronts).splitlines()
    assert said[-1] == "open-map: A* solves 50.0% of the hard queries with 1.2 k operations."
    fig = scoreboard.axes_of_compute(methods)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes[:3]]
    assert titles == ["closed-book", "checked", "open-map"]
