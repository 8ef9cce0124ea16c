"""Tree search, scored, on a real graph and with trained networks."""

from __future__ import annotations

import pytest

from citypaths.judging.ledger import COLUMNS
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.models import build
from citypaths.sizes import get_size
from citypaths.training.loop import Trained, TrainSettings, train
from studies.search import planning


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).uncontained().first(20)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> dict[str, Trained]:
    """A GRU, a planner and kilometres to go, trained for a few seconds each."""
    recipes = {
        "rnn": (60, 1024, 2e-2, {"width": 24, "tied": True}),
        "planner": (80, 1024, 2e-2, {"width": 32, "tied": True}),
        "value": (100, 2048, 2e-2, {"width": 16}),
    }
    made = {}
    for name, (steps, tokens, rate, settings) in recipes.items():
        recipe = TrainSettings(steps, tokens, rate, evaluations=1)
        folder = tmp_path_factory.mktemp(name)
        made[name] = train(name, tiny_dataset, folder, recipe, settings)
    return made


@pytest.fixture(scope="module")
def table(queries, trained):
    networks = (trained[name] for name in ("rnn", "value", "planner"))
    return planning.tree_table(queries, "gru-24", *networks, simulations=(1, 8))


def test_every_row_says_what_it_is(table, trained):
    rows = {s.row["method"]: s.row for s in table}
    assert len(rows) == len(table)
    assert {name: (row["model"], row["regime"], row["budget"]) for name, row in rows.items()} == {
        "tree search 1": ("gru-24", "open_map", 1),
        "tree search 8": ("gru-24", "open_map", 8),
        "tree search 1, learned value": ("gru-24", "open_map", 1),
        "tree search 8, learned value": ("gru-24", "open_map", 8),
        "beam 16 by value": ("value", "open_map", 16),
        "greedy": ("planner", "closed_book", 1),
        "beam 8": ("planner", "closed_book", 8),
        "latent beam 16 by value": ("planner", "closed_book", 16),
        "latent tree search 1": ("planner", "closed_book", 1),
        "latent tree search 8": ("planner", "closed_book", 8),
    }
    names = {"gru-24": "rnn", "value": "value", "planner": "planner"}
    for method, row in rows.items():
        networks = [trained[names[row["model"]]]]
        networks += [trained["value"]] if method.endswith("learned value") else []
        assert set(row) <= set(COLUMNS) and row["inference_flops"] > 0
        assert row["parameters"] == sum(n.model.parameters_count for n in networks)
        assert row["training_flops"] == sum(n.training_flops for n in networks)
        on_map = row["regime"] == "open_map"
        assert (row["lookups"] > 0) == (row["expansions"] > 0) == on_map


def test_search_pays(table):
    success = {s.row["method"]: s.row["success"] for s in table}
    optimal = {s.row["method"]: s.judged["optimal"] for s in table}
    assert success["beam 16 by value"] > 0.9
    assert success["tree search 8"] > success["tree search 1"]
    assert (optimal["tree search 8"] >= optimal["tree search 1"]).all()
    arrives = {s.row["method"]: s.judged["arrives"].mean() for s in table}
    assert arrives["latent tree search 8"] > arrives["greedy"]
    assert arrives["latent beam 16 by value"] > arrives["greedy"]


def test_on_the_map_every_hop_is_an_edge(table):
    for s in table:
        assert s.judged["legal"].all() or s.row["regime"] == "closed_book"


def test_a_planner_is_trained_once_and_is_as_wide_as_the_arm(tiny_dataset, empty_home):
    size = get_size("tiny", {"budget": 4e8})
    first, again = (train_arm(size, tiny_dataset, "planner", 0) for _ in range(2))
    assert first.model.settings == {"model": "planner", "width": 16, "tied": True}
    assert first.steps == 3 and again.seconds == first.seconds
    assert [p.name for p in (empty_home / "data").rglob("planner-seed0-*")]


def test_another_model_has_no_latents_to_search(queries, tennessee):
    other = Trained(build("rnn", tennessee, width=8), None, 0, 0, 0.0)
    with pytest.raises(TypeError, match="searched with a planner, not a RNN"):
        planning.latent_rows(queries, other)
