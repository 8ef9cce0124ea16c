"""Files of places: read whole and checked cell by cell, so that an error names its row."""

from __future__ import annotations

import csv
import difflib
import io
import re
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from citypaths.files import DataFileError

STANDARD = ("key", "name", "state", "lat", "lon", "population", "population_known", "timezone")
LARGEST = 1e9  # people: more than any city has
PROBLEMS_SHOWN = 5
LONGEST_SHOWN = 500  # characters of a bad cell
UNDECODED = re.compile("[\udc80-\udcff]")  # a byte that is not UTF-8, as PEP 383 carries it


class CityDataError(DataFileError):
    """City data, or a choice of cities, that cannot be used; the message says what to do."""


class MissingCityFile(CityDataError, FileNotFoundError):
    """A file of places that is neither here nor to be had from the network."""


def find_code(asked: str, known: Mapping[str, str], what: str) -> str:
    """Return the code in `known` (code to name) that `asked` is, or is the name of, in any case.

    Raises:
        CityDataError: none is; the message calls it an unknown `what` and holds near matches.
    """
    if code := _texts(known).get(str(asked).strip().casefold()):
        return code
    raise CityDataError(f"unknown {what} {asked!r}; {near_matches(str(asked), known)}")


def near_matches(value: str, known: Mapping[str, str]) -> str:
    """Return a hint at the entries of `known` (code to name) that look most like `value`."""
    texts = _texts(known)
    asked = value.strip().casefold()
    alike = {text: difflib.SequenceMatcher(None, text, asked).ratio() for text in texts}
    close = [text for text, ratio in alike.items() if ratio >= 0.5]
    close.sort(key=lambda text: (-alike[text], text[:1] != asked[:1], text))
    codes = list(dict.fromkeys(texts[text] for text in close))[:3]
    if not codes:
        return f"known: {', '.join(known)}"
    named = (code if known[code] == code else f"{code} ({known[code]})" for code in codes)
    return f"did you mean {', '.join(named)}?"


def _texts(known: Mapping[str, str]) -> dict[str, str]:
    return {text.casefold(): code for code, name in known.items() for text in (name, code)}


@dataclass
class PlaceRows:
    """Rows of places as text, and what is wrong with them.

    Attributes:
        origin: the file (or package) the rows came from.
        cells: one column of text a column of the file, stripped; the index says where each row is
            ("row 5": line 5 of the file, the header being line 1).
        remedy: what a reader can do about a bad cell.
        count: bad cells so far. problems: (position, text) of the first of every kind.
    """

    origin: str
    cells: pd.DataFrame
    remedy: str
    count: int = 0
    problems: list[tuple[int, str]] = field(default_factory=list)

    def complain(self, bad: Iterable, column: str, why: str | Callable[[str], str]) -> None:
        """Note a problem wherever `bad` [n] is true; `why` may be a function of the cell."""
        where = np.flatnonzero(np.asarray(bad, bool))
        self.count += len(where)
        for at in where[:PROBLEMS_SHOWN]:
            value = self.cells[column].iloc[at]
            text = why if isinstance(why, str) else why(value)
            place = f"{self.cells.index[at]}, column {column}"
            self.problems.append((int(at), f"{place}: {_short(repr(value))} {text}"))

    def numbers(
        self, column: str, low: float, high: float, blank: float | None = None, whole: bool = False
    ) -> np.ndarray:
        """Return a column as float64 [n], blank cells as `blank` (None: they are problems)."""
        text = self.cells[column]
        values = pd.to_numeric(text, errors="coerce").to_numpy(float, copy=True, na_value=np.nan)
        empty = np.asarray(text == "", bool) & (blank is not None)
        values[empty], values[np.isinf(values)] = blank, np.nan
        good = (values >= low) & (values <= high) & ((values % 1 == 0) | (not whole))
        number = "whole number" if whole else "number"
        self.complain(~good & ~empty, column, f"is not a {number} in {low:g}..{high:g}")
        return values

    def require_unique(self, column: str) -> None:
        """Note a problem for every blank cell and every repetition of an earlier cell."""
        values = self.cells[column]
        self.complain(values == "", column, "is empty, but every place needs one")
        first = dict(zip(values[::-1], values.index[::-1], strict=True))
        repeated = values.duplicated() & (values != "")
        self.complain(repeated, column, lambda value: f"is a duplicate: {first[value]} has it")

    def raise_problems(self) -> None:
        """Raise CityDataError with the first problems, in the file's order, and their count."""
        if self.count:
            ordered = sorted(self.problems, key=lambda problem: problem[0])
            texts = [text for _, text in ordered[:PROBLEMS_SHOWN]]
            raise _refusal(self.origin, "bad values", self.count, texts, self.remedy)


def place_table(
    rows: PlaceRows,
    names: Mapping[str, str],
    states: Mapping[str, str] | None = None,
    numbers: Iterable[str] = (),
    flags: Iterable[str] = (),
    rename: Mapping[str, str] | None = None,
) -> pd.DataFrame:
    """Return checked rows as the columns STANDARD, then whatever else the file carries.

    Args:
        names: the file's column for each of STANDARD but population_known; without one for
            population or timezone nothing is known of it (0, "").
        states: the codes that a state may have, and their names.
        numbers, flags: other columns that hold numbers >= 0 (or nothing), or TRUE and FALSE.
        rename: new names of other columns; a column in `names` appears once more when it is here.
            Other columns with the name of a column of ours get "source_" before it.

    Raises:
        CityDataError: any cell noted as bad so far or here.
    """
    cells, rename = rows.cells, rename or {}
    people, zone = names.get("population"), names.get("timezone")
    others = cells[[c for c in cells if c in rename or c not in names.values()]].copy()
    rows.require_unique(names["key"])
    rows.complain(cells[names["name"]] == "", names["name"], "is an empty name")
    if states:
        unknown = ~cells[names["state"]].isin(list(states))
        hint = "is no known state; "
        rows.complain(unknown, names["state"], lambda code: hint + near_matches(code, states))
    lat, lon = rows.numbers(names["lat"], -90, 90), rows.numbers(names["lon"], -180, 180)
    count = rows.numbers(people, 0, LARGEST, blank=0, whole=True) if people else np.zeros(len(lat))
    for column in others.columns.intersection(list(numbers)):
        others[column] = rows.numbers(column, 0, np.inf, blank=np.nan)
    for column in others.columns.intersection(list(flags)):
        upper = cells[column].str.upper()
        rows.complain(~upper.isin(["TRUE", "FALSE"]), column, "is neither TRUE nor FALSE")
        others[column] = (upper == "TRUE").astype(bool)
    rows.raise_problems()
    table = cells[[names["key"], names["name"], names["state"]]].astype("str")
    table.columns = ["key", "name", "state"]
    table["lat"], table["lon"], table["population"] = lat, lon, count.astype("int64")
    table["population_known"] = cells[people] != "" if people else False
    table["timezone"] = cells[zone].astype("str") if zone else ""
    others = others.rename(columns=rename)
    taken = {c: f"source_{c}" for c in (*STANDARD, "id", "geometry") if c in others}
    others = others.rename(columns=taken)
    if twice := sorted(others.columns[others.columns.duplicated()]):
        where = f"{rows.origin}, row 1: column {', '.join(twice)} appears twice"
        raise CityDataError(f"{where}, as {', '.join(taken)} is renamed. {rows.remedy}")
    return pd.concat([table, others], axis=1).reset_index(drop=True)


def read_rows(
    path: Path, required: Iterable[str], remedy: str, delimiters: str = ",", latin1: bool = False
) -> PlaceRows:
    """Read a delimited file of places, or the one such file in a zip archive.

    Args:
        delimiters: the first of these characters that the header holds. Only commas may be quoted.
        latin1: read text that is not UTF-8 as Latin-1.

    Raises:
        CityDataError: the file is empty, ragged, not UTF-8 or without a `required` column.
    """
    text = _decode(path, _read_bytes(path), latin1)
    first = text.split("\n", 1)[0]
    delimiter = next((mark for mark in delimiters if mark in first), delimiters[0])
    records = list(_records(path, text, delimiter, remedy))
    if not records:
        raise CityDataError(f"{path} is empty. {remedy}")
    header = records.pop(0)[1]
    if missing := [column for column in required if column not in header]:
        names, found = ", ".join(missing), ", ".join(header)[:200]
        raise CityDataError(f"{path}, row 1: no column {names} (found: {found}). {remedy}")
    plain = [column.casefold() for column in header]
    if twice := sorted({column for column in header if plain.count(column.casefold()) > 1}):
        raise CityDataError(f"{path}, row 1: column {', '.join(twice)} appears twice. {remedy}")
    if not records:
        raise CityDataError(f"{path}, row 2: no rows follow the header. {remedy}")
    width = len(header)
    ragged = [(line, len(cells)) for line, cells in records if len(cells) != width]
    if ragged:
        texts = [
            f"row {line}, column {header[count] if count < width else width + 1}: "
            f"{count} cells where the header has {width}"
            for line, count in ragged[:PROBLEMS_SHOWN]
        ]
        raise _refusal(str(path), "ragged rows", len(ragged), texts, remedy)
    where = [f"row {line}" for line, _ in records]
    cells = pd.DataFrame([cells for _, cells in records], where, header, dtype="str")
    return PlaceRows(str(path), cells, remedy)


def _read_bytes(path: Path) -> bytes:
    if path.suffix.lower() != ".zip":
        return path.read_bytes()
    try:
        with zipfile.ZipFile(path) as archive:
            names = [n for n in archive.namelist() if n.lower().endswith((".txt", ".csv"))]
            names = [name for name in names if "license" not in name.lower()]
            if len(names) != 1:
                raise CityDataError(f"{path} holds {len(names)} tables; unpack it and name one")
            return archive.read(names[0])
    except (zipfile.BadZipFile, zlib.error, EOFError) as error:
        raise CityDataError(f"{path} is damaged ({error}): delete it and download again") from None


def _decode(path: Path, data: bytes, latin1: bool) -> str:
    if data.startswith(b"PK"):
        raise CityDataError(f"{path} is a zip archive or a spreadsheet: save it as CSV (UTF-8)")
    start = data[:4096]
    if start.startswith((b"\xff\xfe", b"\xfe\xff")) or 3 * start.count(b"\0") > len(start) > 0:
        raise CityDataError(f"{path}, row 1: encoded as UTF-16, not UTF-8. {_convert('UTF-16')}")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError:
        return data.decode("latin-1") if latin1 else data.decode("utf-8-sig", "surrogateescape")


def _convert(encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 old.csv > new.csv"


def _records(path: Path, text: str, delimiter: str, remedy: str) -> Iterator[tuple[int, list]]:
    """Yield (line number, stripped cells) for every line that is not blank."""
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    line, header, foreign = 1, [], UNDECODED.search(text)
    try:
        for record in reader:
            cells = [cell.strip() for cell in record]
            if any(cells):
                header = header or cells
                if foreign:
                    _check_utf8(path, line, header, cells)
                yield line, cells
            line = reader.line_num + 1
    except csv.Error as error:
        raise CityDataError(f"{path}, row {line}: not readable ({error}). {remedy}") from None


def _check_utf8(path: Path, line: int, header: list[str], cells: list[str]) -> None:
    for name, cell in zip(header, cells, strict=False):
        if bad := UNDECODED.search(cell):
            where = f"{path}, row {line}, column {_short(ascii(name) if name == cell else name)}"
            guess = _short(repr(cell.encode("utf-8", "surrogateescape").decode("latin-1")))
            message = f"{where}: byte 0x{ord(bad[0]) - 0xDC00:02x} is not UTF-8 (Latin-1? {guess})"
            raise CityDataError(f"{message}. {_convert('LATIN1')}")


def _refusal(origin: str, what: str, count: int, texts: list[str], remedy: str) -> CityDataError:
    if count == 1:
        stop = "" if texts[0].endswith("?") else "."
        return CityDataError(f"{origin}, {texts[0]}{stop} {remedy}")
    shown = f"; the first {PROBLEMS_SHOWN}" if count > PROBLEMS_SHOWN else ""
    head = f"{origin}: {count:,} {what}{shown}:"
    return CityDataError("\n  ".join([head, *texts]) + f"\n{remedy}")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."
