"""Kilometres to go, learned from shortest paths."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import register
from studies.search.pairs import PairNetwork


@register("value", writes=False)
class CostToGo(PairNetwork):
    """Kilometres from a city to a target, as a distribution over the excess of the way.

    The excess is network km / great-circle km - 1, at least 0. The distribution is categorical over
    `bins` supports, from 0 to `most`, apart by about `finest` at first and geometrically further
    on; a label is shared by its two neighbours so that its mean is exact (Bellemare et al. 2017;
    Schrittwieser et al. 2020).

    Args:
        quantile: what `togo` and `table` give when not told otherwise; None is the mean.
        inside, settings: see `PairNetwork`.

    Raises:
        ValueError: fewer than 2 bins, or a quantile outside (0, 1); see also `PairNetwork`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        bins: int = 48,
        finest: float = 1e-2,
        most: float = 4.0,
        quantile: float | None = None,
        inside: float = 0.0,
        **settings: Any,
    ) -> None:
        if bins < 2:
            raise ValueError(f"a distribution has at least 2 bins, not {bins}")
        super().__init__(graph, bins, inside=inside, **settings)
        self.quantile = _checked(quantile)
        steps = torch.linspace(0, math.log1p(most / finest), bins, dtype=torch.float64)
        self.register_buffer("support", (finest * torch.expm1(steps)).float(), persistent=False)

    def loss(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return the mean cross-entropy in nats of the excess of one pair a hop."""
        pairs = self.pairs(batch)
        straight = self.straight_km(pairs.city, pairs.target).clamp_min(1e-6)
        excess = (pairs.km / straight - 1).clamp(0, float(self.support[-1]))
        above = torch.searchsorted(self.support, excess).clamp(1, len(self.support) - 1)
        low, high = self.support[above - 1], self.support[above]
        share = (excess - low) / (high - low)
        log_p = self(pairs.city, pairs.target).float().log_softmax(-1)
        near = log_p.gather(-1, torch.stack([above - 1, above], -1))
        return pairs.mean(-torch.lerp(near[..., 0], near[..., 1], share))

    def distribution(self, city: Tensor, target: Tensor) -> Tensor:
        """Return probabilities [..., bins] of the excess at each of `support`."""
        return self(city, target).float().softmax(-1)

    def excess(self, city: Tensor, target: Tensor, quantile: float | None = None) -> Tensor:
        """Return the mean excess, or a quantile of it, interpolated between supports."""
        p = self.distribution(city, target)
        if _checked(quantile) is None:
            return (p * self.support).sum(-1)
        middle = p.cumsum(-1) - p / 2
        at = (middle < quantile).sum(-1).clamp(1, len(self.support) - 1)
        low, high = (middle.gather(-1, (at + i)[..., None])[..., 0] for i in (-1, 0))
        share = ((quantile - low) / (high - low).clamp_min(1e-9)).clamp(0, 1)
        return torch.lerp(self.support[at - 1], self.support[at], share)

    def togo(self, city: Tensor, target: Tensor, quantile: float | None = None) -> Tensor:
        """Return km to go, at least the great circle and 0 at the target; shapes broadcast.

        `quantile` is between 0 and 1; None is the network's own, or else the mean.
        """
        quantile = self.quantile if quantile is None else quantile
        return self.straight_km(city, target) * (1 + self.excess(city, target, quantile))

    def table(self, targets: Tensor, quantile: float | None = None) -> Tensor:
        """Return km to go from every city to each of `targets` [n], [n, V]."""
        return self.over_cities(lambda city, target: self.togo(city, target, quantile), targets)

    def at(self, quantile: float | None) -> TogoAt:
        """Return a `Value` that gives this quantile (None: the network's own, or the mean)."""
        return TogoAt(self, _checked(quantile))


@dataclass(frozen=True)
class TogoAt:
    """A `Value`: one quantile of a trained `CostToGo`."""

    network: CostToGo
    quantile: float | None

    @property
    def flops_per_call(self) -> int:
        """See `Value.flops_per_call`."""
        return self.network.flops_per_call

    @property
    def device(self) -> torch.device:
        """Return where the network's weights are."""
        return self.network.device

    def togo(self, city: Tensor, target: Tensor) -> Tensor:
        """See `Value.togo`."""
        return self.network.togo(city, target, self.quantile)

    def table(self, targets: Tensor) -> Tensor:
        """See `CostToGo.table`."""
        return self.network.table(targets, self.quantile)


def _checked(quantile: float | None) -> float | None:
    if quantile is not None and not 0 < quantile < 1:
        raise ValueError(f"a quantile is between 0 and 1, not {quantile}")
    return quantile
