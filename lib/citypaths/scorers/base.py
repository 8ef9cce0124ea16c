"""What a scorer is: energies of whole paths, or kilometres still to go from a city."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from torch import Tensor

from citypaths.paths import Paths


class Scorer(Protocol):
    """Energies of whole paths: lower is better."""

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return energies, float64 [N], of `paths` (one each) for queries given as ids [N]."""

    def flops(self, paths: Paths) -> np.ndarray:
        """Return the floating-point operations of scoring each path, float64 [N]."""

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return the look-ups of scoring each path, float64 [N]: 0 for what is learned."""


class Value(Protocol):
    """Kilometres still to go."""

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """Return kilometres from each city [N] to its target [N]; float [N], 0 at the target."""

    @property
    def flops_per_call(self) -> int:
        """Return the floating-point operations of one estimate."""
