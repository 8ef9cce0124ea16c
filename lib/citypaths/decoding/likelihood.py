"""Likelihoods as energies: the generator's own, and that of a model which walks backwards."""

from __future__ import annotations

import numpy as np
import torch

from citypaths.data.batches import Batch, batch_of_paths
from citypaths.decoding.decode import evaluating
from citypaths.decoding.scorers import LOST
from citypaths.map.paths import Paths
from citypaths.models.base import PathModel, nats

AT_ONCE = 2**14  # cities in one forward pass


class Likelihood:
    """Minus the log-probability of a path under a model: nats.

    A path that does not lead from its source to its target has `LOST`.
    """

    def __init__(self, model: PathModel) -> None:
        self.model = model

    def score(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """See `Scorer.score`: nats, float64 [N]; 0 for a source that is its own target."""
        energies = self.hop_energies(source, target, paths).sum(1)
        ids, last = paths.padded(), np.maximum(paths.lengths - 1, 0)
        if not ids.shape[1]:
            return np.full(len(ids), LOST)
        good = (ids[:, 0] == source) & (ids[np.arange(len(ids)), last] == target)
        return np.where(good, energies, LOST)

    def hop_energies(self, source: np.ndarray, target: np.ndarray, paths: Paths) -> np.ndarray:
        """Return -log p of each hop, float64 [N, hops of the longest path], 0 after the end.

        Raises:
            ValueError: not one path a query.
        """
        if not len(source) == len(target) == len(paths):
            raise ValueError(f"{len(source)} queries but {len(paths)} paths")
        out = np.zeros((len(paths), max(0, int(paths.lengths.max(initial=1)) - 1)))
        rows = np.flatnonzero(paths.lengths > 1)
        rows = rows[np.argsort(paths.lengths[rows], kind="stable")]  # alike in length: no padding
        with evaluating(self.model) as where:
            for some in np.array_split(rows, -(-int(paths.lengths[rows].sum()) // AT_ONCE) or 1):
                if len(some):
                    batch = batch_of_paths(paths.take(some), where)
                    ids = (
                        torch.as_tensor(np.asarray(x)[some], device=where) for x in (source, target)
                    )
                    batch = Batch(*ids, batch.cities, batch.labels)
                    each = nats(self.model(batch), batch, "none").view_as(batch.labels)
                    out[some, : each.shape[1]] = each.double().cpu().numpy()
        return out

    def flops(self, paths: Paths) -> np.ndarray:
        """Return a step of the model a hop, and its start."""
        hops = np.maximum(paths.lengths - 1, 0)
        return hops * float(self.model.flops_per_step()) + (hops > 0) * self.model.flops_to_start

    def lookups(self, paths: Paths) -> np.ndarray:
        """Return zeros: nothing is looked up."""
        return np.zeros(len(paths))
