"""How to train: everything but the model and the data."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class TrainSettings:
    """How to train.

    Attributes:
        steps, batch_tokens: length of the run, padded tokens a batch.
        learning_rate: peak, after `warmup` (share of the steps); cosine to 0.
        weight_decay, clip: AdamW's decoupled decay, largest gradient norm.
        evaluations: how often to evaluate, spaced geometrically, the last at the end.
        patience: stop after so many evaluations without a better validation loss (0: never).
        hindsight: share of paths cut at random to a sub-path, itself a shortest path.
        own_input: probability of feeding the model its own prediction (observational dropout).
        compile, bf16: torch.compile and bfloat16 autocast; None means on CUDA only.
    """

    steps: int
    batch_tokens: int = 2048
    learning_rate: float = 8e-3
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    seed: int = 0
    evaluations: int = 8
    patience: int = 0
    hindsight: float = 0.0
    own_input: float = 0.0
    save_seconds: float = 20.0
    compile: bool | None = None
    bf16: bool | None = None

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise ValueError(f"training takes at least one step, not {self.steps}")

    def rate(self, step: int) -> float:
        """Return the learning rate of a step."""
        warm = max(1, round(self.warmup * self.steps))
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
        ratio = (self.steps / first) ** (1 / max(1, n - 1))
        return sorted({self.steps, *(round(first * ratio**i) for i in range(n - 1))})
