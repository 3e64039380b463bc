"""Writing packs: exactly what was meant, and never over what is not ours."""

import pytest
import torch
from small_pack import NEED, NORM, PLANS, arrays, publish, put, spoil_and_write, stop_after, write_pack

from krasis.errors import FitError, KrasisError, UsageError
from krasis.pack.file_writer import SegmentPlan
from krasis.pack.reader import Pack
from krasis.pack.writer import PackWriter


def test_what_was_written_is_read(path):
    assert write_pack(path) == ["a", "b"]
    pack = Pack(path)
    assert all(matches for _, _, matches in pack.verify())
    for index in range(3):
        found = pack.arrays("b.experts", "cpu", index)
        assert found.keys() == arrays(index).keys()
        assert all(torch.equal(found[key], array) for key, array in arrays(index).items())
    assert pack.manifest.errors["b.experts.w"] == (0, 0.25, 0.5)
    assert sorted(p.name for p in path.iterdir()) == ["a.bin", "b.bin", "manifest.json", "tokenizer.json"]
    assert [p.name for p in path.parent.iterdir()] == ["pack"]


def test_same_content_gives_the_same_pack(path):
    write_pack(path)
    write_pack(path.with_name("twin"))
    assert (path / "manifest.json").read_bytes() == (path.with_name("twin") / "manifest.json").read_bytes()


def test_a_record_starts_with_nothing_of_an_older_file(path, partial):
    stop_after(path)
    (partial / "a.bin.tmp").write_bytes(b"\xff" * (1 << 20))
    write_pack(path)
    assert all(matches for _, _, matches in Pack(path).verify())


@pytest.mark.parametrize(
    ("key", "wrong", "fault"),
    [
        (("w", "codes"), torch.zeros(8, 512, dtype=torch.int8), r"w codes is torch\.int8 .*torch\.uint8 \(8, 512\)"),
        (("w", "codes"), torch.zeros(8, 511, dtype=torch.uint8), r"w codes is .*\(8, 511\)"),
        (("w", "codes"), torch.zeros(512, 8, dtype=torch.uint8), r"w codes is .*\(512, 8\)"),
        (("w", "scales"), torch.zeros(8, 2, 16), r"w scales is torch\.float32"),
        (("norm", "values"), torch.zeros(1, 8), r"norm values is .*\(1, 8\)"),
    ],
)
def test_arrays_of_another_dtype_or_shape_are_refused(path, key, wrong, fault):
    with pytest.raises(KrasisError, match=fault):
        put(path, (0, arrays(0) | {key: wrong}))
    assert not path.exists()


def test_strided_arrays_are_written_in_order(path):
    plan = SegmentPlan("base", "plain", (NORM,), 1)
    with PackWriter(path, "job", NEED) as pack:
        with pack.file("a.bin", [plan]) as out:
            out.put("base", "plain", 0, {("norm", "values"): torch.arange(16.0)[::2]})
        publish(pack)
    assert Pack(path).arrays("base", "plain")["norm", "values"].tolist() == [0, 2, 4, 6, 8, 10, 12, 14]


def test_records_may_come_in_any_order(path):
    plan = SegmentPlan("base", "plain", (NORM,), 3)
    with PackWriter(path, "job", NEED) as pack:
        with pack.file("a.bin", [plan]) as out:
            for index in (2, 0, 1):
                out.put("base", "plain", index, arrays(index, "plain"))
        publish(pack)
    read = Pack(path)
    assert [read.arrays("base", "plain", index)["norm", "values"][0] for index in range(3)] == [0, 1, 2]
    assert all(matches for _, _, matches in read.verify())


def test_records_written_whole_are_those_that_are_filled_in_place(path):
    plan = PLANS[0]
    record = torch.zeros(plan.record_bytes, dtype=torch.uint8)
    with PackWriter(path, "job", NEED) as pack:
        whole, in_place = pack.open("whole.bin", [plan], mapped=False), pack.open("in_place.bin", [plan])
        for index in (1, 0, 2):
            for key, place in plan.arrays(record).items():
                place.copy_(arrays(index)[key])
            whole.write("experts", "cpu", index, record)
            in_place.put("experts", "cpu", index, arrays(index))
        with pytest.raises(KrasisError, match=r"record 2 of experts@cpu .*0 to 2, each once"):
            whole.write("experts", "cpu", 2, record)
        found, expected = whole.finish()[0], in_place.finish()[0]
        assert (found.bytes, found.segments) == (expected.bytes, expected.segments)
        contents = [(pack.partial / f"{name}.bin.tmp").read_bytes() for name in ("whole", "in_place")]
    assert contents[0] == contents[1]


def test_a_missing_record_is_refused(path, partial):
    with pytest.raises(KrasisError, match="record 1 of experts@cpu was never written"):
        put(path, (0, arrays(0)), (2, arrays(2)))
    assert not (partial / "a.bin").exists()


@pytest.mark.parametrize("index", [0, 3, -1])
def test_a_record_written_twice_or_out_of_range_is_refused(path, index):
    with pytest.raises(KrasisError, match="0 to 2, each once"):
        put(path, (0, arrays(0)), (index, arrays(0)))


def test_an_existing_pack_is_kept_without_force(path):
    write_pack(path)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(UsageError, match="the destination exists"):
        write_pack(path, names=("c",))
    assert (path / "manifest.json").read_bytes() == before


def test_force_replaces_a_pack_and_leaves_nothing_of_it(path):
    write_pack(path)
    (path / "heat").mkdir()
    write_pack(path, names=("c",), force=True)
    assert [file.name for file in Pack(path).manifest.files] == ["c.bin"]
    assert sorted(p.name for p in path.iterdir()) == ["c.bin", "manifest.json", "tokenizer.json"]
    assert [p.name for p in path.parent.iterdir()] == ["pack"]


def test_force_keeps_the_old_pack_until_the_new_one_is_whole(path):
    write_pack(path)
    stop_after(path, "c", key="other", force=True)
    assert all(matches for _, _, matches in Pack(path).verify())


@pytest.mark.parametrize("force", [False, True])
def test_what_is_no_pack_is_never_replaced(path, force):
    path.mkdir()
    (path / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="the destination"):
        write_pack(path, force=force)
    assert (path / "thesis.txt").read_text() == "mine"


def test_a_folder_that_appears_meanwhile_is_kept(path):
    def appear():
        path.mkdir()
        (path / "thesis.txt").write_text("mine")

    with pytest.raises(UsageError, match="the destination exists"):
        spoil_and_write(path, appear)
    assert (path / "thesis.txt").read_text() == "mine"


def test_force_keeps_the_neighbours(path):
    write_pack(path)
    write_pack(path.with_name("pack.old"))
    write_pack(path, names=("c",), force=True)
    assert all(matches for _, _, matches in Pack(path.with_name("pack.old")).verify())


def test_a_folder_that_only_looks_partial_is_kept(path, partial):
    partial.mkdir()
    (partial / "thesis.txt").write_text("mine")
    with pytest.raises(UsageError, match="no unfinished pack"):
        write_pack(path)
    assert (partial / "thesis.txt").read_text() == "mine"


def test_a_destination_that_cannot_be_made_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UsageError, match="can't create the pack"):
        write_pack(tmp_path / "file" / "pack")


def test_a_second_writer_is_refused(path):
    with PackWriter(path, "job", NEED), pytest.raises(UsageError, match="another convert is writing"):
        PackWriter(path, "job", NEED)
    write_pack(path)


def test_a_refused_writer_lets_go_of_the_lock(path):
    with pytest.raises(FitError):
        PackWriter(path, "job", 1 << 60)
    write_pack(path)
