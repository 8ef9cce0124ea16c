"""Learning against memorizing: values, intervals, operations, and the arms themselves."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from scipy.stats import t as student

from citypaths import decoding
from citypaths.data.batches import batch_of_paths
from citypaths.judging.floors import stored_hops
from citypaths.judging.ledger import _check, largest_run, load_results, record
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.map.best_first import best_first
from citypaths.sizes import get_size
from citypaths.training.recipes import arms
from studies.learning import figures as learning_plots
from studies.learning import study as learning
from studies.learning import values as worth
from studies.learning.study import ALONE, CACHE, CACHE_OF_ALL, STITCHED, STORED, halves
from studies.memory import Cached, Roads
from studies.scoreboard.tables import table

SIZE = {"budget": 3e7, "batch_tokens": 128, "shares": [0, 20]}


@pytest.fixture(scope="module")
def size():
    return get_size("tiny", SIZE)


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).uncontained().first(24)


@pytest.fixture(scope="module")
def tried(size, tiny_dataset, queries, tmp_path_factory):
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CITYPATHS_HOME", str(tmp_path_factory.mktemp("home")))
        valid = Queries.of(tiny_dataset, "valid").uncontained().first(20).rows.paths
        model = learning.learner(size, tiny_dataset, 0.2, 0)
        return *learning.trials(size, tiny_dataset, queries, valid, [0]), model


def a_row(method: str, share: float, seed: int, success: float, training=0.0, flops=0.0) -> dict:
    row = {"method": method, "share": share, "seed": seed, "success": success}
    row |= {"training_flops": training, "inference_flops": flops, "lookups": 0.0}
    return row | {m: success for m in worth.METRICS} | {"expansions": 0.0}


@pytest.fixture
def rows() -> pd.DataFrame:
    table = []
    for seed, luck in ((0, -0.02), (1, 0.0), (2, 0.02)):
        table += [
            a_row(ALONE, 0, seed, 0.0, 0, 10),
            a_row(CACHE, 0, seed, 0.25, 100, 60),
            a_row(STITCHED, 0, seed, 0.9, 0, 5),
            a_row(ALONE, 0.1, seed, 0.2, 1000, 10),
            a_row(CACHE, 0.1, seed, 0.4 + luck, 1090, 55),
            a_row(STITCHED, 0.1, seed, 1.0, 0, 5),
            a_row(ALONE, 0.5, seed, 0.5, 1000, 10),
            a_row(CACHE, 0.5, seed, 0.4, 1050, 30),
            a_row(STITCHED, 0.5, seed, 0.8, 0, 5),
            a_row(ALONE, 1, seed, 0.6, 1000, 10),
        ]
    return pd.DataFrame(table)


def test_values_by_hand(rows):
    table = worth.values(rows, ["success"]).set_index(["memory", "share"])
    cache = table.loc[(CACHE, 0.1)]
    assert (cache["x"], cache["y"]) == (pytest.approx(0.2), pytest.approx(0.6))
    assert cache["learned"] == pytest.approx(0.4) and cache["stored"] == pytest.approx(0.2)
    assert cache["value"] == pytest.approx(2.0) and cache["low"] < 2 < cache["high"]
    half = 4.302653 * 0.02 / 3**0.5  # t of two degrees of freedom; only z varies
    assert cache["low"] == pytest.approx(0.4 / (0.2 + half), rel=1e-5)
    assert cache["high"] == pytest.approx(0.4 / (0.2 - half), rel=1e-5)
    assert table.loc[(STITCHED, 0.1), "value"] == pytest.approx(0.5)
    assert table.loc[(CACHE, 0), "value"] == pytest.approx(2.4)


def test_no_value_where_the_memory_does_not_help(rows):
    table = worth.values(rows, ["success"]).set_index(["memory", "share"])
    assert np.isnan(table.loc[(CACHE, 0.5), "value"])
    assert worth.told(table.loc[(CACHE, 0.5)]) == worth.NO_HELP
    shown = worth.board(table.reset_index(), CACHE)
    assert shown.loc["success", "50 %"] == f"{worth.NO_HELP}; +10.0 / -10.0"
    alone = worth.values(rows[rows["seed"] == 0], ["success"])
    assert worth.board(alone, STITCHED).loc["success", "10 %"] == "0.50; +40.0 / +80.0"


@pytest.mark.parametrize("seed", range(6))
def test_interval_of_a_ratio_by_its_definition(seed):
    """It holds those r at which mean(top - r bottom) is not clearly other than 0."""
    random = np.random.default_rng(seed)
    n = 3 + seed
    top, bottom = random.normal(0.3, 0.1, n), random.normal(0.8, 0.1, n)
    low, high = worth.ratio_interval(top, bottom)
    limit = student.ppf(0.975, n - 1)

    def clear(r: float) -> float:
        gap = top - r * bottom
        return abs(gap.mean()) / (gap.std(ddof=1) / n**0.5)

    assert low < top.mean() / bottom.mean() < high
    for r in (low, high):
        assert clear(r) == pytest.approx(limit, rel=1e-6)
    assert clear((low + high) / 2) < limit < clear(high + 0.1)


def test_interval_without_bounds_or_seeds():
    low, high = worth.ratio_interval(np.array([0.1, 0.2, 0.3]), np.array([-0.1, 0.2, 0.05]))
    assert (low, high) == (-np.inf, np.inf)
    assert np.isnan(worth.ratio_interval(np.ones(1), np.ones(1))).all()


def test_break_even_by_hand(rows):
    even = worth.break_even(rows).set_index(["method", "share"])["queries"]
    assert even[CACHE, 0] == pytest.approx((1000 - 100) / (60 - 10))
    assert even[CACHE, 0.1] == 0 and np.isinf(even[STITCHED, 0.1])
    table = worth.totals(rows, [1, 18, 1000]).set_index(["method", "share", "asked"])["total"]
    assert table[CACHE, 0, 18] == pytest.approx(table[ALONE, 1, 18])
    assert table[CACHE, 0, 1] < table[ALONE, 1, 1]
    assert table[CACHE, 0, 1000] > table[ALONE, 1, 1000]


def test_the_sentence_says_the_numbers(rows, monkeypatch):
    text = worth.sentence(rows)
    assert text.startswith("With 10 % learned (3 seeds), learning the others too changes success")
    assert "by +40.0 points and caching them by +20.0 (value 2.00 (1.60 to " in text
    assert "+80.0 (value 0.50 (0.50 to 0.50), below 1" in text
    assert "rather than cache at every share tried, rather than stitch at none" in text
    assert "at 0 % after 18 queries, against stitching never." in text
    worse = rows.assign(success=rows["success"].where(rows["method"] != CACHE, 0.3))
    with monkeypatch.context() as patch:
        patch.setattr(worth, "NEAR", 0.5)
        some = worth.sentence(worse[worse["seed"] == 1])
    assert some.startswith("With 50 % learned (one seed)") and worth.NO_HELP in some
    assert "rather than cache at every share" in some
    ahead = rows["success"].where((rows["method"] != CACHE) | (rows["share"] > 0), 0.7)
    assert "rather than cache at 10, 50 %," in worth.sentence(rows.assign(success=ahead))


def test_rows_are_of_the_ledger(tried, size, tiny_dataset):
    scored, fits, _ = tried
    rows = pd.DataFrame([s.row for s in scored])
    for row in rows.to_dict("records"):
        _check(row)
    methods = rows.groupby("share")["method"].agg(set).to_dict()
    assert methods[1] == {ALONE} and methods[0] == {ALONE, CACHE, STORED, STITCHED}
    assert methods[0.2] == methods[0] | {CACHE_OF_ALL}
    spent = rows[rows["method"] == ALONE].set_index("share")["training_flops"]
    assert spent[0] == 0 and spent[0.2] == pytest.approx(spent[1], rel=0.05)
    rest = halves(tiny_dataset, 0.2, 0)[1]
    held = fits.set_index(["share", "method"])["rows"]
    assert held[0.2, CACHE] == (rest.lengths - 1).sum()
    assert held[0.2, CACHE_OF_ALL] == held[0, CACHE]
    assert (fits["nats"] <= fits["nats alone"] + 1e-6).all()
    filled = rows.set_index(["method", "share"])["training_flops"]
    one = learning.learner(size, tiny_dataset, 0, 0).model.flops_per_step()
    assert filled[CACHE, 0.2] - filled[ALONE, 0.2] == held[0.2, CACHE] * one


def test_the_untrained_learner_is_a_function_of_the_seed(size, tiny_dataset):
    first, again, other = (learning.learner(size, tiny_dataset, 0, seed) for seed in (0, 0, 1))
    weights = [trained.model.rnn.weight_hh_l0 for trained in (first, again, other)]
    assert torch.equal(weights[0], weights[1]) and not torch.equal(weights[0], weights[2])


def test_next_hops_by_hand(tried, queries, tiny_dataset):
    model = tried[2].model.eval()
    stored = stored_hops(queries.graph, [halves(tiny_dataset, 0.5, 0)[1]])
    right = among = count = 0
    with torch.no_grad():
        for path in queries.rows.paths:
            one = queries.rows.paths.from_lists([path])
            logits = model(batch_of_paths(one))[0]
            for city, label, scores in zip(path[:-1], path[1:], logits, strict=True):
                near = stored.indices[stored.indptr[city] : stored.indptr[city + 1]]
                right += int(scores.argmax()) == label
                among += len(near) > 0 and near[int(scores[near.tolist()].argmax())] == label
                count += 1
    assert learning.next_hops(model, queries) == pytest.approx(right / count)
    assert learning.next_hops(Roads(model, stored), queries) == pytest.approx(among / count)
    assert among != right


def test_stitched_next_hops_by_hand(queries, tiny_dataset):
    stored = stored_hops(queries.graph, [halves(tiny_dataset, 0.97, 0)[1]])
    hits = []
    for path in queries.rows.paths:
        for at in range(len(path) - 1):
            way = best_first(stored, [path[at]], [path[-1]]).paths[0]
            hits.append(len(way) > 1 and way[1] == path[at + 1])
    assert learning.stitched_next_hops(stored, queries) == pytest.approx(np.mean(hits))
    assert 0.05 < np.mean(hits) < 0.95
    assert learning.stitched_next_hops(queries.graph, queries) > 0.9


def named(scored, method: str, share: float):
    (one,) = (s for s in scored if s.row["method"] == method and s.row["share"] == share)
    return one


def test_stored_hops_are_all_that_is_taken(tried, queries, tiny_dataset):
    stored = stored_hops(queries.graph, [halves(tiny_dataset, 0.2, 0)[1]])
    for method in (STORED, STITCHED):
        one = named(tried[0], method, 0.2)
        for path in one.found.paths:
            assert stored.is_edge(path[:-1], path[1:]).all()
        assert one.row["lookups"] > 0 and one.row["legal"] == 1
        assert one.row["memory_numbers"] == 2 * len(stored.indices)
    assert one.row["model"] == "none" and one.row["training_flops"] == 0


def test_a_cache_decodes_greedily(tried, queries, tiny_dataset):
    model = tried[2].model.eval()
    cache = learning.caches(model, *halves(tiny_dataset, 0.2, 0))[CACHE]
    fitted = tried[1].set_index(["share", "method"]).loc[(0.2, CACHE)]
    cached = Cached(model, cache, theta=fitted["theta"], weight=fitted["weight"])
    found, greedy = named(tried[0], CACHE, 0.2).found, queries.decode(decoding.greedy, cached)
    assert found.paths.tokens.tolist() == greedy.paths.tokens.tolist()
    assert found.flops == pytest.approx(greedy.flops)


def test_the_learner_of_everything_is_the_ladder_s(size, tiny_dataset, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    assert learning.name_of(size) == "gru-8"
    train_arm(size, tiny_dataset, arms(size, "ladder")[0], 0)
    folders = sorted((size.folder / "models").iterdir())
    learning.learner(size, tiny_dataset, 1, 0)
    assert sorted((size.folder / "models").iterdir()) == folders
    learning.learner(size, tiny_dataset, 0.2, 0)
    assert len(list((size.folder / "models").iterdir())) == 2


def test_figures_and_the_readme_s_table(tried, rows, tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path))
    assert table("learning-tiny", load_results()).startswith("No such run")
    mine = [s.row for s in tried[0]]
    record("08-learning", get_size("tiny"), 0, mine, split="uncontained")
    record("08-learning", get_size("tiny"), 1, mine[:3])
    recorded = largest_run(load_results())
    assert recorded["seed"].nunique() == 1
    text = table("learning-tiny", load_results())
    assert text.count("\n") == 7 and "| success | 20 % |" in " ".join(text.split())
    for frame in (rows, recorded):
        found = worth.values(frame)
        figures = [learning_plots.accuracies(frame), learning_plots.relative_values(found)]
        figures.append(learning_plots.against_operations(frame))
        for figure in figures:
            figure.canvas.draw()
            plt.close(figure)
