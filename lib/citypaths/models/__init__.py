"""Models: `build(name, graph, **settings)` makes any registered `PathModel`."""

from citypaths.models.base import Network, PathModel, build, register, registered
from citypaths.models.memoryless import Memoryless
from citypaths.models.rnn import RNN
from citypaths.models.transformer import SequenceModel, Transformer

__all__ = [
    "RNN",
    "Memoryless",
    "Network",
    "PathModel",
    "SequenceModel",
    "Transformer",
    "build",
    "register",
    "registered",
]
