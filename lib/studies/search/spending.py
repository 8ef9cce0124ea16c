"""What the queries of a search have spent, and which hops each of them has looked up."""

from __future__ import annotations

import numpy as np

from citypaths.decoding.budget import Budget


class Spending:
    """The account of every query: it pays for work in order and stops at what it cannot pay.

    Attributes:
        flops, lookups: float64 [queries], paid so far.
        going: bool [queries], false once something was too dear.
    """

    def __init__(self, queries: int, cities: int, budget: Budget) -> None:
        """Open accounts for queries on a map of so many `cities`."""
        self.flops, self.lookups = np.zeros(queries), np.zeros(queries)
        self.going = np.ones(queries, bool)
        self.cities, self.budget = cities, budget
        self._known = np.zeros(0, np.int64)

    def unseen(self, query: np.ndarray, paths: np.ndarray) -> np.ndarray:
        """Return which hops a query looks up for the first time, and remember them.

        Args:
            query: int64 [A]. paths: ids [A, ..., W], padded with -1, in the order of work.

        Returns: bool [A, ..., W - 1]; a hop that appears again, even in the same path, is known.
        """
        a, b = paths[..., :-1].astype(np.int64), paths[..., 1:]
        real = (a >= 0) & (b >= 0)
        query = np.asarray(query).reshape((-1,) + (1,) * (paths.ndim - 1))
        keys, first = np.unique(
            ((query * self.cities + a) * self.cities + b)[real], return_index=True
        )
        at = np.searchsorted(self._known, keys)
        known = np.append(self._known, -1)[at] == keys
        flags = np.zeros(int(real.sum()), bool)
        flags[first[~known]] = True
        self._known = np.insert(self._known, at[~known], keys[~known])
        out = np.zeros(real.shape, bool)
        out[real] = flags
        return out

    def pay(self, query: np.ndarray, flops: np.ndarray, lookups: np.ndarray) -> np.ndarray:
        """Pay costs [A, C] of queries [A], one after the other; return what was paid, bool [A, C].

        A query stops before the first that it cannot pay, and pays nothing from then on.
        """
        flops, lookups = (np.pad(np.cumsum(x, 1), ((0, 0), (1, 0))) for x in (flops, lookups))
        total = self.flops[query][:, None] + flops, self.lookups[query][:, None] + lookups
        paid = (self.budget.allows(*total) & self.going[query][:, None])[:, 1:]
        last = paid.sum(1)
        self.going[query] &= paid.all(1)
        rows = np.arange(len(query))
        self.flops[query], self.lookups[query] = total[0][rows, last], total[1][rows, last]
        return paid
