"""The searches of notebook 05 as methods, on a real graph and with trained networks."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from toys import ExactValue, counted_flops

from citypaths.data.batches import batch_of
from citypaths.decoding import Likelihood, PathLength, Sum, beam, best_of, greedy, stitched
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.methods import score_methods
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.models import build
from citypaths.sizes import get_size
from citypaths.training.loop import Trained, TrainSettings, train
from studies.search.energies import Inconsistency
from studies.search.evolution import evolve
from studies.search.sampling import blind, stochastic_beam
from studies.search.study import a_star, cost_and_length, method, safest
from studies.search.tree import beam_with_value, mcts
from studies.search.worlds import LatentWorld, MapWorld


@pytest.fixture(scope="module")
def queries(tiny_dataset):
    return Queries.of(tiny_dataset).uncontained().first(60)


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory) -> dict[str, Trained]:
    """A GRU, one that walks backwards, a planner and kilometres to go, trained for seconds each."""
    recipes = {
        "rnn": (150, 1024, 8e-3, {"width": 24, "tied": True}),
        "reverse": (100, 1024, 8e-3, {"width": 24, "tied": True}),
        "planner": (80, 1024, 2e-2, {"width": 32, "tied": True}),
        "value": (250, 2048, 1e-2, {}),
    }
    made = {}
    for name, (steps, tokens, rate, settings) in recipes.items():
        recipe = TrainSettings(steps, tokens, rate, evaluations=1)
        folder = tmp_path_factory.mktemp(name)
        made[name] = train(name, tiny_dataset, folder, recipe, settings)
        made[name].model.eval()
    return made


# With a model


@pytest.fixture(scope="module")
def searched(queries, trained, tennessee):
    rnn, check = trained["rnn"], {"checked_by": tennessee}
    own, exact = Likelihood(rnn.model), PathLength(tennessee)
    both = Sum(own, trained["reverse"].model)
    asked = partial(method, "gru", [rnn], rnn.model)
    lives = {"population": 16, "generations": 8, "fitness": exact}
    draw, by_length = partial(best_of, seed=0), {"scorer": exact} | check
    methods = [
        asked(greedy, "greedy"),
        asked(beam, "beam 8", width=8),
        asked(stochastic_beam, "stochastic beam 8", width=8),
        asked(best_of, "best of 32, own", "own likelihood", n=32, scorer=own),
        asked(best_of, "best of 32, reverse", "own + reverse", n=32, scorer=both),
        *(asked(draw, f"best of {n}", "exact length", n=n, **by_length) for n in (4, 32)),
        asked(stitched, "stitched 32", "exact length", n=32, **check),
        asked(evolve, "evolution, 16 x 8", "exact length", **lives, **check),
        method("none", [], tennessee, blind, "blind, 8 walks", walks=8),
    ]
    return score_methods(methods, queries, study="searches")


def test_every_row_says_what_it_is(searched, trained):
    rows = {s.row["method"]: s.row for s in searched}
    columns = ("model", "regime", "family", "attempts", "verifier")
    assert len(rows) == len(searched) and all(set(row) <= set(COLUMNS) for row in rows.values())
    assert {name: tuple(row[c] for c in columns) for name, row in rows.items()} == {
        "greedy": ("gru", "closed_book", "greedy", 1, ""),
        "beam 8": ("gru", "closed_book", "beam", 8, ""),
        "stochastic beam 8": ("gru", "closed_book", "beam", 8, ""),
        "best of 32, own": ("gru", "closed_book", "best of N", 32, "own likelihood"),
        "best of 32, reverse": ("gru", "closed_book", "best of N", 32, "own + reverse"),
        "best of 4": ("gru", "checked", "best of N", 4, "exact length"),
        "best of 32": ("gru", "checked", "best of N", 32, "exact length"),
        "stitched 32": ("gru", "checked", "best of N", 32, "exact length"),
        "evolution, 16 x 8": ("gru", "checked", "evolution", 128, "exact length"),
        "blind, 8 walks": ("none", "open_map", "floor", 8, ""),
    }
    for row in rows.values():
        assert row["study"] == "searches"
        if row["model"] == "gru":
            assert (row["lookups"] == 0) == (row["regime"] == "closed_book")
            assert row["parameters"] == trained["rnn"].model.parameters_count
            assert row["training_flops"] == trained["rnn"].training_flops
    assert "parameters" not in rows["blind, 8 walks"] and rows["blind, 8 walks"]["expansions"] > 0


def test_checked_attempts_pay(searched):
    rows = {s.row["method"]: s for s in searched}
    success = {name: s.row["success"] for name, s in rows.items()}
    assert success["best of 32"] > success["greedy"] + 0.1
    assert success["best of 32"] >= success["best of 4"] - 0.05
    assert success["blind, 8 walks"] < success["best of 32"]
    km = {name: s.judged["ratio"].where(s.judged["arrives"]).to_numpy() for name, s in rows.items()}
    both = ~np.isnan(km["best of 32"]) & ~np.isnan(km["stitched 32"])
    assert (km["stitched 32"][both] <= km["best of 32"][both] + 1e-9).mean() > 0.7


# Heuristics


def test_learned_heuristics(queries, trained, tennessee):
    value = trained["value"]
    plain = partial(method, "none", [], tennessee, a_star, part=0)
    guided = partial(method, "value", [value], tennessee, a_star, part=0)
    methods = [plain("A*"), plain("weighted A* (1.05)", weight=1.05)]
    methods += [guided("mean", value=value.model), guided("low", value=value.model.at(0.1))]
    scored = score_methods(methods, queries)
    assert {s.row["family"] for s in scored} == {"graph search"}
    assert {s.row["regime"] for s in scored} == {"open_map"}
    table = cost_and_length(scored)
    assert table.loc["A*", "ratio"] == pytest.approx(1, abs=1e-9)
    assert (table["expansions"].iloc[2:] < table.loc["A*", "expansions"]).all()
    assert table["ratio"].iloc[3] <= table["ratio"].iloc[2] and (table["ratio"] >= 1 - 1e-9).all()
    assert safest(scored, 1e9) == table["expansions"].iloc[2:].idxmin()
    assert safest(scored, 0.5) == table["ratio"].iloc[2:].idxmin()


def test_cost_to_go(queries, trained):
    model, rows = trained["value"].model, queries.rows
    source, target = torch.as_tensor(rows.source).long(), torch.as_tensor(rows.target).long()
    with torch.no_grad():
        mean, low = model.togo(source, target), model.at(0.1).togo(source, target)
        assert (low >= model.straight_km(source, target) - 1e-3).all() and (low <= mean + 20).all()
        assert not model.togo(target, target).any(), "nothing is left at the target"
        same = model.togo(source, target[1].expand(60))
    np.testing.assert_allclose(model.table(target[:3].numpy())[1, source], same, rtol=1e-4)
    assert counted_flops(lambda: model(source, target)) == model.flops_per_call * len(source)
    error = (mean.numpy() / rows.km - 1).__abs__().mean()
    straight = (queries.straight_km / rows.km - 1).__abs__().mean()
    assert error < 0.7 * straight, "better than the great circle"


def test_inconsistency_of_a_shortest_path_is_nothing(queries, tennessee):
    exact, rows = ExactValue(tennessee, queries.rows.target), queries.rows
    energies = Inconsistency(exact, tennessee).score(rows.source, rows.target, rows.paths)
    np.testing.assert_allclose(energies, 0, atol=1e-4)
    length = PathLength(tennessee).score(rows.source, rows.target, rows.paths)
    np.testing.assert_allclose(length, rows.km, rtol=1e-6)


def test_reach_learns_who_is_near(tiny_dataset, tmp_path):
    settings = TrainSettings(steps=150, batch_tokens=2048, evaluations=1, learning_rate=1e-2)
    batch = batch_of(tiny_dataset.rows("valid"))
    torch.manual_seed(0)
    untrained = build("reach", tiny_dataset.graph, width=64)
    trained = train("reach", tiny_dataset, tmp_path, settings, {"width": 64}).model
    with torch.no_grad():
        before, after = (float(model.loss(batch)) for model in (untrained, trained))
    assert after < 0.7 * before


# Trees


@pytest.fixture(scope="module")
def trees(queries, trained, tennessee):
    rnn, value, planner = (trained[name] for name in ("rnn", "value", "planner"))
    near = MapWorld(tennessee, rnn.model, value.model.at(0.5))
    plain = partial(method, "gru", [rnn], MapWorld(tennessee, rnn.model, None), mcts)
    alone = partial(method, "value", [value], MapWorld(tennessee, None, value.model))
    asked = partial(method, "planner", [planner], planner.model)
    dreams = partial(method, "planner", [planner], LatentWorld(planner.model))
    methods = [
        *(plain(f"tree search {n}", "great circle", simulations=n) for n in (1, 8)),
        method("gru", [rnn, value], near, mcts, "tree search, value", "learned", simulations=8),
        alone(beam_with_value, "beam 16 by value", "learned", width=16),
        asked(greedy, "greedy"),
        dreams(beam_with_value, "latent beam 16 by value", "learned", width=16),
        dreams(mcts, "latent tree search 8", "learned", simulations=8),
    ]
    return {s.row["method"]: s for s in score_methods(methods, queries.first(20))}


def test_trees_say_what_they_are(trees, trained):
    rows = {
        name: (s.row["regime"], s.row["family"], s.row["attempts"]) for name, s in trees.items()
    }
    assert rows == {
        "tree search 1": ("open_map", "tree search", 1),
        "tree search 8": ("open_map", "tree search", 8),
        "tree search, value": ("open_map", "tree search", 8),
        "beam 16 by value": ("open_map", "tree search", 16),
        "greedy": ("closed_book", "greedy", 1),
        "latent beam 16 by value": ("closed_book", "tree search", 16),
        "latent tree search 8": ("closed_book", "tree search", 8),
    }
    for s in trees.values():
        on_map = s.row["regime"] == "open_map"
        assert (s.row["lookups"] > 0) == (s.row["expansions"] > 0) == on_map
        assert s.row["inference_flops"] > 0 and (s.judged["legal"].all() or not on_map)
    both = [trained[name] for name in ("rnn", "value")]
    row = trees["tree search, value"].row
    assert row["parameters"] == sum(one.model.parameters_count for one in both)
    assert row["training_flops"] == sum(one.training_flops for one in both)


def test_trees_pay(trees):
    success = {name: s.row["success"] for name, s in trees.items()}
    optimal = {name: s.judged["optimal"] for name, s in trees.items()}
    assert success["beam 16 by value"] > 0.9
    assert success["tree search 8"] > success["tree search 1"]
    assert (optimal["tree search 8"] >= optimal["tree search 1"]).all()
    arrives = {name: s.judged["arrives"].mean() for name, s in trees.items()}
    assert arrives["latent tree search 8"] > arrives["greedy"]
    assert arrives["latent beam 16 by value"] > arrives["greedy"]


def test_a_planner_is_trained_once_and_is_as_wide_as_the_arm(tiny_dataset, empty_home):
    size = get_size("tiny", {"budget": 4e8})
    first, again = (train_arm(size, tiny_dataset, "planner", 0) for _ in range(2))
    assert first.model.settings == {"model": "planner", "width": 16, "tied": True}
    assert first.steps == 3 and again.seconds == first.seconds
    assert [p.name for p in (empty_home / "data").rglob("planner-seed0-*")]
