"""Computing longer: recurrent arms, their study and figures (notebook 04).

Importing it registers the models "looped", "top_recurrent", "act", "ponder" and "feedback".
"""

from studies.recurrence.feedback import FeedbackTransformer
from studies.recurrence.looped import ACT, LoopedTransformer, PonderNet, TopRecurrent

__all__ = [
    "ACT",
    "FeedbackTransformer",
    "LoopedTransformer",
    "PonderNet",
    "TopRecurrent",
]
