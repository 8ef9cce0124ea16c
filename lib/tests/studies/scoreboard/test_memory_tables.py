"""Tables of notebook 07, from made-up rows whose cells are known by hand."""

from __future__ import annotations

import pandas as pd
import pytest

from citypaths.judging import ledger as results
from studies.scoreboard import memory_tables

RUN = {"notebook": "07-external-memory", "size": "small", "run": "07-external-memory-small-seed0"}


def row(**given):
    empty = dict.fromkeys(results.COLUMNS)
    return empty | RUN | {"parameters": 5_000, "inference_flops": 2e6, "lookups": 0.0} | given


def exam(model, seed, cities, hard, recall=0.5, method="greedy"):
    what = {"study": "episodes", "split": "episodes", "subset": "", "cities": cities}
    rates = {"hard_success": hard, "optimal": hard / 2, "recall": recall, "hard_queries": 100}
    return row(model=model, seed=seed, method=method, **what, **rates)


@pytest.fixture
def ledger(monkeypatch):
    rows = [exam("dnc", s, n, 0.2 + 0.1 * s + n / 100) for s in (0, 1, 2) for n in (8, 12, 16)]
    rows += [exam("none", 0, n, 0.25, method="random walk") for n in (8, 12, 16)]
    for share, success in ((0.01, 0.5), (0.05, 0.25)):
        for subset, queries in (("", 200), ("path hit", 40)):
            rates = {"success": success, "success_low": 0.1, "success_high": 0.9}
            what = {"study": "closures", "split": "uncontained", "subset": subset, "share": share}
            what |= {"queries": queries, "lookups": 1234.0, "regime": "closed_book"}
            rows.append(row(model="gru-8", method="roads", **what, **rates))
    rows.append(row(size="tiny", run="other", model="dnc", study="episodes", cities=8))
    frame = pd.DataFrame(rows)
    monkeypatch.setattr(results, "load_results", lambda: frame)
    return frame


def test_episodes_have_a_line_an_arm_with_its_interval_over_seeds(ledger):
    lines = memory_tables.episodes_table("small").splitlines()
    assert (
        len(lines) == 4
        and "success, no direct hop, 16 cities | optimal, all queries, 12" in lines[0]
    )
    cells = [cell.strip() for cell in lines[2].strip("|").split("|")]
    assert cells[0] == "dnc" and cells[-1] == "3" and cells[-3:-1] == ["5 k", "2 M"]
    mean, half = 0.42, 0.1 / 3**0.5 * 4.30265  # t of two degrees of freedom
    low, high = 100 * (mean - half), 100 * (mean + half)
    assert cells[2] == f"42.0 % ({low:.1f}-{high:.1f})" and cells[5] == "50.0 %"
    assert lines[3].startswith("| random walk | 25.0 % | 25.0 %")
    assert memory_tables.episodes_table("full").startswith("No run")


def test_closures_have_a_line_a_method_and_a_column_a_share(ledger):
    lines = memory_tables.closures_table("small").splitlines()
    assert "1.0% of hops (40 answers) | 5.0% of hops (40 answers) | look-ups" in lines[0]
    assert lines[2] == (
        "| roads | gru-8 | closed-book | 50.0 % (10.0-90.0) | 25.0 % (10.0-90.0) | 1.23 k |"
    )
    assert len(lines) == 3
    assert memory_tables.closures_table("full").startswith("No run")
