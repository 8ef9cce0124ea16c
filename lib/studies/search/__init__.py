"""Search: trees, evolution, learned verifiers and values, and their study (notebook 05).

Importing it registers the networks "judge", "planner", "reach", "reverse" and "value".
"""

from studies.search import energies, pairs, worlds

__all__ = ["energies", "pairs", "worlds"]
