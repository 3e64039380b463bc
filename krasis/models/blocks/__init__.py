"""Blocks that families share, in plain torch, one idea a file. Activations are float32 [tokens, ...]."""
