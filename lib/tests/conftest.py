"""Graphs and a finished dataset that several test files share; all are read only."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from small_project import at_home, everything, project, work

from citypaths import lab
from citypaths.data.dataset import make_dataset
from citypaths.data.splits import recipe_for
from citypaths.map.cities import load_cities
from citypaths.map.graph import build_graph
from citypaths.sizes import get_size


@pytest.fixture(scope="session")
def place():
    """Return a function that makes a city table of (latitude, longitude) points, ids in order."""

    def cities(points, names=None) -> pd.DataFrame:
        lat, lon = np.asarray(points, float).reshape(-1, 2).T
        names = names or [f"City {i}" for i in range(len(lat))]
        return pd.DataFrame({"name": names, "state": "XX", "lat": lat, "lon": lon, "population": 7})

    return cities


@pytest.fixture(scope="session")
def nation_cities():
    return load_cities()


@pytest.fixture(scope="session")
def nation(nation_cities):
    return build_graph(nation_cities, 75)


@pytest.fixture(scope="session")
def tennessee():
    return build_graph(load_cities(states=["TN"]), 30)


@pytest.fixture(scope="session")
def tennessee_two_way(tennessee):
    return build_graph(tennessee.cities, 30, "two_way")


@pytest.fixture(scope="session", params=["eastward", "two_way"])
def oriented_tennessee(request, tennessee, tennessee_two_way):
    """Tennessee in both orientations, one after the other."""
    return tennessee if request.param == "eastward" else tennessee_two_way


@pytest.fixture(scope="session")
def north_carolina():
    return build_graph(load_cities(states=["NC"]), 30)


@pytest.fixture(scope="session")
def chain(place):
    """Five cities on the equator 0.1 degrees (11.1 km) apart, each joined to the next alone."""
    return build_graph(place([(0, 0.1 * i) for i in range(5)]), 12)


@pytest.fixture(scope="session")
def lonely(place):
    """A graph of one city."""
    return build_graph(place([(35.0, -80.0)]), 30)


@pytest.fixture(scope="session")
def scattered(place):
    """Three cities too far apart for any edge."""
    return build_graph(place([(35.0, -80.0), (45.0, -100.0), (40.0, -120.0)]), 30)


@pytest.fixture(scope="session")
def tiny_dataset(tennessee, tmp_path_factory):
    """A finished dataset of about 2,000 training paths of Tennessee in 24 shards."""
    recipe = recipe_for(tennessee, train=2000, valid=200, test=400, seed=5)
    return make_dataset(tennessee, recipe, tmp_path_factory.mktemp("tiny") / "spd", 16)


@pytest.fixture(scope="module")
def empty_home(tmp_path_factory) -> Iterator[Path]:
    """A project folder of a test module's own."""
    folder = tmp_path_factory.mktemp("home")
    with at_home(folder):
        yield folder


@pytest.fixture(scope="module")
def size(empty_home):
    """A size of few paths, at home in the module's own folder."""
    return get_size("tiny", {"train": 1500, "valid": 80, "test": 400, "queries": 40})


@pytest.fixture(scope="module")
def dataset(size):
    return lab.size_dataset(size, lab.size_graph(size, make=True), make=True)


@pytest.fixture(scope="module")
def queries(dataset):
    return lab.Queries.of(dataset).uncontained()


@pytest.fixture(scope="session")
def finished_project(tmp_path_factory) -> Path:
    """A folder with everything that the package writes; see small_project."""
    home = tmp_path_factory.mktemp("project")
    with project(home):
        work(home)
    return home


@pytest.fixture(scope="session")
def whole(finished_project) -> list:
    """Everything of the finished project, as it is read."""
    with project(finished_project):
        return everything(finished_project)


@pytest.fixture
def home(finished_project, tmp_path) -> Iterator[Path]:
    """A copy of the finished project, to be damaged."""
    shutil.copytree(finished_project, tmp_path / "home")
    with project(tmp_path / "home"):
        yield tmp_path / "home"
