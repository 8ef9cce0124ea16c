"""Exact search for the nearest of many keys, at the pace of the processor's cache."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK = 32  # keys of which only the nearest is looked at first
PIECE = 2**12  # keys compared together
STATES = 256  # states compared together
FEW = 2**15  # keys that are searched at once


def nearest(
    keys: Tensor, states: Tensor, k: int, owners: Tensor, asked: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Return dot products [N, k] and rows [N, k] of the k nearest keys, exactly, best first.

    Many keys on a processor are searched twice: first for the nearest key of each block, then
    within the k best blocks, which hold the k nearest.

    Args:
        keys: [M, D]. states: [N, D]. k: at most M. owners: int64 [M].
        asked: int64 [N]; rows of that owner are left out (minus infinity).
    """
    once = len(keys) <= FEW or keys.device.type != "cpu"
    search, step = (_at_once, 2**24 // max(1, len(keys))) if once else (_in_blocks, STATES)
    parts = []
    for i in range(0, len(states), max(1, step)):
        some = slice(i, i + max(1, step))
        parts.append(search(keys, states[some], k, owners, None if asked is None else asked[some]))
    if not parts:
        return states.new_zeros(0, k), owners.new_zeros(0, k)
    return tuple(torch.cat(column) for column in zip(*parts, strict=True))


def _at_once(keys: Tensor, states: Tensor, k: int, owners: Tensor, asked: Tensor | None):
    near = states @ keys.T
    return tuple(_left_out(near, owners, asked).topk(k))


def _left_out(near: Tensor, owners: Tensor, asked: Tensor | None) -> Tensor:
    return near if asked is None else near.masked_fill(asked[:, None] == owners, float("-inf"))


def _in_blocks(keys: Tensor, states: Tensor, k: int, owners: Tensor, asked: Tensor | None):
    best = []
    for first in range(0, len(keys), PIECE):
        part = slice(first, first + PIECE)
        near = _left_out(states @ keys[part].T, owners[part], asked)
        near = F.pad(near, (0, -near.shape[1] % BLOCK), value=float("-inf"))
        best.append(near.unflatten(1, (-1, BLOCK)).amax(-1))
    maxima = torch.cat(best, 1)
    blocks = maxima.topk(min(k, maxima.shape[1]))[1]
    found = []
    for i in range(0, len(states), BLOCK):
        some = slice(i, i + BLOCK)
        ask = None if asked is None else asked[some]
        found.append(_within(keys, states[some], k, owners, ask, blocks[some]))
    return tuple(torch.cat(column) for column in zip(*found, strict=True))


def _within(
    keys: Tensor, states: Tensor, k: int, owners: Tensor, asked: Tensor | None, blocks: Tensor
) -> tuple[Tensor, Tensor]:
    """The nearest keys among those of `blocks` [N, some], which are other ones for each state."""
    rows = (blocks[..., None] * BLOCK + torch.arange(BLOCK, device=keys.device)).flatten(1)
    outside, rows = rows >= len(keys), rows.clamp(max=len(keys) - 1)
    near = torch.bmm(keys[rows], states[..., None])[..., 0].masked_fill(outside, float("-inf"))
    near = near if asked is None else _left_out(near, owners[rows], asked)
    near, at = near.topk(k)
    return near, rows.gather(1, at)
