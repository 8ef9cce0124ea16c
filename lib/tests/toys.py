"""Small things that several test files share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode


def counted_flops(call: Callable[[], Any]) -> int:
    """Return the operations torch counts while `call` runs (fused RNN kernels escape it)."""
    counter = FlopCounterMode(display=False)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # fused attention escapes too
        call()
    return counter.get_total_flops()
