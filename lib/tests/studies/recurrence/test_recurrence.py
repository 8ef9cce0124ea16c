"""The race of notebook 04: equal training FLOPs, the dial, margins, halting, longer paths."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch

from citypaths import lab
from citypaths.data.batches import batch_of
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.methods import Scored
from citypaths.models import build
from citypaths.models.check import assert_consistent
from citypaths.sizes import SIZES, get_size
from citypaths.training.recipes import arms, recipe
from commands import train as training
from studies.recurrence import figures as loop_plots
from studies.recurrence import study as recurrence

TINY = {"train": 1500, "valid": 80, "test": 400, "queries": 40}
TINY |= {"budget": 4e8, "batch_tokens": 256, "seeds": 2, "race": 40, "dial": 20}


@pytest.fixture(scope="module", autouse=True)
def home(empty_home):
    return empty_home


@pytest.fixture(scope="module")
def size(home):
    return get_size("tiny", TINY)


@pytest.fixture(scope="module")
def dataset(size):
    return lab.size_dataset(size, lab.size_graph(size, make=True), make=True)


@pytest.fixture(scope="module")
def queries(dataset):
    return lab.Queries.of(dataset).uncontained().first(40)


@pytest.fixture(scope="module")
def short(queries):
    """The eight queries of fewest hops, which are decoded fastest."""
    return queries.take(np.argsort(queries.rows.hops, kind="stable")[:8])


@pytest.fixture(scope="module")
def trained(size, dataset):
    labels = ("transformer", "looped-sampled", "act", "ponder", "feedback")
    return {(label, s): lab.train_arm(size, dataset, label, s) for label in labels for s in (0, 1)}


@pytest.mark.parametrize("name", list(SIZES))
def test_every_arm_spends_the_budget_to_within_a_step(name, dataset):
    size = SIZES[name]
    if name not in ("tiny", "small", "medium"):  # building `full` takes long; the rule is the same
        return
    for label in arms(size, "race"):
        arm = recipe(size, label)
        settings = arm.training(dataset.graph, 0)
        per_token = build(arm.model, dataset.graph, **arm.settings).training_flops_per_step
        step = per_token * settings.batch_tokens
        assert settings.steps == 1 or arm.budget - step < settings.steps * step <= arm.budget
        assert settings.steps > 4, f"{label} hardly trains at {name}"


def test_arms_share_parameters_and_differ_where_they_should(dataset):
    race = {label: recipe("tiny", label) for label in arms("tiny", "race")}
    count = {
        label: build(arm.model, dataset.graph, **arm.settings).parameters_count
        for label, arm in race.items()
    }
    for label in ("looped-fixed", "looped-sampled", "looped-noise", "top", "act", "ponder"):
        assert abs(count[label] - count["transformer"]) < 0.02 * count["transformer"], label
    assert count["gru-think"] == count["gru"] < count["gru-wide"]
    assert count["transformer-deep"] > count["transformer"]
    most = max(arm.settings.get("loops", 1) for arm in race.values())
    assert most <= 16


def test_trained_arms_are_loaded_again_and_decode_as_they_train(trained, size, dataset, queries):
    for (label, seed), first in trained.items():
        again = lab.train_arm(size, dataset, label, seed)
        for a, b in zip(first.model.parameters(), again.model.parameters(), strict=True):
            assert torch.equal(a, b)
        assert_consistent(first.model, batch_of(queries.rows.take(np.arange(5))), loops=3)
        assert first.training_flops <= TINY["budget"] * 1.3  # padding: a batch is not quite full


def test_the_dial_gives_a_row_a_recurrent_arm_seed_and_count(trained, queries, short):
    dial = recurrence.turn_the_dial(short, trained, 16)
    rows = pd.DataFrame([s.row for s in dial])
    counts = rows[rows["seed"] == 1].groupby("model")["loops"].agg(list)
    assert counts["transformer"] == [1] and counts["feedback"] == [1, 2, 4, 8]
    assert all(counts[name] == [1, 2, 4, 8, 16] for name in ("looped-sampled", "act", "ponder"))
    assert set(rows.columns) <= set(COLUMNS) and len(rows) == 2 * sum(map(len, counts))
    cost = rows[rows["model"] == "looped-sampled"].groupby("loops")["inference_flops"].min()
    assert cost[16] > cost[1]
    own = recurrence.run(queries, "looped-sampled", trained["looped-sampled", 0], 0)
    same = recurrence.run(queries, "looped-sampled", trained["looped-sampled", 0], 0, loops=4)
    assert own.row["loss"] == same.row["loss"] and own.row["success"] == same.row["success"]


def test_breadth_costs_what_its_starts_cost(size, dataset, queries):
    noisy = lab.train_arm(size, dataset, "looped-noise", 0)
    one, four = (s.row for s in recurrence.breadth(queries.first(6), noisy, 0, (1, 4)))
    assert one["method"] == "greedy, 1 starts" and noisy.model.starts == 1
    again = recurrence.run(queries.first(6), "looped-noise", noisy, 0).row
    assert again["loss"] == one["loss"] != four["loss"]
    assert four["inference_flops"] > one["inference_flops"]


def as_scored(rows: list[dict]) -> list[Scored]:
    return [Scored(None, pd.DataFrame(), row) for row in rows]


def test_margins_are_paired_by_seed():
    plain = [{"model": "transformer", "seed": s, "loops": 1, "success": 0.5} for s in range(3)]
    loops = [(2, (0.4, 0.5, 0.6)), (8, (0.60, 0.62, 0.64))]
    turned = [
        {"model": "looped", "seed": s, "loops": b, "success": x}
        for b, each in loops
        for s, x in enumerate(each)
    ]
    own, dial = plain + turned[:3], plain + turned
    row = recurrence.margins(as_scored(own), as_scored(dial)).loc["looped"]
    assert row["own"] == pytest.approx(0) and row["best loops"] == 8
    assert row["at best"] == pytest.approx(0.12)
    half = 4.302653 * 0.1 / np.sqrt(3)  # Student's t with two degrees of freedom
    assert (row["low"], row["high"]) == pytest.approx((-half, half), abs=1e-6)
    single = recurrence.margins(as_scored([own[0], own[3]]), as_scored([plain[0], turned[0]]))
    assert single["low"].isna().all() and single["own"].tolist() == pytest.approx([-0.1])


@pytest.mark.parametrize("label", ["act", "ponder"])
def test_halting_has_a_row_a_hop(label, trained, queries):
    frame = recurrence.halting(queries, trained[label, 0])
    assert len(frame) == queries.rows.hops.sum()
    assert frame["loops"].between(1, 8).all()
    first = np.concatenate([np.arange(h, 0, -1) for h in queries.rows.hops])
    assert (frame["hops to go"].to_numpy() == first).all()


def test_sweeps_come_to_the_exact_loss(trained, queries):
    table = recurrence.sweep_losses(queries, trained["feedback", 0], (1, 2, queries.max_hops))
    assert table["loss"].iloc[-1] == pytest.approx(table["exact"].iloc[-1], abs=1e-5)


def test_long_queries_are_longer_than_anything_trained_on(size, dataset):
    half = recurrence.short_paths(size, dataset.graph)
    hops = lab.Queries.of(dataset).rows.hops
    assert half.recipe.max_train_hops == pytest.approx(np.median(hops), abs=1)
    assert half.rows("train").hops.max() <= half.recipe.max_train_hops
    long_ones = recurrence.longest(half, hops)
    assert len(long_ones) > 5 and long_ones.rows.hops.min() >= np.quantile(hops, 0.95)
    scored = recurrence.extrapolate(size, half, long_ones, ["gru", "looped-sampled"], [0])
    assert [s.row["loops"] for s in scored] == [1, 4, 16] * 2
    names = [s.row["model"] for s in scored]
    assert names[::3] == ["gru", "gru-raw"] and names[-1] == "looped-sampled-raw"


def test_figures_of_loops_show_every_arm(trained, short):
    dial = pd.DataFrame([s.row for s in recurrence.turn_the_dial(short, trained, 2)])
    fig = loop_plots.crossover(dial, recurrence.STEADY, 8)
    shown = {text.get_text() for text in fig.axes[2].get_legend().get_texts()}
    assert shown == set(dial["model"])
    for ax, column in zip(fig.axes, ("success", "hard_success", "loss"), strict=True):
        line = next(x for x in ax.lines if x.get_label() == "act")
        expected = dial[dial["model"] == "act"].groupby("loops")[column].mean()
        np.testing.assert_allclose(line.get_ydata(), expected)
    model = trained["looped-sampled", 0].model
    assert len(loop_plots.routes_by_loops(model, short, (1, 2, 4, 8), "k").axes) == 4


def test_command_line_trains_an_arm_where_the_notebook_looks(size, dataset, capsys):
    training.run(["--size", "tiny", "--arm", "top", "--seed", "1", "--overrides", json.dumps(TINY)])
    assert "top: " in capsys.readouterr().out
    folders = set((size.folder / "models").iterdir())
    lab.train_arm(size, dataset, "top", 1)
    assert set((size.folder / "models").iterdir()) == folders
