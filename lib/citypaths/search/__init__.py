"""Search: from a model and queries to paths, with the compute that each query spent."""

from citypaths.search.blind import blind
from citypaths.search.budget import Budget
from citypaths.search.decode import Moves, beam, greedy, sample
from citypaths.search.evolution import evolve, generations_of
from citypaths.search.parts import Interrupted, in_parts

__all__ = [
    "Budget",
    "Interrupted",
    "Moves",
    "beam",
    "blind",
    "evolve",
    "generations_of",
    "greedy",
    "in_parts",
    "sample",
]
