"""The mock model as it is specified, apart from both programs that implement it."""

from __future__ import annotations

from collections.abc import Sequence

MASK = (1 << 64) - 1
IM_START, IM_END = 256, 257
VOCAB_SIZE = 258
FIRST = 0x9E3779B97F4A7C15


def mix(x: int) -> int:
    """splitmix64."""
    z = (x + 0x9E3779B97F4A7C15) & MASK
    z = ((z ^ z >> 30) * 0xBF58476D1CE4E5B9) & MASK
    z = ((z ^ z >> 27) * 0x94D049BB133111EB) & MASK
    return z ^ z >> 31


def draw(h: int, pos: int, *, temperature: float, seed: int, choice: int) -> tuple[int, float]:
    """The token at answer position `pos` after the state `h`, and its log probability."""
    r = mix(h)
    if temperature:
        r = mix(h ^ mix(seed) ^ mix((choice << 32) + pos))
    token = IM_END if pos >= 32 and r % 128 == 0 else 32 + (r >> 32) % 95
    return token, -((r & 0xFFFF) / 65536)


def answer(
    prompt: Sequence[int],
    max_tokens: int,
    *,
    temperature: float = 0,
    seed: int = 0,
    choice: int = 0,
    ignore_eos: bool = False,
) -> list[int]:
    """Tokens of the answer, the end token included if it came."""
    h = FIRST
    for token in prompt:
        h = mix(h ^ token)
    tokens: list[int] = []
    while len(tokens) < max_tokens:
        position = len(tokens)
        token, _ = draw(h, position, temperature=temperature, seed=seed, choice=choice)
        tokens.append(token)
        if token == IM_END and not ignore_eos:
            break
        h = mix(h ^ token)
    return tokens


def text(tokens: Sequence[int]) -> str:
    """Tokens as text; special tokens are empty."""
    return bytes(token for token in tokens if token < 256).decode(errors="replace")


def encode(prompt: str) -> list[int]:
    """Text as tokens, no template."""
    return list(prompt.encode())


def chat(messages: Sequence[dict[str, str]]) -> list[int]:
    """ChatML, with the start of the answer."""
    tokens: list[int] = []
    for message in messages:
        body = encode(f"{message['role']}\n{message['content']}")
        tokens += [IM_START, *body, IM_END, *encode("\n")]
    return [*tokens, IM_START, *encode("assistant\n")]
