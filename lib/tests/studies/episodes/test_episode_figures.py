"""Figures of episodes, from made-up rows and curves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from studies.episodes import figures, study
from studies.episodes.maps import Atlas
from studies.episodes.task import Task


@pytest.fixture(autouse=True)
def close():
    yield
    plt.close("all")


def exam(model, seed, hard, method="greedy", cities=12, shown=None, subset=""):
    row = {"model": model, "method": method, "seed": seed, "hard_success": hard, "recall": 0.5}
    return row | {"hard_queries": 100, "cities": cities, "shown": shown, "subset": subset}


def test_every_arm_is_shown_at_every_dial():
    rows = [exam("dnc", s, 0.2 + 0.1 * s + n / 100, cities=n) for s in (0, 1, 2) for n in (8, 16)]
    rows += [exam("none", 0, 0.25, "random walk", cities=n) for n in (8, 16)]
    rows += [exam("dnc", 0, 0.5, shown=n) for n in (4, 24, 48)]
    rows += [exam("dnc", 0, 0.9, subset="Japan", cities=99)]
    (top, paths), (bottom, _) = np.array(figures.against_dials(rows).axes).reshape(2, 2)
    lines = {line.get_label(): line for line in top.lines}
    assert list(lines) == ["dnc", "random walk"] and len(bottom.lines) == 1
    assert lines["dnc"].get_xdata() == pytest.approx([8, 16])
    assert lines["dnc"].get_ydata() == pytest.approx([0.38, 0.46])
    assert paths.lines[0].get_xdata() == pytest.approx([4, 24, 48])


def test_learning_is_drawn_against_seconds():
    history = pd.DataFrame({"arm": ["dnc"] * 2, "seed": 0, "seconds": [1.0, 4.0]})
    fig = figures.learning(history.assign(recall=[0.1, 0.9], hard_success=[0.0, 0.3]))
    assert [ax.lines[0].get_ydata().tolist() for ax in fig.axes] == [[0.1, 0.9], [0.0, 0.3]]
    assert fig.axes[0].get_xscale() == "log"


def test_maps_are_drawn_with_their_shortest_path():
    random = np.random.default_rng(0)
    atlas = Atlas(random.uniform(35, 45, 300), random.uniform(-90, -75, 300))
    episodes = study.asked(Task(cities=7, closures=1), atlas, 2)
    fig = figures.some_maps(episodes, 2)
    for number, ax in enumerate(fig.axes):
        maps = episodes.maps
        ends = [maps.symbols[number, city] for city in episodes.queries[number, 0]]
        title = ax.get_title() or ax.get_title(loc="left")
        named = [int(symbol) for symbol in title.split(" → ")]
        assert named[0] == ends[0] and named[-1] == ends[1]
        assert {text.get_text() for text in ax.texts} == set(map(str, maps.symbols[number]))
