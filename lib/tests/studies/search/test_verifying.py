"""Verifiers on a real graph: what is drawn once, judged exactly, and ranked by scorers."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pandas as pd
import pytest

from citypaths.decoding import LOST, Likelihood
from citypaths.judging.ledger import _check
from citypaths.judging.metrics import SLACK, by_hops
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.sizes import get_size
from citypaths.training.loop import TrainSettings, train
from studies.search import verifying
from studies.search.energies import Doubt, Inconsistency

NS = [1, 4, 16]


@pytest.fixture(scope="module")
def model(tiny_dataset, tmp_path_factory):
    recipe = TrainSettings(200, 1024, 1.6e-2, evaluations=1)
    settings = {"width": 32, "tied": True}
    return train("rnn", tiny_dataset, tmp_path_factory.mktemp("gru"), recipe, settings).model.eval()


@pytest.fixture(scope="module")
def tried(tiny_dataset, model):
    return verifying.Tried.of(Queries.of(tiny_dataset).uncontained().first(50), model, 32, 7)


def test_what_is_drawn_is_judged_exactly(tried, tennessee):
    assert np.bincount(tried.drawn.query, tried.drawn.count).tolist() == [32.0] * 50
    paths = list(tried.drawn.paths)
    for i in range(0, len(paths), 9):
        path, target = paths[i].tolist(), tried.target[i]
        legal = all(b in tennessee.neighbours(a) for a, b in pairwise(path))
        assert tried.arrived[i] == (path[-1] == target)
        assert np.isfinite(tried.km[i]) == (legal and path[-1] == target and len(path) > 0)
        if np.isfinite(tried.km[i]):
            shortest = tried.queries.rows.km[tried.drawn.query[i]]
            assert tried.good[i] == (tried.km[i] <= (1 + SLACK) * shortest)
    assert 0 < tried.good.sum() < len(tried.good)


def test_the_likelihood_needs_no_second_look(tried, model):
    again = tried.energies(Likelihood(model))
    np.testing.assert_allclose(again[tried.arrived], tried.likelihood[tried.arrived], rtol=1e-4)
    assert (tried.likelihood[~tried.arrived] == LOST).all()


def test_the_exact_verifier_is_the_best_there_is(tried):
    exact, own = (tried.curve(e, NS) for e in (tried.km, tried.likelihood))
    assert (np.diff(exact, axis=1) >= -1e-9).all(), "an exact verifier never over-optimises"
    assert (exact.to_numpy() >= own.to_numpy() - 1e-9).all(), "nothing beats the exact one"
    np.testing.assert_allclose(exact[1], own[1], atol=1e-9)


def test_roc_and_its_area_by_brute_force(tried):
    energies = np.round(tried.likelihood, 1)  # with ties
    some = np.flatnonzero(tried.arrived)
    each = np.repeat(some, tried.drawn.count[some])
    good, bad = (energies[each[tried.good[each] == kind]] for kind in (True, False))
    wins = (good[:, None] < bad).mean() + (good[:, None] == bad).mean() / 2
    assert tried.auc(energies) == pytest.approx(wins, abs=1e-9)
    assert tried.auc(-energies) == pytest.approx(1 - wins, abs=1e-9)
    roc = tried.roc(energies)
    assert roc.iloc[0].tolist() == [0, 0] and roc.iloc[-1].tolist() == pytest.approx([1, 1])
    assert (np.diff(roc, axis=0) >= 0).all()


def test_reliability_counts_every_attempt_that_arrived(tried):
    table = tried.reliability(tried.likelihood, 5)
    count = tried.drawn.count[tried.arrived]
    assert table["attempts"].sum() == count.sum()
    mean = (np.exp(-tried.likelihood[tried.arrived]) * count).sum() / count.sum()
    assert (table["predicted"] * table["attempts"]).sum() / count.sum() == pytest.approx(mean)
    assert table["predicted"].is_monotonic_increasing
    sure = np.where(tried.good, 0.0, 60.0)
    assert verifying.calibration_error(tried.reliability(sure)) == pytest.approx(0, abs=1e-9)
    wrong = verifying.calibration_error(tried.reliability(60.0 - sure))
    assert wrong > 0.9  # a bin may hold both kinds


def test_weights_are_the_best_of_those_tried(tried):
    helpful = np.where(tried.good, 0.0, 1.0)
    own, other = Fixed(tried.likelihood), Fixed(helpful)
    scorers = {"own": own, "other": other, "harmful": Fixed(-helpful)}
    both = verifying.weighted(tried, scorers, ["own", "other"], 16)
    first, weight = both.weights
    unit = tried.likelihood[tried.arrived].std() / helpful[tried.arrived].std()
    rates = [
        tried.curve(tried.likelihood + w * unit * helpful, [16]).mean()[16]
        for w in verifying.WEIGHTS
    ]
    assert both.parts == (own, other) and first == 1
    assert weight == pytest.approx(verifying.WEIGHTS[int(np.argmax(rates))] * unit)
    assert max(rates) > tried.curve(tried.likelihood, [16]).mean()[16]
    harmful = verifying.weighted(tried, scorers, ["own", "harmful"], 16)
    assert harmful.weights[1] == pytest.approx(min(verifying.WEIGHTS) * unit)
    np.testing.assert_allclose(tried.energies(both), tried.likelihood + weight * helpful)


class Fixed:
    """A scorer with an answer for each attempt."""

    def __init__(self, energies: np.ndarray) -> None:
        self.energies = energies

    def score(self, source, target, paths):
        return self.energies

    def flops(self, paths):
        return np.full(len(paths), 5.0)


def test_tables_and_rows(tried):
    energies = {verifying.EXACT: tried.km, "own": tried.likelihood}
    table = verifying.verifier_table(tried, energies, {"own": Fixed(tried.likelihood)}, 16)
    assert table.loc["own", "FLOPs a path"] == 5 and np.isnan(table.iloc[0]["FLOPs a path"])
    curve = tried.curve(tried.likelihood, NS).mean()
    assert table.loc["own", [f"best of {n}" for n in NS]].tolist() == pytest.approx(curve.tolist())
    groups = by_hops(tried.queries.rows.hops)
    rows = verifying.curve_rows(tried, energies, groups, 16, "gru")
    for row in rows:
        _check(row)
    frame = pd.DataFrame(rows)
    assert len(frame) == 2 * 3 * (1 + len(groups.categories))
    assert set(frame["study"]) == {"curve"} and frame["attempts"].isin(NS).all()
    assert set(frame["subset"]) == {"", *(f"{group} hops" for group in groups.categories)}
    each = ["verifier", "attempts"]
    whole = frame[frame["subset"] == ""].set_index(each)["success"]
    parts = frame[frame["subset"] != ""].groupby(each)
    means = parts.apply(lambda part: np.average(part["success"], weights=part["queries"]))
    pd.testing.assert_series_equal(means.sort_index(), whole.sort_index(), check_names=False)
    regimes = frame.groupby("verifier")["regime"].unique().map(list).to_dict()
    assert regimes == {verifying.EXACT: ["checked"], "own": ["closed_book"]}


def test_powers():
    assert verifying.powers(17, 4) == [1, 4, 16] and verifying.powers(16) == [1, 2, 4, 8, 16]
    assert verifying.powers(1) == [1]


def test_networks_of_the_notebook(tiny_dataset, tennessee, tmp_path, monkeypatch, tried):
    """Every network trains at a small size and scores attempts; judges find their generator."""
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    size = get_size("tiny", {"budget": 1e8, "batch_tokens": 256})
    own, reverse, reach, value = (
        train_arm(size, tiny_dataset, arm, 0)
        for arm in ("gru-16", "reverse-gru-16", "reach", "value")
    )
    names = ["cities", "whole path, blind"]
    judges = verifying.train_judges(size, tiny_dataset, own, 0, names)
    scorers = {"own": Likelihood(own.model), "reverse": reverse.model.eval()}
    scorers["detour"] = Inconsistency(value.model.eval(), tennessee)
    scorers["doubt"] = Doubt(reach.model.eval())
    scorers |= {name: trained.model.eval() for name, trained in judges.items()}
    for name, scorer in scorers.items():
        energies = tried.energies(scorer)
        assert (energies[~tried.arrived] >= LOST / 2).all(), name
        assert np.isfinite(energies[tried.arrived & (tried.drawn.paths.lengths > 1)]).all(), name
