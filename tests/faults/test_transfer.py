"""Rows B: what goes wrong between two workers never reaches a client, and no page is lost.

Frames of the data link are changed on their way; the workers are real processes.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import itertools
import random
from collections import Counter
from collections.abc import Iterable, Iterator

import pytest

from dopd.transfer import frames
from dopd.types import LinkBegin, LinkEnd, LinkGo, LinkMessage, LinkWrite
from tests.support.faults.fleet import Fleet
from tests.support.faults.frames import Frame, Stranger, changing, encode
from tests.support.faults.proxy import Pipe, Proxy
from tests.support.faults.traffic import Ask, Verdict
from tests.support.faults.watch import record
from tests.support.processes import wait_for

# Answers long enough to be shipped while they are made.
REQUESTS = 16
# Silence that says: no answer comes.
QUIET_S = 0.3


def some(count: int = REQUESTS, seed: int = 0) -> list[Ask]:
    """Requests of several pages."""
    rng = random.Random(seed)
    return [
        Ask(tuple(rng.randrange(256) for _ in range(rng.randint(40, 400))), 30, seed=k)
        for k in range(count)
    ]


def data_of(fleet: Fleet, name: str = "d0") -> Proxy:
    """The proxy in front of a worker's data link, its links fresh: a plan is for new ones."""
    proxy = fleet.nodes[name].data
    assert proxy is not None
    return proxy


def token(fleet: Fleet) -> str:
    """The join token."""
    return fleet.token_file.read_text()


def run_right(fleet: Fleet, asks: list[Ask], **settings: int) -> None:
    """All are right, none fails; then the fleet is at rest."""
    with fleet.ask(*asks, **settings) as traffic:
        traffic.finish().check(at_least=len(asks))


class Seen:
    """A change that keeps what passes and does something to some of it."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self.frames: list[Frame] = []
        # Nonces of shipments that were changed.
        self.touched: set[int] = set()

    def __call__(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
        self.counts[type(message).__name__] += 1
        self.frames.append((message, payload))
        return self.change(pipe, message, payload)

    def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
        return [(message, payload)]


def with_fresh_links(fleet: Fleet, change: Seen, *, back: bool = False, name: str = "d0") -> Proxy:
    """Put a change on all links to a worker."""
    fleet.forget()
    proxy = data_of(fleet, name)
    proxy.plan = changing(change, back=back)
    proxy.reset()
    return proxy


def test_b1_a_stale_shipment_replayed_reaches_no_page(pair: Fleet) -> None:
    """All that one request's link carried is sent again, on its own link and on a stranger's."""

    class Replay(Seen):
        old: tuple[Frame, ...] = ()

        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            if not isinstance(message, LinkEnd):
                return [(message, payload)]
            # Begin again, and the End again, behind every shipment; Writes would shut the link.
            again = [f for f in self.old if isinstance(f[0], LinkBegin | LinkEnd)]
            shipment = [f for f in self.frames if getattr(f[0], "nonce", 0) == message.nonce]
            self.old = tuple(shipment)
            return [(message, payload), *again]

    replay = Replay()
    proxy = with_fresh_links(pair, replay)
    run_right(pair, some())
    assert replay.counts["LinkEnd"] > 1
    with pair.traffic(seed=11) as traffic:
        for old in (replay.old, replay.frames[:20]):
            with Stranger(proxy.upstream or "", token(pair)) as stranger:
                assert not stranger.error
                begins = [f for f in old if isinstance(f[0], LinkBegin)]
                stranger.send(b"".join(encode(*frame) for frame in begins))
                assert stranger.answer(QUIET_S) is None, "a used ticket was taken"
            with Stranger(proxy.upstream or "", token(pair)) as stranger:
                writes = [f for f in old if isinstance(f[0], LinkWrite)]
                stranger.send(b"".join(encode(*frame) for frame in writes))
                assert stranger.is_shut(), "a write without a ticket was taken"
        traffic.stop().check()
    pair.settled()


def test_b2_a_ticket_is_good_once(pair: Fleet) -> None:
    """Each Begin comes twice; and a thief shows each first, and gets pages that nobody attends."""

    class Twice(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            return [(message, payload)] * (2 if isinstance(message, LinkBegin) else 1)

    twice = Twice()
    proxy = with_fresh_links(pair, twice)
    before = pair.router.status()["handoffs_total"]
    run_right(pair, some())
    assert twice.counts["LinkBegin"] > 0
    assert pair.router.status()["handoffs_total"] > before
    pair.settled()

    class Thief(Seen):
        stolen = 0

        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            if isinstance(message, LinkBegin):
                with Stranger(proxy.upstream or "", token(pair)) as stranger:
                    stranger.send(encode(message))
                    go = stranger.answer(2.0)
                    if isinstance(go, LinkGo):
                        self.stolen += 1
                        junk = bytes(128 * len(go.pages))
                        stranger.send(encode(LinkWrite(message.nonce, 0, len(go.pages)), junk))
                        end = LinkEnd(message.nonce, True, len(go.pages), 1, [65], 0)
                        stranger.send(encode(end))
            return [(message, payload)]

    thief = Thief()
    with_fresh_links(pair, thief)
    run_right(pair, some(8, seed=1), clients=4)
    assert thief.stolen > 0
    pair.settled()


def test_b3_an_unknown_ticket_gets_no_answer_and_no_page(pair: Fleet) -> None:
    before = pair.settled()["workers"]
    with Stranger(data_of(pair).upstream or "", token(pair)) as stranger:
        stranger.send(b"".join(encode(LinkBegin(nonce)) for nonce in range(100)))
        assert stranger.answer(QUIET_S) is None
        stranger.send(encode(LinkEnd(5, True, 1, 1, [65], 1)) + encode(LinkEnd(6, False)))
        assert stranger.answer(QUIET_S) is None
        pages = [worker["pages"] for worker in pair.router.status()["workers"]]
        assert pages == [worker["pages"] for worker in before]
    pair.settled()


def hostile_frames(rng: random.Random, nonces: list[int]) -> Iterator[bytes]:
    """Indices and lengths that a correct peer never sends, around shipments that are real."""
    sizes = (0, 1, 2, 127, 128, 129, 1 << 16, (1 << 31) - 1, 1 << 31, (1 << 32) - 1)
    while True:
        nonce = rng.choice([*nonces[-4:], rng.getrandbits(64)])
        first, count = rng.choice(sizes), rng.choice(sizes)
        payload = bytes(rng.choice((0, 1, 128, 256, 4096)))
        yield from (
            encode(LinkWrite(nonce, first, count), payload),
            encode(LinkEnd(nonce, True, count, first, [65] * rng.choice((0, 1, 5)), first)),
            encode(LinkGo(nonce, [first, count])),
            frames.HEADER.pack(count, first),
            encode(LinkBegin(nonce), b"payload"),
            rng.randbytes(rng.randint(1, 64)),
        )


def test_b4_wild_indices_and_lengths_shut_their_link_and_nothing_else(pair: Fleet) -> None:
    seen = Seen()
    proxy = with_fresh_links(pair, seen)
    rss_before = rss_bytes(pair.nodes["d0"].pid)
    with pair.traffic(seed=4, clients=4) as traffic:
        wait_for(lambda: seen.counts["LinkBegin"] > 2, "pages travel")
        nonces = [f[0].nonce for f in seen.frames if isinstance(f[0], LinkBegin)]
        wild = hostile_frames(random.Random(4), nonces)
        for _ in range(60):
            with Stranger(proxy.upstream or "", token(pair)) as stranger:
                stranger.send(next(wild))
        traffic.stop().check()
    pair.settled()
    assert rss_bytes(pair.nodes["d0"].pid) - rss_before < 32 << 20, "memory for what a peer claims"


def rss_bytes(pid: int) -> int:
    """Resident memory of a process."""
    with open(f"/proc/{pid}/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * 4096


def test_b4_a_destination_that_names_wild_pages_hurts_itself_only(pair: Fleet) -> None:
    """Go goes to the source; its page numbers are for logs, their count is what it is held to."""

    class Wild(Seen):
        rng = random.Random(5)

        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            if not isinstance(message, LinkGo):
                return [(message, payload)]
            pages = list(message.pages)
            kind = self.counts["LinkGo"] % 4
            if kind == 0:
                pages = [(1 << 32) - 1] * len(pages)
            elif kind == 1:
                pages = pages[:1]
            elif kind == 2:
                pages = pages + [0] * 1000
            return [(LinkGo(message.nonce, pages), payload)]

    wild = Wild()
    with_fresh_links(pair, wild, back=True)
    run_right(pair, some())
    assert wild.counts["LinkGo"] > 4
    pair.settled()


@pytest.mark.parametrize("lost", ["LinkBegin", "LinkGo", "LinkEnd"])
def test_b7_a_lost_message_costs_time_and_no_page(pair: Fleet, lost: str) -> None:
    class Lost(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            is_lost = type(message).__name__ == lost and self.counts[lost] % 3 == 1
            return [] if is_lost else [(message, payload)]

    change = Lost()
    with_fresh_links(pair, change, back=lost == "LinkGo")
    with pair.ask(*some(8), clients=4) as traffic:
        results = traffic.finish()
    results.check(at_least=8)
    assert change.counts[lost] > 0
    pair.settled()
    record("B7", lost=lost, longest_stall_s=results.longest_stall_s)
    # The hand-off timer, the fence timer and a new link; T6 is 4 s.
    assert results.longest_stall_s < 8


def test_b8_an_end_said_twice_is_an_end(pair: Fleet) -> None:
    class Twice(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            return [(message, payload)] * (2 if isinstance(message, LinkEnd) else 1)

    twice = Twice()
    with_fresh_links(pair, twice)
    before = pair.router.status()["replays_total"]
    run_right(pair, some())
    assert twice.counts["LinkEnd"] > 0
    assert pair.settled()["replays_total"] == before


@pytest.mark.parametrize("delay_s", [0.2, 1.5, pytest.param(10.0, marks=pytest.mark.soak)], ids=str)
def test_b8_an_end_that_comes_late_is_no_harm(pair: Fleet, delay_s: float) -> None:
    class Late(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            if isinstance(message, LinkEnd) and self.counts["LinkEnd"] % 2:
                pipe.later(delay_s, encode(message, payload))
                return []
            return [(message, payload)]

    late = Late()
    with_fresh_links(pair, late)
    run_right(pair, some(8), clients=4)
    assert late.counts["LinkEnd"] > 0
    pair.settled()


def test_b9_every_flipped_bit_is_detected_with_a_full_check(pair: Fleet) -> None:
    class Flip(Seen):
        rng = random.Random(9)

        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            if isinstance(message, LinkWrite) and message.nonce not in self.touched:
                self.touched.add(message.nonce)
                at = self.rng.randrange(8 * len(payload))
                changed = bytearray(payload)
                changed[at // 8] ^= 1 << at % 8
                payload = bytes(changed)
            return [(message, payload)]

    flip = Flip()
    with_fresh_links(pair, flip)
    before = pair.router.status()["handoffs_by"]
    run_right(pair, some(12))
    after = pair.settled()["handoffs_by"]
    ended = {f[0].nonce for f in flip.frames if isinstance(f[0], LinkEnd) and f[0].ok}
    found = after["lost"] - before["lost"]
    record("B9", flipped=len(ended & flip.touched), detected=found)
    # One that is given up counts as lost, too; that nothing flipped was taken, `run_right` says.
    assert found >= len(ended & flip.touched) > 0
    assert after["arrived"] == before["arrived"], "a shipment with a flipped bit was taken"


DAMAGE = {
    "write_first": lambda m: dataclasses.replace(m, first=m.first + 1),
    "write_nonce": lambda m: dataclasses.replace(m, nonce=m.nonce ^ 1),
    "write_lost": lambda m: None,
    "end_pages": lambda m: dataclasses.replace(m, pages=m.pages + 1),
    "end_pos": lambda m: dataclasses.replace(m, pos=m.pos + 1),
    "end_tokens": lambda m: dataclasses.replace(m, tokens=[*m.tokens[:-1], m.tokens[-1] ^ 1]),
    "end_hash": lambda m: dataclasses.replace(m, tokens_hash=m.tokens_hash ^ 1),
    "end_checksum": lambda m: dataclasses.replace(m, checksum=(m.checksum or 0) ^ 1),
    "end_unchecked": lambda m: dataclasses.replace(m, checksum=None),
}


@pytest.mark.parametrize("kind", DAMAGE)
def test_b9_damaged_ids_and_counts_are_detected(pair: Fleet, kind: str) -> None:
    """Whatever the check covers: every damaged shipment is dropped and its request is right."""
    target = LinkWrite if kind.startswith("write") else LinkEnd

    class Damage(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            is_first = isinstance(message, target) and message.nonce not in self.touched
            if not is_first or (isinstance(message, LinkEnd) and not message.ok):
                return [(message, payload)]
            self.touched.add(message.nonce)
            changed = DAMAGE[kind](message)
            return [] if changed is None else [(changed, payload)]

    damage = Damage()
    with_fresh_links(pair, damage)
    before = pair.router.status()["handoffs_by"]["arrived"]
    run_right(pair, some(3, seed=9), clients=3)
    assert damage.touched
    assert pair.settled()["handoffs_by"]["arrived"] == before


def test_b14_one_client_id_for_many_requests_is_a_label(pair: Fleet) -> None:
    """The same x-request-id at the same time: separate seats, separate answers."""

    def ask(one: Ask) -> tuple[str, str]:
        body = {"model": "mock", "prompt": one.prompt, "max_tokens": one.max_tokens}
        body |= {"temperature": 0, "ignore_eos": True}
        answer = pair.router.call("POST", "/v1/completions", body, headers={"x-request-id": "same"})
        assert answer.status == 200, answer.body
        return answer.headers["x-request-id"], answer.json()["choices"][0]["text"]

    asks = some(12, seed=14)
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        found = list(pool.map(ask, asks))
    for (_, text), one in zip(found, asks, strict=True):
        assert text == bytes(one.tokens).decode()
    pair.settled()


def test_b15_prompts_of_all_lengths_in_one_request(pair: Fleet) -> None:
    lengths = [1, 2, 15, 16, 17, 31, 32, 33, 160, 1_000, 4_000]
    prompts = [tuple((n * 7 + k) % 256 for k in range(n)) for n in lengths]
    body = {"model": "mock", "prompt": prompts, "max_tokens": 24, "temperature": 0}
    answer = pair.router.call("POST", "/v1/completions", body | {"ignore_eos": True})
    assert answer.status == 200, answer.body
    choices = sorted(answer.json()["choices"], key=lambda choice: choice["index"])
    for choice, prompt in zip(choices, prompts, strict=True):
        assert choice["text"] == bytes(Ask(prompt, 24).tokens).decode()
    assert answer.json()["usage"]["completion_tokens"] == 24 * len(lengths)
    pair.settled()


def test_cancels_in_the_middle_of_lost_messages(pair: Fleet) -> None:
    """Cancels in the middle of everything, with links that lose an End now and then."""

    class Lossy(Seen):
        def change(self, pipe: Pipe, message: LinkMessage, payload: bytes) -> Iterable[Frame]:
            is_lost = isinstance(message, LinkEnd) and self.counts["LinkEnd"] % 5 == 0
            return [] if is_lost else [(message, payload)]

    with_fresh_links(pair, Lossy())
    asks = [
        dataclasses.replace(one, leave_after=k % 7 if k % 2 else None)
        for k, one in zip(itertools.count(), some(40, seed=9), strict=False)
    ]
    with pair.ask(*asks, clients=8) as traffic:
        results = traffic.finish()
    results.check(at_least=15)
    assert len(results.of(Verdict.LEFT)) >= 15
    pair.settled()
