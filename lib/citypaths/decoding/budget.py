"""What a search may spend on one query."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import inf

import numpy as np


@dataclass(frozen=True)
class Budget:
    """What a search may spend on one query: it stops before it would exceed any of them.

    Attributes:
        flops: floating-point operations of all networks, scorers included.
        lookups: "is this hop an edge, and how long is it?", or an out-edge read on the open map.
        expansions: cities whose out-edges are read.
    """

    flops: float = inf
    lookups: float = inf
    expansions: float = inf

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                value = getattr(self, field.name)
                raise ValueError(f"a budget of {field.name} is 0 or more, not {value}")

    def allows(self, flops=0.0, lookups=0.0, expansions=0.0) -> np.ndarray:
        """Return whether totals spent (any shapes that broadcast) are within the budget, bool."""
        within = np.less_equal(flops, self.flops) & np.less_equal(lookups, self.lookups)
        return within & np.less_equal(expansions, self.expansions)
