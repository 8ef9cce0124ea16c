"""Splits that do not leak, and a dataset that is the same bytes however it was made."""

from __future__ import annotations

import json
import multiprocessing
import os
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import replace
from functools import cache
from itertools import combinations, islice

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from citypaths.data.batches import Batches
from citypaths.data.dataset import Rows, live_dataset, make_dataset, open_dataset
from citypaths.data.shards import sample_rows
from citypaths.data.splits import PARTS, SPLITS, Recipe, held_cities, recipe_for
from citypaths.files import (
    DataFileError,
    atomic_write,
    digest,
    lock,
    read_json,
    sealed,
    sha256,
    write_json,
)
from citypaths.map.graph import build_graph, jittered, rounded, unit_hash
from citypaths.map.shortest_paths import count_reachable, paths, shortest_path_trees

GOALS = {"train": 6000, "valid": 1000, "test": 1500}
ORIENTATIONS = ("eastward", "two_way")


# Hashing


def splitmix(seed: int, *keys: int) -> float:
    """The hash in Python's own integers, after Steele, Lea and Flood."""

    def mix(x: int) -> int:
        x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9 % 2**64
        x = (x ^ (x >> 27)) * 0x94D049BB133111EB % 2**64
        return x ^ (x >> 31)

    state = mix((seed + 0x9E3779B97F4A7C15) % 2**64)
    for key in keys:
        state = mix(((state ^ key % 2**64) + 0x9E3779B97F4A7C15) % 2**64)
    return (state >> 11) / 2**53


def test_hash_is_splitmix64():
    assert unit_hash(1234567) == (6457827717110365317 >> 11) / 2**53  # published first output


whole = st.integers(-(2**62), 2**62)


@settings(max_examples=60, deadline=None)
@given(whole, st.lists(st.tuples(whole, whole), min_size=1, max_size=5))
def test_hash_depends_on_its_keys_alone(seed, keys):
    a, b = np.array(keys).T
    expected = [splitmix(seed, *key) for key in keys]
    np.testing.assert_array_equal(unit_hash(seed, a, b), expected)
    np.testing.assert_array_equal(unit_hash(seed, a[::-1], b[::-1]), expected[::-1])


def test_hash_is_uniform_and_seeds_are_independent():
    i = np.arange(400)
    draws = [unit_hash(seed, i[:, None], i).ravel() for seed in (0, 1)]
    for u in draws:
        assert ((u >= 0) & (u < 1)).all()
        assert np.abs(np.histogram(u, 20, (0, 1))[0] / 8000 - 1).max() < 0.06
    assert abs(np.corrcoef(*draws)[0, 1]) < 0.01
    table = draws[0].reshape(400, 400)
    assert abs(np.corrcoef(table.ravel(), table.T.ravel())[0, 1]) < 0.01


# Splits


@pytest.fixture(scope="module")
def cases(tennessee, tennessee_two_way, tmp_path_factory):
    """Return a function that gives the dataset of a split and an orientation, made once."""

    @cache
    def case(split: str, orientation: str):
        graph = tennessee if orientation == "eastward" else tennessee_two_way
        recipe = recipe_for(graph, **GOALS, seed=3, split=split)
        return make_dataset(graph, recipe, tmp_path_factory.mktemp("split"), 128)

    return case


@pytest.fixture(params=ORIENTATIONS)
def orientation(request):
    return request.param


@pytest.fixture(params=SPLITS)
def made(request, cases, orientation):
    """The dataset of each split in each orientation."""
    return cases(request.param, orientation)


def parts_of(dataset) -> dict[str, Rows]:
    return {part: dataset.rows(part) for part in PARTS}


def queries(rows) -> list[tuple[int, int]]:
    return list(zip(rows.source.tolist(), rows.target.tolist(), strict=True))


def unordered(pairs) -> set[frozenset]:
    return {frozenset(pair) for pair in pairs}


def test_no_query_is_in_two_parts(made):
    count = Counter(query for part in PARTS for query in queries(made.rows(part)))
    assert max(count.values()) == 1
    assert all(source != target for source, target in count)


def test_pair_split_keeps_unordered_pairs_apart(cases, orientation):
    made = cases("pair", orientation)
    parts = [unordered(queries(rows)) for rows in parts_of(made).values()]
    for a, b in combinations(parts, 2):
        assert not a & b
    if made.graph.orientation == "two_way":  # both directions of a pair are drawn together
        assert sum(map(len, parts)) * 2 == sum(made.counts[part] for part in PARTS)


def test_ordered_split_leaks_by_design(cases, orientation):
    made = cases("ordered", orientation)
    parts = [unordered(queries(rows)) for rows in parts_of(made).values()]
    assert bool(parts[0] & parts[2]) == (made.graph.orientation == "two_way")


def test_target_split_holds_destinations_out(cases, orientation):
    made = cases("target", orientation)
    rows = parts_of(made)
    seen = set(rows["train"].target) | set(rows["valid"].target)
    unseen = set(rows["test"].target)
    assert seen and unseen
    assert not seen & unseen
    held = held_cities(made.recipe, made.graph)
    assert 0.05 < held.mean() < 0.15


def test_region_split_holds_a_disc_out(cases, orientation):
    made = cases("region", orientation)
    rows = parts_of(made)
    held = held_cities(made.recipe, made.graph)
    for part in ("train", "valid"):
        assert not held[rows[part].paths.tokens].any()
    assert (held[rows["test"].source] | held[rows["test"].target]).all()
    assert held[rows["test"].source].any() and held[rows["test"].target].any()
    assert held.sum() == round(0.1 * len(held))


def test_region_is_the_cities_nearest_to_one_of_the_giant_component(cases, orientation):
    made = cases("region", orientation)
    graph, held = made.graph, held_cities(made.recipe, made.graph)
    inside, outside = np.flatnonzero(held), np.flatnonzero(~held)
    discs = [
        c
        for c in inside
        if graph.distance_km(c, inside).max() <= graph.distance_km(c, outside).min()
    ]
    assert any(graph.components()[discs] == 0)


def test_long_split_tests_longer_paths_than_it_trains(cases, orientation):
    made = cases("long", orientation)
    rows = parts_of(made)
    longest = max(rows["train"].hops.max(), rows["valid"].hops.max())
    assert rows["test"].hops.min() > made.recipe.max_train_hops >= longest
    assert longest == made.recipe.max_train_hops


def held_by_hash(recipe: Recipe, cities: int) -> np.ndarray:
    """Which pairs are drawn for validation or test, bool [cities, cities], symmetric."""
    a, b = np.triu_indices(cities, 1)
    held = np.zeros((cities, cities), bool)
    held[a, b] = unit_hash(recipe.seed, a, b) < recipe.test_rate + recipe.valid_rate
    return held | held.T


def passes(path: np.ndarray, held: np.ndarray) -> bool:
    return bool(np.triu(held[np.ix_(path, path)]).any())


def test_held_out_rejects_exactly_the_paths_that_contain_a_query(cases, orientation):
    """What `pair` would train less the paths through both ends of a held pair, and no more."""
    made = cases("held_out", orientation)
    held = held_by_hash(made.recipe, len(made.graph))
    assert not made.contained(made.rows("test")).any()
    assert not made.contained(made.rows("valid")).any()
    plain = live_dataset(made.graph, replace(made.recipe, split="pair"))
    drawn = plain.rows("train")
    kept = {q for q, p in zip(queries(drawn), drawn.paths, strict=True) if not passes(p, held)}
    assert set(queries(made.rows("train"))) == kept
    assert 0 < len(kept) < len(drawn)
    for part in ("valid", "test"):
        assert queries(made.rows(part)) == queries(plain.rows(part))


def test_held_out_training_takes_what_the_queries_leave(tennessee):
    recipe = recipe_for(tennessee, train=10**9, valid=50, test=100, split="held_out")
    assert recipe.train_rate + recipe.valid_rate + recipe.test_rate == pytest.approx(1)
    assert recipe.test_rate == pytest.approx(100 / count_reachable(tennessee))


def eligible(made) -> tuple[np.ndarray, np.ndarray]:
    """Brute force over all reachable pairs: which may train, and which may test."""
    trees = shortest_path_trees(made.graph, np.arange(len(made.graph)))
    pairs = np.argwhere(trees.reachable)
    split, held = made.recipe.split, np.zeros(len(made.graph), bool)
    if split in ("target", "region"):
        held = held_cities(made.recipe, made.graph)
    if split == "target":
        return ~held[pairs[:, 1]], held[pairs[:, 1]]
    found = paths(trees, pairs)
    if split == "region":
        return np.array([not held[p].any() for p in found]), held[pairs].any(1)
    if split == "long":
        short = found.lengths - 1 <= made.recipe.max_train_hops
        return short, ~short
    if split == "held_out":
        held_pairs = held_by_hash(made.recipe, len(made.graph))
        return np.array([not passes(p, held_pairs) for p in found]), np.ones(len(pairs), bool)
    return np.ones(len(pairs), bool), np.ones(len(pairs), bool)


def test_rates_are_met_and_counts_are_near_the_goals(made):
    trains, tests = (int(mask.sum()) for mask in eligible(made))
    valids = tests if made.recipe.split == "held_out" else trains
    recipe, slack = made.recipe, 0.4 if made.recipe.split == "target" else 0.15
    rates = (recipe.train_rate, recipe.valid_rate, recipe.test_rate)
    for part, rate, pairs in zip(PARTS, rates, (trains, valids, tests), strict=True):
        assert abs(made.counts[part] - rate * pairs) < 7 * np.sqrt(rate * pairs)
        if (recipe.split, part) != ("held_out", "train"):  # rejected paths are not made up for
            assert made.counts[part] == pytest.approx(GOALS[part], rel=slack)


@pytest.mark.parametrize("split", ["pair", "ordered"])
def test_parts_are_pure_functions_of_pair_and_seed(cases, orientation, split):
    """Recompute the part of every reachable pair, one by one, in Python."""
    made = cases(split, orientation)
    recipe, n = made.recipe, len(made.graph)
    trees = shortest_path_trees(made.graph, np.arange(0, n, 16))
    drawn = {part: set(queries(made.rows(part))) for part in PARTS}
    for source, column in np.argwhere(trees.reachable):
        query = (int(source), int(trees.targets[column]))
        u = splitmix(recipe.seed, *(sorted(query) if recipe.split == "pair" else query))
        tests, valids = recipe.test_rate, recipe.test_rate + recipe.valid_rate
        part = "test" if u < tests else "valid" if u < valids else "train"
        part = part if u < valids + recipe.train_rate else None
        assert [name for name in PARTS if query in drawn[name]] == ([part] if part else [])


def test_contained_equals_brute_force(made):
    inside = set()
    for path in made.rows("train").paths:
        inside |= unordered(combinations(path.tolist(), 2))
    for part in PARTS:
        rows = made.rows(part)
        expected = [frozenset(query) in inside for query in queries(rows)]
        np.testing.assert_array_equal(made.contained(rows), expected)
    assert made.contained(made.rows("train")).all()


def test_more_than_there_is_gives_all_of_it(tennessee, tmp_path):
    recipe = recipe_for(tennessee, train=10**8, valid=10**8, test=2 * 10**8)
    assert (recipe.train_rate, recipe.valid_rate, recipe.test_rate) == (0.25, 0.25, 0.5)
    counts = make_dataset(tennessee, recipe, tmp_path, 512).counts
    assert sum(counts[part] for part in PARTS) == count_reachable(tennessee)


def test_seeds_and_splits_draw_differently(tennessee, tmp_path):
    rows = {}
    for seed in (0, 1, 2):
        recipe = recipe_for(tennessee, train=6000, valid=0, test=0, seed=seed)
        rows[seed] = set(
            queries(make_dataset(tennessee, recipe, tmp_path / str(seed)).rows("train"))
        )
    overlap = len(rows[0] & rows[1]) / len(rows[0])
    assert overlap == pytest.approx(6000 / count_reachable(tennessee), abs=0.03)


def test_jitter_is_not_the_draw_of_the_split(tennessee):
    """A hop's lengthening must not tell which part its pair is in."""
    factor = jittered(tennessee, seed=0).km / tennessee.km
    a, b = tennessee.edge_sources, tennessee.indices
    draw = unit_hash(0, np.minimum(a, b), np.maximum(a, b))
    assert abs(np.corrcoef(factor, draw)[0, 1]) < 0.1


@pytest.mark.parametrize("split", ["target", "region"])
def test_nothing_held_out_leaves_training_whole(tennessee, tmp_path, split):
    recipe = recipe_for(tennessee, train=3000, valid=0, test=100)
    recipe = replace(recipe, split=split, held_share=0.0)
    counts = make_dataset(tennessee, recipe, tmp_path, 512).counts
    assert counts["train"] == pytest.approx(3000, rel=0.1)


GOOD = {"graph": "f", "seed": 0, "split": "pair"} | dict.fromkeys(
    ("train_rate", "valid_rate", "test_rate"), 0.3
)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"split": "random"}, "split is one of pair, ordered, target, region, long"),
        ({"train_rate": -0.1}, "rates are shares"),
        ({"test_rate": 1.1}, "rates are shares"),
        ({"valid_rate": float("nan")}, "rates are shares"),
        ({"train_rate": 0.5}, "sum to at most 1"),
        ({"held_share": 2}, "rates are shares"),
        ({"split": "long"}, "max_train_hops of at least 1"),
    ],
)
def test_impossible_recipes_are_refused(change, message):
    assert Recipe(**GOOD)
    with pytest.raises(ValueError, match=message):
        Recipe(**GOOD | change)


def test_a_graph_without_paths_has_no_recipe(scattered, lonely):
    for graph in (scattered, lonely):
        with pytest.raises(ValueError, match="no city .* reaches another: raise connected_km"):
            recipe_for(graph, train=10, valid=1, test=1)


def test_recipes_have_distinct_short_names(tennessee):
    recipe = Recipe(**GOOD)
    recipes = (recipe, replace(recipe, seed=1), replace(recipe, graph="g"))
    names = {digest(r.to_json(), 12) for r in recipes}
    assert len(names) == 3
    assert all(len(name) == 12 and int(name, 16) >= 0 for name in names)
    again = Recipe(**json.loads(json.dumps(recipe.to_json())))
    assert digest(again.to_json(), 12) == digest(recipe.to_json(), 12)


# Rows


def all_rows(dataset) -> Rows:
    return Rows.concatenate([dataset.shard(i) for i in range(len(dataset.shards))])


def assert_same_rows(a: Rows, b: Rows) -> None:
    for name in ("source", "target", "mm", "part"):
        np.testing.assert_array_equal(getattr(a, name), getattr(b, name))
    np.testing.assert_array_equal(a.paths.tokens, b.paths.tokens)
    np.testing.assert_array_equal(a.paths.offsets, b.paths.offsets)


def test_every_column_of_every_row_is_right(made):
    graph, rows = made.graph, all_rows(made)
    tokens, offsets = rows.paths.tokens, rows.paths.offsets
    np.testing.assert_array_equal(tokens[offsets[:-1]], rows.source)
    np.testing.assert_array_equal(tokens[offsets[1:] - 1], rows.target)
    at = [graph.edge_index(p[:-1], p[1:]) for p in rows.paths]
    assert min(a.min() for a in at) >= 0
    np.testing.assert_array_equal(rows.mm, [graph.mm[a].sum() for a in at])
    np.testing.assert_array_equal(rows.hops, [len(a) for a in at])
    np.testing.assert_array_equal(rows.km, rows.mm / 1e6)
    order = np.lexsort((rows.source, rows.target))
    np.testing.assert_array_equal(order, np.arange(len(rows)))


def test_paths_are_those_of_the_engine(made):
    rows = made.rows("test")
    trees = shortest_path_trees(made.graph, np.unique(rows.target))
    found = paths(trees, np.stack([rows.source, rows.target], 1))
    np.testing.assert_array_equal(rows.paths.tokens, found.tokens)


def test_counts_are_those_of_the_rows(made):
    rows = all_rows(made)
    expected = {part: int((rows.part == i).sum()) for i, part in enumerate(PARTS)}
    assert made.counts == expected | {"tokens": len(rows.paths.tokens)}
    assert {part: len(made.rows(part)) for part in PARTS} == expected


def test_rows_can_be_taken_and_joined(tiny_dataset):
    rows = tiny_dataset.rows("test")
    odd = np.arange(len(rows)) % 2 == 1
    picked = rows.take(np.array([7, 3, 7]))
    assert queries(picked) == [queries(rows)[i] for i in (7, 3, 7)]
    np.testing.assert_array_equal(picked.paths[1], rows.paths[3])
    assert_same_rows(rows.take(odd), rows.take(np.flatnonzero(odd)))
    halves = Rows.concatenate([rows.take(odd), rows.take(~odd)])
    assert sorted(queries(halves)) == sorted(queries(rows))


def test_a_dataset_may_have_empty_shards_and_parts(chain, tmp_path):
    recipe = Recipe(chain.fingerprint, 1, "pair", 0.2, 0.0, 0.0)
    dataset = make_dataset(chain, recipe, tmp_path, 1)
    assert len(dataset.shards) == 5
    assert len(dataset.rows("test")) == 0
    assert len(dataset.rows("train")) == dataset.counts["train"] < 8
    assert dataset.contained(dataset.rows("valid")).size == 0


# The same bytes


def digests(folder, *skip: str) -> dict[str, str]:
    files = (p for p in folder.iterdir() if p.name != ".lock" and p.name not in skip)
    return {p.name: sha256(p) for p in files}


@pytest.fixture
def copy(tiny_dataset, tmp_path):
    """A copy of the tiny dataset's folder, to be damaged."""
    return shutil.copytree(tiny_dataset.folder, tmp_path / "copy")


def test_one_recipe_gives_one_set_of_bytes(tiny_dataset, tennessee, tmp_path):
    again = build_graph(tennessee.cities.copy(), 30)
    make_dataset(again, tiny_dataset.recipe, tmp_path, 16)
    assert digests(tmp_path) == digests(tiny_dataset.folder)
    assert len(digests(tmp_path)) == 25


def test_making_a_finished_dataset_again_writes_nothing(copy, tiny_dataset, tennessee):
    before = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in copy.iterdir()}
    make_dataset(tennessee, tiny_dataset.recipe, copy, 16)
    after = {p.name: (p.stat().st_mtime_ns, p.stat().st_ino) for p in copy.iterdir()}
    assert {k: v for k, v in after.items() if k != ".lock"} == {
        k: v for k, v in before.items() if k != ".lock"
    }


@pytest.mark.parametrize("size", [7, 100, 10_000])
def test_rows_do_not_depend_on_the_size_of_shards(tiny_dataset, tennessee, tmp_path, size):
    dataset = make_dataset(tennessee, tiny_dataset.recipe, tmp_path, size)
    assert len(dataset.shards) == -(-len(tennessee) // size)
    assert_same_rows(all_rows(dataset), all_rows(tiny_dataset))


def test_a_missing_shard_is_made_again(copy, tiny_dataset, tennessee):
    (copy / "shard-0003.arrow").unlink()
    make_dataset(tennessee, tiny_dataset.recipe, copy, 16)
    assert digests(copy) == digests(tiny_dataset.folder)


def make_slowly(graph, recipe, folder, seed) -> None:
    """Make a dataset in this process with a disk that takes its time: kills land inside writes."""
    rng, flush = np.random.default_rng(seed), os.fsync

    def slow_flush(descriptor) -> None:
        time.sleep(rng.uniform(0, 0.02))
        flush(descriptor)
        time.sleep(rng.uniform(0, 0.02))

    os.fsync = slow_flush
    make_dataset(graph, recipe, folder, 16)


@pytest.fixture(scope="module")
def start():
    """Return a function that starts a process of its own and hands it back."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["citypaths.data.dataset", "geopandas", "hypothesis", "pytest"])
    begun = []

    def run(function, *args):
        begun.append(context.Process(target=function, args=args))
        begun[-1].start()
        return begun[-1]

    yield run
    for process in begun:
        process.kill()
        process.join()


def wait_until(condition, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.002)


def shards_in(folder) -> int:
    return len(list(folder.glob("shard-*.arrow")))


def test_a_killed_run_resumes_to_the_same_bytes(start, tiny_dataset, tennessee, tmp_path):
    rng, parts_left = np.random.default_rng(), 0
    for turn in range(5):
        goal = shards_in(tmp_path) + 2
        process = start(make_slowly, tennessee, tiny_dataset.recipe, tmp_path, turn)
        wait_until(lambda goal=goal: shards_in(tmp_path) >= goal)
        time.sleep(rng.uniform(0, 0.06))
        process.kill()
        process.join()
        assert process.exitcode == -9
        parts_left += len(list(tmp_path.glob(".*.part")))
        with pytest.raises(DataFileError, match="is unfinished: run notebook 02"):
            open_dataset(tmp_path, tennessee)
    done = digests(tmp_path)
    dataset = make_dataset(tennessee, tiny_dataset.recipe, tmp_path, 16)
    assert dataset.counts == tiny_dataset.counts
    names = {name for name in done if name.startswith("shard")}
    assert {name: digests(tmp_path)[name] for name in names} == {name: done[name] for name in names}
    expected = digests(tiny_dataset.folder)
    assert {name: digests(tmp_path)[name] for name in expected} == expected
    assert not list(tmp_path.glob(".shard-*.part"))
    assert parts_left  # some kill landed inside a write


def test_processes_that_make_one_dataset_at_once_agree(start, tiny_dataset, tennessee, tmp_path):
    args = (make_slowly, tennessee, tiny_dataset.recipe, tmp_path)
    crowd = [start(*args, seed) for seed in range(2)]
    wait_until(lambda: shards_in(tmp_path) >= 3)
    doomed = start(*args, 9)
    time.sleep(0.1)
    doomed.kill()
    for process in crowd:
        process.join(60)
        assert process.exitcode == 0
    assert digests(tmp_path) == digests(tiny_dataset.folder)


def test_a_file_is_whole_or_not_there(tmp_path):
    path = tmp_path / "new" / "file"
    with atomic_write(path) as part:
        part.write_text("first")
        assert not path.exists()
    with pytest.raises(KeyboardInterrupt), atomic_write(path) as part:
        part.write_text("sec")
        assert path.read_text() == "first"
        raise KeyboardInterrupt
    assert path.read_text() == "first"
    assert os.listdir(path.parent) == ["file"]


def hold(path, seconds) -> None:
    with lock(path):
        path.with_name("held").touch()
        time.sleep(seconds)


def test_a_killed_process_lets_go_of_the_lock(start, tiny_dataset, tennessee, tmp_path):
    process = start(hold, tmp_path / ".lock", 60)
    wait_until((tmp_path / "held").exists)
    waiting = start(make_slowly, tennessee, tiny_dataset.recipe, tmp_path, 0)
    time.sleep(0.2)
    assert not shards_in(tmp_path)
    process.kill()
    wait_until(lambda: shards_in(tmp_path) > 0)
    assert waiting.is_alive()
    waiting.kill()


# Damage, and folders of others


def refuse(folder, message: str, action) -> None:
    """Check that `action` raises a DataFileError like `message` and leaves every file alone."""
    before = digests(folder)
    with pytest.raises(DataFileError, match=message):
        action()
    assert digests(folder) == before


def test_a_missing_shard_is_named(copy, tennessee):
    dataset = open_dataset(copy, tennessee)
    (copy / "shard-0005.arrow").unlink()
    refuse(copy, r"lacks shard-0005\.arrow: run notebook 02", lambda: open_dataset(copy, tennessee))
    refuse(copy, r"shard-0005\.arrow is missing: run notebook 02", lambda: dataset.shard(5))


def test_no_dataset_is_a_clear_error(tmp_path, tennessee):
    with pytest.raises(DataFileError, match=r"nowhere/manifest\.json is missing: notebook 02"):
        open_dataset(tmp_path / "nowhere", tennessee)
    assert not (tmp_path / "nowhere").exists()


def test_another_graph_is_refused(copy, tiny_dataset, tennessee_two_way, tennessee):
    for graph in (tennessee_two_way, rounded(tennessee)):
        refuse(copy, "was made from another graph", lambda g=graph: open_dataset(copy, g))
        with pytest.raises(ValueError, match="the recipe is for graph"):
            make_dataset(graph, tiny_dataset.recipe, copy, 16)
    assert digests(copy) == digests(tiny_dataset.folder)


@pytest.mark.parametrize("change", [{"seed": 6}, {"split": "ordered"}, {"test_rate": 0.001}])
@pytest.mark.parametrize("finished", [True, False])
def test_another_recipe_in_the_folder_is_refused(copy, tiny_dataset, tennessee, change, finished):
    manifest = read_json(copy / "manifest.json", "nobody")
    write_json(copy / "manifest.json", sealed(manifest | {"complete": finished}))
    other = replace(tiny_dataset.recipe, **change)
    message = "copy holds a dataset of another recipe: delete the folder"
    refuse(copy, message, lambda: make_dataset(tennessee, other, copy, 16))
    refuse(copy, message, lambda: make_dataset(tennessee, tiny_dataset.recipe, copy, 17))


@pytest.mark.parametrize("size", [0, -3])
def test_shards_need_targets(tiny_dataset, tennessee, tmp_path, size):
    with pytest.raises(ValueError, match="targets_per_shard is a positive number"):
        make_dataset(tennessee, tiny_dataset.recipe, tmp_path, size)


# Without files


def test_a_live_dataset_is_the_one_on_disk(made):
    live = live_dataset(made.graph, made.recipe, 100)
    assert live.counts == made.counts
    assert len(live.shards) == -(-len(made.graph) // 100)
    for part in PARTS:
        assert_same_rows(live.rows(part), made.rows(part))
    rows, flags = live.queries("test")
    np.testing.assert_array_equal(flags, made.contained(rows))
    assert live.folder is None


def test_live_batches_are_those_from_disk(tiny_dataset):
    live = live_dataset(tiny_dataset.graph, tiny_dataset.recipe, 16)
    for pool_paths in (300, 10**6):
        both = [Batches(d, 400) for d in (live, tiny_dataset)]
        for batches in both:
            batches.pool_paths = pool_paths
        pairs = zip(*both, strict=False)
        for mine, theirs in islice(pairs, 30):
            assert torch.equal(mine.cities, theirs.cities)
            assert torch.equal(mine.labels, theirs.labels)


def test_live_datasets_refuse_what_files_do(tiny_dataset, chain):
    with pytest.raises(ValueError, match="the recipe is for graph"):
        live_dataset(chain, tiny_dataset.recipe)
    with pytest.raises(ValueError, match="targets_per_shard is a positive number"):
        live_dataset(tiny_dataset.graph, tiny_dataset.recipe, 0)


@pytest.mark.parametrize("threads", [1, 4])
@pytest.mark.parametrize("groups", [3, 90])
def test_rows_are_the_same_in_any_grouping(made, threads, groups):
    targets = np.array_split(np.arange(len(made.graph)), groups)
    rows = [sample_rows(made.graph, made.recipe, some, threads) for some in targets]
    assert_same_rows(Rows.concatenate(rows), all_rows(made))


def test_making_a_dataset_leaves_the_threads_of_torch_alone(tmp_path):
    """Numba's own threads would set them, and the last bits of training depend on their number."""
    code = (
        "import torch\n"
        "from citypaths import lab, sizes\n"
        "torch.set_num_threads(1)\n"
        "graph = lab.make_graph(sizes.get_size('tiny'))\n"
        "lab.size_dataset(sizes.get_size('tiny'), graph, make=True).queries('test')\n"
        "print(torch.get_num_threads())"
    )
    environment = os.environ | {"CITYPATHS_HOME": str(tmp_path), "NUMBA_NUM_THREADS": "2"}
    command = [sys.executable, "-c", code]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=True)
    assert done.stdout.strip() == "1"
