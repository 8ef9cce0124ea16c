"""City Paths: shortest paths between real cities as a laboratory for sequence models."""

__version__ = "0.1.0"
