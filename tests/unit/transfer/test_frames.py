"""Frames: what survives them, and what does not get through."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dopd import wire
from dopd.errors import LinkError
from dopd.types import (
    LinkBegin,
    LinkEnd,
    LinkGo,
    LinkMessage,
    LinkPulled,
    LinkWelcome,
    LinkWrite,
)
from tests.support.links import HELLO

MESSAGES = (
    LinkBegin(3),
    LinkGo(3, [1, 2]),
    LinkWrite(3, 0, 1),
    LinkWrite(3, 5, 2, [7, 9]),
    LinkPulled(3, 2),
    LinkEnd(3, True, 2, 1, [5], 9),
    HELLO,
    LinkWelcome("w", 1, 2, ""),
)


@pytest.mark.parametrize("message", MESSAGES)
def test_messages_survive_the_wire(message: LinkMessage) -> None:
    assert wire.decode_link(wire.encode_link(message)) == message


@given(st.binary(max_size=200))
def test_any_bytes_are_a_message_or_a_link_error(data: bytes) -> None:
    try:
        message = wire.decode_link(data)
    except LinkError:
        return
    assert isinstance(message, LinkMessage)
