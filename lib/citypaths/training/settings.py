"""How to train: everything but the model and the data."""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Literal

Schedule = Literal["cosine", "constant-decay"]
WARM_SHARE = 0.05  # of the steps, before the cosine
WARM_STEPS, DECAY_SHARE = 100, 0.15  # of "constant-decay": a warm-up alike for every length


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps, batch_tokens: length of the run, padded tokens a batch.
        learning_rate: the highest, after a warm-up.
        schedule: "cosine" falls to 0 after the warm-up. "constant-decay" stays, and falls in a
            line to 0 over the last 15 % of the steps; until there, runs of any length are the same
            (Hägele et al. 2024).
        evaluations: how often to evaluate, the last at the end: spaced geometrically, or, for
            "constant-decay" and more than one, at 25 steps and each time the steps have doubled.
        hindsight: share of paths cut at random to a sub-path, itself a shortest path.
        own_input: probability of feeding the model its own prediction (observational dropout).
        save_seconds: between checkpoints.
        compile, bf16: torch.compile and bfloat16 autocast; None means on CUDA only.
    """

    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 8e-3
    schedule: Schedule = "cosine"
    seed: int = 0
    evaluations: int = 8
    hindsight: float = 0.0
    own_input: float = 0.0
    save_seconds: float = 20.0
    compile: bool | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training takes at least one step, not {self.steps}")
        if self.schedule not in ("cosine", "constant-decay"):
            raise ValueError(f"schedule is cosine or constant-decay, not {self.schedule!r}")

    @property
    def decisive(self) -> dict[str, Any]:
        """Return what decides the outcome: all but how often it is saved."""
        return {k: v for k, v in asdict(self).items() if k != "save_seconds"}

    @property
    def stable_steps(self) -> int:
        """Steps that a "constant-decay" run shares with longer ones; 0 for "cosine"."""
        decay = max(1, round(DECAY_SHARE * self.steps))
        return self.steps - decay if self.schedule == "constant-decay" else 0

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        if self.schedule == "constant-decay":
            warm = min(1.0, (step + 1) / WARM_STEPS)
            left = (self.steps - step) / (self.steps - self.stable_steps + 1)
            return self.learning_rate * warm * min(1.0, left)
        warm = max(1, round(WARM_SHARE * self.steps))
        if step < warm:
            return self.learning_rate * (step + 1) / warm
        return (
            self.learning_rate
            * 0.5
            * (1 + math.cos(math.pi * (step - warm) / (self.steps - warm + 1)))
        )

    def evaluation_steps(self) -> list[int]:
        """Return the numbers of finished steps after which to evaluate."""
        first, n = min(25, self.steps), max(1, self.evaluations)
        if self.schedule == "constant-decay":
            doubled = [25 * 2**i for i in range(self.steps.bit_length())] if n > 1 else []
            return sorted({self.steps, *(step for step in doubled if step < self.steps)})
        ratio = (self.steps / first) ** (1 / max(1, n - 1))
        return sorted({self.steps, *(round(first * ratio**i) for i in range(n - 1))})
