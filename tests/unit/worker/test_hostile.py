"""Whatever a router or a peer sends, a worker answers with a broken session or link, never with a
broken process: no assert, index or key is reachable from outside (python -O strips asserts)."""

from __future__ import annotations

import random
from typing import Any

import pytest

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.engine.mock import MockEngine
from dopd.errors import LinkError, ProtocolError
from dopd.sched.audit import audit
from dopd.types import Endpoint, Grant, KvCheck, KvScrub, LinkEnd, Peer, Role, Welcome
from dopd.wire import response
from dopd.worker.build import make_desk
from dopd.worker.loop import StepLoop
from dopd.worker.session import Lost, Started

NUM_PAGES = 24
NUM_ACTIONS = 400
# Edges of what fits into a u32.
NUMBERS = (0, 1, 2, 3, 5, 16, 17, 40, 257, 258, 100_000, 2**31, 2**32 - 1)


class Session:
    """Its stream may be broken off; what is reported is dropped."""

    num_waiting = 0

    def __init__(self, session: int) -> None:
        self.id = session
        self.why: str | None = None

    def report(self, message: object) -> None:
        pass

    def check_lease(self) -> bool:
        return True

    def fail(self, reason: str) -> None:
        self.why = reason


class Wire:
    """A link that takes everything, and a transport that dials nobody."""

    bytes_per_s = 1e9
    fence_s = 0.0
    transport = "tcp"
    endpoints = (Endpoint("fake", "here"),)

    def __init__(self, number: int = 0) -> None:
        self.id = number
        self.nonces: list[int] = []

    def begin(self, nonce: int) -> None:
        self.nonces.append(nonce)

    go = write = abort = dial = lambda self, *rest: None

    def end(self, end: LinkEnd) -> None:
        self.nonces.append(end.nonce)


class Outside:
    """All that can reach one worker, said in any order and with any number."""

    def __init__(self, seed: int) -> None:
        self.rng = random.Random(seed)
        engine = MockEngine(NUM_PAGES)
        self.desk = make_desk(engine, Role.MIXED, Grant("w", 1, (), 0), 4, 24, clock=lambda: 0.0)
        self.desk.links.set_transport(Wire())
        self.loop = StepLoop(self.desk, engine)
        self.sessions = 0
        self.links = [Wire(number) for number in (1, 2)]
        for link in self.links:
            self.desk.links.link_up(link, None)
        self.begin_session()

    def begin_session(self) -> None:
        self.sessions += 1
        self.session = Session(self.sessions)
        check = self.rng.choice(list(KvCheck))
        self.desk.post(Started(self.session, check, self.rng.choice(list(KvScrub))))

    def number(self) -> int:
        return self.rng.choice(NUMBERS)

    def some(self, most: int = 41) -> list[int]:
        large = self.rng.random() < 0.05
        return [self.number() if large else self.rng.randrange(258)] * self.rng.randrange(most)

    def nonce(self) -> int:
        """Of an import, of a shipment, or of nobody."""
        seats = self.desk.seats
        known = [*seats._imports, *seats._shipments, *seats.fences, self.number()]
        return self.rng.choice(known)

    def command(self) -> pb.Command:
        rng = self.rng
        seats = self.desk.seats.by_slot
        slot = rng.choice((*seats, rng.randrange(5), self.number()))
        kinds = ("open", "open", "send", "send", "send", "close", "role", "none")
        kind = rng.choices(kinds, (9, 9, 9, 9, 9, 3, 2, 1))[0]
        if kind == "open":
            prompt = self.some()
            free = [number for number in range(5) if number not in seats]
            message = pb.Open(
                slot=rng.choice([*5 * free, slot]),
                pages=rng.choice((6, 6, 6, self.number())),
                prompt_tokens=rng.choice((len(prompt), len(prompt), len(prompt), self.number())),
                limits=pb.Limits(max_tokens=rng.choice((5, 50, 50, self.number())), min_tokens=2),
                sampling=pb.Sampling(temperature=rng.choice((0.0, 1.0, float("nan")))),
                tenant=rng.randrange(3),
            )
            if rng.random() < 0.5:
                message.compute.prompt.extend(prompt)
                message.compute.answer.extend(self.some(3))
                message.compute.prompt_group = rng.randrange(3)
            elif rng.random() < 0.9:
                getattr(message, "import").have = rng.choice((0, 1, self.number()))
            if rng.random() < 0.2:
                message.adjustments.bias_tokens.append(self.number())
                message.adjustments.bias_values.extend([1.0] * rng.choice((1, 1, 2)))
            return pb.Command(open=message)
        if kind == "send":
            grant = pb.Grant(worker="p", incarnation=7, nonce=rng.choice((90, 91, self.nonce())))
            return pb.Command(send=pb.Send(slot=slot, grant=rng.choice((grant, None))))
        if kind == "role":
            role = pb.SetRole(role=rng.randrange(4), epoch=self.number(), drain=False)
            return pb.Command(set_role=role)
        return pb.Command(close=pb.Close(slot=slot)) if kind == "close" else pb.Command()

    def say_command(self) -> None:
        cmd = pb.Cmd(
            session=self.rng.choice((self.sessions, self.sessions, 99)),
            commands=[self.command() for _ in range(self.rng.randrange(3))],
        )
        try:
            commands = response(pb.AttachResponse(cmd=cmd))
        except ProtocolError as error:
            self.session.fail(str(error))
            return
        assert not isinstance(commands, Welcome)
        self.desk.post(commands)  # type: ignore[arg-type]

    def say_on_link(self) -> None:
        rng, links = self.rng, self.desk.links
        link, nonce = rng.choice(self.links), self.nonce()
        first, count = rng.choice((0, 0, 1, self.number())), rng.choice((1, 2, self.number()))
        match rng.randrange(8):
            case 0 | 1:
                links.begin(link, nonce)
            case 2 | 6:
                # Most often what it was shown.
                shown = rng.choice([*link.nonces[-3:], nonce])
                links.go(link, shown, rng.choice((6, 6, self.number())))
            case 3 | 4:
                links.targets(link, nonce, first, count)
                links.landed(link, nonce, first, count)
            case 5:
                links.written(link, nonce, 1)
            case _:
                tokens = self.some(5)
                pos = rng.choice((len(tokens), self.number()))
                checksum = rng.choice((None, 5))
                ok = rng.random() < 0.7
                links.end(link, LinkEnd(nonce, ok, self.number(), pos, tokens, 3, checksum))

    def link_comes_back(self) -> None:
        index = self.rng.randrange(2)
        self.desk.links.link_down(self.links[index])
        self.links[index] = Wire(self.links[index].id + 2)
        peer: Any = self.rng.choice((None, Peer("p", 7, ())))
        self.desk.links.link_up(self.links[index], peer)

    def happen(self) -> None:
        match self.rng.randrange(12):
            case 0 | 1 | 2 | 3:
                self.say_command()
            case 4 | 5 | 6 | 7:
                try:
                    self.say_on_link()
                except (LinkError, ProtocolError):
                    self.link_comes_back()
            case 8:
                self.link_comes_back()
            case _:
                self.loop.turn()
        audit(self.desk.seats, self.desk.batcher)
        if self.session.why is not None:
            self.desk.post(Lost(self.session))
            self.begin_session()


@pytest.mark.parametrize("seed", range(60))
def test_nothing_from_outside_breaks_a_worker(seed: int) -> None:
    outside = Outside(seed)
    for _ in range(NUM_ACTIONS):
        outside.happen()
    outside.desk.post(Lost(outside.session))
    outside.loop.turn()
    for link in outside.links:
        outside.desk.links.link_down(link)
    assert outside.desk.seats.pages.num_free == NUM_PAGES


def test_the_outside_gets_everywhere() -> None:
    """Otherwise it proves little: seats of every state, and sessions that end badly."""
    states, sessions = set(), 0
    for seed in range(20):
        outside = Outside(seed)
        for _ in range(NUM_ACTIONS):
            outside.happen()
            states |= {seat.state.name for seat in outside.desk.seats.by_slot.values()}
        sessions += outside.sessions
    assert states >= {"RESERVED", "EXPOSED", "RUN", "WANT", "BEGUN", "GOING"}
    assert sessions > 40
