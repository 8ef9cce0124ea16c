"""Decoding against plain loops: the same paths, the same look-ups, the same operations."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from torch.nn.functional import dropout
from toys import START, STEP, Markov, lists, markov

from citypaths.decoding import beam, greedy, sample
from citypaths.judging.metrics import judge
from citypaths.map.graph import build_graph
from citypaths.models import build
from citypaths.training.loop import TrainSettings, train


@pytest.fixture(scope="module")
def six(place):
    """Six cities in two rows; two_way, each joined to a few."""
    points = [(0.1 * (i % 2), 0.08 * i) for i in range(6)]
    graph = build_graph(place(points), 20, "two_way")
    assert set(np.diff(graph.indptr)) <= {2, 3, 4}
    return graph


@pytest.fixture(scope="module")
def small(six):
    torch.manual_seed(4)
    return build("rnn", six, width=6, softmaxes=2, endpoints="prefix")


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """A GRU that has seen enough to find some paths, and queries to ask it."""
    settings = TrainSettings(steps=120, batch_tokens=1024, evaluations=1)
    folder = tmp_path_factory.mktemp("search") / "gru"
    model = train("rnn", tiny_dataset, folder, settings, {"width": 24, "tied": True}).model
    rows = tiny_dataset.rows("test")
    return model, tiny_dataset.graph, rows.take(np.arange(0, len(rows), 3))


# Against plain loops


def plain_beam(model, source, target, max_hops, width, graph=None):
    """The path, alive beams stepped and look-ups of one query, with lists and sorting."""
    beams, steps, lookups = [(0.0, [source])], 0, 0
    for t in range(max_hops):
        log_p = torch.log_softmax(model.table.detach().double() * (1 + 0.1 * t), -1).tolist()
        waiting = [b for b in beams if b[1][-1] == target]
        best = max((b[0] for b in waiting), default=-np.inf)
        alive = [b for b in beams if b[1][-1] != target and b[0] > best]
        if not alive:
            break
        steps += len(alive)
        proposed = [(s + p, [*way, c]) for s, way in alive for c, p in enumerate(log_p[way[-1]])]
        legal = [x for x in proposed if graph is None or graph.is_edge(*x[1][-2:])]
        kept = sorted(legal + waiting, key=lambda b: -b[0])[:width]
        worst = kept[-1][0] if len(kept) == width else -np.inf
        lookups += sum(b[0] >= worst for b in proposed) if graph is not None else 0
        if not kept:
            return max(alive)[1], steps, lookups
        beams = kept
    best = max(beams, key=lambda b: (b[1][-1] == target, b[0]))
    return best[1], steps, lookups


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("width", [1, 2, 3, 9])
def test_beam_is_the_plain_beam(six, width, checked):
    graph = six if checked else None
    source, target = np.array([(a, b) for a in range(6) for b in range(6)]).T
    for seed in range(3):
        model = markov(6, seed)
        found = beam(model, source, target, 5, width=width, checked_by=graph)
        for i, (a, b) in enumerate(zip(source.tolist(), target.tolist(), strict=True)):
            path, steps, lookups = plain_beam(model, a, b, 5, width, graph)
            assert found.paths[i].tolist() == path
            assert found.flops[i] == steps * STEP + (steps > 0) * START
            assert found.lookups[i] == lookups
            assert found.expansions[i] == 0


def log_probability(model, path, target) -> float:
    source, target = torch.tensor([path[0]]), torch.tensor([target])
    state, total = model.start(source, target), 0.0
    for a, b in pairwise(path):
        logits, state = model.step(torch.tensor([a]), state)
        total += float(torch.log_softmax(logits.double(), -1)[0, b])
    return total


@pytest.mark.parametrize("checked", [False, True])
def test_a_wide_beam_finds_the_most_probable_arriving_path(six, small, checked):
    model = small.eval()
    with torch.no_grad():
        for source, target in ((0, 5), (3, 1), (4, 2)):
            ways = [(source, *inner) for n in range(4) for inner in product(range(6), repeat=n)]
            ways = [(*way, target) for way in ways if target not in way]
            if checked:
                ways = [way for way in ways if six.is_edge(way[:-1], way[1:]).all()]
            best = max(ways, key=lambda way: log_probability(model, way, target))
            options = {"checked_by": six} if checked else {}
            found = beam(model, [source], [target], 4, width=1300, **options)
            assert lists(found) == [list(best)]


@pytest.mark.parametrize("checked", [False, True])
def test_beam_of_one_is_greedy(trained, small, six, checked):
    rows = trained[2]
    for model, graph, source, target in (
        (*trained[:2], rows.source, rows.target),
        (small, six, np.repeat(np.arange(6), 6), np.tile(np.arange(6), 6)),
    ):
        options = {"checked_by": graph} if checked else {}
        one = beam(model, source, target, 15, width=1, **options)
        found = greedy(model, source, target, 15, **options)
        assert lists(one) == lists(found)
        np.testing.assert_array_equal(one.flops, found.flops)
        np.testing.assert_array_equal(one.lookups, found.lookups)


def test_greedy_is_the_plain_argmax(trained):
    model, _, rows = trained
    rows = rows.take(np.arange(20))
    found = greedy(model, rows.source, rows.target, 12)
    model.eval()
    with torch.no_grad():
        for i in range(20):
            path, target = [int(rows.source[i])], int(rows.target[i])
            state = model.start(torch.tensor(path), torch.tensor([target]))
            while path[-1] != target and len(path) <= 12:
                logits, state = model.step(torch.tensor(path[-1:]), state)
                path.append(int(logits.argmax()))
            assert found.paths[i].tolist() == path
            cost = (len(path) - 1) * model.flops_per_step() + model.flops_to_start
            assert found.flops[i] == cost and found.lookups[i] == 0


# Checked decoding


def test_checked_greedy_takes_the_best_legal_hop_and_counts_what_it_tried(six):
    for seed in range(5):
        model = markov(6, seed)
        found = greedy(model, range(6), [5] * 6, 8, checked_by=six)
        for start in range(6):
            path, tried = [start], 0
            while path[-1] != 5 and len(path) <= 8:
                order = model.table[path[-1]].detach().argsort(descending=True).tolist()
                legal = [six.is_edge(path[-1], city) for city in order]
                tried += legal.index(True) + 1
                path.append(order[legal.index(True)])
            assert found.paths[start].tolist() == path
            assert found.lookups[start] == tried
            assert found.flops[start] == (len(path) - 1) * STEP + (start != 5) * START


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
def test_checked_decoding_never_takes_an_illegal_hop(trained, decoder):
    model, graph, rows = trained
    free = decoder(model, rows.source, rows.target, 20)
    found = decoder(model, rows.source, rows.target, 20, checked_by=graph)
    assert not judge(graph, rows.source, rows.target, rows.km, free.paths)["legal"].all()
    assert judge(graph, rows.source, rows.target, rows.km, found.paths)["legal"].all()
    assert (free.lookups == 0).all() and (found.lookups > 0).all()


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
def test_a_dead_end_ends_the_path_after_trying_everything(chain, decoder):
    model = markov(5, 0, 0.1)
    found = decoder(model, [2, 4], [0, 1], 9, checked_by=chain)
    assert lists(found) == [[2, 3, 4], [4]]
    assert found.lookups[1] == 5
    assert found.flops.tolist() == [3 * STEP + START, STEP + START]


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
def test_a_graph_without_edges(scattered, decoder):
    assert lists(decoder(markov(3, 0), [0, 1], [1, 1], 4, checked_by=scattered)) == [[0], [1]]


# Sampling


@pytest.mark.parametrize("scale", [0.5, 1.0, 2.0])
def test_sampled_frequencies_are_the_softmax(scale):
    model, n = markov(6, 7, scale), 6000
    found = sample(model, [0] * n, [5] * n, 1, seed=3)
    counts = np.bincount(found.paths.padded()[:, 1], minlength=6)
    p = torch.softmax(model.table[0].detach().double(), -1).numpy()
    assert chisquare(counts, n * p).pvalue > 0.01


def test_checked_sampling_renormalises_over_legal_hops(six):
    model, n = markov(6, 7, 1.0), 6000
    found = sample(model, [0] * n, [5] * n, 1, seed=3, checked_by=six)
    near = six.neighbours(0)
    counts = np.bincount(found.paths.padded()[:, 1], minlength=6)
    assert set(np.flatnonzero(counts)) == set(near.tolist())
    p = torch.softmax(model.table[0].detach().double(), -1).numpy()[near]
    assert chisquare(counts[near], n * p / p.sum()).pvalue > 0.01
    chance = p.sum()  # a first draw is legal with this chance, and then takes one look-up
    assert (found.lookups == 1).mean() == pytest.approx(chance, abs=4 * np.sqrt(0.25 / n))


def test_sampling_follows_its_seed(trained):
    model, _, rows = trained
    first, again, other = (
        lists(sample(model, rows.source, rows.target, 9, seed=s)) for s in (1, 1, 2)
    )
    assert first == again != other
    state = torch.get_rng_state()
    sample(model, rows.source, rows.target, 2)
    assert torch.equal(state, torch.get_rng_state())


def test_samples_of_a_model_that_is_sure_are_greedy():
    model, ids = markov(30, 5, 1e5), np.arange(30)
    drawn, best = (decoder(model, ids, 29 - ids, 9) for decoder in (sample, greedy))
    assert lists(drawn) == lists(best)


# Edges of the interface


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
@pytest.mark.parametrize("hops", [1, 8, 9])
def test_hop_limit(decoder, hops, place):
    model = Markov(np.eye(4)[[1, 2, 0, 3]] * 40)  # 0 -> 1 -> 2 -> 0, and 3 is out of reach
    circle = build_graph(place([(0, 0), (0, 0.1), (0, 0.2), (9, 9)]), 30, "two_way")
    found = decoder(model, [0, 1], [3, 3], hops, checked_by=circle)
    assert lists(found)[0] == [i % 3 for i in range(hops + 1)]
    assert found.paths.lengths.tolist() == [hops + 1] * 2


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
def test_source_that_is_the_target(decoder, small):
    found = decoder(small, [2, 0, 4], [2, 3, 4], 6)
    assert lists(found)[0] == [2] and lists(found)[2] == [4]
    assert found.flops[0] == found.flops[2] == 0 < found.flops[1]


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
def test_no_queries(decoder, small):
    found = decoder(small, [], [], 6)
    assert len(found.paths) == 0 and found.cost()["inference_flops"] == 0


@pytest.mark.parametrize("decoder", [greedy, beam])
def test_batch_size_changes_nothing(trained, decoder):
    model, graph, rows = trained
    rows = rows.take(np.arange(60))
    for options in ({}, {"checked_by": graph}):
        whole = decoder(model, rows.source, rows.target, 15, **options)
        for batch in (1, 7, 59):
            parts = decoder(model, rows.source, rows.target, 15, batch=batch, **options)
            assert lists(parts) == lists(whole)
            np.testing.assert_array_equal(parts.flops, whole.flops)
            np.testing.assert_array_equal(parts.lookups, whole.lookups)


@pytest.mark.parametrize("decoder", [greedy, beam, sample])
@pytest.mark.parametrize("training", [True, False])
def test_the_mode_and_the_gradients_are_left_alone(six, decoder, training):
    model = build("rnn", six, width=4).train(training)
    model.head.register_forward_hook(lambda head, _, out: dropout(out, 0.9, head.training))
    again = [lists(decoder(model, range(5), [5] * 5, 6)) for _ in range(2)]
    assert again[0] == again[1], "dropout is off"
    assert model.training == training
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def test_argument_errors(small):
    for decoder in (greedy, beam, sample):
        with pytest.raises(ValueError, match="max_hops is at least 1, not 0"):
            decoder(small, [0], [1], 0)
        with pytest.raises(ValueError, match="2 sources but 3 targets"):
            decoder(small, [0, 1], [1, 2, 3], 4)
        with pytest.raises(TypeError, match="widht"):
            decoder(small, [0], [1], 4, widht=3)
        with pytest.raises(IndexError):
            decoder(small, [0], [77], 4)
    with pytest.raises(ValueError, match="width is at least 1"):
        beam(small, [0], [1], 4, width=0)


def test_found_costs_are_means_a_query(six):
    found = greedy(markov(6, 0), [0, 1, 5], [5, 5, 5], 7, checked_by=six)
    cost = found.cost()
    assert cost["inference_flops"] == found.flops.sum() / 3
    assert cost["lookups"] == found.lookups.mean() and cost["expansions"] == 0
    assert cost["seconds_per_query"] == pytest.approx(found.seconds / 3)
