"""Open a pack: check every bound, then map its files without copying, unless told to copy."""

import contextlib
import hashlib
import mmap
import os
import warnings
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from krasis.errors import InputError
from krasis.pack import manifest as manifests
from krasis.pack.copying import copied
from krasis.pack.hashing import Span, digests, records
from krasis.pack.manifest import Manifest, PackFile, Segment
from krasis.pack.progress import Progress
from krasis.pack.record import Section, sections

PARTIAL = ".partial"


@dataclass(frozen=True)
class Located:
    """A segment, the file it lies in, and the sections of its records."""

    file: PackFile
    segment: Segment
    sections: tuple[Section, ...]


class Pack:
    """A checked pack. Opening reads the manifest alone; files are mapped read-only when first asked for.

    Raises InputError for whatever is truncated, oversized, missing, unknown or newer.
    """

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.manifest = read_manifest(self.path)
        for file in self.manifest.files:
            self._check_size(file.name, file.bytes)
        for extra in self.manifest.extras:
            self._check_size(extra.name, extra.bytes)
        self._located = {
            (segment.name, segment.layout): Located(file, segment, sections(segment.tensors, segment.layout))
            for file, segment in self.manifest.segments()
        }
        self._maps: dict[str, torch.Tensor] = {}
        self._copies: dict[tuple[str, str], torch.Tensor] = {}

    @cached_property
    def layouts_of(self) -> dict[str, tuple[str, ...]]:
        """Segment name -> the layouts it is stored in."""
        found: dict[str, tuple[str, ...]] = {}
        for name, layout in self._located:
            found[name] = (*found.get(name, ()), layout)
        return found

    def segment(self, name: str, layout: str) -> Segment:
        """The segment `name` in `layout`. Raises InputError where the pack has none."""
        return self._find(name, layout).segment

    def arrays(self, name: str, layout: str, index: int = 0) -> dict[tuple[str, str], torch.Tensor]:
        """Views of one record's sections, keyed by (tensor, "codes" | "scales" | "values"). They copy nothing."""
        return self.views(name, layout, self._bytes(self._find(name, layout)), index)

    def views(
        self, name: str, layout: str, records: torch.Tensor, index: int = 0
    ) -> dict[tuple[str, str], torch.Tensor]:
        """The same of `records`, uint8: the records of the segment, wherever they are."""
        found = self._find(name, layout)
        if not 0 <= index < found.segment.count:
            raise InputError(f"record {index} of {name}", where=self.path, expected=f"0 to {found.segment.count - 1}")
        start = index * found.segment.record_bytes
        return {
            (s.tensor, s.part): records[start + s.offset : start + s.offset + s.bytes].view(s.dtype).view(s.shape)
            for s in found.sections
        }

    def records(self, name: str, layout: str) -> torch.Tensor:
        """uint8, all records of a segment: a view of the mapping or the copy."""
        return self._bytes(self._find(name, layout))

    def memory(self) -> Iterator[tuple[torch.Tensor, bool]]:
        """The runs of memory that hold the weights, uint8, and whether each is read-only: mapped files, then copies."""
        for file in self.manifest.files:
            yield self._map(file), True
        for copied_segment in self._copies.values():
            yield copied_segment, False

    def copy(self, segments: Iterable[tuple[str, str]], jobs: int, progress: Progress) -> None:
        """Read segments, each a (name, layout), into anonymous memory, in `jobs` threads; `arrays` views them there."""
        found = {key: self._find(*key) for key in segments}
        spans = [Span(self.path / f.file.name, f.segment.offset, f.segment.bytes) for f in found.values()]
        with _readable(self.path):
            self._copies |= zip(found, copied(spans, jobs, progress), strict=True)

    def extra(self, name: str) -> bytes | None:
        """The content of a file the pack carries along (the tokenizer, say), or None. InputError where it changed."""
        for extra in self.manifest.extras:
            if extra.name == name:
                content = self._read_extra(name)
                if hashlib.sha256(content).hexdigest() != extra.sha256:
                    raise InputError("hash mismatch", where=self.path / name, hint="convert the model again")
                return content
        return None

    def verify(self, jobs: int | None = None) -> Iterator[tuple[str, int, bool]]:
        """Hash everything in `jobs` threads, one a core when None: yields (what was hashed, its bytes, whether it
        matches) record by record, in pack order. What can't be read does not match.
        """
        parts = list(self._parts())
        found = digests((span for _, span, _ in parts), jobs or len(os.sched_getaffinity(0)))
        for (name, span, expected), digest in zip(parts, found, strict=True):
            yield name, span.bytes, digest == expected

    def _parts(self) -> Iterator[tuple[str, Span, str]]:
        for file, segment in self.manifest.segments():
            spans = records(self.path, file, segment)
            for i, (span, expected) in enumerate(zip(spans, segment.sha256, strict=True)):
                yield f"{segment.name}[{i}]@{segment.layout} in {file.name}", span, expected
        for extra in self.manifest.extras:
            yield extra.name, Span(self.path / extra.name, 0, extra.bytes), extra.sha256

    def _find(self, name: str, layout: str) -> Located:
        try:
            return self._located[name, layout]
        except KeyError:
            have = ", ".join(self.layouts_of.get(name, ())) or "nothing of that name"
            raise InputError(f"the pack lacks {name} in layout {layout}", where=self.path, expected=have) from None

    def _check_size(self, name: str, expected: int) -> None:
        path = self.path / name
        if path.is_symlink() or not path.is_file():
            raise InputError("a file of the pack is missing", where=path, expected="a plain file of the pack's folder")
        size = path.stat().st_size
        if size != expected:
            kind = "truncated" if size < expected else "longer than it should be"
            raise InputError(f"a file of the pack is {kind}", where=path, expected=f"{expected} bytes, found {size}")

    def _read_extra(self, name: str) -> bytes:
        with _readable(self.path / name):
            return (self.path / name).read_bytes()

    def _bytes(self, found: Located) -> torch.Tensor:
        """uint8, the records of a segment."""
        segment = found.segment
        copy = self._copies.get((segment.name, segment.layout))
        return self._map(found.file)[segment.offset : segment.offset + segment.bytes] if copy is None else copy

    def _map(self, file: PackFile) -> torch.Tensor:
        if file.name not in self._maps:
            path = self.path / file.name
            with _readable(path), path.open("rb") as handle:
                mapped = mmap.mmap(handle.fileno(), file.bytes, access=mmap.ACCESS_READ)
            with warnings.catch_warnings():
                # torch has no read-only tensors; nothing here writes to a weight.
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self._maps[file.name] = torch.frombuffer(mapped, dtype=torch.uint8)
        return self._maps[file.name]


def read_manifest(pack: Path) -> Manifest:
    """The manifest of a pack, checked; the files it lists need not be there. Raises InputError as `Pack` does."""
    if not pack.is_dir():
        raise InputError("no such pack", where=pack, hint="make one with: krasis convert SOURCE PACK")
    if pack.name.endswith(PARTIAL):
        raise InputError("unfinished pack", where=pack, hint="run the same convert again to finish it")
    path = pack / manifests.FILE_NAME
    if path.is_symlink() or not path.is_file():
        hint = "convert writes it last, so an unfinished pack has none"
        raise InputError("not a krasis pack", where=path, expected="a manifest that is a plain file", hint=hint)
    with _readable(path), path.open("rb") as file:
        return manifests.decode(file.read(manifests.MAX_BYTES + 1), path)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    # mmap raises ValueError for a file that shrank since its size was checked.
    try:
        yield
    except (OSError, ValueError) as error:
        raise InputError(f"can't read a file of the pack: {error}", where=path) from error
