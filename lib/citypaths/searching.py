"""Search at test time, scored: what each regime buys, best of N, and learned heuristics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from citypaths import search
from citypaths.dataset import Dataset
from citypaths.floors import Found
from citypaths.lab import Queries, train_arm
from citypaths.scorers import PathLength
from citypaths.scoring import Scored, score
from citypaths.sizes import Size
from citypaths.train import Trained, TrainSettings

QUANTILES = (None, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
SLICE = 50  # queries searched together


def train_value(size: Size, dataset: Dataset, seed: int) -> Trained:
    """Train (or load) the distribution of kilometres to go, `citypaths.scorers.CostToGo`."""
    recipe = TrainSettings(
        size.steps, 2 * size.batch_tokens, learning_rate=1e-2, seed=seed, evaluations=1
    )
    return train_arm(size, dataset, "value", recipe, {}, None, "value")


def _scored(
    queries: Queries, method: Callable[..., Found], names: dict[str, Any], seed: int | None
) -> Scored:
    """Run a search on the queries in parts, with progress, and judge what it found."""
    drawn = {} if seed is None else {"seed": seed}
    ids = (queries.rows.source, queries.rows.target)
    found = search.in_parts(method, *ids, part=SLICE, name=names["method"], **drawn)
    return score(queries, found, **names)


def search_table(
    queries: Queries, arm: str, trained: Trained, seed: int, ns: Sequence[int]
) -> list[Scored]:
    """Score a model by decoder and by how many attempts it may check.

    Closed-book: greedy, beam, stochastic beam. Checked: the same, best of N by exact length,
    stitched attempts, and evolution by exact length.
    """
    model, verify, most = trained.model.eval(), PathLength(queries.graph), queries.max_hops
    check: dict[str, Any] = {"checked_by": queries.graph}
    shared = {"model": arm, "parameters": trained.model.parameters_count}
    shared |= {"training_flops": trained.training_flops}

    def row(method: str, call: Callable[..., Found], budget: int = 1, **options: Any) -> Scored:
        regime = "checked" if "checked_by" in options else "closed_book"
        names = {"method": method, "regime": regime, "budget": budget}
        decode = partial(_call, call, model, most, options)
        drawn = None if call in (search.greedy, search.beam) else seed
        return _scored(queries, decode, shared | names, drawn)

    rows = [
        row("greedy", search.greedy),
        row("beam 8", search.beam, 8, width=8),
        row("stochastic beam 8", search.stochastic_beam, 8, width=8),
        row("greedy, checked", search.greedy, **check),
        row("beam 8, checked", search.beam, 8, width=8, **check),
    ]
    for n in ns:
        named = f"best of {n}, checked"
        rows.append(row(named, search.best_of, n, n=n, scorer=verify, **check))
    rows.append(row(f"stitched {ns[-1]}", search.stitched, ns[-1], n=ns[-1], **check))
    grow = {"fitness": verify, "population": 16, "generations": 8} | check
    rows.append(row("evolution, 16 x 8", search.evolve, 128, **grow))
    return rows


def _call(
    method: Callable[..., Found], model: Any, most: int, options: dict[str, Any], source, target,
    **drawn: Any,
) -> Found:  # fmt: skip
    return method(model, source, target, most, **options, **drawn)


def blind_row(queries: Queries, walks: int, seed: int) -> Scored:
    """Score the shortest of so many random legal walks: search without a model."""
    blind = partial(_blind, queries, walks)
    names = {"method": f"blind, {walks} walks", "model": "none", "regime": "open_map"}
    return _scored(queries, blind, names | {"budget": walks}, seed)


def _blind(queries: Queries, walks: int, source, target, seed: int) -> Found:
    return search.blind(queries.graph, source, target, queries.max_hops, walks=walks, seed=seed)


def a_star_rows(
    queries: Queries, trained: Trained, quantiles: Iterable[float | None]
) -> list[Scored]:
    """Score A* with the great circle, weighted by 1.05 too, and with learned kilometres to go."""
    source, target, rows = queries.rows.source, queries.rows.target, []
    for name, weight in (("A*", 1.0), ("weighted A* (1.05)", 1.05)):
        found = search.a_star(queries.graph, source, target, weight=weight)
        rows.append(score(queries, found, method=name, model="none", regime="open_map"))
    names = {"model": "value", "parameters": trained.model.parameters_count}
    names |= {"training_flops": trained.training_flops, "regime": "open_map"}
    for quantile in quantiles:
        value = trained.model.eval().at(quantile)
        found = search.a_star(queries.graph, source, target, value=value)
        method = "A*, learned mean" if quantile is None else f"A*, learned quantile {quantile:g}"
        rows.append(score(queries, found, method=method, **names))
    return rows


def heuristics(scored: Iterable[Scored]) -> pd.DataFrame:
    """Return expansions, mean ratio to the optimal length, and shares, one row a heuristic."""
    table = {
        s.row["method"]: {
            "expansions": s.row["expansions"],
            "ratio": s.judged["ratio"].mean(),
            **s.judged[["optimal", "success"]].mean(),
            "FLOPs": s.row["inference_flops"],
        }
        for s in scored
    }
    return pd.DataFrame(table).T


def safest(scored: Iterable[Scored], ratio: float) -> str:
    """Return the learned heuristic with the fewest expansions whose mean ratio is at most this."""
    table = heuristics(s for s in scored if s.row["model"] == "value")
    near = table[table["ratio"] <= ratio]
    return str((near if len(near) else table.nsmallest(1, "ratio"))["expansions"].idxmin())


def best_of_curve(
    queries: Queries, trained: Trained, most: int, seed: int
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the success of the best of N closed-book attempts, for N from 1 to `most`.

    Two frames [queries, N]: judged by the exact length, and by the model's own likelihood. Each
    entry is a mean over all subsets of the attempts drawn.
    """
    model, verify = trained.model.eval(), PathLength(queries.graph)
    ns = 2 ** np.arange(int(np.log2(most)) + 1)
    curves: tuple[list, list] = ([], [])
    for first in range(0, len(queries), SLICE):
        part = queries.take(np.arange(first, min(first + SLICE, len(queries))))
        rows = part.rows
        drawn = search.draw(
            model, rows.source, rows.target, queries.max_hops, most, seed=seed + first
        )
        km = verify.score(rows.source[drawn.query], rows.target[drawn.query], drawn.paths)
        good = (km <= 1.05 * rows.km[drawn.query]).astype(float)
        arrived = np.array([p[-1] for p in drawn.paths]) == rows.target[drawn.query]
        likely = np.where(arrived, -drawn.log_p, np.inf)
        for curve, energies in zip(curves, (km, likely), strict=True):
            curve.append(search.expected_best(drawn, energies, good, ns))
    exact, own = (pd.DataFrame(np.concatenate(curve), columns=ns) for curve in curves)
    return exact, own
