"""Tree search at test time, scored: with values on the map, and in a planner's latents."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

from citypaths import decoding
from citypaths.decoding.decode import device_of
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.map.paths import Found
from citypaths.training.loop import Trained
from studies import search
from studies.search import GreatCircle, Planner
from studies.search.study import SLICE

SIMULATIONS = (4, 16, 64)
WIDTH = 16


def tree_table(
    queries: Queries,
    arm: str,
    trained: Trained,
    value: Trained,
    planner: Trained | None,
    simulations: Sequence[int] = SIMULATIONS,
) -> list[Scored]:
    """Score tree search with an arm's policy and learned values on the map, and in latents.

    Args:
        trained: the arm's model. value: a `CostToGo`. planner: a `Planner`; None: no latents.
    """
    rows = map_rows(queries, arm, trained, simulations)
    rows += map_rows(queries, arm, trained, simulations, value)
    rows.append(value_row(queries, value))
    return rows if planner is None else rows + latent_rows(queries, planner, simulations)


def map_rows(
    queries: Queries,
    arm: str,
    trained: Trained,
    simulations: Sequence[int] = SIMULATIONS,
    value: Trained | None = None,
) -> list[Scored]:
    """Score `mcts` on the open map: a model's policy, and the great circle or a median of a value.

    Args:
        value: a `CostToGo`; None is the great circle.
    """
    model = trained.model.eval()
    togo = GreatCircle(queries.graph, device_of(model)) if value is None else value.model.at(0.5)
    world = search.MapWorld(queries.graph, model, togo)
    names = _names(arm, trained, "open_map")
    if value is not None:
        names["training_flops"] += value.training_flops
        names["parameters"] += value.model.parameters_count
    title = "tree search {}" if value is None else "tree search {}, learned value"
    return [
        _row(queries, search.mcts, world, title.format(n), names, n, simulations=n)
        for n in simulations
    ]


def value_row(queries: Queries, trained: Trained, width: int = WIDTH) -> Scored:
    """Score `beam_with_value` on the open map with learned kilometres to go."""
    world = search.MapWorld(queries.graph, None, trained.model.eval())
    names = _names("value", trained, "open_map")
    return _row(
        queries, search.beam_with_value, world, f"beam {width} by value", names, width, width=width
    )


def latent_rows(
    queries: Queries, trained: Trained, simulations: Sequence[int] = SIMULATIONS, width: int = WIDTH
) -> list[Scored]:
    """Score a planner without the map: greedy and by beam, then searched in its latents."""
    model = trained.model.eval()
    if not isinstance(model, Planner):
        raise TypeError(f"latents are searched with a planner, not a {type(model).__name__}")
    world, names = search.LatentWorld(model), _names("planner", trained, "closed_book")
    by_value = (f"latent beam {width} by value", names, width)
    rows = [
        _row(queries, decoding.greedy, model, "greedy", names, 1),
        _row(queries, decoding.beam, model, "beam 8", names, 8, width=8),
        _row(queries, search.beam_with_value, world, *by_value, width=width),
    ]
    return rows + [
        _row(queries, search.mcts, world, f"latent tree search {n}", names, n, simulations=n)
        for n in simulations
    ]


def _names(model: str, trained: Trained, regime: str) -> dict[str, Any]:
    names = {"model": model, "regime": regime, "parameters": trained.model.parameters_count}
    return names | {"training_flops": trained.training_flops}


def _row(
    queries: Queries, method: Callable[..., Found], walked: Any, name: str, names: dict[str, Any],
    budget: int, **options: Any,
) -> Scored:  # fmt: skip
    """Run a search in parts, with progress, and judge what it found."""
    call = partial(_call, method, walked, queries.max_hops, options)
    ids = (queries.rows.source, queries.rows.target)
    found = decoding.in_parts(call, *ids, part=SLICE, name=name)
    return score(queries, found, method=name, budget=budget, **names)


def _call(
    method: Callable[..., Found], walked: Any, most: int, options: dict[str, Any], source, target
) -> Found:
    return method(walked, source, target, most, **options)
