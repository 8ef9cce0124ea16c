"""The exchange rate: how many times larger must a model be to match a small one that searches?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.decoding import PathLength
from citypaths.judging.methods import Scored, score
from citypaths.judging.metrics import over_few
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe

SLICE = 50  # queries searched together
SUFFIX = ", equal training"
COLUMNS = ("regime", "small", "large", "method", "times", "alone", "gap", "low", "high")


def climb(size: Size, dataset: Dataset, queries: Queries, seeds: Iterable[int]) -> list[Scored]:
    """Score every rung and seed alone (greedy) and with search, closed-book and checked.

    Searches that cost more than the widest rung alone are left out: nothing is compared with them.
    """
    scored = []
    for seed in seeds:
        rungs = {
            recipe(size, arm).settings["width"]: train_arm(size, dataset, arm, seed)
            for arm in arms(size, "ladder")
        }
        limit = max(trained.model.flops_per_step() for trained in rungs.values())
        for width, trained in rungs.items():
            names = {"model": f"gru-{width}{SUFFIX}", "seed": seed}
            names |= {"parameters": trained.model.parameters_count}
            names |= {"training_flops": trained.training_flops}
            scored += _searched(queries, trained, names, limit)
    return scored


def _searched(
    queries: Queries, trained: Trained, names: Mapping[str, Any], limit: int
) -> list[Scored]:
    """Score the searches of a model of which no step costs more than `limit`."""
    model, rows, check = trained.model.eval(), [], {"checked_by": queries.graph}
    best = {"scorer": PathLength(queries.graph), "seed": names["seed"]} | check
    tries: list[tuple[str, Any, int, dict[str, Any]]] = [("greedy", decoding.greedy, 1, {})]
    tries += [(f"beam {n}", decoding.beam, n, {"width": n}) for n in (2, 4, 8, 16)]
    tries += [("greedy, checked", decoding.greedy, 1, check)]
    tries += [(f"beam {n}, checked", decoding.beam, n, {"width": n} | check) for n in (4, 16)]
    tries += [(f"best of {n}, checked", decoding.best_of, n, {"n": n} | best) for n in (4, 16)]
    for method, call, budget, options in tries:
        if budget * model.flops_per_step() > limit:
            continue
        run = partial(_call, call, model, queries.max_hops, options)
        ids = (queries.rows.source, queries.rows.target)
        found = decoding.in_parts(run, *ids, part=SLICE, name=f"{names['model']}, {method}")
        regime = "checked" if "checked_by" in options else "closed_book"
        each = {"method": method, "regime": regime, "budget": budget}
        rows.append(score(queries, found, **names, **each))
    return rows


def _call(method: Any, model: Any, most: int, options: dict[str, Any], source, target):
    return method(model, source, target, most, **options)


def gaps(rows: pd.DataFrame) -> pd.DataFrame:
    """Return how a smaller model that searches compares with each larger one alone, by regime.

    The smaller spends, in each seed that both have, no more inference FLOPs a query than the
    larger's greedy decoding does; of the searches within them it takes the one that is best on
    average. Columns: regime, small, large, times (larger in parameters), method, gap (in success,
    mean over seeds), low and high (95 % t interval over seeds; missing for one seed), and alone,
    the gap without any search.

    Args:
        rows: ledger rows of `climb`, or of other models of several sizes, one or more seeds.
    """
    size_of = rows.groupby("model")["parameters"].first().sort_values()
    alone = rows[rows["method"] == "greedy"].set_index(["model", "seed"])
    table = []
    for small, large in product(size_of.index, size_of.index):
        if size_of[small] >= size_of[large]:
            continue
        large_alone, own = alone.loc[large], rows[rows["model"] == small]
        own = own[own["seed"].isin(large_alone.index)]
        limit = own["seed"].map(large_alone["inference_flops"])
        dear = own.loc[own["inference_flops"] > limit, "method"]
        for regime, part in own[~own["method"].isin(dear)].groupby("regime"):
            method = part.groupby("method")["success"].mean().idxmax()
            each = part[part["method"] == method].set_index("seed")["success"]
            gap, half = over_few((each - large_alone["success"]).dropna())
            row = {"regime": regime, "small": small, "large": large, "method": method}
            greedy = alone.loc[small]["success"] - large_alone["success"]
            row |= {"times": size_of[large] / size_of[small], "alone": greedy.mean()}
            table.append(row | {"gap": gap, "low": gap - half, "high": gap + half})
    return pd.DataFrame(table, columns=list(COLUMNS))


def matched(table: pd.DataFrame) -> pd.DataFrame:
    """Return of `gaps` the largest ratio at which the smaller model is no worse, by regime.

    No worse: the lower end of the interval is at least 0, or the gap itself for one seed.
    """
    fine = table[table["low"].fillna(table["gap"]) >= 0]
    best = fine.sort_values("times").groupby("regime").tail(1)
    return best.set_index("regime")[list(COLUMNS[1:])]


def matrix(table: pd.DataFrame) -> pd.DataFrame:
    """Return `gaps` for people: a row a regime and smaller model, a column a larger one, in %."""

    def text(row: pd.Series) -> str:
        bounds = (
            ""
            if np.isnan(row["low"])
            else f" ({100 * row['low']:+.0f} to {100 * row['high']:+.0f})"
        )
        return f"{100 * row['gap']:+.1f}{bounds}; alone {100 * row['alone']:+.1f}"

    short = table.assign(cell=[text(row) for _, row in table.iterrows()])
    for name in ("small", "large"):
        short[name] = short[name].str.removesuffix(SUFFIX)
    rows, columns = (list(dict.fromkeys(short[name])) for name in ("small", "large"))
    shown = short.set_index(["regime", "small", "large"])["cell"].unstack()
    order = [(regime, name) for regime in dict.fromkeys(short["regime"]) for name in rows]
    return shown.reindex(
        index=[key for key in order if key in shown.index], columns=columns
    ).fillna("")


def sentences(table: pd.DataFrame) -> str:
    """Return `matched` in words, a line a regime."""
    lines = []
    for regime, row in matched(table).iterrows():
        small, large = (row[name].removesuffix(SUFFIX) for name in ("small", "large"))
        text = f"{str(regime).replace('_', '-')}: {small} with {row['method']} is no worse than "
        lines.append(text + f"{large} alone, {row['times']:.1f} times its size.")
    return "\n".join(lines) or "No smaller model that searches matches a larger one."
