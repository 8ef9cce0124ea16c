"""Mask-predict: an orderless model of whole paths, and rounds of hiding cities and guessing again.

The network predicts any set of hidden cities from all the others, at once.
"""

from __future__ import annotations

import math
import time
from collections.abc import Iterator

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from citypaths.data.batches import IGNORE, Batch
from citypaths.decoding.decode import evaluating
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import CityInput, Head, Network, register
from citypaths.models.transformer import Block

HEADS, BATCH = 4, 32  # of attention; queries refined together


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
        slots: most hops of a path; a longer one is refused. width, layers: size of the stack.
    """

    def __init__(
        self, graph: CityGraph, *, slots: int = 32, width: int = 128, layers: int = 3
    ) -> None:
        super().__init__()
        if slots < 1:
            raise ValueError(f"a path takes at least one slot, not {slots}")
        self.cities, self.slots, self.width = len(graph), slots, width
        self.mask = len(graph)
        self.inputs = CityInput(graph, width)
        self.as_source = nn.Linear(width, width, bias=False)
        self.unknown = nn.Parameter(torch.randn(width) / 2)
        self.from_start = nn.Embedding(slots + 1, width)
        self.from_end = nn.Embedding(slots + 1, width)
        self.layers = nn.ModuleList(Block(width, HEADS, layers) for _ in range(layers))
        self.norm = nn.LayerNorm(width)
        self.head = Head(width, self.cities, tied=self.inputs.embedding)
        sphere = torch.as_tensor(graph.sphere)
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
            x = x + _attend_both_ways(layer, x, visible[:, None, None])
            x = x + layer.down(F.relu(layer.up(layer.norm_feed(x))))
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
        places = slots + 1.0
        layer = 2 * width**2 * 12 * places + 4 * width * places**2
        ends = self.inputs.goal_flops + self.inputs.flops + 2 * width**2
        draft = self.inputs.flops + 2 * width**2 + 6 * self.cities
        embed = (self.inputs.flops + draft) * places + ends
        return len(self.layers) * layer + self.head.flops * slots + embed

    @property
    def length_flops(self) -> int:
        """Operations of predicting one length."""
        hidden, inputs = 2 * self.width, 2 * self.width + 7
        return 2 * self.inputs.flops + 2 * hidden * (inputs + self.slots)


def _attend_both_ways(block: Block, x: Tensor, visible: Tensor) -> Tensor:
    """The attention of a causal layer, of x [B, P, width] to all the visible positions."""
    attention = block.attention
    split = attention.qkv(block.norm_attention(x)).unflatten(-1, (3, attention.heads, -1))
    split = split.permute(2, 0, 3, 1, 4)
    q, k = attention.rotary(split[:2])
    mixed = F.scaled_dot_product_attention(q, k, split[2], attn_mask=visible)
    return attention.out(mixed.transpose(1, 2).flatten(2))


def lowest(values: Tensor, among: Tensor, count: Tensor) -> Tensor:
    """Return where the `count` [B, 1] lowest of values [B, S] lie, of those `among`, bool."""
    order = values.masked_fill(~among, torch.inf).argsort(dim=1, stable=True)
    rank = torch.empty_like(order).scatter_(
        1, order, torch.arange(values.shape[1], device=values.device).expand_as(order)
    )
    return (rank < count) & among


def refine_masked(
    model: Masked, source, target, max_hops: int, *, rounds: int, lengths: int
) -> list[Found]:
    """Predict whole paths in rounds; return the first guess, then what each round comes to.

    The first guess fills all slots at once, for each of a query's most probable lengths. Round r of
    R hides the least sure of them, a share of 1 - r / (R + 1), and predicts those again from the
    rest (Ghazvininejad et al. 2019). A round costs one pass of the network a length. Costs are
    cumulative.

    Args:
        source, target: ids [n]. lengths: to refine side by side; the most probable path is taken.

    Raises:
        ValueError: `max_hops` below 1, queries that do not pair up, negative rounds or no length.
    """
    if max_hops < 1:
        raise ValueError(f"max_hops is at least 1, not {max_hops}")
    if rounds < 0 or lengths < 1:
        raise ValueError(f"rounds of 0 or more and a length, not {rounds} and {lengths}")
    source, target = np.asarray(source, np.int64), np.asarray(target, np.int64)
    if len(source) != len(target):
        raise ValueError(f"{len(source)} sources but {len(target)} targets")
    parts = []
    with evaluating(model):
        for i in range(0, max(1, len(source)), BATCH):
            ends = source[i : i + BATCH], target[i : i + BATCH]
            parts.append(list(_refined(model, *ends, max_hops, rounds, lengths)))
    return [Found.concatenate(part) for part in zip(*parts, strict=True)]


def _refined(
    model: Masked, source: np.ndarray, target: np.ndarray, max_hops: int, rounds: int, lengths: int
) -> Iterator[Found]:
    """Yield the most probable paths after each round; there is a row for each length of a query."""
    began, device = time.perf_counter(), next(model.parameters()).device
    ends = torch.as_tensor(np.stack([source, target]), device=device)
    log_p = F.log_softmax(model.length_logits(*ends).float(), -1)[:, :max_hops]
    copies = min(lengths, log_p.shape[1])
    prior, at = (x.flatten() for x in log_p.topk(copies))
    hops, (a, b) = at + 1, ends.repeat_interleave(copies, 1)
    tokens = torch.full((len(hops), max([1, *hops.tolist()])), model.mask, device=device)
    tokens.scatter_(1, hops[:, None] - 1, b[:, None])
    free, sure = model.hidable(hops, tokens.shape[1]), torch.zeros(tokens.shape, device=device)
    pass_flops = model.flops_per_pass(hops.cpu().numpy())
    first_rows, none = copies * torch.arange(len(source), device=device), np.zeros(len(source))
    for done in range(rounds + 1):
        share = 1 - done / (rounds + 1)
        hidden = lowest(sure, free, (share * free.sum(1, keepdim=True) - 1e-6).ceil())
        logits = model(a, b, tokens.masked_fill(hidden, model.mask), hops)
        log_p, chosen = F.log_softmax(logits.float(), -1).max(-1)
        tokens, sure = torch.where(hidden, chosen, tokens), torch.where(hidden, log_p, sure)
        energy = -sure.sum(1) - prior  # log p of each token when it was predicted
        rows = energy.view(-1, copies).argmin(1) + first_rows
        best = (x[rows].cpu().numpy() for x in (a, b, hops, tokens))
        flops = ((1 + done) * pass_flops).reshape(-1, copies).sum(1) + model.length_flops
        seconds = time.perf_counter() - began
        paths = read_out(*best, max_hops)
        yield Found(paths, flops * (source != target), none, none.copy(), seconds)


def read_out(
    source: np.ndarray, target: np.ndarray, hops: np.ndarray, tokens: np.ndarray, max_hops: int
) -> Paths:
    """Return the paths that slots [n, S] spell: up to the target, repeats left out."""
    ids = np.concatenate([source[:, None], tokens], 1)
    inside = np.arange(ids.shape[1]) <= hops[:, None]
    inside &= np.cumsum(ids == target[:, None], 1) - (ids == target[:, None]) == 0
    inside[:, 1:] &= ids[:, 1:] != ids[:, :-1]
    inside &= np.cumsum(inside, 1) <= max_hops + 1
    return Paths(ids[inside], np.append(0, np.cumsum(inside.sum(1))))
