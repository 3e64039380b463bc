"""Packs of real shape with made-up weights, to measure where no checkpoint fits."""
