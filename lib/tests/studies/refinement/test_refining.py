"""Notebook 06's functions on a real graph; repairing and the likelihood against plain loops."""

from __future__ import annotations

from itertools import pairwise
from types import SimpleNamespace

import matplotlib.pyplot as plt
import networkx as nx
import numpy as np
import pytest
import torch
from toys import START, STEP, Perfect, next_cities

from citypaths.decoding import LOST, Likelihood, greedy
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.methods import Method
from citypaths.judging.metrics import judge
from citypaths.judging.queries import Queries
from citypaths.map.paths import Found, Paths
from citypaths.models import build
from citypaths.sizes import get_size
from studies.refinement import figures as refine_plots
from studies.refinement import repair, resample_segments
from studies.refinement import study as refining


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).uncontained().first(24)


@pytest.fixture(scope="module")
def onward(tennessee):
    return next_cities(tennessee)


@pytest.fixture(scope="module")
def gru(tennessee):
    torch.manual_seed(1)
    return build("rnn", tennessee, width=8, tied=True)


def as_trained(model):
    return SimpleNamespace(model=model, training_flops=7)


def found_of(paths: list[list[int]], flops: float = 0.0) -> Found:
    spent, none = np.full(len(paths), flops), np.zeros(len(paths))
    return Found(Paths.from_lists(paths), spent, none, none.copy(), 0.0)


# The likelihood


def test_likelihood_is_the_sum_of_steps(gru, queries):
    rows, scorer = queries.rows, Likelihood(gru.train())
    energies = scorer.score(rows.source, rows.target, rows.paths)
    assert gru.training, "it is left as it was"
    gru.eval()
    each = scorer.hop_energies(rows.source, rows.target, rows.paths)
    for i, path in enumerate(rows.paths):
        state = gru.start(torch.tensor([int(path[0])]), torch.tensor([int(path[-1])]))
        steps = []
        for city, after in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            logits, state = gru.step(torch.tensor([city]), state)
            steps.append(-float(logits.detach().log_softmax(-1)[0, after]))
        assert energies[i] == pytest.approx(sum(steps), rel=1e-4)
        np.testing.assert_allclose(each[i, : len(steps)], steps, rtol=1e-3)
        assert not each[i, len(steps) :].any()
    flops = scorer.flops(rows.paths)
    assert np.array_equal(flops, rows.hops * gru.flops_per_step() + gru.flops_to_start)
    assert not scorer.lookups(rows.paths).any()


def test_likelihood_of_what_is_no_path(gru):
    paths = Paths.from_lists([[3, 4], [3, 4], [4, 5], [3]])
    energies = Likelihood(gru).score(np.full(4, 3), np.array([4, 5, 5, 3]), paths)
    assert 0 < energies[0] < LOST and energies[1] == energies[2] == LOST and energies[3] == 0
    assert Likelihood(gru).score(np.zeros(0), np.zeros(0), Paths.from_lists([])).shape == (0,)
    with pytest.raises(ValueError, match="2 queries but 4 paths"):
        Likelihood(gru).score(np.zeros(2), np.zeros(2), paths)


def test_segments_only_become_more_likely(gru, queries):
    rows, scorer = queries.rows, Likelihood(gru)
    founds = resample_segments(gru, rows.source, rows.target, 20, energy=scorer, rounds=4)
    energies = [scorer.score(rows.source, rows.target, f.paths) for f in founds]
    assert (np.diff(energies, axis=0) <= 1e-9).all()
    assert (np.diff([f.flops for f in founds], axis=0) >= 0).all()


# Repairing


def test_a_perfect_filler_repairs_what_is_missing(tennessee, onward, queries):
    rows = queries.rows
    thinned = [path[[0, *range(2, len(path) - 1, 2), -1]].tolist() for path in rows.paths]
    args = rows.source, rows.target, 60, tennessee
    mended = repair(Perfect(onward), found_of(thinned, 5.0), *args)
    judged = judge(tennessee, rows.source, rows.target, rows.km, mended.paths)
    assert judged["optimal"].all()
    digraph = nx.DiGraph(
        zip(tennessee.edge_sources.tolist(), tennessee.indices.tolist(), strict=True)
    )
    for i, path in enumerate(thinned):
        hops = list(pairwise(path))
        gaps = [hop for hop in hops if not digraph.has_edge(*hop)]
        filled = (
            greedy(Perfect(onward), *zip(*gaps, strict=True), 60, checked_by=tennessee)
            if gaps
            else None
        )
        looked = 0 if filled is None else filled.lookups.sum()
        steps = 0 if filled is None else (filled.paths.lengths - 1).sum()
        assert mended.lookups[i] == len(hops) + looked
        assert mended.flops[i] == 5 + len(gaps) * START + steps * STEP
    whole = repair(Perfect(onward), found_of([p.tolist() for p in rows.paths]), *args)
    assert [p.tolist() for p in whole.paths] == [p.tolist() for p in rows.paths]
    assert not whole.flops.any() and np.array_equal(whole.lookups, rows.hops)


def test_repairing_what_has_no_hop(chain):
    onward = np.full((5, 5), -1)
    mended = repair(Perfect(onward), found_of([[2], [0, 1]]), [2, 0], [2, 1], 4, chain)
    assert [p.tolist() for p in mended.paths] == [[2], [0, 1]]
    assert mended.lookups.tolist() == [0, 1] and not mended.flops.any()
    assert len(repair(Perfect(onward), found_of([]), [], [], 4, chain).paths) == 0


# The tables and figures


@pytest.fixture(scope="module")
def scored(queries, gru, tennessee):
    torch.manual_seed(2)
    masked = as_trained(build("masked", tennessee, slots=48, width=8, layers=1))
    conductor, trained = as_trained(build("conductor", tennessee, width=8)), as_trained(gru)
    rows = refining.masked_rounds(queries, masked, "gru", trained, 2)
    rows += refining.conductor_rounds(queries, conductor, "gru", trained, 2)
    return rows + refining.segment_rounds(queries, "gru", trained, 2, 0)


@pytest.fixture(scope="module")
def searched(queries, gru):
    return refining.references(queries, "gru", as_trained(gru), 0, [2])


def test_every_method_has_every_round(scored, searched):
    assert all(set(s.row) <= set(COLUMNS) for s in scored + searched)
    table = refining.by_round(scored, "inference_flops")
    assert table.shape == (6, 3) and list(table) == [0, 1, 2] and not table.isna().any().any()
    assert (np.diff(table.drop("masked, repaired"), axis=1) >= 0).all(), "costs are cumulative"
    assert table.loc["conductor, filled", 0] > table.loc["conductor", 0] == 0
    for s in scored + searched:
        asked = s.row["lookups"] > 0
        assert s.row["regime"] == ("checked" if asked else "closed_book"), s.row["method"]
    by_name = {s.row["method"]: s.row for s in scored}
    assert by_name["masked, repaired"]["training_flops"] == 14
    assert by_name["masked"]["training_flops"] == 7


def test_references(scored, searched):
    names = [(s.row["method"], s.row["regime"]) for s in searched]
    closed, checked = (
        [(name, regime) for name in ("greedy", "beam 8", "best of 2")]
        for regime in ("closed_book", "checked")
    )
    assert names == closed + checked
    equal = refining.at_equal_flops(scored, searched)
    flops = refining.by_round(scored, "inference_flops")[2]
    for method, row in equal.iterrows():
        kin = [s.row for s in searched if s.row["regime"] == row["regime"]]
        paid = [r for r in kin if r["inference_flops"] <= flops[method]]
        best = max((r["success"] for r in paid), default=None)
        assert row["FLOPs"] == flops[method]
        if best is None:
            assert row["its FLOPs"] == min(r["inference_flops"] for r in kin)
        else:
            assert row["its success"] == best and row["its FLOPs"] <= row["FLOPs"]


def test_the_query_shown_is_won_over_the_rounds(queries):
    rows = queries.rows
    ways = [path.tolist() for path in rows.paths]
    ends = [[way[0], way[-1]] for way in ways]
    long = np.flatnonzero(rows.hops > 3)
    win, idle = int(long[0]), int(long[1])
    rounds = [[list(way) for way in ways] for _ in range(3)]
    rounds[0][win] = rounds[0][idle] = ends[win]
    for i in range(3):
        rounds[i][idle] = [ends[idle], ways[idle][:2], ends[idle]][i]
    method = Method(name="m", family="refinement", regime="closed_book")
    scored = refining.score_rounds(queries, [found_of(paths) for paths in rounds], method)
    assert refining.converging(scored) == win, "one that changed more often but lost is not shown"
    fig = refine_plots.over_rounds(queries, scored, win)
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes]
    assert titles == [
        "first guess: hops that do not exist: 1",
        "round 1: 1.000 of the shortest length",
    ]
    plt.close(fig)


def test_figures(scored, searched):
    fig = refine_plots.by_rounds(scored)
    assert [len(ax.lines) for ax in fig.axes] == [6, 6]
    line = next(line for line in fig.axes[0].lines if line.get_label().startswith("conductor ("))
    assert np.array_equal(line.get_ydata(), refining.by_round(scored, "success").loc["conductor"])
    plt.close(fig)
    fig = refine_plots.against_flops(scored, searched)
    labels = [ax.get_legend_handles_labels()[1] for ax in fig.axes]
    assert all(names[-3:] == ["gru, greedy", "gru, beam", "gru, best of N"] for names in labels)
    assert labels[1][:-3] == ["masked, repaired", "segments, exact length"]
    shown = [text.get_text() for text in fig.legends[0].get_texts()]
    assert sorted(shown) == sorted({*labels[0], *labels[1]})
    plt.close(fig)


def test_the_largest_gru():
    assert refining.largest_gru(get_size("small")) == "gru-256"
    assert refining.largest_gru(get_size("tiny")) == "gru-32"
