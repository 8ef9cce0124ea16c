"""The one dial: which cities, how many paths, and how many queries, at each size."""

from __future__ import annotations

import difflib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from citypaths.files import data_dir, digest

SIX_STATES = ("NY", "NJ", "CT", "MA", "PA", "RI")


@dataclass(frozen=True)
class Size:
    """What a size is: its cities and graph, its paths, and how many queries dear methods get.

    How its models are trained is in `citypaths.training.recipes`.

    Attributes:
        source, country, path: the City Dataset, as `map.cities.load_cities` takes them; a relative
            `path` starts at the repository, "" is the source's own place (data/raw).
        states, most_populous: which contiguous places; `most_populous` keeps that many (0: all).
        connected_km, orientation: the City DAG.
        train, valid, test: goals for the number of paths in each part.
        queries: at most so many test queries for the costlier decoders.
        held: test queries, and as many for validation, of the split that holds them out first.
        two_way: the size on whose two-way graph "why 2021 failed" is told.
        race, dial, most_loops: test queries of the race of notebook 04, those on which the dial of
            loops is turned, and how far it goes.
        tries, most_tries: attempts of the best-of-N searches of notebook 05, and of its curves.
        map_cities: cities on the maps that the memories of notebook 07 read.
        shares: percent of the training paths that notebook 08 learns, the others being memorized.
        jitter: lengthen each edge by a hashed factor of up to 1 + jitter, so that every query has
            one clean label (0: real lengths, whose near-ties are label noise).
        training: changes of every recipe of the size, as in `TRAINING`.
    """

    name: str
    states: tuple[str, ...] | None
    connected_km: float
    train: int
    valid: int
    test: int
    queries: int
    two_way: str = ""
    held: int = 500
    most_populous: int = 0
    orientation: str = "eastward"
    race: int = 500
    dial: int = 100
    most_loops: int = 64
    tries: tuple[int, ...] = (8, 64)
    most_tries: int = 1024
    map_cities: int = 12
    shares: tuple[int, ...] = (0, 10, 50)
    jitter: float = 0.0
    source: str = "geonames"
    country: str = "US"
    path: str = ""
    training: dict[str, Any] = field(default_factory=dict)

    @property
    def folder(self) -> Path:
        """Where this size's data lives; other cities or counts live elsewhere."""
        names = ["states", "most_populous", "connected_km", "orientation", "train", "valid", "test"]
        special = ("jitter", "source", "country", "path")
        names += [name for name in special if getattr(self, name) != getattr(Size, name)]
        return data_dir() / f"{self.name}-{digest({n: getattr(self, n) for n in names})}"


SIZES = {
    size.name: size
    for size in (
        Size(
            "tiny", ("TN",), 30, 12_000, 400, 2_000, 200, "tiny_two_way", held=100,
            race=50, dial=20, most_loops=8, tries=(4, 16), most_tries=64, shares=(0, 10),
            map_cities=6,
        ),
        Size(
            "small", ("NC",), 30, 80_000, 1_000, 6_000, 1_000, "small_two_way",
            most_loops=16, most_tries=4096,
        ),
        Size(
            "medium", SIX_STATES, 20, 500_000, 1_000, 6_000, 1_000, "replica", held=2_000,
            race=1_000, dial=200, most_tries=256,
        ),
        Size(
            "full", None, 75, 5_000_000, 2_000, 10_000, 2_000, "replica", held=2_000,
            race=2_000, dial=1_000,
        ),
        Size("tiny_two_way", ("TN",), 30, 12_000, 400, 2_000, 200, orientation="two_way"),
        Size("small_two_way", ("NC",), 30, 80_000, 1_000, 6_000, 1_000, orientation="two_way"),
        Size(
            "replica", None, 70, 500_000, 1_000, 6_000, 1_000,
            most_populous=4_134, orientation="two_way",
        ),
    )
}  # fmt: skip

# Overrides that change every recipe of a size alike, with the type of each. `arms` names arms of a
# study, {"race": ["gru", "act"]}; `seeds` is how many trainings the studies with seeds repeat.
TRAINING = {
    "budget": "float",
    "batch_tokens": "int",
    "learning_rate": "float",
    "schedule": "str",
    "seeds": "int",
    "arms": "dict",
}


def get_size(name: str, overrides: dict[str, Any] | None = None) -> Size:
    """Return a size, with some of its fields replaced by name, or its training (`TRAINING`).

    {"connected_km": 25} is another graph; {"budget": 1e12} is so much training.

    Raises:
        ValueError: an unknown size or setting, or a value of another type; names what is near.
    """
    if name not in SIZES:
        raise ValueError(f"size {name!r} is none of {', '.join(SIZES)}{_near(name, list(SIZES))}")
    known = {f.name: f.type for f in fields(Size) if f.name != "training"} | TRAINING
    changed, training = {}, {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise ValueError(
                f"no setting {key!r} of a size or its training{_near(key, list(known))}; "
                f"known: {', '.join(known)}"
            )
        kept = training if key in TRAINING else changed
        kept[key] = _as_declared(known[key], key, getattr(SIZES[name], key, None), value)
    return replace(SIZES[name], **changed, training=training)


def two_way_of(size: Size) -> Size:
    """Return the US size on whose two-way graph "why 2021 failed" is told, as `size` otherwise.

    It has the same training and the same source of cities.
    """
    same = {"source": size.source, "path": size.path, "training": size.training}
    return replace(SIZES[size.two_way], **same)


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _as_declared(kind: str, key: str, old: Any, value: Any) -> Any:
    """The value as its field declares it; the same number keeps its form, and so its folder."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    number = number and math.isfinite(value)
    if number and value == old:
        return old
    if number and (kind == "float" or (kind == "int" and float(value).is_integer())):
        return float(value) if kind == "float" else int(value)
    if kind in ("str", "dict") and type(value).__name__ == kind:
        return value
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        return tuple(value)
    if value is None and kind.endswith("None"):
        return None
    such = "" if old is None else f", such as {old!r}"
    raise ValueError(f"setting {key} is {kind}{such}, not {value!r}")


def settings_of(size: Size) -> dict[str, Any]:
    """Return a size's fields as JSON-able values."""
    return json.loads(json.dumps(asdict(size)))
