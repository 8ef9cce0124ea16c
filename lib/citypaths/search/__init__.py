"""Search: from a model and queries to paths, with the compute that each query spent."""

from citypaths.search.budget import Budget
from citypaths.search.decode import Moves, beam, greedy, sample
from citypaths.search.heuristic import a_star
from citypaths.search.parts import Interrupted, in_parts

__all__ = ["Budget", "Interrupted", "Moves", "a_star", "beam", "greedy", "in_parts", "sample"]
