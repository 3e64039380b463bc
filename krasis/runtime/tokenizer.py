"""The pack's tokenizer: text to ids and back, chat templates, streaming."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from functools import cached_property
from typing import Any, NoReturn

import tokenizers
from jinja2 import TemplateError
from jinja2.ext import loopcontrols
from jinja2.sandbox import ImmutableSandboxedEnvironment
from tokenizers.decoders import DecodeStream

from krasis.errors import InputError
from krasis.pack.reader import Pack

Message = Mapping[str, Any]
"""{"role": "system" | "user" | "assistant", "content": text}, and whatever else the template knows."""


class Tokenizer:
    """Raises InputError where the pack has no tokenizer.json, or one that can't be read."""

    def __init__(self, pack: Pack) -> None:
        self._where = pack.path
        raw = pack.extra("tokenizer.json")
        if raw is None:
            raise InputError("the pack has no tokenizer", where=pack.path, hint="convert a folder with tokenizer.json")
        try:
            self._tokenizer = tokenizers.Tokenizer.from_str(raw.decode())
            self._config = dict[str, Any](json.loads(pack.extra("tokenizer_config.json") or b"{}"))
            template = pack.extra("chat_template.jinja")
            self._template = template.decode() if template is not None else self._default_template()
        except Exception as error:  # the library raises plain Exception
            raise InputError(f"can't read the tokenizer: {error}", where=pack.path) from error

    def encode(self, text: str, *, special: bool = True) -> list[int]:
        """Token ids; `special` adds what the tokenizer puts around a text (a begin token, say).

        Raises InputError for lone surrogates, which is how bytes that are no UTF-8 arrive from a command line.
        """
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"the text is not Unicode: character {error.start}", expected="valid UTF-8") from error
        return list(self._tokenizer.encode(text, add_special_tokens=special).ids)

    def decode(self, ids: list[int]) -> str:
        return str(self._tokenizer.decode(ids, skip_special_tokens=True))

    def chat(self, messages: Sequence[Message], *, answer: bool = True) -> list[int]:
        """The ids of a conversation, ready for the assistant's turn if it is to `answer`.

        Raises InputError without a chat template.
        """
        if self._template is None:
            raise InputError("the model has no chat template", where=self._where, hint="use --raw, or plain text")
        try:
            text = self._environment.from_string(self._template).render(
                messages=messages, add_generation_prompt=answer, **self._special_tokens
            )
        except Exception as error:  # a template may divide by zero, recurse or add text to numbers
            raise InputError(f"the chat template refuses the conversation: {error}", where=self._where) from error
        return self.encode(text, special=False)

    def stream(self) -> "TextStream":
        return TextStream(self._tokenizer)

    def _default_template(self) -> str | None:
        found = self._config.get("chat_template")
        if isinstance(found, list):
            found = next((entry.get("template") for entry in found if entry.get("name") == "default"), None)
        return found if isinstance(found, str) else None

    @cached_property
    def _special_tokens(self) -> dict[str, str]:
        found = ((name, self._config.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token"))
        texts = ((name, token.get("content") if isinstance(token, dict) else token) for name, token in found)
        return {name: text for name, text in texts if isinstance(text, str)}

    @cached_property
    def _environment(self) -> ImmutableSandboxedEnvironment:
        # Templates come with checkpoints, so they run sandboxed; these are the globals hub templates expect.
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True, extensions=[loopcontrols])
        environment.filters["tojson"] = lambda value, **options: json.dumps(value, **{"ensure_ascii": False, **options})
        environment.globals["raise_exception"] = _refuse
        environment.globals["strftime_now"] = lambda layout: datetime.now().strftime(layout)
        return environment


class TextStream:
    """Ids in, text out as soon as it is whole: bytes of an unfinished character are held back."""

    def __init__(self, tokenizer: tokenizers.Tokenizer) -> None:
        self._tokenizer = tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)

    def push(self, token: int) -> str:
        return self._stream.step(self._tokenizer, token) or ""


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
