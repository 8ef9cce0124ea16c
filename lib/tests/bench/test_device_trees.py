"""The torch sweep against the compiled one, to the millimetre and to the tie."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bench.device_trees import DeviceTrees, device_trees
from citypaths.map.graph import build_graph, rounded
from citypaths.map.shortest_paths import shortest_path_trees

DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


def assert_same(graph, targets, device, **options):
    expected, found = (
        shortest_path_trees(graph, targets),
        device_trees(graph, targets, device, **options),
    )
    np.testing.assert_array_equal(found.mm, expected.mm)
    np.testing.assert_array_equal(found.reachable, expected.reachable)
    at = expected.reachable
    np.testing.assert_array_equal(found.next_city[at], expected.next_city[at])


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("step_km", [0.001, 1.0, 5.0])
def test_trees_equal_the_compiled_engine_with_all_ties(oriented_tennessee, device, step_km):
    graph = rounded(oriented_tennessee, step_km)
    assert_same(graph, np.arange(len(graph)), device, width=150)


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("run", [1, 7, 64, 400])
def test_the_length_of_a_run_changes_nothing(oriented_tennessee, device, run):
    graph = rounded(oriented_tennessee, 1.0)
    targets = np.arange(0, len(graph), 3)
    expected = shortest_path_trees(graph, targets)
    mm, next_city = DeviceTrees(graph, device, run).sweep(torch.as_tensor(targets, device=device))
    np.testing.assert_array_equal(mm.cpu(), expected.mm)
    at = expected.reachable
    np.testing.assert_array_equal(next_city.cpu().numpy()[at], expected.next_city[at])
    assert (next_city.cpu().numpy()[~at] == len(graph)).all()


@pytest.mark.parametrize("device", DEVICES)
def test_national_trees_equal_the_compiled_engine(nation, device):
    assert_same(nation, np.array([4_000, 12_345, 21_000]), device)


def test_graphs_without_edges(lonely, scattered):
    for graph in (lonely, scattered):
        assert_same(graph, np.arange(len(graph)), "cpu")


@pytest.mark.parametrize("orientation", ["eastward", "two_way"])
def test_cities_in_any_order(tennessee, orientation):
    shuffled = tennessee.cities.sample(frac=1, random_state=3)
    graph = build_graph(shuffled, 30, orientation)
    assert_same(graph, np.arange(0, len(graph), 5), "cpu")
