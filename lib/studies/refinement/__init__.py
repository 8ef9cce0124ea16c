"""Iterative refinement: whole paths at once, then better ones round by round (notebook 06).

Importing it registers the networks "masked" and "conductor".
"""

from studies.refinement.conductor import Conductor, conduct, repair
from studies.refinement.masked import Masked, refine_masked
from studies.refinement.resample import resample_segments

__all__ = [
    "Conductor",
    "Masked",
    "conduct",
    "refine_masked",
    "repair",
    "resample_segments",
]
