"""Hashes of parts of files, on any number of threads, in the order they were asked for."""

import hashlib
import os

import pytest

from krasis.pack import hashing
from krasis.pack.hashing import Span, digests


@pytest.fixture
def file(tmp_path, monkeypatch):
    monkeypatch.setattr(hashing, "_CHUNK", 1000)
    hashing._own.__dict__.clear()
    path = tmp_path / "file"
    path.write_bytes(os.urandom(25_000))
    yield path
    hashing._own.__dict__.clear()


@pytest.mark.parametrize("jobs", [1, 3])
def test_parts_of_any_size_are_hashed_in_order(file, jobs):
    content = file.read_bytes()
    sizes = [0, 1, 999, 1000, 1001, 2000, 12_345, 25_000]
    spans = [Span(file, offset, size) for size in sizes for offset in (0, 7, 1000) if offset + size <= len(content)]
    spans *= 5
    expected = [hashlib.sha256(content[at : at + size]).hexdigest() for _, at, size in spans]
    assert list(digests(iter(spans), jobs)) == expected


def test_what_cannot_be_read_has_no_digest(file, tmp_path):
    spans = [Span(file, 24_000, 1001), Span(file, 99_999, 1), Span(tmp_path / "none", 0, 1), Span(tmp_path, 0, 1)]
    good = Span(file, 0, 25_000)
    assert list(digests([*spans, good], 2)) == [None] * 4 + [hashlib.sha256(file.read_bytes()).hexdigest()]


def test_a_reader_that_leaves_early_ends_the_threads(file):
    found = digests((Span(file, 0, 25_000) for _ in range(1000)), 2)
    next(found)
    found.close()
    assert list(found) == []
