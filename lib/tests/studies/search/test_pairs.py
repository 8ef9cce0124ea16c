"""Networks on pairs: what they mean, what they cost, and that training teaches them."""

from __future__ import annotations

import math
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from toys import ExactValue, counted_flops, same

from citypaths.data.batches import Batch, batch_of
from citypaths.decoding import LOST
from citypaths.map.graph import jittered, rounded
from citypaths.map.paths import Paths
from citypaths.map.shortest_paths import shortest_path_trees
from citypaths.models import build, registered
from citypaths.training.checkpoints import load_trained
from citypaths.training.loop import TrainSettings, _Run, train, training_flops
from studies.search import pairs as pairs_module
from studies.search.energies import Doubt, Inconsistency
from studies.search.pairs import MOST_HOPS, CostToGo, HopsToGo
from studies.search.study import a_star

SMALL = {"width": 32}
QUANTILES = (None, 0.05, 0.3, 0.5, 0.9)


@pytest.fixture(params=["value", "reach"])
def network(request, tennessee):
    torch.manual_seed(2)
    return wild(build(request.param, tennessee, **SMALL))


def wild(network):
    """Weights large enough that outputs differ from pair to pair."""
    with torch.no_grad():
        for parameter in network.parameters():
            parameter += 0.5 * torch.randn_like(parameter)
    return network


@pytest.fixture(scope="module")
def value(tennessee):
    torch.manual_seed(1)
    return wild(CostToGo(tennessee, **SMALL))


@pytest.fixture(scope="module")
def reach(tennessee):
    torch.manual_seed(1)
    return wild(HopsToGo(tennessee, **SMALL))


@pytest.fixture(scope="module")
def trained(tiny_dataset, tmp_path_factory):
    """Both networks after a short training, in their folders."""
    folder = tmp_path_factory.mktemp("pairs")
    settings = TrainSettings(steps=200, batch_tokens=1024, evaluations=1)
    return {
        name: (train(name, tiny_dataset, folder / name, settings, {}), folder / name)
        for name in ("value", "reach")
    }


def some_pairs(graph, count: int = 200, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor]:
    city, target = np.random.default_rng(seed).integers(0, len(graph), (2, count))
    return torch.as_tensor(city), torch.as_tensor(target)


# What the numbers mean


def test_probabilities_sum_to_one(network, tennessee):
    p = network(*some_pairs(tennessee)).softmax(-1)
    assert (p >= 0).all() and p.std(0).max() > 0.01
    torch.testing.assert_close(p.sum(-1), torch.ones(len(p)))


@pytest.mark.parametrize("quantile", QUANTILES)
def test_togo_is_at_least_the_great_circle_and_0_at_the_target(value, tennessee, quantile):
    city, target = some_pairs(tennessee)
    with torch.no_grad():
        togo = value.at(quantile).togo(city, target).numpy()
        straight = tennessee.distance_km(city.numpy(), target.numpy())
        assert (togo >= straight * (1 - 1e-6)).all() and (togo > 1.01 * straight).any()
        assert (togo <= straight * (1 + 4) * (1 + 1e-6)).all()
        assert (value.at(quantile).togo(city, city) == 0).all()


def test_straight_km_are_the_graphs(value, tennessee):
    at = value.straight_km(
        torch.as_tensor(tennessee.edge_sources), torch.as_tensor(tennessee.indices)
    )
    np.testing.assert_allclose(at.numpy(), tennessee.km, rtol=1e-6)


def test_the_mean_and_the_quantiles_are_those_of_the_distribution(value, tennessee):
    city, target = some_pairs(tennessee)
    with torch.no_grad():
        p, support = value(city, target).softmax(-1).double().numpy(), value.support.numpy()
        np.testing.assert_allclose(value.excess(city, target), p @ support, rtol=1e-4)
        middle = np.cumsum(p, -1) - p / 2
        for quantile in QUANTILES[1:]:
            expected = [np.interp(quantile, row, support) for row in middle]
            np.testing.assert_allclose(
                value.at(quantile).excess(city, target), expected, rtol=2e-3, atol=1e-4
            )


def test_quantiles_rise(value, tennessee):
    city, target = some_pairs(tennessee)
    with torch.no_grad():
        rows = [value.at(q / 20).togo(city, target) for q in range(1, 20)]
    assert all((low <= high + 1e-3).all() for low, high in pairwise(rows))
    assert (rows[-1] > 1.1 * rows[0]).any()


def test_a_quantile_shares_the_weights(tennessee, value):
    pair, low = some_pairs(tennessee), value.at(0.2)
    assert all(a is b for a, b in zip(low.parameters(), value.parameters(), strict=True))
    assert value.quantile is None and not torch.equal(low.togo(*pair), value.togo(*pair))
    assert low.flops_per_call == value.flops_per_call and low.device == value.device


def test_within_k_hops_rises_to_ever(reach, tennessee):
    city, target = some_pairs(tennessee)
    with torch.no_grad():
        chances = [reach.log_within(city, target, k).exp() for k in range(MOST_HOPS + 3)]
        p = reach(city, target).softmax(-1)
    chances, away = torch.stack(chances), city != target
    assert (chances.diff(dim=0) >= -1e-6).all() and (chances <= 1).all()
    assert (chances[0][away] == 0).all() and (chances[:, ~away] == 1).all()
    for k in (1, 4, 8):
        torch.testing.assert_close(chances[k][away], p[away, :k].sum(-1))
    for k in (MOST_HOPS, MOST_HOPS + 2):
        torch.testing.assert_close(chances[k][away], 1 - p[away, -1])
    each = torch.arange(len(city)) % 5
    at = reach.log_within(city, target, each).exp()
    torch.testing.assert_close(at, chances[each, torch.arange(len(city))])


# Tables and operations


def test_tables_are_the_pairwise_calls(value, tennessee):
    targets = np.array([5, 0, 5, len(tennessee) - 1])
    for quantile in (None, 0.3):
        network = value.at(quantile)
        table = network.table(targets)
        assert table.shape == (4, len(tennessee))
        for row, target in zip(table, targets, strict=True):
            for city in range(0, len(tennessee), 37):
                with torch.no_grad():
                    one = network.togo(torch.tensor([city]), torch.tensor([target]))[0]
                assert row[city] == pytest.approx(one.item(), rel=1e-4, abs=1e-6)


def test_a_star_asks_by_the_table(value, tennessee, monkeypatch):
    source, target = (x[:60] for x in np.triu_indices(12, 1))
    whole = a_star(tennessee, source, target, 0, value=value)
    monkeypatch.setattr(pairs_module, "AT_ONCE", 1)
    same(a_star(tennessee, source, target, 0, value=value), whole)
    assert (whole.flops % value.flops_per_call == 0).all() and whole.flops.max() > 0


def test_operations_are_those_that_torch_counts(tennessee):
    city, target = some_pairs(tennessee, 50)
    for name in ("value", "reach"):
        network = build(name, tennessee, **SMALL)
        counted = counted_flops(lambda net=network: net(city, target))
        assert counted == 50 * network.flops_per_call > 0
    value = CostToGo(tennessee, **SMALL)
    for quantile in (None, 0.3):
        counted = counted_flops(lambda q=quantile: value.at(q).togo(city, target))
        assert counted == 50 * value.flops_per_call
    counted = counted_flops(lambda: value.table(target[:2].numpy()))
    assert counted == 2 * len(tennessee) * value.flops_per_call


@pytest.mark.parametrize("name", ["value", "reach"])
def test_operations_of_training(tiny_dataset, name):
    network = build(name, tiny_dataset.graph, **SMALL)
    batch = batch_of(tiny_dataset.rows("valid").take(np.arange(30)))
    tokens = batch.labels.numel()
    assert counted_flops(lambda: network.loss(batch)) == tokens * network.flops_per_step()
    assert training_flops(network, tokens) == 3 * tokens * network.flops_per_step()


# Pairs and losses


@pytest.mark.parametrize("inside", [0.0, 0.5, 1.0])
def test_pairs_are_spans_of_the_paths(tiny_dataset, inside):
    graph, rows = tiny_dataset.graph, tiny_dataset.rows("valid").take(np.arange(80))
    network = CostToGo(graph, **SMALL)
    network.inside = inside
    pairs = network.train().pairs(batch_of(rows))
    shorter = 0
    for i, path in enumerate(rows.paths):
        path, hops = path.tolist(), len(path) - 1
        assert pairs.real[i].tolist() == [t < hops for t in range(pairs.real.shape[1])]
        km = np.append(0, np.cumsum(graph.km[graph.edge_index(path[:-1], path[1:])]))
        for t in range(hops):
            end = t + int(pairs.hops[i, t])
            assert (pairs.city[i, t], pairs.target[i, t]) == (path[t], path[end])
            assert float(pairs.km[i, t]) == pytest.approx(km[end] - km[t], rel=1e-4)
            shorter += end < hops
    assert (shorter > 0) == (inside > 0)
    held = network.eval().pairs(batch_of(rows))
    assert (held.target == batch_of(rows).target[:, None])[held.real].all()


def test_the_loss_is_the_plain_cross_entropy(value, tiny_dataset):
    graph, rows = tiny_dataset.graph, tiny_dataset.rows("valid").take(np.arange(9))
    total, count, support = 0.0, 0, value.support.double().numpy()
    with torch.no_grad():
        loss = float(value.eval().loss(batch_of(rows)))
        for path in rows.paths:
            km = graph.km[graph.edge_index(path[:-1], path[1:])]
            for t, city in enumerate(path[:-1]):
                excess = max(0.0, km[t:].sum() / graph.distance_km(city, path[-1]) - 1)
                ids = torch.tensor([[city], [path[-1]]], dtype=torch.long)
                log_p = value(*ids)[0].log_softmax(-1).double().numpy()
                at = max(1, int(np.searchsorted(support, excess)))
                share = (excess - support[at - 1]) / (support[at] - support[at - 1])
                total -= (1 - share) * log_p[at - 1] + share * log_p[at]
                count += 1
    assert loss == pytest.approx(total / count, rel=1e-3)


def test_gradients_are_finite_and_reach_every_weight(network, tiny_dataset):
    batch = batch_of(tiny_dataset.rows("train").take(np.arange(400)))
    network.zero_grad()
    network.train().loss(batch).backward()
    for parameter in network.parameters():
        assert parameter.grad.isfinite().all() and parameter.grad.abs().sum() > 0


@pytest.mark.parametrize("name", ["value", "reach"])
def test_one_short_path_has_a_loss(chain, name):
    network = build(name, chain, **SMALL)
    one = Batch(*(torch.tensor(x) for x in ([0], [1], [[0]], [[1]])))
    assert network.train().loss(one).isfinite()


# Training


def test_training_beats_what_knows_no_pair(trained, tiny_dataset):
    """The baselines give every pair the same: the median excess, or the labels' frequencies."""
    rows = tiny_dataset.rows("test")
    batch = batch_of(rows)
    value, reach = (trained[name][0].model.eval() for name in ("value", "reach"))
    with torch.no_grad():
        togo, straight = (
            value.togo(batch.source, batch.target),
            tiny_dataset.graph.distance_km(rows.source, rows.target),
        )
        blind = straight * np.median(rows.km / straight)
        error, without = (np.abs(km / rows.km - 1) for km in (togo.numpy(), blind))
        assert error.mean() < 0.7 * without.mean() and np.median(error) < 0.5 * np.median(without)
        pairs = reach.pairs(batch)
        share = np.bincount(pairs.hops[pairs.real]) / int(pairs.real.sum())
        entropy = -(share[share > 0] * np.log(share[share > 0])).sum()
        assert float(reach.loss(batch)) < 0.5 * (entropy + math.log(2))


def test_reach_tells_edges_and_dead_ends_apart(trained, tiny_dataset):
    graph, reach = tiny_dataset.graph, trained["reach"][0].model.eval()
    city, target = some_pairs(graph, 3000, 4)
    trees = shortest_path_trees(graph, np.arange(len(graph)))
    reachable = trees.reachable[city.numpy(), target.numpy()]
    a, b = torch.as_tensor(graph.edge_sources), torch.as_tensor(graph.indices)
    with torch.no_grad():
        ever = reach.log_within(city, target, MOST_HOPS).exp().numpy()
        assert ever[reachable].mean() > 0.9 and ever[~reachable].mean() < 0.1
        edges, others = (reach.log_within(*ids, 1).exp().mean() for ids in ((a, b), (city, target)))
    assert edges > 0.5 and others < 0.1


def test_quantiles_cover_about_their_share(trained, tiny_dataset):
    rows = tiny_dataset.rows("test")
    source, target = (torch.as_tensor(x.astype(np.int64)) for x in (rows.source, rows.target))
    network = trained["value"][0].model
    with torch.no_grad():
        below = [
            (rows.km < network.at(q).togo(source, target).numpy()).mean() for q in (0.1, 0.5, 0.9)
        ]
    assert below[0] < 0.35 < below[1] < 0.75 < below[2]


@pytest.mark.parametrize("name", ["value", "reach"])
def test_a_finished_training_is_loaded_and_a_stopped_one_resumed(
    tiny_dataset, tmp_path, monkeypatch, name
):
    torch.set_num_threads(1)
    short = TrainSettings(steps=30, batch_tokens=256, evaluations=1, save_seconds=0)

    def run(folder):
        return train(name, tiny_dataset, tmp_path / folder, short, SMALL).model.state_dict()

    whole = run("whole")
    loaded = load_trained(tmp_path / "whole", tiny_dataset.graph).state_dict()
    assert all(torch.equal(whole[k], loaded[k]) for k in whole)
    step, stopped = _Run._advance, []

    def until(self, batch):
        if self.step == 21 and not stopped:
            stopped.append(True)
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(_Run, "_advance", until)
    with pytest.raises(KeyboardInterrupt):
        run("parts")
    resumed = run("parts")
    assert stopped and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_they_write_no_paths():
    assert not {"value", "reach"} & set(registered())


# Energies


@pytest.fixture(scope="module")
def optimal(tiny_dataset):
    """Test queries with their shortest paths, and the exact value."""
    rows = tiny_dataset.rows("test").take(np.arange(100))
    return rows, ExactValue(tiny_dataset.graph, rows.target)


def test_inconsistency_is_0_on_optimal_paths_and_the_detour_elsewhere(optimal, tennessee):
    rows, exact = optimal
    scorer = Inconsistency(exact, tennessee)
    energy = scorer.score(rows.source, rows.target, rows.paths)
    np.testing.assert_allclose(energy, 0, atol=1e-5)
    for i, path in enumerate(rows.paths):
        path, trees = path.tolist(), exact.km[exact.row[int(rows.target[i])]].numpy()
        others = np.setdiff1d(tennessee.neighbours(path[0]), path)
        others = others[np.isfinite(trees[others])]
        if not len(others):
            continue
        way = walk_on(tennessee, exact, int(others[0]), path[-1])
        detour = Paths.from_lists([[path[0], *way]])
        at = tennessee.edge_index(detour[0][:-1], detour[0][1:])
        extra = tennessee.km[at].sum() - rows.km[i]
        energy = scorer.score(rows.source[i : i + 1], rows.target[i : i + 1], detour)[0]
        assert energy == pytest.approx(extra, abs=1e-4)


def walk_on(graph, exact, city: int, target: int) -> list[int]:
    km, way = exact.km[exact.row[target]].numpy(), [city]
    while way[-1] != target:
        near = graph.neighbours(way[-1])
        hop = graph.km[graph.indptr[way[-1]] : graph.indptr[way[-1] + 1]]
        way.append(int(near[np.argmin(hop + km[near])]))
    return way


def test_a_shortcut_that_is_no_edge_has_energy(optimal, tennessee):
    rows, exact = optimal
    keep = rows.km > 1.05 * tennessee.distance_km(rows.source, rows.target)
    source, target = rows.source[keep], rows.target[keep]
    jump = Paths.from_lists(np.stack([source, target], 1).tolist())
    gain = rows.km[keep] - tennessee.distance_km(source, target)
    energy = Inconsistency(exact, tennessee).score(source, target, jump)
    np.testing.assert_allclose(energy, gain, atol=1e-5)


def test_doubt_is_the_plain_sum(reach, optimal):
    rows, _ = optimal
    energy = Doubt(reach).score(rows.source, rows.target, rows.paths)
    with torch.no_grad():
        for i in range(0, 100, 9):
            path, total = rows.paths[i].tolist(), 0.0
            for t, (a, b) in enumerate(pairwise(path)):
                ids = torch.tensor([[a, a], [b, path[-1]]])
                total -= float(reach.log_within(*ids, torch.tensor([1, len(path) - 1 - t])).sum())
            assert energy[i] == pytest.approx(total, rel=1e-4)


def test_trained_energies_prefer_the_shortest_path(trained, optimal, tennessee):
    """To the same path with a city left out, and with one swapped for a random one."""
    rows, _ = optimal
    keep = np.flatnonzero(rows.hops >= 4)
    rows = rows.take(keep)
    lists = [p.tolist() for p in rows.paths]
    gap = Paths.from_lists([[*p[:1], *p[3:]] for p in lists])
    random = np.random.default_rng(0).integers(0, len(tennessee), len(lists))
    swap = Paths.from_lists([[*p[:2], c, *p[3:]] for p, c in zip(lists, random, strict=True)])
    value, reach = (trained[name][0].model.eval() for name in ("value", "reach"))
    for scorer, worse in (
        (Doubt(reach), gap),
        (Doubt(reach), swap),
        (Inconsistency(value, tennessee), swap),
    ):
        best, other = (scorer.score(rows.source, rows.target, p) for p in (rows.paths, worse))
        assert (best < other).mean() > 0.9


def test_paths_that_lead_elsewhere_are_lost(value, reach, tennessee):
    paths = Paths.from_lists([[0, 1], [0, 2], [1, 2], [], [3]])
    source, target = np.array([0, 0, 0, 0, 3]), np.array([1, 1, 2, 1, 3])
    for scorer in (Inconsistency(value, tennessee), Doubt(reach)):
        energy = scorer.score(source, target, paths)
        assert (energy < LOST).tolist() == [True, *[False] * 3, True]
        assert (energy[1:4] == LOST).all() and energy[4] == 0
        assert scorer.flops(paths).tolist()[3] == scorer.flops(paths).tolist()[4] == 0
        assert scorer.lookups(paths).tolist() == [0] * 5
        assert len(scorer.score(source[:0], target[:0], paths.take([]))) == 0


def test_operations_of_the_energies(value, reach, tennessee, optimal):
    rows, _ = optimal
    for scorer, network in ((Inconsistency(value, tennessee), value), (Doubt(reach), reach)):
        calls = 1 if network is value else 2
        counted = counted_flops(lambda s=scorer: s.score(rows.source, rows.target, rows.paths))
        assert counted == scorer.flops(rows.paths).sum()
        assert counted == calls * rows.hops.sum() * network.flops_per_call


# Errors


def test_lengths_off_the_great_circle_are_refused(tennessee):
    for graph in (jittered(tennessee), rounded(tennessee)):
        with pytest.raises(ValueError, match="neither jittered nor rounded"):
            CostToGo(graph)
    HopsToGo(replace(tennessee, km=tennessee.km * (1 + 1e-9)))


def test_supports_rise_from_0_to_the_longest(chain):
    support = CostToGo(chain).support
    assert support[0] == 0 and support[-1] == pytest.approx(pairs_module.LONGEST, rel=1e-4)
    assert (support.diff() > 0).all() and (support.diff().diff() > -1e-5).all()
