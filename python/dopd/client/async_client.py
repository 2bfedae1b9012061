"""`dopd.AsyncClient`: `dopd.Client` for programs with asyncio."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Unpack

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client import methods, requests, settings
from dopd.client.aio import AsyncAnswerStream, AsyncLink
from dopd.client.models import model_of
from dopd.client.options import AnswerOptions, Chat, Prompt
from dopd.client.results import Answer, HealthStatus, Model, Tokens


class AsyncClient:
    """A dopd server, over gRPC, in one event loop.

    One client for the whole program: it keeps its connections, and any task of its loop may use it.
    Cancelling a task that awaits a method cancels the request on the server. Every method raises
    `RequestError` or one of its subclasses if the request fails.

    endpoint: HOST:PORT of the server's gRPC listener; else DOPD_ENDPOINT, else 127.0.0.1:50051.
    api_key: else DOPD_API_KEY, else none.
    timeout_s: limit of each request, its retries and all of its stream included.
    tls: encrypt, and trust the certificates that the system trusts. The files imply it.
    ca_file: PEM file of the certificates to trust instead.
    cert_file, key_file: PEM files of this client's own certificate, for mutual TLS.
    """

    def __init__(
        self,
        endpoint: str | None = None,
        *,
        api_key: str | None = None,
        timeout_s: float = settings.TIMEOUT_DEFAULT_S,
        tls: bool = False,
        ca_file: settings.File | None = None,
        cert_file: settings.File | None = None,
        key_file: settings.File | None = None,
    ) -> None:
        self._link = AsyncLink(
            settings.make(
                endpoint,
                api_key,
                timeout_s,
                tls=tls,
                ca_file=ca_file,
                cert_file=cert_file,
                key_file=key_file,
            )
        )

    def __repr__(self) -> str:
        return f"AsyncClient({self.endpoint!r})"

    async def __aenter__(self) -> AsyncClient:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        await self.close()

    @property
    def endpoint(self) -> str:
        """Where the server is."""
        return self._link.settings.endpoint

    async def close(self) -> None:
        """Cancel what runs and close the connections. Closing again does nothing."""
        await self._link.close()

    async def generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Continue a prompt; the whole answer.

        prompt: text, used without a chat template, or token ids.
        model: None: the only one served.
        timeout_s: None: the client's.
        options: see `AnswerOptions`.
        """
        async with self.stream_generate(
            prompt, model=model, timeout_s=timeout_s, **options
        ) as stream:
            return await stream.answer()

    def stream_generate(
        self,
        prompt: Prompt,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncAnswerStream:
        """Continue a prompt; the answer as it comes. Parameters as those of `generate`."""
        request = requests.generate(prompt, model, options)
        return AsyncAnswerStream(self._link, methods.GENERATE, request, request.options, timeout_s)

    async def chat(
        self,
        messages: Chat,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> Answer:
        """Answer a chat, rendered by the model's template; the whole answer.

        messages: dicts with `role` and `content`; a text alone is one message of the user.
        model, timeout_s, options: as those of `generate`.
        """
        async with self.stream_chat(
            messages, model=model, timeout_s=timeout_s, **options
        ) as stream:
            return await stream.answer()

    def stream_chat(
        self,
        messages: Chat,
        *,
        model: str | None = None,
        timeout_s: float | None = None,
        **options: Unpack[AnswerOptions],
    ) -> AsyncAnswerStream:
        """Answer a chat; the answer as it comes. Parameters as those of `chat`."""
        request = requests.chat(messages, model, options)
        return AsyncAnswerStream(self._link, methods.CHAT, request, request.options, timeout_s)

    async def tokenize(
        self, what: Chat, *, model: str | None = None, timeout_s: float | None = None
    ) -> Tokens:
        """Token ids of a text (as `generate` reads it) or of messages (as `chat` reads them)."""
        request = requests.tokenize(what, model)
        found = await self._link.call(methods.TOKENIZE, request, timeout_s)
        return Tokens(tuple(found.token_ids), found.max_model_len)

    async def detokenize(
        self,
        token_ids: Sequence[int],
        *,
        model: str | None = None,
        timeout_s: float | None = None,
    ) -> str:
        """Text of token ids; bytes that are not valid UTF-8 become U+FFFD."""
        request = requests.detokenize(token_ids, model)
        found = await self._link.call(methods.DETOKENIZE, request, timeout_s)
        return found.text

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        """The models that are served."""
        found = await self._link.call(methods.LIST_MODELS, pb.ListModelsRequest(), timeout_s)
        return [model_of(model) for model in found.models]

    async def model(self, name: str, *, timeout_s: float | None = None) -> Model:
        """One model; raises `NotFoundError` if it is not served."""
        found = await self._link.call(methods.GET_MODEL, requests.model(name), timeout_s)
        return model_of(found.model)

    async def health(self, *, timeout_s: float = settings.HEALTH_TIMEOUT_S) -> HealthStatus:
        """Whether the server can serve now; raises `UnavailableError` if there is none."""
        return await self._link.health(settings.checked_timeout(timeout_s))
