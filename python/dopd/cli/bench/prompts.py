"""Request bodies: prompts of token ids with a chosen length, made without a loop per token."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from typing import Any

from dopd.cli.bench.arrivals import Arrival

# Ids that every tokenizer has: printable bytes of the mock model, plain tokens of real ones.
TOKEN_LOW = 33
TOKEN_HIGH = 126
POOL_TOKENS = 1 << 16
# Words of one token each in most vocabularies, for chats: those take text only.
WORDS = "time year people way day man thing woman life child world school state family".split()


@dataclass(frozen=True, slots=True)
class Form:
    """What all bodies of a run have in common.

    extra: fields for every request; None takes one away.
    """

    is_chat: bool = False
    extra: dict[str, Any] = field(default_factory=dict)


class Prompts:
    """Slices of one long random list of ids; each request starts at its own place."""

    def __init__(self, model: str, seed: int, tokens_max: int, form: Form) -> None:
        self._random = random.Random(seed)
        self._is_chat = form.is_chat
        length = max(POOL_TOKENS, 2 * tokens_max)
        ids = self._random.choices(range(TOKEN_LOW, TOKEN_HIGH + 1), k=length)
        texts = [WORDS[token % len(WORDS)] for token in ids] if self._is_chat else map(str, ids)
        self._starts = [0]
        pieces = [text + (" " if self._is_chat else ",") for text in texts]
        for piece in pieces:
            self._starts.append(self._starts[-1] + len(piece))
        self._pool = "".join(pieces)
        fields = {
            "model": model,
            "stream": True,
            "ignore_eos": True,
            "stream_options": {"include_usage": True},
            "temperature": 1,
        } | form.extra
        kept = {name: value for name, value in fields.items() if value is not None}
        self._head = json.dumps(kept)[:-1]

    def body(self, index: int, arrival: Arrival) -> bytes:
        """The body of request number `index`: so many tokens in, exactly so many out."""
        tail = f',"seed":{index},"max_tokens":{arrival.output_tokens},'
        return (self._head + tail + self._prompt(arrival) + "}").encode()

    def _prompt(self, arrival: Arrival) -> str:
        if arrival.text is None:
            first = self._random.randrange(len(self._starts) - arrival.prompt_tokens)
            last = first + arrival.prompt_tokens
            piece = self._pool[self._starts[first] : self._starts[last] - 1]
            prompt = json.dumps(piece) if self._is_chat else f"[{piece}]"
        else:
            prompt = json.dumps(arrival.text)
        if self._is_chat:
            return f'"messages":[{{"role":"user","content":{prompt}}}]'
        return f'"prompt":{prompt}'
