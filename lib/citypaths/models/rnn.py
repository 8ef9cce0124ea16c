"""GRU and LSTM baselines (Cho et al. 2014; Hochreiter and Schmidhuber 1997)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor, nn

from citypaths.data.batches import Batch
from citypaths.map.graph import CityGraph
from citypaths.models.base import (
    CityInput,
    Endpoints,
    Head,
    PathModel,
    register,
    taken,
)

# Initial recurrent weights [width, width] of the candidate gate, by name.
RECURRENT: dict[str, Callable[[int], Tensor]] = {
    "orthogonal": lambda width: nn.init.orthogonal_(torch.empty(width, width))
}


@register("rnn")
class RNN(PathModel):
    """A GRU or LSTM over the cities of the path so far.

    Args:
        graph: decides the vocabulary and the coordinates.
        cell: "gru" or "lstm". width: hidden units.
        loops: inner steps a city: the cells see its input so often before the head reads them.
        softmaxes: mixture components of the head. tied: share output and input vectors.
        recurrent: of `RECURRENT`, how the candidate gate begins.
        coordinates, endpoints: see `CityInput`.
    """

    def __init__(
        self,
        graph: CityGraph,
        *,
        cell: Literal["gru", "lstm"] = "gru",
        width: int = 128,
        loops: int = 1,
        softmaxes: int = 1,
        tied: bool = False,
        recurrent: str = "orthogonal",
        coordinates: str = "none",
        endpoints: Endpoints = "every_step",
    ) -> None:
        super().__init__()
        if cell not in ("gru", "lstm"):
            raise ValueError(f"cell is gru or lstm, not {cell!r}")
        if recurrent not in RECURRENT:
            raise ValueError(f"recurrent is {', '.join(RECURRENT)}, not {recurrent!r}")
        self.cities, self.cell, self.width, self.loops = len(graph), cell, width, loops
        self.inputs = CityInput(graph, width, coordinates=coordinates, endpoints=endpoints)
        kind = nn.GRU if cell == "gru" else nn.LSTM
        self.rnn = kind(width, width, batch_first=True)
        self.head = Head(width, len(graph), softmaxes, self.inputs.embedding if tied else None)
        self._initialise(recurrent)

    @torch.no_grad()
    def _initialise(self, recurrent: str) -> None:
        gates = 3 if self.cell == "gru" else 4
        blocks = [RECURRENT["orthogonal"](self.width) for _ in range(gates)]
        candidate = 2  # GRU: reset, update, new; LSTM: input, forget, cell, output
        blocks[candidate] = RECURRENT[recurrent](self.width)
        self.rnn.weight_hh_l0.copy_(torch.cat(blocks))
        for bias in (self.rnn.bias_ih_l0, self.rnn.bias_hh_l0):
            nn.init.zeros_(bias)
        if self.cell == "lstm":  # Jozefowicz et al. 2015: start by remembering
            self.rnn.bias_ih_l0[self.width : 2 * self.width] = 1.0

    def forward(self, batch: Batch, loops: int | None = None) -> Tensor:
        """Return logits [B, T, V]; `loops` are inner steps a city."""
        state = self.start(batch.source, batch.target, loops)
        inputs = self.inputs(batch.cities, state["goal"][:, None])
        hidden, _ = self._run(inputs, state["memory"], state["loops"])
        return self.head(hidden)

    def _run(self, inputs: Tensor, memory, loops: int) -> tuple[Tensor, Any]:
        """Run the cells over inputs [B, T, width], `loops` times each; return states [B, T, .]."""
        if loops == 1:
            return self.rnn(inputs, memory)
        hidden, memory = self.rnn(inputs.repeat_interleave(loops, 1), memory)
        return hidden[:, loops - 1 :: loops], memory

    def start(self, source: Tensor, target: Tensor, loops: int | None = None) -> dict:
        """Return the goal vectors and the recurrent state before the source is seen."""
        goal, loops = self.inputs.goal(target), taken(loops, self.loops)
        memory = None
        if not self.inputs.every_step:
            _, memory = self._run(goal[:, None], None, loops)
        return {"goal": goal, "memory": memory, "loops": loops}

    def step(self, city: Tensor, state: dict) -> tuple[Tensor, dict]:
        """Advance one city; see `PathModel.step`."""
        inputs = self.inputs(city, state["goal"])
        hidden, memory = self._run(inputs[:, None], state["memory"], state["loops"])
        return self.head(hidden[:, 0]), state | {"memory": memory}

    def reorder(self, state: dict, index: Tensor) -> dict:
        """Take rows `index` of the state."""
        memory = state["memory"]
        if isinstance(memory, tuple):
            memory = tuple(m[:, index] for m in memory)
        elif memory is not None:
            memory = memory[:, index]
        return state | {"goal": state["goal"][index], "memory": memory}

    @property
    def _cell_flops(self) -> int:
        gates = 3 if self.cell == "gru" else 4
        return 2 * gates * self.width * 2 * self.width

    def flops_per_step(self, loops: int | None = None) -> int:
        """Matrix products of the input, the cells and the head."""
        cells = taken(loops, self.loops) * self._cell_flops
        return self.inputs.flops + cells + self.head.flops

    @property
    def flops_to_start(self) -> int:
        """The target's projection, and one step of the cells where it is a prefix."""
        prefix = 0 if self.inputs.every_step else self.loops * self._cell_flops
        return self.inputs.goal_flops + prefix
