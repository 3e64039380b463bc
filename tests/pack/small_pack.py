"""Small packs written by hand, whole or as far as a test needs them."""

import torch

from krasis.pack.file_writer import SegmentPlan
from krasis.pack.manifest import Settings
from krasis.pack.record import TensorSpec
from krasis.pack.writer import PackWriter

NORM = TensorSpec("norm", "f32", (8,), (8,))
W = TensorSpec("w", "int4", (128, 64), (128, 64), 32)
PLANS = [SegmentPlan("experts", "cpu", (W, NORM), 3), SegmentPlan("base", "plain", (NORM,), 1)]
NEED = sum(plan.bytes for plan in PLANS)


def arrays(fill, layout="cpu"):
    norm = {("norm", "values"): torch.full((8,), float(fill))}
    if layout == "plain":
        return norm
    codes, scales = torch.full((8, 512), fill, dtype=torch.uint8), torch.full((8, 2, 16), fill, dtype=torch.bfloat16)
    return {("w", "codes"): codes, ("w", "scales"): scales} | norm


def rename(plans, name):
    return [SegmentPlan(f"{name}.{plan.name}", plan.layout, plan.tensors, plan.count) for plan in plans]


def write_file(pack, name):
    """A file whose segments bear its name."""
    with pack.file(f"{name}.bin", rename(PLANS, name)) as out:
        for index in range(3):
            out.put(f"{name}.experts", "cpu", index, arrays(index))
            out.put_error(f"{name}.experts", "w", index, index / 4)
        out.put(f"{name}.base", "plain", 0, arrays(7, "plain"))


def publish(pack):
    settings = Settings(4, 8, 32, ("cpu",))
    extras = [pack.extra("tokenizer.json", b"{}")]
    return pack.publish(tool="test", settings=settings, model={"model_type": "none"}, source=[], extras=extras)


def write_pack(path, key="job", names=("a", "b"), **options):
    """A whole pack. Returns the files that were written anew."""
    with PackWriter(path, key, NEED, **options) as pack:
        missing = [name for name in names if f"{name}.bin" not in pack.finished]
        for name in missing:
            write_file(pack, name)
        publish(pack)
    return missing


def stop_after(path, *names, key="job", **options):
    """What a run leaves that ends after these files."""
    with PackWriter(path, key, NEED, **options) as pack:
        for name in names:
            write_file(pack, name)


def put(path, *records):
    """Write the records of `experts` alone, given as (index, arrays)."""
    with PackWriter(path, "job", NEED) as pack, pack.file("a.bin", PLANS) as out:
        for index, found in records:
            out.put("experts", "cpu", index, found)


def spoil_and_write(path, spoil):
    """A pack whose partial folder is spoilt while it is written."""
    with PackWriter(path, "job", NEED) as pack:
        spoil()
        write_file(pack, "a")
        publish(pack)
