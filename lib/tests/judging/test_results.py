"""The ledger: strict, whole, one set of rows a run, and the tables it fills."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

import citypaths
from citypaths.files import DataFileError, lock, write_bytes
from citypaths.judging import ledger as results
from citypaths.judging.ledger import COLUMNS, load_results, percent, publish, quantity, record
from citypaths.judging.metrics import RATES
from citypaths.sizes import SIZES, get_size

LIBRARY = Path(citypaths.__file__).parents[1]
TINY, SMALL = SIZES["tiny"], SIZES["small"]


@pytest.fixture(autouse=True)
def reports(monkeypatch, tmp_path) -> Path:
    """An empty ledger of the test's own."""
    monkeypatch.setenv("CITYPATHS_HOME", str(tmp_path))
    monkeypatch.setenv("CITYPATHS_REPORTS", str(tmp_path / "reports"))
    return tmp_path / "reports"


def row(**columns) -> dict:
    what = {"regime": "closed_book", "family": "greedy", "method": "greedy", "model": "gru-8"}
    return what | {"success": 0.5} | columns


def strict(path: Path):
    """Read JSON that holds nothing but JSON."""
    return json.loads(path.read_text(), parse_constant=lambda word: pytest.fail(f"{word} in JSON"))


# Recording


def test_record_writes_json_and_csv(reports):
    path = record("03-x", TINY, 4, [row(), row(method="beam")], split="uncontained", queries=7)
    assert path == reports / "runs" / "03-x-tiny-seed4.json"
    body = strict(path)
    assert body["run"] == "03-x-tiny-seed4" and len(body["rows"]) == 2
    assert body["settings"]["name"] == "tiny" and body["settings"]["states"] == ["TN"]
    assert set(body["versions"]) == set(results.PACKAGES) and body["machine"]["python"]
    text = {name: str for name, kind in COLUMNS.items() if kind == "text"}
    table = pd.read_csv(
        reports / "results.csv",
        dtype=text,
        keep_default_na=False,
        na_values={name: [""] for name, kind in COLUMNS.items() if kind != "text"},
    )
    assert list(table.columns) == list(COLUMNS)
    assert table["method"].tolist() == ["greedy", "beam"]
    assert (table["split"] == "uncontained").all() and (table["queries"] == 7).all()
    assert (table["seed"] == 4).all() and (table["run"] == "03-x-tiny-seed4").all()
    assert (table["threads"] == torch.get_num_threads()).all()
    loaded = load_results()
    assert loaded["dirty"].isna().all() and table["dirty"].isna().all()
    table["dirty"] = None
    pd.testing.assert_frame_equal(table, loaded, check_dtype=False)


def test_a_row_overrides_what_is_shared():
    record("n", TINY, 0, [row(split="pair"), row()], split="ordered")
    assert load_results()["split"].tolist() == ["pair", "ordered"]


def test_a_rerun_replaces_its_own_rows_only():
    record("a", TINY, 0, [row(), row(), row()])
    record("a", TINY, 1, [row(success=0.1)])
    record("a", SMALL, 0, [row(success=0.2)])
    record("b", TINY, 0, [row(success=0.3)])
    record("a", TINY, 0, [row(success=0.9)])
    table = load_results()
    assert sorted(table["success"]) == [0.1, 0.2, 0.3, 0.9]


def test_a_changed_size_is_another_run():
    other = get_size("tiny", {"budget": 61.0})
    paths = {record("a", size, 0, [row()]).name for size in (TINY, other, other)}
    assert len(paths) == 2 and len(load_results()) == 2


def test_numbers_become_plain_and_strict(reports):
    value = {"success": np.float64(0.25), "queries": np.int64(9), "dirty": np.bool_(True)}
    value |= {"hard_success": np.nan, "lookups": np.float32("inf"), "optimal": None}
    path = record("a", TINY, 0, [row(**value)])
    saved = strict(path)["rows"][0]
    assert saved["success"] == 0.25 and saved["queries"] == 9 and saved["dirty"] is True
    assert saved["hard_success"] is saved["lookups"] is saved["optimal"] is None
    loaded = load_results().iloc[0]
    assert pd.isna(loaded["hard_success"]) and pd.isna(loaded["lookups"])
    assert (reports / "results.csv").read_text().count("\n") == 2


def test_what_is_no_row_is_refused(reports):
    with pytest.raises(ValueError, match=r"no column \['sucess'\]; known: commit"):
        record("a", TINY, 0, [row(sucess=1)])
    with pytest.raises(ValueError, match="no column"):
        record("a", TINY, 0, [row()], colour="red")
    for regime in ("open", None):
        with pytest.raises(ValueError, match=r"regime is one of closed_book, .*not"):
            record("a", TINY, 0, [row(), row(regime=regime)])
    for family in ("luck", None):
        with pytest.raises(ValueError, match=r"family is one of floor, .*, not"):
            record("a", TINY, 0, [row(family=family)])
    for wrong in ({"method": 3}, {"seed": "0"}, {"attempts": True}, {"dirty": 1}, {"share": 20}):
        with pytest.raises(
            ValueError, match=f"{next(iter(wrong))} is (text|a number|true|a share)"
        ):
            record("a", TINY, 0, [row(**wrong)])
    assert not (reports / "results.csv").exists() and not list(reports.glob("runs/*.json"))


@pytest.mark.parametrize("name", [*RATES, "success_low", "success_high", "hard_success"])
def test_rates_are_shares(name):
    for wrong in (1.01, -0.1, 50.0, np.inf):
        with pytest.raises(ValueError, match=f"{name} is a share from 0 to 1"):
            record("a", TINY, 0, [row(**{name: wrong})])
    for right in (0, 1.0, np.nan, None, np.float64(0.3)):
        record("a", TINY, 0, [row(**{name: right})])


@pytest.mark.parametrize("spoilt", ["", "{", "[]", "{}", '{"run": 1}', '{"run": "x", "rows": [3]}'])
def test_a_damaged_run_is_named(reports, spoilt):
    path = record("a", TINY, 0, [row()])
    path.write_text(spoilt)
    with pytest.raises(DataFileError, match=r"a-tiny-seed0.json is no recorded run .*restore it"):
        load_results()
    with pytest.raises(DataFileError, match=r"a-tiny-seed0.json is no recorded run"):
        record("b", TINY, 0, [row()])
    assert path.read_text() == spoilt, "nothing is deleted"
    record("a", TINY, 0, [row()])
    assert set(load_results()["notebook"]) == {"a", "b"}, "b was kept"


def test_bytes_that_are_no_text(reports):
    path = record("a", TINY, 0, [row()])
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataFileError, match=r"a-tiny-seed0.json"):
        load_results()


def test_an_empty_ledger():
    assert load_results().empty and list(load_results().columns) == list(COLUMNS)


def test_the_commit_is_recorded(tmp_path):
    record("a", TINY, 0, [row()])
    unknown = load_results().iloc[0]
    assert unknown["commit"] == "unknown" and pd.isna(unknown["dirty"]), "never as clean"
    me = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
    for words in (["init", "-q"], [*me, "commit", "-q", "--allow-empty", "-m", "x"]):
        subprocess.run(["git", "-C", tmp_path, *words], check=True)
    (tmp_path / ".git" / "info").mkdir(exist_ok=True)
    (tmp_path / ".git" / "info" / "exclude").write_text("reports\n")
    record("a", TINY, 0, [row()])
    clean = load_results().iloc[0]
    assert len(clean["commit"]) == 40 and not clean["dirty"]
    (tmp_path / "new").touch()
    record("a", TINY, 0, [row()])
    assert load_results().loc[0, "dirty"]


WRITER = """
import sys
from citypaths.judging.ledger import record
from citypaths.sizes import SIZES
row = {"regime": "checked", "family": "beam", "success": 0.5}
for seed in range(6):
    record(sys.argv[1], SIZES["tiny"], seed, [row])
"""


def test_two_processes_at_once_keep_both(reports):
    writers = [
        subprocess.Popen([sys.executable, "-c", WRITER, name], cwd=LIBRARY) for name in ("a", "b")
    ]
    assert [writer.wait(60) for writer in writers] == [0, 0]
    table = load_results()
    assert table.groupby("notebook")["seed"].apply(sorted).tolist() == [list(range(6))] * 2
    assert len(pd.read_csv(reports / "results.csv")) == 12
    assert not list(reports.rglob("*.part"))


def test_a_writer_waits_for_the_lock(reports):
    writer = threading.Thread(target=record, args=("a", TINY, 0, [row()]))
    with lock(reports / "runs" / ".lock"):
        writer.start()
        writer.join(0.3)
        assert writer.is_alive() and not list(reports.glob("runs/*.json"))
    writer.join(30)
    assert len(load_results()) == 1


@pytest.fixture
def own(monkeypatch, tmp_path) -> Path:
    """Runs of this machine apart from the committed ones."""
    monkeypatch.delenv("CITYPATHS_REPORTS")
    return tmp_path / "data" / "ledger"


def test_a_run_stays_under_data_until_it_is_published(own, reports):
    for name, seed in (("a", 0), ("a", 1), ("b", 0)):
        record(name, TINY, seed, [row(success=0.25)])
    record("a", SMALL, 0, [row()])
    record("a", get_size("tiny", {"queries": 7}), 0, [row()])
    assert not reports.exists() and len(pd.read_csv(own / "results.csv")) == 5
    for name in ("x-tiny", "x-small", "x"):
        write_bytes(own / "figures" / f"{name}.png", b"drawn")
    moved = {path.relative_to(reports).as_posix() for path in publish("tiny", 0)}
    changed = {name for name in moved if name.startswith("runs/a-tiny-seed0-")}
    assert len(changed) == 1
    assert moved - changed == {
        *("runs/a-tiny-seed0.json", "runs/b-tiny-seed0.json"),
        *("figures/x-tiny.png", "figures/x.png"),
    }
    assert {path.name for path in own.glob("*/*.[jp]*")} == {
        *("a-tiny-seed1.json", "a-small-seed0.json", "x-small.png")
    }
    assert len(pd.read_csv(reports / "results.csv")) == 3
    assert len(pd.read_csv(own / "results.csv")) == 2 and len(load_results()) == 5
    assert not publish("tiny", 0)


def test_one_s_own_run_counts_before_the_committed_one_of_its_name(own, reports):
    record("a", TINY, 0, [row(success=0.1)])
    record("b", TINY, 0, [row(success=0.2)])
    publish("tiny", 0)
    record("a", TINY, 0, [row(success=0.9), row(success=0.8)])
    assert sorted(load_results()["success"]) == [0.2, 0.8, 0.9]
    assert sorted(load_results(reports)["success"]) == [0.1, 0.2]


# Tables


def test_percent_and_quantity():
    assert percent(0.413, 0.39, 0.436) == "41.3 % (39.0-43.6)"
    assert percent(0.5) == percent(0.5, np.nan, np.nan) == "50.0 %"
    assert percent(None) == percent(np.nan, 0, 1) == quantity(None) == quantity(np.nan) == "-"
    shown = {0: "0", 12.34: "12.3", 4.61e6: "4.61 M", 1000: "1 k", 999: "999", 2e12: "2 T"}
    shown |= {999_999: "1 M", 999.96: "1 k", 999_400: "999 k", 1.5e9: "1.5 G", 7e15: "7e+03 T"}
    assert {value: quantity(value) for value in shown} == shown
