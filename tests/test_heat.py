"""Heat profiles on disk, and what coverage means, on numbers worked out by hand."""

import contextlib
import json
import math
import subprocess
import sys
from pathlib import Path

import jsonschema
import msgspec
import numpy as np
import pytest
import zstandard
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import FitError, InputError, UsageError
from krasis.heat import profile
from krasis.heat.coverage import coverage
from krasis.heat.profile import HeatProfile
from krasis.heat.routing import Routing
from krasis.heat.trace import Trace
from krasis.pack import manifest as manifests

FORMATS = Path(__file__).parents[1] / "formats"
VECTORS = FORMATS / "vectors/heat-v1"
VALID = sorted(path.name for path in (VECTORS / "valid").iterdir())
INVALID = json.loads((VECTORS / "invalid/index.json").read_bytes())
SCHEMA = jsonschema.Draft202012Validator(json.loads((FORMATS / "heat-v1.schema.json").read_bytes()))
PROFILE = profile.decode((VECTORS / "valid/two-phases.json.zst").read_bytes(), "two-phases")
# Its segments, renamed and counted anew, are those of a model that the profile fits.
PACK = FORMATS / "vectors/pack-v1/valid/experts"
OTHER = manifests.decode((PACK / "manifest.json").read_bytes(), PACK)


def manifest(experts=None, **model):
    """Of a pack with so many experts in a layer."""
    segment = OTHER.files[0].segments[0]
    experts = experts or {0: 3, 2: 2}
    segments = [
        msgspec.structs.replace(segment, name=f"layers.{layer}.experts", sha256=("0" * 64,) * count)
        for layer, count in experts.items()
    ]
    files = (msgspec.structs.replace(OTHER.files[0], segments=tuple(segments)),)
    return msgspec.structs.replace(OTHER, model=PROFILE.model | model, files=files)


def test_a_saved_profile_is_loaded(tmp_path):
    profile.save(PROFILE, profile.path_in(tmp_path, "code"))
    assert profile.load(tmp_path, "code", manifest()) == PROFILE
    assert profile.names_in(tmp_path) == ["code"]
    assert [path.name for path in (tmp_path / "heat").iterdir()] == ["code.json.zst"]


@pytest.mark.parametrize("name", VALID)
def test_valid_vectors_are_read_and_written_alike(name):
    raw = (VECTORS / "valid" / name).read_bytes()
    found = profile.decode(raw, name)
    assert profile.decode(found.encode(), name) == found
    SCHEMA.validate(json.loads(zstandard.decompress(raw)))


@pytest.mark.parametrize("name", INVALID)
def test_invalid_vectors_are_refused(name):
    raw = (VECTORS / "invalid" / name).read_bytes()
    refused = (FORMATS / "heat-v1.md").read_text(encoding="utf-8").partition("MUST refuse")[2]
    with pytest.raises(InputError, match="not a heat profile") as caught:
        profile.decode(raw, name)
    assert INVALID[name]["error"] in str(caught.value)
    assert caught.value.exit_code == 3
    (rule,) = [line for line in refused.splitlines() if line.startswith(f"| `{INVALID[name]['rule']}` |")]
    assert INVALID[name]["error"] in rule
    if INVALID[name]["rule"] not in ("frame", "too-large", "json"):
        assert SCHEMA.is_valid(json.loads(zstandard.decompress(raw))) != INVALID[name]["schema"]


def test_vectors_are_what_the_script_makes(tmp_path):
    subprocess.run([sys.executable, FORMATS / "vectors/make_heat.py", tmp_path], check=True)
    made, kept = ({p.relative_to(f): p.read_bytes() for p in f.rglob("*") if p.is_file()} for f in (tmp_path, VECTORS))
    assert made == kept


def test_bytes_after_nesting_without_end_are_refused():
    with pytest.raises(InputError, match="nested too deep"):
        profile.decode(zstandard.compress(b"[" * 100_000), "code.json.zst")


@pytest.mark.parametrize("weight", [math.inf, math.nan])
def test_weights_that_no_file_can_hold_are_refused(weight):
    layer = profile.LayerHeat(0, profile.Routed((1,), (weight,)), profile.Routed((0,), (0.0,)))
    with pytest.raises(ValueError, match="a weight is not finite"):
        msgspec.structs.replace(PROFILE, layers=(layer,))


def test_phases_add_up():
    prefill, decode, both = (PROFILE.routing(phase) for phase in ("prefill", "decode", None))
    assert (prefill.tokens, decode.tokens, both.tokens) == (8, 4, 12)
    assert {layer: found.tolist() for layer, found in prefill.counts.items()} == {0: [5, 0, 7], 2: [8, 4]}
    assert {layer: found.tolist() for layer, found in both.counts.items()} == {0: [7, 2, 7], 2: [8, 8]}
    assert {layer: found.tolist() for layer, found in both.weights.items()} == {0: [3.25, 1, 3.25], 2: [4, 1.5]}


def test_profiles_of_one_model_merge():
    other = msgspec.structs.replace(PROFILE, pack_root="cd" * 32)
    found = profile.merged([PROFILE, other], "me")
    assert (found.tool, found.pack_root, found.model) == ("me", None, PROFILE.model)
    assert found.corpus == PROFILE.corpus * 2
    assert found.tokens == profile.Tokens(16, 8)
    assert found.routing().counts[0].tolist() == [14, 4, 14]
    assert found.routing("decode").weights[0].tolist() == [1.5, 2, 0]
    assert profile.merged([PROFILE], PROFILE.tool) == PROFILE


def test_choices_are_counted_and_their_weights_summed():
    choices = {1: np.array([[0, 2], [2, 1]]), 4: np.array([[1, 0], [1, 0]])}
    weights = {1: np.array([[0.75, 0.25], [0.5, 0.5]], np.float32), 4: np.full((2, 2), 2, np.float32)}
    found = Routing.of(choices, weights, {1: 4, 4: 2})
    assert found.tokens == 2
    assert {layer: counts.tolist() for layer, counts in found.counts.items()} == {1: [1, 1, 2, 0], 4: [2, 2]}
    assert {layer: sums.tolist() for layer, sums in found.weights.items()} == {1: [0.75, 0.5, 0.75, 0], 4: [4, 4]}


def window(tokens, start):
    """Choices of two layers, two experts a token."""
    ids = np.arange(start, start + 2 * tokens).reshape(tokens, 2)
    return {1: ids, 5: ids + 4000}


def same(found, expected):
    return list(found) == list(expected) and all(
        np.array_equal(found[layer], expected[layer]) and found[layer].dtype == np.int64 for layer in expected
    )


def test_a_trace_gives_back_window_after_window(tmp_path):
    trace, windows = Trace(tmp_path / "trace", (1, 5)), [window(3, 0), window(1, 7), window(5, 50)]
    for choices in windows:
        trace.append(choices)
    for _ in range(2):
        assert [same(found, expected) for found, expected in zip(trace, windows, strict=True)] == [True] * 3


def test_a_trace_goes_on_from_where_it_is_told(tmp_path):
    trace = Trace(tmp_path / "trace", (1, 5))
    trace.append(window(3, 0))
    size = trace.size
    trace.append(window(9, 7))
    again = Trace(tmp_path / "trace", (1, 5), size)
    again.append(window(2, 90))
    assert [same(*pair) for pair in zip(again, [window(3, 0), window(2, 90)], strict=True)] == [True, True]


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


def test_the_profile_of_another_model_is_refused(tmp_path):
    profile.save(PROFILE, profile.path_in(tmp_path, "code"))
    with pytest.raises(InputError, match="is of another model: its hidden_size is 64"):
        profile.load(tmp_path, "code", manifest(hidden_size=65))
    for experts in ({0: 3}, {0: 3, 2: 3}, {0: 3, 1: 2}):
        with pytest.raises(InputError, match="does not fit the model"):
            profile.load(tmp_path, "code", manifest(experts))


def test_a_file_that_cannot_be_read_is_refused(tmp_path):
    with pytest.raises(InputError, match="can't read the heat profile"):
        profile.read(tmp_path / "none", manifest())


def test_a_missing_profile_is_refused_with_those_there_are(tmp_path):
    with pytest.raises(InputError, match="none there"):
        profile.load(tmp_path, "code", manifest())
    for name in ("prose", "maths"):
        profile.save(PROFILE, profile.path_in(tmp_path, name))
    with pytest.raises(InputError, match="one of: maths, prose"):
        profile.load(tmp_path, "code", manifest())


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
    assert profile.load(tmp_path, "code", manifest()) == PROFILE


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
