"""City Paths: shortest paths between real cities as a laboratory for sequence models."""

import os

# Threads that spin while they wait make a shared two-core machine 10 to 20 times slower; this is
# read when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

__version__ = "0.1.0"
