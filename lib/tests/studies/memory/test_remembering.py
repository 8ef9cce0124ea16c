"""The tables of a memory of the known map, on a real graph and a briefly trained model."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.data.shards import Rows
from citypaths.judging.floors import stored_hops
from citypaths.judging.ledger import COLUMNS, _check
from citypaths.judging.queries import Queries
from citypaths.lab import mean_loss
from citypaths.map.graph import build_graph
from citypaths.map.paths import Found, Paths
from citypaths.map.shortest_paths import paths as follow
from citypaths.map.shortest_paths import shortest_path_trees
from studies.memory import Cached, KeyValueCache, Roads, fit, remembering, rerouting
from studies.memory import figures as memory_plots
from studies.memory.editing import Edit, closed, closing


@pytest.fixture(scope="module")
def model(trained):
    return trained.model.eval()


@pytest.fixture(scope="module")
def paths(tiny_dataset) -> Paths:
    return tiny_dataset.rows("train").paths


@pytest.fixture(scope="module")
def valid(tiny_dataset):
    return Queries.of(tiny_dataset, "valid").uncontained().first(50)


@pytest.fixture(scope="module")
def test(tiny_dataset):
    return Queries.of(tiny_dataset).first(60)


@pytest.fixture(scope="module")
def fitted(model, paths, valid):
    cache = remembering.cache_of(model, paths, 4000)
    return fit(model, cache, valid.rows.paths)[0]


def test_paths_for_so_many_hops(paths):
    some = remembering.some_paths(paths, 500)
    hops = paths.lengths[some] - 1
    assert hops[:-1].sum() < 500 <= hops.sum() and len(np.unique(some)) == len(some)
    more = remembering.some_paths(paths, 900)
    assert (more[: len(some)] == some).all(), "a smaller store is part of a larger one"
    assert len(remembering.some_paths(paths, 10**9)) == len(paths)


def test_a_larger_store_helps_more(model, paths, valid, test):
    table = remembering.size_table(model, paths, (300, 6000), valid, test)
    assert table["nats alone"].nunique() == 1
    assert table["nats"].iloc[1] < table["nats"].iloc[0] <= table["nats alone"].iloc[0] + 0.01


def test_cheaper_retrieval(fitted, test):
    table = remembering.retrieval_table(fitted, test.first(20), (1, 64))
    exact = table[table.index == "exact"].set_index("k")
    assert (exact["recall"] > 0.99).all()
    assert exact.loc[64, "nats"] == pytest.approx(mean_loss(fitted, test.first(20)))
    assert table.loc["8-bit keys", "recall"] < table.loc["16-bit keys", "recall"]
    probes = table[table.index.str.contains("lists")]
    assert probes["recall"].is_monotonic_increasing and probes["flops"].is_monotonic_increasing
    cut = table[table.index.str.contains("directions")]
    assert cut["recall"].is_monotonic_decreasing


def test_reads_cause_the_answers(fitted, test, model):
    table = remembering.control_table(fitted, test)
    assert table.loc["reads blanked", "nats"] == pytest.approx(mean_loss(model, test), rel=1e-5)
    assert table.loc["reads blanked", "other paths"] == 0 < table.loc["reads", "other paths"]
    assert table.loc["reads", "nats"] < table.loc["reads blanked", "nats"]
    assert table.loc["reads swapped", "nats"] > table.loc["reads blanked", "nats"]
    assert table.loc["reads swapped", "success"] < table.loc["reads", "success"] - 0.05
    swapped = remembering.swapped_values(fitted.store)
    assert swapped.values.bincount().tolist() == fitted.store.values.bincount().tolist()
    assert (swapped.values != fitted.store.values).float().mean() > 0.9


def test_scores_with_and_without(trained, fitted, test):
    scored = remembering.score_cached(test, "gru", trained, fitted)
    assert [s.row["method"] for s in scored] == [
        "greedy",
        "beam 8",
        "greedy, cache",
        "beam 8, cache",
    ]
    assert all(set(s.row) <= set(COLUMNS) for s in scored)
    assert mean_loss(fitted, test) < mean_loss(trained.model, test)
    assert scored[2].row["success"] >= scored[0].row["success"]
    assert scored[2].row["inference_flops"] > scored[0].row["inference_flops"]


def test_what_arrived(model, test):
    attempts = test.decode(decoding.draw, model, n=6, checked_by=test.graph, seed=1)
    good = remembering.arrived(attempts, test)
    last = attempts.paths.tokens[attempts.paths.offsets[1:] - 1]
    assert (good == (last == test.rows.target[attempts.query])).all() and 0 < good.mean() < 1
    best = remembering.arrived(attempts, test, shortest=True)
    assert (best <= good).all()
    assert set(attempts.query[best]) == set(attempts.query[good])
    km = {i: [] for i in range(len(test))}
    for path, of, kept in zip(attempts.paths, attempts.query, best, strict=True):
        length = test.graph.mm[test.graph.edge_index(path[:-1], path[1:])].sum()
        km[of].append((length, kept, path[-1] == test.rows.target[of]))
    for tried in km.values():
        least = min((length for length, _, there in tried if there), default=None)
        assert all(kept == (there and length == least) for length, kept, there in tried)


def test_own_attempts_cost_what_they_take(trained, test, valid):
    scored = remembering.score_attempts(test, valid, "gru", trained, 4)
    stored, shortest, best = (s.row for s in scored)
    assert stored["lookups"] == shortest["lookups"] == best["lookups"] > 0
    assert stored["inference_flops"] > best["inference_flops"]
    assert min(best["success"], shortest["success"]) > 0.15
    assert all(set(s.row) <= set(COLUMNS) and s.row["regime"] == "checked" for s in scored)


def test_auc_by_hand():
    assert remembering.auc(np.array([2.0, 3.0]), np.array([1.0, 2.0])) == (1 + 0.5 + 1 + 1) / 4
    assert remembering.auc(np.array([0.0]), np.array([1.0, 2.0])) == 0.0


def test_novelty(model, paths, test):
    table = remembering.novelty_table(model, paths, 3000, test)
    assert table.loc["a stored path, itself", "AUC"] > 0.99
    assert table.loc["a training path, left out", "AUC"] < table.loc["a stored path, itself", "AUC"]
    assert table.loc["part of a stored path", "AUC"] > 0.5
    assert table["AUC"].between(0, 1).all() and (table[["familiar", "new"]] > 0).all().all()


def test_a_query_that_only_the_memory_takes_elsewhere(place):
    """Two ways round: the one in the weights is closed, and the memory takes the other."""
    graph = diamond(place)
    queries = Queries(graph, *asked(graph))
    edit = Edit.of(queries, closed(graph, [(1, 3)]))
    assert edit.hit.tolist() == [True]
    north, south = Paths.from_lists([[0, 1, 3]]), Paths.from_lists([[0, 2, 3]])
    before, after = found(north), found(south)
    assert memory_plots.rerouted_query(edit, before, before, after) == 0
    assert memory_plots.rerouted_query(edit, before, after, after) == 0  # the only one hit
    untouched = Edit.of(queries, closed(graph, [(0, 2)]))
    with pytest.raises(LookupError, match="no query whose shortest path was closed"):
        memory_plots.rerouted_query(untouched, before, before, before)
    fig, ax = plt.subplots()
    answers = {"weights": north[0], "memory": south[0]}
    memory_plots.reroute_map(edit, 0, answers, ax)
    assert [t.get_text() for t in ax.get_legend().get_texts()] == [
        "shortest before",
        "weights",
        "memory",
        "closed",
    ]
    plt.close(fig)


def diamond(place):
    return build_graph(place([(0, 0), (0.1, 0.1), (-0.1005, 0.1), (0, 0.2)]), 16)


def asked(graph):
    trees = shortest_path_trees(graph, [3])
    rows = Rows(np.array([0]), np.array([3]), trees.mm[[0], 0].astype(np.int64), np.array([2]),
                follow(trees, [[0, 3]]))  # fmt: skip
    return rows, np.array([False]), np.array([False]), np.ones(1)


def found(paths: Paths):
    return Found(paths, np.zeros(1), np.zeros(1), np.zeros(1), 0.0)


def test_the_figure_of_closures(test, trained, paths):
    methods = rerouting.weights_only(test, "gru", trained)[:1]
    methods += [rerouting.stitched(stored_hops(test.graph, [paths]))]
    frame = rerouting.reroute(closing(test, (0.05, 0.2), range(2)), methods)
    fig = memory_plots.after_closures(frame, [each.label for each in methods])
    titles = [ax.get_title(loc="left") or ax.get_title() for ax in fig.axes]
    assert titles == list(memory_plots.GROUPS)
    labels = [t.get_text() for t in fig.axes[1].get_legend().get_texts()]
    assert labels == ["greedy (gru)", "stitched hops"]
    plt.close(fig)
    rows = rerouting.records(frame[frame["hit"]], methods, "closures", "path hit")
    for row in rows:
        _check(row)
    assert [(row["method"], row["share"]) for row in rows] == [
        ("greedy", 0.05), ("stitched hops", 0.05), ("greedy", 0.2), ("stitched hops", 0.2),
    ]  # fmt: skip


def test_a_cache_on_roads(fitted, test, paths):
    """Memories compose: a mixture restricted to stored hops is the mixture on those hops."""
    hops = stored_hops(test.graph, [paths])
    batch = batch_of(test.rows.take(np.arange(5)))
    with torch.no_grad():
        both, mix = Roads(fitted, hops)(batch).exp(), fitted(batch).exp()
    ends = hops.neighbours(int(batch.cities[0, 0]))
    expected = mix[0, 0, ends] / mix[0, 0, ends].sum()
    torch.testing.assert_close(both[0, 0, ends], expected, atol=1e-5, rtol=1e-3)
    assert isinstance(fitted, Cached) and isinstance(fitted.store, KeyValueCache)
