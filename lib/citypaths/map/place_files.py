"""Files of places: read whole and checked cell by cell, so that an error names its row."""

from __future__ import annotations

import csv
import difflib
import io
import zipfile
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pandas as pd

from citypaths.files import DataFileError

PROBLEMS_SHOWN = 5
LONGEST_SHOWN = 500  # characters of a bad cell


class CityDataError(DataFileError):
    """City data, or a choice of cities, that cannot be used; the message says what to do."""


class MissingCityFile(CityDataError, FileNotFoundError):
    """A file of places that is neither here nor to be had from the network."""


def near_matches(value: str, known: Mapping[str, str]) -> str:
    """Return a hint at the entries of `known` (code to name) that look most like `value`."""
    texts = {text.casefold(): code for code, name in known.items() for text in (name, code)}
    asked = value.strip().casefold()
    alike = {text: difflib.SequenceMatcher(None, text, asked).ratio() for text in texts}
    close = [text for text, ratio in alike.items() if ratio >= 0.5]
    close.sort(key=lambda text: (-alike[text], text[:1] != asked[:1], text))
    codes = list(dict.fromkeys(texts[text] for text in close))[:3]
    if not codes:
        return f"known: {', '.join(known)}"
    named = (code if known[code] == code else f"{code} ({known[code]})" for code in codes)
    return f"did you mean {', '.join(named)}?"


@dataclass
class PlaceRows:
    """Rows of places as text, and all that is wrong with them.

    Attributes:
        origin: the file (or package) the rows came from.
        cells: one column of text a column of the file, stripped; the index says where each row is
            ("row 5": line 5 of the file, the header being line 1).
        remedy: what a reader can do about a bad cell.
        problems: (position, column, why) of every bad cell found so far.
    """

    origin: str
    cells: pd.DataFrame
    remedy: str
    problems: list[tuple[int, str, str | Callable[[int], str]]] = field(default_factory=list)

    def complain(self, bad: Iterable, column: str, why: str | Callable[[int], str]) -> None:
        """Note a problem wherever `bad` [n] is true; `why` may be a function of the position."""
        where = np.flatnonzero(np.asarray(bad, bool))
        self.problems += [(int(position), column, why) for position in where]

    def numbers(
        self, column: str, low: float, high: float, blank: float | None = None, whole: bool = False
    ) -> np.ndarray:
        """Return a column as float64 [n], blank cells as `blank` (None: they are problems)."""
        text = self.cells[column]
        values = pd.to_numeric(text, errors="coerce").to_numpy(float, na_value=np.nan)
        if blank is not None:
            values = np.where(text == "", blank, values)
        finite = np.isfinite(values) | ((text == "").to_numpy(bool) & (blank is not None))
        self.complain(~finite, column, "is not a number")
        outside = np.isfinite(values) & ((values < low) | (values > high))
        self.complain(outside, column, f"is outside {low:g}..{high:g}")
        if whole:
            fraction = np.isfinite(values) & (values != np.floor(values))
            self.complain(fraction, column, "is not a whole number")
        return values

    def flags(self, column: str) -> np.ndarray:
        """Return a column of TRUE and FALSE as bool [n]."""
        upper = self.cells[column].str.upper()
        self.complain(~upper.isin(["TRUE", "FALSE"]), column, "is neither TRUE nor FALSE")
        return (upper == "TRUE").to_numpy(bool)

    def require_unique(self, column: str) -> None:
        """Note a problem for every blank cell and every repetition of an earlier cell."""
        values = self.cells[column]
        self.complain(values == "", column, "is empty, but every place needs one")
        first = dict(zip(values[::-1], values.index[::-1], strict=True))
        repeated = values.duplicated() & (values != "")
        self.complain(repeated, column, lambda i: f"is a duplicate: {first[values.iloc[i]]} has it")

    def require_known(self, column: str, known: Mapping[str, str], what: str) -> None:
        """Note a problem, with near matches, for every cell that is no code in `known`."""
        values = self.cells[column]
        hint = f"is no known {what};"
        unknown = ~values.isin(list(known))
        self.complain(unknown, column, lambda i: f"{hint} {near_matches(values.iloc[i], known)}")

    def raise_problems(self) -> None:
        """Raise CityDataError with the first problems, in the file's order, and their count."""
        if not self.problems:
            return
        ordered = sorted(self.problems, key=lambda problem: problem[0])
        lines = [self._line(*problem) for problem in ordered[:PROBLEMS_SHOWN]]
        if len(ordered) == 1:
            stop = "" if lines[0].endswith("?") else "."
            raise CityDataError(f"{self.origin}, {lines[0]}{stop} {self.remedy}")
        shown = f"; the first {PROBLEMS_SHOWN}" if len(ordered) > PROBLEMS_SHOWN else ""
        head = f"{self.origin}: {len(ordered):,} bad values{shown}:"
        raise CityDataError("\n  ".join([head, *lines]) + f"\n{self.remedy}")

    def _line(self, position: int, column: str, why: str | Callable[[int], str]) -> str:
        value = self.cells[column].iloc[position]
        text = why if isinstance(why, str) else why(position)
        return f"{self.cells.index[position]}, column {column}: {_short(repr(value))} {text}"


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
    header = text.split("\n", 1)[0]
    delimiter = next((mark for mark in delimiters if mark in header), delimiters[0])
    records = list(_records(path, text, delimiter, remedy))
    if not records:
        raise CityDataError(f"{path} is empty. {remedy}")
    header = [cell.strip() for cell in records[0][1]]
    _check_header(path, header, required, remedy)
    if len(records) == 1:
        raise CityDataError(f"{path}, row 2: no rows follow the header. {remedy}")
    _check_widths(path, header, records, remedy)
    cells = [[cell.strip() for cell in record] for _, record in records[1:]]
    where = [f"row {line}" for line, _ in records[1:]]
    return PlaceRows(str(path), pd.DataFrame(cells, where, header, dtype="str"), remedy)


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
    except UnicodeDecodeError as error:
        if latin1:
            return data.decode("latin-1")
        where = _locate(data.removeprefix(b"\xef\xbb\xbf"), error.start)
        raise CityDataError(f"{path}, {where}. {_convert('LATIN1')}") from None


def _convert(encoding: str) -> str:
    return f"Convert it: iconv -f {encoding} -t UTF-8 old.csv > new.csv"


def _locate(data: bytes, offset: int) -> str:
    lines = data[: offset + 1].splitlines()
    rest = data[offset + 1 - len(lines[-1]) :].splitlines()[0]
    before, line, header = map(_cells, (lines[-1], rest, lines[0]))
    column = min(len(before), len(line)) - 1
    name = header[column] if column < len(header) else str(column + 1)
    where, value = f"row {len(lines)}, column {_short(name)}", _short(repr(line[column].strip()))
    return f"{where}: byte 0x{data[offset]:02x} is not UTF-8 (Latin-1? {value})"


def _cells(line: bytes) -> list[str]:
    text = line.decode("latin-1")
    try:
        return next(csv.reader([text]), [""])
    except csv.Error:  # such as a cell beyond all measure
        return text.split(",")


def _short(text: str) -> str:
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


def _records(path: Path, text: str, delimiter: str, remedy: str):
    """Yield (line number, cells) for every line that is not blank."""
    quoting = csv.QUOTE_MINIMAL if delimiter == "," else csv.QUOTE_NONE
    lines = io.StringIO(text, newline="")
    reader = csv.reader(lines, delimiter=delimiter, quoting=quoting, strict=True)
    line = 1
    try:
        for record in reader:
            if any(cell.strip() for cell in record):
                yield line, record
            line = reader.line_num + 1
    except csv.Error as error:
        raise CityDataError(f"{path}, row {line}: not readable ({error}). {remedy}") from None


def _check_header(path: Path, header: list[str], required: Iterable[str], remedy: str) -> None:
    if missing := [column for column in required if column not in header]:
        names = ", ".join(missing)
        found = ", ".join(header)[:200]
        raise CityDataError(f"{path}, row 1: no column {names} (found: {found}). {remedy}")
    plain = [column.casefold() for column in header]
    if twice := sorted({column for column in header if plain.count(column.casefold()) > 1}):
        raise CityDataError(f"{path}, row 1: column {', '.join(twice)} appears twice. {remedy}")


def _check_widths(path: Path, header: list[str], records: list, remedy: str) -> None:
    width = len(header)
    ragged = [(line, len(record)) for line, record in records[1:] if len(record) != width]
    if not ragged:
        return
    lines = [
        f"row {line}, column {header[cells] if cells < width else width + 1}: "
        f"{cells} cells where the header has {width}"
        for line, cells in ragged[:PROBLEMS_SHOWN]
    ]
    count = f": {len(ragged):,} ragged row{'s' * (len(ragged) > 1)}:"
    raise CityDataError("\n  ".join([f"{path}{count}", *lines]) + f"\n{remedy}")
