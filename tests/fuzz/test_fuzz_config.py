"""config.json: whatever it says, a spec comes out that can be stored and used, or an InputError, and at once."""

import json
from itertools import islice
from pathlib import Path

import msgspec
import pytest
from budget import budget
from hypothesis import given
from mutate import mutated

from krasis import models
from krasis.convert import encodings
from krasis.errors import InputError
from krasis.models.blocks.rope import Rope
from krasis.models.config import MOST
from krasis.models.family import ModelSpec

FOLDERS = Path(__file__).parents[1] / "models/configs", Path(__file__).parents[2] / "examples/models"
CONFIGS = [json.loads(path.read_text()) for path in (*FOLDERS[0].glob("*.json"), *FOLDERS[1].glob("*/config.json"))]
DEEPSEEK_V3 = next(config for config in CONFIGS if config["model_type"] == "deepseek_v2") | {
    "model_type": "deepseek_v3",
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "n_group": 8,
    "topk_group": 4,
}
CONFIGS.append(DEEPSEEK_V3)


def parsed(config):
    """(family, spec), or None where the config is refused as it should be."""
    try:
        family = models.get(str(config.get("model_type")))
        encodings.of(config)
        return family, family.parse_config({key: value for key, value in config.items() if key != encodings.KEY})
    except InputError:
        return None


def check_usable(family, spec: ModelSpec):
    """The spec survives a manifest, and what is made of it is bounded by what its layers have."""
    assert msgspec.json.decode(msgspec.json.encode(spec), type=family.Spec) == spec
    for _, groups in islice(family.files(spec), 3):
        assert all(group.records for group in groups)
        shapes = [weight.shape for group in groups for record in group.records for weight in record]
        assert all(size > 0 for shape in shapes for size in shape)
    assert len(family.states(spec)) == spec.num_layers >= len(family.moe_layers(spec))
    assert Rope(64, spec.rope).angles(0, 2)[0].isfinite().all()


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: config["model_type"])
def test_the_originals_are_read(config):
    check_usable(*parsed(config))


@budget(400)
@given(mutated(CONFIGS))
def test_a_changed_config_is_refused_or_usable(config):
    if found := parsed(config):
        check_usable(*found)


# DeepSeek knows head_dim by other names and skips it.
COUNTS = [(c, k) for c in CONFIGS for k in MOST if k in c and ("deepseek" not in c["model_type"] or k != "head_dim")]


@pytest.mark.parametrize(("config", "key"), COUNTS, ids=lambda value: value if isinstance(value, str) else "")
@pytest.mark.parametrize("value", [1 << 31, (1 << 31) - 1, 1 << 62, 10**30, None], ids=str)
def test_counts_beyond_any_model_are_refused_by_name(config, key, value):
    family = models.get(config["model_type"])
    tree = config | {key: MOST[key] + 1 if value is None else value}
    tree.pop(encodings.KEY, None)
    with pytest.raises(InputError, match=key):
        family.parse_config(tree)
