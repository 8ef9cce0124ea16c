"""The scoreboard reads the ledger alone: hand-made runs, and what must come of them."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from citypaths.judging.ledger import FAMILIES, GREAT_CIRCLE, record
from citypaths.sizes import get_size
from studies.scoreboard import board as scoreboard


def a_row(model: str, method: str, family: str, flops: float, success: float, **more) -> dict:
    row = {"model": model, "method": method, "family": family, "inference_flops": flops}
    row |= {"success": success, "success_low": max(0.0, success - 0.1), "regime": "closed_book"}
    row |= {"success_high": min(1.0, success + 0.1), "hard_success": success / 2, "lookups": 0.0}
    return {"split": "uncontained"} | row | {"parameters": 10, "queries": 50} | more


@pytest.fixture
def ledger(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path))
    tiny, small, large = get_size("tiny"), {"parameters": 100}, {"parameters": 400}
    opened = {"regime": "open_map", "study": "floors"}
    base = [
        a_row("none", "A*", "graph search", 0.0, 1.0, lookups=40.0, **opened),
        a_row("none", "Dijkstra", "graph search", 0.0, 1.0, lookups=90.0, **opened),
        a_row("gru-16", "greedy", "greedy", 5e5, 0.4, study="decoders", **small),
        a_row("gru-16", "beam 8", "beam", 4e6, 0.6, study="decoders", **small),
        a_row("gru-32", "greedy", "greedy", 5e6, 0.5, study="decoders", **large),
        a_row("gru-32", "sample", "sample", 5e6, 0.3, study="decoders", **large),
        a_row("lstm-32", "greedy", "greedy", 6e6, 0.5, study="decoders", **large),
        a_row("gru-16", "a fix", "greedy", 1e5, 0.1, study="waterfall"),
        a_row("gru-16", "greedy", "greedy", 1e5, 0.9, split="ordered"),
    ]
    again = [a_row("gru-16", "greedy", "greedy", 7e5, 0.5, study="decoders", **small)]
    curve = [
        a_row("gru-16", f"best of {n}", "best of N", 0, rate, study="curve", **what, attempts=n)
        for what, rates in (
            ({"verifier": "own", "subset": ""}, (0.3, 0.5, 0.4)),
            ({"verifier": "own", "subset": "2-8 hops"}, (0.5, 0.6, 0.6)),
            ({"verifier": "own", "subset": "9-12 hops"}, (0.2, 0.3, 0.1)),
        )
        for n, rate in zip((1, 4, 16), rates, strict=True)
    ]
    rung = a_row("gru-8", "greedy", "greedy", 1e4, 0.2, study="ladder")
    best = {"regime": "checked", "lookups": 100.0, "attempts": 8, "verifier": "exact length"}
    record("03-rnn-baselines", tiny, 0, base)
    record("03-rnn-baselines", tiny, 1, again)
    record(
        "05-search",
        tiny,
        0,
        [*curve, rung, a_row("gru-16", "best of 8", "best of N", 9e6, 0.8, **best)],
    )
    return tiny


BOARD = ["A*", "Dijkstra", "greedy", "greedy", "greedy", "greedy", "beam 8", "best of 8", "sample"]


def test_what_is_on_the_board(ledger):
    rows = scoreboard.recorded("tiny")
    assert sorted(rows["method"]) == sorted(BOARD)
    assert scoreboard.recorded("tiny", seed=1)["success"].tolist() == [0.5]
    assert scoreboard.recorded("small").empty
    priced = rows.set_index(["method", "model", "seed"])["operations"]
    assert priced["A*", "none", 0] == 40 * GREAT_CIRCLE
    assert priced["best of 8", "gru-16", 0] == 9e6 + 100 * GREAT_CIRCLE


def test_a_notebook_of_one_s_own_is_on_the_board(ledger):
    """Its rows appear beside the others, in their family's colour, without an edit anywhere."""
    own = a_row("mine", "my search", "tree search", 2e6, 0.7, study="my study", regime="checked")
    learned = a_row("gru-16", "greedy", "learning", 2e6, 0.3, study="learning", share=0.1)
    edited = a_row("mine", "roads", "memory", 2e6, 0.7, study="closures", share=0.05)
    episode = a_row("mine", "greedy", "memory", 2e6, 0.7, study="episodes", split="episodes")
    part = a_row("mine", "greedy", "greedy", 2e6, 0.7, subset="path hit")
    record("42-of-my-own", ledger, 0, [own, learned, edited, episode, part])
    rows = scoreboard.recorded("tiny")
    mine = rows[rows["notebook"] == "42-of-my-own"]
    assert mine["method"].tolist() == ["my search", "greedy"]
    methods = scoreboard.best_of_each(rows)
    shown = scoreboard.board(methods).set_index(["model", "method", "share"])
    assert shown.loc["mine", "my search", ""]["command"] == "make run SIZE=tiny # 42-of-my-own"
    assert shown.loc["gru-16", "greedy", "10%"]["success"] == "30.0 % (20.0-40.0)"
    fig = scoreboard.axes_of_compute(methods)
    names = [text.get_text() for text in fig.legends[0].get_texts()]
    assert names == [name for name in FAMILIES if name in set(methods["family"])]
    assert {"tree search", "learning"} <= set(names)


def test_seeds_are_averaged_and_their_range_told(ledger):
    table = scoreboard.best_of_each(scoreboard.recorded("tiny")).set_index(["model", "method"])
    greedy = table.loc["gru-16", "greedy"]
    assert greedy["success"] == pytest.approx(0.45) and greedy["seeds"] == 2
    assert (greedy["low"], greedy["high"]) == (0.4, 0.5)
    assert greedy["inference_flops"] == 6e5
    single = table.loc["gru-16", "beam 8"]
    assert (single["low"], single["high"]) == pytest.approx((0.5, 0.7)) and single["seeds"] == 1
    rounds = [
        a_row("masked", "masked", "refinement", 1e6 * n, 0.3 + n / 10, rounds=n) for n in (1, 2)
    ]
    same = [a_row("gru-16", "beam 8", "beam", 3e6, 0.9, queries=20)]
    looped = [a_row("looped", "greedy", "more loops", 1e6 * n, n / 10, loops=n) for n in (1, 4)]
    record("06-iterative-refinement", ledger, 0, rounds + same + looped)
    more = scoreboard.best_of_each(scoreboard.recorded("tiny")).set_index(["model", "method"])
    assert more.loc[[("masked", "masked")], "success"].tolist() == [0.5]  # after the last round
    assert more.loc[[("gru-16", "beam 8")], "success"].tolist() == [0.6]  # of more queries
    assert more.loc[[("looped", "greedy")], "success"].tolist() == [0.1, 0.4]  # a dial, not rounds
    shown = scoreboard.board(table.reset_index()).set_index(["model", "method"])
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
    turn = scoreboard.overshoot(scoreboard.of_study("tiny", "curve"))
    assert turn.index.tolist() == [("2-8 hops", "own"), ("9-12 hops", "own")]
    assert turn.loc[("9-12 hops", "own"), "best N"] == 4
    assert turn.loc[("9-12 hops", "own"), "lost at most"] == pytest.approx(0.2)
    assert turn.loc[("2-8 hops", "own"), "lost at most"] == 0


def test_rows_for_the_exchange_rate(ledger):
    assert scoreboard.of_study("tiny", "ladder")["method"].tolist() == ["greedy"]
    rows = scoreboard.baselines("tiny")
    assert set(rows["model"]) == {"gru-16", "gru-32"} and "sample" not in set(rows["method"])


def test_words_and_figure(ledger):
    methods = scoreboard.best_of_each(scoreboard.recorded("tiny"))
    fronts = {r: scoreboard.frontier(p, "hard_success") for r, p in methods.groupby("regime")}
    said = scoreboard.tops(fronts).splitlines()
    assert said[-1] == "open-map: A* solves 50.0% of the hard queries with 1.2 k operations."
    fig = scoreboard.axes_of_compute(methods)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes[:3]]
    best = ["gru-16, beam 8", "gru-16, best of 8", "A*"]
    kinds = ("closed-book", "checked", "open-map")
    assert titles == [f"{kind}\nbest: {name}" for kind, name in zip(kinds, best, strict=True)]
