"""A recurrent model that also foresees: from a latent, which city next and how far still to go."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import arc_km, unit_sphere
from citypaths.models.base import nats, register
from citypaths.models.rnn import RNN


@register("planner")
class Planner(RNN):
    """A GRU over latents with a policy head and a value head, to be searched without the map.

    The latent is the hidden state; reading a city is its transition. The policy head gives logits
    of the next city. The value head is a distribution over the detour still to go (km over
    great-circle km, a two-hot code on `ratios` points from 1 to `longest`) with one more class:
    astray, learned from its own wrong hops. The reward, a hop's great circle, is known. After value
    prediction networks (Oh et al. 2017) and MuZero (Schrittwieser et al. 2020).

    Args:
        graph: decides the vocabulary and the coordinates; its edges are not read.
        value_weight, astray_weight: of the value's cross-entropy on real prefixes, and after wrong
            hops (drawn from the policy; in evaluation the most probable one).
        others: of `RNN`: width, tied, softmaxes, recurrent, coordinates, endpoints.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        ratios: int = 16,
        longest: float = 2.0,
        value_weight: float = 0.25,
        astray_weight: float = 0.25,
        **others: Any,
    ) -> None:
        fixed = {"cell", "loops"} & set(others)
        if fixed:
            raise ValueError(f"a planner is one GRU layer: it takes no {', '.join(sorted(fixed))}")
        if ratios < 2 or longest <= 1:
            raise ValueError(f"ratios are 2 or more up to above 1, not {ratios} up to {longest}")
        super().__init__(graph, **others)
        self.value_weight, self.astray_weight = value_weight, astray_weight
        self.value = nn.Linear(self.width, ratios + 1)
        sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon))
        # Detours near 1 are common: points lie closer together there.
        points = 1 + (longest - 1) * torch.linspace(0, 1, ratios) ** 2
        self.register_buffer("sphere", sphere, persistent=False)
        self.register_buffer("points", points, persistent=False)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return nats a hop of the policy, plus the weighted cross-entropies of the value."""
        state = self.start(batch.source, batch.target)
        inputs = self.inputs(batch.cities, state["goal"][:, None])
        hidden, _ = self._run(inputs, state["memory"], 1)
        logits = self.head(hidden)
        real = (batch.labels != IGNORE).float()
        foreseen = -(self._two_hot(batch) * F.log_softmax(self.value(hidden).float(), -1)).sum(-1)
        astray = self._after_wrong_hop(batch, hidden, logits.detach())
        extra = self.value_weight * foreseen + self.astray_weight * astray
        arrived = self.value_weight * self._at_target(batch, hidden)
        return nats(logits, batch) + ((extra * real).sum() + arrived.sum()) / real.sum()

    def _at_target(self, batch: Batch, hidden: Tensor) -> Tensor:
        """Nats [B] of knowing that a path has arrived by its own last hop, and is not astray."""
        last = (batch.labels != IGNORE).sum(1) - 1
        before = hidden[torch.arange(len(batch), device=last.device), last]
        after = self.value(self.transition(before, batch.target, batch.target)).float()
        return -F.log_softmax(after, -1)[:, 0]

    def _two_hot(self, batch: Batch) -> Tensor:
        """The detour still to go from each city, [B, T, classes]: weights of its two points."""
        real = batch.labels != IGNORE
        hop = self.km(batch.cities, batch.labels.where(real, batch.cities)) * real
        togo = hop.flip(1).cumsum(1).flip(1)
        straight = self.km(batch.cities, batch.target[:, None]).clamp_min(1e-3)
        ratio = (togo / straight).float().clamp(1.0, float(self.points[-1]))
        above = torch.searchsorted(self.points, ratio).clamp(1, len(self.points) - 1)
        low, high = self.points[above - 1], self.points[above]
        share = (ratio - low) / (high - low)
        code = share.new_zeros(*share.shape, len(self.points) + 1)
        code.scatter_(-1, above[..., None] - 1, 1 - share[..., None])
        return code.scatter_(-1, above[..., None], share[..., None])

    def _after_wrong_hop(self, batch: Batch, hidden: Tensor, logits: Tensor) -> Tensor:
        """Nats [B, T] of knowing to be astray after an own hop that the path does not take."""
        scores = logits.float().scatter(-1, batch.labels.clamp_min(0)[..., None], float("-inf"))
        if self.training:
            scores = scores - torch.log(-torch.log(torch.rand_like(scores).clamp(1e-20, 1 - 1e-7)))
        target = batch.target[:, None].expand_as(batch.labels)
        rows = (hidden.flatten(0, 1), scores.argmax(-1).flatten(), target.flatten())
        after = self.value(self.transition(*rows)).float()
        return -F.log_softmax(after, -1)[:, -1].view(batch.labels.shape)

    # What a search in latents asks for

    def km(self, a: Tensor, b: Tensor) -> Tensor:
        """Return the reward's size: great-circle km between cities, float64."""
        return arc_km(self.sphere, a, b)

    def begin(self, source: Tensor, target: Tensor) -> Tensor:
        """Return the latents [N, width] of queries [N], their sources read."""
        memory = self.start(source, target)["memory"]
        latent = source.new_zeros(len(source), self.width, dtype=self.value.weight.dtype)
        return self.transition(latent if memory is None else memory[0], source, target)

    def transition(self, latent: Tensor, city: Tensor, target: Tensor) -> Tensor:
        """Return the latents [N, width] after the hops to cities [N]."""
        inputs = self.inputs(city, self.inputs.goal(target))
        # Not `self.rnn`: a call of one step on a CPU is prepared anew for every number of rows.
        return torch.gru_cell(inputs, latent, *self.rnn.all_weights[0])

    def policy(self, latent: Tensor) -> Tensor:
        """Return logits [N, V] of the next city."""
        return self.head(latent)

    def outlook(self, latent: Tensor, city: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        """Return km still to go if on a shortest path, and the probability of being astray, [N]."""
        p = self.value(latent).float().softmax(-1)
        ratio = (p[:, :-1] * self.points).sum(-1) / p[:, :-1].sum(-1).clamp_min(1e-9)
        return ratio * self.km(city, target), p[:, -1]

    @property
    def begin_flops(self) -> int:
        """Return the operations of `begin` for one query."""
        return self.flops_to_start + self.transition_flops

    @property
    def transition_flops(self) -> int:
        """Return the operations of one transition, the query's goal vector at hand."""
        return self.inputs.flops + self._cell_flops

    @property
    def policy_flops(self) -> int:
        """Return the operations of one `policy`."""
        return self.head.flops

    @property
    def outlook_flops(self) -> int:
        """Return the operations of one `outlook`."""
        return 2 * self.width * self.value.out_features

    @property
    def training_flops_per_step(self) -> float:
        """Policy and value, and both again without the policy after a wrong hop."""
        foresee = self.transition_flops + 2 * self.outlook_flops + 2 * self.width * self.width
        return 3 * (self.flops_per_step() + foresee)
