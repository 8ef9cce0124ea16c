"""The compressive transformer: what leaves the memory is compressed (Rae et al. 2020)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from studies.episodes.attention import Layer, at_least
from studies.episodes.segments import Past, Segmented, SegmentState

WAYS = ("conv", "mean", "max")


class TwoPasts(NamedTuple):
    """The compressed past and, after it, the past as it was."""

    compressed: Past
    recent: Past


class Compressive(Segmented):
    """Transformer-XL whose memory's oldest states are compressed instead of dropped.

    A layer attends to [compressed; memory; segment so far]; positions count a compressed state as
    one. `tap` is given [compressed; memory] of each layer, [B, states, width].

    Attributes:
        reconstruction: scalar, the attention-reconstruction loss of the last forward pass: the mean
            square between what a segment attends by content in the old states and in their
            compressed form, summed over layers, averaged over compressions (Rae et al. 2020,
            algorithm 2). All but the compressor is stopped in it, and the compressor learns from
            it alone: add it to the loss. Zero where nothing was compressed, without gradients
            enabled and for "mean" and "max", which have nothing to learn.

    Args:
        width: of inputs and outputs, even. hidden: of the feed-forward networks.
        layers, heads: of the stack; heads divide the width. segment: steps.
        memory, compressed: states as they were and states compressed; may be changed between
            streams. rate: states that become one; divides segment and memory.
        how: "conv" (kernel and stride of `rate`), "mean" or "max".

    Raises:
        ValueError: a size out of range, a rate that divides not both, an unknown `how`.
    """

    reconstruction: Tensor

    def __init__(
        self,
        width: int,
        hidden: int = 64,
        layers: int = 2,
        heads: int = 4,
        segment: int = 16,
        memory: int = 16,
        compressed: int = 16,
        rate: int = 2,
        how: str = "conv",
    ) -> None:
        super().__init__(width, hidden, layers, heads, segment)
        if how not in WAYS:
            raise ValueError(f"how to compress is one of {WAYS}, not {how!r}")
        self.memory, self.compressed, self.rate, self.how = memory, compressed, rate, how
        self._check()
        # A convolution whose kernel is its stride is a linear map of each group of states.
        count = layers if how == "conv" else 0
        maps = (nn.Linear(rate * width, width) for _ in range(count))
        self.compressors = nn.ModuleList(maps)
        self.reconstruction = torch.zeros(())
        self._losses: list[Tensor] = []

    def _check(self) -> None:
        at_least(0, memory=self.memory, compressed=self.compressed)
        at_least(1, rate=self.rate)
        if self.segment % self.rate or self.memory % self.rate:
            raise ValueError(
                f"a rate of {self.rate} must divide the segment of {self.segment} and the memory "
                f"of {self.memory}: what leaves the memory is compressed without a remainder"
            )

    def __getstate__(self) -> dict[str, Any]:
        # A loss with a graph cannot be copied, and a copied model has read nothing.
        return {**self.__dict__, "reconstruction": self.reconstruction.detach(), "_losses": []}

    def fresh(self, batch: int) -> TwoPasts:
        """See `Segmented.fresh`."""
        self._check()
        return TwoPasts(self.past(batch, self.compressed), self.past(batch, self.memory))

    def earlier(self, memory: TwoPasts) -> list[Tensor]:
        """See `Segmented.earlier`."""
        pairs = zip(memory.compressed.filled(), memory.recent.filled(), strict=True)
        return [self.read(torch.cat(pair, 1)) for pair in pairs]

    def forward(self, x: Tensor, state: SegmentState | None = None) -> tuple[Tensor, SegmentState]:
        """See `Memory.forward`; sets `reconstruction`."""
        self._losses = []
        output, state = super().forward(x, state)
        losses, self._losses = self._losses, []
        self.reconstruction = torch.stack(losses).mean() if losses else self.zeros()
        return output, state

    def completed(self, memory: TwoPasts, inputs: list[Tensor]) -> TwoPasts:
        """See `Segmented.completed`."""
        leaving = memory.recent.held + inputs[0].shape[1] - memory.recent.rows[0].shape[1]
        recent = memory.recent.after(inputs)
        if leaving <= 0 or not memory.compressed.rows[0].shape[1]:
            return TwoPasts(memory.compressed, recent)
        pairs = zip(memory.recent.filled(), inputs, strict=True)
        old = [torch.cat(pair, 1)[:, :leaving] for pair in pairs]
        new = [self.compress(i, states) for i, states in enumerate(old)]
        if self.compressors and torch.is_grad_enabled():
            each = map(reconstruction_loss, self.layers, inputs, old, new)
            self._losses.append(torch.stack(list(each)).sum())
        kept = [self.kept(states).detach() for states in new]
        return TwoPasts(memory.compressed.after(kept), recent)

    def compress(self, index: int, states: Tensor) -> Tensor:
        """Return states [B, n, width] of a layer as [B, n / rate, width]."""
        groups = states.unflatten(1, (-1, self.rate))
        if self.how == "conv":
            return self.compressors[index](groups.flatten(2))
        return groups.mean(2) if self.how == "mean" else groups.amax(2)

    def flops_per_step(self) -> int:
        """Return the operations of one step of a segment read at once; see `Memory`.

        The reconstruction loss is left out: it is for training only.
        """
        before = self.memory + self.compressed
        compressing = 2 * self.width**2 * len(self.compressors) * (self.compressed > 0)
        layers = self.flops_of_layers(before + self.segment, 1 + before / self.segment)
        return layers + compressing


def reconstruction_loss(layer: Layer, states: Tensor, old: Tensor, new: Tensor) -> Tensor:
    """Return the mean square between what states attend in `old` and in `new`, by content alone.

    Args:
        layer: whose weights are used, stopped. states: [B, t, width]. old: [B, n, width].
        new: [B, m, width], the only one to get a gradient (Rae et al. 2020, algorithm 2).
    """
    with torch.no_grad():
        queries = layer.split(layer.content(layer.queries(states)))
        wanted = _by_content(layer, queries, layer.keys_values(old))
    norm = layer.norm
    normed = F.layer_norm(
        new, norm.normalized_shape, norm.weight.detach(), norm.bias.detach(), norm.eps
    )
    keys_values = F.linear(normed, layer.key_value.weight.detach())
    return F.mse_loss(_by_content(layer, queries, keys_values), wanted)


def _by_content(layer: Layer, queries: Tensor, keys_values: Tensor) -> Tensor:
    """Attended values [heads * B, t, d] for queries that are split and scaled."""
    keys, values = (layer.split(part) for part in keys_values.chunk(2, -1))
    return torch.bmm(torch.bmm(queries, keys.transpose(1, 2)).softmax(-1), values)
