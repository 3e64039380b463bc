"""krasis runs mixture-of-experts language models that are far larger than the GPU."""

from importlib.metadata import version

__version__ = version("krasis")
