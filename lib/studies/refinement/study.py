"""Iterative refinement, scored after every round: masked paths, waypoints, segments drawn anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.decoding import Likelihood, PathLength
from citypaths.judging.methods import Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.map.paths import Found
from citypaths.models.base import PathModel
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe
from studies.refinement import conduct, refine_masked, repair, resample_segments
from studies.search.study import SLICE

LENGTHS = 8  # candidate lengths of a masked path, refined side by side


def train_masked(size: Size, dataset: Dataset, seed: int) -> Trained:
    """Train (or load) a masked path model with room for the longest training path."""
    longest = int(dataset.rows("train").hops.max())
    return train_arm(size, dataset, "masked", seed, settings={"slots": longest})


def largest_gru(size: Size) -> str:
    """Return the widest GRU among the size's arms."""
    grus = (arm for arm in arms(size, "baselines") if arm.startswith("gru"))
    return max(grus, key=lambda arm: recipe(size, arm).settings["width"])


def score_rounds(queries: Queries, founds: Sequence[Found], **names: Any) -> list[Scored]:
    """Judge what a method found after each round; the round is the ledger's budget."""
    return [score(queries, found, budget=i, **names) for i, found in enumerate(founds)]


def names_of(method: str, model: str, *trained: Trained, checked: bool = False) -> dict[str, Any]:
    """Return ledger columns of a method that uses all of these trained networks."""
    return {
        "method": method,
        "model": model,
        "regime": "checked" if checked else "closed_book",
        "parameters": sum(t.model.parameters_count for t in trained),
        "training_flops": sum(t.training_flops for t in trained),
    }


def masked_rounds(
    queries: Queries, masked: Trained, arm: str, filler: Trained, rounds: int, **plan: Any
) -> list[Scored]:
    """Score the masked model after every round: alone, and with its illegal hops filled in.

    The filler, a model of paths, is asked once, after the last round that is counted.
    """
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    model, fill = masked.model.eval(), filler.model.eval()
    founds = refine_masked(model, *ids, most, rounds=rounds, **{"lengths": LENGTHS} | plan)
    mended = [repair(fill, found, *ids, most, queries.graph) for found in founds]
    names = names_of("masked, repaired", f"masked, {arm}", masked, filler, checked=True)
    alone = score_rounds(queries, founds, **names_of("masked", "masked", masked))
    return alone + score_rounds(queries, mended, **names)


def conductor_rounds(
    queries: Queries, conductor: Trained, arm: str, filler: Trained, rounds: int
) -> list[Scored]:
    """Score the conductor after every round: alone, and with a filler between its waypoints."""
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    lead, fill = conductor.model.eval(), filler.model.eval()
    alone = conduct(lead, None, *ids, most, rounds=rounds)
    filled = conduct(lead, fill, *ids, most, rounds=rounds)
    names = names_of("conductor, filled", f"conductor, {arm}", conductor, filler)
    scored = score_rounds(queries, alone, **names_of("conductor", "conductor", conductor))
    return scored + score_rounds(queries, filled, **names)


def segment_rounds(
    queries: Queries, arm: str, trained: Trained, rounds: int, seed: int
) -> list[Scored]:
    """Score segment resampling: by the model's own likelihood, and checked by exact length."""
    model, scored = trained.model.eval(), []
    args = model, queries.rows.source, queries.rows.target, queries.max_hops
    shared = {"rounds": rounds, "seed": seed}
    own = resample_segments(*args, energy=Likelihood(model), **shared)
    scored += score_rounds(queries, own, **names_of("segments, likelihood", arm, trained))
    shared |= {"energy": PathLength(queries.graph), "checked_by": queries.graph}
    names = names_of("segments, exact length", arm, trained, checked=True)
    return scored + score_rounds(queries, resample_segments(*args, **shared), **names)


def references(
    queries: Queries, arm: str, trained: Trained, seed: int, ns: Sequence[int] = ()
) -> list[Scored]:
    """Score what notebook 05 does with a model: greedy, beam, best of N; checked or not."""
    model, rows = trained.model.eval(), []
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    for checked in (False, True):
        check = {"checked_by": queries.graph} if checked else {}
        scorer = PathLength(queries.graph) if checked else Likelihood(model)
        for name, decoder in (("greedy", decoding.greedy), ("beam 8", decoding.beam)):
            found = queries.decode(decoder, model, **check)
            rows.append(score(queries, found, **names_of(name, arm, trained, checked=checked)))
        for n in ns:
            options = {"n": n, "scorer": scorer} | check
            call = partial(_best_of, model, most, options)
            found = decoding.in_parts(call, *ids, part=SLICE, name=f"best of {n}", seed=seed)
            names = names_of(f"best of {n}", arm, trained, checked=checked)
            rows.append(score(queries, found, budget=n, **names))
    return rows


def _best_of(model: PathModel, most: int, options: dict[str, Any], source, target, **seed) -> Found:
    return decoding.best_of(model, source, target, most, **options, **seed)


def by_round(scored: Iterable[Scored], column: str) -> pd.DataFrame:
    """Return a ledger column of every method (rows) after each round (columns)."""
    rows = pd.DataFrame([s.row for s in scored])
    names = rows["method"].drop_duplicates()
    return rows.pivot(index="method", columns="budget", values=column).loc[names]


def at_equal_flops(scored: Iterable[Scored], references: Iterable[Scored]) -> pd.DataFrame:
    """Compare each method's last round with the best reference of its regime that costs no more.

    Columns: FLOPs and success of the method, and the reference, its FLOPs and its success. A method
    that costs less than every reference stands beside the cheapest.
    """
    last = {s.row["method"]: s.row for s in scored}
    others, table = [s.row for s in references], {}
    for method, row in last.items():
        kin = [r for r in others if r["regime"] == row["regime"]]
        affordable = [r for r in kin if r["inference_flops"] <= row["inference_flops"]]
        cheapest = min(kin, key=lambda r: r["inference_flops"])
        best = max(affordable or [cheapest], key=lambda r: r["success"])
        table[method] = {
            "regime": row["regime"],
            "FLOPs": row["inference_flops"],
            "success": row["success"],
            "reference": best["method"],
            "its FLOPs": best["inference_flops"],
            "its success": best["success"],
        }
    return pd.DataFrame(table).T.infer_objects()


def converging(rounds: Sequence[Scored]) -> int:
    """Return the query whose path changed in most rounds, of those that succeed only at the end.

    Where none does, the one whose path changed most often.
    """
    paths = [s.found.paths.padded() for s in rounds]
    wide = max(p.shape[1] for p in paths)
    ids = np.stack([np.pad(p, ((0, 0), (0, wide - p.shape[1])), constant_values=-1) for p in paths])
    changes = (np.diff(ids, axis=0) != 0).any(2).sum(0)
    won = (rounds[-1].judged["success"] & ~rounds[0].judged["success"]).to_numpy()
    return int((changes + len(rounds) * won).argmax())
