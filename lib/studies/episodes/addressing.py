"""How slots are addressed, by content, by a shift or by what is free, and how they are written."""

from __future__ import annotations

from functools import reduce

import torch
from torch import Tensor

TINY = 1e-6  # added to squared lengths: a slot of zeros has a direction of none


def aimed(keys: Tensor, strengths: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return keys [B, R, word] scaled so that a product with unit slots is strength * cosine.

    With masks [B, R, word] in [0, 1] the cosine is that of the masked key with the masked slot
    (Csordas & Schmidhuber 2019). strengths: [B, R].
    """
    kept = keys if masks is None else keys * masks
    length = (kept.square().sum(-1) + TINY).rsqrt()
    scaled = kept * (strengths * length).unsqueeze(-1)
    return scaled if masks is None else scaled * masks


def by_content(memory: Tensor, aims: Tensor, masks: Tensor | None = None) -> Tensor:
    """Return weights [B, R, slots] by cosine with memory [B, slots, word] (Graves 2014).

    aims: what `aimed` returned; masks: those given to it.
    """
    squares = memory.square()
    if masks is None:
        lengths = squares.sum(-1).unsqueeze(1)
    else:
        lengths = torch.bmm(masks.square(), squares.mT)
    scores = torch.bmm(aims, memory.mT) * (lengths + TINY).rsqrt()
    return scores.softmax(-1)


def shifted(weights: Tensor, shifts: Tensor) -> Tensor:
    """Return weights [..., slots] moved round by shifts [..., 3]: back, not at all, on by one."""
    around = torch.stack((weights.roll(-1, -1), weights, weights.roll(1, -1)), -2)
    return (around * shifts.unsqueeze(-1)).sum(-2)


def sharpened(weights: Tensor, powers: Tensor, floor: float = 1e-12) -> Tensor:
    """Return weights [..., slots] to powers [...] >= 1, with sum 1.

    As a softmax of logarithms neither the power nor the sum can come to 0 / 0; `floor` is added
    first, so that zeros everywhere become equal weights.
    """
    return ((weights + floor).log() * powers.unsqueeze(-1)).softmax(-1)


def allocated(usage: Tensor) -> Tensor:
    """Return where there is room [B, slots], the least used slot first (Graves 2016).

    usage: [B, slots] in [0, 1]. The sum is 1 - the product of all usages.
    """
    used, order = (TINY + (1 - TINY) * usage).sort(stable=True, dim=-1)
    logs = used.log()
    room = (1 - used) * (logs.cumsum(-1) - logs).exp()
    return torch.zeros_like(room).scatter(-1, order, room)


def written(memory: Tensor, weights: Tensor, erase: Tensor, add: Tensor) -> Tensor:
    """Return memory [B, slots, word] after all heads erased, then all added (Graves 2014).

    weights: [B, R, slots]. erase, add: [B, R, word].
    """
    if weights.shape[1] == 1:
        return torch.addcmul(memory, weights.mT, torch.addcmul(add, erase, memory, value=-1))
    left = 1 - weights.unsqueeze(-1) * erase.unsqueeze(-2)
    # Not `prod`, whose gradient waits for the device.
    return torch.baddbmm(memory * reduce(torch.mul, left.unbind(1)), weights.mT, add)
