"""Reading packs: mapped and not copied, every bound kept, every flipped byte named."""

import os
from itertools import pairwise
from types import SimpleNamespace

import pytest
import torch

from krasis.cli.verify import verify
from krasis.errors import InputError
from krasis.pack.progress import Silent
from krasis.pack.reader import Pack


@pytest.fixture(scope="module")
def opened(demo_pack):
    return Pack(demo_pack())


def every_record(pack):
    for _, segment in pack.manifest.segments():
        for index in range(segment.count):
            yield segment, index


def flip(path, at):
    with path.open("r+b") as file:
        file.seek(at)
        (byte,) = file.read(1)
        file.seek(at)
        file.write(bytes([byte ^ 0x10]))


def broken(path):
    return [name for name, _, matches in Pack(path).verify() if not matches]


def test_arrays_are_views_of_one_mapping(opened):
    first, again = opened.arrays("layers.1.experts", "cpu", 3), opened.arrays("layers.1.experts", "cpu", 3)
    assert {key: array.data_ptr() for key, array in first.items()} == {k: a.data_ptr() for k, a in again.items()}
    assert len({array.untyped_storage().data_ptr() for array in first.values()}) == 1
    other = opened.arrays("layers.1.experts", "marlin", 0)
    assert next(iter(other.values())).untyped_storage().data_ptr() == first["w13", "codes"].untyped_storage().data_ptr()


def test_the_mapping_is_the_file(tiny):
    norm = Pack(tiny).arrays("base", "plain")["norm", "values"]
    assert norm[1] == 0.25
    # Written beside the pack's back: a copy would not see it.
    with (tiny / "weights.bin").open("r+b") as file:
        file.seek(16384 + 2)
        file.write(b"\x80\x3f")
    assert norm[1] == 1


def test_copies_hold_the_bytes_of_the_mapping(demo_pack):
    mapped, copied = Pack(demo_pack()), Pack(demo_pack())
    keys = [(segment.name, segment.layout) for _, segment in copied.manifest.segments()]
    copied.copy(keys, 2, Silent())
    for segment, index in every_record(mapped):
        expected = mapped.arrays(segment.name, segment.layout, index)
        found = copied.arrays(segment.name, segment.layout, index)
        assert found.keys() == expected.keys()
        for key, array in found.items():
            assert torch.equal(array.view(torch.uint8), expected[key].view(torch.uint8))
            assert array.data_ptr() % 256 == 0


def test_a_copy_is_told_of_byte_by_byte_and_stays_as_it_was(tiny):
    pack, told = Pack(tiny), []
    progress = SimpleNamespace(start=lambda task, total: told.append(total), advance=lambda done: told.append(-done))
    pack.copy([("base", "plain")], 2, progress)
    assert told[0] == pack.segment("base", "plain").bytes
    assert sum(told) == 0
    (tiny / "weights.bin").write_bytes(b"")
    assert pack.arrays("base", "plain")["norm", "values"][1] == 0.25


def test_a_file_that_shrank_is_no_copy(tiny):
    pack = Pack(tiny)
    (tiny / "weights.bin").write_bytes(b"")
    with pytest.raises(InputError, match="truncated"):
        pack.copy([("base", "plain")], 1, Silent())


def test_a_file_that_is_gone_is_no_copy(tiny):
    pack = Pack(tiny)
    (tiny / "weights.bin").unlink()
    with pytest.raises(InputError, match="can't read a file of the pack"):
        pack.copy([("base", "plain")], 1, Silent())


def test_every_section_is_aligned_and_has_the_bytes_of_the_file(opened):
    compared = 0
    for file, segment in opened.manifest.segments():
        raw = (opened.path / file.name).read_bytes()
        for index in range(segment.count):
            start = segment.offset + index * segment.record_bytes
            ends = [0]
            for array in opened.arrays(segment.name, segment.layout, index).values():
                assert array.data_ptr() % 256 == 0
                offset = array.storage_offset() * array.element_size()
                size = array.numel() * array.element_size()
                assert start + ends[-1] <= offset
                ends.append(offset - start + size)
                assert array.contiguous().view(torch.uint8).numpy().tobytes() == raw[offset : offset + size]
            assert all(a < b for a, b in pairwise(ends))
            assert not any(raw[start + ends[-1] : start + segment.record_bytes])
            assert ends[-1] <= segment.record_bytes
            compared += 1
    assert compared == sum(1 for _ in every_record(opened)) > 100


def test_files_end_with_their_last_record(opened):
    for file in opened.manifest.files:
        last = file.segments[-1]
        assert last.offset + last.count * last.record_bytes == (opened.path / file.name).stat().st_size


@pytest.mark.parametrize("index", [-1, 16])
def test_records_out_of_range_are_refused(opened, index):
    with pytest.raises(InputError, match="0 to 15"):
        opened.arrays("layers.0.experts", "cpu", index)


def test_segments_that_are_not_there_are_refused(opened):
    with pytest.raises(InputError, match=r"lacks layers\.0\.experts in layout plain.*marlin, cpu"):
        opened.segment("layers.0.experts", "plain")
    with pytest.raises(InputError, match=r"lacks layers\.9.*nothing of that name"):
        opened.arrays("layers.9", "cpu")


def test_layouts_are_listed_in_pack_order(opened):
    assert opened.layouts_of["layers.0.experts"] == ("marlin", "cpu")
    assert opened.layouts_of["base"] == ("plain",)


def test_verify_hashes_every_byte(opened):
    done = list(opened.verify())
    assert all(matches for _, _, matches in done)
    assert sum(size for _, size, _ in done) == opened.manifest.total_bytes


# Of vectors/pack-v1/valid/tiny: codes 4096, scales 512, fill to 8192, in each layout; then 128 of values.
@pytest.mark.parametrize(
    ("at", "name"),
    [
        (0, "attn[0]@marlin"),
        (4095, "attn[0]@marlin"),
        (4096, "attn[0]@marlin"),
        (4608, "attn[0]@marlin"),
        (8191, "attn[0]@marlin"),
        (8192, "attn[0]@cpu"),
        (12288 + 511, "attn[0]@cpu"),
        (16383, "attn[0]@cpu"),
        (16384, "base[0]@plain"),
        (16384 + 127, "base[0]@plain"),
        (16384 + 128, "base[0]@plain"),
        (20479, "base[0]@plain"),
    ],
)
def test_verify_names_the_record_of_a_flipped_byte(tiny, at, name):
    flip(tiny / "weights.bin", at)
    assert broken(tiny) == [f"{name} in weights.bin"]
    with pytest.raises(InputError, match="hash mismatch"):
        verify(tiny)


def test_verify_tells_the_records_of_a_segment_apart(formats, tiny):
    experts = formats / "vectors/pack-v1/valid/experts"
    pack = Pack(experts)
    routers = pack.segment("routers", "plain")
    for name in ("weights.bin", "manifest.json", "tokenizer_config.json"):
        (tiny / name).write_bytes((experts / name).read_bytes())
    flip(tiny / "weights.bin", routers.offset + routers.record_bytes)
    assert broken(tiny) == ["routers[1]@plain in weights.bin"]


def test_extras_are_read_and_verified(tiny):
    pack = Pack(tiny)
    assert pack.extra("tokenizer_config.json") == b"{}\n"
    assert pack.extra("weights.bin") is None
    assert pack.extra("../tiny/manifest.json") is None
    flip(tiny / "tokenizer_config.json", 0)
    assert broken(tiny) == ["tokenizer_config.json"]


def test_a_changed_extra_is_refused(tiny):
    pack = Pack(tiny)
    (tiny / "tokenizer_config.json").write_bytes(b"[]\n")
    with pytest.raises(InputError, match="hash mismatch"):
        pack.extra("tokenizer_config.json")


def test_unlisted_files_are_ignored(tiny):
    (tiny / "notes.txt").write_text("mine")
    (tiny / "heat").mkdir()
    assert broken(tiny) == []


def test_a_file_that_shrinks_after_opening_is_refused(tiny):
    pack = Pack(tiny)
    os.truncate(tiny / "weights.bin", 4096)
    with pytest.raises(InputError, match=r"can't read .*weights\.bin"):
        pack.arrays("attn", "cpu")


def test_a_file_that_goes_after_opening_is_refused(tiny):
    pack = Pack(tiny)
    (tiny / "weights.bin").unlink()
    (tiny / "tokenizer_config.json").unlink()
    with pytest.raises(InputError, match="can't read"):
        pack.arrays("attn", "cpu")
    with pytest.raises(InputError, match="can't read"):
        pack.extra("tokenizer_config.json")


def test_a_pack_may_be_opened_through_a_link_to_its_folder(tiny):
    link = tiny.with_name("link")
    link.symlink_to(tiny)
    assert broken(link) == []
