"""Search at test time, scored: what each regime buys, and learned heuristics."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any

import pandas as pd

from citypaths import decoding
from citypaths.decoding import Likelihood, PathLength, Sum
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.map.paths import Found
from citypaths.training.loop import Trained
from studies import search

QUANTILES = (None, 0.5, 0.3, 0.2, 0.1, 0.05, 0.02)
SLICE = 50  # queries searched together


def _scored(
    queries: Queries, method: Callable[..., Found], names: dict[str, Any], seed: int | None
) -> Scored:
    """Run a search on the queries in parts, with progress, and judge what it found."""
    drawn = {} if seed is None else {"seed": seed}
    ids = (queries.rows.source, queries.rows.target)
    found = decoding.in_parts(method, *ids, part=SLICE, name=names["method"], **drawn)
    return score(queries, found, **names)


def search_table(
    queries: Queries,
    arm: str,
    trained: Trained,
    seed: int,
    ns: Sequence[int],
    reverse: Trained,
) -> list[Scored]:
    """Score a model by decoder and by how many attempts it may check.

    Closed-book: greedy, beam, stochastic beam, and the last of `ns` attempts kept by own
    likelihood, without and with that of a `reverse` model. Checked: the decoders, best of N by
    exact length, stitched attempts, and evolution by exact length.
    """
    own = Likelihood(trained.model)
    both = Sum(own, reverse.model.eval())
    model, verify, most = trained.model.eval(), PathLength(queries.graph), queries.max_hops
    check: dict[str, Any] = {"checked_by": queries.graph}
    shared = {"model": arm, "parameters": trained.model.parameters_count}
    shared |= {"training_flops": trained.training_flops}

    def row(method: str, call: Callable[..., Found], budget: int = 1, **options: Any) -> Scored:
        regime = "checked" if "checked_by" in options else "closed_book"
        names = {"method": method, "regime": regime, "budget": budget}
        decode = partial(_call, call, model, most, options)
        drawn = None if call in (decoding.greedy, decoding.beam) else seed
        return _scored(queries, decode, shared | names, drawn)

    rows = [
        row("greedy", decoding.greedy),
        row("beam 8", decoding.beam, 8, width=8),
        row("stochastic beam 8", search.stochastic_beam, 8, width=8),
        row(f"best of {ns[-1]}, own", decoding.best_of, ns[-1], n=ns[-1], scorer=own),
        row(f"best of {ns[-1]}, own + reverse", decoding.best_of, ns[-1], n=ns[-1], scorer=both),
        row("greedy, checked", decoding.greedy, **check),
        row("beam 8, checked", decoding.beam, 8, width=8, **check),
    ]
    for n in ns:
        named = f"best of {n}, checked"
        rows.append(row(named, decoding.best_of, n, n=n, scorer=verify, **check))
    rows.append(row(f"stitched {ns[-1]}", decoding.stitched, ns[-1], n=ns[-1], **check))
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
    """Score A* with the great circle, weighted by 1.05 too, and with learned kilometres to go.

    No city is expanded twice, whichever heuristic: a shorter way found late is not followed.
    """
    source, target, rows = queries.rows.source, queries.rows.target, []
    for name, weight in (("A*", 1.0), ("weighted A* (1.05)", 1.05)):
        found = search.a_star(queries.graph, source, target, weight=weight, reopen=False)
        rows.append(score(queries, found, method=name, model="none", regime="open_map"))
    names = {"model": "value", "parameters": trained.model.parameters_count}
    names |= {"training_flops": trained.training_flops, "regime": "open_map"}
    for quantile in quantiles:
        value = trained.model.eval().at(quantile)
        found = search.a_star(queries.graph, source, target, value=value, reopen=False)
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
