"""What the forward and the backward pass of the feedback transformer's scan hand each other."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Shared(NamedTuple):
    """What all layers share: T steps, B paths, L layers, H heads; width d; normalisation folded.

    inputs [T, B, d]; queries [T, B, d], the first layer's; mix [1 + L], the weights of a step's
    states in its memory; bias [H, T, 1 + T], added to scores; null [2, H, d / H], a key and a
    value; memory [2 d, d] and memory_bias [2 d], from a normalised memory to its key and value.
    """

    inputs: Tensor
    queries: Tensor
    mix: Tensor
    bias: Tensor
    null: Tensor
    memory: Tensor
    memory_bias: Tensor


class LayerWeights(NamedTuple):
    """A layer's matrices [out, in] and biases, of normalised inputs; the first has no query."""

    query: Tensor | None
    query_bias: Tensor | None
    out: Tensor
    up: Tensor
    up_bias: Tensor
    down: Tensor
    down_bias: Tensor


class Kept(NamedTuple):
    """What the forward pass leaves for the backward one (N = B H; 1 + T: the null comes first).

    states [1 + L, T, B, d]; middle (after attention), queries and mixed (attended values), all
    [L, T, B, d]; hidden [L, T, B, 4 d]; memories [T, B, d]; keys and values [N, 1 + T, d / H];
    chances of attention, one tensor [L, N, 1, 1 + t] for each step t.
    """

    states: Tensor
    middle: Tensor
    queries: Tensor
    mixed: Tensor
    hidden: Tensor
    memories: Tensor
    keys: Tensor
    values: Tensor
    chances: tuple[Tensor, ...]
