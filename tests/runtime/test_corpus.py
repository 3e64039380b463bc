"""Texts read piece by piece give the windows that they give as a whole, in little memory."""

import hashlib
import json
import tracemalloc

import pytest

from krasis.errors import InputError
from krasis.pack.reader import Pack
from krasis.runtime import corpus
from krasis.runtime.corpus import TextFile, pieces
from krasis.runtime.eval import windows
from krasis.runtime.tokenizer import Tokenizer

TALK = [{"role": "user", "content": "What is a list?"}, {"role": "assistant", "content": "A list is mutable. " * 9}]


@pytest.fixture(scope="module")
def tokenizer(demo_pack):
    return Tokenizer(Pack(demo_pack()))


@pytest.mark.parametrize("size", [1, 7, 100, 4096, 1 << 20])
def test_pieces_are_the_text(size, tmp_path):
    path, text = tmp_path / "text", "ä\r\n🙂\n\n  x" * 500 + "\r" + "no line " * 100
    path.write_bytes(text.encode())
    assert "".join(pieces(path, size)) == path.read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "border"),
    [
        ("one line\nanother", 9),
        ("one line\n\nanother", 3),
        ("one line\n another", 3),
        ("x\n\ny", 4),
        ("x = 1", 5),
        ("a b", 1),
        ("", 0),
    ],
)
def test_pieces_end_where_words_do(text, border):
    assert corpus._border(text) == border


@pytest.mark.parametrize("piece", [5_000, 1 << 20])
@pytest.mark.parametrize("limit", [None, 2000, 513, 2])
def test_windows_are_those_of_the_whole_text(piece, limit, tokenizer, texts, monkeypatch):
    monkeypatch.setattr(corpus.pieces, "__defaults__", (piece,))
    for path in texts:
        whole = tokenizer.encode(path.read_text(encoding="utf-8"), special=False)[:limit]
        assert list(TextFile(path, tokenizer, 512, limit)) == list(windows(whole, 512))


@pytest.mark.parametrize("line", ["some text and more of it\n", "word ", "x"])
def test_memory_does_not_grow_with_the_text(line, tmp_path):
    def peak(megabytes):
        path = tmp_path / "text"
        path.write_bytes((line.encode() * (1 << 20))[: 1 << 20] * megabytes)
        tracemalloc.start()
        length = sum(map(len, pieces(path)))
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert length == megabytes << 20
        return found

    assert peak(48) < 1.1 * peak(4)
    assert peak(48) < 16 << 20


def test_conversations_are_rendered_each_in_windows_of_its_own(tokenizer, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_text(f"{json.dumps({'messages': TALK, 'id': 1})}\n\n{json.dumps({'messages': TALK[:1]})}")
    long, short = (tokenizer.chat(messages, answer=False) for messages in (TALK, TALK[:1]))
    assert tokenizer.chat(TALK)[: len(long)] == long
    assert list(TextFile(path, tokenizer, 20)) == [*windows(long, 20), *windows(short, 20)]
    assert list(TextFile(path, tokenizer, 20, limit=50)) == list(windows(long[:50], 20))


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "truncated"),
        ("[]", "Expected `object`"),
        ("{}", "missing required field `messages`"),
        ('{"messages": []}', "length >= 1"),
        ('{"messages": ["hi"]}', "Expected `object`"),
        ('{"messages": [{"content": "hi"}]}', "a message without a role"),
        ('{"messages": [{"role": 1}]}', "a message without a role"),
        ("[" * 100_000, "line 2 is no conversation"),
        ("\xff", "line 2 is no conversation"),
        ('{"messages": [' + " " * (16 << 20), "longer than 16777216 bytes"),
    ],
)
def test_lines_that_are_no_conversation_are_refused(line, says, tokenizer, tmp_path):
    path = tmp_path / "talk.jsonl"
    path.write_bytes(json.dumps({"messages": TALK}).encode() + b"\n" + line.encode("latin-1"))
    with pytest.raises(InputError, match="line 2 is no conversation") as caught:
        list(TextFile(path, tokenizer, 20))
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


def test_the_line_that_the_template_refuses_is_named(demo_pack, tmp_path):
    class Picky(Tokenizer):
        def _default_template(self):
            return "{{ messages[1].content + '!' }}"

    path = tmp_path / "talk.jsonl"
    path.write_text("\n".join(json.dumps({"messages": messages}) for messages in (TALK, TALK[:1])))
    with pytest.raises(InputError, match="line 2: the chat template refuses the conversation") as caught:
        list(TextFile(path, Picky(Pack(demo_pack())), 20))
    assert str(path) in str(caught.value)


@pytest.mark.parametrize("at", [0, 100, 5000, 9999])
def test_the_byte_that_is_no_text_is_named(at, tmp_path):
    path, raw = tmp_path / "text", bytearray(b"line\n" * 2000)
    raw[at] = 0xFF
    path.write_bytes(raw)
    with pytest.raises(InputError, match=f"not UTF-8 text: byte {at} "):
        list(pieces(path, 1000))


def test_half_a_character_at_the_end_is_no_text(tmp_path):
    path = tmp_path / "text"
    path.write_bytes("abcä".encode()[:-1])
    with pytest.raises(InputError, match="not UTF-8 text: byte 3 "):
        list(pieces(path))


def test_the_origin_is_that_of_the_file(tokenizer, tmp_path):
    path = tmp_path / "a\x1b text"
    path.write_bytes(b"some text")
    found = TextFile(path, tokenizer, 512).origin()
    assert (found.name, found.bytes, found.sha256) == ("a\ufffd text", 9, hashlib.sha256(b"some text").hexdigest())
    with pytest.raises(InputError, match="can't read the text"):
        TextFile(tmp_path / "none", tokenizer, 512).origin()
