"""The four target models at real size, without weights."""

import functools
import json
from pathlib import Path

import numpy as np

from krasis import models
from krasis.heat.routing import Routing
from krasis.pack.manifest import Settings
from krasis.runtime.placement.outline import outline
from krasis.synth import popularity
from krasis.synth.pack import Recipe, Synthesis

CONFIGS = Path(__file__).parents[1] / "models/configs"
MODELS = sorted(path.stem for path in CONFIGS.glob("*.json"))


@functools.cache
def manifest(model, bits=4):
    """The manifest of a pack, dense matrices in 8 bits, groups of 128."""
    config = json.loads((CONFIGS / f"{model}.json").read_text(encoding="utf-8"))
    settings = Settings(expert_bits=bits, dense_bits=8, group_size=128, layouts=("marlin",))
    # Not MXFP4 of gpt-oss' configuration, so that all have one codec.
    return Synthesis(config, Recipe(settings, f"int{bits}")).manifest()


@functools.cache
def sizes(model, bits=4):
    return outline(manifest(model, bits))


def skewed(model, skew=0.9):
    """A profile of experts as popular as `synth --skew` makes them, in another order in every layer."""
    found = sizes(model)
    layers = {i: layer.experts.count for i, layer in enumerate(found.layers) if layer.experts}
    law, rng = popularity.routing(found.spec, layers, skew), np.random.default_rng(0)
    counts = {layer: rng.permutation(count) for layer, count in law.counts.items()}
    assert layers == models.get(found.spec.__struct_config__.tag).moe_layers(found.spec)
    return Routing(law.tokens, counts, law.weights)
