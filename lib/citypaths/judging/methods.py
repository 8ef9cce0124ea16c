"""Every method of a notebook on the same queries: judged paths and rows for the ledger."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import pandas as pd

from citypaths import decoding
from citypaths.judging.floors import floors, hop_use, rarest_hop
from citypaths.judging.metrics import by_count
from citypaths.judging.queries import Queries, ledger_row
from citypaths.map.paths import Found, Paths
from citypaths.training.loop import Trained


@dataclass(frozen=True, eq=False)
class Scored:
    """A method's paths on some queries, judged: `judged` a row a query, `row` for the ledger."""

    found: Found
    judged: pd.DataFrame
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """The method, or the model where there is one, with its method unless that is greedy."""
        model, method = self.row["model"], self.row["method"]
        return method if model == "none" else model if method == "greedy" else f"{model}, {method}"


def score(queries: Queries, found: Found, **names: Any) -> Scored:
    """Judge what a method found; `names` are ledger columns such as method, model and regime."""
    judged = queries.judge(found)
    return Scored(found, judged, ledger_row(judged, found) | names)


def score_floors(queries: Queries, memory: list[Paths]) -> list[Scored]:
    """Score every non-neural floor; `memory` holds the training paths of the memorizer."""
    names = {"model": "none", "regime": "open_map"}
    rows = queries.rows
    return [
        score(queries, method(rows.source, rows.target), method=name, **names)
        for name, method in floors(queries.graph, memory).items()
    ]


def score_decoders(queries: Queries, arm: str, trained: Trained, seed: int = 0) -> list[Scored]:
    """Score a trained model with every decoder, closed-book and checked by the queries' graph."""
    check = {"checked_by": queries.graph}
    decoders: list[tuple[str, Any, dict[str, Any]]] = [
        ("greedy", decoding.greedy, {}),
        ("sample", decoding.sample, {"seed": seed}),
        ("beam 8", decoding.beam, {"width": 8}),
        ("greedy, checked", decoding.greedy, check),
        ("beam 8, checked", decoding.beam, {"width": 8} | check),
    ]
    shared = {"model": arm, "parameters": trained.model.parameters_count}
    shared |= {"training_flops": trained.training_flops}
    scored = []
    for method, decoder, options in decoders:
        found = queries.decode(decoder, trained.model, **options)
        regime = "checked" if "checked_by" in options else "closed_book"
        names = {"method": method, "regime": regime, "budget": options.get("width", 1)}
        scored.append(score(queries, found, **shared, **names))
    return scored


def board(scored: Iterable[Scored], columns: str) -> pd.DataFrame:
    """Return the ledger columns named in `columns` (apart by spaces), one row a method."""
    scored = list(scored)
    table = pd.DataFrame([s.row for s in scored], index=[s.name for s in scored])
    return table[columns.split()]


def well_travelled(queries: Queries, memory: list[Paths]) -> pd.Categorical:
    """Return each query's group by how many training paths take its path's rarest hop."""
    use = hop_use(queries.graph, memory)
    return by_count(rarest_hop(queries.graph, use, queries.rows.paths))
