"""The question of 2021: is recurrence at test time worth its training, at equal training FLOPs?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import product

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.data.dataset import Dataset, make_dataset
from citypaths.data.splits import recipe_for
from citypaths.judging.methods import Method, Scored, score
from citypaths.judging.metrics import over_few
from citypaths.judging.queries import Queries
from citypaths.lab import mean_loss, train_arm
from citypaths.map.graph import CityGraph
from citypaths.models import build
from citypaths.models.base import nats
from citypaths.sizes import Size
from citypaths.training.loop import Trained
from citypaths.training.recipes import arms, recipe
from studies.recurrence.feedback import FeedbackTransformer
from studies.recurrence.looped import LoopedTransformer

LOOPS = (1, 2, 4, 8, 16, 64)
PLAIN = "transformer"  # one layer without loops, to which the others are compared
STEADY = ("transformer", "transformer-deep", "gru", "gru-wide")  # arms that do not recur
REMARKS = {
    "transformer": "one layer",
    "transformer-deep": "four layers",
    "gru": "one step a city",
    "gru-wide": "twice the width",
    "gru-think": "four steps a city",
    "feedback": "attends to its own past output",
    "looped-fixed": "always four loops",
    "looped-sampled": "1 to 8 loops by chance",
    "looped-noise": "random start",
    "act": "halts by itself, 8 loops at most",
    "ponder": "halts by itself, 4 at most",
    "top": "as in 2021",
}


def cards(size: Size, graph: CityGraph) -> pd.DataFrame:
    """Return one row an arm: what sets it apart, parameters, operations a step, training steps."""
    table = {}
    for label in arms(size, "race"):
        arm = recipe(size, label)
        model = build(arm.model, graph, **arm.settings)
        row = {"what": REMARKS.get(label, ""), "parameters": model.parameters_count}
        row |= {"FLOPs a city": model.flops_per_step()}
        row |= {"FLOPs to train on a city": model.training_flops_per_step}
        table[label] = row | {"training steps": arm.training(graph, 0).steps}
    return pd.DataFrame(table).T


def run(
    queries: Queries, label: str, trained: Trained, seed: int, loops: int | None = None
) -> Scored:
    """Score greedy, closed-book decoding at a number of loops (None: the arm's own)."""
    model = trained.model.eval()
    batch = 250 if loops and loops > 8 else 1000  # each loop keeps keys and values of its own
    found = queries.decode(decoding.greedy, model, loops=loops, batch=batch)
    names = {"name": "greedy", "family": "greedy", "loops": getattr(model, "loops", 1)}
    if loops is not None:
        names = {"name": f"greedy, {loops} loops", "family": "more loops", "loops": loops}
    method = Method.of(label, trained, regime="closed_book", **names)
    return score(queries, found, method, seed=seed, loss=mean_loss(model, queries, loops))


def turn_the_dial(
    queries: Queries, trained: Mapping[tuple[str, int], Trained], most: int
) -> list[Scored]:
    """Score every arm, by (label, seed), at `LOOPS` up to `most`; those without loops at 1.

    The feedback transformer's memory grows with every inner step, so it stops at 8.
    """
    scored = []
    for (label, seed), arm in trained.items():
        end = min(most, 8) if isinstance(arm.model, FeedbackTransformer) else most
        end = 1 if label in STEADY else end
        scored += [run(queries, label, arm, seed, loops) for loops in LOOPS if loops <= end]
    return scored


def breadth(queries: Queries, trained: Trained, seed: int, starts: Iterable[int]) -> list[Scored]:
    """Score a model with noise from several first states, the steadiest end taken city by city."""
    model, scored = trained.model, []
    for count in starts:
        model.starts = count
        one = run(queries, "looped-noise", trained, seed)
        names = {"method": f"greedy, {count} starts", "family": "more loops", "attempts": count}
        scored.append(replace(one, row=one.row | names | {"verifier": "steadiness"}))
    model.starts = 1
    return scored


def over_seeds(scored: Iterable[Scored], columns: Sequence[str]) -> pd.DataFrame:
    """Return the mean, least and most over seeds of ledger columns, by model and loops."""
    rows = pd.DataFrame([s.row for s in scored])
    return rows.groupby(["model", "loops"], sort=False)[list(columns)].agg(["mean", "min", "max"])


def margins(own: Iterable[Scored], dial: Iterable[Scored]) -> pd.DataFrame:
    """Return by how much each arm's success exceeds the plain one-layer arm's, over seeds.

    Columns: own (at the loops it was trained with, all of `own`'s queries) with low and high (95 %
    t interval over seeds; missing for one seed), and at best, with the loops that have the highest
    mean success in `dial`, chosen on those very queries and so flattered.
    """
    own, dial = (pd.DataFrame([s.row for s in scored]) for scored in (own, dial))
    table = {}
    for label in dict.fromkeys(own["model"]):
        if label != PLAIN:
            mean, half = _mean_gap(own, label)
            best = dial[dial["model"] == label].groupby("loops")["success"].mean().idxmax()
            kept = dial[(dial["model"] == PLAIN) | (dial["loops"] == best)]
            table[label] = {"own": mean, "low": mean - half, "high": mean + half}
            table[label] |= {"at best": _mean_gap(kept, label)[0], "best loops": best}
    return pd.DataFrame(table).T


def _mean_gap(rows: pd.DataFrame, label: str) -> tuple[float, float]:
    """The mean over seeds of the difference in success, and half its 95 % t interval."""
    each = rows.pivot(index="seed", columns="model", values="success")
    return over_few(each[label] - each[PLAIN])


def halting(queries: Queries, trained: Trained) -> pd.DataFrame:
    """Return where a halting model spends its loops: one row a hop of the queries' shortest paths.

    Columns: loops, hops to go (this one included), detour (network / great-circle km of the
    query).
    """
    model, rows = trained.model.eval(), queries.rows
    batch = batch_of(rows, next(model.parameters()).device)
    with torch.inference_mode():
        spent = model.loops_spent(batch)
    real = (batch.labels >= 0).cpu().numpy()
    to_go = rows.hops[:, None] - np.arange(real.shape[1])
    detour = np.broadcast_to((rows.km / queries.straight_km)[:, None], real.shape)
    columns = {"loops": spent.cpu().numpy()[real], "hops to go": to_go[real]}
    return pd.DataFrame(columns | {"detour": detour[real]})


def short_paths(size: Size, graph: CityGraph) -> Dataset:
    """Return a dataset trained on the shorter half of all paths alone (the `long` split)."""
    goals = {"train": size.train, "valid": size.valid, "test": 2 * size.test}
    short = recipe_for(graph, split="long", long_quantile=0.5, **goals)
    return make_dataset(graph, short, size.folder / f"spd-long-half-{graph.fingerprint[:8]}")


def longest(dataset: Dataset, hops: np.ndarray) -> Queries:
    """Return the test queries of `dataset` among the longest 5 % of paths with `hops` hops."""
    queries = Queries.of(dataset)
    return queries.take(queries.rows.hops >= np.quantile(hops, 0.95))


def extrapolate(
    size: Size, dataset: Dataset, queries: Queries, labels: Sequence[str], seeds: Iterable[int]
) -> list[Scored]:
    """Train arms on short paths and score them on long ones, without and with coordinates.

    Models with coordinates are called LABEL-raw; looped arms are scored at 16 loops too.
    """
    scored = []
    for coordinates, label, seed in product(("none", "raw"), labels, seeds):
        inputs = {} if coordinates == "none" else {"coordinates": coordinates}
        arm = train_arm(size, dataset, label, seed, variant=inputs)
        name = label if coordinates == "none" else f"{label}-{coordinates}"
        turned = (None, 16) if isinstance(arm.model, LoopedTransformer) else (None,)
        scored += [run(queries, name, arm, seed, loops) for loops in turned]
    return scored


def sweep_losses(queries: Queries, trained: Trained, counts: Iterable[int]) -> pd.DataFrame:
    """Return nats a hop of a feedback model after so many parallel sweeps instead of the scan.

    Columns: sweeps, loss, and exact (the scan's loss). As many sweeps as it takes to come near
    the exact loss is how deep in time the model's recurrence reaches.
    """
    model = trained.model.eval()
    batch = batch_of(queries.rows, next(model.parameters()).device)
    with torch.inference_mode():
        exact = float(model.loss(batch))
        table = [(count, float(nats(model.sweeps(batch, count), batch))) for count in counts]
    return pd.DataFrame(table, columns=["sweeps", "loss"]).assign(exact=exact)
