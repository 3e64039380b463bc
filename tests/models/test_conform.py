"""A pack whose manifest is whole but whose model spec asks for something else is refused before it runs."""

import shutil

import msgspec
import pytest

from krasis.errors import InputError
from krasis.pack import manifest as manifests
from krasis.pack.reader import Pack


@pytest.fixture
def respecified(demo_pack, tmp_path):
    """Changes of the spec -> a copy of the demo pack that claims them, under a root hash that matches."""

    def make(**changes):
        path = shutil.copytree(demo_pack(), tmp_path / "pack")
        manifest = Pack(path).manifest
        changed = msgspec.structs.replace(manifest, model=manifest.model | changes)
        (path / manifests.FILE_NAME).write_bytes(manifests.encode(changed))
        return path

    return make


@pytest.mark.parametrize(
    "changes",
    [
        {"hidden_size": 512},
        {"vocab_size": 4097},
        {"num_heads": 4},
        {"num_kv_heads": 8},
        {"num_experts": 17},
        {"num_experts": 15},
        {"expert_size": 64},
        {"num_layers": 5},
        {"dense_layers": [1], "intermediate_size": 512},
    ],
    ids=str,
)
def test_a_spec_the_weights_contradict(changes, respecified, open_engine):
    with pytest.raises(InputError, match="model spec asks for"):
        open_engine(respecified(**changes), "reference", context=8)


@pytest.mark.parametrize(
    "changes",
    [
        {"model_type": "llama"},
        {"head_dim": 0},
        {"norm_eps": -1.0},
        {"rope": {"theta": "10000"}},
        {"rope": {"theta": 1e4, "partial": 1.5}},
        {"more": 1},
    ],
    ids=str,
)
def test_a_spec_that_is_none(changes, respecified, open_engine):
    with pytest.raises(InputError, match=r"model spec is not valid|unknown model family"):
        open_engine(respecified(**changes), "reference", context=8)
