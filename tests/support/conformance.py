"""The real `openai` client in its four ways: sync and async, whole and streamed.

Tables of `tests/conformance` send every case in each of them. `deviations.json` lists the cases in
which dopd differs from what the case says, with the reason; it may be empty.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
import pytest

from tests.support.server import Server

WAYS = ("whole", "stream", "async", "async-stream")
# Fields of vLLM, which the client sends as they are.
EXTRA = frozenset(
    """top_k min_p min_tokens repetition_penalty ignore_eos stop_token_ids return_token_ids priority
    cache_salt prompt_logprobs truncate_prompt_tokens add_special_tokens skip_special_tokens
    include_stop_str_in_output structured_outputs guided_json guided_regex guided_choice
    guided_grammar use_beam_search length_penalty allowed_token_ids bad_words logits_processors
    slo_ttft_ms slo_tpot_ms
    chat_template chat_template_kwargs add_generation_prompt continue_final_message documents
    spaces_between_special_tokens kv_transfer_params mm_processor_kwargs some_future_field
    prompt_cache_options moderation""".split()
)
DEVIATIONS = Path(__file__).parents[1] / "conformance" / "deviations.json"
CHAT = [{"role": "user", "content": "hello"}]


@dataclass
class Text:
    """What an answer says, in whichever way it came."""

    texts: list[str]
    reasons: list[str]
    usage: Any


@dataclass
class Clients:
    """Both clients of one server. Neither retries unless a case says so."""

    server: Server
    sync: openai.OpenAI
    later: openai.AsyncOpenAI
    runner: asyncio.Runner

    def ask(self, route: str, way: str, **fields: Any) -> Text:
        """Send `fields` to `chat` or `completions` and read the whole answer."""
        known = {name: value for name, value in fields.items() if name not in EXTRA}
        extra = {name: value for name, value in fields.items() if name in EXTRA}
        words = {"model": self.server.model} | known | ({"extra_body": extra} if extra else {})
        if way.endswith("stream"):
            words |= {"stream": True, "stream_options": {"include_usage": True}} | (
                {"stream_options": fields["stream_options"]} if "stream_options" in fields else {}
            )
        if way.startswith("async"):
            return self.runner.run(self._ask_later(route, words))
        found = resource(self.sync, route).create(**words)
        return from_chunks(list(found)) if "stream" in words else from_whole(found)

    async def _ask_later(self, route: str, words: dict[str, Any]) -> Text:
        found = await resource(self.later, route).create(**words)
        if "stream" not in words:
            return from_whole(found)
        return from_chunks([chunk async for chunk in found])


def resource(client: Any, route: str) -> Any:
    """The part of the client that serves a route."""
    return client.chat.completions if route == "chat" else client.completions


def from_whole(answer: Any) -> Text:
    """Of an answer in one object."""
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    return Text(
        [text_of(choice) for choice in answer.choices],
        [choice.finish_reason for choice in answer.choices],
        answer.usage,
    )


def text_of(choice: Any) -> str:
    """Text of a whole choice of either route."""
    message = getattr(choice, "message", None)
    return str(message.content if message is not None else choice.text)


def from_chunks(chunks: list[Any]) -> Text:
    """Of a stream; checks what every stream must keep."""
    assert len({chunk.id for chunk in chunks}) == 1
    texts: dict[int, str] = {}
    reasons: dict[int, str] = {}
    for chunk in chunks:
        for choice in chunk.choices:
            assert choice.index not in reasons, "nothing after the finish reason"
            delta = getattr(choice, "delta", None)
            text = choice.text if delta is None else delta.content
            texts[choice.index] = texts.get(choice.index, "") + (text or "")
            if choice.finish_reason is not None:
                reasons[choice.index] = choice.finish_reason
    last = chunks[-1]
    assert all(chunk.usage is None for chunk in chunks[:-1]) or last.choices == []
    order = sorted(texts)
    return Text([texts[i] for i in order], [reasons[i] for i in order], last.usage)


def clients(server: Server) -> Iterator[Clients]:
    """Both clients of `server`, closed at the end."""
    url, key = f"{server.url}/v1", "none"
    with (
        asyncio.Runner() as runner,
        openai.OpenAI(base_url=url, api_key=key, max_retries=0, timeout=30) as sync,
    ):
        later = openai.AsyncOpenAI(base_url=url, api_key=key, max_retries=0, timeout=30)
        yield Clients(server, sync, later, runner)
        runner.run(later.close())


def deviations() -> dict[str, str]:
    """Reason by id of a case."""
    found: dict[str, str] = json.loads(DEVIATIONS.read_text())
    return found


def mark_deviations(items: list[pytest.Item]) -> None:
    """A listed case must fail: one that is mended has to leave the list."""
    listed = deviations()
    for item in items:
        if reason := listed.get(case_id(item.nodeid)):
            item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


def case_id(node: str) -> str:
    """`test_refused.py::test_refused[chat.n.0-whole]` as `refused[chat.n.0-whole]`."""
    return node.rsplit("::", 1)[-1].removeprefix("test_")
