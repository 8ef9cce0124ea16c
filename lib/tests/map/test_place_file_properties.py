"""Any file of places is loaded exactly as it was written, or refused with its place in the file."""

from __future__ import annotations

import csv
import io
import math
import re
from dataclasses import dataclass, field
from functools import cache
from itertools import combinations

import numpy as np
import pytest
from hypothesis import HealthCheck, assume, example, given, settings
from hypothesis import strategies as st

from citypaths.map.cities import CityDataError, load_cities
from citypaths.map.graph import build_graph
from citypaths.map.great_circle import EARTH_RADIUS_KM
from citypaths.map.sources import plain_name

SIMPLE = ("city", "state_id", "lat", "lng", "population", "timezone", "id")
CENSUS = ("NAME", "USPS", "INTPTLAT", "INTPTLONG", "", "", "GEOID")
LINE_ENDS = "\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029"  # of Python, not of files
ESTIMATES = "SUMLEV,STATE,PLACE,POPESTIMATE2024\n162,37,99999,1\n"


def many(count: int) -> settings:
    shared = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, suppress_health_check=shared)


# Places as they are written


@dataclass
class Written:
    """One place, every cell as text in the order of SIMPLE."""

    name: str
    state: str
    lat: str
    lon: str
    population: str
    timezone: str
    key: str
    more: list[str] = field(default_factory=list)

    @property
    def cells(self) -> list[str]:
        head = (self.name, self.state, self.lat, self.lon, self.population, self.timezone, self.key)
        return [*head, *self.more]


@cache
def degrees(limit: int) -> st.SearchStrategy[str]:
    """Numbers within the limit, written in many ways."""
    numbers = st.floats(-limit, limit, allow_subnormal=False)
    decimals = st.decimals(-limit, limit, allow_nan=False, allow_infinity=False)
    special = st.sampled_from([f"{limit}", f"-{limit}", "0", "-0.0", "+1.5", ".5", "7.", "1e1"])
    near = st.floats(-1e-9, 1e-9).map(lambda x: repr(math.copysign(limit - abs(x), x)))
    return st.one_of(
        numbers.map(repr),
        numbers.map("{:.4f}".format),
        numbers.map("{:.25f}".format),
        decimals.map(str),
        special,
        near,
    ).filter(lambda text: abs(float(text)) <= limit)


@cache
def texts(forbidden: str) -> st.SearchStrategy[str]:
    """Names with something in them beside white space."""
    letters = st.characters(codec="utf-8", exclude_characters=forbidden)
    awkward = ['O"Brien', '"', "a,b", "x|y", "tab\there", "two\nlines", "\r", "NaN", "NA", "null"]
    awkward += ["Cañon City", "東京", "=1+1", "1e5", "\0nul", "Cary town", "l'Étang", "é" * 400]
    kept = [text for text in awkward if not set(text) & set(forbidden)]
    return st.one_of(st.sampled_from(kept), st.text(letters, max_size=12)).filter(str.strip)


COUNTS = st.integers(1, 5)
SMALL = st.tuples(
    st.sampled_from([False, False, True]),
    st.sampled_from(["", "0", "17", "1e3", "2000.0", "999999999"]),
    st.sampled_from(["", "America/New_York"]),
    st.sampled_from(["NC", "AK", "PR"]),
    st.sampled_from(["", "0", "k-"]),
)


@st.composite
def tables(draw, forbidden: str = "") -> list[Written]:
    """Places, some of them at one position, with keys that differ."""
    names, count = texts(forbidden), draw(COUNTS)
    rows = []
    for number in range(count):
        lat, lon = draw(degrees(90)), draw(degrees(180))
        twin, population, zone, state, start = draw(SMALL)
        if twin and rows:
            lat, lon = rows[-1].lat, rows[-1].lon
        key = f"{start}{number}"
        rows.append(Written(draw(names), state, lat, lon, population, zone, key))
    return rows


EXTRA = ["zips", "name", "key", "state", "source", "source_name", "geometry", "note", "index"]
EXTRA += ["population_known", "density", "Lat", "POPULATION", "legal_name", "0"]


def as_csv(rows: list[list[str]], delimiter: str, ending: str, quoting: int) -> str:
    text = io.StringIO(newline="")
    if quoting == csv.QUOTE_NONE:
        return ending.join(delimiter.join(row) for row in rows) + ending
    if any(set(cell) & set("\r\n") for row in rows for cell in row):
        quoting = csv.QUOTE_ALL  # the writer itself thinks of its own line ends only
    writer = csv.writer(text, delimiter=delimiter, lineterminator=ending, quoting=quoting)
    writer.writerows(rows)
    return text.getvalue()


endings = st.sampled_from(["\n", "\r\n", "\r"])
quotings = st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])


@pytest.fixture
def load(tmp_path):
    """Return a function that writes bytes as a file of a source and loads all of it."""

    def loaded(source: str, data: bytes):
        folder = tmp_path / source
        folder.mkdir(exist_ok=True)
        name = "uscities.csv" if source == "simplemaps" else "2024_Gaz_place_national.txt"
        (folder / name).write_bytes(data)
        (folder / "sub-est2024.csv").write_text(ESTIMATES)
        return load_cities(source, path=folder / name, contiguous=False, min_population=0)

    return loaded


def assert_exactly(cities, rows: list[Written], names: str) -> None:
    """The table holds these rows, in the documented order, to the last digit that was written."""
    ordered = sorted(rows, key=lambda row: (float(row.lon), float(row.lat), row.key))
    assert cities["key"].tolist() == [row.key for row in ordered]
    assert cities[names].tolist() == [row.name.strip() for row in ordered]
    assert cities["state"].tolist() == [row.state for row in ordered]
    assert cities["lat"].tolist() == [float(row.lat) for row in ordered]
    assert cities["lon"].tolist() == [float(row.lon) for row in ordered]
    assert cities["id"].tolist() == list(range(len(rows)))
    assert cities.attrs["report"]["read"] == cities.attrs["report"]["kept"] == len(rows)


# What is well written is loaded as it is


@many(260)
@given(
    rows=tables(),
    order=st.permutations(range(7)),
    extra=st.lists(st.sampled_from(EXTRA), max_size=3, unique_by=str.lower),
    encoding=st.sampled_from(["utf-8", "utf-8-sig"]),
    ending=endings,
    quoting=quotings,
    blank=st.integers(0, 2),
)
def test_simplemaps_files_come_back_exactly(
    load, rows, order, extra, encoding, ending, quoting, blank
):
    extra = [name for name in extra if name.lower() not in SIMPLE]
    assume(not {"name", "source_name"} <= set(extra))  # refused, see below
    for number, row in enumerate(rows):
        row.more = [str(number) for _ in extra]
    header = [*SIMPLE, *extra]
    places = [*order, *range(7, len(header))]
    table = [[cells[at] for at in places] for cells in [header, *(row.cells for row in rows)]]
    data = (as_csv(table, ",", ending, quoting) + ending * blank).encode(encoding)
    cities = load("simplemaps", data)
    assert_exactly(cities, rows, "name")
    written = {row.key: row for row in rows}
    for key, population, known, zone in zip(
        cities["key"],
        cities["population"],
        cities["population_known"],
        cities["timezone"],
        strict=True,
    ):
        assert known == (written[key].population != "")
        assert population == int(float(written[key].population or 0))
        assert zone == written[key].timezone
    taken = {"name", "key", "state", "geometry", "population_known"}
    for at, name in enumerate(extra):
        column = f"source_{name}" if name in taken else name
        assert cities[column].astype(str).str.removesuffix(".0").tolist() == [
            written[key].more[at] for key in cities["key"]
        ]


@many(220)
@given(
    rows=tables(forbidden="|\t\r\n"),
    delimiter=st.sampled_from("|\t"),
    encoding=st.sampled_from(["utf-8", "utf-8-sig", "latin-1"]),
    ending=endings,
    padding=st.sampled_from(["", "   "]),
)
def test_census_files_come_back_exactly(load, rows, delimiter, encoding, ending, padding):
    columns = [at for at, name in enumerate(CENSUS) if name]
    table = [[row.cells[at] for at in columns] for row in rows]
    table = [[CENSUS[at] for at in columns], *table]
    table = [[*cells[:-1], cells[-1] + padding] for cells in table]
    text = as_csv(table, delimiter, ending, csv.QUOTE_NONE)
    assume(encoding != "latin-1" or all(ord(mark) < 256 for mark in text))
    data = text.encode(encoding)
    if encoding == "latin-1":  # documented: what is UTF-8 by chance is read as that
        assume(data.isascii() or not is_utf8(data))
    cities = load("census", data)
    assert_exactly(cities, rows, "legal_name")
    assert cities["name"].tolist() == [plain_name(name) for name in cities["legal_name"]]


def is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


# What is not is refused, with its place

BAD = {
    "lat": ["", "x", "nan", "NaN", "inf", "-Infinity", "90.0000001", "-91", "1,5", "1_0", "0x10"],
    "lng": ["", "x", "nan", "inf", "180.0000001", "-1e3", "--1", "1 2", "١٢", "1e400", "12°"],
    "population": ["-1", "x", "1.5", "1e12", "NaN", "1,000", "inf", "1_0", "True"],
    "state_id": ["", "nc", "XX", "N C"],
    "city": ["", "  ", "\t", "\u00a0"],
    "id": ["", " "],
}
bad_cells = st.sampled_from([(column, text) for column, all_ in BAD.items() for text in all_])


@many(150)
@given(tables(), st.data(), bad_cells, endings, quotings)
def test_a_bad_cell_is_named_with_file_row_and_column(load, rows, data, bad, ending, quoting):
    at, (column, value) = data.draw(st.integers(0, len(rows) - 1)), bad
    table = [list(SIMPLE), *(row.cells for row in rows)]
    table[at + 1][SIMPLE.index(column)] = value
    before = as_csv(table[: at + 1], ",", ending, quoting)
    line = 1 + len(before.splitlines()) if before.isascii() else None
    with pytest.raises(CityDataError) as error:
        load("simplemaps", as_csv(table, ",", ending, quoting).encode())
    message = str(error.value)
    assert "uscities.csv, row " in message
    assert f"column {column}: {value.strip()!r}" in message
    if line and not set(LINE_ENDS) & set(before):
        assert f"row {line}, column {column}" in message


BAD_FILES = {
    "a column less": lambda text: text.replace("lng", "length", 1),
    "a column twice": lambda text: text.replace("timezone", "lat", 1),
    "a column twice, in capitals": lambda text: text.replace("timezone", "LAT", 1),
    "no rows": lambda text: text.splitlines()[0],
    "nothing": lambda text: "",
    "blank lines only": lambda text: "\n\r\n  \n",
    "a cell too many": lambda text: text.rstrip() + ",1\n",
    "a cell too few": lambda text: text.rstrip().rsplit(",", 1)[0] + "\n",
    "an open quote": lambda text: text + '"open,',
    "a row twice": lambda text: text + text.splitlines()[-1] + "\n",
}


@many(100)
@given(tables(forbidden='\r\n",' + LINE_ENDS), st.sampled_from(list(BAD_FILES)))
def test_a_bad_file_is_named_with_its_row(load, rows, damage):
    text = as_csv([list(SIMPLE), *(row.cells for row in rows)], ",", "\n", csv.QUOTE_MINIMAL)
    with pytest.raises(CityDataError, match=r"uscities\.csv(, row \d+| is empty|: 1 ragged row)"):
        load("simplemaps", BAD_FILES[damage](text).encode())


@many(100)
@given(
    rows=tables(),
    encoding=st.sampled_from(["utf-16", "utf-16-le", "utf-16-be", "utf-32", "latin-1", "cp500"]),
    source=st.sampled_from(["simplemaps", "census"]),
    ending=endings,
)
def test_another_encoding_is_named_or_read_as_it_is(load, rows, encoding, source, ending):
    delimiter, columns = (",", SIMPLE) if source == "simplemaps" else ("|", CENSUS)
    table = [list(columns), *(row.cells for row in rows)]
    text = as_csv(table, delimiter, ending, csv.QUOTE_MINIMAL)
    data = text.encode(encoding, errors="replace")
    assume(not data.isascii())
    try:
        load(source, data)
    except CityDataError as error:
        assert re.search(r"(uscities\.csv|national\.txt)(, row \d+| is empty|:)", str(error))
    else:
        assert encoding == "latin-1" and (source == "census" or is_utf8(data))


WILD = [b"\0", b'"', b",", b"|", b"\n", b"\r", b"\xff", b"\xe9", b""]


@many(130)
@given(st.data(), tables(), st.sampled_from(["simplemaps", "census"]))
def test_scrambled_bytes_never_end_in_another_error(load, data, rows, source):
    delimiter, columns = (",", SIMPLE) if source == "simplemaps" else ("|", CENSUS[:4] + CENSUS[6:])
    cells = [row.cells if source == "simplemaps" else row.cells[:4] + row.cells[6:] for row in rows]
    bytes_ = bytearray(as_csv([list(columns), *cells], delimiter, "\n", csv.QUOTE_MINIMAL).encode())
    for _ in range(data.draw(st.integers(1, 6))):
        at = data.draw(st.integers(0, len(bytes_) - 1))
        new = data.draw(st.sampled_from(WILD))
        bytes_[at : at + 1] = new
    try:
        cities = load(source, bytes(bytes_))
    except CityDataError as error:
        assert "uscities.csv" in str(error) or "national.txt" in str(error)
    else:
        assert np.isfinite(cities[["lat", "lon"]].to_numpy()).all()
        assert cities["key"].is_unique and cities["name"].ne("").all()


# Every special place of the two formats


@pytest.mark.parametrize("length", [5_000, 131_072, 300_000])
@pytest.mark.parametrize("encoding", ["utf-8", "latin-1"])
def test_a_very_long_name_is_kept_or_named(load, length, encoding):
    row = Written("é" * length, "NC", "35", "-80", "5", "", "1")
    data = as_csv([list(SIMPLE), row.cells], ",", "\n", csv.QUOTE_MINIMAL).encode(encoding)
    if length <= csv.field_size_limit() and encoding == "utf-8":
        assert load("simplemaps", data)["name"].tolist() == [row.name]
        return
    with pytest.raises(CityDataError, match=r"uscities\.csv, row \d") as error:
        load("simplemaps", data)
    assert len(str(error.value)) < 2000, "an error is to be read"


def test_columns_that_only_differ_in_capitals_are_refused(load):
    table = "USPS|GEOID|NAME|INTPTLAT|INTPTLONG|ALAND|aland\nNC|1|x|35|-80|5|6\n"
    with pytest.raises(CityDataError, match=r"national\.txt, row 1: column .*aland"):
        load("census", table.encode())


@pytest.mark.parametrize("column", ["population", "timezone"])
def test_a_gazetteer_with_a_column_of_our_names_keeps_it(load, column):
    table = f"USPS|GEOID|NAME|INTPTLAT|INTPTLONG|{column}\nNC|1|x|35|-80|77\n"
    cities = load("census", table.encode())
    assert cities[f"source_{column}"].tolist() == ["77"]
    assert cities[column].tolist() == [0 if column == "population" else ""]


def test_two_columns_that_would_get_one_name_are_refused(load):
    row = Written("x", "NC", "35", "-80", "5", "", "1", ["a", "b"])
    data = as_csv([[*SIMPLE, "name", "source_name"], row.cells], ",", "\n", csv.QUOTE_MINIMAL)
    with pytest.raises(CityDataError, match=r"uscities\.csv, row 1: column source_name .*twice"):
        load("simplemaps", data.encode())


# The graph of what was loaded


def chord_km(lat: np.ndarray, lon: np.ndarray, a: int, b: int) -> float:
    """Great-circle km by vectors, independent of the package."""
    lat, lon = np.radians(lat), np.radians(lon)
    p = np.stack([np.cos(lat) * np.cos(lon), np.cos(lat) * np.sin(lon), np.sin(lat)], 1)
    return EARTH_RADIUS_KM * math.atan2(np.linalg.norm(np.cross(p[a], p[b])), p[a] @ p[b])


corners = st.tuples(
    st.sampled_from(["90", "-90", "89.9", "-89.9", "0", "45.5", "0.3"]),
    st.sampled_from(["180", "-180", "179.95", "-179.95", "0", "90", "-90.01"]),
)
anywhere = st.tuples(degrees(90), degrees(180))


@many(150)
@given(
    places=st.lists(st.one_of(corners, anywhere), min_size=1, max_size=9),
    km=st.sampled_from([0.001, 12.0, 60.0, 1000.0, 9000.0, 19_000.0]),
    orientation=st.sampled_from(["eastward", "two_way"]),
)
@example(places=[("0", "180"), ("0", "-180")], km=0.001, orientation="eastward")
@example(places=[("90", "0"), ("90", "77")], km=0.001, orientation="two_way")
@example(places=[("35", "-80")], km=60.0, orientation="two_way")
@example(places=[("35", "-80"), ("35", "-80"), ("-35", "100")], km=12.0, orientation="eastward")
def test_the_graph_of_a_loaded_file_is_the_brute_force_one(load, places, km, orientation):
    rows = [Written(f"c{i}", "NC", *at, "5", "", str(i)) for i, at in enumerate(places)]
    data = as_csv([list(SIMPLE), *(row.cells for row in rows)], ",", "\n", csv.QUOTE_MINIMAL)
    graph = build_graph(load("simplemaps", data.encode()), km, orientation)
    edges = set(zip(graph.edge_sources.tolist(), graph.indices.tolist(), strict=True))
    assert len(edges) == len(graph.indices)
    rank = np.argsort(graph.order)
    for a, b in combinations(range(len(graph)), 2):
        apart = chord_km(graph.lat, graph.lon, a, b)
        joined = (a, b) in edges or (b, a) in edges
        assert joined == (apart <= km) or abs(apart - km) < 1e-4
        if orientation == "two_way":
            assert ((a, b) in edges) == ((b, a) in edges)
    if orientation == "eastward":
        assert all(rank[a] < rank[b] for a, b in edges), "no cycle: the order always rises"
        assert all(graph.lon[a] <= graph.lon[b] for a, b in edges)
    km_back = {(a, b): w for (a, b), w in zip(edge_list(graph), graph.km, strict=True)}
    assert all(w == km_back.get((b, a), w) for (a, b), w in km_back.items())


def edge_list(graph) -> list[tuple[int, int]]:
    return list(zip(graph.edge_sources.tolist(), graph.indices.tolist(), strict=True))
