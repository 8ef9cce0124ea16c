"""Iterative refinement, scored after every round: masked paths, waypoints, segments drawn anew."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pandas as pd

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.decoding import Likelihood, PathLength, Scorer
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.map.paths import Found
from citypaths.models.base import PathModel
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe
from studies.refinement import conduct, refine_masked, repair, resample_segments

LENGTHS = 8  # candidate lengths of a masked path, refined side by side
PART = 50  # queries whose attempts are drawn together
DECODERS = (("greedy", "greedy", decoding.greedy, 1), ("beam 8", "beam", decoding.beam, 8))


def train_masked(size: Size, dataset: Dataset, seed: int) -> Trained:
    """Train (or load) a masked path model with room for the longest training path."""
    longest = int(dataset.rows("train").hops.max())
    return train_arm(size, dataset, "masked", seed, settings={"slots": longest})


def largest_gru(size: Size) -> str:
    """Return the widest GRU among the size's arms."""
    grus = (arm for arm in arms(size, "baselines") if arm.startswith("gru"))
    return max(grus, key=lambda arm: recipe(size, arm).settings["width"])


def score_rounds(queries: Queries, founds: Sequence[Found], method: Method) -> list[Scored]:
    """Judge what a method found after each round."""
    return [score(queries, found, replace(method, rounds=i)) for i, found in enumerate(founds)]


def masked_rounds(
    queries: Queries, masked: Trained, arm: str, filler: Trained, rounds: int
) -> list[Scored]:
    """Score the masked model after every round: alone, and with its illegal hops filled in.

    The filler, a model of paths, is asked once, after the last round that is counted.
    """
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    model, fill = masked.model.eval(), filler.model.eval()
    founds = refine_masked(model, *ids, most, rounds=rounds, lengths=LENGTHS)
    mended = [repair(fill, found, *ids, most, queries.graph) for found in founds]
    shared = {"family": "refinement", "attempts": LENGTHS, "verifier": "own likelihood"}
    alone = Method.of("masked", masked, name="masked", regime="closed_book", **shared)
    names = {"name": "masked, repaired", "regime": "checked"} | shared
    repaired = Method.of(f"masked, {arm}", masked, filler, **names)
    return score_rounds(queries, founds, alone) + score_rounds(queries, mended, repaired)


def conductor_rounds(
    queries: Queries, conductor: Trained, arm: str, filler: Trained, rounds: int
) -> list[Scored]:
    """Score the conductor after every round: alone, and with a filler between its waypoints."""
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    lead, fill = conductor.model.eval(), filler.model.eval()
    shared = {"family": "refinement", "regime": "closed_book"}
    alone = Method.of("conductor", conductor, name="conductor", **shared)
    filled = Method.of(f"conductor, {arm}", conductor, filler, name="conductor, filled", **shared)
    return [
        *score_rounds(queries, conduct(lead, None, *ids, most, rounds=rounds), alone),
        *score_rounds(queries, conduct(lead, fill, *ids, most, rounds=rounds), filled),
    ]


def segment_rounds(
    queries: Queries, arm: str, trained: Trained, rounds: int, seed: int
) -> list[Scored]:
    """Score segment resampling: by the model's own likelihood, and checked by exact length."""
    model, scored = trained.model.eval(), []
    args = model, queries.rows.source, queries.rows.target, queries.max_hops
    for regime, verifier, energy, check in regimes(queries, model):
        name = f"segments, {verifier}"
        founds = resample_segments(*args, energy=energy, rounds=rounds, seed=seed, **check)
        names = {"name": name, "family": "refinement", "regime": regime, "verifier": verifier}
        scored += score_rounds(queries, founds, Method.of(arm, trained, **names))
    return scored


def regimes(queries: Queries, model: PathModel) -> list[tuple[str, str, Scorer, dict[str, Any]]]:
    """Return each regime: its name, what judges paths in it, that scorer, and decoding options."""
    exact = PathLength(queries.graph)
    return [
        ("closed_book", "own likelihood", Likelihood(model), {}),
        ("checked", "exact length", exact, {"checked_by": queries.graph}),
    ]


def references(
    queries: Queries, arm: str, trained: Trained, seed: int, ns: Sequence[int] = ()
) -> list[Scored]:
    """Score what notebook 05 does with a model: greedy, beam, best of N; checked or not."""
    model, scored = trained.model.eval(), []
    ids, most = (queries.rows.source, queries.rows.target), queries.max_hops
    for regime, verifier, scorer, check in regimes(queries, model):
        for name, family, decoder, attempts in DECODERS:
            found = queries.decode(decoder, model, **check)
            names = {"name": name, "family": family, "regime": regime, "attempts": attempts}
            scored.append(score(queries, found, Method.of(arm, trained, **names)))
        for n in ns:
            best = partial(decoding.best_of, model, max_hops=most, n=n, scorer=scorer, **check)
            found = decoding.in_parts(best, *ids, part=PART, name=f"best of {n}", seed=seed)
            names = {"name": f"best of {n}", "family": "best of N", "regime": regime}
            names |= {"attempts": n, "verifier": verifier}
            scored.append(score(queries, found, Method.of(arm, trained, **names)))
    return scored


def by_round(scored: Iterable[Scored], column: str) -> pd.DataFrame:
    """Return a ledger column of every method (rows) after each round (columns)."""
    rows = pd.DataFrame([s.row for s in scored])
    names = rows["method"].drop_duplicates()
    return rows.pivot(index="method", columns="rounds", values=column).loc[names]


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
