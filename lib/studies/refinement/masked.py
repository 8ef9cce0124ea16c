"""An orderless model of whole paths: any set of hidden cities from all the others, at once."""

from __future__ import annotations

import math

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.map.graph import CityGraph
from citypaths.map.great_circle import unit_sphere
from citypaths.models.base import CityInput, Coordinates, Head, Network, register
from citypaths.models.transformer import Attention, Block


class Everywhere(nn.Module):
    """A transformer layer whose attention looks both ways."""

    def __init__(self, width: int, heads: int, depth: int, expansion: int) -> None:
        super().__init__()
        self.block = Block(width, heads, depth, expansion)

    def forward(self, x: Tensor, visible: Tensor) -> Tensor:
        """Return x [B, P, width] after the layer; `visible` [B, P] are the positions to see."""
        block = self.block
        x = x + _attend(block.attention, block.norm_attention(x), visible[:, None, None])
        return x + block.down(F.relu(block.up(block.norm_feed(x))))


def _attend(attention: Attention, x: Tensor, visible: Tensor) -> Tensor:
    split = attention.qkv(x).unflatten(-1, (3, attention.heads, -1)).permute(2, 0, 3, 1, 4)
    q, k = attention.rotary(split[:2])
    mixed = F.scaled_dot_product_attention(q, k, split[2], attn_mask=visible)
    return attention.out(mixed.transpose(1, 2).flatten(2))


@register("masked", writes=False)
class Masked(Network):
    """A masked path model: a transformer that looks both ways over the cities after the source.

    Each slot holds a city or MASK. It knows the source, the target and the city nearest to its
    place on the straight line between them. Lengths are predicted, so that a path has as many slots
    as hops and the last holds the target. Training hides a random share of the slots (its
    distribution is MaskGIT's: more than half on average) and asks for what they held; the others do
    not count. Ghazvininejad et al. 2019 (mask-predict), Chang et al. 2022 (MaskGIT).

    Args:
        graph: decides the vocabulary and the coordinates.
        slots: most hops of a path; a longer one is refused. width, layers, heads, expansion: size
            of the stack. tied, coordinates: see `CityInput` and `Head`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        slots: int = 32,
        width: int = 128,
        layers: int = 3,
        heads: int = 4,
        expansion: int = 4,
        tied: bool = True,
        coordinates: Coordinates = "none",
    ) -> None:
        super().__init__()
        if slots < 1:
            raise ValueError(f"a path takes at least one slot, not {slots}")
        self.cities, self.slots, self.width = len(graph), slots, width
        self.mask = len(graph)
        self.inputs = CityInput(graph, width, coordinates=coordinates)
        self.as_source = nn.Linear(width, width, bias=False)
        self.unknown = nn.Parameter(torch.randn(width) / 2)
        self.from_start = nn.Embedding(slots + 1, width)
        self.from_end = nn.Embedding(slots + 1, width)
        self.layers = nn.ModuleList(
            Everywhere(width, heads, layers, expansion) for _ in range(layers)
        )
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, self.cities, tied=self.inputs.embedding if tied else None)
        sphere = torch.as_tensor(unit_sphere(graph.lat, graph.lon))
        sphere = (sphere - sphere.mean(0)) / sphere.std().clamp(min=1e-9)
        self.register_buffer("place", sphere.float(), persistent=False)
        self.as_draft = nn.Linear(width, width, bias=False)
        self.hops = nn.Sequential(
            nn.Linear(2 * width + 7, 2 * width), nn.ReLU(), nn.Linear(2 * width, slots)
        )
        for table in (self.from_start, self.from_end):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, source: Tensor, target: Tensor, tokens: Tensor, hops: Tensor) -> Tensor:
        """Return logits [B, S, V] for slots `tokens` [B, S], each a city or `mask`.

        `hops` [B] are the slots in use; later ones neither see nor are seen.
        """
        return self.head(self.states(source, target, tokens, hops))

    def states(self, source: Tensor, target: Tensor, tokens: Tensor, hops: Tensor) -> Tensor:
        """Return what the last layer makes of each slot, [B, S, width]."""
        x = self.embed(source, target, tokens, hops)
        visible = torch.arange(x.shape[1], device=x.device) <= hops[:, None]
        for layer in self.layers:
            x = layer(x, visible)
        return self.norm(x[:, 1:])

    def embed(self, source: Tensor, target: Tensor, tokens: Tensor, hops: Tensor) -> Tensor:
        """Return input vectors [B, 1 + S, width]: the source, then the slots."""
        tokens = torch.cat([source[:, None], tokens], 1)
        known = self.inputs.city(tokens.clamp(max=self.cities - 1))
        x = torch.where((tokens < self.cities)[..., None], known, self.unknown)
        place = torch.arange(tokens.shape[1], device=tokens.device)
        draft = self.straight(source, target, tokens.shape[1], hops)
        ends = self.inputs.goal(target) + self.as_source(self.inputs.city(source))
        x = x + ends[:, None] + self.as_draft(self.inputs.city(draft))
        return x + self.from_start(place) + self.from_end((hops[:, None] - place).clamp(min=0))

    def straight(self, source: Tensor, target: Tensor, count: int, hops: Tensor) -> Tensor:
        """Return the cities [B, count] nearest to evenly spread points from source to target."""
        share = torch.arange(count, device=hops.device) / hops[:, None]
        ends = self.place[torch.stack([source, target])]
        points = torch.lerp(ends[0, :, None], ends[1, :, None], share.clamp(max=1.0)[..., None])
        return (points @ self.place.T - (self.place**2).sum(1) / 2).argmax(-1)

    def length_logits(self, source: Tensor, target: Tensor) -> Tensor:
        """Return logits [B, slots] for 1, 2, ... hops between ids [B]."""
        ends = (source, target)
        a, b = (self.place[city] for city in ends)
        apart = (a - b).norm(dim=-1, keepdim=True)
        return self.hops(torch.cat([*map(self.inputs.city, ends), a, b, apart], -1))

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy of hidden slots, plus that of lengths: paths' and parts'.

        When not training, what is drawn is a fixed function of the batch's shape.

        Raises:
            ValueError: a path has more hops than the model has slots.
        """
        count = batch.labels.shape[1]
        if count > self.slots:
            raise ValueError(f"a path of {count} hops does not fit {self.slots} slots: raise slots")
        hops = (batch.labels != IGNORE).sum(1)
        hidden = self.hide(hops, count)
        tokens = batch.labels.masked_fill(hidden | (batch.labels == IGNORE), self.mask)
        states = self.states(batch.source, batch.target, tokens, hops)[hidden]
        wanted = batch.labels[hidden]
        total = F.cross_entropy(self.head(states).float(), wanted, reduction="sum")
        whole = self.length_logits(batch.source, batch.target), hops - 1
        start, end, length = self.parts(batch)
        part = self.length_logits(start, end), length - 1
        return total / max(1, len(wanted)) + F.cross_entropy(*whole) + F.cross_entropy(*part)

    def parts(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Draw a part of its path for each of the batch's hops H: ends and hops [H].

        It begins with the hop and ends at any later city: parts of shortest paths are shortest
        paths. The part for the first hop of a path is the whole path.
        """
        real = batch.labels != IGNORE
        draw = torch.rand(real.shape, generator=self.chance(real.device), device=real.device)
        place = torch.arange(real.shape[1], device=real.device)
        left = real.sum(1, keepdim=True) - place
        length = 1 + (draw * left).long().clamp(min=0).minimum(left - 1)
        length[:, 0] = left[:, 0]
        end = batch.labels.gather(1, (place + length - 1).clamp(min=0))
        return batch.cities[real], end[real], length[real]

    def chance(self, device: torch.device) -> torch.Generator | None:
        """Return torch's own random numbers when training, the same ones each time when not."""
        return None if self.training else torch.Generator(device).manual_seed(0)

    def hidable(self, hops: Tensor, count: int) -> Tensor:
        """Return which of the first `count` slots may be hidden, bool: those before the target."""
        return torch.arange(count, device=hops.device) < hops[:, None] - 1

    def hide(self, hops: Tensor, count: int) -> Tensor:
        """Draw the slots to hide, bool [B, count]: a cos(pi u / 2) share, u uniform a path."""
        generator = self.chance(hops.device)
        draw = torch.rand(len(hops), count + 1, generator=generator, device=hops.device)
        open_to = self.hidable(hops, count)
        share = torch.cos(draw[:, :1] * math.pi / 2)
        return lowest(draw[:, 1:], open_to, (share * open_to.sum(1, keepdim=True)).ceil())

    def flops_per_step(self, loops: int | None = None) -> int:
        """A slot's share of a pass over all slots."""
        return int(self.flops_per_pass(np.array([self.slots]))[0]) // self.slots

    def flops_per_pass(self, hops: np.ndarray) -> np.ndarray:
        """Return the operations of one pass over paths of `hops` [N] slots each, float64 [N]."""
        slots, width = np.asarray(hops, float), self.width
        places, expansion = slots + 1.0, self.layers[0].block.up.out_features // width
        layer = 2 * width**2 * (4 + 2 * expansion) * places + 4 * width * places**2
        ends = self.inputs.goal_flops + self.inputs.flops + 2 * width**2
        draft = self.inputs.flops + 2 * width**2 + 6 * self.cities
        embed = (self.inputs.flops + draft) * places + ends
        return len(self.layers) * layer + self.head.flops * slots + embed

    @property
    def length_flops(self) -> int:
        """Operations of predicting one length."""
        hidden, inputs = 2 * self.width, 2 * self.width + 7
        return 2 * self.inputs.flops + 2 * hidden * (inputs + self.slots)


def lowest(values: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Return where the `count` [B, 1] lowest of values [B, S] lie, of those `among`, bool."""
    order = values.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=values.device).expand_as(order)
    )
    return (rank < count) & among
