"""The memories by name, a network that reads episodes through one, and endless lessons for it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from citypaths.models.base import Network, nats, register
from citypaths.training.loop import TrainSettings
from studies.episodes.associative import AssociativeLSTM, Plastic
from studies.episodes.attention import Transformer
from studies.episodes.dnc import DNC
from studies.episodes.maps import Atlas
from studies.episodes.ntm import NTM
from studies.episodes.task import KINDS, Steps, Task, draw_episodes
from studies.episodes.transformer_xl import Compressive, Memorizing, TransformerXL
from studies.memory.streams import LSTM, Memory, State

MEMORIES: dict[str, type[Memory]] = {
    "lstm": LSTM,
    "transformer": Transformer,
    "xl": TransformerXL,
    "compressive": Compressive,
    "memorizing": Memorizing,
    "ntm": NTM,
    "dnc": DNC,
    "associative": AssociativeLSTM,
    "plastic": Plastic,
}


def make_memory(name: str, width: int, **settings: Any) -> Memory:
    """Build a memory by its name; a KeyError lists the known ones."""
    if name not in MEMORIES:
        raise KeyError(f"no memory {name!r}; there are: {', '.join(sorted(MEMORIES))}")
    return MEMORIES[name](width, **settings)


@register("episodes", writes=False)
class EpisodeModel(Network):
    """A network that reads the steps of episodes through a `Memory` and says symbols.

    The atlas is not looked at: maps are new in each episode. `kind` is in `MEMORIES`; `width` and
    `more` are the memory's.
    """

    def __init__(
        self, atlas: Atlas | None, kind: str, width: int = 64, symbols: int = 32, **more: Any
    ) -> None:
        super().__init__()
        self.cities = symbols
        self.memory = make_memory(kind, width, **more)
        self.kinds = nn.Embedding(KINDS, width)
        self.here, self.onward, self.goal = (nn.Embedding(symbols + 1, width) for _ in range(3))
        self.km = nn.Linear(1, width, bias=False)
        self.head = nn.Linear(width, symbols)
        for table in (self.kinds, self.here, self.onward, self.goal):
            nn.init.normal_(table.weight, std=0.5)

    def forward(self, steps: Steps, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits [B, T, symbols] and the state after the steps."""
        named = self.here(steps.here) + self.onward(steps.onward) + self.goal(steps.goal)
        inputs = self.kinds(steps.kind) + named + self.km(steps.km[..., None])
        out, state = self.memory(inputs, state)
        return self.head(out), state

    def loss(self, batch: Steps, loops: int | None = None) -> Tensor:
        """Return nats an answer, with what the memory wants to learn beside."""
        return nats(self(batch)[0], batch) + getattr(self.memory, "reconstruction", 0.0)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of one step, with a full memory."""
        return self.memory.flops_per_step() + 2 * self.head.weight.numel()


@dataclass(frozen=True, eq=False)
class Lessons:
    """Endless training episodes on maps of an atlas, `graph`, in the place of a dataset.

    Maps grow from `least` cities to the task's over the first half of the steps. Each batch draws
    its dials: cities up to that, edges or solved paths, closures and delay up to the task's.
    Episodes are a function of (seed, step).
    """

    task: Task
    graph: Atlas
    batch: int = 32
    least: int = 4

    @property
    def recipe(self) -> Lessons:
        """What decides the episodes."""
        return self

    def to_json(self) -> dict[str, Any]:
        """Return all that decides the episodes."""
        values = {"task": asdict(self.task), "batch": self.batch, "least": self.least}
        return values | {"graph": self.graph.fingerprint}

    def batches(self, settings: TrainSettings, device: torch.device | str) -> LessonBatches:
        """Return the batches of a training."""
        return LessonBatches(self, settings, device)

    def drawn(self, risen: float, random: np.random.Generator) -> Task:
        """Return the task of a batch, its dials drawn; `risen`: how far maps have grown, 0..1."""
        task, least = self.task, min(self.least, self.task.cities)
        most = least + round(risen * (task.cities - least))
        cities = int(random.integers(least, most + 1))
        closures = int(random.integers(0, task.closures + 1) * random.integers(2))
        return task.varied(
            closures=closures * cities // task.cities,
            cities=cities,
            delay=int(random.integers(0, task.delay + 1)),
            show=("edges", "paths")[random.integers(2)],
            shown=int(random.integers(cities // 2, 2 * cities + 1)),
        )


@dataclass(eq=False)
class LessonBatches:
    """Batches of `Lessons`; `position` is all that a resumed training needs."""

    dataset: Lessons
    settings: TrainSettings
    device: torch.device | str
    position: tuple[int] = (0,)

    def __iter__(self) -> Iterator[Steps]:
        lessons = self.dataset
        while True:
            step = self.position[0]
            random = np.random.default_rng([self.settings.seed, step])
            self.position = (step + 1,)
            task = lessons.drawn(min(1.0, 2 * (step + 1) / self.settings.steps), random)
            yield draw_episodes(task, lessons.graph, lessons.batch, random).steps.to(self.device)
