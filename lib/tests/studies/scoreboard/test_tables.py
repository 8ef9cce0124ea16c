"""The READMEs' tables, from made-up rows whose cells are known by hand."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pandas as pd
import pytest

from citypaths.judging.ledger import load_results, record
from citypaths.judging.metrics import SLACK
from citypaths.sizes import SIZES, Size, get_size
from studies.scoreboard import tables
from studies.scoreboard.tables import fill_tables, table

SMALL = SIZES["small"]


@pytest.fixture(autouse=True)
def reports(monkeypatch, tmp_path) -> Path:
    """An empty ledger of the test's own."""
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def row(study: str, **columns) -> dict:
    usual = {"study": study, "model": "gru-8", "method": "greedy", "family": "greedy"}
    usual |= {"success": 0.5, "success_low": 0.4, "success_high": 0.6, "regime": "closed_book"}
    usual |= {"queries": 1234, "hard_queries": 567, "split": "uncontained", "parameters": 5_000}
    return usual | {"inference_flops": 4.61e6, "lookups": 0.0} | columns


def cells(markdown: str) -> list[list[str]]:
    """The cells of a table's lines, its head first."""
    lines = [line for line in markdown.splitlines() if line.startswith("|")]
    assert set(lines[1]) <= set("|-"), "no column is aligned as a number"
    return [[c.strip() for c in line.strip("|").split("|")] for line in lines[:1] + lines[2:]]


def made(name: str, rows: list[dict], size: Size = SMALL) -> list[list[str]]:
    record("07-x", size, 0, rows)
    return cells(table(name, load_results()))


README = """Before: paths <!-- table slack -->old<!-- end -->.

<!-- table baseline-small -->
anything
old
<!-- end -->

Between.

<!-- table baseline-medium --><!-- end -->
After, with <!-- a comment -->.
"""


def test_tables_are_filled_from_the_ledger():
    rows = [row("decoders"), row("curve", method="A*", regime="open_map", model="none")]
    record("03-rnn-baselines", SMALL, 0, [*rows, row("floors", method="walk", model="none")])
    record("03-rnn-baselines", SMALL, 1, [row("decoders", method="another seed")])
    record("03-rnn-baselines", get_size("small", {"queries": 1}), 0, [row("decoders")])
    ledger = load_results()
    filled = fill_tables(README, ledger)
    assert "1,234 uncontained queries, 567 of them hard." in filled
    shown = cells(filled)
    assert shown[1] == [
        "greedy",
        "gru-8",
        "closed-book",
        "50.0 % (40.0-60.0)",
        "-",
        "4.61 M",
        "0",
        "-",
    ]
    assert [line[0] for line in shown[1:]] == ["greedy", "walk"]
    for absent in ("A*", "another", "anything\nold"):
        assert absent not in filled
    assert "No such run (floors, decoders) is recorded at size medium." in filled
    assert fill_tables(filled, ledger) == filled
    parts = [" -->.\n\n<!--", "\n\nBetween.\n\n", "\nAfter, with <!-- a comment -->."]
    assert all(part in filled for part in parts)
    assert f"paths <!-- table slack -->at most {100 * SLACK:g} % longer than" in filled


def test_an_unknown_table_is_named():
    with pytest.raises(ValueError, match="no table 'basline-small'; known: slack, baseline-SIZE"):
        fill_tables("<!-- table basline-small -->x<!-- end -->", load_results())
    assert fill_tables("no table at all", load_results()) == "no table at all"


def test_main_fills_the_readme_and_publishes_first(tmp_path, monkeypatch, capsys):
    monkeypatch.delenv("CITYPATHS_REPORTS")
    (tmp_path / "README.md").write_text(README)
    record("03-rnn-baselines", SMALL, 0, [row("decoders")])
    tables.main([])
    assert "No such run" in (tmp_path / "README.md").read_text(), "of this machine alone"
    tables.main(["small", "0"])
    assert (tmp_path / "reports" / "runs" / "03-rnn-baselines-small-seed0.json").exists()
    filled = (tmp_path / "README.md").read_text()
    assert filled == fill_tables(README, load_results()) and "4.61 M" in filled


def test_success_over_seeds():
    rows = [row("decoders", seed=s, success=0.5 + s / 10, regime="checked") for s in (0, 1, 2)]
    rows += [row("decoders", model="none", seed=s) for s in (0, 1)] + [row("decoders")]
    assert made("seeds-small", rows)[1:] == [
        ["gru-8", "greedy", "checked", "60.0 %", "50.0 % - 70.0 %", "3"]
    ]


def test_refinement_is_told_at_first_and_after_the_last_round():
    rows = [
        row("rounds", method="masked", rounds=i, success=s)
        for i, s in ((0, 0.4), (8, 0.6), (1, 0.5))
    ]
    rows += [
        row("references", family="beam"),
        row("references", family="best of N", method="best of 4"),
    ]
    head, masked, best = made("refinement-small", rows)
    assert head[3:5] == ["first guess", "success after the last round"]
    assert masked[3:5] == ["40.0 %", "60.0 % (40.0-60.0)"]
    assert best[0] == "best of 4" and best[3:5] == ["-", "50.0 % (40.0-60.0)"]


def test_the_race_and_the_dial():
    rows = [
        row("race", model=m, seed=s, loops=4, loss=0.5, success=0.2 + s / 10)
        for m in ("looped", "act")
        for s in (0, 1, 2)
    ]
    rows += [
        row("dial", model=m, seed=0, loops=n, method=f"greedy, {n} loops", success=n / 10)
        for m in ("looped", "act")
        for n in (1, 2, 8)
    ]
    head, first, second = made("race-small", rows)
    assert head[0] == "arm" and (first[0], second[0]) == ("looped", "act")
    assert first[1:4] == ["4", "5 k", "30.0 % (20.0-40.0)"] and first[5] == "0.500"
    assert made("dial-small", rows)[0] == ["arm", "1", "2", "8"]
    assert ["looped", "10.0 %", "20.0 %", "80.0 %"] in made("dial-small", rows)


def exam(model, seed, cities, hard, method="greedy", **columns):
    rates = {"hard_success": hard, "optimal": hard / 2, "recall": 0.5, "hard_queries": 100}
    what = {"model": model, "seed": seed, "method": method, "cities": cities, "split": "episodes"}
    return row("episodes", inference_flops=2e6, **what, **rates, **columns)


def test_episodes_have_a_line_an_arm_with_its_interval_over_seeds():
    rows = [exam("dnc", s, n, 0.2 + 0.1 * s + n / 100) for s in (0, 1, 2) for n in (8, 12, 16)]
    rows += [exam("none", 0, n, 0.25, method="random walk") for n in (8, 12, 16)]
    rows += [exam("dnc", 0, 12, 0.9, shown=4), exam("dnc", 0, 12, 0.9, subset="delay 64")]
    head, dnc, walk = made("episodes-small", rows)
    assert head[3:5] == ["success, no direct hop, 16 cities", "optimal, all queries, 12"]
    assert dnc[0] == "dnc" and dnc[-3:] == ["5 k", "2 M", "3"]
    mean, half = 0.42, 0.1 / 3**0.5 * 4.30265  # t of two degrees of freedom
    low, high = 100 * (mean - half), 100 * (mean + half)
    assert dnc[2] == f"42.0 % ({low:.1f}-{high:.1f})" and dnc[5] == "50.0 %"
    assert walk[:3] == ["random walk", "25.0 %", "25.0 %"]


def test_closures_have_a_line_a_method_and_a_column_a_share():
    rows = [
        row(
            "closures",
            method=m,
            subset=subset,
            share=share,
            success=success,
            queries=n,
            lookups=1234.0,
        )
        for m in ("roads", "cache")
        for share, success in ((0.01, 0.5), (0.05, 0.25))
        for subset, n in (("", 200), ("path hit", 40))
    ]
    head, roads, cache = made("closures-small", rows[:-1] + [rows[-1] | {"method": "late"}])[:3]
    assert head[3:] == ["1.0% of hops (40 answers)", "5.0% of hops (40 answers)", "look-ups"]
    told = ["50.0 % (40.0-60.0)", "25.0 % (40.0-60.0)", "1.23 k"]
    assert roads == ["roads", "gru-8", "closed-book", *told]
    assert cache == ["cache", "gru-8", "closed-book", told[0], "-", told[2]]


def test_the_committed_pages_show_the_committed_ledger(tmp_path):
    """A rerun changes the working tree, so what is compared is the last commit."""
    root = Path(__file__).resolve().parents[4]
    archive = ["git", "-C", str(root), "archive", "HEAD", "README.md", "reports"]
    packed = subprocess.run(archive, capture_output=True)
    if packed.returncode:
        pytest.skip("not a git checkout with a committed ledger")
    subprocess.run(["tar", "-x", "-C", str(tmp_path)], input=packed.stdout, check=True)
    ledger = load_results(tmp_path / "reports")
    assert len(pd.read_csv(tmp_path / "reports" / "results.csv")) == len(ledger) > 0
    for page in (tmp_path / "README.md", tmp_path / "reports" / "README.md"):
        text = page.read_text()
        assert fill_tables(text, ledger) == text, f"{page.name}: make tables"


def test_the_frontier_keeps_what_nothing_cheaper_equals():
    rows = [
        row("searches", method="greedy", success=0.5, inference_flops=10.0),
        row("searches", method="dear", success=0.5, inference_flops=20.0),
        row("searches", method="beam 8", success=0.7, inference_flops=30.0),
        row("searches", method="best of 8", regime="checked", success=0.6, inference_flops=5.0),
    ]
    head, *lines = made("frontier-small", rows)
    assert [line[head.index("method")] for line in lines] == ["greedy", "beam 8", "best of 8"]


def test_arms_stand_with_their_success_on_training_queries():
    numbers = {"split": "held_out", "loss": 0.1234, "optimal": 0.25, "training_flops": 2e12}
    rows = [row("held out", subset="", **numbers)]
    rows.append(row("held out", subset="training queries", **numbers | {"success": 0.9}))
    head, line = made("held-out-small", rows)
    assert line[: head.index("optimal") + 2] == [
        "gru-8", "50.0 % (40.0-60.0)", "90.0 %", "25.0 %", "0.123",
    ]  # fmt: skip
