"""One face for `Client` and `AsyncClient`, so that each fact is tested for both."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import dopd

TIMEOUT_S = 30.0


def call(kind: str, endpoint: str, method: str, *args: Any, **kwargs: Any) -> Any:
    """One call of a client of its own."""
    settings = kwargs.pop("client", {})
    if kind == "Client":
        with dopd.Client(endpoint, **({"timeout_s": TIMEOUT_S} | settings)) as client:
            return getattr(client, method)(*args, **kwargs)

    async def run() -> Any:
        async with dopd.AsyncClient(endpoint, **({"timeout_s": TIMEOUT_S} | settings)) as client:
            return await getattr(client, method)(*args, **kwargs)

    return asyncio.run(run())


def stream(
    kind: str, endpoint: str, read: Callable[[Any], Any], *args: Any, **kwargs: Any
) -> list[Any]:
    """What `read` says after each event of `stream_generate`, until it says None.

    `read` takes the event; the rest is as in `call`.
    """
    settings = kwargs.pop("client", {})
    found: list[Any] = []
    if kind == "Client":
        with dopd.Client(endpoint, **({"timeout_s": TIMEOUT_S} | settings)) as client:
            with client.stream_generate(*args, **kwargs) as events:
                for event in events:
                    if (value := read(event)) is None:
                        break
                    found.append(value)
        return found

    async def run() -> None:
        async with dopd.AsyncClient(endpoint, **({"timeout_s": TIMEOUT_S} | settings)) as client:
            async with client.stream_generate(*args, **kwargs) as events:
                async for event in events:
                    if (value := read(event)) is None:
                        break
                    found.append(value)

    asyncio.run(run())
    return found


def events(kind: str, endpoint: str, *args: Any, **kwargs: Any) -> list[Any]:
    """All events."""
    return stream(kind, endpoint, lambda event: event, *args, **kwargs)
