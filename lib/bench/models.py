"""Speed of models: training against each other and against public implementations, and decoding.

The peer, feedback-transformer-pytorch by Phil Wang, is measured where it is installed and never
needed.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import studies.recurrence  # noqa: F401  it registers its models
from bench import Call, Line, interleaved, lines, one_thread
from citypaths import decoding
from citypaths.data.batches import Batch
from citypaths.map.cities import load_cities
from citypaths.map.graph import CityGraph, build_graph
from citypaths.models import build
from citypaths.models.base import nats
from studies.city_map.survey import draw_sample

WIDTH, LAYERS, HEADS = 256, 4, 8
CITIES, PATHS, STEPS = 1_000, 32, 64
OURS: dict[str, tuple[str, dict[str, Any]]] = {
    "transformer": ("transformer", {"layers": LAYERS, "heads": HEADS}),
    "feedback": ("feedback", {"layers": LAYERS, "heads": HEADS}),
    "lstm, one layer": ("rnn", {"cell": "lstm", "tied": True}),
}
PEER = "feedback_transformer_pytorch"
DECODED = ("rnn", "transformer", "feedback", "looped", "top_recurrent", "act", "ponder")


def bench_models(rounds: int = 7) -> list[Line]:
    """Time training and greedy decoding of every family, on one thread."""
    populous = load_cities().nlargest(CITIES, "population").sort_index()
    graph = build_graph(populous, 150)
    with one_thread():
        return training_lines(graph, rounds) + decoding_lines(graph)


def training_lines(graph: CityGraph, rounds: int) -> list[Line]:
    """Time forward, loss and backward of models of one size on one batch of full paths."""
    path = torch.randint(len(graph), (PATHS, 1 + STEPS), generator=torch.Generator().manual_seed(0))
    batch = Batch(path[:, 0], path[:, -1], path[:, :-1], path[:, 1:])
    calls = {name: _training(graph, batch, *which) for name, which in OURS.items()}
    peers, missing = _peers(len(graph), batch)
    times = interleaved(calls | peers, rounds)
    what = f"training, width {WIDTH}, {LAYERS} layers, {PATHS} paths of {STEPS}"
    cities = path[:, 1:].numel()
    return lines(what, times, "transformer", lambda took: f"{cities / took:,.0f} cities/s", missing)


def _training(graph: CityGraph, batch: Batch, name: str, settings: dict[str, Any]) -> Call:
    torch.manual_seed(0)
    model = build(name, graph, width=WIDTH, **settings)
    return _pass(model, lambda: model.loss(batch))


def _pass(model: nn.Module, loss: Callable[[], Tensor]) -> Call:
    def call() -> None:
        model.zero_grad()
        loss().backward()

    return call


def _peers(cities: int, batch: Batch) -> tuple[dict[str, Call], list[str]]:
    """Return passes of the peer where it is here, else its name."""
    if not find_spec(PEER):
        return {}, [PEER]
    from feedback_transformer_pytorch import FeedbackTransformer

    calls = {}
    for chunk in (1, 2):
        size = {"dim": WIDTH, "depth": LAYERS, "heads": HEADS, "dim_head": WIDTH // HEADS}
        model = FeedbackTransformer(num_tokens=cities, mem_len=STEPS, seq_len=chunk, **size)
        name = f"feedback-transformer-pytorch, seq_len {chunk}"
        calls[name] = _pass(model, lambda m=model: nats(m(batch.cities), batch))
    return calls, []


def decoding_lines(graph: CityGraph, queries: int = 256, hops: int = 30) -> list[Line]:
    """Time greedy decoding of a query by every model, untrained, of default size."""
    pairs = draw_sample(graph, queries).pairs[:queries]
    calls = {}
    for name in DECODED:
        torch.manual_seed(0)
        model = build(name, graph).eval()
        calls[name] = lambda m=model: decoding.greedy(m, *pairs.T, hops, batch=queries)
    times = interleaved(calls, 3)
    what = f"greedy decoding of {hops} hops at most, {len(pairs)} queries at once"
    return lines(what, times, "transformer", lambda took: f"{1000 * took / len(pairs):.2f} ms")
