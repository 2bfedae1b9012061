"""The nccl link under every order of failure: a small world in which whatever may happen at a point
does, in one run or another. One thread, no library, no device, no clock.

Each run takes the link from its handshake to its end. The world's choices are replayed, depth
first, until none is left; after each run the books must be right.
"""

from __future__ import annotations

import socket
from collections.abc import Callable, Sequence
from ctypes import c_void_p
from types import SimpleNamespace
from typing import Any

import pytest

from dopd import wire
from dopd.errors import LinkError, LinkRefusedError
from dopd.transfer import frames, nccl, nccl_link, pulled_link, rest, stream_link
from dopd.transfer.nccl import Communicator, Nccl
from dopd.transfer.nccl_link import NcclLink
from dopd.transfer.stream import Shaken
from dopd.types import LinkHello, LinkMessage, LinkPulled, LinkWelcome, LinkWrite

HELLO, WELCOME = LinkHello(1, "p", 1, 2, "t"), LinkWelcome("d", 1, 1, nccl_id=b"i" * 128)
WRITES = [LinkWrite(1, 0, 1), LinkWrite(1, 1, 1)]
OK, BROKEN, IN_PROGRESS = 0, 3, 7
# How a wait may end; a frame is waited for by some.
YES, NO = ("now", "late error", "frame"), ("never", "frame")


class HangsError(Exception):
    """A call does not come back in time."""


class NeverError(BaseException):
    """A call never comes back: its thread ends here."""


class Choices:
    """Depth first over all that may be picked."""

    def __init__(self) -> None:
        self._path: list[tuple[int, int]] = []
        self._at = 0

    def pick(self, *options: Any) -> Any:
        if self._at == len(self._path):
            self._path.append((0, len(options)))
        index, count = self._path[self._at]
        assert count == len(options), "the world is not the same when it is replayed"
        self._at += 1
        return options[index]

    def advance(self) -> bool:
        """To the next run; False: that was the last one."""
        while self._path and self._path[-1][0] + 1 == self._path[-1][1]:
            self._path.pop()
        if self._path:
            index, count = self._path[-1]
            self._path[-1] = (index + 1, count)
        self._at = 0
        return bool(self._path)


class World:
    """Library, device, peer, desk and clock of one link."""

    page_bytes = 64

    def __init__(self, choices: Choices, worlds: list[World], *, is_listener: bool) -> None:
        # The clock is asked from the beginning on.
        self.now = 0.0
        worlds[:] = [self]
        self.pick = choices.pick
        self.is_listener = is_listener
        self.log: list[Any] = []
        self.state = IN_PROGRESS
        self.query = OK
        self.is_used = False
        self.has_frame = False
        self.is_launched = False
        self.is_event_done = self.is_event_broken = False
        self.has_hung_up = False
        # Once before each message, else the runs have no end.
        self.is_idle = False
        self.open_groups = self.open_events = self.open_streams = 0
        self.is_rest_known: bool | None = None
        self.abort = ""
        self.is_asked = False
        self.to_write = list(WRITES)
        self.unread = b""
        self.num_sent = self.num_pulled = 0
        ours, self.theirs = socket.socketpair()
        shaken = Shaken("test", HELLO, WELCOME, is_listener)
        us: Any = self
        parts = stream_link.LinkParts(ours, us, us, self._forget, "test")
        self.link: Any = NcclLink(parts, shaken, us, us)
        self.link._hang_up = SimpleNamespace(poll=lambda limit: self.has_hung_up)
        self.link._readable = SimpleNamespace(poll=self.is_readable)
        self.link._read_into = self.link._watched(self.read)
        self.link._put = lambda op: self.log.append(op)

    def thread(self, target: Callable[[], None], **rest: Any) -> SimpleNamespace:
        """The one that aborts: it is over at once, or later than its limit, or never."""
        thread = SimpleNamespace(is_alive=lambda: False)

        def join(within_s: float | None = None) -> None:
            if within_s is not None or not thread.is_alive():
                return
            if self.abort == "never":
                raise NeverError
            self.abort, self.is_rest_known = "failed", None
            thread.is_alive = lambda: False

        def start() -> None:
            self.abort = self.pick("done", "failed", "late", "never", "no thread")
            if self.abort == "no thread":
                raise RuntimeError("can't start new thread")
            self.is_used = False
            try:
                target()
            except HangsError:
                thread.is_alive = lambda: True

        thread.start, thread.join = start, join
        return thread

    # The library

    def join(self, unique_id: bytes, rank: int) -> Communicator:
        assert (unique_id, rank) == (b"i" * 128, 0 if self.is_listener else 1)
        if self.pick(True, False):
            self.log.append("joined")
            return Communicator(self, c_void_p(1), 1 - rank)
        raise LinkError("no communicator")

    def retire(self, unique_id: bytes) -> None:
        self.log.append("retired")

    def code(self, name: str, *arguments: Any) -> int:
        assert "aborted" not in self.log, f"{name} after abort"
        assert self.is_used, f"{name} on a thread that is on no device"
        if name == "ncclCommGetAsyncError":
            arguments[1]._obj.value = self.state
            return self.query
        if name == "ncclCommAbort":
            self.log.append("aborted")
            assert not self.open_groups
            if self.abort in ("late", "never"):
                self.is_rest_known = False
                raise HangsError
            return BROKEN if self.abort == "failed" else OK
        self.open_groups += (name == "ncclGroupStart") - (name == "ncclGroupEnd")
        code: int = self.pick(OK, BROKEN)
        if code and name == "ncclGroupStart":
            self.open_groups -= 1
        if name == "ncclGroupEnd":
            self.state = IN_PROGRESS
            self.is_launched = False
        return code

    call = Nccl.call

    def text(self, name: str, code: int) -> str:
        return f"{name} {code}"

    # The device

    def use(self) -> None:
        self.is_used = True

    def stream(self) -> World:
        if not self.pick(True, False):
            raise LinkError("no stream")
        self.open_streams += 1
        return self

    handle = 7

    def record(self) -> SimpleNamespace:
        assert self.is_launched, "recorded before the group is on the stream"
        if not self.pick(True, False):
            raise LinkError("no event")
        self.open_events += 1
        self.is_event_done = False
        return SimpleNamespace(is_done=self.is_done, close=self.close_event)

    def is_done(self) -> bool:
        if self.is_event_broken:
            raise LinkError("stream failed")
        return self.is_event_done

    def close_event(self) -> None:
        self.open_events -= 1

    def synchronise(self, within_s: float) -> bool:
        assert "aborted" in self.log or "joined" not in self.log
        assert self.abort not in ("late", "never"), (
            "the stream tells nothing before the abort is over"
        )
        is_open = not self.is_asked and self.abort in ("", "done")
        kind = self.pick("done", "not done", "asked again") if is_open else "done"
        self.is_rest_known = kind == "done"
        self.is_asked = kind == "asked again"
        if self.is_asked:
            raise LinkError("stream failed")
        return self.is_rest_known

    def close(self) -> None:
        self.open_streams -= 1

    def address(self, page: int) -> int:
        return 4096 + 64 * page

    # Waits, and what ends them

    def poll(self, condition: Callable[[], bool], within_s: float) -> bool:
        kinds = ["now", "never", "broken", "shut", "hang up"]
        kind = self.pick(
            *kinds, *(["late error", "frame"] if self.open_events else ["query fails"])
        )
        self.has_frame = kind == "frame"
        self.state = {"now": OK, "late error": OK, "broken": BROKEN}.get(kind, IN_PROGRESS)
        self.query = BROKEN if kind == "query fails" else OK
        self.is_launched |= self.state == OK
        self.is_event_done = kind in ("now", "late error")
        self.is_event_broken = kind == "broken"
        self.has_hung_up |= kind == "hang up"
        if kind == "shut":
            self.link.abort("desk")
        try:
            holds = condition()
        except LinkError:
            assert kind in ("broken", "query fails", "shut", "hang up")
            raise
        assert kind in (YES if holds else NO), "it waits on for nothing"
        if kind == "late error":
            # What was waited for is there, and the communicator breaks just then.
            self.state = BROKEN
        return holds

    # The peer

    def is_readable(self, within_ms: float) -> bool:
        """Whether there is something to read."""
        if within_ms == 0:
            # Something lands: whichever comes first, see `poll`.
            return bool(self.unread) or self.has_frame
        self.is_idle = not self.unread and not self.is_idle
        if not self.is_idle:
            return True
        kind = self.pick("data", "idle", "broken", "overdue")
        self.state = BROKEN if kind == "broken" else OK
        self.now += 2 * nccl_link.WRITE_S * (kind == "overdue")
        self.is_idle = kind != "data"
        return not self.is_idle

    def read(self, views: Sequence[memoryview]) -> int:
        self.has_frame = False
        if not self.unread:
            message = self.next_message()
            if message is None:
                return 0
            head = wire.encode_link(message)
            self.unread = frames.HEADER.pack(len(head), 0) + head
        size = min(len(views[0]), len(self.unread))
        views[0][:size] = self.unread[:size]
        self.unread = self.unread[size:]
        return size

    def next_message(self) -> LinkMessage | None:
        if self.is_listener:
            if not self.to_write or self.pick("write", "end") == "end":
                return None
            return self.to_write.pop(0)
        while True:
            # The writer goes on, or the peer answers: in any order.
            kinds = ["end"] + ["write"] * bool(self.to_write)
            kinds += ["pulled", "too much"] * (self.num_sent > self.num_pulled)
            kind = self.pick(*kinds)
            if kind != "write":
                break
            self.write(self.to_write.pop(0))
        if kind == "end":
            return None
        nonce, count, _ = self.link._sent[0]
        self.num_pulled += 1
        return LinkPulled(nonce, count + (kind == "too much"))

    def write(self, write: LinkWrite) -> None:
        """As the writer's thread."""
        if self.link._is_shut:
            return
        try:
            self.link._write_pages(1, write.first, list(range(write.count)))
        except (OSError, LinkError) as error:
            self.link.abort(str(error))

    def send_frame(self, sock: Any, message: LinkMessage, payload: Sequence[Any]) -> int:
        if not self.pick(True, False):
            raise OSError("reset")
        self.log.append(message)
        self.num_sent += 1
        return 1

    # The desk

    def targets(self, link: Any, nonce: int, first: int, count: int) -> list[int]:
        if not self.pick(True, False):
            raise LinkError("not exposed")
        return list(range(10 + first, 10 + first + count))

    def landed(self, link: Any, nonce: int, first: int, count: int) -> None:
        assert self.is_event_done
        assert self.state == OK
        self.log.append(("landed", first, count))

    def written(self, link: Any, nonce: int, count: int) -> None:
        self.log.append(("written", count))

    def link_down(self, link: Any) -> None:
        self.log.append("down")

    def _forget(self, link: Any) -> None:
        self.log.append("forgotten")


def live(world: World) -> None:
    """From the handshake to the end, as the link's threads would."""
    link = world.link
    try:
        link.join()
    except LinkError as error:
        world.log.append("not joined")
        is_ours = not (world.is_listener or link._is_shut or world.has_hung_up)
        assert isinstance(error, LinkRefusedError) == is_ours
        link.abandon(str(error))
        return
    try:
        link._read()
    except NeverError:
        world.log.append("waits")


def check(world: World) -> None:
    """What must be right whatever happened."""
    log, link = world.log, world.link
    was_up = "not joined" not in log
    is_at_rest = world.is_rest_known is not False
    assert log.count("aborted") == ("joined" in log)
    assert not world.open_groups
    assert not world.open_events
    assert world.open_streams == (not is_at_rest)
    assert log.count("retired") == (world.is_listener and not was_up)
    assert (link._sock.fileno() == -1) == ("waits" not in log)
    # Of a thread that waits for ever.
    link._sock.close()
    assert log.count("waits") == (was_up and world.abort == "never")
    assert link.synchronise(0) == is_at_rest
    assert log.count("forgotten") == is_at_rest
    assert log.count("down") == (was_up and is_at_rest)
    assert not log.count("down") or log[-1] == "down"
    told = [event for event in log if isinstance(event, tuple)]
    landed = [event[2] for event in told if event[0] == "landed"]
    pulled = [event.count for event in log if isinstance(event, LinkPulled)]
    assert pulled == landed
    sent = [event.count for event in log if isinstance(event, LinkWrite)]
    written = [event[1] for event in told if event[0] == "written"]
    assert written == sent[: len(written)]
    for event in log:
        if isinstance(event, LinkPulled):
            assert log[log.index(event) - 1][0] == "landed"


@pytest.fixture
def worlds(monkeypatch: pytest.MonkeyPatch) -> list[World]:
    """Its last one is the link's: its waits, its clock, its threads."""
    worlds: list[World] = []
    clock = SimpleNamespace(monotonic=lambda: worlds[-1].now, sleep=lambda seconds: None)
    monkeypatch.setattr(rest, "time", clock)
    monkeypatch.setattr(nccl_link, "time", clock)
    monkeypatch.setattr(pulled_link, "time", clock)
    monkeypatch.setattr(nccl_link, "poll", lambda *wait: worlds[-1].poll(*wait))
    monkeypatch.setattr(frames, "send_frame", lambda *frame: worlds[-1].send_frame(*frame))
    threads = SimpleNamespace(Thread=lambda **thread: worlds[-1].thread(**thread))
    monkeypatch.setattr(nccl_link, "threading", threads)
    for module in (nccl, nccl_link, rest, stream_link):
        monkeypatch.setattr(module.log, "disabled", True)
    # So that the second write meets the bound, and nobody is there to make room for it.
    monkeypatch.setattr(nccl_link, "GROUPS_MAX", 1)
    monkeypatch.setattr(nccl_link, "WRITE_S", 1e-5)
    return worlds


@pytest.mark.parametrize(("is_listener", "least"), [(True, 4_000), (False, 4_000)])
def test_the_books_are_right_after_every_order_of_failure(
    is_listener: bool, least: int, worlds: list[World]
) -> None:
    choices, runs = Choices(), 0
    seen: set[str] = set()
    while True:
        world = World(choices, worlds, is_listener=is_listener)
        with world.theirs:
            live(world)
            check(world)
        runs += 1
        seen.update(map(str, world.log))
        if not choices.advance():
            break
    assert runs > least
    wanted = "('landed', 1, 1)" if is_listener else "('written', 1)"
    assert {wanted, "down", "not joined", "waits"} <= seen
