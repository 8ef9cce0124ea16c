"""Computing longer: recurrent arms, their study and figures (notebook 04).

Importing it registers the models "looped", "top_recurrent", "act", "ponder" and "feedback".
"""

from studies.recurrence.feedback import FeedbackTransformer
from studies.recurrence.halting import ACT, PonderNet
from studies.recurrence.looped import LoopedTransformer, TopRecurrent

__all__ = [
    "ACT",
    "FeedbackTransformer",
    "LoopedTransformer",
    "PonderNet",
    "TopRecurrent",
]
