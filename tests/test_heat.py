"""Heat profiles on disk, and what coverage means, on numbers worked out by hand."""

import contextlib
import json

import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import FitError, InputError, UsageError
from krasis.heat import profile
from krasis.heat.coverage import coverage
from krasis.heat.profile import HeatProfile, LayerHeat
from krasis.pack.manifest import Origin

ROOT = "ab" * 32
LAYERS = (LayerHeat(0, (5, 0, 7)), LayerHeat(2, (12, 0, 0)))
PROFILE = HeatProfile("krasis-heat", 1, "test", ROOT, (Origin("a text.txt", 9, "0" * 64),), 12, LAYERS)
TREE = json.loads(zstandard.decompress(PROFILE.encode()))


def packed(tree):
    return zstandard.compress(json.dumps(tree).encode())


def test_a_saved_profile_is_loaded(tmp_path):
    profile.save(PROFILE, profile.path_in(tmp_path, "code"))
    assert profile.load(tmp_path, "code", ROOT) == PROFILE
    assert profile.names_in(tmp_path) == ["code"]
    assert [path.name for path in (tmp_path / "heat").iterdir()] == ["code.json.zst"]


@pytest.mark.parametrize(
    ("raw", "fault"),
    [
        (b"", "not a heat profile"),
        (b"{}", "not a heat profile"),
        (PROFILE.encode()[:-1], "not a heat profile"),
        (PROFILE.encode() + b"more", "unused data"),
        (PROFILE.encode() * 2, "unused data"),
        (zstandard.compress(b"\xff"), "not a heat profile"),
        (zstandard.compress(b"[" * 100_000), "nested too deep"),
        (zstandard.compress(b'{"format":"krasis-heat","format":"krasis-heat"}'), "duplicate key 'format'"),
        (packed([]), 'no "format"'),
        (packed(TREE | {"format": "krasis-pack"}), 'no "format"'),
        (packed(TREE | {"version": 2}), "version 2 is newer"),
        (packed(TREE | {"version": 0}), "version"),
        (packed(TREE | {"more": 1}), "unknown field"),
        (packed({key: value for key, value in TREE.items() if key != "tokens"}), "tokens"),
        (packed(TREE | {"pack_root": "AB" * 32}), "pack_root"),
        (packed(TREE | {"tokens": -1}), "tokens"),
        (packed(TREE | {"tokens": 10**400}), "tokens"),
        (packed(TREE | {"tokens": 11}), "an expert has more tokens than the profile"),
        (packed(TREE | {"layers": TREE["layers"][::-1]}), "layers are not in ascending order"),
        (packed(TREE | {"layers": TREE["layers"][:1] * 2}), "layers are not in ascending order"),
        (packed(TREE | {"layers": [{"layer": 0, "counts": []}]}), "counts"),
        (packed(TREE | {"layers": [{"layer": 0, "counts": [0.5]}]}), "counts"),
        (packed(TREE | {"corpus": [{"name": "a\x1b", "bytes": 1, "sha256": "0" * 64}]}), "corpus"),
    ],
)
def test_what_is_no_profile_is_refused(raw, fault):
    with pytest.raises(InputError, match="not a heat profile") as caught:
        profile.decode(raw, "code.json.zst")
    assert fault in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize("stated", [True, False], ids=["size stated", "size unstated"])
def test_a_bomb_is_refused_before_it_goes_off(stated):
    bomb = zstandard.ZstdCompressor(write_content_size=stated).compress(bytes(profile.MAX_BYTES + 1))
    assert len(bomb) < 10_000
    with pytest.raises(InputError, match="not a heat profile"):
        profile.decode(bomb, "bomb")


def test_the_size_a_frame_states_is_not_trusted():
    # A header that promises 2^62 bytes: frame without checksum, 8-byte size, one empty last block.
    frame = b"\x28\xb5\x2f\xfd\xe0" + (1 << 62).to_bytes(8, "little") + b"\x01\x00\x00"
    with pytest.raises(InputError, match="larger than 67108864 bytes"):
        profile.decode(frame, "liar")


@given(st.binary(max_size=100), st.booleans())
def test_random_bytes_are_refused(raw, compressed):
    with pytest.raises(InputError):
        profile.decode(zstandard.compress(raw) if compressed else raw, "")


@given(st.integers(0, len(PROFILE.encode()) - 1), st.integers(1, 255))
def test_a_changed_byte_raises_nothing_else(at, by):
    raw = bytearray(PROFILE.encode())
    raw[at] ^= by
    with contextlib.suppress(InputError):
        assert isinstance(profile.decode(bytes(raw), ""), HeatProfile)


def test_the_profile_of_another_pack_is_refused(tmp_path):
    profile.save(PROFILE, profile.path_in(tmp_path, "code"))
    with pytest.raises(InputError, match="is of another pack"):
        profile.load(tmp_path, "code", "cd" * 32)


def test_a_missing_profile_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="none there"):
        profile.load(tmp_path, "code", ROOT)
    for name in ("prose", "maths"):
        profile.save(PROFILE, profile.path_in(tmp_path, name))
    with pytest.raises(InputError, match="one of: maths, prose"):
        profile.load(tmp_path, "code", ROOT)


@pytest.mark.parametrize("name", ["", ".", "../x", "a/b", "a.b", "a b", "a\n", "ä", "²", "a" * 65])
def test_names_that_leave_the_folder_are_refused(tmp_path, name):
    with pytest.raises(InputError, match="heat profile name"):
        profile.path_in(tmp_path, name)


def test_a_place_that_cannot_be_written_is_refused(tmp_path):
    (tmp_path / "heat").write_text("a file")
    with pytest.raises(UsageError, match="can't write the heat profile"):
        profile.save(PROFILE, profile.path_in(tmp_path, "code"))


def test_a_full_disk_keeps_the_old_profile(tmp_path):
    path = profile.path_in(tmp_path, "code")
    profile.save(PROFILE, path)
    path.with_name(path.name + ".tmp").symlink_to("/dev/full")
    with pytest.raises(FitError, match="the disk is full"):
        profile.save(PROFILE, path)
    assert profile.load(tmp_path, "code", ROOT) == PROFILE


def counts(**layers):
    return {int(layer[1:]): np.array(found, dtype=np.int64) for layer, found in layers.items()}


# Ranked 9 (layer 1, expert 0), 7 (0, 2), 5 (0, 0), 1 (1, 1), 0, 0; of those the workload sends 10, 30, 0, 40 and 20, 0.
HOT = counts(l0=[5, 0, 7], l1=[9, 1, 0])
WORK = counts(l0=[0, 20, 30], l1=[10, 40, 0])


@pytest.mark.parametrize(
    ("share", "expected"),
    [(0, 0), (1 / 6, 0.1), (2 / 6, 0.4), (3 / 6, 0.4), (4 / 6, 0.8), (5 / 6, 1), (1, 1)],
)
def test_coverage_ranks_experts_of_all_layers_together(share, expected):
    assert coverage(HOT, WORK, share) == pytest.approx(expected, abs=0)


def test_a_profile_covers_itself_best():
    assert coverage(HOT, HOT, 0.5) == 21 / 22
    assert coverage(WORK, HOT, 0.5) == 8 / 22


def test_ties_go_to_the_lower_layer_then_the_lower_expert():
    even = counts(l3=[4, 4], l1=[4, 4])
    seen = [coverage(even, counts(l3=[4, 8], l1=[1, 2]), share) for share in (0.25, 0.5, 0.75)]
    assert seen == [1 / 15, 3 / 15, 7 / 15]


def test_shares_are_rounded_to_whole_experts_and_halves_to_even():
    assert coverage(HOT, WORK, 0.24) == 0.1
    assert coverage(HOT, WORK, 0.25) == 0.4
    assert coverage(HOT, WORK, 1 / 12) == 0
