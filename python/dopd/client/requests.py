"""From Python values to protobuf requests.

The server's validator decides about every value; only what protobuf itself cannot carry is refused
here, with the same exception.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client.errors import InvalidRequestError
from dopd.client.options import AnswerOptions, Chat, Prompt

PLAIN = (
    "max_tokens",
    "min_tokens",
    "n",
    "ignore_eos",
    "top_logprobs",
    "priority",
    "slo_ttft_ms",
    "slo_tpot_ms",
    "cache_salt",
)
SAMPLING = (
    "temperature",
    "top_p",
    "top_k",
    "seed",
    "min_p",
    "presence_penalty",
    "frequency_penalty",
    "repetition_penalty",
)
SHOWN_CHARS_MAX = 40


def generate(prompt: Prompt, model: str | None, given: AnswerOptions) -> pb.GenerateRequest:
    """A request to continue `prompt`."""
    request = pb.GenerateRequest(options=options(given))
    _put("model", model or "", lambda: setattr(request, "model", model or ""))
    if isinstance(prompt, str):
        _put("prompt", prompt, lambda: setattr(request, "text", prompt))
    else:
        request.token_ids.SetInParent()
        _extend("prompt", request.token_ids.ids.extend, prompt)
    return request


def chat(messages: Chat, model: str | None, given: AnswerOptions) -> pb.ChatRequest:
    """A request to answer a chat."""
    request = pb.ChatRequest(options=options(given), messages=_messages(messages))
    _put("model", model or "", lambda: setattr(request, "model", model or ""))
    return request


def tokenize(what: Chat, model: str | None) -> pb.TokenizeRequest:
    """A request to tokenize a text or a chat."""
    request = pb.TokenizeRequest()
    _put("model", model or "", lambda: setattr(request, "model", model or ""))
    if isinstance(what, str):
        _put("text", what, lambda: setattr(request, "text", what))
    else:
        request.chat.CopyFrom(pb.ChatMessages(messages=_messages(what)))
    return request


def detokenize(token_ids: Sequence[int], model: str | None) -> pb.DetokenizeRequest:
    """A request for the text of tokens."""
    request = pb.DetokenizeRequest()
    _put("model", model or "", lambda: setattr(request, "model", model or ""))
    _extend("token_ids", request.token_ids.extend, token_ids)
    return request


def model(name: str) -> pb.GetModelRequest:
    """A request for one model."""
    request = pb.GetModelRequest()
    _put("model", name, lambda: setattr(request, "model", name))
    return request


def options(given: AnswerOptions) -> pb.AnswerOptions:
    """Options that are set; None counts as absent."""
    found = pb.AnswerOptions()
    values: Mapping[str, object] = given
    for name, value in values.items():
        if name not in AnswerOptions.__annotations__:
            raise TypeError(_unknown(name))
        if value is None:
            continue
        if name in PLAIN:
            _set(found, name, value)
        elif name in SAMPLING:
            _set(found.sampling, name, value)
    _set_lists(found, given)
    return found


def _set_lists(found: pb.AnswerOptions, given: AnswerOptions) -> None:
    stop = given.get("stop")
    if stop is not None:
        _extend("stop", found.stop.extend, [stop] if isinstance(stop, str) else stop)
    ids = given.get("stop_token_ids")
    if ids is not None:
        _extend("stop_token_ids", found.stop_token_ids.extend, ids)
    bias = given.get("logit_bias")
    if bias is not None:
        _put("logit_bias", bias, lambda: found.sampling.logit_bias.update(bias))


def _messages(given: Chat) -> list[pb.ChatMessage]:
    messages = [{"role": "user", "content": given}] if isinstance(given, str) else given
    found: list[pb.ChatMessage] = []
    if isinstance(messages, Mapping):
        raise TypeError("messages is one message, it must be a list of them")
    if not _is(messages, Iterable):
        raise TypeError(f"messages is {_shown(messages)}, it must be a list of them")
    for number, message in enumerate(messages):
        if not _is(message, Mapping):
            raise TypeError(f"messages[{number}] is {_shown(message)}, a message is a dict")
        unknown = set(message) - {"role", "content"}
        if unknown or "role" not in message or "content" not in message:
            raise TypeError(
                f"messages[{number}] has the keys {sorted(message)}, "
                "a message has exactly role and content"
            )
        one = pb.ChatMessage()
        for name in ("role", "content"):
            _set(one, name, message[name], f"messages[{number}].{name}")
        found.append(one)
    return found


def _is(value: object, kind: type) -> bool:
    """Whether callers gave what the type says."""
    return isinstance(value, kind)


def _set(target: object, name: str, value: object, path: str | None = None) -> None:
    _put(path or name, value, lambda: setattr(target, name, value))


def _extend(field: str, extend: Callable[[Any], object], values: Sequence[object]) -> None:
    # Bytes are a sequence of numbers, and never meant as token ids.
    if isinstance(values, (str, bytes, bytearray)):
        raise TypeError(f"{field} is {type(values).__name__}, not a sequence")
    _put(field, values, lambda: extend(values))


def _put(field: str, value: object, put: Callable[[], object]) -> None:
    """Run `put`, which gives `value` to protobuf; name the field where that fails."""
    try:
        put()
    except UnicodeEncodeError as error:
        raise InvalidRequestError(
            f"{field} holds a lone surrogate at character {error.start}: "
            "text must be valid Unicode",
            reason="invalid_value",
            field=field,
        ) from None
    except ValueError as error:
        raise InvalidRequestError(
            f"{field} is {_shown(value)}: {error}", reason="invalid_value", field=field
        ) from None
    except TypeError as error:
        raise TypeError(f"{field} is {_shown(value)}: {error}") from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= SHOWN_CHARS_MAX else f"{text[:SHOWN_CHARS_MAX]}..."


def _unknown(name: str) -> str:
    near = get_close_matches(name, AnswerOptions.__annotations__, n=1)
    return f"unknown option {name!r}" + (f": did you mean {near[0]!r}?" if near else "")
