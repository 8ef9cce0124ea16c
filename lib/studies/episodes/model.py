"""A memory with inputs and outputs for episodes, and how it is trained and asked."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from citypaths.models.base import Network, nats, register
from citypaths.training.loop import TrainSettings
from studies.episodes.atlas import Atlas
from studies.episodes.core import Memory, State
from studies.episodes.networks import make_memory
from studies.episodes.task import KINDS, Steps, Task, draw_episodes, varied


@register("episodes", writes=False)
class EpisodeModel(Network):
    """A network that reads the steps of episodes through a `Memory` and says symbols.

    Args:
        atlas: not looked at; maps are new in each episode. kind: of memory, in `MEMORIES`.
        width: of the vectors that the memory reads and writes. symbols: names of cities.
        more: settings of the memory.
    """

    def __init__(
        self, atlas: Atlas | None, kind: str, width: int = 64, symbols: int = 32, **more: Any
    ) -> None:
        super().__init__()
        self.cities = symbols
        self.memory: Memory = make_memory(kind, width, **more)
        self.kinds = nn.Embedding(KINDS, width)
        self.here, self.onward, self.goal = (nn.Embedding(symbols + 1, width) for _ in range(3))
        self.km = nn.Linear(1, width, bias=False)
        self.head = nn.Linear(width, symbols)
        for table in (self.kinds, self.here, self.onward, self.goal):
            nn.init.normal_(table.weight, std=0.5)

    def inputs(self, steps: Steps) -> Tensor:
        """Return vectors [B, T, width] for steps."""
        named = self.here(steps.here) + self.onward(steps.onward) + self.goal(steps.goal)
        return self.kinds(steps.kind) + named + self.km(steps.km[..., None])

    def read(self, steps: Steps, state: State | None = None) -> tuple[Tensor, State]:
        """Return logits [B, T, symbols] and the state after the steps."""
        out, state = self.memory(self.inputs(steps), state)
        return self.head(out), state

    def forward(self, batch: Steps, loops: int | None = None) -> Tensor:
        """Return logits [B, T, symbols]."""
        return self.read(batch)[0]

    def loss(self, batch: Steps, loops: int | None = None) -> Tensor:
        """Return nats an answer, with what the memory wants to learn beside."""
        return nats(self(batch), batch) + getattr(self.memory, "reconstruction", 0.0)

    def flops_per_step(self, loops: int | None = None) -> int:
        """Return the operations of one step, with a full memory."""
        return self.memory.flops_per_step() + 2 * self.head.weight.numel()


@dataclass(frozen=True)
class Recipe:
    """What decides the episodes of a training."""

    values: dict[str, Any]

    def to_json(self) -> dict[str, Any]:
        """Return the values."""
        return self.values


@dataclass(frozen=True, eq=False)
class Lessons:
    """Endless training episodes, in the place of a dataset for `citypaths.training.loop.train`.

    Maps grow: the largest of a step rises from `least` cities to the task's over the first half of
    the steps. Each batch draws its dials: cities up to that, edges or solved paths, closures and
    delay up to the task's. Episodes are a function of (seed, step).

    Attributes:
        batch: episodes a step.
    """

    task: Task
    atlas: Atlas
    batch: int = 32
    least: int = 4
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def graph(self) -> Atlas:
        """What `build` is given."""
        return self.atlas

    @property
    def recipe(self) -> Recipe:
        """What decides the episodes."""
        values = {"task": asdict(self.task), "batch": self.batch, "least": self.least}
        return Recipe(values | {"graph": self.atlas.fingerprint})

    def batches(self, settings: TrainSettings, device: torch.device | str) -> LessonBatches:
        """Return the batches of a training."""
        return LessonBatches(self, settings.steps, settings.seed, device)


class LessonBatches:
    """Batches of `Lessons`; `position` is all that a resumed training needs."""

    def __init__(self, dataset: Lessons, steps: int, seed: int, device: torch.device | str) -> None:
        self.dataset, self.steps, self.seed, self.device = dataset, steps, seed, device
        self.position = (0,)

    def task(self, step: int, random: np.random.Generator) -> Task:
        """Return the task of a step, its dials as they were drawn."""
        task, least = self.dataset.task, min(self.dataset.least, self.dataset.task.cities)
        risen = min(1.0, 2 * (step + 1) / self.steps)
        most = least + round(risen * (task.cities - least))
        cities = int(random.integers(least, most + 1))
        closures = int(random.integers(0, task.closures + 1) * random.integers(2))
        dials = {"closures": closures * cities // task.cities, "cities": cities}
        dials |= {"delay": int(random.integers(0, task.delay + 1))}
        dials |= {"show": ("edges", "paths")[random.integers(2)]}
        return varied(task, **dials, shown=int(random.integers(cities // 2, 2 * cities + 1)))

    def __iter__(self) -> Iterator[Steps]:
        while True:
            step = self.position[0]
            random = np.random.default_rng([self.seed, step])
            self.position = (step + 1,)
            task = self.task(step, random)
            yield draw_episodes(task, self.dataset.atlas, self.dataset.batch, random).steps.to(
                self.device
            )
