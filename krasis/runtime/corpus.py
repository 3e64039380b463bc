"""Text to measure on: read and tokenized piece by piece, so that any amount takes the same memory."""

import codecs
import hashlib
import io
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import msgspec
from msgspec import Meta

from krasis.errors import InputError
from krasis.pack.manifest import Origin
from krasis.runtime.eval import windows
from krasis.runtime.tokenizer import Tokenizer

PIECE = 1 << 20
MAX_LINE = 16 << 20
CONVERSATIONS = ".jsonl"

# After a newline between lines of text, before a blank between letters: runs of blanks are parted by what follows.
_BORDER = re.compile(r"\S\n(?=\S)|[^\W\d_](?= [^\W\d_])")
_TAIL = 1 << 12


class _Conversation(msgspec.Struct):
    messages: Annotated[list[dict[str, Any]], Meta(min_length=1)]


class TextFile:
    """Iterating gives the windows of at most `window` token ids of a file's first `limit` tokens, each at least 2.

    Files named *.jsonl hold a conversation a line, of which each is cut into windows of its own. Raises InputError for
    what can't be read, is no UTF-8, or no conversation.
    """

    def __init__(self, path: Path, tokenizer: Tokenizer, window: int, limit: int | None = None) -> None:
        self.path = path
        self._tokenizer, self._window, self._limit = tokenizer, window, limit

    def __iter__(self) -> Iterator[list[int]]:
        left = self._limit
        for window in self._conversations() if self.path.suffix == CONVERSATIONS else self._text():
            ids = window[:left]
            if len(ids) > 1:
                yield ids
            if left is not None and (left := left - len(ids)) <= 0:
                return

    def origin(self) -> Origin:
        """Name, size and hash of the file. Raises InputError where it can't be read."""
        try:
            with self.path.open("rb") as file:
                digest = hashlib.file_digest(file, "sha256").hexdigest()
                name = "".join(c if c.isprintable() else "\ufffd" for c in self.path.name)
                return Origin(name, file.tell(), digest)
        except OSError as error:
            raise _unreadable(self.path, error) from error

    def _text(self) -> Iterator[list[int]]:
        ids: list[int] = []
        for piece in pieces(self.path):
            ids += self._tokenizer.encode(piece, special=False)
            whole = len(ids) // self._window * self._window
            yield from windows(ids[:whole], self._window)
            del ids[:whole]
        yield from windows(ids, self._window)

    def _conversations(self) -> Iterator[list[int]]:
        for number, messages in conversations(self.path):
            try:
                ids = self._tokenizer.chat(messages, answer=False)
            except InputError as error:
                what = f"line {number}: {error.what}"
                raise InputError(what, where=self.path, expected=error.expected, hint=error.hint) from error
            yield from windows(ids, self._window)


def pieces(path: Path, size: int = PIECE) -> Iterator[str]:
    """A UTF-8 text in pieces of about `size` bytes, cut where tokenizers part words too, so that no token is.

    Where there is no such place a piece is cut anywhere. Raises InputError where it can't be read.
    """
    decoder = io.IncrementalNewlineDecoder(codecs.getincrementaldecoder("utf-8")(), translate=True)
    rest, read, end = "", 0, False
    try:
        with path.open("rb") as file:
            while not end:
                block = file.read(size)
                read, end = read + len(block), not block
                rest += decoder.decode(block, final=end)
                border = len(rest) if end else _border(rest)
                if rest[:border]:
                    yield rest[:border]
                rest = rest[border:]
    except OSError as error:
        raise _unreadable(path, error) from error
    except UnicodeDecodeError as error:
        raise InputError(f"not UTF-8 text: byte {read - len(error.object) + error.start}", where=path) from error


def conversations(path: Path) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """Number and messages of each line that is not blank.

    Raises InputError where it is no object with `messages`, each of a role.
    """
    expected = '{"messages": [{"role": ..., "content": ...}, ...]}'
    try:
        with path.open("rb") as file:
            for number, line in enumerate(iter(lambda: file.readline(MAX_LINE + 1), b""), 1):
                if line.strip():
                    yield number, _messages(line)
    except (ValueError, RecursionError) as error:
        raise InputError(f"line {number} is no conversation: {error}", where=path, expected=expected) from error
    except OSError as error:
        raise _unreadable(path, error) from error


def _messages(line: bytes) -> list[dict[str, Any]]:
    """Raises ValueError where it holds none."""
    if len(line) > MAX_LINE:
        raise ValueError(f"longer than {MAX_LINE} bytes")
    messages = msgspec.json.decode(line, type=_Conversation).messages
    if not all(isinstance(message.get("role"), str) for message in messages):
        raise ValueError("a message without a role")
    return messages


def _border(text: str) -> int:
    """The last place to cut in the tail of a text, its end where there is none."""
    found = [match.end() for match in _BORDER.finditer(text, max(len(text) - _TAIL, 0))]
    return found[-1] if found else len(text)


def _unreadable(path: Path, error: OSError) -> InputError:
    return InputError(f"can't read the text: {error.strerror}", where=path)
