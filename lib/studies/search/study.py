"""How searches become methods, and which learned heuristic is safe."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from functools import partial
from math import prod
from typing import Any

import pandas as pd

from citypaths.decoding import beam, best_of, greedy, stitched
from citypaths.judging.methods import Method, Scored
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found
from citypaths.training.loop import Trained
from studies.search.evolution import evolve
from studies.search.pairs import CostToGo
from studies.search.sampling import blind, stochastic_beam
from studies.search.tree import beam_with_value, mcts
from studies.search.worlds import MapWorld

SLICE = 50  # queries searched together


def a_star(
    graph: CityGraph, source, target, max_hops: int, weight: float = 1.0,
    value: CostToGo | None = None,
) -> Found:  # fmt: skip
    """Run A* with the great circle or learned kilometres to go, however many hops it takes.

    No city is expanded twice, whichever heuristic: a shorter way found late is not followed.
    """
    learned = {"togo": value.table, "flops": value.flops_per_call} if value is not None else {}
    return best_first(graph, source, target, 1.0, weight, reopen=False, **learned)


FAMILY: dict[Callable[..., Found], str] = {
    greedy: "greedy",
    beam: "beam",
    stochastic_beam: "beam",
    best_of: "best of N",
    stitched: "best of N",
    evolve: "evolution",
    mcts: "tree search",
    beam_with_value: "tree search",
    a_star: "graph search",
    blind: "floor",
}
ATTEMPTS = ("n", "width", "simulations", "population", "generations", "walks")  # what counts them


def method(
    label: str,
    trained: Sequence[Trained],
    walked: Any,
    search: Callable[..., Found],
    name: str,
    verifier: str = "",
    part: int = SLICE,
    **options: Any,
) -> Method:
    """Return a search as a method, which takes `part` queries at a time and shows its progress.

    Args:
        walked: what the search is called with: a model, or else the map or a world.
        options: of the search; with `checked_by` its regime is "checked". A `seed` is raised by the
            number of a part's first query; one that a `partial` search bears is every part's.
    """
    says = {"name": name, "family": FAMILY[getattr(search, "func", search)], "verifier": verifier}
    says["regime"] = "checked" if "checked_by" in options else "closed_book"
    if isinstance(walked, CityGraph | MapWorld):
        says["regime"] = "open_map"
    says |= {"attempts": prod(options[count] for count in ATTEMPTS if count in options)}
    told = options | {"part": part, "name": f"{label}, {name}"}
    make = partial(Method.of, label, *trained) if trained else Method
    return make(run=lambda queries: queries.decode(search, walked, **told), **says)


def cost_and_length(scored: Iterable[Scored]) -> pd.DataFrame:
    """Return expansions, mean ratio to the optimal length, and shares, one row a heuristic."""
    rows = [s.row | {"ratio": s.judged["ratio"].mean()} for s in scored]
    columns = ["expansions", "ratio", "optimal", "success", "inference_flops"]
    return pd.DataFrame(rows).set_index("method")[columns]


def safest(scored: Iterable[Scored], ratio: float) -> str:
    """Return the learned heuristic with the fewest expansions whose mean ratio is at most this."""
    table = cost_and_length(s for s in scored if s.row["model"] == "value")
    near = table[table["ratio"] <= ratio]
    return str((near if len(near) else table.nsmallest(1, "ratio"))["expansions"].idxmin())
