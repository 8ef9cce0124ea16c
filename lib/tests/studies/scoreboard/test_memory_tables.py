"""Tables and figures of notebook 07, from made-up rows whose cells are known by hand."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from citypaths.judging import ledger as results
from studies.episodes import figures as episode_plots
from studies.episodes import study
from studies.episodes.atlas import Atlas
from studies.episodes.task import Task
from studies.scoreboard import memory_tables

RUN = {"notebook": "07-external-memory", "size": "small", "run": "07-external-memory-small-seed0"}


def row(**given):
    empty = dict.fromkeys(results.COLUMNS)
    return empty | RUN | {"parameters": 5_000, "inference_flops": 2e6, "lookups": 0.0} | given


def exam(model, seed, cities, hard, recall=0.5, method="greedy"):
    split = f"episodes, edges, {cities} cities"
    rates = {"hard_success": hard, "optimal": hard / 2, "recall": recall, "hard_queries": 100}
    return row(model=model, seed=seed, method=method, split=split, **rates)


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
    rows.append(row(size="tiny", run="other", model="dnc", split="episodes, edges, 8 cities"))
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


def test_figures_show_every_arm_at_every_dial(ledger):
    rows = ledger[ledger["split"].str.startswith("episodes") & (ledger["run"] != "other")]
    kinds = {r"episodes, edges, \d+ cities": "cities"}
    fig = episode_plots.against_dial(rows.to_dict("records"), kinds)
    top, bottom = fig.axes
    lines = {line.get_label(): line for line in top.lines}
    assert list(lines) == ["dnc", "random walk"] and len(bottom.lines) == 1
    assert lines["dnc"].get_xdata().tolist() == [8, 12, 16]
    assert lines["dnc"].get_ydata() == pytest.approx([0.38, 0.42, 0.46])
    plt.close(fig)


def test_learning_is_drawn_against_seconds():
    history = pd.DataFrame({"arm": ["dnc"] * 2, "seed": 0, "seconds": [1.0, 4.0]})
    fig = episode_plots.learning(history.assign(recall=[0.1, 0.9], hard_success=[0.0, 0.3]))
    assert [ax.lines[0].get_ydata().tolist() for ax in fig.axes] == [[0.1, 0.9], [0.0, 0.3]]
    assert fig.axes[0].get_xscale() == "log"
    plt.close(fig)


def test_maps_are_drawn_with_their_shortest_path():
    random = np.random.default_rng(0)
    atlas = Atlas(random.uniform(35, 45, 300), random.uniform(-90, -75, 300))
    episodes = study.asked(Task(cities=7, closures=1), atlas, 2)
    fig = episode_plots.some_maps(episodes, 2)
    for number, ax in enumerate(fig.axes):
        maps = episodes.maps
        ends = [maps.symbols[number, city] for city in episodes.queries[number, 0]]
        named = [
            int(symbol) for symbol in (ax.get_title() or ax.get_title(loc="left")).split(" → ")
        ]
        assert named[0] == ends[0] and named[-1] == ends[1]
        assert {text.get_text() for text in ax.texts} == set(map(str, maps.symbols[number]))
    plt.close(fig)
