"""The manifest: its root, its size, and what two readers could see differently in it."""

import hashlib
import json
from pathlib import Path

import pytest
from rooted import reroot

from krasis.errors import InputError
from krasis.pack import manifest as manifests

VALID = Path(__file__).parents[2] / "formats/vectors/pack-v1/valid"
RAW = (VALID / "tiny/manifest.json").read_bytes()
TREE = json.loads(RAW)


def decoded(raw):
    """The manifest, or None where it is refused as it should be."""
    try:
        return manifests.decode(raw, "manifest.json")
    except InputError:
        return None


def test_root_is_the_hash_of_the_manifest_with_zeros_in_its_place(demo_pack):
    raw = (demo_pack() / "manifest.json").read_bytes()
    at = raw.index(b'"root": "') + len(b'"root": "')
    blank = raw[:at] + b"0" * 64 + raw[at + 64 :]
    assert raw[at : at + 64].decode() == hashlib.sha256(blank).hexdigest()


def test_decode_gives_back_what_was_encoded(demo_pack):
    manifest = manifests.decode((demo_pack() / "manifest.json").read_bytes(), "")
    assert manifests.decode(manifests.encode(manifest), "") == manifest
    assert manifest.weight_bytes == sum(path.stat().st_size for path in demo_pack().glob("*.bin"))


def test_key_order_and_white_space_are_free():
    backwards = dict(reversed(TREE.items()))
    assert decoded(reroot(backwards)).files == manifests.decode(RAW, "").files


def test_a_decoy_of_the_root_elsewhere_is_refused():
    digits = TREE["root"]
    assert decoded(json.dumps({"tool": digits} | TREE).encode()) is None


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_endless_nesting_is_refused(opening):
    assert decoded(opening * 500_000) is None


def test_many_duplicates_are_found_in_little_time():
    keys = ",".join(f'"{i}":0' for i in range(200_000))
    with pytest.raises(InputError, match="duplicate key '7'"):
        manifests.decode(f'{{{keys},"7":0}}'.encode(), "")
