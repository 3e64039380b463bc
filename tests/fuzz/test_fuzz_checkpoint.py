"""Checkpoints from strangers: each is converted to a sound pack or refused as bad input, and nothing else."""

import contextlib
import itertools
import json
import os
import shutil
import struct

import pytest
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from mutate import EDGES, ODD, mutated, spoilt
from small_checkpoint import CONFIG, DATA, HEADER, INDEX, SHARD, SINGLE, WEIGHT_MAP, joined, write

from krasis.convert import checkpoint, store
from krasis.convert.checkpoint import Checkpoint
from krasis.convert.pipeline import Conversion
from krasis.errors import InputError
from krasis.pack.manifest import Settings
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack

SETTINGS = Settings(expert_bits=4, dense_bits=8, group_size=32, layouts=("cpu",))
DTYPES = ["BOOL", "U8", "I8", "I16", "F16", "BF16", "F32", "F64", "I64", "F8_E4M3", "F4", "bf16", "?"]

numbers = st.integers() | st.sampled_from([*EDGES, len(DATA), len(DATA) + 1, 2**61, 2**62])
header_values = (
    numbers
    | st.lists(numbers, max_size=9)
    | st.sampled_from([*DTYPES, *ODD, [0, 2**63, 2**63], [2**40, 0, 2**40], [], {}, None])
)


@pytest.fixture
def convert(tmp_path):
    """Files of a checkpoint -> its pack, or None where it was refused as it should be."""
    hub = tmp_path / "hub"
    hub.mkdir()
    numbers = itertools.count()

    def run(**files):
        pack = tmp_path / f"pack{next(numbers)}"
        try:
            Conversion(write(hub, **files), SETTINGS).run(pack, Silent())
        except InputError:
            assert not pack.exists()
            return None
        finally:
            shutil.rmtree(f"{pack}.partial", ignore_errors=True)
        opened = Pack(pack)
        assert all(matches for _, _, matches in opened.verify(1))
        shutil.rmtree(pack)
        return opened

    return run


def test_the_originals_are_converted(convert):
    assert convert() is not None
    assert convert(index=WEIGHT_MAP) is not None
    assert convert(shard=joined(HEADER, DATA)) is not None


@budget(150)
@given(mutated([HEADER], header_values))
def test_changed_headers(convert, header):
    convert(shard=joined(header, DATA))


@budget(150)
@given(spoilt([SHARD, SHARD[: -len(DATA)]]))
def test_changed_shards(convert, shard):
    convert(shard=shard)


@budget(60)
@given(st.sampled_from(EDGES) | st.integers(0, 2**64 - 1), st.integers(0, len(SHARD)))
def test_stated_header_lengths(convert, length, cut):
    convert(shard=struct.pack("<Q", length % 2**64) + SHARD[8:cut])


@budget(150)
@given(mutated([WEIGHT_MAP]))
def test_changed_indexes(convert, index):
    convert(index=index)


@budget(100)
@given(spoilt([json.dumps(WEIGHT_MAP).encode()]))
def test_changed_bytes_of_an_index(convert, index):
    convert(index=index)


@budget(100)
@given(mutated([CONFIG]))
def test_changed_configs(convert, config):
    convert(**{"config.json": config})


@budget(100)
@given(mutated([{"eos_token_id": [0, 1]}]), spoilt([b'{"tokenizer_class": "x"}', b"{}"]))
def test_changed_small_files(convert, generation, tokenizer):
    pack = convert(**{"generation_config.json": generation, "tokenizer.json": tokenizer})
    assert pack is None or {extra.name for extra in pack.manifest.extras} == {"tokenizer.json"}


NAMES = ["..", "a/../b", "../model", "/etc/passwd", "a\\b", "a\0b", "a\nb", "\x1b[31mred", "a\u202eb", "x" * 1000, ""]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("listed", [False, True], ids=["header", "index"])
def test_tensor_names_that_are_no_names(name, listed, tmp_path):
    # A layer beyond the last is ignored, but not whatever it is called.
    name = f"model.layers.9.{name}"
    header = HEADER | {name: {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]}}
    index = WEIGHT_MAP | {"weight_map": WEIGHT_MAP["weight_map"] | {name: SINGLE}}
    with pytest.raises(InputError, match=r"no name of a tensor|can't read|not a safetensors"):
        Conversion(write(tmp_path, shard=joined(header, DATA), index=index if listed else None), SETTINGS)


FILES = ["..", "../x.safetensors", "/x.safetensors", "a/x.safetensors", ".x.safetensors", "x.bin", "a\nb.safetensors"]


@pytest.mark.parametrize("name", [*FILES, "a\0.safetensors", "\ud800.safetensors", "x" * 999 + ".safetensors", 3, None])
def test_shard_names_that_are_no_names(name, tmp_path):
    index = WEIGHT_MAP | {"weight_map": WEIGHT_MAP["weight_map"] | {"model.norm.weight": name}}
    with pytest.raises(InputError, match="no valid weight_map"):
        Conversion(write(tmp_path, index=index), SETTINGS)


@pytest.mark.parametrize("name", ["config.json", SINGLE, INDEX, "tokenizer.json", "generation_config.json"])
def test_links_that_leave_the_folder(name, tmp_path):
    hub, secret = tmp_path / "hub", tmp_path / "secret"
    hub.mkdir()
    write(hub, index=WEIGHT_MAP, **{"tokenizer.json": b"{}", "generation_config.json": b"{}"})
    (hub / name).rename(secret)
    (hub / name).symlink_to(secret)
    with pytest.raises(InputError, match="a link out of the checkpoint"):
        Conversion(hub, SETTINGS).run(tmp_path / "pack", Silent())


def test_the_links_of_the_hub_cache_and_within_the_folder_are_followed(tmp_path):
    snapshot, blobs = tmp_path / "models--a--b/snapshots/0123", tmp_path / "models--a--b/blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    write(snapshot)
    (snapshot / SINGLE).rename(blobs / "abc")
    (snapshot / SINGLE).symlink_to("../../blobs/abc")
    (snapshot / "config.json").rename(snapshot / "real.json")
    (snapshot / "config.json").symlink_to("real.json")
    Conversion(snapshot, SETTINGS).run(tmp_path / "pack", Silent())
    (tmp_path / "link").symlink_to(snapshot)
    assert Conversion(tmp_path / "link", SETTINGS).bytes == Pack(tmp_path / "pack").manifest.weight_bytes


@pytest.mark.parametrize("name", ["config.json", SINGLE, INDEX, "tokenizer.json"])
def test_pipes_are_no_files(name, tmp_path):
    write(tmp_path)
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with contextlib.suppress(InputError):
        Conversion(tmp_path, SETTINGS).checkpoint.tokenizer_files()


def test_small_files_are_small(tmp_path, monkeypatch):
    write(tmp_path, **{"tokenizer.json": b"{}"})
    os.truncate(tmp_path / "tokenizer.json", store.MOST_SMALL + 1)
    with pytest.raises(InputError, match="too large"):
        Checkpoint(tmp_path).tokenizer_files()


def test_tensors_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(checkpoint, "MOST_TENSORS", 10)
    with pytest.raises(InputError, match="at most 10"):
        Checkpoint(write(tmp_path))


def test_a_hundred_thousand_tensors_are_refused_for_what_they_are(tmp_path):
    many = {f"x.{i}": {"dtype": "U8", "shape": [0], "data_offsets": [0, 0]} for i in range(100_000)}
    with pytest.raises(InputError, match=r"x\.0 is unexpected \(and 99999 more\)"):
        Conversion(write(tmp_path, shard=joined(HEADER | many, DATA)), SETTINGS)


def test_layers_and_experts_that_are_not_there_are_not_waited_for(tmp_path):
    config = CONFIG | {"num_hidden_layers": 1 << 10, "num_experts": 1 << 12}
    with pytest.raises(InputError, match="is missing"):
        Conversion(write(tmp_path, **{"config.json": config}), SETTINGS)
