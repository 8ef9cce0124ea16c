"""Models: `build(name, graph, **settings)` makes any registered `PathModel`."""

from citypaths.models.base import PathModel, build, register, registered
from citypaths.models.rnn import RNN

__all__ = ["RNN", "PathModel", "build", "register", "registered"]
