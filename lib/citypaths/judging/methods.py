"""Every method of a notebook on the same queries: judged paths and rows for the ledger."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields
from typing import Any

import pandas as pd

from citypaths.judging.ledger import FAMILIES, REGIMES
from citypaths.judging.queries import Queries, ledger_row
from citypaths.map.paths import Found
from citypaths.training.loop import Trained


@dataclass(frozen=True, eq=False)
class Scored:
    """A method's paths on some queries, judged: `judged` a row a query, `row` for the ledger."""

    found: Found
    judged: pd.DataFrame
    row: dict[str, Any]

    @property
    def name(self) -> str:
        """The method, or the model where there is one, with its method unless that is greedy.

        A method with a model whose hops are checked says so.
        """
        model, method = self.row["model"], self.row["method"]
        if model == "none":
            return method
        text = f"{method}, checked" if self.row["regime"] == "checked" else method
        return model if text == "greedy" else f"{model}, {text}"


@dataclass(frozen=True, eq=False, kw_only=True)
class Method:
    """A way to answer queries, described once; its fields are columns of the ledger.

    Attributes:
        name: what it does, without its model and regime: "beam 8", "best of 64".
        family: one of `ledger.FAMILIES`.
        regime: what it may see: "closed_book", "checked" (single hops, counted), "open_map".
        run: answers queries; None where answers are scored that are already there.
        model: what the network is called; "none" without one.
        attempts: paths drawn, beams kept or simulations made a query.
        verifier: what chooses among attempts: "own likelihood", "exact length", ...
        loops: recurrent steps a city. rounds: refinements a path.
        share: of paths learned or of hops closed, from 0 to 1.
        parameters: of all networks it uses. memory_numbers: it keeps beside them.
        training_flops: operations of all their trainings.

    Raises:
        ValueError: an unknown family or regime.
    """

    name: str
    family: str
    regime: str
    run: Callable[[Queries], Found] | None = None
    model: str = "none"
    attempts: int = 1
    verifier: str = ""
    loops: int | None = None
    rounds: int | None = None
    share: float | None = None
    parameters: int | None = None
    memory_numbers: int | None = None
    training_flops: float | None = None

    def __post_init__(self) -> None:
        for name, known in (("family", FAMILIES), ("regime", REGIMES)):
            if getattr(self, name) not in known:
                raise ValueError(
                    f"{name} is one of {', '.join(known)}, not {getattr(self, name)!r}"
                )

    @classmethod
    def of(cls, label: str, *trained: Trained, **names: Any) -> Method:
        """Describe a method of trained networks: the model's `label`, parameters and training."""
        sums = {
            "parameters": sum(one.model.parameters_count for one in trained),
            "training_flops": sum(one.training_flops for one in trained),
        }
        return cls(**{"model": label} | sums | names)

    @property
    def columns(self) -> dict[str, Any]:
        """Return what the ledger says of it; what is None is left out."""
        named = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "run"}
        named["method"] = named.pop("name")
        return {name: value for name, value in named.items() if value is not None}


def score(queries: Queries, found: Found, method: Method, **columns: Any) -> Scored:
    """Judge what a method found; `columns` of the ledger are added to the method's own."""
    judged = queries.judge(found)
    return Scored(found, judged, ledger_row(judged, found) | method.columns | columns)


def score_methods(methods: Iterable[Method], queries: Queries, **columns: Any) -> list[Scored]:
    """Run every method on the same queries and judge what it finds; see `score`."""
    return [score(queries, method.run(queries), method, **columns) for method in methods]


def board(scored: Iterable[Scored], columns: str) -> pd.DataFrame:
    """Return the ledger columns named in `columns` (apart by spaces), one row a method."""
    scored = list(scored)
    table = pd.DataFrame([s.row for s in scored], index=[s.name for s in scored])
    return table[columns.split()]
