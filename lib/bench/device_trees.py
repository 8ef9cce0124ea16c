"""The sweep of `citypaths.relaxation` in torch: the same keys, for thousands of targets on a GPU.

A run of consecutive cities is relaxed together, over all targets at once: first over the hops that
leave the run, then over those inside it. Eastward graphs take as many rounds inside a run as its
longest chain has hops, and one sweep. Two-way graphs take two rounds and sweep until nothing
changes; whether it did is the one thing the host asks, once a sweep.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from citypaths.map.graph import CityGraph
from citypaths.map.relaxation import pack
from citypaths.map.shortest_paths import Trees

RUN = 64  # cities relaxed together


@dataclass(frozen=True)
class _Run:
    """Cities [K]; the neighbours [K, D] and keys [K, D] of hops that leave the run and that stay.

    Rows with fewer hops are filled with hops to the row past the last city, which is never nearer.
    """

    cities: Tensor
    leaving: tuple[Tensor, Tensor]
    staying: tuple[Tensor, Tensor]
    rounds: int


class DeviceTrees:
    """A graph laid out on a device, ready to be swept for any targets.

    Args:
        graph: the City DAG, either orientation.
        device: where to sweep; the CPU gives the same trees.
    """

    def __init__(self, graph: CityGraph, device: torch.device | str = "cpu", run: int = RUN):
        self.graph, self.device, self.packed = graph, torch.device(device), pack(graph)
        self.sweeps = [self._runs(order, run) for order in self.packed.orders]
        compiled = self.device.type == "cuda"
        self._nearest = torch.compile(_nearest, dynamic=True) if compiled else _nearest

    def _runs(self, order: np.ndarray, size: int) -> list[_Run]:
        return [self._run(order[start : start + size]) for start in range(0, len(order), size)]

    def _run(self, cities: np.ndarray) -> _Run:
        indptr, indices = self.graph.indptr, self.graph.indices
        edges = np.concatenate([np.arange(indptr[a], indptr[a + 1]) for a in cities])
        owner = np.repeat(np.arange(len(cities)), indptr[cities + 1] - indptr[cities])
        stays = np.isin(indices[edges], cities)
        rounds = 2 if stays.any() else 0
        if self.graph.orientation == "eastward":
            rounds = _longest_chain(cities, owner[stays], indices[edges[stays]])
        hops = [self._padded(edges[kind], owner[kind], len(cities)) for kind in (~stays, stays)]
        ids = torch.as_tensor(cities.astype(np.int64), device=self.device)
        return _Run(ids, hops[0], hops[1], rounds)

    def _padded(self, edges: np.ndarray, owner: np.ndarray, rows: int) -> tuple[Tensor, Tensor]:
        degree = np.bincount(owner, minlength=rows)
        place = np.arange(len(owner)) - (np.cumsum(degree) - degree)[owner]
        shape = rows, int(degree.max(initial=0))
        to, keys = np.full(shape, len(self.graph)), np.zeros(shape)
        to[owner, place], keys[owner, place] = self.graph.indices[edges], self.packed.keys[edges]
        return torch.as_tensor(to, device=self.device), torch.as_tensor(keys, device=self.device)

    @torch.inference_mode()
    def sweep(self, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return mm (float64) and next_city (int32), both [cities, trees], for targets [trees].

        As in `Trees`, but without a next city the id is the graph's number of cities.
        """
        n, trees = len(self.graph), len(targets)
        mm = torch.full((n + 1, trees), torch.inf, dtype=torch.float64, device=self.device)
        mm[targets, torch.arange(trees, device=self.device)] = 0
        next_city = torch.full((n, trees), n, dtype=torch.int32, device=self.device)
        if self.graph.orientation == "eastward":
            self._once(self.sweeps[0], mm, next_city)
            return mm[:n], next_city
        number, quiet = 0, False
        while not quiet:
            before = mm.clone()
            self._once(self.sweeps[number % len(self.sweeps)], mm, next_city)
            number, quiet = number + 1, torch.equal(before, mm)
        return mm[:n], next_city

    def _once(self, runs: list[_Run], mm: Tensor, next_city: Tensor) -> None:
        base, n = self.packed.base, len(self.graph)
        for run in runs:
            old, best = mm[run.cities], self._nearest(mm, *run.leaving)
            mm[run.cities] = torch.minimum(best.floor(), old)
            for _ in range(run.rounds):
                best = torch.minimum(best, self._nearest(mm, *run.staying))
                mm[run.cities] = torch.minimum(best.floor(), old)
            length = best.floor()
            ids = ((best - length) * base).to(torch.int32)
            settled = length.isfinite() & (length <= mm[run.cities])  # not at a target
            next_city[run.cities] = torch.where(settled, ids, n)


def _nearest(mm: Tensor, to: Tensor, keys: Tensor) -> Tensor:
    """The least key [K, trees] over hops [K, D]; infinite where there are none."""
    if not to.shape[1]:
        return mm.new_full((to.shape[0], mm.shape[1]), torch.inf)
    return (mm[to] + keys[..., None]).amin(1)


def _longest_chain(cities: np.ndarray, owner: np.ndarray, to: np.ndarray) -> int:
    """Hops of the longest path inside a run of cities in reverse topological order."""
    at = {city: i for i, city in enumerate(cities.tolist())}
    hops = np.zeros(len(cities), int)
    for a, b in zip(owner.tolist(), to.tolist(), strict=True):  # owners ascend: later leads earlier
        hops[a] = max(hops[a], hops[at[b]] + 1)
    return int(hops.max(initial=0))


def device_trees(
    graph: CityGraph, targets, device: torch.device | str = "cpu", width: int = 2048
) -> Trees:
    """Return `shortest_path_trees(graph, targets)`, computed in torch on a device."""
    targets = np.atleast_1d(np.asarray(targets, np.int32))
    laid, ids = DeviceTrees(graph, device), pack(graph).ids
    mm = np.empty((len(graph), len(targets)))
    next_city = np.empty((len(graph), len(targets)), ids)
    for start in range(0, len(targets), width):
        columns = slice(start, start + width)
        lengths, hops = laid.sweep(torch.as_tensor(targets[columns].astype(np.int64)).to(device))
        mm[:, columns], hops = lengths.cpu(), hops.cpu().numpy()
        next_city[:, columns] = np.where(hops < len(graph), hops, np.iinfo(ids).max)
    return Trees(targets, mm, next_city)
