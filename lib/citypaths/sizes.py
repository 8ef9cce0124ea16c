"""The one dial: which cities, how many paths, which models, how long, at each size."""

from __future__ import annotations

import difflib
import json
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from citypaths.files import data_dir, digest

SIX_STATES = ("NY", "NJ", "CT", "MA", "PA", "RI")


@dataclass(frozen=True)
class Size:
    """Everything a size decides.

    Attributes:
        source, country, path: the City Dataset, as `map.cities.load_cities` takes them; a relative
            `path` starts at the repository, "" is the source's own place (data/raw).
        states, most_populous: which contiguous places; `most_populous` keeps that many (0: all).
        connected_km, orientation: the City DAG.
        train, valid, test: goals for the number of paths in each part.
        arms: models of notebook 03, as cell-width.
        steps, batch_tokens, learning_rate: training of each arm.
        waterfall, waterfall_arm, waterfall_steps: graph and training of "why 2021 failed".
        queries: at most so many test queries for the costlier decoders.
        width: of the models of notebook 04 (the wide ones twice that).
        budget, budget_tokens, budget_rate: training of each of them: floating-point operations in
            all, padded tokens a batch, learning rate.
        seeds: trainings of each of them.
        race, dial, most_loops: their test queries, those on which the dial of loops is turned, and
            how far it goes.
        tries, most_tries: attempts of the best-of-N searches of notebook 05, and of its curves.
        memories, lessons, map_cities: memories of notebook 07 that read new maps (none: all of
            `episodes.study.ARMS`), training steps of each, cities on its maps.
        shares: percent of the training paths that notebook 08 learns, the others being memorized.
        jitter: lengthen each edge by a hashed factor of up to 1 + jitter, so that every query has
            one clean label (0: real lengths, whose near-ties are label noise).
    """

    name: str
    states: tuple[str, ...] | None
    connected_km: float
    train: int
    valid: int
    test: int
    arms: tuple[str, ...]
    steps: int
    waterfall: str
    waterfall_arm: str
    waterfall_steps: int
    queries: int
    most_populous: int = 0
    orientation: str = "eastward"
    batch_tokens: int = 2048
    learning_rate: float = 8e-3
    width: int = 128
    budget: float = 4e11
    budget_tokens: int = 512
    budget_rate: float = 1.6e-2
    seeds: int = 1
    race: int = 500
    dial: int = 100
    most_loops: int = 64
    tries: tuple[int, ...] = (8, 64)
    most_tries: int = 1024
    memories: tuple[str, ...] = ()
    lessons: int = 200
    map_cities: int = 12
    shares: tuple[int, ...] = (0, 10, 50)
    jitter: float = 0.0
    source: str = "geonames"
    country: str = "US"
    path: str = ""

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
            "tiny", ("TN",), 30, 12_000, 400, 2_000, ("gru-16", "gru-32", "lstm-32"), 60,
            "tiny_two_way", "gru-32", 40, 200, width=32, budget=2e9,
            race=50, dial=20, most_loops=8, tries=(4, 16), most_tries=64, shares=(0, 10),
            memories=("lstm", "xl", "dnc", "lstm, longer"), lessons=4, map_cities=6,
        ),
        Size(
            "small", ("NC",), 30, 80_000, 1_000, 6_000,
            ("gru-64", "gru-128", "gru-256", "lstm-128"), 400,
            "small_two_way", "gru-64", 400, 1_000, most_loops=16, most_tries=4096,
        ),
        Size(
            "medium", SIX_STATES, 20, 500_000, 1_000, 6_000,
            ("gru-64", "gru-128", "gru-256", "lstm-128"), 1_000,
            "replica", "gru-64", 800, 1_000, batch_tokens=4_096, budget=4e12, seeds=3,
            race=1_000, dial=200, most_tries=256, lessons=600,
        ),
        Size(
            "full", None, 75, 5_000_000, 2_000, 10_000, ("gru-256", "gru-512", "lstm-512"), 20_000,
            "replica", "gru-1024", 10_000, 2_000, batch_tokens=32_768, learning_rate=3e-3,
            width=512, budget=1e17, budget_tokens=16_384, budget_rate=3e-3, seeds=3,
            race=2_000, dial=1_000, lessons=20_000,
        ),
        Size(
            "tiny_two_way", ("TN",), 30, 12_000, 400, 2_000, (), 0, "", "", 0, 200,
            orientation="two_way",
        ),
        Size(
            "small_two_way", ("NC",), 30, 80_000, 1_000, 6_000, (), 0, "", "", 0, 1_000,
            orientation="two_way",
        ),
        Size(
            "replica", None, 70, 500_000, 1_000, 6_000, (), 0, "", "", 0, 1_000,
            most_populous=4_134, orientation="two_way",
        ),
    )
}  # fmt: skip


def get_size(name: str, overrides: dict[str, Any] | None = None) -> Size:
    """Return a size, with some of its fields replaced by name.

    Raises:
        ValueError: an unknown size or field, or a value of another type; names what is near.
    """
    if name not in SIZES:
        raise ValueError(f"size {name!r} is none of {', '.join(SIZES)}{_near(name, list(SIZES))}")
    known = {field.name: field.type for field in fields(Size)}
    changed = {}
    for key, value in (overrides or {}).items():
        if key not in known:
            raise ValueError(
                f"no setting {key!r} in a size{_near(key, list(known))}; known: {', '.join(known)}"
            )
        changed[key] = _as_declared(known[key], key, getattr(SIZES[name], key), value)
    return replace(SIZES[name], **changed)


def _near(word: str, known: list[str]) -> str:
    close = difflib.get_close_matches(word, known, n=2)
    return f" (did you mean {' or '.join(close)}?)" if close else ""


def _as_declared(kind: str, key: str, old: Any, value: Any) -> Any:
    """The value as its field declares it; the same number keeps its form, and so its folder."""
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and value == old:
        return old
    if number and (kind == "float" or (kind == "int" and float(value).is_integer())):
        return float(value) if kind == "float" else int(value)
    if kind == "str" and isinstance(value, str):
        return value
    if kind.startswith("tuple") and isinstance(value, list | tuple):
        return tuple(value)
    if value is None and kind.endswith("None"):
        return None
    raise ValueError(f"setting {key} is {kind}, such as {old!r}, not {value!r}")


def settings_of(size: Size) -> dict[str, Any]:
    """Return a size's fields as JSON-able values."""
    return json.loads(json.dumps(asdict(size)))
