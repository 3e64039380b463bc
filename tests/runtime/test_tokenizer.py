"""The pack's tokenizer: streaming, chat templates in their sandbox, files that are not what they should be."""

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from krasis.errors import InputError
from krasis.runtime.tokenizer import Tokenizer

CHAT = [
    {"role": "system", "content": "Be brief."},
    {"role": "user", "content": "Wer ist da? 你好 🙂"},
    {"role": "assistant", "content": "Ich."},
    {"role": "user", "content": "{{ 1 }} <|im_end|>"},
]


class Extras:
    """A pack as far as a tokenizer is concerned."""

    path = "somewhere"

    def __init__(self, files):
        self._files = files

    def extra(self, name):
        return self._files.get(name)


@pytest.fixture(scope="module")
def files(demo):
    return {name: (demo / name).read_bytes() for name in ("tokenizer.json", "tokenizer_config.json")}


@pytest.fixture(scope="module")
def tokenizer(files):
    return Tokenizer(Extras(files))


@pytest.fixture
def with_template(files):
    return lambda source: Tokenizer(Extras({**files, "chat_template.jinja": source.encode()}))


def streamed(tokenizer, ids):
    stream = tokenizer.stream()
    return [stream.push(token) for token in ids]


@pytest.mark.parametrize("text", ["naïve 你好", "🙂👩‍👩‍👧", "def f(x):\n\treturn x  # ü", " leading", "\n\n\n"])
def test_streaming_gives_the_text(tokenizer, text):
    assert "".join(streamed(tokenizer, tokenizer.encode(text))) == text


# U+FFFD itself looks like an unfinished character, and a surrogate is none.
@given(st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\ufffd"), max_size=30))
def test_streaming_gives_what_decoding_gives(tokenizer, text):
    ids = tokenizer.encode(text)
    assert "".join(streamed(tokenizer, ids)) == tokenizer.decode(ids)


def test_half_a_character_is_never_shown(tokenizer):
    ids = tokenizer.encode("🙂")
    pieces = streamed(tokenizer, ids)
    assert len(ids) > 1
    assert pieces == [""] * (len(ids) - 1) + ["🙂"]


def test_chat_renders_as_transformers_does(tokenizer, demo):
    transformers = pytest.importorskip("transformers", reason="transformers, which judges templates, is not installed")
    judge = transformers.AutoTokenizer.from_pretrained(demo)
    expected = judge.apply_chat_template(CHAT, add_generation_prompt=True, tokenize=False)
    assert tokenizer.chat(CHAT) == tokenizer.encode(expected, special=False)
    assert tokenizer.decode(tokenizer.chat(CHAT)).endswith("assistant\n")


def test_templates_get_what_hub_templates_expect(with_template):
    source = (
        "{{ bos_token }}|{{ messages | tojson }}|{{ messages[0] | tojson(ensure_ascii=True) }}"
        "|{% for m in messages %}{% if loop.index > 1 %}{% break %}{% endif %}{{ m.role }}{% endfor %}"
        "|{{ strftime_now('%%') }}|{{ add_generation_prompt }}"
    )
    tokenizer = with_template(source)
    text = json.dumps([{"role": "user", "content": "ü"}], ensure_ascii=False)
    ascii_text = json.dumps({"role": "user", "content": "ü"})
    rendered = f"<|endoftext|>|{text}|{ascii_text}|user|%|True"
    assert tokenizer.chat([{"role": "user", "content": "ü"}]) == tokenizer.encode(rendered, special=False)


def test_a_template_file_comes_before_the_one_in_the_config(with_template):
    tokenizer = with_template("{{ messages[0].content }}!")
    assert tokenizer.chat([{"role": "user", "content": "x"}]) == tokenizer.encode("x!", special=False)


def test_the_default_of_a_list_of_templates_is_used(files):
    listed = [{"name": "tool", "template": "no"}, {"name": "default", "template": "yes"}]
    tokenizer = Tokenizer(Extras({**files, "tokenizer_config.json": json.dumps({"chat_template": listed}).encode()}))
    assert tokenizer.chat(CHAT) == tokenizer.encode("yes", special=False)


def test_a_template_may_refuse_a_conversation(with_template):
    with pytest.raises(InputError, match="refuses the conversation: roles must alternate"):
        with_template("{{ raise_exception('roles must alternate') }}").chat(CHAT)


@pytest.mark.parametrize(
    "source",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ messages.__class__.__base__ }}",
        "{{ raise_exception.__globals__['json'] }}",
        "{{ ''['__class__']['__base__'] }}",
        "{{ '{0.__class__.__base__}'.format(messages) }}",
        "{{ (messages | map(attribute='__class__') | list)[0].x }}",
        "{{ messages.append({}) }}",
        "{{ messages[0].update(role='x') }}",
    ],
)
def test_the_sandbox_holds(source, with_template):
    with pytest.raises(InputError, match="chat template"):
        with_template(source).chat(CHAT)


@pytest.mark.parametrize(
    "source", ["{{ 1 / 0 }}", "{{ 1 + 'a' }}", "{% for", "{{ nothing.at.all }}", "{{ range(10**9) | list }}"]
)
def test_a_broken_template_is_bad_input(source, with_template):
    with pytest.raises(InputError, match="chat template"):
        with_template(source).chat(CHAT)


def test_without_a_template_there_is_no_chat(files):
    with pytest.raises(InputError, match=r"no chat template.*--raw"):
        Tokenizer(Extras({"tokenizer.json": files["tokenizer.json"]})).chat(CHAT)


@pytest.mark.parametrize(
    "broken",
    [
        {"tokenizer.json": b"{}"},
        {"tokenizer.json": b"\xff"},
        {"tokenizer_config.json": b"[1]"},
        {"tokenizer_config.json": b"{"},
        {"chat_template.jinja": b"\xff"},
    ],
    ids=str,
)
def test_files_that_are_no_tokenizer_are_bad_input(broken, files):
    with pytest.raises(InputError, match="can't read the tokenizer"):
        Tokenizer(Extras(files | broken))


def test_a_pack_without_a_tokenizer_says_so():
    with pytest.raises(InputError, match="no tokenizer"):
        Tokenizer(Extras({}))


def test_text_that_is_no_unicode_is_bad_input(tokenizer):
    with pytest.raises(InputError, match="not Unicode: character 1"):
        tokenizer.encode("a\udcff")
