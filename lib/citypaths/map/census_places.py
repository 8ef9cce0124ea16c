"""The US Census Bureau's places: Gazetteer and estimates, downloaded once, verified ever after."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pandas as pd
import pooch

from citypaths.files import data_dir, lock, read_json, sha256, write_json
from citypaths.map.place_files import CityDataError, MissingCityFile, PlaceRows, read_rows
from citypaths.map.place_sources import (
    LARGEST,
    TERRITORIES,
    Places,
    stamp,
    standard_columns,
    us_states,
)

CENSUS = "https://www2.census.gov"
GAZETTEER_URL = (
    f"{CENSUS}/geo/docs/maps-data/data/gazetteer/2024_Gazetteer/2024_Gaz_place_national.zip"
)
ESTIMATES_URL = f"{CENSUS}/programs-surveys/popest/datasets/2020-2024/cities/totals/sub-est2024.csv"
GAZETTEER_COLUMNS = ("USPS", "GEOID", "NAME", "INTPTLAT", "INTPTLONG")
INCORPORATED_PLACE = "162"  # the summary level of a whole city, town, village or borough
LEGAL_SUFFIX = (
    "city and borough|consolidated government|metropolitan government|metro government|"
    "unified government|urban county|municipality|corporation|zona urbana|comunidad|"
    "borough|village|town|city|CDP"
)


def census(path: Path | None) -> Places:
    """Return the places of the Census Gazetteer with the newest of the Bureau's estimates.

    `path` is a folder with both files, or the Gazetteer file with the estimates next to it; by
    default data/raw, where missing files are downloaded. Time zones are not in the files: "".
    """
    gazetteer, estimates = _census_files(path)
    population = _estimates(estimates)
    remedy = f"Delete it and fetch {GAZETTEER_URL} again."
    # The Bureau set tabs up to 2024 and bars from 2025 on.
    rows = read_rows(gazetteer, GAZETTEER_COLUMNS, remedy, "|\t", latin1=True)
    listed = population.index.isin(rows.cells["GEOID"])
    own = {name: f"source_{name}" for name in ("population", "timezone")}
    rows.cells = rows.cells.rename(columns=own)
    rows.cells["population"] = rows.cells["GEOID"].map(population).fillna("")
    rows.cells["timezone"] = ""
    rows.cells["name"] = [plain_name(name) for name in rows.cells["NAME"]]
    states = us_states() | TERRITORIES
    rows.require_known("USPS", states, "state")
    names = {"key": "GEOID", "state": "USPS", "lat": "INTPTLAT", "lon": "INTPTLONG"}
    same = {column: column for column in ("name", "population", "timezone")}
    table = standard_columns(rows, names | same, _gazetteer_extras(rows))
    credit = "US Census Bureau, Gazetteer and Population Estimates (public domain)"
    version = f"{stamp(gazetteer)}, {stamp(estimates)}"
    notes = {"estimates of places that the Gazetteer does not list": int((~listed).sum())}
    return Places(table, "US", "US Census Bureau", credit, version, states, notes=notes)


def plain_name(legal: str) -> str:
    """Return a Census place name without its legal description: "Cary town" is "Cary"."""
    return re.sub(f" ({LEGAL_SUFFIX})$", "", legal.removesuffix(" (balance)"))


def _gazetteer_extras(rows: PlaceRows) -> pd.DataFrame:
    used = ["USPS", "GEOID", "INTPTLAT", "INTPTLONG", "population", "timezone", "name"]
    extras = rows.cells.drop(columns=used)
    for column in [c for c in extras if c.startswith(("ALAND", "AWATER"))]:
        extras[column] = rows.numbers(column, 0, np.inf, blank=np.nan)
    return extras.rename(columns=str.lower).rename(columns={"name": "legal_name"})


def _estimates(path: Path) -> pd.Series:
    """Return the newest estimate of each incorporated place, as text by GEOID."""
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
    rows.numbers(years[-1], 0, LARGEST, whole=True)
    rows.raise_problems()
    return cells.set_index("STATE+PLACE")[years[-1]]


def _census_files(path: Path | None) -> tuple[Path, Path]:
    named = Path(path) if path and Path(path).is_file() else None
    folder = named.parent if named else Path(path or data_dir() / "raw")
    gazetteer = named or _newest(folder, r"\d{4}_gaz_place_national\.(txt|zip)")
    estimates = _newest(folder, r"sub-est\d{4}(_all)?\.csv")
    found = {GAZETTEER_URL: gazetteer, ESTIMATES_URL: estimates}
    missing = [url for url, file in found.items() if file is None]
    if missing and path:
        raise MissingCityFile(f"{folder} lacks a file: fetch {' and '.join(missing)} into it")
    return tuple(verified(file) if file else fetch(url, folder) for url, file in found.items())


def _newest(folder: Path, pattern: str) -> Path | None:
    files = folder.iterdir() if folder.is_dir() else []
    return max((f for f in files if re.fullmatch(pattern, f.name.lower())), default=None)


def fetch(url: str, folder: Path) -> Path:
    """Return a published file in `folder`, downloaded when missing; its checksum is then kept.

    Raises:
        MissingCityFile: no network; the message names the address and the folder.
        CityDataError: the bytes are not those of the first download.
    """
    path = folder / url.rsplit("/", 1)[1]
    with lock(folder / ".checksums.lock"):
        if not path.exists():
            _download(url, path)
        return verified(path)


def verified(path: Path) -> Path:
    """Return `path` unless its bytes differ from those in the folder's checksums.json, if there."""
    known = _checksums(path.parent).get(path.name)
    if known and sha256(path) != known:
        raise CityDataError(_mismatch(path, f"it has {sha256(path)}, known is {known}"))
    return path


def _download(url: str, path: Path) -> None:
    checksums = _checksums(path.parent)
    known = checksums.get(path.name)
    pooch.get_logger().setLevel("WARNING")
    try:
        pooch.retrieve(url, known and f"sha256:{known}", path.name, path.parent)
    except ValueError as error:
        raise CityDataError(_mismatch(path, f"{url}: {error}")) from None
    except OSError as error:
        message = f"{path} is missing and the download failed ({type(error).__name__}). "
        message += f"Fetch {url} by hand and put it in {path.parent}"
        raise MissingCityFile(message) from None
    write_json(path.parent / "checksums.json", checksums | {path.name: sha256(path)})


def _checksums(folder: Path) -> dict[str, str]:
    path = folder / "checksums.json"
    return read_json(path, "the next download") if path.exists() else {}


def _mismatch(path: Path, detail: str) -> str:
    return (
        f"{path}: the SHA-256 is not the one in checksums.json ({detail}). Delete the file to "
        f"download it again; if the publisher changed it, remove {path.name} from checksums.json"
    )
