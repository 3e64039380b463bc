"""A made-up tokenizer: bytes and pairs of common characters."""

import json
from itertools import islice, product

from tokenizers import Tokenizer, decoders, models, pre_tokenizers

BYTES = 256
COMMON = (*map(chr, range(33, 127)), "Ġ", "Ċ")
"""Printable ASCII, and what byte-level tokenizers write for space and newline."""

TEMPLATE = "{% for message in messages %}{{ message['content'] }}\n{% endfor %}"


def files(vocab_size: int) -> dict[str, bytes]:
    """File name -> content. All ids are below `vocab_size`, which is 256 or more; it loses nothing of any text."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = list(islice(product(COMMON, COMMON), vocab_size - BYTES))
    words = [*alphabet, *(first + second for first, second in merges)]
    tokenizer = Tokenizer(models.BPE(vocab={word: i for i, word in enumerate(words)}, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = json.dumps({"chat_template": TEMPLATE}).encode()
    return {"tokenizer.json": tokenizer.to_str().encode(), "tokenizer_config.json": config}
