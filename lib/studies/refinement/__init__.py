"""Iterative refinement: whole paths at once, then better ones round by round (notebook 06).

Importing it registers the networks "masked" and "conductor".
"""

from studies.refinement.conduct import conduct, repair
from studies.refinement.conductor import Conductor
from studies.refinement.masked import Masked
from studies.refinement.resample import resample_segments
from studies.refinement.rounds import Plan, refine_masked

__all__ = [
    "Conductor",
    "Masked",
    "Plan",
    "conduct",
    "refine_masked",
    "repair",
    "resample_segments",
]
