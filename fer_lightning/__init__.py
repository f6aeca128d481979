"""Class-imbalance experiments on FER-2013 with PyTorch Lightning and Hydra."""

import os

__version__ = "0.1.0"

# Before anything imports torch: idle OpenMP threads that spin starve the other processes of a shared machine.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
