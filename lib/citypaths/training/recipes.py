"""Every training setting of the repository, in one table: a recipe for each arm at each size.

Budgets are floating-point operations of training; a run takes the most whole steps within its own.
To change how long, in what batches or how fast anything is trained, edit this file alone.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from functools import cache
from typing import Any

from citypaths.map.graph import CityGraph
from citypaths.models import build
from citypaths.sizes import Size, get_size
from citypaths.training.loop import Schedule, TrainSettings


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
        shared = {
            f.name: getattr(self, f.name) for f in fields(TrainSettings) if hasattr(self, f.name)
        }
        steps = max(1, int(self.budget / (per_step * self.batch_tokens)))
        return TrainSettings(steps, seed=seed, **shared)


def cell(label: str) -> dict[str, Any]:
    """Return the settings of an "rnn" whose label is cell-width, such as "gru-128"."""
    kind, width = label.split("-")
    return {"cell": kind, "width": int(width), "tied": True}


# The table. Four numbers in a row are of these sizes.
SIZES = ("tiny", "small", "medium", "full")
Numbers = tuple[float | None, ...]
SEEDS = (1, 1, 3, 3)
TOKENS: Numbers = (2_048, 2_048, 4_096, 32_768)
RATE: Numbers = (8e-3, 8e-3, 8e-3, 3e-3)
QUARTER, HALF, WIDTH, DOUBLE, FOURFOLD = (
    (8, 32, 32, 128), (16, 64, 64, 256), (32, 128, 128, 512), (64, 256, 256, 1024),
    (128, 512, 512, 2048),
)  # fmt: skip


@dataclass(frozen=True)
class Row:
    """Recipes of an arm at every size. A budget of None: no such arm there."""

    model: str
    settings: dict[str, Any]
    budget: Numbers
    tokens: Numbers = TOKENS
    rate: Numbers = RATE
    evaluations: int = 1


# Notebook 03: cells by width.
BASELINES: dict[str, Numbers] = {
    "gru-16": (5.7e9, None, None, None),
    "gru-32": (1.41e10, None, None, None),
    "lstm-32": (1.56e10, None, None, None),
    "gru-64": (None, 3.28e11, 7.102e12, None),
    "gru-128": (None, 9.37e11, 1.562e13, None),
    "gru-256": (None, 3.002e12, 3.687e13, 2.3354e16),
    "gru-512": (None, None, None, 5.0316e16),
    "lstm-128": (None, 1.1e12, 1.642e13, None),
    "lstm-512": (None, None, None, 5.2378e16),
}
PRIORS = ("gru-32", "gru-128", "gru-512")  # whose priors are varied
# "Why 2021 failed": the arm of each size, and the sizes with a two-way graph it is trained at.
WATERFALL = ("gru-32", "gru-64", "gru-64", "gru-1024")
TWO_WAY = ("tiny_two_way", "small_two_way", "replica")

# Notebook 04, the race, and the ladder of notebook 05: equal budgets, and the learning rate that is
# better on validation queries of `medium` at a third of the budget (wide arms diverge at it).
RACE = ((2e9, 4e11, 4e12, 1e17), (512, 512, 512, 16_384), (1.6e-2, 1.6e-2, 1.6e-2, 3e-3))
SLOWER = (*RACE[:2], (8e-3, 8e-3, 8e-3, 1.5e-3))
SLOWEST = (*RACE[:2], (4e-3, 4e-3, 4e-3, 7.5e-4))
GRU = {"cell": "gru", "tied": True}
LOOPED = {"width": WIDTH, "loops": 4}
SAMPLED = LOOPED | {"sampled": (1, 8), "backprop": 4}

# Notebook 03, queries held out first: equal budgets. The rate was scouted at `small` for one of the
# arms; rates and batches are not tuned alike yet.
HELD_OUT = ((8e9, 2e12, 4e12, None), (512,) * 4, (4e-3,) * 4)

# Notebook 07: settings of memories that read new maps.
EPISODES_A_BATCH, EPISODES_TOKENS, EPISODES_WIDTH = 32, 2_048, 48
LSTM, WHOLE = {"kind": "lstm"}, {"kind": "transformer", "layers": 2}
XL = {"kind": "xl", "layers": 2, "segment": 16, "memory": 48}
SQUEEZED = XL | {"kind": "compressive", "memory": 16, "compressed": 16}
NEAREST = XL | {"kind": "memorizing", "memory": 256}
NTM = {"kind": "ntm", "slots": 32, "word": 24}
DNC = NTM | {"kind": "dnc", "heads": 2}
MENDED = DNC | {"improved": True}
ASSOCIATIVE, PLASTIC = {"kind": "associative", "copies": 4}, {"kind": "plastic"}
EPISODES_AT_TINY = ("lstm", "xl", "dnc", "lstm, longer")


def _memory(settings: dict[str, Any], budget: Numbers, rate: float = 1e-2) -> Row:
    of_all = {"width": EPISODES_WIDTH} | settings
    return Row("episodes", of_all, budget, (EPISODES_TOKENS,) * 4, (rate,) * 4, evaluations=10)


TABLE: dict[str, dict[str, Row]] = {
    "baselines": {
        arm: Row("rnn", cell(arm), budget, evaluations=8) for arm, budget in BASELINES.items()
    },
    "waterfall": {  # three numbers a row, of the two-way sizes
        "gru-32": Row("rnn", cell("gru-32"), (9.4e9, None, None)),
        "gru-64": Row("rnn", cell("gru-64"), (None, 3.28e11, 5.77e12)),
        "gru-1024": Row(
            "rnn", cell("gru-1024"), (None, None, 2.2754e16), (32_768,) * 3, (3e-3,) * 3
        ),
    },
    "priors": {arm: Row("rnn", cell(arm), BASELINES[arm]) for arm in PRIORS},
    "race": {
        "transformer": Row("transformer", {"width": WIDTH, "layers": 1}, *RACE),
        "transformer-deep": Row("transformer", {"width": WIDTH, "layers": 4}, *RACE),
        "gru": Row("rnn", GRU | {"width": WIDTH}, *RACE),
        "gru-wide": Row("rnn", GRU | {"width": DOUBLE}, *SLOWER),
        "gru-think": Row("rnn", GRU | {"width": WIDTH, "loops": 4}, *RACE),
        "feedback": Row("feedback", {"width": WIDTH, "layers": 1}, *RACE),
        "looped-fixed": Row("looped", LOOPED, *RACE),
        "looped-sampled": Row("looped", SAMPLED, *RACE),
        "looped-noise": Row("looped", SAMPLED | {"noise": 0.5}, *RACE),
        "act": Row("act", LOOPED | {"loops": 8}, *SLOWER),
        "ponder": Row("ponder", LOOPED, *SLOWER),
        "top": Row("top_recurrent", LOOPED, *SLOWER),
    },
    "ladder": {
        "gru-quarter": Row("rnn", GRU | {"width": QUARTER}, *RACE),
        "gru-half": Row("rnn", GRU | {"width": HALF}, *RACE),
        "gru": Row("rnn", GRU | {"width": WIDTH}, *RACE),
        "gru-wide": Row("rnn", GRU | {"width": DOUBLE}, *SLOWER),
        "gru-widest": Row("rnn", GRU | {"width": FOURFOLD}, *SLOWEST),
    },
    "search": {
        f"reverse-{arm}": Row("reverse", cell(arm), budget) for arm, budget in BASELINES.items()
    } | {
        "value": Row(
            "value", {}, (4.63e10, 3.083e11, 7.71e11, 1.54141e13), (4_096,) * 4,
        ),
        "reach": Row(
            "reach", {}, (4.03e10, 2.681e11, 6.701e11, 1.3401e13), (4_096,) * 4
        ),
        "judge": Row("judge", {}, (5.2e10, 4.4e11, 8.03e11, 1.01e13), (2_048,) * 4),
        "planner": Row(
            "planner", {"width": (16, 64, 64, 256), "tied": True},
            (7.5e9, 4.8e11, 7.86e12, 2.5192e16),
        ),
    },
    "refinement": {
        "masked": Row(
            "masked", {"width": HALF, "layers": 2},
            (2.43e10, 1.558e12, 1.959e13, 5.8005e16), rate=(1.2e-2,) * 4,
        ),
        "conductor": Row(
            "conductor", {"width": WIDTH},
            (3.81e10, 2.717e12, 3.596e13, 1.1151e17), rate=(4e-3,) * 4,
        ),
    },
    "episodes": {
        "lstm": _memory(LSTM, (2.4e9, 1.151e11, 3.452e11, 1.1506e13)),
        "transformer": _memory(WHOLE, (3.1e9, 1.54e11, 4.61e11, 1.53591e13)),
        "xl": _memory(XL, (5e9, 2.21e11, 6.63e11, 2.2084e13)),
        "compressive": _memory(SQUEEZED, (4e9, 1.76e11, 5.27e11, 1.7554e13)),
        "memorizing": _memory(NEAREST, (4e9, 1.91e11, 5.72e11, 1.9064e13)),
        "ntm": _memory(NTM, (3e9, 1.33e11, 3.99e11, 1.3283e13)),
        "dnc": _memory(DNC, (3.2e9, 1.57e11, 4.691e11, 1.5637e13)),
        "dnc-mended": _memory(MENDED, (4e9, 1.67e11, 5e11, 1.6643e13)),
        "associative": _memory(ASSOCIATIVE, (2.3e9, 1.133e11, 3.4e11, 1.1322e13)),
        "plastic": _memory(PLASTIC, (5e9, 2.28e11, 6.83e11, 2.2762e13), 5e-3),
        "lstm, longer": _memory(LSTM, (9.3e9, 4.603e11, 1.381e12, 4.60221e13)),
        "transformer, longer": _memory(WHOLE, (1.3e10, 6.15e11, 1.8431e12, 6.14361e13)),
    },
    "held out": {
        "memoryless": Row("memoryless", {"width": WIDTH}, *HELD_OUT),
        "memoryless, placed": Row("memoryless", {"width": WIDTH, "coordinates": "raw"}, *HELD_OUT),
        "gru": Row("rnn", GRU | {"width": WIDTH}, *HELD_OUT),
    },
}  # fmt: skip


def seeds(size: Size, first: int = 0) -> range:
    """Return the seeds of the trainings that notebooks 04, 05, 07 and 08 repeat."""
    count = size.training.get("seeds", SEEDS[SIZES.index(size.name)])
    return range(first, first + count)


def arms(size: Size | str, study: str) -> tuple[str, ...]:
    """Return the labels of a study's arms at a size: those in its `training`, or the table's.

    Studies: baselines, waterfall (its arm is trained at the size's `two_way`), priors, race,
    ladder, search, refinement, episodes, learning, held out.
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
    return tuple(_recipes(size.name)[study])


def recipe(size: Size | str, arm: str, study: str = "") -> Recipe:
    """Return how an arm is trained at a size, whose `training` changes every recipe alike.

    Args:
        study: which is meant where two have an arm of that label ("transformer" is in the race and
            in the episodes); otherwise the first in the order of the table.

    Raises:
        ValueError: no such arm; the message lists those of the size.
    """
    size = get_size(size) if isinstance(size, str) else size
    changes = {k: v for k, v in size.training.items() if k not in ("arms", "seeds")}
    table = _recipes(size.name)
    for name, rows in table.items():
        if arm in rows and study in ("", name):
            return rows[arm].changed(**changes)
    known = "; ".join(f"{name}: {', '.join(rows)}" for name, rows in table.items())
    raise ValueError(f"no recipe for {arm!r} at {size.name}; there are {known}")


@cache
def _recipes(size: str) -> dict[str, dict[str, Recipe]]:
    """The recipes of a size by study and arm."""
    two_way = size in TWO_WAY
    at = (TWO_WAY if two_way else SIZES).index(size)
    return {
        study: {arm: _recipe(arm, row, at) for arm, row in rows.items() if row.budget[at]}
        for study, rows in TABLE.items()
        if (study == "waterfall") == two_way
    }


def _recipe(arm: str, row: Row, at: int) -> Recipe:
    """A row of the table at one size; a width may differ by size."""
    width = row.settings.get("width")
    settings = row.settings | ({"width": width[at]} if isinstance(width, tuple) else {})
    return Recipe(
        arm=arm, model=row.model, settings=settings, budget=row.budget[at],
        batch_tokens=row.tokens[at], learning_rate=row.rate[at], evaluations=row.evaluations,
    )  # fmt: skip
