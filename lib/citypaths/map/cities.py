"""The City Dataset: one row per populated place, from a source, with an account of every row."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from pathlib import Path
from typing import Any

import geopandas as gpd
import numpy as np
import pandas as pd

from citypaths.map.place_files import CityDataError, MissingCityFile, find_code
from citypaths.map.sources import SOURCES, Places, country_code, us_states

__all__ = ["CityDataError", "MissingCityFile", "describe_load", "load_cities"]

OFFSHORE = {"AK", "HI"}  # states beyond the contiguous forty-eight
COLUMNS = ["id", "name", "state", "lat", "lon", "population", "timezone", "key"]


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
        path: the file of SimpleMaps (as CSV or zip) or the folder of the Census files; default
            data/raw.

    Returns:
        One row a city, west to east by (lon, lat, key as text), index = `id` = 0..n-1: id, name,
        state, lat and lon (degrees), population (people, 0 when unknown), timezone (IANA name; ""
        in the Census files), key (the source's own, text), population_known, what else the source
        carries, and geometry (EPSG:4326 points). `attrs` holds source, credit, version and report:
        rows `read`, and of these `kept` and `left_out` (rows by the first reason that met them);
        `notes`, other counts worth knowing; `duplicate_positions`, the count of positions that
        several kept cities share, and their names.

    Raises:
        CityDataError: bad data, an unknown name, or no city left; the message says which and where.
        MissingCityFile: a file is not there; the message says where to get it.
    """
    if not isinstance(min_population, Real) or not min_population >= 0 or min_population % 1:
        message = f"min_population={min_population!r} is not a whole number of people >= 0"
        raise CityDataError(message)
    least = int(min_population)
    source = find_code(source, {name: name for name in SOURCES}, "source")
    places = SOURCES[source](country_code(country), path)
    if least < places.floor:
        message = f"min_population={least}: the places of {places.title} start at {places.floor} "
        raise CityDataError(f"{message}people; ask for at least that, or use another source")
    table, report = _select(places, states, contiguous, least)
    table = table.sort_values(["lon", "lat", "key"], ignore_index=True)
    table.insert(0, "id", np.arange(len(table)))
    table = table[[*COLUMNS, *(c for c in table if c not in COLUMNS)]]
    points = gpd.points_from_xy(table["lon"], table["lat"])
    cities = gpd.GeoDataFrame(table, geometry=points, crs="EPSG:4326")
    report["duplicate_positions"] = _shared_positions(table)
    cities.attrs = {"source": source, "credit": places.credit, "version": places.version}
    cities.attrs["report"] = report
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


def _select(
    places: Places, states: str | Sequence[str] | None, contiguous: bool, least: int
) -> tuple[pd.DataFrame, dict[str, Any]]:
    """The rows that stay, and the report; a row counts under the first reason that met it."""
    table, stay = places.table, {}
    known, population = table["population_known"], table["population"]
    if states is not None:
        asked = [states] if isinstance(states, str) else list(states)
        if not asked:
            raise CityDataError("states is empty: name some, or pass None for all of them")
        chosen = [find_code(state, places.states, "state") for state in asked]
        stay["in other states"] = table["state"].isin(chosen)
    if contiguous and places.country == "US":
        stay["outside the contiguous states"] = table["state"].isin(set(us_states()) - OFFSHORE)
    if least > places.floor:
        stay["without a known population"] = known
        stay[f"below min_population={least}"] = population >= least
    kept, left_out = pd.Series(True, table.index), {}
    for reason, stays in stay.items():
        if count := int((kept & ~stays).sum()):
            left_out[reason] = count
        kept &= stays
    if not kept.any():
        counts = ", ".join(f"{count:,} {reason}" for reason, count in left_out.items())
        message = f"no city of {places.title} is left: of {len(table):,} rows {counts}; "
        raise CityDataError(message + "loosen states, contiguous or min_population")
    weak = {
        "kept without a known population": kept & ~known,
        "kept by the source's own selection below min_population": (
            kept & known & (population < least)
        ),
    }
    notes = {text: int(rows.sum()) for text, rows in weak.items() if rows.any()}
    report = {"read": len(table), "kept": int(kept.sum()), "left_out": left_out}
    return table[kept], report | {"notes": places.notes | notes}


def _shared_positions(cities: pd.DataFrame) -> dict[str, Any]:
    shared = cities[cities.duplicated(["lon", "lat"], keep=False)]
    names = shared["name"] + ", " + shared["state"]
    groups = names.groupby([shared["lon"], shared["lat"]], sort=False).agg(list).tolist()
    return {"count": len(groups), "names": groups}
