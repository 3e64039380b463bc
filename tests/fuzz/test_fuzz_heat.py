"""Heat profiles: bytes and trees of strangers, and little that claims to be much."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import zstandard
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from mutate import mutated, spoilt

from krasis.errors import InputError
from krasis.heat import profile
from krasis.heat.profile import HeatProfile

VALID = Path(__file__).parents[2] / "formats/vectors/heat-v1/valid"
PROFILE = profile.decode((VALID / "two-phases.json.zst").read_bytes(), "two-phases")
RAW = PROFILE.encode()
TREE = json.loads(zstandard.decompress(RAW))


def decoded(raw):
    """The profile, or None where it is refused as it should be."""
    try:
        return profile.decode(raw, "code.json.zst")
    except InputError:
        return None


@budget(200)
@given(st.binary(max_size=100), st.booleans())
def test_random_bytes_are_refused(raw, compressed):
    assert decoded(zstandard.compress(raw) if compressed else raw) is None


@budget(400)
@given(spoilt([RAW, zstandard.ZstdCompressor(write_content_size=False).compress(json.dumps(TREE).encode())]))
def test_changed_bytes_raise_nothing_else(raw):
    found = decoded(raw)
    assert found is None or isinstance(found, HeatProfile)


@budget(400)
@given(mutated([TREE]))
def test_a_changed_profile_is_refused_or_sound(tree):
    found = decoded(zstandard.compress(json.dumps(tree).encode()))
    if found is not None:
        assert profile.decode(found.encode(), "") == found
        for phase in ("prefill", "decode"):
            routing = found.routing(phase)
            assert all(0 <= count <= routing.tokens for counts in routing.counts.values() for count in counts)


def raw_block(size):
    """A frame without a content size, of one block that repeats a byte `size` times, again and again."""
    header = b"\x28\xb5\x2f\xfd\x00\x98"
    block = ((size << 3) | 0b010).to_bytes(3, "little") + b" "
    last = ((size << 3) | 0b011).to_bytes(3, "little") + b" "
    return header, block, last


@pytest.mark.parametrize("gigabytes", [1, 8])
def test_a_bomb_takes_no_more_memory_than_a_profile_may(gigabytes, tmp_path):
    header, block, last = raw_block(128 << 10)
    bomb = tmp_path / "bomb.json.zst"
    bomb.write_bytes(header + block * (gigabytes * 8192 - 1) + last)
    code = (
        "import resource, sys; from pathlib import Path\n"
        "from krasis.heat import profile; from krasis.errors import InputError\n"
        "before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss\n"
        "try: profile.decode(Path(sys.argv[1]).read_bytes(), 'bomb')\n"
        "except InputError: print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)"
    )
    done = subprocess.run([sys.executable, "-c", code, bomb], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) << 10 < 3 * profile.MAX_BYTES
