"""Methods on the same queries: run, judged, and said in columns of the ledger."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
import torch

from citypaths import decoding, lab
from citypaths.judging import methods as scoring
from citypaths.judging.ledger import COLUMNS
from citypaths.judging.methods import Method
from citypaths.map.best_first import best_first
from citypaths.models import build
from citypaths.training.loop import Trained


@pytest.fixture(scope="module", autouse=True)
def home(empty_home):
    return empty_home


def test_loops_reach_the_model(queries):
    """A model with a test-time dial must see it, in training form and while decoding."""
    seen = []

    class Dial(torch.nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def __getattr__(self, name):
            return super().__getattr__(name) if name == "inner" else getattr(self.inner, name)

        def start(self, source, target, loops=None):
            seen.append(loops)
            return self.inner.start(source, target)

    model = Dial(build("rnn", queries.graph, width=8))
    few = queries.first(5)
    few.decode(decoding.greedy, model, loops=7)
    few.decode(decoding.beam, model, width=2, loops=9)
    assert seen == [7, 9]


def test_a_method_names_its_columns_once(queries):
    """What a method says of itself is its ledger row; what it does not know is left out."""
    few = queries.first(10)

    def shortest(asked: lab.Queries):
        return best_first(asked.graph, asked.rows.source, asked.rows.target)

    known = {"family": "graph search", "regime": "open_map"}
    search = Method(name="A*", run=shortest, **known)
    (one,) = scoring.score_methods([search], few, study="floors", split="uncontained")
    assert one.name == "A*" and one.row["success"] == 1.0 and one.row["study"] == "floors"
    said = {"method": "A*", "model": "none", "attempts": 1, "verifier": "", **known}
    assert one.row.items() >= said.items() and set(one.row) <= set(COLUMNS)
    assert not {"loops", "rounds", "share", "parameters", "memory_numbers"} & set(one.row)
    again = scoring.score(few, one.found, search, study="floors", split="uncontained")
    assert again.row == one.row


def test_a_method_of_networks_counts_them_all(queries):
    model = build("rnn", queries.graph, width=8)
    trained = Trained(model, pd.DataFrame(), 0, 1000, 0.0)
    names = {"name": "beam 8", "family": "beam", "attempts": 8}
    both = Method.of("gru-16", trained, trained, regime="checked", **names)
    assert both.columns["parameters"] == 2 * model.parameters_count
    assert both.columns["training_flops"] == 2000 and both.columns["model"] == "gru-16"
    few = queries.first(5)
    found = few.decode(decoding.beam, model, checked_by=few.graph)
    assert scoring.score(few, found, both).name == "gru-16, beam 8, checked"


@pytest.mark.parametrize("wrong", [{"family": "luck"}, {"regime": "open"}])
def test_an_unknown_family_or_regime_is_refused(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} is one of"):
        Method(**{"name": "x", "family": "floor", "regime": "checked"} | wrong)


def test_queries_are_decoded_whole_or_in_parts(queries):
    few, model = queries.first(25), build("rnn", queries.graph, width=8)
    whole, parts = (few.decode(decoding.greedy, model, part=n) for n in (0, 10))
    assert np.array_equal(whole.paths.tokens, parts.paths.tokens)
    assert np.array_equal(whole.flops, parts.flops)
    drawn = few.decode(decoding.sample, model, part=10, name="sample", seed=3)
    ids = few.rows.source[10:20], few.rows.target[10:20]
    second = decoding.sample(model, *ids, few.max_hops, seed=13)
    inner = drawn.paths.take(np.arange(10, 20))
    assert np.array_equal(inner.tokens, second.paths.tokens), "a seed of its own for each part"
