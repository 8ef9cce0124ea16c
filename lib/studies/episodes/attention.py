"""Attention by relative position, in pre-norm residual layers, for memories made of attention."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.core import Memory

BASE = 10_000.0  # of the sinusoids' wavelengths (Vaswani et al. 2017)


class Scene(NamedTuple):
    """What the layers share when t queries attend to n keys, the last of them their own.

    Attributes:
        table: [n, width], sinusoids of the distances n - 1 .. 0.
        hidden: [t, n], minus infinity where the key is later than the query; None if none is.
        content, place: [width], added to queries before they meet keys and distances.
    """

    table: Tensor
    hidden: Tensor | None
    content: Tensor
    place: Tensor


def sinusoids(n: int, width: int, like: Tensor) -> Tensor:
    """Return sines then cosines of the distances n - 1 .. 0.

    Returns [n, width], of the type and on the device of `like` (Vaswani et al. 2017, Dai et al.
    2019). The width is even.
    """
    distance = torch.arange(n - 1, -1, -1, device=like.device, dtype=torch.float32)
    speed = BASE ** (-torch.arange(0, width, 2, device=like.device) / width)
    angle = distance[:, None] * speed
    return torch.cat((angle.sin(), angle.cos()), -1).to(like.dtype)


def aligned(scores: Tensor) -> Tensor:
    """Turn scores by distance into scores by key, for the last t of n positions.

    Takes [..., t, n] whose column c stands for a distance of n - 1 - c, returns [..., t, n] whose
    column j stands for key j (the relative shift of Dai et al. 2019, appendix B). What a row holds
    of keys later than its query means nothing: hide it.
    """
    t, n = scores.shape[-2:]
    if t == 1:
        return scores
    return F.pad(scores, (1, 0)).flatten(-2)[..., t:].unflatten(-1, (t, n))


def later(t: int, n: int, like: Tensor) -> Tensor | None:
    """Return minus infinity for the keys that come after each of the last t of n positions.

    Returns [t, n], zero elsewhere, of the type and on the device of `like`; None for one position.
    """
    if t == 1:
        return None
    return like.new_full((t, n), -torch.inf).triu(n - t + 1)


def pushed(buffer: Tensor, new: Tensor, dim: int = 1) -> Tensor:
    """Return a buffer after new rows came in at its end and the oldest fell out at its front."""
    joined = torch.cat((buffer, new), dim)
    size = buffer.shape[dim]
    return joined.narrow(dim, joined.shape[dim] - size, size)


def last(buffer: Tensor, n: int, dim: int = 1) -> Tensor:
    """Return the last n rows of a buffer: those that are filled."""
    return buffer.narrow(dim, buffer.shape[dim] - n, n)


class Layer(nn.Module):
    """Attention by relative position, then a feed-forward network, each normed and added.

    Args:
        width: of the states. hidden: of the feed-forward network. heads: divide the width.
        depth: layers in all; output matrices start 1 / sqrt(2 depth) smaller (Radford et al. 2019).
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

    def content(self, queries: Tensor, bias: Tensor | None = None) -> Tensor:
        """Return what is multiplied with keys, [B, t, width], the bias [width] added."""
        return (queries if bias is None else queries + bias) * self.scale

    def split(self, x: Tensor) -> Tensor:
        """Return [B, n, width] as [heads * B, n, width / heads], head by head."""
        return x.unflatten(-1, (self.heads, -1)).permute(2, 0, 1, 3).flatten(0, 1)

    def attend(self, queries: Tensor, keys_values: Tensor, scene: Scene) -> Tensor:
        """Return the attended values [B, t, width]: (q + u) k + (q + v) W R before the softmax.

        Args:
            queries: [B, t, width], of the last t positions. keys_values: [B, n, 2 width].
            scene: with u as `content` and v as `place` (Dai et al. 2019, equation 5).
        """
        keys, values = keys_values.chunk(2, -1)
        scores = self._by_place(queries, scene)
        content = self.split(self.content(queries, scene.content))
        scores = torch.baddbmm(scores, content, self.split(keys).transpose(1, 2))
        attended = torch.bmm(scores.softmax(-1), self.split(values))
        return attended.unflatten(0, (self.heads, -1)).permute(1, 2, 0, 3).flatten(2)

    def _by_place(self, queries: Tensor, scene: Scene) -> Tensor:
        """Scores [heads * B, t, n] of the distances, minus infinity where the key is hidden."""
        batch, t = queries.shape[:2]
        asked = self.split((queries + scene.place) * self.scale)
        asked = asked.view(self.heads, batch * t, -1)
        table = self.place(scene.table).unflatten(-1, (self.heads, -1)).permute(1, 2, 0)
        scores = aligned(torch.bmm(asked, table).view(self.heads * batch, t, -1))
        return scores if scene.hidden is None else scores + scene.hidden

    def finish(self, x: Tensor, attended: Tensor) -> Tensor:
        """Add what was attended and the feed-forward network to x [B, t, width]."""
        x = x + self.out(attended)
        return x + self.down(F.gelu(self.up(self.norm_feed(x))))


class Attentive(Memory):
    """The weights and checks that every memory made of attention layers shares.

    Args:
        width: of inputs and outputs, even. hidden: of the feed-forward networks.
        layers, heads: of the stack; heads divide the width.

    Raises:
        ValueError: a size below 1, an odd width, heads that do not divide it.
    """

    def __init__(self, width: int, hidden: int, layers: int, heads: int) -> None:
        super().__init__()
        at_least(1, width=width, hidden=hidden, layers=layers, heads=heads)
        if width % 2 or width % heads:
            raise ValueError(f"a width of {width} must be even and divisible by {heads} heads")
        self.width, self.hidden = width, hidden
        self.layers = nn.ModuleList(self.layer_of(i, layers, heads) for i in range(layers))
        # One pair for all layers, as in Dai et al. 2019.
        self.content = nn.Parameter(torch.zeros(width))
        self.place = nn.Parameter(torch.zeros(width))
        self.norm = nn.LayerNorm(width)

    def layer_of(self, index: int, depth: int, heads: int) -> Layer:
        """Return a new layer for a place in a stack of `depth`."""
        return Layer(self.width, self.hidden, heads, depth)

    def scene(self, t: int, n: int) -> Scene:
        """Return what layers need when t queries attend to n keys."""
        table = sinusoids(n, self.width, self.content)
        return Scene(table, later(t, n, table), self.content, self.place)

    def zeros(self, *shape: int) -> Tensor:
        """Return zeros of the parameters' type, on their device."""
        return self.content.new_zeros(shape)

    def flops_of_layers(self, keys: float, projected: float) -> int:
        """Return the operations of the layers for one step.

        Each step attends to `keys` and projects the keys and values of `projected` states. The
        projections of the distances are left out: all streams of a batch share them.
        """
        each = self.width * (4 * self.width + 4 * self.width * projected + 6 * keys)
        return round(len(self.layers) * (each + 4 * self.width * self.hidden))


def at_least(least: int, **sizes: int) -> None:
    """Check that named sizes are whole and not below the least.

    Raises:
        ValueError: names the first that is not.
    """
    for name, size in sizes.items():
        if not isinstance(size, int) or size < least:
            raise ValueError(f"{name} is a whole number of at least {least}, not {size}")
