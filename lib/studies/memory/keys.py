"""Keys of a cache: what chosen layers of a model are given, step by step."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Literal

import torch
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.models.base import PathModel

Layer = Literal["head", "recurrent", "both"]
MODULES: dict[str, tuple[str, ...]] = {
    "head": ("head",),
    "recurrent": ("rnn",),
    "both": ("rnn", "head"),
}


@contextmanager
def captured(layer: nn.Module) -> Iterator[list[Tensor]]:
    """Collect what a layer is given, call by call."""
    seen: list[Tensor] = []
    hook = layer.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    try:
        yield seen
    finally:
        hook.remove()


@contextmanager
def keys_of(model: PathModel, layer: Layer = "head") -> Iterator[Callable[..., Tensor]]:
    """Yield a function that gives, after one call of the model, the layers' inputs [*shape, D].

    "head" is the state from which the next city is predicted, "recurrent" what the recurrent cells
    are given (the city and the target, nothing of the way so far), "both" the two side by side.

    Raises:
        ValueError: the model has no such layer, or does not call it once for all steps.
    """
    if layer not in MODULES:
        raise ValueError(f"a key is taken at {', '.join(MODULES)}, not {layer!r}")
    parts = [getattr(model, name, None) for name in MODULES[layer]]
    if not all(isinstance(part, nn.Module) for part in parts):
        name = MODULES[layer][-1 if layer == "head" else 0]
        raise ValueError(f"{type(model).__name__} has no {name} whose input could be a key")
    with ExitStack() as stack:
        seen = [stack.enter_context(captured(part)) for part in parts]

        def given(*shape: int) -> Tensor:
            steps = torch.Size(shape).numel()
            if any(len(s) != 1 or s[0].shape[:-1].numel() != steps for s in seen):
                name = type(model).__name__
                raise ValueError(f"{name} does not call its {layer} layer once for all steps")
            return torch.cat([s[0].reshape(*shape, -1) for s in seen], -1)

        yield given


def states_of(model: PathModel, batch: Batch, layer: Layer = "head") -> tuple[Tensor, Tensor]:
    """Return a model's states [B, T, D] at a layer, see `keys_of`, and its logits [B, T, V]."""
    with keys_of(model, layer) as given:
        logits = model(batch)
    return given(*batch.cities.shape), logits
