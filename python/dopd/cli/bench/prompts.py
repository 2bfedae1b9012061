"""Request bodies: prompts of token ids with a chosen length, made without a loop per token."""

from __future__ import annotations

import json
import random

# Ids that every tokenizer has: printable bytes of the mock model, plain tokens of real ones.
TOKEN_LOW = 33
TOKEN_HIGH = 126
POOL_TOKENS = 1 << 16


class Prompts:
    """Slices of one long random list of ids; each request starts at its own place."""

    def __init__(self, model: str, seed: int, tokens_max: int) -> None:
        self._random = random.Random(seed)
        length = max(POOL_TOKENS, 2 * tokens_max)
        ids = self._random.choices(range(TOKEN_LOW, TOKEN_HIGH + 1), k=length)
        texts = [str(token) for token in ids]
        self._pool = ",".join(texts)
        self._starts = [0]
        for text in texts:
            self._starts.append(self._starts[-1] + len(text) + 1)
        self._head = f'{{"model":{json.dumps(model)},"stream":true,"ignore_eos":true,'
        self._head += '"stream_options":{"include_usage":true},"temperature":1,'

    def body(self, index: int, prompt_tokens: int, output_tokens: int) -> bytes:
        """The body of request number `index`: so many ids in, exactly so many tokens out."""
        first = self._random.randrange(len(self._starts) - prompt_tokens)
        ids = self._pool[self._starts[first] : self._starts[first + prompt_tokens] - 1]
        tail = f'"seed":{index},"max_tokens":{output_tokens},"prompt":[{ids}]}}'
        return (self._head + tail).encode()
