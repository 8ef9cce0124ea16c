"""The baselines: floors and decoders on the same queries, kinds of queries, why 2021 failed."""

from __future__ import annotations

from dataclasses import asdict

import numpy as np
import pytest

from citypaths import decoding, lab
from citypaths.judging import methods as scoring
from citypaths.judging.floors import hop_use, rarest_hop
from citypaths.judging.ledger import COLUMNS, record
from citypaths.models import build
from citypaths.sizes import get_size
from studies.baselines.priors import ablate, across_seeds
from studies.baselines.study import (
    WALKS,
    decoders,
    faults,
    floor_methods,
    well_travelled,
)
from studies.baselines.waterfall import climb, rungs


@pytest.fixture(scope="module", autouse=True)
def home(empty_home):
    return empty_home


@pytest.fixture(scope="module")
def memory(dataset):
    return [dataset.rows("train").paths]


def test_floors_are_scored_under_their_names(queries, memory):
    scored = {
        s.name: s for s in scoring.score_methods(floor_methods(queries.graph, memory), queries)
    }
    assert scored["Dijkstra"].row["success"] == scored["A*"].row["optimal"] == 1.0
    assert scored["geo-greedy"].row["hard_success"] == 0.0
    assert scored["geo-greedy"].row["hard_queries"] == queries.hard.sum() > 0
    assert all(
        set(s.row) <= set(COLUMNS) and s.row["regime"] == "open_map" for s in scored.values()
    )
    walks = {name for name, one in scored.items() if one.row["family"] == "floor"}
    assert walks == set(WALKS) and scored["stitched hops"].row["family"] == "graph search"


def test_decoders_are_scored_in_their_regimes(size, dataset, queries):
    few, changes = queries.first(40), {"batch_tokens": 512, "budget": 1e8, "evaluations": 1}
    trained = lab.train_arm(size, dataset, "gru-16", 0, **changes)
    methods = decoders(few.graph, "gru-16", trained, 0)
    scored = {s.name: s for s in scoring.score_methods(methods, few)}
    assert [name for name in scored if "checked" in name] == [
        "gru-16, greedy, checked",
        "gru-16, beam 8, checked",
    ]
    for name, one in scored.items():
        assert (one.row["regime"] == "checked") == ("checked" in name)
        assert (one.row["lookups"] > 0) == ("checked" in name)
        assert one.row["legal"] == 1.0 or "checked" not in name
        assert one.row["inference_flops"] > 0 and one.row["training_flops"] > 0
        assert set(one.row) <= set(COLUMNS) and one.row["family"] == one.row["method"].split()[0]
        assert one.row["attempts"] == (8 if one.row["family"] == "beam" else 1)
    table = scoring.board(scored.values(), "success lookups")
    assert list(table.index) == list(scored) and list(table.columns) == ["success", "lookups"]


def test_rarest_hop_against_counting_by_hand(queries, memory):
    graph, counts = queries.graph, {}
    for path in memory[0]:
        for hop in zip(path[:-1].tolist(), path[1:].tolist(), strict=True):
            counts[hop] = counts.get(hop, 0) + 1
    use = hop_use(graph, memory)
    assert use.sum() == sum(counts.values())
    rarest = rarest_hop(graph, use, queries.rows.paths)
    for least, path in zip(rarest, queries.rows.paths, strict=True):
        hops = zip(path[:-1].tolist(), path[1:].tolist(), strict=True)
        assert least == min(counts.get(hop, 0) for hop in hops)
    groups = well_travelled(queries, memory)
    assert (np.asarray(groups == "0") == (rarest == 0)).all()


def test_faults_count_every_failure_once(queries):
    model = build("rnn", queries.graph, width=8)
    judged = queries.judge(queries.decode(decoding.greedy, model))
    table = faults(judged)
    assert table["queries"].sum() == (~judged["success"]).sum() > 0
    assert table["share"].sum() == pytest.approx(1.0)


# The waterfall


def test_each_rung_changes_one_thing():
    ladder = rungs()
    assert len({rung.mended for rung in ladder}) == len(ladder) == 10
    for before, after in zip(ladder, ladder[1:], strict=False):  # noqa: RUF007
        old, new = asdict(before), asdict(after)
        changed = [name for name in old if old[name] != new[name] and name != "mended"]
        assert len(changed) == 1, (after.mended, changed)
    assert ladder[0].metric == "exact" and not ladder[0].checked
    assert len({rung.training for rung in ladder}) == 6


def test_climbing_it(home):
    size = get_size(
        "tiny_two_way", {"train": 800, "test": 200, "valid": 40, "queries": 30, "budget": 1e8}
    )
    two_way = lab.size_graph(size, make=True)
    table = climb(size, two_way, "gru-32", 0)
    assert table["rung"].tolist() == [rung.mended for rung in rungs()]
    for rung, entry in zip(rungs(), table.to_dict("records"), strict=True):
        row = entry["row"]
        assert entry["value"] == row[rung.metric] and set(row) <= set(COLUMNS)
        assert row["queries"] <= 30 and row["training_flops"] > 0 and row["inference_flops"] > 0
        assert (row["regime"] == "checked") == rung.checked == (row["lookups"] > 0)
        assert row["split"] == ("uncontained" if rung.split == "pair" else "ordered")
        assert row["legal"] == 1 or not rung.checked
        assert row["method"] == rung.mended and row["family"] == rung.decoder
        assert row["study"] == "waterfall" and row["orientation"] == "two_way"
    assert len({row["graph"] for row in table["row"]}) == 3
    assert len(list((size.folder / "models").iterdir())) == 6
    record("waterfall", size, 0, table["row"].tolist())


def test_each_prior_is_scored_at_every_seed(dataset, queries):
    little = get_size(
        "tiny", {"train": 1500, "valid": 80, "test": 400, "budget": 2e6, "batch_tokens": 128}
    )
    scored = ablate(little, dataset, queries.first(10), seeds=(0, 1))
    table = across_seeds(scored)
    assert next(iter(table.index)) == "prior: plain" and len(table) == len(scored) / 2 == 12
    assert (table["count"] == 2).all() and table.loc["prior: plain", "gain"] == 0
    assert {(s.row["study"], s.row["seed"]) for s in scored} == {("priors", 0), ("priors", 1)}
