"""What a tree search walks in: the map itself, or the latents of a planner, which foresees."""

from __future__ import annotations

import time
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.decoding.decode import NEVER, device_of
from citypaths.decoding.scorers import Value
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import arc_km, unit_sphere
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel, nats, register
from citypaths.models.rnn import RNN
from studies.search.pairs import between

FAR = float("inf")
BREADTH = 8  # most probable next cities that a planner imagines
SURPRISE = 8.0  # km that an imagined hop costs for each nat of improbability: it may be no edge
ASTRAY = 5.0  # km that certainty of being astray costs
DETOURS = 1 + torch.linspace(0, 1, 16) ** 2  # km over great-circle km; most are near 1
VALUE_WEIGHT = ASTRAY_WEIGHT = 0.25  # in the loss, of the detour to go and of being astray


@dataclass(frozen=True)
class Children:
    """Where one hop leads from each of N cities, C at most: ids [N, C], -1 where there is none.

    Attributes:
        prior, km, togo: float64 [N, C]: the policy, the hop, what the value says (0 at the target).
        latent: [N, C, L], what the world keeps of the way there.
        spent: float64 [N, 3]: operations, look-ups and expansions of having asked.
    """

    city: Tensor
    prior: Tensor
    km: Tensor
    togo: Tensor
    latent: Tensor
    spent: Tensor


class MapWorld:
    """The map: legal hops, exact lengths, a Markov policy over them, and any value.

    Each expansion reads one city's out-edges, each out-edge is a look-up. The policy asks `model`
    afresh from every city; without a model it is uniform. Without a value the great circle is what
    is still to go: never too much, and free.
    """

    begin_flops = 0

    def __init__(self, graph: CityGraph, model: PathModel | None, value: Value | None) -> None:
        self.model, self.cities = model, len(graph)
        where = device_of(model) if model is not None else getattr(value, "device", "cpu")
        self.device, table = torch.device(where), graph.neighbour_table
        km = np.full(table.shape, np.inf)
        km[table < self.cities] = graph.mm / 1e6
        self.table, self.km, sphere = (
            torch.as_tensor(x).to(self.device) for x in (table, km, graph.sphere)
        )
        self.width, self.straight = km.shape[1], partial(arc_km, sphere)
        self.togo = value.togo if value is not None else self.straight
        self.value_flops = value.flops_per_call if value is not None else 0
        self.policy_flops = 0
        if model is not None:
            self.policy_flops = model.flops_to_start + model.flops_per_step()

    def begin(self, source: Tensor, target: Tensor) -> Tensor:
        """Return latents [N, 0]: nothing is kept of the way."""
        return torch.zeros(len(source), 0, device=self.device)

    def expand(self, city: Tensor, target: Tensor, latent: Tensor) -> Children:
        """Return the children of cities [N] on the way to their targets."""
        table = self.table[city]
        real = table < self.cities
        child, goal = table.where(real, 0), target[:, None].expand_as(table)
        prior = real / real.sum(1, keepdim=True).clamp_min(1)
        if self.model is not None:
            logits, _ = self.model.step(city, self.model.start(city, target))
            near = logits.gather(1, child).double().masked_fill(~real, NEVER)
            prior = near.softmax(1).where(real, 0.0)  # no number where there is no child
        togo = self.togo(child.flatten(), goal.flatten()).view(child.shape).double()
        togo = togo.where(child != goal, 0.0)
        kept = latent[:, None].expand(-1, self.width, -1)
        degree = real.sum(1).double()
        flops = self.policy_flops + degree * self.value_flops
        spent = torch.stack([flops, degree, torch.ones_like(degree)], -1)
        return Children(child.where(real, -1), prior.double(), self.km[city], togo, kept, spent)


@register("planner")
class Planner(RNN):
    """A GRU over latents with a policy head and a value head, to be searched without the map.

    The latent is the hidden state; reading a city is its transition. The policy head gives logits
    of the next city. The value head is a distribution over the detour still to go (km over
    great-circle km, a two-hot code on `DETOURS`) with one more class: astray, learned from its own
    wrong hops. The reward, a hop's great circle, is known. After value prediction networks (Oh et
    al. 2017) and MuZero (Schrittwieser et al. 2020). Of the graph no edge is read.
    """

    def __init__(self, graph: CityGraph, *, width: int = 128, tied: bool = False) -> None:
        super().__init__(graph, width=width, tied=tied)
        self.value = nn.Linear(self.width, len(DETOURS) + 1)
        sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon))
        self.register_buffer("sphere", sphere, persistent=False)
        self.register_buffer("points", DETOURS.clone(), persistent=False)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return nats a hop of the policy, plus the weighted cross-entropies of the value."""
        state = self.start(batch.source, batch.target)
        inputs = self.inputs(batch.cities, state["goal"][:, None])
        hidden, _ = self._run(inputs, state["memory"], 1)
        logits = self.head(hidden)
        real = (batch.labels != IGNORE).float()
        foreseen = self._foreseen(batch, F.log_softmax(self.value(hidden).float(), -1))
        astray = self._after_wrong_hop(batch, hidden, logits.detach())
        extra = VALUE_WEIGHT * foreseen + ASTRAY_WEIGHT * astray
        arrived = VALUE_WEIGHT * self._at_target(batch, hidden)
        return nats(logits, batch) + ((extra * real).sum() + arrived.sum()) / real.sum()

    def _at_target(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Nats [B] of knowing that a path has arrived by its own last hop, and is not astray."""
        last = (batch.labels != IGNORE).sum(1) - 1
        before = hidden[torch.arange(len(batch), device=last.device), last]
        after = self.value(self.transition(before, batch.target, batch.target)).float()
        return -F.log_softmax(after, -1)[:, 0]

    def _foreseen(self, batch: Batch, log_p: Tensor) -> Tensor:
        """Nats [B, T] of the detour still to go from each city, shared by its two neighbours."""
        real = batch.labels != IGNORE
        hop = self.km(batch.cities, batch.labels.where(real, batch.cities)) * real
        togo = hop.flip(1).cumsum(1).flip(1)
        straight = self.km(batch.cities, batch.target[:, None]).clamp_min(1e-3)
        ratio = (togo / straight).float().clamp(1.0, float(self.points[-1]))
        above, share = between(self.points, ratio)
        low, high = log_p.gather(-1, torch.stack([above - 1, above], -1)).unbind(-1)
        return -((1 - share) * low + share * high)

    def _after_wrong_hop(self, batch: Batch, hidden: Tensor, logits: Tensor) -> Tensor:
        """Nats [B, T] of knowing to be astray after an own hop that the path does not take."""
        scores = logits.float().scatter(-1, batch.labels.clamp_min(0)[..., None], float("-inf"))
        if self.training:
            scores = scores - torch.log(-torch.log(torch.rand_like(scores).clamp(1e-20, 1 - 1e-7)))
        target = batch.target[:, None].expand_as(batch.labels)
        rows = (hidden.flatten(0, 1), scores.argmax(-1).flatten(), target.flatten())
        after = self.value(self.transition(*rows)).float()
        return -F.log_softmax(after, -1)[:, -1].view(batch.labels.shape)

    def km(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the reward's size: great-circle km between cities, float64."""
        return arc_km(self.sphere, a, b)

    def transition(self, latent: Tensor, city: Tensor, target: Tensor) -> Tensor:
        """Return the latents [N, width] after the hops to cities [N]; a source's is from zeros."""
        inputs = self.inputs(city, self.inputs.goal(target))
        # Not `self.rnn`: a call of one step on a CPU is prepared anew for every number of rows.
        return torch.gru_cell(inputs, latent, *self.rnn.all_weights[0])

    def outlook(self, latent: Tensor, city: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return km still to go if on a shortest path, and the probability of being astray, [N]."""
        p = self.value(latent).float().softmax(-1)
        ratio = (p[:, :-1] * self.points).sum(-1) / p[:, :-1].sum(-1).clamp_min(1e-9)
        return ratio * self.km(city, target), p[:, -1]

    @property
    def transition_flops(self) -> int:
        """Return the operations of one transition, the query's goal vector at hand."""
        return self.inputs.flops + self._cell_flops

    @property
    def outlook_flops(self) -> int:
        """Return the operations of one `outlook`."""
        return 2 * self.width * self.value.out_features

    @property
    def training_flops_per_step(self) -> float:
        """Return those of policy and value, and of the value again after a wrong hop."""
        foresee = self.transition_flops + 2 * self.outlook_flops + 2 * self.width * self.width
        return 3 * (self.flops_per_step() + foresee)


class LatentWorld:
    """A planner's own latents: the hops it would take, imagined closed-book.

    Children are its most probable next cities. A hop costs its great circle, and `SURPRISE` km a
    nat of improbability. What is to go is what the value head foresees, and `ASTRAY` km times its
    probability of being astray.
    """

    def __init__(self, planner: Planner) -> None:
        self.planner, self.cities = planner, planner.cities
        self.width, self.device = min(BREADTH, planner.cities), planner.sphere.device
        self.straight = planner.km
        each = planner.transition_flops + planner.outlook_flops
        self.begin_flops = planner.flops_to_start + planner.transition_flops
        self.flops = float(planner.head.flops + self.width * each)

    def begin(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the latents [N, L] of sources [N], which are read."""
        nothing = self.planner.value.weight.new_zeros(len(source), self.planner.width)
        return self.planner.transition(nothing, source, target)

    def expand(self, city: Tensor, target: Tensor, latent: Tensor) -> Children:
        """Return the children of cities [N] on the way to their targets."""
        log_p, child = self.planner.head(latent).double().log_softmax(-1).topk(self.width)
        km = self.planner.km(city[:, None], child) - SURPRISE * log_p
        goal, rows = target.repeat_interleave(self.width), child.flatten()
        after = self.planner.transition(latent.repeat_interleave(self.width, 0), rows, goal)
        togo, astray = self.planner.outlook(after, rows, goal)
        togo, charge = togo.view(child.shape), ASTRAY * astray.double().view(child.shape)
        arrives = child == target[:, None]
        km, togo = km + charge.where(arrives, 0.0), (togo + charge).where(~arrives, 0.0)
        child = child.where(log_p > NEVER, -1)
        spent = km.new_tensor([self.flops, 0.0, 0.0]).expand(len(city), 3)
        return Children(child, log_p.exp(), km, togo, after.view(*child.shape, -1), spent)


World = MapWorld | LatentWorld


def enter(world: World, source, target) -> tuple[Tensor, ...]:
    """Return queries on the world's device, latents [Q, L], who has a way to go, what it spent.

    Returns: source, target int64 [Q], latent, going bool [Q], spent float64 [Q, 3].

    Raises:
        ValueError: not as many sources as targets, or an id that is no city.
    """
    source, target = (
        torch.tensor(np.array(x, np.int64), device=world.device) for x in (source, target)
    )
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    if any(bool(((x < 0) | (x >= world.cities)).any()) for x in (source, target)):
        raise ValueError(f"cities have ids from 0 to {world.cities - 1}")
    going = source != target
    spent = torch.zeros(len(source), 3, dtype=torch.float64, device=world.device)
    spent[:, 0] = world.begin_flops * going
    return source, target, world.begin(source, target), going, spent


def found_of(ids: Tensor, spent: Tensor, began: float) -> Found:
    """Return paths of ids [Q, hops + 1], -1 after the end, and what each query spent [Q, 3]."""
    rows = ids.cpu().numpy()
    paths, costs = Paths.from_padded(rows, (rows >= 0).sum(1)), spent.cpu().numpy().T.copy()
    return Found(paths, *costs, time.perf_counter() - began)
