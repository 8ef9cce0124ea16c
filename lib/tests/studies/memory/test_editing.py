"""Maps with roads closed and bridges built, and how each kind of memory takes it."""

from __future__ import annotations

import networkx as nx
import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths import decoding
from citypaths.judging.floors import stored_hops
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.methods import score
from citypaths.judging.metrics import SLACK
from citypaths.judging.queries import Queries
from citypaths.map.best_first import best_first
from citypaths.map.great_circle import great_circle_km
from studies.memory import KeyValueCache, fit, rerouting
from studies.memory.editing import (
    Edit,
    best_bridges,
    bridged,
    bridging,
    closed,
    closing,
    closures,
)


def hops_of(graph) -> set[tuple[int, int]]:
    return set(zip(graph.edge_sources.tolist(), graph.indices.tolist(), strict=True))


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).first(80)


def test_closed_by_hand(chain):
    shut = closed(chain, [(1, 2)])
    assert hops_of(shut) == {(0, 1), (2, 3), (3, 4)} and len(hops_of(chain)) == 4
    assert shut.fingerprint != chain.fingerprint
    np.testing.assert_array_equal(shut.km, np.delete(chain.km, 1))
    assert closed(chain, []).fingerprint == chain.fingerprint
    for wrong in ([(0, 2)], [(2, 1)], [(0, 99)]):
        with pytest.raises(ValueError, match="no hop"):
            closed(chain, wrong)


def test_bridged_by_hand(chain):
    built = bridged(chain, [(4, 2), (0, 2)])
    assert hops_of(built) == hops_of(chain) | {(2, 4), (0, 2)}
    km = built.km[built.edge_index(2, 4)]
    assert km == great_circle_km(chain.lat[2], chain.lon[2], chain.lat[4], chain.lon[4])
    assert closed(built, [(2, 4), (0, 2)]).fingerprint == chain.fingerprint
    for wrong, why in (([(1, 0)], "no hop"), ([(3, 3)], "no hop"), ([(0, 3), (3, 0)], "once")):
        with pytest.raises(ValueError, match=why):
            bridged(chain, wrong)
    with pytest.raises(ValueError, match="0 to 4"):
        bridged(chain, [(0, 5)])


def test_two_way_roads_close_and_open_both_ways(tennessee_two_way):
    a, b = int(tennessee_two_way.edge_sources[40]), int(tennessee_two_way.indices[40])
    shut = closed(tennessee_two_way, [(a, b)])
    assert hops_of(tennessee_two_way) - hops_of(shut) == {(a, b), (b, a)}
    assert hops_of(bridged(shut, [(b, a)])) == hops_of(tennessee_two_way)
    some = closures(tennessee_two_way, 0.1, 0)
    assert hops_of(some) == {(y, x) for x, y in hops_of(some)}


@settings(deadline=None, max_examples=15)
@given(st.floats(0.001, 0.5), st.integers(0, 99))
def test_closures_nest(tennessee, share, seed):
    """What a share closes, twice the share closes too; counts are exact."""
    less, more = (closures(tennessee, s, seed) for s in (share, min(1.0, 2 * share)))
    assert hops_of(more) <= hops_of(less) < hops_of(tennessee)
    gone = len(tennessee.indices) - len(less.indices)
    assert gone == max(1, round(share * len(tennessee.indices)))


def test_seeds_close_other_roads(tennessee):
    assert closures(tennessee, 0.1, 0).fingerprint != closures(tennessee, 0.1, 1).fingerprint
    with pytest.raises(ValueError, match="share above 0"):
        closures(tennessee, 0.0, 0)


@pytest.mark.parametrize("change", ["close", "build"])
def test_queries_asked_anew_are_exact(tennessee, queries, change):
    """Lengths, what can be reached, and which queries are hit, by networkx."""
    rows = queries.rows
    if change == "close":
        after = closures(tennessee, 0.15, 3)
    else:
        after = bridged(tennessee, best_bridges(tennessee, rows.source, rows.target, 6, 60, 0))
    edit, oracle = Edit.of(queries, after), after.to_networkx()
    ends = list(zip(rows.source.tolist(), rows.target.tolist(), strict=True))
    assert edit.kept.tolist() == [i for i, e in enumerate(ends) if nx.has_path(oracle, *e)]
    for row, i in enumerate(edit.kept):
        best = nx.dijkstra_path_length(oracle, *ends[i])
        assert edit.queries.rows.km[row] == pytest.approx(best, abs=1e-4)
        old, new = (set(zip(p[:-1].tolist(), p[1:].tolist(), strict=True))
                    for p in (rows.paths[i], edit.queries.rows.paths[row]))  # fmt: skip
        touched = not old <= hops_of(after) or not new <= hops_of(tennessee)
        assert edit.hit[row] == touched
        late = rows.km[i] > (1 + SLACK) * best
        assert edit.needed[row] == (touched and (late or change == "close"))
    assert edit.hit.any() and not edit.hit.all()
    count = {"close": round(0.15 * len(tennessee.indices)), "build": 0}[change]
    assert len(edit.gone) == count and len(edit.new) == (0 if count else 6)
    found = best_first(after, edit.queries.rows.source, edit.queries.rows.target)
    assert edit.queries.judge(found)["optimal"].all()
    part = edit.take(edit.hit)
    assert part.hit.all() and (part.queries.rows.source == rows.source[part.kept]).all()


def test_the_best_bridge_saves_most(tennessee, queries, monkeypatch):
    """The first bridge by brute force: ask every query again with each candidate built."""
    monkeypatch.setattr("studies.memory.editing.TRIED", 12)
    rows = queries.rows.take(np.arange(0, 80, 4))
    pair = best_bridges(tennessee, rows.source, rows.target, 1, 45, 2)
    asked = Queries(
        tennessee, rows, *(x[::4] for x in (queries.contained, queries.hard, queries.straight_km))
    )
    saved = int(Edit.of(asked, bridged(tennessee, pair)).needed.sum())
    for seed in range(3):
        other = best_bridges(tennessee, rows.source, rows.target, 3, 45, 2)[seed : seed + 1]
        assert Edit.of(asked, bridged(tennessee, other)).needed.sum() <= saved
    monkeypatch.undo()
    many = best_bridges(tennessee, rows.source, rows.target, 9, 60, 0)
    assert len(np.unique(many)) == 18, "no two bridges share a city"
    assert (tennessee.distance_km(*many.T) <= 60).all()
    assert not tennessee.is_edge(*many.T).any()


@pytest.fixture(scope="module")
def hops(tiny_dataset, tennessee):
    return stored_hops(tennessee, [tiny_dataset.rows("train").paths])


@pytest.fixture(scope="module")
def edit(queries, tennessee):
    return Edit.of(queries, closures(tennessee, 0.08, 1))


def answered(edit, methods):
    return [score(edit.queries, each.answer(edit), each.method) for each in methods]


def test_methods_that_answer_after_an_edit(queries, trained, hops, edit, tiny_dataset):
    methods = [
        *rerouting.weights_only(queries, "gru-32", trained),
        *rerouting.checked("gru-32", trained, 8),
        *rerouting.on_roads("gru-32", trained, hops),
        rerouting.stitched(hops),
    ]
    scored = {s.name: s for s in answered(edit, methods)}
    assert all(set(s.row) <= set(COLUMNS) for s in scored.values())
    legal = {name: s.judged["legal"] for name, s in scored.items()}
    hit = {name: s.judged["success"][edit.hit].mean() for name, s in scored.items()}
    assert hit["gru-32, roads, beam 8"] > hit["gru-32, beam 8"] + 0.2
    assert hit["stitched hops"] > 0.75
    for name in ("gru-32, greedy, checked", "stitched hops"):
        assert legal[name].all()
    roads = scored["gru-32, roads, beam 8"]
    assert legal["gru-32, roads, beam 8"][roads.judged["arrives"]].all()
    assert roads.row["lookups"] == 0 < scored["gru-32, best of 8, checked"].row["lookups"]
    same = queries.decode(decoding.greedy, trained.model)
    kept = [same.paths[i].tolist() for i in edit.kept]
    assert [p.tolist() for p in scored["gru-32"].found.paths] == kept


def test_the_edited_stores(trained, hops, edit, tennessee, queries, tiny_dataset):
    left = rerouting.edited_hops(hops, edit)
    gone = set(map(tuple, edit.gone.tolist()))
    assert hops_of(left) == hops_of(hops) - gone
    a_bridge = best_bridges(tennessee, queries.rows.source, queries.rows.target, 1, 60, 0)
    built = Edit.of(queries, bridged(tennessee, a_bridge))
    assert hops_of(rerouting.edited_hops(hops, built)) == hops_of(hops) | set(
        map(tuple, built.new.tolist())
    )
    train_rows = tiny_dataset.rows("train").take(np.arange(0, 2000, 4))
    lessons = rerouting.lessons(train_rows, queries.rows, edit)
    asked = set(zip(queries.rows.source.tolist(), queries.rows.target.tolist(), strict=True))
    assert len(lessons) > 10
    for path in lessons:
        path = path.tolist()
        assert (
            tennessee.is_edge(path[:-1], path[1:]).all()
            and edit.after.is_edge(path[:-1], path[1:]).all()
        )
        assert not asked & {(a, b) for i, a in enumerate(path) for b in path[i + 1 :]}
    cache = KeyValueCache.of(trained.model, train_rows.paths)
    edited = rerouting.edited_cache(cache, trained.model, edit, lessons)
    taken = set(zip(edited.origins.tolist(), edited.values.tolist(), strict=True))
    assert not taken & gone and not taken - hops_of(edit.after)
    deleted = sum(
        (a, b) in gone for a, b in zip(cache.origins.tolist(), cache.values.tolist(), strict=True)
    )
    assert len(edited) == len(cache) - deleted + (lessons.lengths - 1).sum() and deleted
    fitted, _ = fit(trained.model, cache, queries.rows.paths, thetas=(40.0,), weights=(0.5,))
    told = lambda _: lessons  # noqa: E731
    mixes = rerouting.cached("gru-32", trained, fitted, hops, told)
    scored = {s.row["method"]: s for s in answered(edit, mixes)}
    bounded = scored["cache + lessons on roads"].judged
    assert bounded.loc[bounded["arrives"], "legal"].all()
    hit = {name: s.judged["success"][edit.hit].mean() for name, s in scored.items()}
    assert hit["cache + lessons on roads"] > hit["cache"]


def test_reroute_is_a_row_a_query(queries, trained, hops, tennessee):
    edits = closing(queries, (0.02, 0.1), range(2))
    frame = rerouting.reroute(
        edits, [*rerouting.weights_only(queries, "g", trained)[:1], rerouting.stitched(hops)]
    )
    assert len(frame) == 2 * sum(len(e.kept) for e in edits.values())
    table = rerouting.summary(frame)
    for (method, share), row in table.iterrows():
        part = frame[(frame["method"] == method) & (frame["share"] == share)]
        assert row["queries"] == len(part) and row["success"] == part["success"].mean()
        assert row["low"] <= row["success"] <= row["high"]
    for count in (1, 3):
        (built,) = bridging(queries, queries.rows, count, [0]).values()
        assert len(built.new) == count


def test_the_interval_covers_both_kinds_of_chance():
    """Queries all alike: the interval is that of the closures; closures alike: of the queries."""
    random = np.random.default_rng(0)
    query, seed = map(np.ravel, np.meshgrid(np.arange(200), np.arange(5), indexing="ij"))
    one = pd.DataFrame({"query": query, "seed": seed})
    by_closure = one.assign(success=random.permutation([1.0, 1.0, 0.0, 0.0, 0.0])[seed])
    low, high = rerouting._interval(by_closure)
    assert low == 0.0 and high == pytest.approx(0.8, abs=0.01)
    by_query = one.assign(success=(random.random(200) < 0.5)[query].astype(float))
    low, high = rerouting._interval(by_query)
    assert high - low == pytest.approx(2 * 1.96 * (0.25 / 200) ** 0.5, rel=0.1)


def test_no_weight_changes(trained, queries, hops, edit):
    before = {name: x.clone() for name, x in trained.model.state_dict().items()}
    answered(edit, rerouting.on_roads("g", trained, hops)[:1])
    assert all(torch.equal(before[n], x) for n, x in trained.model.state_dict().items())
