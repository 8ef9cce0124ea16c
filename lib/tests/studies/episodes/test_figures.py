"""Figures of memories on new maps, from made-up rows whose marks are known by hand."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from studies.episodes import figures as episode_plots
from studies.episodes import study
from studies.episodes.atlas import Atlas
from studies.episodes.task import Task


def exam(model, seed, cities, hard, method="greedy"):
    split = f"episodes, edges, {cities} cities"
    rates = {"hard_success": hard, "recall": 0.5, "hard_queries": 100}
    return {"model": model, "seed": seed, "method": method, "split": split, **rates}


def test_figures_show_every_arm_at_every_dial():
    rows = [exam("dnc", s, n, 0.2 + 0.1 * s + n / 100) for s in (0, 1, 2) for n in (8, 12, 16)]
    rows += [exam("none", 0, n, 0.25, "random walk") for n in (8, 12, 16)]
    fig = episode_plots.against_dial(rows, {r"episodes, edges, \d+ cities": "cities"})
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
