"""Ragged arrays of paths: city ids end to end, and where each path begins."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

PAD = -1


@dataclass(frozen=True, eq=False)
class Paths:
    """Paths as ragged token arrays.

    Attributes:
        tokens: city ids [total], any integer type.
        offsets: int64 [paths + 1]; path i is tokens[offsets[i]:offsets[i + 1]], source first.
    """

    tokens: np.ndarray
    offsets: np.ndarray

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def __getitem__(self, i: int) -> np.ndarray:
        row = range(len(self))[i]
        return self.tokens[self.offsets[row] : self.offsets[row + 1]]

    def __iter__(self) -> Iterator[np.ndarray]:
        return (self[i] for i in range(len(self)))

    @property
    def lengths(self) -> np.ndarray:
        """Cities per path, int64 [paths]; hops are one fewer."""
        return np.diff(self.offsets)

    def hops(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Return every hop in order: the path it belongs to and its two cities, int64 [hops]."""
        path, tokens = np.repeat(np.arange(len(self)), self.lengths), self.tokens.astype(np.int64)
        inner = path[:-1] == path[1:]
        return path[:-1][inner], tokens[:-1][inner], tokens[1:][inner]

    def leads(self, source: np.ndarray, target: np.ndarray) -> np.ndarray:
        """Return whether each path goes from its source to its target, bool [paths]."""
        tokens = np.append(self.tokens, PAD)  # where an empty path is the last
        first, last = tokens[self.offsets[:-1]], tokens[self.offsets[1:] - 1]
        return (self.lengths > 0) & (first == source) & (last == target)

    @classmethod
    def from_lists(cls, paths: Sequence[Sequence[int]]) -> Paths:
        """Build from a sequence of id sequences."""
        offsets = np.concatenate([[0], np.cumsum([len(p) for p in paths])]).astype(np.int64)
        tokens = np.concatenate([np.asarray(p, np.int64) for p in paths]) if len(paths) else []
        return cls(np.asarray(tokens, np.int64), offsets)

    @classmethod
    def from_padded(cls, padded: np.ndarray, lengths: np.ndarray) -> Paths:
        """Build from [paths, longest] ids and the number of valid ones in each row."""
        keep = np.arange(padded.shape[1])[None, :] < np.asarray(lengths)[:, None]
        return cls(padded[keep], np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64))

    def padded(self) -> np.ndarray:
        """Return [paths, longest] int64 ids, with -1 after the end."""
        longest = int(self.lengths.max(initial=0))
        out = np.full((len(self), longest), PAD, np.int64)
        out[np.arange(longest)[None, :] < self.lengths[:, None]] = self.tokens
        return out

    def take(self, rows: np.ndarray) -> Paths:
        """Return the paths at `rows` (positions or a boolean mask), in that order."""
        rows = (
            np.flatnonzero(rows) if np.asarray(rows).dtype == bool else np.asarray(rows, np.int64)
        )
        lengths = self.lengths[rows]
        offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
        at = np.arange(offsets[-1]) - np.repeat(offsets[:-1] - self.offsets[rows], lengths)
        return Paths(self.tokens[at], offsets)

    @classmethod
    def concatenate(cls, parts: Sequence[Paths]) -> Paths:
        """Join several into one."""
        lengths = np.concatenate([np.zeros(1, np.int64), *(p.lengths for p in parts)])
        tokens = np.concatenate([p.tokens for p in parts]) if parts else np.zeros(0, np.int64)
        return cls(tokens, np.cumsum(lengths))


@dataclass(frozen=True, eq=False)
class Found:
    """What a method found, and what it spent.

    Attributes:
        paths: one a query. flops, lookups, expansions: float64 [queries]. seconds: of the call.
    """

    paths: Paths
    flops: np.ndarray
    lookups: np.ndarray
    expansions: np.ndarray
    seconds: float

    @classmethod
    def concatenate(cls, parts: Sequence[Found]) -> Found:
        """Join what was found for several sets of queries, in order."""
        costs = (
            np.concatenate([np.zeros(0), *(getattr(part, name) for part in parts)])
            for name in ("flops", "lookups", "expansions")
        )
        seconds = sum(part.seconds for part in parts)
        return cls(Paths.concatenate([part.paths for part in parts]), *costs, seconds)

    def cost(self) -> dict[str, float]:
        """Return mean cost a query under the ledger's column names."""
        n = max(1, len(self.paths))
        names = {
            "inference_flops": self.flops,
            "lookups": self.lookups,
            "expansions": self.expansions,
        }
        means = {name: float(np.sum(values)) / n for name, values in names.items()}
        return means | {"seconds_per_query": self.seconds / n}
