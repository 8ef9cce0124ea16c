"""What the notebooks share: a size's graph, dataset and queries, and how a method is scored."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import torch

from citypaths import decoding
from citypaths.data.batches import batch_of
from citypaths.data.dataset import Dataset, live_dataset, make_dataset, open_dataset
from citypaths.data.splits import Split, recipe_for
from citypaths.data.workers import Where
from citypaths.files import DataFileError, atomic_write, digest, project_root, records_dir
from citypaths.judging.queries import Queries
from citypaths.map.graph import CityGraph, build_graph, jittered, load_graph
from citypaths.map.shortest_paths import count_reachable
from citypaths.models import PathModel
from citypaths.sizes import Size
from citypaths.training.loop import Evaluate, Trained, train
from citypaths.training.recipes import Recipe, recipe


def device() -> torch.device:
    """Return the CUDA device where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def size_cities(size: Size) -> pd.DataFrame:
    """Load the City Dataset of a size, as `load_cities` returns it."""
    from citypaths.map.cities import load_cities  # geopandas is not needed on a training machine

    states = list(size.states) if size.states else None
    path = project_root() / size.path if size.path else None
    cities = load_cities(size.source, size.country, states, path=path)
    if size.most_populous:
        kept = cities.nlargest(size.most_populous, "population").sort_index()
        cities = kept.reset_index(drop=True).assign(id=np.arange(len(kept)))
    return cities


def make_graph(size: Size) -> CityGraph:
    """Build the graph of a size from its City Dataset."""
    graph = build_graph(size_cities(size), size.connected_km, size.orientation)
    return jittered(graph, spread=size.jitter) if size.jitter else graph


def size_graph(size: Size, *, make: bool = False) -> CityGraph:
    """Return a size's saved graph; with `make`, build and save it when it is not there."""
    path = size.folder / "graph.npz"
    if make and not path.exists():
        make_graph(size).save(path)
    return load_graph(path)


def size_dataset(
    size: Size,
    graph: CityGraph,
    split: Split = "pair",
    *,
    make: bool = False,
    client: Where = None,
) -> Dataset:
    """Return a size's dataset for a split; with `make`, generate it when it is not whole.

    `client` names the Dask workers that generate it; without one, this process does.
    """
    folder = size.folder / f"spd-{split}-{graph.fingerprint[:8]}"
    try:
        return open_dataset(folder, graph)
    except DataFileError:
        if not make:
            raise
    goals = {"train": size.train, "valid": size.valid, "test": size.test}
    return make_dataset(graph, recipe_for(graph, split=split, **goals), folder, client=client)


def held_out(size: Size, graph: CityGraph) -> Dataset:
    """Return the live dataset that holds `size.held` test and as many validation queries out first.

    Training takes every other path that contains none of them; nothing is written.
    """
    goals = {"train": count_reachable(graph), "valid": size.held, "test": size.held}
    return live_dataset(graph, recipe_for(graph, split="held_out", **goals))


def mean_loss(model: PathModel, queries: Queries, loops: int | None = None) -> float:
    """Return the cross-entropy in nats a hop on the shortest paths of queries, teacher-forced."""
    where, total = next(model.parameters()).device, 0.0
    with torch.inference_mode():
        for part in np.array_split(np.arange(len(queries)), max(1, len(queries) // 250)):
            loss = model.loss(batch_of(queries.rows.take(part), where), loops)
            total += float(loss) * int(queries.rows.hops[part].sum())
    return total / int(queries.rows.hops.sum())


def watch(queries: Queries) -> Evaluate:
    """Return an evaluation for the training history: loss and greedy metrics on `queries`."""

    def evaluate(model) -> dict[str, float]:
        judged = queries.judge(queries.decode(decoding.greedy, model))
        rates = judged[["legal", "arrives", "bounded_05", "success"]].mean().to_dict()
        return {"valid_loss": mean_loss(model, queries), **rates}

    return evaluate


def train_arm(
    size: Size,
    dataset: Dataset,
    arm: str | Recipe,
    seed: int,
    evaluate: Evaluate | None = None,
    **changes: Any,
) -> Trained:
    """Train (or load) an arm of `citypaths.training.recipes`, or by a recipe of your own.

    Its folder is named after everything that decides the outcome; the number of processes does not.

    Args:
        changes: fields of the arm's `Recipe`; `settings` are added to its own.
    """
    chosen = (recipe(size, arm) if isinstance(arm, str) else arm).changed(**changes)
    settings, model = chosen.training(dataset.graph, seed), {**chosen.settings, **chosen.variant}
    decides = {"name": chosen.model, "model": model, "train": settings.decisive}
    key = digest(decides | {"data": dataset.recipe.to_json()})
    folder = size.folder / "models" / f"{chosen.arm.replace(', ', '-')}-seed{seed}-{key}"
    return train(chosen.model, dataset, folder, settings, model, evaluate, device())


def save_figure(figure: Any, name: str) -> None:
    """Save a matplotlib figure as `figures/NAME.png` beside this machine's records."""
    path = records_dir() / "figures" / f"{name}.png"
    with atomic_write(path) as part:
        figure.savefig(part, format="png", dpi=90)
