"""The exchange rate: how many times larger must a model be to match a small one that searches?"""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial
from itertools import product

import numpy as np
import pandas as pd

from citypaths.data.dataset import Dataset
from citypaths.decoding import PathLength, beam, best_of, greedy
from citypaths.judging.methods import Scored, score_methods
from citypaths.judging.metrics import over_few
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.sizes import Size
from citypaths.training.recipes import arms
from studies.search.study import method

COLUMNS = ("regime", "small", "large", "method", "times", "alone", "gap", "low", "high")


def climb(size: Size, dataset: Dataset, queries: Queries, seeds: Iterable[int]) -> list[Scored]:
    """Score every rung and seed alone (greedy) and with search, closed-book and checked.

    A rung is a GRU of some width, trained with as many operations as all others. Searches that cost
    more than the widest rung alone are left out: nothing is compared with them.
    """
    scored, check = [], {"checked_by": queries.graph}
    exact = {"scorer": PathLength(queries.graph)} | check
    for seed in seeds:
        draw = partial(best_of, seed=seed)
        rungs = [train_arm(size, dataset, arm, seed) for arm in arms(size, "ladder")]
        limit = max(trained.model.flops_per_step() for trained in rungs)
        for trained in rungs:
            model = trained.model.eval()
            asked = partial(method, f"gru-{model.width}", [trained], model)
            methods = [
                asked(greedy, "greedy"),
                *(asked(beam, f"beam {n}", width=n) for n in (2, 4, 8, 16)),
                asked(greedy, "greedy", **check),
                *(asked(beam, f"beam {n}", width=n, **check) for n in (4, 16)),
                *(asked(draw, f"best of {n}", "exact length", n=n, **exact) for n in (4, 16)),
            ]
            cheap = [m for m in methods if m.attempts * model.flops_per_step() <= limit]
            scored += score_methods(cheap, queries, seed=seed, study="ladder")
    return scored


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
    greedily = (rows["method"] == "greedy") & (rows["regime"] == "closed_book")
    alone = rows[greedily].set_index(["model", "seed"])
    table = []
    for small, large in product(size_of.index, size_of.index):
        if size_of[small] >= size_of[large]:
            continue
        large_alone, own = alone.loc[large], rows[rows["model"] == small]
        own = own[own["seed"].isin(large_alone.index)]
        dear = own["inference_flops"] > own["seed"].map(large_alone["inference_flops"])
        for regime, part in own.assign(dear=dear).groupby("regime"):
            searches = part.groupby("method").filter(lambda each: not each["dear"].any())
            if searches.empty:
                continue
            best = searches.groupby("method")["success"].mean().idxmax()
            each = searches[searches["method"] == best].set_index("seed")["success"]
            gap, half = over_few((each - large_alone["success"]).dropna())
            row = {"regime": regime, "small": small, "large": large, "method": best}
            greedy_gap = alone.loc[small]["success"] - large_alone["success"]
            row |= {"times": size_of[large] / size_of[small], "alone": greedy_gap.mean()}
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
        low, high = 100 * row["low"], 100 * row["high"]
        bounds = "" if np.isnan(low) else f" ({low:+.0f} to {high:+.0f})"
        return f"{100 * row['gap']:+.1f}{bounds}; alone {100 * row['alone']:+.1f}"

    short = table.assign(cell=[text(row) for _, row in table.iterrows()])
    names = {name: list(dict.fromkeys(table[name])) for name in ("regime", "small", "large")}
    shown = short.set_index(list(names))["cell"].unstack()
    order = [key for key in product(names["regime"], names["small"]) if key in shown.index]
    return shown.reindex(index=order, columns=names["large"]).fillna("")


def sentences(table: pd.DataFrame) -> str:
    """Return `matched` in words, a line a regime."""
    lines = []
    for regime, row in matched(table).iterrows():
        text = f"{str(regime).replace('_', '-')}: {row['small']} with {row['method']} is no worse "
        lines.append(text + f"than {row['large']} alone, {row['times']:.1f} times its size.")
    return "\n".join(lines) or "No smaller model that searches matches a larger one."
