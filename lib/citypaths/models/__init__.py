"""Models: `build(name, graph, **settings)` makes any registered `PathModel`."""

from citypaths.models.base import Network, PathModel, build, register, registered
from citypaths.models.feedback import FeedbackTransformer
from citypaths.models.halting import ACT, PonderNet
from citypaths.models.looped import LoopedTransformer, TopRecurrent
from citypaths.models.planner import Planner
from citypaths.models.rnn import RNN
from citypaths.models.sequence import SequenceModel
from citypaths.models.transformer import Transformer

__all__ = [
    "ACT",
    "RNN",
    "FeedbackTransformer",
    "LoopedTransformer",
    "Network",
    "PathModel",
    "Planner",
    "PonderNet",
    "SequenceModel",
    "TopRecurrent",
    "Transformer",
    "build",
    "register",
    "registered",
]
