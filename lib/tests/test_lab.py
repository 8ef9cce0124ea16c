"""Sizes, a size's data and queries, scores."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch

from citypaths import decoding, lab
from citypaths.data.batches import batch_of
from citypaths.files import DataFileError
from citypaths.judging.floors import walk
from citypaths.judging.ledger import COLUMNS, load_results, record
from citypaths.judging.metrics import judge, wilson
from citypaths.judging.queries import Queries, ledger_row
from citypaths.map.cities import load_cities
from citypaths.map.graph import build_graph
from citypaths.map.paths import Found, Paths
from citypaths.map.shortest_paths import paths, shortest_path_trees
from citypaths.models import RNN, build, register
from citypaths.sizes import SIZES, Size, get_size, settings_of, two_way_of
from citypaths.training.recipes import Recipe

LITTLE = {"train": 1500, "valid": 80, "test": 400, "queries": 40}


@pytest.fixture(scope="module", autouse=True)
def home(empty_home):
    return empty_home


@pytest.fixture(scope="module")
def size(home) -> Size:
    return get_size("tiny", LITTLE)


@pytest.fixture(scope="module")
def graph(size):
    return lab.size_graph(size, make=True)


@pytest.fixture(scope="module")
def dataset(size, graph):
    return lab.size_dataset(size, graph, make=True)


@pytest.fixture(scope="module")
def queries(dataset) -> Queries:
    return Queries.of(dataset)


# Sizes


def test_sizes_are_named_after_themselves():
    assert all(name == size.name for name, size in SIZES.items())
    for size in SIZES.values():
        assert not size.two_way or SIZES[size.two_way].orientation == "two_way"
        assert size.states is None or all(len(state) == 2 for state in size.states)


def test_unknown_names_are_told_what_is_near():
    with pytest.raises(ValueError, match=r"size 'smal' is none of tiny.*did you mean small"):
        get_size("smal")
    with pytest.raises(
        ValueError, match=r"no setting 'lerning_rate'.*did you mean learning_rate\?"
    ):
        get_size("tiny", {"lerning_rate": 1})
    with pytest.raises(ValueError, match="known: name, states"):
        get_size("tiny", {"zzzz": 1})


@pytest.mark.parametrize(
    "key, value",
    [
        ("batch_tokens", "100"),
        ("batch_tokens", None),
        ("batch_tokens", 2.5),
        ("batch_tokens", True),
        ("budget", float("inf")),
        ("train", [1]),
        ("connected_km", "30"),
        ("learning_rate", None),
        ("states", "NY"),
        ("states", 3),
        ("arms", None),
        ("orientation", 5),
        ("orientation", None),
    ],
)
def test_values_of_another_type_are_refused(key, value):
    for name in SIZES:
        with pytest.raises(ValueError, match=f"setting {key} is "):
            get_size(name, {key: value})


def test_overrides():
    size = get_size(
        "small", {"queries": 7.0, "seeds": 2.0, "states": ["TN", "KY"], "connected_km": 32.5}
    )
    assert size.queries == 7 and isinstance(size.queries, int) and size.training == {"seeds": 2}
    assert size.states == ("TN", "KY") and size.connected_km == 32.5
    assert get_size("full", {"budget": 1}).training == {"budget": 1.0}
    assert get_size("small", {"states": None}).states is None
    assert get_size("small") is not None and get_size("small", {}) == SIZES["small"]
    assert SIZES["small"].states == ("NC",), "the table itself is never changed"
    assert settings_of(size)["states"] == ["TN", "KY"]


def test_the_same_value_in_another_form_is_the_same_folder():
    for same in ({"connected_km": 30.0}, {"train": 12_000.0}, {"states": ["TN"]}):
        assert get_size("tiny", same).folder == SIZES["tiny"].folder


def test_the_folder_depends_on_the_graph_and_the_data_alone(home):
    data = {"name", "states", "most_populous", "connected_km", "orientation"}
    data |= {"train", "valid", "test", "jitter", "source", "country", "path"}
    size = SIZES["tiny"]
    other = {"orientation": "two_way", "states": ("KY",), "name": "other"}
    other |= {"training": {"budget": 1.0}, "tries": (1,), "shares": (1,)}
    for field in fields(Size):
        old = getattr(size, field.name)
        new = other.get(field.name, old + 1 if isinstance(old, int | float) else "other")
        moved = replace(size, **{field.name: new}).folder != size.folder
        assert moved == (field.name in data), field.name
    assert size.folder.parent == home / "data"
    assert len({s.folder for s in SIZES.values()}) == len(SIZES)
    assert SIZES["tiny"].folder.name == "tiny-7e4b4033", "folders of earlier versions are found"
    assert SIZES["small"].folder.name == "small-bf33d5d2"


# A size's graph, data and queries


def test_graph_and_dataset_are_made_once(size, graph, dataset):
    again = lab.size_graph(size)
    assert again.fingerprint == graph.fingerprint
    assert graph.orientation == "eastward" and graph.connected_km == 30
    assert lab.size_dataset(size, again).recipe == dataset.recipe
    counts = dataset.counts
    assert counts["train"] == pytest.approx(1500, rel=0.15)
    assert counts["test"] == pytest.approx(400, rel=0.25)


def test_clean_labels_are_a_switch(size, graph):
    clean = lab.make_graph(replace(size, jitter=0.1))
    np.testing.assert_array_equal(clean.indices, graph.indices)
    longer = clean.km / graph.km
    assert (longer >= 1).all() and (longer < 1.1).all() and longer.std() > 0.02
    assert clean.fingerprint != graph.fingerprint


def test_a_size_on_another_source(home):
    """The same four towns from a file: in the repository, by a relative path, in its own folder."""
    towns = load_cities(states=["TN"]).head(4)
    names = {"name": "city", "state": "state_id", "lon": "lng", "key": "id"}
    columns = ["name", "state", "lat", "lon", "population", "timezone", "key"]
    table = towns[columns].rename(columns=names).assign(county_name="Shelby", density=12.5)
    (home / "data").mkdir(exist_ok=True)
    table.to_csv(home / "data" / "towns.csv", index=False)
    changes = {"source": "simplemaps", "path": "data/towns.csv"}
    for path in ("data/towns.csv", str(home / "data" / "towns.csv")):
        size = get_size("tiny", changes | {"path": path})
        assert size.folder != SIZES["tiny"].folder
        made = lab.size_graph(size, make=True)
        assert made.fingerprint == build_graph(towns, 30).fingerprint
        assert lab.size_graph(size).cities["county_name"].tolist() == ["Shelby"] * 4
        assert len(lab.make_graph(two_way_of(size))) == 4
    with pytest.raises(DataFileError, match="nowhere.csv is missing"):
        lab.make_graph(replace(size, path="nowhere.csv"))
    danes = lab.size_cities(get_size("tiny", {"country": "Denmark", "states": ["17"]}))
    assert set(danes["country"]) == {"DK"}


def test_what_is_missing_names_its_notebook(graph):
    size = get_size("tiny", LITTLE | {"train": 1501})
    with pytest.raises(DataFileError, match=r"graph.npz is missing: notebook 01-city-dag"):
        lab.size_graph(size)
    with pytest.raises(DataFileError, match="notebook 02-shortest-path-dataset"):
        lab.size_dataset(size, graph)
    assert not size.folder.exists()


def test_the_most_populous_cities(home):
    size = get_size("tiny", {"most_populous": 25})
    few, all_of_them = lab.make_graph(size), lab.make_graph(SIZES["tiny"])
    assert len(few) == 25
    least = few.cities["population"].min()
    assert (all_of_them.cities["population"] > least).sum() <= 25
    assert few.cities["id"].tolist() == list(range(25))


def test_queries_are_the_test_rows(queries, dataset, graph):
    rows = dataset.rows("test")
    np.testing.assert_array_equal(queries.rows.source, rows.source)
    np.testing.assert_array_equal(queries.contained, dataset.contained(rows))
    walked = walk(graph, rows.source, rows.target).paths
    solved = judge(graph, rows.source, rows.target, rows.km, walked)["success"]
    np.testing.assert_array_equal(queries.hard, ~solved)
    np.testing.assert_array_equal(queries.straight_km, graph.distance_km(rows.source, rows.target))
    assert 0 < queries.hard.mean() < 1 and 0 < queries.contained.mean() < 1
    assert len(Queries.of(dataset, "valid")) == dataset.counts["valid"]


def test_taking_some_queries(queries):
    inside = set(queries.rows.source[queries.contained].tolist())
    free = queries.uncontained()
    assert len(free) == (~queries.contained).sum() and not free.contained.any()
    assert inside, "some are contained"
    few = queries.first(10)
    assert len(few) == 10 and len(queries.first(10**9)) == len(queries)
    assert len(queries.first(0)) == 0
    at = np.linspace(0, len(queries) - 1, 10).astype(int)
    np.testing.assert_array_equal(few.rows.target, queries.rows.target[at])
    for some in (few, free):
        assert some.rows.paths[0][0] == some.rows.source[0]
        trees = shortest_path_trees(some.graph, np.unique(some.rows.target))
        exact = paths(trees, np.stack([some.rows.source, some.rows.target], 1))
        assert np.array_equal(exact.tokens, some.rows.paths.tokens)
        straight = some.graph.distance_km(some.rows.source, some.rows.target)
        np.testing.assert_array_equal(some.straight_km, straight)
        walked = Queries(some.graph, some.rows, some.contained, some.hard, straight)
        assert (walked.judge(found(walk_of(some))).success == ~some.hard).all()


def walk_of(queries: Queries) -> Paths:
    return walk(queries.graph, queries.rows.source, queries.rows.target).paths


def found(some: Paths) -> Found:
    zero = np.zeros(len(some))
    return Found(some, zero + 5, zero + 2, zero + 1, 0.5)


def test_shortest_paths_are_judged_perfect(queries):
    judged = queries.judge(found(queries.rows.paths))
    assert judged[["success", "optimal", "exact", "bounded_00"]].all(axis=None)
    assert (judged["shortest_hops"] == judged["hops"]).all()
    assert not judged[["by_hops", "by_detour"]].isna().any(axis=None)
    np.testing.assert_array_equal(judged["hard"], queries.hard)
    np.testing.assert_array_equal(judged["contained"], queries.contained)


def test_the_hop_limit_leaves_room(queries):
    longest = queries.rows.hops.max()
    assert queries.max_hops == int(1.5 * longest) + 4 > longest


# Scores


def test_ledger_row_is_what_was_judged(queries):
    done = found(walk_of(queries))
    judged = queries.judge(done)
    row = ledger_row(judged, done)
    assert set(row) <= set(COLUMNS)
    assert row["queries"] == len(queries) and row["success"] == judged["success"].mean()
    assert (row["success_low"], row["success_high"]) == wilson(judged["success"].sum(), len(judged))
    assert row["hard_queries"] == queries.hard.sum()
    assert row["hard_success"] == 0, "geo-greedy fails where queries are hard"
    assert row["hard_success_low"] == 0 < row["hard_success_high"] < 0.1
    assert row["inference_flops"] == 5 and row["lookups"] == 2 and row["expansions"] == 1
    assert row["seconds_per_query"] == 0.5 / len(queries)
    perfect = ledger_row(queries.judge(found(queries.rows.paths)), done)
    assert perfect["hard_success"] == perfect["success"] == perfect["exact"] == 1


def test_ledger_row_without_hard_queries(queries, home):
    easy = queries.take(~queries.hard)
    row = ledger_row(easy.judge(found(easy.rows.paths)), found(easy.rows.paths))
    assert row["hard_queries"] == 0 and np.isnan(row["hard_success"])
    assert (row["hard_success_low"], row["hard_success_high"]) == (0, 1)
    record("x", SIZES["tiny"], 0, [row | {"regime": "open_map", "family": "floor"}])
    assert load_results()["hard_success"].isna().all()
    (home / "reports" / "runs" / "x-tiny-seed0.json").unlink()


def test_watch_is_the_loss_and_greedy_metrics(queries):
    torch.manual_seed(0)
    model = build("rnn", queries.graph, width=8).eval()
    many = replace(queries, rows=queries.rows)
    with torch.inference_mode():
        watched = lab.watch(many)(model)
        whole = float(model.loss(batch_of(queries.rows)))
    assert watched["valid_loss"] == pytest.approx(whole, rel=1e-5)
    judged = queries.judge(queries.decode(decoding.greedy, model))
    for name in ("legal", "arrives", "bounded_05", "success"):
        assert watched[name] == judged[name].mean()


TOY = Recipe(
    arm="toy", model="rnn", settings={"width": 8}, budget=1e7, batch_tokens=64, learning_rate=1e-2
)


def test_an_arm_is_trained_once_in_a_folder_of_its_own(size, dataset):
    first = lab.train_arm(size, dataset, TOY, 0)
    folders = set((size.folder / "models").iterdir())
    again = lab.train_arm(size, dataset, TOY, 0)
    assert set((size.folder / "models").iterdir()) == folders and first.folder in folders
    assert again.seconds == first.seconds, "it was loaded"
    lab.train_arm(size, dataset, TOY, 1)
    for changes in ({"hindsight": 0.5}, {"settings": {"softmaxes": 2}}):
        lab.train_arm(size, dataset, TOY, 0, **changes)
    variant = lab.train_arm(size, dataset, TOY, 0, variant={"softmaxes": 2})
    assert variant.steps == first.steps, "a variant takes the steps of its arm"
    assert variant.model.settings == {"model": "rnn", "width": 8, "softmaxes": 2}
    assert len(set((size.folder / "models").iterdir())) == len(folders) + 4


def test_the_folder_names_the_model(size, dataset):
    register("twin")(RNN)
    one, other = (lab.train_arm(size, dataset, TOY, 0, model=name) for name in ("rnn", "twin"))
    assert other.model.settings == {"model": "twin", "width": 8} and one.folder != other.folder
