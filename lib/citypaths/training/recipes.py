"""Every training setting of the repository, in one table: a recipe for each arm at each size.

Budgets are floating-point operations of training; a run takes the most whole steps within its own.
To change how long, in what batches or how fast anything is trained, edit this file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cache
from typing import Any

from citypaths.map.graph import CityGraph
from citypaths.models import build
from citypaths.sizes import Size, get_size
from citypaths.training.settings import Schedule, TrainSettings


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """How one arm is trained.

    Attributes:
        arm: its label, in tables and in the name of its folder.
        model, settings: what `citypaths.models.build` takes.
        budget: training operations. batch_tokens: padded tokens a batch.
        learning_rate, schedule, evaluations, hindsight, own_input: as in `TrainSettings`.
        variant: more settings of the model, trained for as many steps as without them.
    """

    arm: str
    model: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    budget: float
    batch_tokens: int
    learning_rate: float
    schedule: Schedule = "cosine"
    evaluations: int = 1
    hindsight: float = 0.0
    own_input: float = 0.0
    variant: Mapping[str, Any] = field(default_factory=dict)

    def changed(self, **changes: Any) -> Recipe:
        """Return the recipe with fields replaced; `settings` are added to its own."""
        if "settings" in changes:
            changes["settings"] = {**self.settings, **changes["settings"]}
        return replace(self, **changes)

    def training(self, graph: CityGraph, seed: int) -> TrainSettings:
        """Return how to train on a graph: at least one step, and as many as the budget allows."""
        per_step = build(self.model, graph, **self.settings).training_flops_per_step
        shared = {name: getattr(self, name) for name in SHARED}
        steps = max(1, int(self.budget / (per_step * self.batch_tokens)))
        return TrainSettings(steps, seed=seed, **shared)


SHARED = ("batch_tokens", "learning_rate", "schedule", "evaluations", "hindsight", "own_input")

# The table. Columns of numbers are of these sizes; a width that is a float is a factor of WIDTH.
SIZES = ("tiny", "small", "medium", "full")
SEEDS = (1, 1, 3, 3)
WIDTH = (32, 128, 128, 512)
BATCH_TOKENS = (2_048, 2_048, 4_096, 32_768)
LEARNING_RATE = (8e-3, 8e-3, 8e-3, 3e-3)

# Notebook 03: cells and widths.
BASELINES: dict[str, dict[str, float]] = {
    "tiny": {"gru-16": 5.7e9, "gru-32": 1.41e10, "lstm-32": 1.56e10},
    "small": {"gru-64": 3.28e11, "gru-128": 9.37e11, "gru-256": 3.002e12, "lstm-128": 1.1e12},
    "medium": {
        "gru-64": 7.102e12, "gru-128": 1.562e13, "gru-256": 3.687e13, "lstm-128": 1.642e13,
    },
    "full": {"gru-256": 2.3354e16, "gru-512": 5.0316e16, "lstm-512": 5.2378e16},
}  # fmt: skip
# "Why 2021 failed": the arm of each size, and the two-way graphs on which it is trained.
WATERFALL = ("gru-32", "gru-64", "gru-64", "gru-1024")
TWO_WAY: dict[str, dict[str, tuple[float, int, float]]] = {
    # arm: budget, tokens a batch, learning rate
    "tiny_two_way": {"gru-32": (9.4e9, 2_048, 8e-3)},
    "small_two_way": {"gru-64": (3.28e11, 2_048, 8e-3)},
    "replica": {"gru-64": (5.77e12, 4_096, 8e-3), "gru-1024": (2.2754e16, 32_768, 3e-3)},
}

# Notebook 04, the race, at equal budgets. The learning rate is RACE_RATE or half of it: the better
# on validation queries of `medium` at a third of the budget (the widest arm diverges at all of it).
RACE_BUDGET = (2e9, 4e11, 4e12, 1e17)
RACE_TOKENS = (512, 512, 512, 16_384)
RACE_RATE = (1.6e-2, 1.6e-2, 1.6e-2, 3e-3)
GRU = {"cell": "gru", "tied": True}
SAMPLED = {"width": 1.0, "loops": 4, "sampled": (1, 8), "backprop": 4}
RACE: dict[str, tuple[str, dict[str, Any], float]] = {
    # arm: model, settings, times the learning rate
    "transformer": ("transformer", {"width": 1.0, "layers": 1}, 1),
    "transformer-deep": ("transformer", {"width": 1.0, "layers": 4}, 1),
    "gru": ("rnn", GRU | {"width": 1.0}, 1),
    "gru-wide": ("rnn", GRU | {"width": 2.0}, 0.5),
    "gru-think": ("rnn", GRU | {"width": 1.0, "loops": 4}, 1),
    "feedback": ("feedback", {"width": 1.0, "layers": 1}, 1),
    "looped-fixed": ("looped", {"width": 1.0, "loops": 4}, 1),
    "looped-sampled": ("looped", SAMPLED, 1),
    "looped-noise": ("looped", SAMPLED | {"noise": 0.5}, 1),
    "act": ("act", {"width": 1.0, "loops": 8}, 0.5),
    "ponder": ("ponder", {"width": 1.0, "loops": 4}, 0.5),
    "top": ("top_recurrent", {"width": 1.0, "loops": 4}, 0.5),
}
# Notebook 05, the ladder: GRUs of several widths at the race's budgets, two of which are the race's
# own. The learning rate is lower in proportion to widths above 1.
LADDER: dict[float, str] = {0.25: "", 0.5: "", 1.0: "gru", 2.0: "gru-wide", 4.0: ""}

# Notebooks 05 and 06: other networks. Of the size where they name no batch or rate: None.
OTHERS: dict[str, tuple[dict[str, Any], int | None, float | None, tuple[float, ...]]] = {
    # arm and model: settings, tokens a batch, learning rate, budgets
    "value": ({}, 4_096, None, (4.63e10, 3.083e11, 7.71e11, 1.54141e13)),
    "reach": ({}, 4_096, None, (4.03e10, 2.681e11, 6.701e11, 1.3401e13)),
    "judge": ({}, 2_048, None, (5.2e10, 4.4e11, 8.03e11, 1.01e13)),
    "planner": ({"tied": True}, None, None, (7.5e9, 4.8e11, 7.86e12, 2.5192e16)),
    "masked": (
        {"width": 0.5, "layers": 2}, None, 1.2e-2, (2.43e10, 1.558e12, 1.951e13, 5.7972e16),
    ),
    "conductor": ({"width": 1.0}, None, 4e-3, (3.81e10, 2.717e12, 3.596e13, 1.1151e17)),
}  # fmt: skip
REFINEMENT = ("masked", "conductor")

# Notebook 07: memories that read new maps.
EPISODES_A_BATCH, EPISODES_TOKENS, EPISODES_WIDTH = 32, 2_048, 48
LSTM, WHOLE = {"kind": "lstm"}, {"kind": "transformer", "layers": 2}
XL = {"kind": "xl", "layers": 2, "segment": 16, "memory": 48}
SQUEEZED = XL | {"kind": "compressive", "memory": 16, "compressed": 16}
NEAREST = XL | {"kind": "memorizing", "memory": 256}
NTM = {"kind": "ntm", "slots": 32, "word": 24}
DNC = NTM | {"kind": "dnc", "heads": 2}
MENDED = DNC | {"masked": True, "freed": True, "sharpened": True}
ASSOCIATIVE, PLASTIC = {"kind": "associative", "copies": 4}, {"kind": "plastic"}
EPISODES: dict[str, tuple[dict[str, Any], float, tuple[float, ...]]] = {
    # arm: settings, learning rate, budgets
    "lstm": (LSTM, 1e-2, (2.4e9, 1.151e11, 3.452e11, 1.1506e13)),
    "transformer": (WHOLE, 1e-2, (3.1e9, 1.54e11, 4.61e11, 1.53591e13)),
    "xl": (XL, 1e-2, (5e9, 2.21e11, 6.63e11, 2.2084e13)),
    "compressive": (SQUEEZED, 1e-2, (4e9, 1.76e11, 5.27e11, 1.7554e13)),
    "memorizing": (NEAREST, 1e-2, (4e9, 1.91e11, 5.72e11, 1.9064e13)),
    "ntm": (NTM, 1e-2, (3e9, 1.33e11, 3.99e11, 1.3283e13)),
    "dnc": (DNC, 1e-2, (3.2e9, 1.57e11, 4.691e11, 1.5637e13)),
    "dnc-mended": (MENDED, 1e-2, (4e9, 1.67e11, 5e11, 1.6643e13)),
    "associative": (ASSOCIATIVE, 1e-2, (2.3e9, 1.133e11, 3.4e11, 1.1322e13)),
    "plastic": (PLASTIC, 5e-3, (5e9, 2.28e11, 6.83e11, 2.2762e13)),
    "lstm, longer": (LSTM, 1e-2, (9.3e9, 4.603e11, 1.381e12, 4.60221e13)),
    "transformer, longer": (WHOLE, 1e-2, (1.3e10, 6.15e11, 1.8431e12, 6.14361e13)),
}
EPISODES_AT_TINY = ("lstm", "xl", "dnc", "lstm, longer")


def seeds(size: Size, first: int = 0) -> range:
    """Return the seeds of the trainings that notebooks 04, 05, 07 and 08 repeat."""
    count = size.training.get("seeds", SEEDS[SIZES.index(size.name)])
    return range(first, first + count)


def arms(size: Size | str, study: str) -> tuple[str, ...]:
    """Return the labels of a study's arms at a size: those in its `training`, or the table's.

    Studies: baselines, waterfall (its arm is trained at the size's `two_way`), priors, race,
    ladder, search, refinement, episodes, learning.
    """
    size = get_size(size) if isinstance(size, str) else size
    if chosen := size.training.get("arms", {}).get(study):
        return tuple(chosen)
    if study == "waterfall":
        return (WATERFALL[SIZES.index(size.name)],)
    if study == "learning":  # notebook 08 varies what the smallest rung of the ladder learns
        return arms(size, "ladder")[:1]
    if study == "episodes" and size.name == "tiny":
        return EPISODES_AT_TINY
    return tuple(_table(size.name)[study])


def recipe(size: Size | str, arm: str, study: str = "") -> Recipe:
    """Return how an arm is trained at a size, whose `training` changes every recipe alike.

    Args:
        study: which is meant where two have an arm of that label ("transformer" is in the race and
            in the episodes); otherwise the first in the order of `arms`.

    Raises:
        ValueError: no such arm; the message lists those of the size.
    """
    size = get_size(size) if isinstance(size, str) else size
    changes = {k: v for k, v in size.training.items() if k not in ("arms", "seeds")}
    table = _table(size.name)
    for name, rows in table.items():
        if arm in rows and study in ("", name):
            return rows[arm].changed(**changes)
    known = "; ".join(f"{name}: {', '.join(rows)}" for name, rows in table.items())
    raise ValueError(f"no recipe for {arm!r} at {size.name}; there are {known}")


def cell(label: str) -> dict[str, Any]:
    """Return the settings of an "rnn" whose label is cell-width, such as "gru-128"."""
    kind, width = label.split("-")
    return {"cell": kind, "width": int(width), "tied": True}


@cache
def _table(size: str) -> dict[str, dict[str, Recipe]]:
    """The recipes of a size by study and arm."""
    if size in TWO_WAY:
        rows = TWO_WAY[size].items()
        return {"waterfall": {arm: _row(arm, "rnn", cell(arm), *numbers) for arm, numbers in rows}}
    at = SIZES.index(size)
    width, own, every = WIDTH[at], (BATCH_TOKENS[at], LEARNING_RATE[at]), BASELINES[size]
    smallest, plain = list(every)[:2]
    table = {
        "baselines": {arm: _row(arm, "rnn", cell(arm), every[arm], *own, 8) for arm in every},
        "priors": {plain: _row(plain, "rnn", cell(plain), every[plain], *own)},
        "race": {
            arm: _row(
                arm, model, _scaled(settings, width), RACE_BUDGET[at], RACE_TOKENS[at],
                times * RACE_RATE[at],
            )
            for arm, (model, settings, times) in RACE.items()
        },
    }  # fmt: skip
    table["ladder"] = {}
    for times, label in LADDER.items():
        wide = int(times * width)
        arm, rate = label or f"gru-{wide}-budget", min(1.0, 1 / times) * RACE_RATE[at]
        numbers = (RACE_BUDGET[at], RACE_TOKENS[at], rate)
        table["ladder"][arm] = _row(arm, "rnn", cell(f"gru-{wide}"), *numbers)
    table["search"] = {
        f"reverse-{arm}": _row(f"reverse-{arm}", "reverse", cell(arm), every[arm], *own)
        for arm in every
    }
    table["refinement"] = {}
    for arm, (settings, tokens, rate, budgets) in OTHERS.items():
        if arm == "planner":  # as wide as the smallest arm
            settings = settings | {"width": cell(smallest)["width"]}
        numbers = (budgets[at], tokens or own[0], rate or own[1])
        study = "refinement" if arm in REFINEMENT else "search"
        table[study][arm] = _row(arm, arm, _scaled(settings, width), *numbers)
    table["episodes"] = {
        arm: _row(
            arm, "episodes", settings | {"width": EPISODES_WIDTH}, budgets[at], EPISODES_TOKENS,
            rate, 10,
        )
        for arm, (settings, rate, budgets) in EPISODES.items()
    }  # fmt: skip
    return table


def _row(
    arm: str, model: str, settings: Mapping[str, Any], budget: float, tokens: int, rate: float,
    evaluations: int = 1,
) -> Recipe:  # fmt: skip
    return Recipe(
        arm=arm, model=model, settings=settings, budget=budget, batch_tokens=tokens,
        learning_rate=rate, evaluations=evaluations,
    )  # fmt: skip


def _scaled(settings: dict[str, Any], width: int) -> dict[str, Any]:
    """The settings with a width that is a factor made a number of units."""
    wide = settings.get("width")
    return settings | {"width": int(wide * width)} if isinstance(wide, float) else settings
