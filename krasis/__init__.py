"""krasis runs mixture-of-experts language models that are far larger than the GPU."""

import os
from importlib.metadata import version

__version__ = version("krasis")

# Torch's idle threads would spin on the cores the native kernels need, which makes decode several times slower.
# OpenMP reads this once, when torch is first imported.
os.environ.setdefault("OMP_WAIT_POLICY", "passive")
