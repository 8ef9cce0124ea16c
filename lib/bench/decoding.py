"""Speed of decoding: batched against one query at a time, and against a public implementation.

The peer, Hugging Face transformers, is measured where it is installed and never needed; to see it,
`pip install transformers` beside this package.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import Any

import torch

from bench import Call, Line, interleaved, lines, one_thread
from citypaths import decoding
from citypaths.map.cities import load_cities
from citypaths.map.graph import CityGraph, build_graph
from citypaths.models import build
from citypaths.sizes import get_size
from studies.city_map.survey import draw_sample

WIDTH, LAYERS, HEADS = 128, 3, 4
BEAMS, STEPS = 8, 20


def bench_decoding(rounds: int = 5) -> list[Line]:
    """Time greedy decoding and beam search on one thread, with weights as they were drawn."""
    size = get_size("medium")
    cities = load_cities(states=list(size.states))
    graph = build_graph(cities, size.connected_km, size.orientation)
    with one_thread():
        return greedy_lines() + beam_lines(graph, rounds=rounds)


def greedy_lines(queries: int = 256, alone: int = 16) -> list[Line]:
    """Time greedy decoding of a query: batched, and one query at a time."""
    graph = build_graph(load_cities(states=["NC"]), 30)
    torch.manual_seed(0)
    model = build("rnn", graph, width=128, tied=True)
    pairs = draw_sample(graph, queries).pairs[:queries]
    times = interleaved(
        {
            "batched": lambda: decoding.greedy(model, *pairs.T, 30),
            "one by one": lambda: decoding.greedy(model, *pairs[:alone].T, 30, batch=1),
        },
        3,
    )
    batched, single = times["batched"] / len(pairs), times["one by one"] / alone
    return [
        ("greedy decoding of a query, gru-128, batched", f"{1000 * batched:.2f} ms", "1"),
        ("one by one", f"{1000 * single:.1f} ms", f"{single / batched:.1f}"),
    ]


def beam_lines(graph: CityGraph, queries: int = 64, rounds: int = 5) -> list[Line]:
    """Time beam search of `STEPS` hops: our models and the peer, batched and one by one.

    All have the vocabulary of `graph`; the transformers agree in layers, width and heads.
    """
    pairs = draw_sample(graph, queries).pairs[:queries]
    calls = {}
    for name, settings in {
        "transformer": {"layers": LAYERS, "heads": HEADS},
        "rnn": {"tied": True},
    }.items():
        torch.manual_seed(0)
        model = build(name, graph, width=WIDTH, **settings).eval()
        calls[f"{name}, batched"] = _beam(model, pairs, len(pairs))
        calls[f"{name}, one by one"] = _beam(model, pairs, 1)
    peer = "transformers"
    missing = [] if find_spec(peer) else [f"{peer} (Hugging Face)"]
    if not missing:
        calls |= _hugging_face(len(graph), pairs)
    times = interleaved(calls, rounds)
    what = f"beams of {BEAMS}, {STEPS} hops, {len(graph):,} cities, {len(pairs)} queries"
    unit = "transformer, batched"
    return lines(what, times, unit, lambda took: f"{len(pairs) / took:,.1f} queries/s", missing)


def _beam(model: Any, pairs: Any, batch: int) -> Call:
    """Beam search that takes all steps: with weights as drawn hardly a path arrives."""
    return lambda: decoding.beam(model, *pairs.T, STEPS, width=BEAMS, batch=batch)


def _hugging_face(cities: int, pairs: Any) -> dict[str, Call]:
    """Beam search of a GPT-2 and a Llama of one shape, which are given target and source."""
    from transformers import GPT2Config, GPT2LMHeadModel, LlamaConfig, LlamaForCausalLM

    shared = {"vocab_size": cities, "bos_token_id": None, "eos_token_id": None, "pad_token_id": 0}
    size = {"hidden_size": WIDTH, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
    small = {"n_embd": WIDTH, "n_layer": LAYERS, "n_head": HEADS, "n_positions": 64}
    llama = size | {"intermediate_size": 8 * WIDTH // 3, "tie_word_embeddings": True}
    torch.manual_seed(0)
    models = {
        "GPT-2": GPT2LMHeadModel(GPT2Config(**shared, **small)),
        "Llama": LlamaForCausalLM(LlamaConfig(**shared, **llama)),
    }
    prompt = torch.as_tensor(pairs[:, ::-1].copy()).long()
    return {f"Hugging Face {name}, batched": _generate(m, prompt) for name, m in models.items()}


def _generate(model: Any, prompt: torch.Tensor) -> Call:
    model.eval()
    options = {"num_beams": BEAMS, "do_sample": False, "min_new_tokens": STEPS}

    def call() -> None:
        with torch.inference_mode():
            ids = model.generate(
                prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=STEPS, **options
            )
        if ids.shape[1] != prompt.shape[1] + STEPS:
            raise RuntimeError(f"the peer took {ids.shape[1] - prompt.shape[1]} steps, not {STEPS}")

    return call
