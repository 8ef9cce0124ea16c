"""Energies of whole paths from learned networks: no hop is looked up."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.decoding.decode import sampled_paths
from citypaths.decoding.scorers import LOST, Likelihood, Value
from citypaths.files import data_dir
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Paths
from citypaths.models.base import CityInput, Network, PathModel, register
from citypaths.models.rnn import RNN
from citypaths.training.checkpoints import load_trained
from studies.search.pairs import AT_ONCE, HopsToGo

CITIES_AT_ONCE = 2**16  # judged together


class Learned:
    """Energies of paths by learned networks alone."""

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))


@register("reverse", writes=False)
class Reverse(RNN, Learned):
    """A recurrent model that walks from the target back to the source: backward consistency.

    Its energy of a path is minus the log-probability of the reversed path; added to a generator's
    own it asks that both directions agree.
    """

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats per hop, backwards."""
        return super().loss(reversed_batch(batch), loops)

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return nats of each reversed path, float64 [N]."""
        ends = np.repeat(paths.offsets[:-1] + paths.offsets[1:] - 1, paths.lengths)
        turned = Paths(paths.tokens[ends - np.arange(len(ends))], paths.offsets)
        return Likelihood(self).score(target, source, turned)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return a step a hop, and the start."""
        return Likelihood(self).flops(paths)


def reversed_batch(batch: Batch) -> Batch:
    """Return the batch of the paths from target to source."""
    real = batch.labels >= 0
    hops, steps = real.sum(1, keepdim=True), torch.arange(real.shape[1], device=real.device)
    whole = torch.cat([batch.source[:, None], batch.labels.clamp_min(0)], 1)
    turned = whole.gather(1, (hops - torch.arange(whole.shape[1], device=real.device)).clamp_min(0))
    cities = torch.where(steps < hops, turned[:, :-1], 0)
    labels = torch.where(steps < hops, turned[:, 1:], batch.labels)
    return Batch(batch.target, batch.source, cities, labels)


def _ask(call: Callable[..., Tensor], device: torch.device, *ids: np.ndarray) -> np.ndarray:
    """Call on slices of ids, for their memory; return float64."""
    slices = zip(*(torch.as_tensor(x, device=device).split(AT_ONCE) for x in ids), strict=True)
    with torch.inference_mode():
        parts = [call(*some).double().cpu().numpy() for some in slices]
    return np.concatenate([np.zeros(0), *parts])


def _sums(good: np.ndarray, row: np.ndarray, terms: np.ndarray) -> np.ndarray:
    """Sums of the terms of hops by path, [N]; `row` counts the `good` ones, the others are LOST."""
    out = np.full(len(good), LOST)
    out[good] = np.bincount(row, terms, int(good.sum()))
    return out


class Inconsistency(Learned):
    """How far a path's kilometres are from what a value promises: temporal differences in km.

    Each hop a -> b differs by km(a, b) + togo(b) - togo(a), 0 on an optimal path. What is above 0
    is a detour. What is below 0 is a shortcut that no path should have, such as a hop that is no
    edge; both count alike. A path that does not lead from its source to its target has `LOST`.
    """

    def __init__(self, value: Value, graph: CityGraph) -> None:
        self.value, self.graph = value, graph

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return kilometres, float64 [N]."""
        good = paths.leads(source, target)
        row, a, b = paths.take(good).hops()
        last = np.append(np.diff(row) > 0, True)[: len(row)]
        device = getattr(self.value, "device", torch.device("cpu"))
        togo = _ask(self.value.togo, device, a, np.asarray(target, np.int64)[good][row])
        after = np.where(last, 0.0, np.roll(togo, -1))
        with np.errstate(invalid="ignore"):  # infinity minus infinity, where there is no path
            change = np.abs(self.graph.distance_km(a, b) + after - togo)
        return _sums(good, row, np.where(np.isfinite(change), change, LOST))

    def flops(self, paths: Paths) -> np.ndarray:
        """Return an estimate a hop: the target needs none."""
        return np.maximum(paths.lengths - 1, 0) * float(self.value.flops_per_call)


class Doubt(Learned):
    """How unlikely a path is to be legal and in time, by a `HopsToGo`: nats.

    The sum over its hops a -> b of -log P(b within 1 hop of a), a learned test of legality, and of
    -log P(target within the hops that the path still takes from a). A path that does not lead from
    its source to its target has `LOST`.
    """

    def __init__(self, reach: HopsToGo) -> None:
        self.reach = reach

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return nats, float64 [N]."""
        good = paths.leads(source, target)
        row, a, b = paths.take(good).hops()
        hops = paths.lengths[good] - 1
        left = np.repeat(np.cumsum(hops), hops) - np.arange(len(row))
        ends = np.append(b, np.asarray(target, np.int64)[good][row])
        within = np.append(np.ones_like(left), left)
        doubt = -_ask(self.reach.log_within, self.reach.device, np.tile(a, 2), ends, within)
        return np.minimum(_sums(good, row, doubt.reshape(2, -1).sum(0)), LOST)

    def flops(self, paths: Paths) -> np.ndarray:
        """Return two calls a hop: is it one, and does the rest suffice?"""
        return np.maximum(paths.lengths - 1, 0) * 2.0 * self.reach.flops_per_call


@register("judge", writes=False)
class Judge(Network, Learned):
    """An energy for every city of a path, from GRUs that read the path both ways; they are summed.

    Trained on a shortest path and `attempts` that a generator draws for the same query, anew at
    every step. kind="cities" tells city by city whether the hop into it is one of the shortest
    path's (replaced-token detection, Clark et al. 2020): an energy is then -log P(real). Of the
    wrong attempts only the one that the judge itself likes best is learned from.
    kind="whole" contrasts the energies of paths (InfoNCE, van den Oord et al. 2018).

    Args:
        graph: decides the cities. generator: folder of the trained model whose attempts are told
            apart, from the data folder; it is read when training begins.
        blind: hide the query: no target, and the path's first and last city are masked.
        shuffled: read the inner cities in an order of their own, alike for every path.

    Raises:
        ValueError: an unknown kind, or fewer than one attempt.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        generator: str = "",
        kind: Literal["cities", "whole"] = "cities",
        width: int = 64,
        attempts: int = 2,
        blind: bool = False,
        shuffled: bool = False,
    ) -> None:
        super().__init__()
        if kind not in ("cities", "whole") or attempts < 1:
            raise ValueError(f"a judge of cities or whole, not {kind!r}, of {attempts} attempts")
        self.graph, self.folder, self.kind, self.attempts = graph, generator, kind, attempts
        self.cities, self.blind, self.shuffled, self.width = len(graph), blind, shuffled, width
        self.inputs = CityInput(graph, width)
        self.masked = nn.Parameter(torch.zeros(width))
        self.onward, self.back = (nn.GRU(width, width, batch_first=True) for _ in range(2))
        self.hidden, self.head = nn.Linear(2 * width, width), nn.Linear(width, 1)
        order = np.random.default_rng(0).permutation(len(graph))
        self.register_buffer("rank", torch.as_tensor(order), persistent=False)

    @cached_property
    def generator(self) -> list[PathModel]:
        """The generator, in a list: its weights are not this network's."""
        where = self.masked.device
        return [load_trained(data_dir() / self.folder, self.graph, where).requires_grad_(False)]

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of judging one city."""
        cells = 2 * 2 * 3 * self.width * 2 * self.width
        return self.inputs.flops + cells + 2 * (2 * self.width * self.width + self.width)

    @property
    def training_flops_per_step(self) -> float:
        """Return the operations to train on a hop: the attempts, taken to be as long, included.

        All are judged, and those that are learned from once more, backward at twice the price.
        """
        learned = 2 if self.kind == "cities" else 1 + self.attempts
        drawn = self.attempts * self.generator[0].flops_per_step()
        return drawn + self.flops_per_step() * (1 + self.attempts + 2 * learned)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return logits [N, T] that each city of paths [N, T], padded, is real; the first has none.

        Each path has `lengths` [N] cities and ends at its target.
        """
        steps = torch.arange(ids.shape[1], device=ids.device)
        inside, last = steps < lengths[:, None], lengths[:, None] - 1
        ids = torch.where(inside, ids, 0)
        target = ids.gather(1, last)[:, 0]
        order = steps.expand_as(ids)
        if self.shuffled:
            order = self._shuffle(ids, (steps > 0) & (steps < last))
            ids = ids.gather(1, order)
        if self.blind:
            inputs = self.inputs.city(ids)
            ends = (steps == 0) | (steps == last)
            inputs = torch.where(ends[..., None], self.masked.to(inputs.dtype), inputs)
        else:
            inputs = self.inputs(ids, self.inputs.goal(target)[:, None])
        flip = (last - steps).clamp(min=0)[..., None].expand_as(inputs)
        back = self.back(inputs.gather(1, flip))[0].gather(1, flip)
        states = torch.cat([self.onward(inputs)[0], back], -1)
        logits = self.head(F.relu(self.hidden(states)))[..., 0].float()
        return logits.new_zeros(logits.shape).scatter(1, order, logits)

    def _shuffle(self, ids: Tensor, inner: Tensor) -> Tensor:
        """Where to take each position's city from: the `inner` ones by rank, the others stay."""
        steps = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        low, high = -1, self.cities + ids.shape[1]
        key = torch.where(inner, self.rank[ids], torch.where(steps == 0, low, high + steps))
        return key.argsort(dim=1, stable=True)

    def energies(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the energy [N, T] of each city but the first; 0 there and after the end."""
        logits = self(ids, lengths)
        terms = F.softplus(-logits) if self.kind == "cities" else -logits
        return terms * self._scored(terms, lengths)

    @staticmethod
    def _scored(terms: Tensor, lengths: Tensor) -> Tensor:
        steps = torch.arange(terms.shape[1], device=terms.device)
        return (steps > 0) & (steps < lengths[:, None])

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return nats: a mean over cities of paths and wrong attempts, or over contrasted paths."""
        truth = torch.cat([batch.source[:, None], batch.labels.clamp_min(-1)], 1)
        lengths = (truth >= 0).sum(1)
        ids, sizes, arrived = self._attempt(batch, truth.shape[1] + 4)
        wide = F.pad(truth, (0, max(0, ids.shape[-1] - truth.shape[1])), value=-1)
        ids = F.pad(ids, (0, wide.shape[1] - ids.shape[-1]), value=-1)
        same = (ids == wide[:, None]).all(-1)
        usable = arrived & ~same
        if self.kind == "whole":
            good = self.energies(wide, lengths).sum(1)
            bad = self.energies(ids.flatten(0, 1), sizes.flatten()).sum(1).view_as(usable)
            against = (-bad).masked_fill(~usable, float("-inf"))
            return F.cross_entropy(
                torch.cat([-good[:, None], against], 1), torch.zeros_like(lengths)
            )
        ids, sizes, usable = self._hardest(ids, sizes, usable)
        real = _shared_hops(ids, truth)
        good, bad = self(wide, lengths), self(ids.flatten(0, 1), sizes.flatten())
        told = self._scored(bad, sizes.flatten()) & usable.flatten()[:, None]
        wrong = F.binary_cross_entropy_with_logits(bad, real.flatten(0, 1), reduction="none")
        right, taught = F.softplus(-good), self._scored(good, lengths)
        total = (right * taught).sum() + (wrong * told).sum()
        return total / (taught.sum() + told.sum())

    @torch.no_grad()
    def _attempt(self, batch: Batch, max_hops: int) -> tuple[Tensor, Tensor, Tensor]:
        """Draw attempts: ids [B, K, hops + 1], lengths (2 or more) and whether arrived [B, K]."""
        wide = [x.repeat_interleave(self.attempts) for x in (batch.source, batch.target)]
        ids, lengths = sampled_paths(self.generator[0], *wide, max_hops)
        arrived = ids.gather(1, lengths[:, None] - 1)[:, 0] == wide[1]
        shape = (len(batch), self.attempts)
        return ids.view(*shape, -1), lengths.clamp_min(2).view(shape), arrived.view(shape)

    @torch.no_grad()
    def _hardest(self, ids: Tensor, sizes: Tensor, usable: Tensor) -> tuple[Tensor, ...]:
        """Keep of each query's usable attempts the one of least energy: [B, 1, T] and so on."""
        energy = self.energies(ids.flatten(0, 1), sizes.flatten()).sum(1).view_as(usable)
        pick = energy.masked_fill(~usable, float("inf")).argmin(1, keepdim=True)
        kept = ids.gather(1, pick[..., None].expand(-1, -1, ids.shape[-1]))
        return kept, sizes.gather(1, pick), usable.gather(1, pick)

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return energies, float64 [N]: LOST where a path does not lead from source to target."""
        ids, lengths = paths.padded(), paths.lengths
        good = np.flatnonzero(paths.leads(source, target))
        out, where = np.full(len(paths), LOST), self.masked.device
        with torch.inference_mode():
            for some in np.array_split(
                good, max(1, -(-len(good) * ids.shape[1] // CITIES_AT_ONCE))
            ):
                asked = (torch.as_tensor(x[some], device=where) for x in (ids, lengths))
                out[some] = self.energies(*asked).double().sum(1).cpu().numpy()
        return out

    def flops(self, paths: Paths) -> np.ndarray:
        """Return the operations of judging each path, city by city, and its target once."""
        goal = 0 if self.blind else self.inputs.goal_flops
        return paths.lengths * float(self.flops_per_step()) + goal


def _shared_hops(ids: Tensor, truth: Tensor) -> Tensor:
    """Which cities of paths [B, K, T] are entered by a hop of the true path [B, S]: float."""
    hops, true = ids[..., 1:], truth[:, None, None]
    same = (ids[..., :-1, None] == true[..., :-1]) & (hops[..., None] == true[..., 1:])
    return F.pad((same & (hops[..., None] >= 0)).any(-1).float(), (1, 0), value=1.0)
