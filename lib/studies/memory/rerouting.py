"""How well each kind of memory takes an edit of the map, no weight changed."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.shards import Rows
from citypaths.decoding import PathLength
from citypaths.judging.methods import Method
from citypaths.judging.metrics import ledger_rates
from citypaths.judging.queries import Queries
from citypaths.map.best_first import best_first
from citypaths.map.graph import CityGraph
from citypaths.map.paths import Found, Paths
from citypaths.models.base import PathModel
from citypaths.training.loop import Trained
from studies.memory.cache import KeyValueCache
from studies.memory.editing import Edit
from studies.memory.mixture import DECODERS, Cached, Roads

SHARES = (0.001, 0.01, 0.05, 0.2)
DRAWS = 1000  # of the bootstrap


@dataclass(frozen=True, eq=False)
class Editable:
    """A method that can be asked after an edit.

    Attributes:
        kind: what takes the edit: "weights", "checked", "stitched", "roads", "cache", "lessons".
        method: what it is. answer: from an edit to a path for each of its queries.
    """

    kind: str
    method: Method
    answer: Callable[[Edit], Found]

    @property
    def label(self) -> str:
        """What to call it: the method, whether its hops are checked, and its model."""
        text, model = self.method.name, self.method.model
        text += ", checked" if self.method.regime == "checked" else ""
        return text if model == "none" else f"{text} ({model})"


def weights_only(queries: Queries, arm: str, trained: Trained) -> list[Editable]:
    """Return the model alone, greedy and with a beam: it cannot know of an edit.

    Its answers are those to `queries` before any edit.
    """

    def same_as_before(found: Found, edit: Edit) -> Found:
        costs = (getattr(found, name)[edit.kept] for name in ("flops", "lookups", "expansions"))
        return Found(found.paths.take(edit.kept), *costs, found.seconds)

    rows = []
    for name, (family, width, decoder) in DECODERS.items():
        found = queries.decode(decoder, trained.model.eval())
        what = {"name": name, "family": family, "regime": "closed_book", "attempts": width}
        answer = partial(same_as_before, found)
        rows.append(Editable("weights", Method.of(arm, trained, **what), answer))
    return rows


def checked(arm: str, trained: Trained, n: int) -> list[Editable]:
    """Return the alternative without a memory: every hop is looked up on the edited map.

    Greedy, with a beam, and the shortest of `n` attempts.
    """

    def decoded(decoder: Callable[..., Found], edit: Edit) -> Found:
        return edit.queries.decode(decoder, model, checked_by=edit.after)

    def best(edit: Edit) -> Found:
        options = {"n": n, "scorer": PathLength(edit.after), "seed": 0, "checked_by": edit.after}
        return edit.queries.decode(decoding.best_of, model, **options)

    model, rows = trained.model.eval(), []
    for name, (family, width, decoder) in DECODERS.items():
        what = {"name": name, "family": family, "regime": "checked", "attempts": width}
        rows.append(Editable("checked", Method.of(arm, trained, **what), partial(decoded, decoder)))
    what = {"name": f"best of {n}", "family": "best of N", "regime": "checked", "attempts": n}
    method = Method.of(arm, trained, **what, verifier="exact length")
    return [*rows, Editable("checked", method, best)]


def edited_hops(hops: CityGraph, edit: Edit) -> CityGraph:
    """Return a store of hops after an edit: those closed are deleted, each bridge is added."""
    a, b = edit.after.edge_sources, edit.after.indices
    return edit.after.with_edges(hops.is_edge(a, b) | ~edit.before.is_edge(a, b))


def stitched(hops: CityGraph) -> Editable:
    """Return exact search over the stored hops, edited: a memory without a model."""

    def answer(edit: Edit) -> Found:
        rows = edit.queries.rows
        return best_first(edited_hops(hops, edit), rows.source, rows.target)

    what = {"family": "graph search", "regime": "open_map", "memory_numbers": 2 * len(hops.indices)}
    return Editable("stitched", Method(name="stitched hops", **what), answer)


def on_roads(arm: str, trained: Trained, hops: CityGraph) -> list[Editable]:
    """Return the model restricted to stored hops, edited; greedy and with a beam."""

    def answer(decoder: Callable[..., Found], edit: Edit) -> Found:
        return edit.queries.decode(decoder, Roads(trained.model.eval(), edited_hops(hops, edit)))

    rows = []
    for name, (_, width, decoder) in DECODERS.items():
        what = {"name": f"roads, {name}", "family": "memory", "regime": "closed_book"}
        what |= {"attempts": width, "memory_numbers": 2 * len(hops.indices)}
        rows.append(Editable("roads", Method.of(arm, trained, **what), partial(answer, decoder)))
    return rows


def edited_cache(
    cache: KeyValueCache, model: PathModel, edit: Edit, lessons: Paths | None
) -> KeyValueCache:
    """Return a cache after an edit: rows of closed hops deleted, those of lessons added."""
    gone = torch.as_tensor(edit.gone, device=cache.values.device)
    cache = cache.without_hops(gone, len(edit.after))
    if lessons is None or not len(lessons):
        return cache
    return cache.joined(KeyValueCache.of(model, lessons))


def cached(
    arm: str, trained: Trained, fitted: Cached, hops: CityGraph, told: Callable[[Edit], Paths]
) -> list[Editable]:
    """Return the model with an edited cache, greedy.

    "cache" mixes as fitted, its closed rows deleted; "cache + lessons" also stores solved paths of
    the edited map; "cache alone" does not ask the model; "cache + lessons on roads" may only take
    stored hops, edited.

    Args:
        fitted: with a `KeyValueCache`. hops: of the roads. told: from an edit to its lessons.
    """
    model = trained.model.eval()

    @lru_cache(2)  # methods answer one edit after the other
    def stored(learns: bool, edit: Edit) -> KeyValueCache:
        return edited_cache(fitted.store, model, edit, told(edit) if learns else None)

    def answer(weight: float, learns: bool, restricted: bool, edit: Edit) -> Found:
        how = {"theta": fitted.theta, "weight": weight, "k": fitted.k}
        mix = Cached(model, stored(learns, edit), **how)
        final = Roads(mix, edited_hops(hops, edit)) if restricted else mix
        return edit.queries.decode(decoding.greedy, final)

    table = {
        "cache": (fitted.weight, False, False),
        "cache + lessons": (fitted.weight, True, False),
        "cache alone + lessons": (1.0, True, False),
        "cache + lessons on roads": (fitted.weight, True, True),
    }
    shared = {"family": "memory", "regime": "closed_book"}
    shared |= {"memory_numbers": fitted.store.numbers}
    rows = []
    for name, (weight, learns, restricted) in table.items():
        method = Method.of(arm, trained, name=name, **shared)
        kind = "lessons" if learns else "cache"
        rows.append(Editable(kind, method, partial(answer, weight, learns, restricted)))
    return rows


def lessons(rows: Rows, avoid: Rows, edit: Edit) -> Paths:
    """Return the exact paths of the edited map for those of `rows` that the edit hit.

    Left out is every path in which a query of `avoid`, the test queries, lies.
    """
    no = np.zeros(len(rows), bool)
    hit = Edit.of(Queries(edit.before, rows, no, no, np.ones(len(rows))), edit.after)
    paths = hit.queries.rows.paths.take(hit.hit)
    cities = len(edit.after)
    asked = avoid.source.astype(np.int64) * cities + avoid.target

    def holds_one(path: np.ndarray) -> bool:
        earlier, later = (path[ends].astype(np.int64) for ends in np.triu_indices(len(path), 1))
        return bool(np.isin(earlier * cities + later, asked).any())

    return paths.take(~np.array([holds_one(path) for path in paths], bool))


def reroute(edits: Mapping[tuple[float, int], Edit], methods: Iterable[Editable]) -> pd.DataFrame:
    """Return one row a method, edit and query: was it answered, and what did that cost?

    Columns: those of `Queries.judge`, and method (its label), kind, share (of hops closed or
    built), seed, query, hit, needed, lookups, flops.
    """
    parts, methods = [], list(methods)
    for (share, seed), edit in edits.items():
        groups = {"query": edit.kept, "hit": edit.hit, "needed": edit.needed}
        for method in methods:
            found = method.answer(edit)
            what = {"method": method.label, "kind": method.kind, "share": share, "seed": seed}
            spent = {"lookups": found.lookups, "flops": found.flops}
            parts.append(edit.queries.judge(found).assign(**what, **groups, **spent))
    return pd.concat(parts, ignore_index=True)


def records(
    rerouted: pd.DataFrame, methods: Iterable[Editable], study: str, subset: str = ""
) -> list[dict[str, Any]]:
    """Return a ledger row a method and share of hops closed or built, over all its seeds.

    Args:
        rerouted: of `reroute`, or a `subset` of its rows.
    """
    columns, rows = {one.label: one.method.columns for one in methods}, []
    for (label, share), part in rerouted.groupby(["method", "share"], sort=False):
        spent = {"lookups": part["lookups"].mean(), "inference_flops": part["flops"].mean()}
        what = {"study": study, "subset": subset, "share": share}
        rows.append(ledger_rates(part) | spent | columns[label] | what)
    return rows


def summary(rerouted: pd.DataFrame) -> pd.DataFrame:
    """Return success by method and share with 95 % intervals over both queries and closures.

    Both are resampled at once (Owen 2007, the pigeonhole bootstrap): each query is asked under
    several closures, and each closure decides many queries.

    Columns: queries (rows), success, low, high, lookups, flops.
    """
    rows = []
    for (method, share), part in rerouted.groupby(["method", "share"], sort=False):
        low, high = _interval(part)
        row = {"method": method, "share": share, "queries": len(part), "low": low, "high": high}
        rows.append(row | part[["success", "lookups", "flops"]].mean().to_dict())
    columns = ["queries", "success", "low", "high", "lookups", "flops"]
    return pd.DataFrame(rows).set_index(["method", "share"])[columns]


def _interval(part: pd.DataFrame) -> tuple[float, float]:
    query, closure = (pd.factorize(part[name])[0] for name in ("query", "seed"))
    shape = (query.max() + 1, closure.max() + 1)
    asked, solved = np.zeros(shape), np.zeros(shape)
    asked[query, closure], solved[query, closure] = 1.0, part["success"]
    random = np.random.default_rng(0)
    a, b = (random.multinomial(n, np.full(n, 1 / n), DRAWS).astype(float) for n in shape)
    count = ((a @ asked) * b).sum(1)
    drawn = ((a @ solved) * b).sum(1)[count > 0] / count[count > 0]
    return tuple(np.quantile(drawn, [0.025, 0.975]))
