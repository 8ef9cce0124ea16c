"""The plan of the house: imports run one way, and the package holds what two notebooks share."""

from __future__ import annotations

import ast
import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

LIB = Path(__file__).resolve().parents[1]
NOTEBOOKS = LIB.parent / "notebooks"
HOUSES = ("citypaths", "studies", "commands", "bench")
PACKAGE_LINES, CHAPTER_LINES, MODULES = 6_700, 2_000, 93  # the aim: 6,000 and 80
LEVELS = (
    "citypaths.files",
    "citypaths.sizes",
    "citypaths.map",
    "citypaths.data",
    "citypaths.models",
    "citypaths.training",
    "citypaths.decoding",
    "citypaths.judging",
    "citypaths.lab citypaths.plots",
    "studies.city_map",
    "studies.baselines",
    "studies.recurrence",
    "studies.search",
    "studies.refinement",
    "studies.memory",
    "studies.episodes",
    "studies.learning",
    "studies.beyond",
    "studies.weights",
    "studies.scoreboard",
    "commands.notebooks",
    "commands.cluster commands.train",
    "bench",
)
CHECK = "citypaths.models.check"  # of the interface, for models to come


def name_of(path: Path) -> str:
    parts = path.relative_to(LIB).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


@cache
def modules() -> dict[str, str]:
    """The source of every module of the repository by its dotted name."""
    files = (path for house in HOUSES for path in (LIB / house).rglob("*.py"))
    return {name_of(path): path.read_text(encoding="utf-8") for path in files}


@cache
def notebooks() -> dict[str, str]:
    """The code of every notebook by its number."""
    found = {}
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        code = ("".join(cell["source"]) for cell in cells if cell["cell_type"] == "code")
        found[path.name[:2]] = "\n".join(code)
    return found


def raw_imports(source: str) -> Iterator[tuple[str, str]]:
    """Each (module, name) that code imports from the repository, lazily or not."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from ((alias.name, "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert not node.level, "imports name their module in full"
            yield from ((node.module or "", alias.name) for alias in node.names)


@cache
def exported() -> dict[tuple[str, str], str]:
    """Which module a name of a package's front page comes from."""
    fronts = {name: text for name, text in modules().items() if f"{name}." in " ".join(modules())}
    found = {}
    for front, text in fronts.items():
        for module, name in raw_imports(text):
            if module.startswith(f"{front}."):
                found[front, name] = module
    return found


@cache
def imports(source: str) -> frozenset[str]:
    """The modules of the repository that code uses, names of front pages traced to their own."""
    found, pages = set(), {}
    for module, name in raw_imports(source):
        if module.split(".")[0] in HOUSES:
            full = f"{module}.{name}"
            found.add(full if full in modules() else exported().get((module, name), module))
            pages[name] = full
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            found.add(exported().get((pages.get(node.value.id, ""), node.attr), ""))
    return frozenset(found - {""})


def level_of(module: str) -> int | None:
    """The floor of a module, from below; None for the front page of a whole house."""
    for floor, rooms in enumerate(LEVELS):
        if any(module == room or module.startswith(f"{room}.") for room in rooms.split()):
            return floor
    assert module in HOUSES, f"{module} stands on no floor: name it in LEVELS"
    return None


def room_of(module: str) -> str:
    return "bench" if module.startswith("bench") else ".".join(module.split(".")[:2])


def front_pages() -> set[str]:
    return {module.rsplit(".", 1)[0] for module in exported().values()}


@pytest.mark.parametrize("name", modules())
def test_imports_run_one_way(name):
    """No module imports one from a floor above it, not even inside a function."""
    own = level_of(name)
    if own is None:
        return
    for module in imports(modules()[name]):
        floor = level_of(module)
        same_room = room_of(module) == room_of(name)
        assert floor is None or floor < own or (floor == own and same_room), f"{name} -> {module}"


def circles(graph: dict[str, set[str]]) -> list[list[str]]:
    """Groups of modules that import each other, by what is left when all that is free is taken."""
    left = {name: {m for m in found if m in graph and m != name} for name, found in graph.items()}
    while free := [name for name, found in left.items() if not found & set(left)]:
        for name in free:
            del left[name]
    return [sorted(left)] if left else []


def test_no_module_takes_part_in_a_circle():
    graph = {name: imports(text) for name, text in modules().items()}
    fronts = front_pages()
    graph = {name: found - fronts for name, found in graph.items() if name not in fronts}
    assert circles(graph) == []


def test_the_walk_for_circles_bites():
    assert circles({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == [["a", "b", "c"]]
    assert circles({"a": {"b"}, "b": set()}) == []


@cache
def readers(name: str) -> frozenset[str]:
    """The notebooks that use a module, directly or by way of others (front pages apart)."""
    found = {number for number, code in notebooks().items() if name in imports(code)}
    fronts = front_pages()
    for other, text in modules().items():
        if other not in fronts and other != name and name in imports(text):
            found |= readers(other)
    return frozenset(found)


PACKAGE = [n for n in modules() if n.startswith("citypaths.") and n.count(".") > 0]


@pytest.mark.parametrize("name", PACKAGE)
def test_a_module_of_the_package_serves_two_notebooks(name):
    fronts = front_pages() | {room_of(name)}
    if name in fronts and not modules()[name].count("def "):
        return
    if name == CHECK:
        return
    found = readers(name)
    if room_of(name) == "citypaths.models":  # built by name
        found |= readers("citypaths.models") | readers("citypaths.models.base")
    assert len(found) >= 2, f"{name} serves {set(found) or 'nobody'}: move it there"


@pytest.mark.parametrize("name", [n for n in modules() if n.startswith("studies.")])
def test_a_module_of_a_chapter_is_used(name):
    used = {m for text in [*modules().values(), *notebooks().values()] for m in imports(text)}
    page = name in front_pages()
    command = "__main__" in modules()[name]
    assert name in used or page or command or not modules()[name].strip(), f"{name}: nobody uses it"


def lines(*names: str) -> int:
    return sum(text.count("\n") for name, text in modules().items() if name.startswith(names))


def test_the_package_is_thin():
    assert lines("citypaths") <= PACKAGE_LINES


@pytest.mark.parametrize("room", sorted({room_of(n) for n in modules() if n.count(".") > 1}))
def test_a_chapter_is_no_book(room):
    assert room.startswith("citypaths") or lines(room) <= CHAPTER_LINES


def test_few_modules():
    pages = {name for name in modules() if (LIB / name.replace(".", "/")).is_dir()}
    assert len(set(modules()) - pages) <= MODULES
