"""Run a pack: place its weights, keep a sequence's state, generate and measure."""
