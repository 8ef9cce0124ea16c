"""No code that came in a file is run: no pickle, no eval, and strangers' files stay data."""

from __future__ import annotations

import ast
import base64
import io
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import nbformat
import numpy as np
import pyarrow as pa
import pytest
import torch
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook, new_output
from small_project import FILES, READERS, contents, path_of, work

from citypaths.files import DataFileError, read_json, sealed, sha256, write_json
from commands.notebooks import RunnerError, execute, main, prepare, read_notebook, report, strip

ROOT = Path(__file__).resolve().parents[2]
PICKLERS = {"pickle", "cPickle", "_pickle", "cloudpickle", "dill", "joblib", "jsonpickle"}
PICKLERS |= {"marshal", "shelve", "pickletools", "torch.package"}
RUNNERS = {"eval", "exec", "compile", "__import__"}
LOADERS = {
    *("torch.load", "torch.jit.load", "torch.hub.load", "pandas.read_pickle", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load", "os.system"),
}
METHODS = {"read_pickle", "to_pickle", "unsafe_load", "load_module"}


# The source


def dotted(node: ast.AST) -> str:
    """The name of an expression such as `torch.load`, "" for others."""
    if isinstance(node, ast.Attribute):
        return f"{dotted(node.value)}.{node.attr}"
    return node.id if isinstance(node, ast.Name) else ""


def pickles(module: str) -> bool:
    return any(module == name or module.startswith(f"{name}.") for name in PICKLERS)


def call_danger(node: ast.Call) -> str:
    name = dotted(node.func)
    keywords = {k.arg: k.value for k in node.keywords}
    if name in RUNNERS or name.split(".")[-1] in METHODS:
        return name
    safe = any(dotted(value).endswith("SafeLoader") for value in [*keywords.values(), *node.args])
    if name in LOADERS and not (name.startswith("yaml.load") and safe):
        return name
    for word, harmless in (("allow_pickle", False), ("trust_remote_code", False)):
        value = keywords.get(word, ast.Constant(harmless))
        if not (isinstance(value, ast.Constant) and value.value is harmless):
            return f"{name}({word}=...)"
    texts = [a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)]
    imported = name.split(".")[-1] == "import_module" and any(map(pickles, texts))
    return name if imported else ""


def danger(node: ast.AST) -> str:
    """Name what a node does that could run code from a file, or return ""."""
    if isinstance(node, ast.Import):
        return next((a.name for a in node.names if pickles(a.name)), "")
    if isinstance(node, ast.ImportFrom):
        names = [node.module or "", *(f"{node.module}.{a.name}" for a in node.names)]
        return next((n for n in names if pickles(n) or n in LOADERS), "")
    return call_danger(node) if isinstance(node, ast.Call) else ""


def dangers(source: str) -> list[str]:
    return [found for node in ast.walk(ast.parse(source)) if (found := danger(node))]


def sources(path: Path) -> list[str]:
    if path.suffix == ".py":
        return [path.read_text(encoding="utf-8")]
    return [c.source for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]


OURS = [*ROOT.glob("lib/**/*.py"), *ROOT.glob("notebooks/*.ipynb")]


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_no_source_can_run_what_a_file_holds(path):
    found = [name for source in sources(path) for name in dangers(source)]
    mine = ["pickle", "pickle.loads"] if path == Path(__file__).resolve() else []
    assert set(found) <= set(mine), f"{path.name}: {found}"


@pytest.mark.parametrize(
    "line",
    [
        "import pickle",
        "import os, dill as d",
        "import torch.package.importer",
        "from joblib import load",
        "from torch import load",
        "from pandas import read_pickle as r",
        "from yaml import load",
        "def f():\n    import shelve",
        "torch.load(path, weights_only=True)",
        "np.load(path, allow_pickle=True)",
        "np.load(path, allow_pickle=flag)",
        "pd.read_pickle(path)",
        "frame.to_pickle(path)",
        "yaml.load(text)",
        "yaml.load(text, Loader=yaml.Loader)",
        "yaml.full_load(text)",
        "eval(text)",
        "exec(compile(text, 'x', 'exec'))",
        "__import__(name)",
        "importlib.import_module('cloudpickle')",
        "AutoModel.from_pretrained(name, trust_remote_code=True)",
        "os.system(text)",
    ],
)
def test_the_walk_bites(line):
    assert dangers(line)


@pytest.mark.parametrize(
    "line",
    [
        "model.eval()",
        "ast.literal_eval(text)",
        "np.load(path, allow_pickle=False)",
        "yaml.safe_load(text)",
        "yaml.load(text, Loader=yaml.SafeLoader)",
        "json.load(file)",
        "re.compile(text)",
    ],
)
def test_the_walk_lets_harmless_lines_pass(line):
    assert not dangers(line)


# Files with a payload


class Bomb:
    """Leaves a mark when it is unpickled."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self):
        return Path.touch, (self.mark,)


def saved(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()


def zipped(content: bytes) -> bytes:
    def write(file: io.BytesIO) -> None:
        with zipfile.ZipFile(file, "w") as archive:
            for name in ("flags.npy", "head.npy", "archive/data.pkl", "data.pkl"):
                archive.writestr(name, content)

    return saved(write)


def payloads(mark: Path) -> dict[str, bytes]:
    """Files that leave the mark in whoever unpickles them."""
    bomb = Bomb(mark)
    objects = np.array([bomb], object)
    names = ("flags", "shards", "head", "cities", "lat", "lon", "km", "indices", "indptr")
    table = pa.table({"source": [1]}).replace_schema_metadata({"run": pickle.dumps(bomb)})
    return {
        "bare pickle": pickle.dumps(bomb),
        "old pickle": pickle.dumps(bomb, 0),
        "torch checkpoint": saved(lambda file: torch.save({"model": bomb, "run": "{}"}, file)),
        "npy of objects": saved(lambda file: np.save(file, objects)),
        "npz of objects": saved(lambda file: np.savez(file, **dict.fromkeys(names, objects))),
        "zip of pickles": zipped(pickle.dumps(bomb)),
        "arrow with a pickle": saved(lambda file: write_arrow(file, table)),
    }


def write_arrow(file: io.BytesIO, table: pa.Table) -> None:
    with pa.ipc.new_file(file, table.schema) as writer:
        writer.write_table(table)


PAYLOADS = tuple(payloads(Path("unused")))


def test_a_payload_goes_off_when_it_is_unpickled(tmp_path):
    mark = tmp_path / "mark"
    pickle.loads(payloads(mark)["bare pickle"])
    assert mark.exists()


@pytest.mark.parametrize("payload", PAYLOADS)
@pytest.mark.parametrize("kind", FILES)
def test_a_payload_is_refused_and_never_run(kind, payload, home, tmp_path):
    path, mark = path_of(home, kind), tmp_path / "mark"
    path.write_bytes(payloads(mark)[payload])
    before = contents(home)
    for use in (READERS[kind], READERS[kind] if kind == "ledger run" else work):
        with pytest.raises(DataFileError) as error:
            use(home)
        assert path.name in str(error.value)
    assert not mark.exists()
    assert contents(home) == before


def test_a_shard_of_a_type_that_unpickles_itself(home, tmp_path):
    """Old pyarrow ran the pickle in such a file's schema; the manifest is made to vouch for it."""
    mark, path = tmp_path / "mark", path_of(home, "shard")
    with pa.memory_map(str(path)) as file:
        table = pa.ipc.open_file(file).read_all()
    meta = {"ARROW:extension:name": "arrow.py_extension_type"}
    meta["ARROW:extension:metadata"] = pickle.dumps(Bomb(mark), 0)
    fields = [field.with_metadata(meta) for field in table.schema]
    content = saved(lambda file: write_arrow(file, table.cast(pa.schema(fields))))
    path.write_bytes(content)
    manifest = read_json(path_of(home, "manifest"), "work")
    manifest["shards"][path.name]["sha256"] = sha256(path)
    write_json(path_of(home, "manifest"), sealed(manifest))
    assert READERS["shard"](home)
    assert not mark.exists()


# Notebooks from strangers


@pytest.fixture
def mark(tmp_path) -> Path:
    return tmp_path / "mark"


@pytest.fixture
def strange(tmp_path, mark) -> Callable[..., Path]:
    """Return a function that writes a notebook whose every cell would leave the mark."""

    def write(parameters: str = "seed = 0", *cells: ModuleType) -> Path:
        code = f"open({str(mark)!r}, 'w')"
        image = {"image/png": base64.b64encode(b"\x89PNG").decode()}
        shown = new_output("display_data", image, metadata={"filename": "../../../evil.png"})
        attached = new_markdown_cell("![x](attachment:../../evil.png)")
        attached.attachments = {"../../evil.png": image}
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]})
        wild = [new_code_cell(code, outputs=[shown]), new_code_cell(f"%run {mark}"), attached]
        nb = new_notebook(cells=[new_code_cell(code), tagged, *wild])
        nb.metadata = {"kernelspec": {"name": "sh", "display_name": "x", "language": "sh"}}
        path = tmp_path / "in" / "01-strange.ipynb"
        path.parent.mkdir(exist_ok=True)
        nbformat.write(nb, path)
        return path

    return write


def test_reading_preparing_reporting_and_stripping_run_nothing(strange, mark, tmp_path):
    path = strange()
    prepare(path, tmp_path / "out" / path.name, {"seed": 3})
    (text,) = report(path.parent, tmp_path / "report")
    strip(path)
    assert "open(" in text.read_text()
    assert not mark.exists()
    written = [p for p in tmp_path.rglob("*") if p.is_file() and p.suffix == ".png"]
    assert written and {p.parent.name for p in written} == {"01-strange_files"}


@pytest.mark.parametrize(
    "call",
    [
        "seed = open({!r}, 'w')",
        "seed = [open({!r}, 'w')]",
        "seed = __import__('pathlib').Path({!r}).touch()",
        "seed: int = open({!r}, 'w')",
        "seed = (lambda: open({!r}, 'w'))()",
        "for seed in [open({!r}, 'w')]: pass",
        "del seed, f({!r})",
        "seed = 1 +",
    ],
)
@pytest.mark.parametrize("use", ["prepare", "run"])
def test_a_call_among_the_parameters_is_refused_not_run(call, use, strange, mark, tmp_path, capsys):
    path = strange(call.format(str(mark)))
    function = prepare if use == "prepare" else execute
    with pytest.raises(RunnerError, match=r"01-strange.ipynb: the cell tagged parameters holds"):
        function(path, tmp_path / "out" / path.name, {"seed": 1})
    out = ["prepare", str(path), str(tmp_path / "out")]
    assert main(out if use == "prepare" else ["run", str(path), str(tmp_path / "x.ipynb")]) == 1
    assert "error: " in capsys.readouterr().err
    assert not mark.exists() and not (tmp_path / "out").exists()


@pytest.mark.parametrize("value", ["'\nopen('mark', 'w')\n'", "\\'); open(1)#", '"""', "{x}", "\0"])
def test_a_parameter_stays_a_value(value, strange, tmp_path):
    copy = prepare(strange(), tmp_path / "out" / "01.ipynb", {"seed": value})
    cells = nbformat.read(copy, as_version=4).cells
    (cell,) = (c for c in cells if "injected-parameters" in c.metadata.get("tags", []))
    (statement,) = ast.parse(cell.source.replace("\0", "")).body
    assert isinstance(statement, ast.Assign) and isinstance(statement.value, ast.Constant)


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"[]",
        b"3",
        b"null",
        b"{}",
        b'{"nbformat": 4}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}',
        b'{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": [{"cell_type": "code"}]}',
        b'{"nbformat": "4", "cells": []}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        pickle.dumps(Bomb(Path("unused"))),
    ],
    ids=range(12),
)
def test_what_is_no_notebook_is_named(content, tmp_path, capsys):
    path = tmp_path / "01-x.ipynb"
    path.write_bytes(content)
    with pytest.raises(RunnerError, match=r"01-x.ipynb is not a notebook"):
        read_notebook(path)
    for words in (["strip", path], ["prepare", path, tmp_path / "o"], ["report", tmp_path, path]):
        assert main([str(word) for word in words]) == 1
        assert "01-x.ipynb is not a notebook" in capsys.readouterr().err
    assert path.read_bytes() == content


@pytest.mark.parametrize("keep", [0.1, 0.5, 0.9, 0.999])
def test_a_truncated_notebook_is_named(keep, strange, tmp_path):
    path = strange()
    content = path.read_bytes()
    path.write_bytes(content[: int(keep * len(content))])
    for use in (strip, lambda p: report(p.parent, tmp_path / "r"), read_notebook):
        with pytest.raises(RunnerError, match=r"01-strange.ipynb is not a notebook"):
            use(path)


def test_a_figure_that_is_none_is_named(tmp_path):
    shown = new_output("display_data", {"image/png": "no base64 at all!"})
    nbformat.write(
        new_notebook(cells=[new_code_cell("x", outputs=[shown])]), tmp_path / "01-x.ipynb"
    )
    with pytest.raises(RunnerError, match=r"01-x.ipynb"):
        report(tmp_path, tmp_path / "report")
