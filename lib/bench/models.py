"""Speed of models: training against each other and against public implementations, and decoding.

Peers are measured where they are installed and never needed: feedback-transformer-pytorch (by Phil
Wang) and labml-nn.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor, nn

import studies.recurrence  # noqa: F401  it registers its models
from bench import Call, Line, interleaved, one_thread
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
    unit = times["transformer"]
    what = f"training, width {WIDTH}, {LAYERS} layers, {PATHS} paths of {STEPS}"
    lines = [
        (f"{what}: {name}", f"{path[:, 1:].numel() / took:,.0f} cities/s", f"{took / unit:.2f}")
        for name, took in times.items()
    ]
    return lines + [(f"{what}: {name}", "not installed", "") for name in missing]


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
    """Return passes of the peers that are here, and the names of those that are not."""
    makers = {"feedback_transformer_pytorch": _wang, "labml_nn": _labml}
    here = {name: make for name, make in makers.items() if find_spec(name)}
    calls: dict[str, Call] = {}
    for make in here.values():
        calls |= make(cities, batch)
    return calls, [name for name in makers if name not in here]


def _peer_loss(model: Callable[[Tensor], Tensor], batch: Batch) -> Tensor:
    return nats(model(batch.cities), batch)


def _wang(cities: int, batch: Batch) -> dict[str, Call]:
    from feedback_transformer_pytorch import FeedbackTransformer

    calls = {}
    for chunk in (1, 2):
        size = {"dim": WIDTH, "depth": LAYERS, "heads": HEADS, "dim_head": WIDTH // HEADS}
        model = FeedbackTransformer(num_tokens=cities, mem_len=STEPS, seq_len=chunk, **size)
        name = f"feedback-transformer-pytorch, seq_len {chunk}"
        calls[name] = _pass(model, lambda m=model: _peer_loss(m, batch))
    return calls


class _LabmlModel(nn.Module):
    """A labml-nn feedback transformer with an embedding and a head."""

    def __init__(self, cities: int, shared: bool) -> None:
        super().__init__()
        from labml_nn.transformers import feedback as peer

        attention = peer.FeedbackAttention(HEADS, WIDTH, 0.0, is_kv_precomputed=shared)
        feed = peer.FeedForward(WIDTH, 4 * WIDTH, 0.0)
        layer = peer.FeedbackTransformerLayer(
            d_model=WIDTH, attn=attention, feed_forward=feed, dropout_prob=0.0
        )
        more = (WIDTH, HEADS) if shared else ()
        kind = peer.FeedbackTransformerKV if shared else peer.FeedbackTransformer
        self.stack, self.free = kind(layer, LAYERS, *more), shared
        self.embedding, self.head = nn.Embedding(cities, WIDTH), nn.Linear(WIDTH, cities)

    def forward(self, cities: Tensor) -> Tensor:
        return self.head(self.stack(self.embedding(cities.T))).transpose(0, 1)


def _labml(cities: int, batch: Batch) -> dict[str, Call]:
    def call(model: _LabmlModel) -> None:
        _pass(model, lambda: _peer_loss(model, batch))()
        if model.free:  # it keeps one buffer for all passes
            model.stack.free()

    models = {"original": _LabmlModel(cities, False), "keys and values": _LabmlModel(cities, True)}
    return {f"labml-nn, {name}": lambda m=model: call(m) for name, model in models.items()}


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
    return [
        (
            f"{what}: {name}",
            f"{1000 * took / len(pairs):.2f} ms",
            f"{took / times['transformer']:.2f}",
        )
        for name, took in times.items()
    ]
