"""Decoding: from a model and queries to paths, with the compute that each query spent."""

from citypaths.decoding.attempts import Attempts, best_of, draw, expected_best, stitched
from citypaths.decoding.decode import Interrupted, beam, greedy, in_parts, sample
from citypaths.decoding.scorers import LOST, Likelihood, PathLength, Scorer, Sum, Value

__all__ = [
    "LOST",
    "Attempts",
    "Interrupted",
    "Likelihood",
    "PathLength",
    "Scorer",
    "Sum",
    "Value",
    "beam",
    "best_of",
    "draw",
    "expected_best",
    "greedy",
    "in_parts",
    "sample",
    "stitched",
]
