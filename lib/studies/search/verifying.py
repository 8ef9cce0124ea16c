"""Verifiers: how well does a scorer pick the good one among a model's own attempts?"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import numpy as np
import pandas as pd
from tqdm import tqdm

from citypaths import decoding
from citypaths.data.dataset import Dataset
from citypaths.decoding import LOST, PathLength, Scorer, Sum
from citypaths.files import data_dir
from citypaths.judging.metrics import SLACK
from citypaths.judging.queries import Queries
from citypaths.lab import train_arm
from citypaths.models import PathModel
from citypaths.sizes import Size
from citypaths.training.loop import Trained

EXACT, OWN = "exact length", "own likelihood"
SLICE = 20  # queries whose attempts are drawn together
WEIGHTS = (0.03, 0.1, 0.3, 1.0)  # of a scorer beside another; chosen on validation queries
CONTROLS: dict[str, dict[str, Any]] = {
    "cities": {},
    "whole path": {"kind": "whole"},
    "whole path, blind": {"kind": "whole", "blind": True},
    "whole path, shuffled": {"kind": "whole", "shuffled": True},
}


@dataclass(frozen=True, eq=False)
class Tried:
    """Closed-book attempts at queries, judged exactly: what verifiers are measured on.

    Attributes:
        drawn: the attempts. source, target: int64 [A], of each. km: float64 [A], infinite unless
            the attempt arrives by edges. good: bool [A], success. arrived: bool [A].
    """

    queries: Queries
    drawn: decoding.Attempts
    source: np.ndarray
    target: np.ndarray
    km: np.ndarray
    good: np.ndarray
    arrived: np.ndarray
    _known: dict[Scorer, np.ndarray] = field(default_factory=dict, repr=False)

    @classmethod
    def of(cls, queries: Queries, model: PathModel, n: int, seed: int) -> Tried:
        """Draw `n` attempts at each query, and judge them."""
        parts, ids = [], (queries.rows.source, queries.rows.target)
        starts = range(0, len(queries), SLICE)
        for first in tqdm(starts, desc=f"{n:,} attempts a query", unit="slice", leave=False):
            some = (x[first : first + SLICE] for x in ids)
            parts.append(decoding.draw(model, *some, queries.max_hops, n, seed=seed + first))
        drawn = decoding.Attempts.concatenate(parts)
        source, target = (x[drawn.query] for x in ids)
        km = PathLength(queries.graph).score(source, target, drawn.paths)
        good = km <= (1 + SLACK) * queries.rows.km[drawn.query]
        return cls(queries, drawn, source, target, km, good, drawn.paths.leads(source, target))

    def energies(self, scorer: Scorer) -> np.ndarray:
        """Return the energy of every attempt, [A]; a scorer is asked once, a sum by its parts."""
        if isinstance(scorer, Sum):
            parts = zip(scorer.weights, scorer.parts, strict=True)
            return np.sum([weight * self.energies(part) for weight, part in parts], axis=0)
        if scorer not in self._known:
            self._known[scorer] = scorer.score(self.source, self.target, self.drawn.paths)
        return self._known[scorer]

    @cached_property
    def likelihood(self) -> np.ndarray:
        """Minus the log-probability of each attempt that arrived, else `LOST`: free of charge."""
        return np.where(self.arrived, -self.drawn.log_p, LOST)

    def curve(self, energies: np.ndarray, ns: Sequence[int]) -> pd.DataFrame:
        """Return the success of the best of N by energy, [queries, N], a mean over all subsets."""
        shares = decoding.expected_best(self.drawn, energies, self.good.astype(float), ns)
        return pd.DataFrame(shares, columns=list(ns))

    def roc(self, energies: np.ndarray) -> pd.DataFrame:
        """Return the ROC over attempts that arrived, as often as drawn: columns false and true."""
        some = self.arrived
        energy, good, count = energies[some], self.good[some], self.drawn.count[some]
        order = np.argsort(energy, kind="stable")
        energy = energy[order]
        last = np.append(energy[1:] > energy[:-1], True)[: len(energy)]
        taken = {"false": count * ~good, "true": count * good}
        sums = {name: np.cumsum(x[order])[last] / max(1, x.sum()) for name, x in taken.items()}
        return pd.DataFrame({name: np.append(0.0, x) for name, x in sums.items()})

    def auc(self, energies: np.ndarray) -> float:
        """Return the area under the ROC: how often a good attempt has less energy than a bad."""
        roc = self.roc(energies)
        return float(np.trapezoid(roc["true"], roc["false"]))

    def reliability(self, energies: np.ndarray, bins: int = 10) -> pd.DataFrame:
        """Return predicted exp(-energy) and observed success by equally filled bins of attempts."""
        frame = pd.DataFrame({"predicted": np.exp(-energies), "observed": self.good})
        frame = frame[self.arrived].assign(attempts=self.drawn.count[self.arrived])
        rank = frame.sort_values("predicted")["attempts"].cumsum() / frame["attempts"].sum()
        group = np.ceil(rank * bins).clip(1, bins).rename("bin")
        weighed = frame[["predicted", "observed"]].mul(frame["attempts"], axis=0)
        sums = weighed.assign(attempts=frame["attempts"]).groupby(group).sum()
        means = sums[["predicted", "observed"]].div(sums["attempts"], axis=0)
        return means.assign(attempts=sums["attempts"].astype(int))


def calibration_error(reliability: pd.DataFrame) -> float:
    """Return the expected calibration error of a reliability table (Guo et al. 2017)."""
    gap = (reliability["predicted"] - reliability["observed"]).abs()
    return float((gap * reliability["attempts"]).sum() / reliability["attempts"].sum())


def train_judges(
    size: Size, dataset: Dataset, generator: Trained, seed: int, names: Iterable[str]
) -> dict[str, Trained]:
    """Train (or load) judges of the attempts of a trained model.

    `names` are keys of `CONTROLS`: judges of cities and of whole paths, the latter with their
    shortcut controls, which hide the query or the order of the cities.
    """
    source = {"generator": generator.folder.relative_to(data_dir()).as_posix()}
    return {
        name: train_arm(size, dataset, "judge", seed, settings=source, variant=CONTROLS[name])
        for name in names
    }


def weighted(
    chosen_on: Tried, scorers: Mapping[str, Scorer], names: Sequence[str], n: int
) -> Scorer:
    """Return the sum of scorers, each of which is weighted so that the best of `n` is best.

    A weight is one of `WEIGHTS`, in units of the ratio of the two spreads over attempts that
    arrived.
    """
    first, *others = (scorers[name] for name in names)
    total, weights, arrived = chosen_on.energies(first), [1.0], chosen_on.arrived
    for scorer in others:
        energies = chosen_on.energies(scorer)
        unit = total[arrived].std() / max(1e-9, energies[arrived].std())
        sums = {w * unit: total + w * unit * energies for w in WEIGHTS}
        rates = {w: chosen_on.curve(energy, [n]).mean()[n] for w, energy in sums.items()}
        weights.append(max(rates, key=lambda w: rates[w]))
        total = sums[weights[-1]]
    return Sum(first, *others, weights=tuple(weights))


def verifier_table(
    tried: Tried, energies: Mapping[str, np.ndarray], scorers: Mapping[str, Scorer], n: int
) -> pd.DataFrame:
    """Return one row a verifier: AUC, success of the best of powers of four, operations a path."""
    table, ns = {}, powers(n, 4)
    for name, energy in energies.items():
        rates = tried.curve(energy, ns).mean().add_prefix("best of ")
        flops = scorers[name].flops(tried.drawn.paths).mean() if name in scorers else np.nan
        table[name] = {"AUC": tried.auc(energy), **rates, "FLOPs a path": flops}
    return pd.DataFrame(table).T


def powers(most: int, base: int = 2) -> list[int]:
    """Return 1, base, base squared and so on, up to `most`."""
    return [base**i for i in range(most.bit_length()) if base**i <= most]


def curve_rows(
    tried: Tried, energies: Mapping[str, np.ndarray], groups: pd.Categorical, most: int, model: str
) -> list[dict[str, Any]]:
    """Return ledger rows of the best of N by each verifier, over all queries and by their hops.

    Operations are left out: attempts share them.
    """
    shared, rows = {"study": "curve", "family": "best of N", "model": model}, []
    for verifier, energy in energies.items():
        curve = tried.curve(energy, powers(most, 4))
        parts = {"": curve}
        parts |= {f"{hops} hops": part for hops, part in curve.groupby(groups, observed=True)}
        kind = {"verifier": verifier, "regime": "checked" if verifier == EXACT else "closed_book"}
        for subset, part in parts.items():
            says = shared | kind | {"subset": subset, "queries": len(part)}
            for n, rate in part.mean().items():
                rows.append(says | {"method": f"best of {n}", "attempts": n, "success": rate})
    return rows
