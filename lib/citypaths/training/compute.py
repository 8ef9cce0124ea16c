"""Floating-point operations: what training and inference cost, counted one way for every model.

A multiply-add is two operations; only matrix products count, as in torch's FlopCounterMode.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from citypaths.models.base import PathModel


def training_flops(model: PathModel, tokens: int, extra_forwards: float = 0.0) -> int:
    """Return operations to train on `tokens` steps, with any extra forward passes."""
    per_step = model.training_flops_per_step + extra_forwards * model.flops_per_step()
    return int(per_step * tokens)


def counted_flops(call: Callable[[], Any]) -> int:
    """Return the operations torch counts while `call` runs (fused RNN kernels escape it)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention escapes too
        call()
    return counter.get_total_flops()
