"""Every notebook is clean, small and of one shape."""

import ast
import re
import sys
from pathlib import Path
from statistics import median

import nbformat
import pytest

from commands.notebooks import known_parameters, tags

FOLDER = Path(__file__).resolve().parents[2] / "notebooks"
NOTEBOOKS = sorted(FOLDER.glob("*.ipynb"))
LIBRARIES = {
    *("citypaths", "studies", "geopandas", "IPython", "matplotlib", "networkx", "numpy", "pandas"),
    *("scipy", "seaborn", "torch", "tqdm"),
}
MACHINE_PATH = re.compile(
    r"(?<![\w/.:)-])/(?:home|Users|root|tmp|var|opt|mnt|work|content)/|[A-Z]:\\"
)
ENDING = ["Result", "What could be wrong", "Next"]
HINT = "make strip removes outputs, counts and machine-specific metadata"

each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)


def read(path):
    return nbformat.read(path, as_version=4)


def code_cells(path):
    return [cell for cell in read(path).cells if cell.cell_type == "code"]


def trees(path):
    return [ast.parse(cell.source) for cell in code_cells(path)]


def nodes(path, *kinds):
    return [node for tree in trees(path) for node in ast.walk(tree) if isinstance(node, kinds)]


def test_there_are_notebooks():
    assert NOTEBOOKS, f"no notebook in {FOLDER}"


def test_numbers_rise_to_the_scoreboard():
    """One notebook a number, in order; the scoreboard, which reads them all, comes last."""
    numbers = [path.name[:2] for path in NOTEBOOKS]
    assert NOTEBOOKS[-1].stem.endswith("-scoreboard")
    assert len(set(numbers)) == len(numbers)


@each_notebook
def test_name(path):
    assert re.fullmatch(r"\d\d(-[a-z0-9]+)+\.ipynb", path.name)


@each_notebook
def test_no_outputs_and_no_counts(path):
    for cell in code_cells(path):
        assert cell.outputs == [], HINT
        assert cell.execution_count is None, HINT


@each_notebook
def test_metadata_is_of_no_machine(path):
    nb = read(path)
    kernel = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    assert nb.metadata == {"kernelspec": kernel, "language_info": {"name": "python"}}, HINT
    assert all(set(cell.metadata) <= {"tags"} for cell in nb.cells), HINT


@each_notebook
def test_format_with_cell_ids(path):
    nb = read(path)
    nbformat.validate(nb)
    assert (nb.nbformat, nb.nbformat_minor) >= (4, 5), HINT
    assert len({cell.id for cell in nb.cells}) == len(nb.cells)


@each_notebook
def test_one_parameters_cell_of_literals(path):
    (cell,) = (cell for cell in read(path).cells if "parameters" in tags(cell))
    for node in ast.parse(cell.source).body:
        assert isinstance(node, ast.Assign | ast.AnnAssign), "assignments only"
        ast.literal_eval(node.value)
    defaults = known_parameters(read(path))
    assert defaults["size"] == "small"
    assert defaults["seed"] == 0
    assert len(defaults) <= 5, "size, seed and at most three of the notebook's own"


@each_notebook
def test_begins_with_a_title(path):
    first = read(path).cells[0]
    assert first.cell_type == "markdown"
    assert re.match(r"# \S", first.source)


@each_notebook
def test_ends_with_result_doubts_and_next(path):
    prose = [cell.source for cell in read(path).cells if cell.cell_type == "markdown"]
    headings = re.findall(r"^#+ (.+?)\s*$", "\n".join(prose), flags=re.MULTILINE)
    assert headings[-3:] == ENDING


@each_notebook
def test_few_and_short_cells(path):
    lengths = [len(cell.source.splitlines()) for cell in code_cells(path)]
    assert len(read(path).cells) <= 40
    assert max(lengths) <= 25
    assert median(lengths) <= 5
    assert path.stat().st_size < 100_000


@each_notebook
def test_code_is_python_and_shows_no_more_than_the_experiment(path):
    assert not nodes(path, ast.ClassDef), "classes belong in the chapter"
    assert len(nodes(path, ast.FunctionDef, ast.AsyncFunctionDef)) <= 1
    assert not [cell for cell in code_cells(path) if not cell.source.strip()], "an empty cell"


@each_notebook
def test_imports(path):
    imported = {alias.name for node in nodes(path, ast.Import) for alias in node.names}
    imported |= {node.module for node in nodes(path, ast.ImportFrom)}
    roots = {name.split(".")[0] for name in imported}
    assert roots <= LIBRARIES | set(sys.stdlib_module_names) - {"pickle", "shelve", "marshal"}


@each_notebook
def test_no_machine_paths(path):
    assert not [cell.source for cell in read(path).cells if MACHINE_PATH.search(cell.source)]
