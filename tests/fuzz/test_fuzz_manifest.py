"""The manifest: nothing a stranger can write in it ends in anything but a sound pack or an InputError."""

import contextlib
import json
import shutil
from pathlib import Path

import pytest
from budget import budget
from hypothesis import given
from hypothesis import strategies as st
from mutate import mutated, spoilt
from rooted import reroot

from krasis import cli, models
from krasis.errors import InputError
from krasis.models.conform import check_pack, read_spec
from krasis.pack import manifest as manifests
from krasis.pack.reader import Pack

VALID = Path(__file__).parents[2] / "formats/vectors/pack-v1/valid"
RAWS = [(VALID / name / "manifest.json").read_bytes() for name in ("tiny", "experts")]
TREES = [json.loads(raw) for raw in RAWS]


def decoded(raw):
    """The manifest, or None where it is refused as it should be."""
    try:
        return manifests.decode(raw, "manifest.json")
    except InputError:
        return None


@budget(100)
@given(st.binary(max_size=200))
def test_random_bytes_are_refused(raw):
    assert decoded(raw) is None


@budget(400)
@given(spoilt(RAWS))
def test_no_changed_byte_goes_unseen(raw):
    assert decoded(raw) is None or raw in RAWS


@budget(600)
@given(mutated(TREES))
def test_a_changed_manifest_is_refused_or_sound(tree):
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


@pytest.fixture(scope="module")
def packs(pack_of, tmp_path_factory):
    """Family -> a pack of the bundled model whose manifest may be overwritten, and that manifest as it was."""

    def copy(family):
        pack = Path(shutil.copytree(pack_of(family), tmp_path_factory.mktemp("fuzz") / family))
        return pack, json.loads((pack / "manifest.json").read_bytes())

    return {family: copy(family) for family in ("qwen3_moe", "gpt_oss", "deepseek_v2")}


@budget(60)
@given(st.data(), st.sampled_from(["qwen3_moe", "gpt_oss", "deepseek_v2"]))
def test_a_pack_with_a_changed_manifest_is_refused_or_as_its_model_asks(packs, data, family):
    pack, tree = packs[family]
    part = data.draw(st.sampled_from(["model", "model", "settings", "source", "extras", "files", "errors"]))
    changed = tree | {part: data.draw(mutated([tree[part]]))}
    (pack / "manifest.json").write_bytes(reroot(changed))
    with contextlib.suppress(InputError):
        opened = Pack(pack)
        spec = read_spec(opened)
        check_pack(opened, models.get(family), spec)
        assert opened.manifest.weight_bytes == sum(path.stat().st_size for path in pack.glob("*.bin"))


@budget(30)
@given(st.data())
def test_inspect_survives_it(packs, data):
    pack, tree = packs["qwen3_moe"]
    part = data.draw(st.sampled_from(["model", "settings", "source", "errors", "tool"]))
    (pack / "manifest.json").write_bytes(reroot(tree | data.draw(mutated([{part: tree[part]}]))))
    for json_too in (False, True):
        with contextlib.suppress(InputError):
            cli.inspect.inspect(pack, json_too)
