"""The manifest: its root, and that nothing a stranger can write in it ends in anything but an InputError."""

import copy
import hashlib
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from rooted import reroot

from krasis.errors import InputError
from krasis.pack import manifest as manifests

VALID = Path(__file__).parents[2] / "formats/vectors/pack-v1/valid"
RAW = (VALID / "tiny/manifest.json").read_bytes()
TREES = [json.loads((VALID / name / "manifest.json").read_bytes()) for name in ("tiny", "experts")]


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
    backwards = dict(reversed(TREES[0].items()))
    assert decoded(reroot(backwards)).files == manifests.decode(RAW, "").files


def test_a_decoy_of_the_root_elsewhere_is_refused():
    digits = TREES[0]["root"]
    assert decoded(json.dumps({"tool": digits} | TREES[0]).encode()) is None


@pytest.mark.parametrize("opening", [b"[", b'{"a":'])
def test_endless_nesting_is_refused(opening):
    assert decoded(opening * 500_000) is None


def test_many_duplicates_are_found_in_little_time():
    keys = ",".join(f'"{i}":0' for i in range(200_000))
    with pytest.raises(InputError, match="duplicate key '7'"):
        manifests.decode(f'{{{keys},"7":0}}'.encode(), "")


@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw):
    assert decoded(raw) is None


@settings(deadline=None, max_examples=400)
@given(st.integers(0, len(RAW) - 1), st.integers(1, 255), st.sampled_from(["flip", "insert", "cut", "tail"]))
def test_no_changed_byte_goes_unseen(at, by, how):
    changed = {
        "flip": RAW[:at] + bytes([RAW[at] ^ by]) + RAW[at + 1 :],
        "insert": RAW[:at] + bytes([by]) + RAW[at:],
        "cut": RAW[:at] + RAW[at + 1 :],
        "tail": RAW[:at],
    }[how]
    assert decoded(changed) is None


def places(tree, way=()):
    """Every path in a JSON tree but the root."""
    steps = tree.items() if isinstance(tree, dict) else enumerate(tree) if isinstance(tree, list) else ()
    for step, child in steps:
        yield (*way, step)
        yield from places(child, (*way, step))


def at(tree, way):
    for step in way:
        tree = tree[step]
    return tree


scalars = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.sampled_from([-1, 0, 1, 2, 2**31, 2**53, 2**63, 2**64, 10**400])
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(["plain", "cpu", "marlin", "int8", "bf16", "..", "manifest.json", "\ud800", "\n", "a" * 999])
)
trees = st.recursive(scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner))


@st.composite
def mutated(draw):
    """A valid manifest with a few values replaced, dropped, repeated, nudged or copied from elsewhere in it."""
    tree = copy.deepcopy(draw(st.sampled_from(TREES)))
    for _ in range(draw(st.integers(1, 3))):
        ways = list(places(tree))
        *way, last = draw(st.sampled_from(ways))
        node = at(tree, way)
        how = draw(st.sampled_from(["replace", "drop", "repeat", "nudge", "copy"]))
        if how == "replace":
            node[last] = draw(trees)
        elif how == "drop":
            del node[last]
        elif how == "repeat" and isinstance(node, list):
            node.insert(last, copy.deepcopy(node[last]))
        elif how == "nudge" and isinstance(node[last], int):
            node[last] += draw(st.sampled_from([-4096, -128, -64, -1, 1, 64, 128, 4096]))
        elif how == "copy":
            node[last] = copy.deepcopy(at(tree, draw(st.sampled_from(ways))))
    return tree


@settings(deadline=None, max_examples=600)
@given(mutated())
def test_mutated_manifests_are_refused_or_sound(tree):
    manifest = decoded(reroot(tree))
    if manifest is None:
        return
    for file in manifest.files:
        end = 0
        for segment in file.segments:
            assert segment.offset == end
            assert segment.record_bytes % 4096 == 0
            end += segment.count * segment.record_bytes
        assert file.bytes == end
    names = [file.name for file in (*manifest.files, *manifest.extras)]
    assert len(set(names)) == len(names)
    assert all("/" not in name and not name.startswith(".") for name in names)
    assert manifests.decode(manifests.encode(manifest), "").files == manifest.files
