"""Queries with what their breakdowns need, decoded and judged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd

from citypaths.data.dataset import Dataset, Rows
from citypaths.decoding import in_parts
from citypaths.judging.floors import walk
from citypaths.judging.metrics import by_detour, by_hops, judge, ledger_rates
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found


@dataclass(frozen=True, eq=False)
class Queries:
    """Test queries with what the breakdowns need.

    Attributes:
        rows: the queries and their shortest paths. contained: bool, inside a training path.
        hard: bool, geo-greedy fails. straight_km: great-circle km.
    """

    graph: CityGraph
    rows: Rows
    contained: np.ndarray
    hard: np.ndarray
    straight_km: np.ndarray

    @classmethod
    def of(cls, dataset: Dataset, part: str = "test") -> Queries:
        """Read a part of a dataset."""
        return cls.of_rows(dataset.graph, *dataset.queries(part))

    @classmethod
    def of_rows(cls, graph: CityGraph, rows: Rows, contained: np.ndarray) -> Queries:
        """Take rows as queries; `contained`: which lie inside a training path, bool [rows]."""
        found = walk(graph, rows.source, rows.target)
        judged = judge(graph, rows.source, rows.target, rows.km, found.paths)
        straight = graph.distance_km(rows.source, rows.target)
        return cls(graph, rows, contained, ~judged["success"].to_numpy(), straight)

    def __len__(self) -> int:
        return len(self.rows)

    def take(self, keep: np.ndarray) -> Queries:
        """Return some of the queries (positions or a boolean mask)."""
        arrays = (a[keep] for a in (self.contained, self.hard, self.straight_km))
        return Queries(self.graph, self.rows.take(keep), *arrays)

    def uncontained(self) -> Queries:
        """Return the queries that lie inside no training path."""
        return self.take(~self.contained)

    def first(self, count: int) -> Queries:
        """Return `count` queries spread evenly over all (they are sorted by target)."""
        count = min(count, len(self))
        return self.take(np.linspace(0, max(0, len(self) - 1), count).astype(int))

    def judge(self, found: Found) -> pd.DataFrame:
        """Judge paths found for these queries, with their groups; see `metrics.judge`."""
        rows = self.rows
        args = (self.graph, rows.source, rows.target, rows.km, found.paths, rows.paths)
        extra = {"hard": self.hard, "contained": self.contained, "shortest_hops": rows.hops}
        groups = {"by_hops": by_hops(rows.hops), "by_detour": by_detour(rows.km / self.straight_km)}
        return judge(*args).assign(**extra, **groups)

    def decode(
        self, decoder: Callable[..., Found], model: Any, *, part: int = 0, name: str = "", **options
    ) -> Found:
        """Run a decoder such as `decoding.greedy` on these queries, `max_hops` hops at most.

        Args:
            part, name: run it on so many queries at a time, with progress; see `in_parts`, which
                raises a `seed` from part to part. 0: on all at once.
        """

        def run(source: np.ndarray, target: np.ndarray, **given: Any) -> Found:
            return decoder(model, source, target, self.max_hops, **given)

        ids = (self.rows.source, self.rows.target)
        return (
            in_parts(run, *ids, part=part, name=name, **options) if part else run(*ids, **options)
        )

    @cached_property
    def max_hops(self) -> int:
        """Hops a decoder may take: one and a half times the longest shortest path here, plus 4."""
        return int(1.5 * self.rows.hops.max(initial=1)) + 4


def ledger_row(judged: pd.DataFrame, found: Found) -> dict[str, Any]:
    """Return the ledger's metric and cost columns for one method on one set of queries."""
    return ledger_rates(judged) | found.cost()
