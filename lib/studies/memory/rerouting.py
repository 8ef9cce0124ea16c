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
from citypaths.judging.methods import Scored, score
from citypaths.judging.metrics import ledger_rates
from citypaths.judging.queries import Queries
from citypaths.map.best_first import best_first
from citypaths.map.paths import Found, Paths
from citypaths.training.loop import Trained
from studies.memory import Cached, Hops, KeyValueCache, Roads
from studies.memory.editing import Edit

SHARES = (0.001, 0.01, 0.05, 0.2)


@dataclass(frozen=True)
class Family:
    """A way to answer queries after an edit.

    Attributes:
        answer: from an edit to a path for each of its queries. names: its columns in the ledger.
    """

    answer: Callable[[Edit], Found]
    names: dict[str, Any]

    @property
    def label(self) -> str:
        """The method, with its model where there is one."""
        model = self.names["model"]
        return self.names["method"] + ("" if model == "none" else f" ({model})")


def weights_only(queries: Queries, arm: str, trained: Trained) -> list[Family]:
    """Return the model alone, greedy and with a beam: it cannot know of an edit.

    Its answers are those to `queries` before any edit.
    """
    rows = []
    for method, decoder, options in (
        ("greedy", decoding.greedy, {}),
        ("beam 8", decoding.beam, {"width": 8}),
    ):
        found = queries.decode(decoder, trained.model.eval(), **options)
        names = _names(method, arm, "closed_book", trained, options.get("width", 1))
        rows.append(Family(partial(_same_as_before, found), names))
    return rows


def _names(method: str, arm: str, regime: str, trained: Trained, budget: int) -> dict[str, Any]:
    names = {"method": method, "model": arm, "regime": regime, "budget": budget}
    names |= {"parameters": trained.model.parameters_count}
    return names | {"training_flops": trained.training_flops}


def _same_as_before(found: Found, edit: Edit) -> Found:
    costs = (getattr(found, name)[edit.kept] for name in ("flops", "lookups", "expansions"))
    return Found(found.paths.take(edit.kept), *costs, found.seconds)


def checked(arm: str, trained: Trained, n: int = 8, seed: int = 0) -> list[Family]:
    """Return the alternative without a memory: every hop is looked up on the edited map."""

    def best(edit: Edit) -> Found:
        options = {"n": n, "scorer": PathLength(edit.after), "seed": seed, "checked_by": edit.after}
        return edit.queries.decode(decoding.best_of, model, **options)

    def decoded(decoder: Callable[..., Found], options: dict[str, Any], edit: Edit) -> Found:
        return edit.queries.decode(decoder, model, checked_by=edit.after, **options)

    model = trained.model.eval()
    table = {
        "greedy, checked": (1, partial(decoded, decoding.greedy, {})),
        "beam 8, checked": (8, partial(decoded, decoding.beam, {"width": 8})),
        f"best of {n}, checked": (n, best),
    }
    return [
        Family(answer, _names(method, arm, "checked", trained, budget))
        for method, (budget, answer) in table.items()
    ]


def edited_hops(hops: Hops, edit: Edit) -> Hops:
    """Return a store of hops after an edit: closed rows deleted, a row added for each bridge."""
    return hops.without(edit.gone).joined(edit.new)


def stitched(hops: Hops) -> Family:
    """Return exact search over the stored hops, edited: a memory without a model."""

    def answer(edit: Edit) -> Found:
        rows = edit.queries.rows
        return best_first(edited_hops(hops, edit).on(edit.after), rows.source, rows.target)

    return Family(answer, {"method": "stitched hops", "model": "none", "regime": "open_map"})


def on_roads(arm: str, trained: Trained, hops: Hops) -> list[Family]:
    """Return the model restricted to stored hops, edited; greedy and with a beam."""

    def answer(decoder: Callable[..., Found], options: dict[str, Any], edit: Edit) -> Found:
        model = Roads(trained.model.eval(), edited_hops(hops, edit))
        return edit.queries.decode(decoder, model, **options)

    return [
        Family(
            partial(answer, decoder, options),
            _names(f"roads, {name}", arm, "closed_book", trained, options.get("width", 1)),
        )
        for name, decoder, options in (
            ("greedy", decoding.greedy, {}),
            ("beam 8", decoding.beam, {"width": 8}),
        )
    ]


def edited_cache(
    cache: KeyValueCache, model: Any, edit: Edit, lessons: Paths | None
) -> KeyValueCache:
    """Return a cache after an edit: rows of closed hops deleted, those of lessons added."""
    gone = torch.as_tensor(edit.gone, device=cache.values.device)
    cache = cache.without_hops(gone[:, 0], gone[:, 1], len(edit.after))
    if lessons is None or not len(lessons):
        return cache
    return cache.joined(KeyValueCache.of(model, lessons, layer=cache.layer))


def cached(
    arm: str, trained: Trained, fitted: Cached, hops: Hops, told: Callable[[Edit], Paths]
) -> list[Family]:
    """Return the model with an edited cache, greedy.

    "cache" mixes as fitted, its closed rows deleted; "cache + lessons" also stores solved paths of
    the edited map; "cache alone" does not ask the model; "cache + lessons on roads" may only take
    stored hops, edited.

    Args:
        told: returns the lessons, see `lessons`. hops: of the roads.
    """
    model = trained.model.eval()

    @lru_cache(2)  # families answer one edit after the other
    def stored(learns: bool, edit: Edit) -> KeyValueCache:
        return edited_cache(fitted.cache, model, edit, told(edit) if learns else None)

    def answer(weight: float, learns: bool, restricted: bool, edit: Edit) -> Found:
        cache = stored(learns, edit)
        mix = Cached(model, cache, theta=fitted.theta, weight=weight, k=fitted.k)
        final = Roads(mix, edited_hops(hops, edit)) if restricted else mix
        return edit.queries.decode(decoding.greedy, final)

    table = {
        "cache": (fitted.weight, False, False),
        "cache + lessons": (fitted.weight, True, False),
        "cache alone + lessons": (1.0, True, False),
        "cache + lessons on roads": (fitted.weight, True, True),
    }
    return [
        Family(partial(answer, *how), _names(method, arm, "closed_book", trained, 1))
        for method, how in table.items()
    ]


def lessons(rows: Rows, avoid: Rows, edit: Edit) -> Paths:
    """Return the exact paths of the edited map for those of `rows` that the edit hit.

    Left out is every path in which a query of `avoid`, the test queries, lies.
    """
    no = np.zeros(len(rows), bool)
    hit = Edit.of(Queries(edit.before, rows, no, no, np.ones(len(rows))), edit.after)
    paths = hit.queries.rows.paths.take(hit.hit)
    asked = avoid.source.astype(np.int64) * len(edit.after) + avoid.target
    inside = [np.isin(_pairs_in(path, len(edit.after)), asked).any() for path in paths]
    return paths.take(~np.array(inside, bool))


def _pairs_in(path: np.ndarray, cities: int) -> np.ndarray:
    """The key of each (earlier, later) pair of cities on a path."""
    a, b = np.triu_indices(len(path), 1)
    ids = path.astype(np.int64)
    return ids[a] * cities + ids[b]


def answered(edit: Edit, families: Iterable[Family]) -> list[Scored]:
    """Score families on the queries of an edit."""
    return [score(edit.queries, family.answer(edit), **family.names) for family in families]


def reroute(edits: Mapping[tuple[float, int], Edit], families: Iterable[Family]) -> pd.DataFrame:
    """Return one row a family, edit and query: was it answered, and what did that cost?

    Columns: those of `Queries.judge`, and family, share (or count), seed, query, hit, needed,
    lookups, flops.
    """
    parts, families = [], list(families)
    for (share, seed), edit in edits.items():
        groups = {"query": edit.kept, "hit": edit.hit, "needed": edit.needed}
        for family in families:
            found = family.answer(edit)
            what = {"family": family.label, "share": share, "seed": seed}
            spent = {"lookups": found.lookups, "flops": found.flops}
            parts.append(edit.queries.judge(found).assign(**what, **groups, **spent))
    return pd.concat(parts, ignore_index=True)


def records(rerouted: pd.DataFrame, families: Iterable[Family]) -> list[dict[str, Any]]:
    """Return a ledger row a family and share closed, over all its seeds; `split` names the share.

    Rows for the queries whose shortest path was hit are apart.
    """
    names, rows = {family.label: family.names for family in families}, []
    for group in ("closed", "closed, path hit"):
        some = rerouted[rerouted["hit"]] if group.endswith("hit") else rerouted
        for (family, share), part in some.groupby(["family", "share"], sort=False):
            spent = {"lookups": part["lookups"].mean(), "inference_flops": part["flops"].mean()}
            what = {"split": f"{share:.1%} of hops {group}"} | names[family]
            rows.append(ledger_rates(part) | spent | what)
    return rows


def summary(rerouted: pd.DataFrame, draws: int = 1000, seed: int = 0) -> pd.DataFrame:
    """Return success by family and share with 95 % intervals over both queries and closures.

    Both are resampled at once (Owen 2007, the pigeonhole bootstrap): each query is asked under
    several closures, and each closure decides many queries.

    Columns: queries (rows), success, low, high, lookups, flops.
    """
    rows = []
    for (family, share), part in rerouted.groupby(["family", "share"], sort=False):
        low, high = _interval(part, draws, seed)
        row = {"family": family, "share": share, "queries": len(part), "low": low, "high": high}
        rows.append(row | part[["success", "lookups", "flops"]].mean().to_dict())
    columns = ["queries", "success", "low", "high", "lookups", "flops"]
    return pd.DataFrame(rows).set_index(["family", "share"])[columns]


def _interval(part: pd.DataFrame, draws: int, seed: int) -> tuple[float, float]:
    query, closure = (pd.factorize(part[name])[0] for name in ("query", "seed"))
    shape = (query.max() + 1, closure.max() + 1)
    asked, solved = np.zeros(shape), np.zeros(shape)
    asked[query, closure], solved[query, closure] = 1.0, part["success"]
    random = np.random.default_rng(seed)
    a, b = (random.multinomial(n, np.full(n, 1 / n), draws).astype(float) for n in shape)
    count = ((a @ asked) * b).sum(1)
    drawn = ((a @ solved) * b).sum(1)[count > 0] / count[count > 0]
    return tuple(np.quantile(drawn, [0.025, 0.975]))
