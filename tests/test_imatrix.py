"""Importance matrices on disk, and what is made of them, on numbers worked out by hand."""

import hashlib
import json
import struct

import msgspec
import pytest
import safetensors.torch
import torch

from krasis.errors import FitError, InputError, UsageError
from krasis.heat import imatrix
from krasis.heat.imatrix import Header, Imatrix, LayerMoments, pack_shares
from krasis.pack.manifest import Origin

MODEL = {"model_type": "test", "hidden_size": 3, "windows": []}
HEADER = Header("krasis-imatrix", 1, "test", "ab" * 32, MODEL, (Origin("a text.txt", 9, "0" * 64),), 128)


def layer():
    return LayerMoments(
        tokens=torch.tensor([64, 0, 128]),
        w13=torch.tensor([[1.0, 2.0, 3.0], [0, 0, 0], [4, 5, 9]]),
        w2=torch.tensor([[0.5, 1.5], [0, 0], [0, 0]]),
        shares=torch.tensor([0.5, -0.25, 2.0], dtype=torch.bfloat16),
    )


def parts(number=0, **changes):
    found = {part: getattr(layer(), part) for part in imatrix.DTYPES} | changes
    return {f"layers.{number}.{part}": tensor for part, tensor in found.items() if tensor is not None}


def write(path, tensors, header=None, metadata=None):
    text = json.dumps(json.loads(msgspec.json.encode(HEADER)) | (header or {}))
    path.write_bytes(safetensors.torch.save(tensors, {"imatrix": text} if metadata is None else metadata))
    return path


def test_a_saved_imatrix_is_read(tmp_path):
    path = tmp_path / "new" / "a.imatrix"
    imatrix.save(path, HEADER, iter([(1, layer()), (7, layer())]))
    found = Imatrix(path)
    assert found.header == HEADER
    assert found.layers == [1, 7]
    assert found.sha256() == hashlib.sha256(path.read_bytes()).hexdigest()
    for part in imatrix.DTYPES:
        assert torch.equal(getattr(found.layer(7), part), getattr(layer(), part))
    assert [file.name for file in path.parent.iterdir()] == ["a.imatrix"]


def test_shares_are_packed_row_by_row():
    dense = layer().dense_shares()
    assert dense.tolist() == [[0, 0, 0], [0.5, 0, 0], [-0.25, 2, 0]]
    assert torch.equal(pack_shares(dense), layer().shares)


def test_experts_are_shrunk_to_the_layer_by_their_tokens():
    # The layer's mean is (64 * [1 2 3] + 128 * [4 5 9]) / 192 = [3 4 7]; 64 tokens weigh as much as the layer.
    own = [[2, 3, 5], [3, 4, 7], [11 / 3, 14 / 3, 25 / 3]]
    expected = [[value / (sum(row) / 3) for value in row] for row in own]
    found = layer().importance(layer().w13)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, torch.tensor(expected))


def test_importance_is_positive_whatever_was_seen():
    silent = torch.zeros(3, 2)
    assert torch.equal(layer().importance(silent), torch.ones(3, 2))
    found = layer().importance(torch.tensor([[0.0, 1e30], [0, 0], [0, 1e30]]))
    assert torch.equal(found, torch.tensor([[imatrix.LEAST, 2.0]]).expand(3, 2))


@pytest.mark.parametrize(
    ("tensors", "header", "fault"),
    [
        (parts(w2=None), {}, "layers.0.w2 is missing"),
        (parts() | {"more": torch.ones(1)}, {}, "more is unexpected"),
        (parts() | {"layers.x.w2": torch.ones(1)}, {}, "layers.x.w2 is unexpected"),
        (parts() | {"layers.00.w2": torch.ones(1)}, {}, "is unexpected"),
        (parts(w2=torch.ones(3, 2, dtype=torch.float64)), {}, "layers.0.w2 is F64, expected F32"),
        (parts(tokens=torch.zeros(3)), {}, "layers.0.tokens is F32, expected I64"),
        (parts(tokens=torch.zeros(2, dtype=torch.int64)), {}, "shapes of layer 0 do not fit"),
        (parts(tokens=torch.zeros(3, 1, dtype=torch.int64)), {}, "shapes of layer 0 do not fit"),
        (parts(w13=torch.ones(3, 4)), {}, "shapes of layer 0 do not fit"),
        (parts(w13=torch.ones(3)), {}, "shapes of layer 0 do not fit"),
        (parts(w2=torch.ones(4, 2)), {}, "shapes of layer 0 do not fit"),
        (parts(w2=torch.ones(3, 0)), {}, "shapes of layer 0 do not fit"),
        (parts(shares=torch.zeros(4, dtype=torch.bfloat16)), {}, "shapes of layer 0 do not fit"),
        (parts(), {"format": "krasis-heat"}, 'no "format"'),
        (parts(), {"version": 2}, "version 2 is newer"),
        (parts(), {"version": 0}, "version"),
        (parts(), {"more": 1}, "unknown field"),
        (parts(), {"tokens": -1}, "tokens"),
        (parts(), {"pack_root": "AB" * 32}, "pack_root"),
    ],
)
def test_what_breaks_the_format_is_refused(tensors, header, fault, tmp_path):
    with pytest.raises(InputError, match="not an imatrix") as caught:
        Imatrix(write(tmp_path / "a.imatrix", tensors, header))
    assert fault in str(caught.value)
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    "changes",
    [
        {"w13": torch.tensor([[1.0, 2, torch.nan]] * 3)},
        {"w2": torch.tensor([[1.0, torch.inf]] * 3)},
        {"w2": torch.tensor([[1.0, -1.0]] * 3)},
        {"shares": torch.tensor([0, torch.inf, 0], dtype=torch.bfloat16)},
        {"tokens": torch.tensor([-1, 0, 0])},
        {"tokens": torch.tensor([129, 0, 0])},
    ],
)
def test_numbers_that_are_no_moments_are_refused(changes, tmp_path):
    found = Imatrix(write(tmp_path / "a.imatrix", parts(**changes)))
    with pytest.raises(InputError, match=r"not an imatrix: layers\.0\."):
        found.layer(0)
    with pytest.raises(InputError, match="lacks layer 1"):
        found.layer(1)


@pytest.mark.parametrize("metadata", [{}, {"imatrix": "{"}, {"imatrix": '{"format":"krasis-imatrix","format":1}'}])
def test_metadata_that_is_none_is_refused(metadata, tmp_path):
    with pytest.raises(InputError, match="not an imatrix"):
        Imatrix(write(tmp_path / "a.imatrix", parts(), metadata=metadata))


@pytest.mark.parametrize("raw", [b"", b"{}", struct.pack("<Q", 1 << 60), b"\0" * 64])
def test_what_is_no_safetensors_file_is_refused(raw, tmp_path):
    path = tmp_path / "a.imatrix"
    path.write_bytes(raw)
    with pytest.raises(InputError, match="not an imatrix"):
        Imatrix(path)


def test_a_file_cut_short_or_missing_is_refused(tmp_path):
    path = write(tmp_path / "a.imatrix", parts())
    path.write_bytes(path.read_bytes()[:-1])
    for place in (path, tmp_path, tmp_path / "none"):
        with pytest.raises(InputError, match="not an imatrix"):
            Imatrix(place)


def test_another_model_is_refused(tmp_path):
    found = Imatrix(write(tmp_path / "a.imatrix", parts()))
    found.check_model(MODEL | {"windows": ()})
    with pytest.raises(InputError, match=r"of another model: its hidden_size is 3.*: 4"):
        found.check_model(MODEL | {"hidden_size": 4})
    with pytest.raises(InputError, match="of another model: its model_type is 'test'"):
        found.check_model({"model_type": "other", "hidden_size": 3})


def test_where_nothing_can_be_written_says_so(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match="can't write the imatrix"):
        imatrix.save(tmp_path / "file" / "a.imatrix", HEADER, iter([]))


def test_a_full_disk_leaves_nothing(tmp_path):
    path = tmp_path / "a.imatrix"
    (tmp_path / "a.imatrix.tmp").symlink_to("/dev/full")
    with pytest.raises(FitError, match="the disk is full"):
        imatrix.save(path, HEADER, iter([(0, layer())]))
    assert not path.exists()
