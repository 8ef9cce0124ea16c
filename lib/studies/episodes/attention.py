"""Attention by relative position, and the causal transformer that attends over a whole stream."""

from __future__ import annotations

from typing import ClassVar, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.memory.streams import Memory, at_least

BASE = 10_000.0  # of the sinusoids' wavelengths (Vaswani et al. 2017)


class Positions(NamedTuple):
    """What all layers share when t queries attend to n keys, the last of them their own.

    Attributes:
        table: [n, width], sines then cosines of the distances n - 1 .. 0 (Vaswani et al. 2017).
        mask: [t, n], minus infinity where the key is later than the query; None if none is.
        u, v: [width], added to queries for keys and for distances (Dai et al. 2019).
    """

    table: Tensor
    mask: Tensor | None
    u: Tensor
    v: Tensor


def relative_shift(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key, for the last t of n positions.

    Column c of [..., t, n] stands for a distance of n - 1 - c, of what is returned for key c (Dai
    et al. 2019, appendix B). What a row then holds of keys later than its query means nothing.
    """
    t, n = scores.shape[-2:]
    if t == 1:
        return scores
    return F.pad(scores, (1, 0)).flatten(-2)[..., t:].unflatten(-1, (t, n))


class Layer(nn.Module):
    """Attention by relative position, then a feed-forward network, each normed and added.

    Output matrices start 1 / sqrt(2 depth) smaller, in a stack of so many (Radford et al. 2019).
    """

    def __init__(self, width: int, hidden: int, heads: int, depth: int) -> None:
        super().__init__()
        self.heads, self.scale = heads, (width // heads) ** -0.5
        self.norm, self.norm_feed = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width, bias=False)
        self.key_value = nn.Linear(width, 2 * width, bias=False)
        self.place = nn.Linear(width, width, bias=False)
        self.out = nn.Linear(width, width, bias=False)
        self.up, self.down = nn.Linear(width, hidden), nn.Linear(hidden, width)
        with torch.no_grad():
            for shrunk in (self.out, self.down):
                shrunk.weight /= (2 * depth) ** 0.5

    def queries(self, x: Tensor) -> Tensor:
        """Return the queries [B, t, width] of states [B, t, width]."""
        return self.query(self.norm(x))

    def keys_values(self, x: Tensor) -> Tensor:
        """Return keys, then values, [B, n, 2 width] of states [B, n, width]."""
        return self.key_value(self.norm(x))

    def content(self, queries: Tensor, u: Tensor | float = 0.0) -> Tensor:
        """Return what is multiplied with keys, [B, t, width], of queries with u added."""
        return (queries + u) * self.scale

    def split(self, x: Tensor) -> Tensor:
        """Return [B, n, width] as [heads * B, n, width / heads], head by head."""
        return x.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3).flatten(0, 1)

    def attend(self, queries: Tensor, keys_values: Tensor, positions: Positions) -> Tensor:
        """Return the attended values [B, t, width]: (q + u) k + (q + v) W R before the softmax.

        queries: [B, t, width], of the last t positions; keys_values: [B, n, 2 width] (Dai et al.
        2019, equation 5).
        """
        keys, values = keys_values.chunk(2, -1)
        batch, t = queries.shape[:2]
        asked = self.split((queries + positions.v) * self.scale)
        asked = asked.view(self.heads, batch * t, -1)
        table = self.place(positions.table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        scores = relative_shift(torch.bmm(asked, table).view(self.heads * batch, t, -1))
        scores = scores if positions.mask is None else scores + positions.mask
        content = self.split(self.content(queries, positions.u))
        scores = torch.baddbmm(scores, content, self.split(keys).transpose(1, 2))
        attended = torch.bmm(scores.softmax(-1), self.split(values))
        return attended.unflatten(0, (self.heads, -1)).permute(1, 2, 0, 3).flatten(2)

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what was attended and the feed-forward network to x [B, t, width]."""
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm_feed(x))))


class Attentive(Memory):
    """The weights of a memory made of attention layers; `hidden` is of their feed-forward nets."""

    last_layer: ClassVar[type[Layer]] = Layer

    def __init__(self, width: int, hidden: int = 64, layers: int = 2, heads: int = 4) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden, layers=layers, heads=heads)
        if width % 2 or width % heads:
            raise ValueError(f"a width of {width} must be even and divisible by {heads} heads")
        self.width, self.hidden = width, hidden
        kinds = [Layer] * (layers - 1) + [self.last_layer]
        self.layers = nn.ModuleList(kind(width, hidden, heads, layers) for kind in kinds)
        # One u and one v for all layers, as in Dai et al. 2019.
        self.u, self.v = nn.Parameter(torch.zeros(width)), nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)

    def positions(self, t: int, n: int) -> Positions:
        """Return what layers need when t queries attend to n keys."""
        distance = torch.arange(n - 1, -1, -1, device=self.u.device, dtype=torch.float32)
        speed = BASE ** (-torch.arange(0, self.width, 2, device=self.u.device) / self.width)
        angle = distance[:, None] * speed
        table = torch.cat((angle.sin(), angle.cos()), -1).to(self.u.dtype)
        mask = None if t == 1 else table.new_full((t, n), -torch.inf).triu(n - t + 1)
        return Positions(table, mask, self.u, self.v)

    def flops_of_layers(self, keys: float, projected: float) -> int:
        """Return the operations of a step that attends to `keys` and projects `projected` states.

        The projections of the distances are left out: all streams of a batch share them.
        """
        each = self.width * (4 * self.width + 4 * self.width * projected + 6 * keys)
        return round(len(self.layers) * (each + 4 * self.width * self.hidden))


class Transformer(Attentive):
    """Full causal attention with relative positions: nothing is forgotten, and everything grows.

    Each layer holds its keys and values, [B, steps so far, 2 width]. `tap` is given all that a
    layer attended, [B, T, width]: blanked, every output depends on its own input alone.
    """

    def start(self, batch: int) -> list[Tensor]:
        return [self.u.new_zeros(batch, 0, 2 * self.width) for _ in self.layers]

    def forward(self, x: Tensor, state: list[Tensor] | None = None) -> tuple[Tensor, list[Tensor]]:
        state, held = self.start(len(x)) if state is None else state, []
        if not x.shape[1]:
            return x, state
        positions = self.positions(x.shape[1], state[0].shape[1] + x.shape[1])
        for layer, before in zip(self.layers, state, strict=True):
            held.append(torch.cat((before, self.kept(layer.keys_values(x))), 1))
            attended = layer.attend(layer.queries(x), held[-1], positions)
            x = layer.finish(x, self.read(attended))
        return self.norm(x), held

    def flops_per_step(self) -> int:
        """Return the operations of one step after 64 earlier ones."""
        return self.flops_of_layers(64 + 1, 1)
