"""Two and three workers in all orders, with faults: the invariants of handoff.md section 7 by name.

Each seed is one history: whatever may happen next is listed, and the seed chooses. Then the faults
end, and everything must come to a clean end: every request answered in full, every page free.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable

import pytest

from dopd.sched.prefix import wire_hash
from dopd.types import StepMode, StepPolicy
from tests.support.fleet import INSTANT, Fleet
from tests.support.mock_model import answer
from tests.support.model_router import END, WAIT, ModelRouter, Request
from tests.support.modelled import H100_8B

SEEDS = range(100)
NUM_ACTIONS = 600
# More than any history needs: a bound that ends a livelock.
NUM_ROUNDS_MAX = 3000


class History:
    """One run: what may happen, and what did."""

    def __init__(self, seed: int) -> None:
        self.random = rng = random.Random(seed)
        num_workers, num_pages = rng.choice((2, 2, 3)), rng.choice((4, 8, 12))
        is_timed, mode = rng.random() < 0.5, rng.choice(list(StepMode))
        self.fleet = Fleet(
            num_workers,
            num_pages,
            prefix_cache=rng.random() < 0.6,
            timings=H100_8B if is_timed else INSTANT,
            step_policy=StepPolicy(mode, tpot_us=rng.choice((12_000, 30_000)), pause_min_us=5_000),
        )
        # What prompts begin with, and whose: the last one is nobody's, and is not kept.
        self.beginnings = [[rng.randrange(256) for _ in range(40)] for _ in range(2)]
        self.tenants = ((1, b"a" * 16), (2, b"b" * 16), (0, b""))
        self.router = ModelRouter(self.fleet)
        # Not whole: sequences grow, and somebody is preempted.
        self.router.spare_tokens = rng.choice((None, 0, 1, 20))
        self.faults_left = rng.choice((0, 1, 3, 8))
        self.cancels_left = rng.choice((0, 1, 2))
        # Zero: a source freezes only when all but its last page is written.
        self.link_rate = rng.choice((0.0, 1e9))
        self.seen: Counter[str] = Counter()
        # Sessions that one side has lost and the other not yet: (worker, who is to see it).
        self.losing: list[tuple[int, str]] = []
        for worker in range(len(self.fleet.nodes)):
            self.router.attach(worker)
        self.arrivals_left = 8
        self.living_max = rng.choice((1, 2, 3))

    def arrive(self) -> None:
        """One more request."""
        rng = self.random
        self.arrivals_left -= 1
        length = rng.choice((1, 5, 16, 30, 40))
        prompt = [rng.randrange(256) for _ in range(length)]
        if rng.random() < 0.7:
            num_equal = rng.randrange(length + 1)
            prompt[:num_equal] = rng.choice(self.beginnings)[:num_equal]
        tenant, salt = rng.choice(self.tenants)
        # Some come as choices of one request: the same prompt under one number.
        num_choices = rng.choice((1, 1, 3))
        group = self.arrivals_left + 1 if num_choices > 1 else 0
        for _ in range(num_choices):
            expected = answer(prompt, rng.choice((1, 2, 8, 20)))
            one = Request(prompt, expected, group=group, salt=salt, tenant=tenant)
            self.router.requests.append(one)

    def choices(self) -> list[tuple[str, Callable[[], None]]]:
        """Everything that may happen now."""
        rng, router, fleet = self.random, self.router, self.fleet
        found: list[tuple[str, Callable[[], None]]] = []
        for worker, node in enumerate(fleet.nodes):
            found.append(("turn", node.loop.turn))
            if node.commands:
                found += 2 * [("command", node.deliver_command)]
            if node.reports:
                found += 2 * [("report", lambda w=worker: router.deliver_report(w))]
        found += [(d.kind, lambda d=d: fleet.network.deliver(d)) for d in fleet.network.pending()]
        found += [
            (f"{who} loses", lambda i=i: self.lose(i)) for i, (_, who) in enumerate(self.losing)
        ]
        a, b = rng.sample(range(len(fleet.nodes)), 2)
        living = sum(request.state != END for request in router.requests)
        if self.arrivals_left and living < self.living_max:
            found.append(("arrive", self.arrive))
        for request in router.requests:
            if request.state == WAIT:
                found.append(("place", lambda r=request: router.place(r, a)))
                found += 3 * [("place pair", lambda r=request: router.place_pair(r, a, b))]
            elif request.state != END:
                found.append(("move", lambda r=request: router.move(r, a)))
        return found + self.faults()

    def faults(self) -> list[tuple[str, Callable[[], None]]]:
        """What may go wrong, while anything may."""
        rng, router, fleet = self.random, self.router, self.fleet
        found: list[tuple[str, Callable[[], None]]] = []
        if self.cancels_left and rng.random() < 0.05 and router.requests:
            found.append(("cancel", self.cancel))
        if not self.faults_left or rng.random() > 0.1:
            return found
        worker = rng.randrange(len(fleet.nodes))
        found.append(("break session", lambda: self.break_session(worker)))
        found.append(("crash", lambda: self.crash(worker)))
        found.append(("time passes", self.pass_time))
        desk = fleet.nodes[worker].desk
        found += [("preempt", lambda s=slot: desk.preempt(s)) for slot in desk.seats.by_slot]
        found += [("give up", lambda r=r: router.give_up(r)) for r in router.requests]
        links = fleet.nodes[worker].transport.links
        found += [("cut", lambda link=link: link.abort("cut")) for link in links]
        for delivery in fleet.network.pending():
            if delivery.kind in ("begin", "go", "end"):
                found.append(("drop", lambda d=delivery: fleet.network.drop(d)))
                found.append(("double", lambda d=delivery: fleet.network.double(d)))
        return [(name, self.spending(act)) for name, act in found]

    def spending(self, act: Callable[[], None]) -> Callable[[], None]:
        def spend() -> None:
            self.faults_left -= 1
            act()

        return spend

    def cancel(self) -> None:
        self.cancels_left -= 1
        self.router.cancel(self.random.choice(self.router.requests))

    def pass_time(self) -> None:
        self.fleet.now += 1.0

    def break_session(self, worker: int) -> None:
        if self.router.sessions[worker] and not any(w == worker for w, _ in self.losing):
            self.losing += [(worker, "router"), (worker, "worker")]

    def crash(self, worker: int) -> None:
        if any(w == worker for w, _ in self.losing):
            return
        self.fleet.nodes[worker].crash()
        self.losing.append((worker, "router"))

    def lose(self, index: int) -> None:
        """One side sees a loss; when both have, the worker attaches again."""
        worker, who = self.losing.pop(index)
        if who == "router":
            self.router.lose_session(worker)
        else:
            self.fleet.nodes[worker].lose_session()
        if not any(w == worker for w, _ in self.losing):
            self.fleet.nodes[worker].reports.clear()
            self.router.attach(worker)

    def happen(self) -> None:
        """One thing happens; then everything that must always hold, holds."""
        name, act = self.random.choice(self.choices())
        self.seen[name] += 1
        act()
        for node in self.fleet.nodes:
            for link in node.transport.links:
                link.bytes_per_s = self.link_rate
            node.check()
            outgrown = node.desk._facts.preempted and not self.seen["preempt"]
            self.seen["preempted for pages"] += bool(outgrown)
            self.seen["mixed"] += node.desk.batcher.belief.steps_mixed > 0
            self.seen["paused"] += node.desk.batcher.belief.steps_paused > 0
            self.seen["shared"] += bool(node.num_shared())
            firsts = [seat.first for seat in node.desk.seats.by_slot.values() if seat.nonce]
            self.seen["import begins with cached pages"] += bool(any(firsts))
        self.seen["reused"] = len(self.router.reused)

    def is_over(self) -> bool:
        return (
            all(request.state == END for request in self.router.requests)
            and all(node.is_clean() and not node.reports for node in self.fleet.nodes)
            and not any(self.router.slots)
        )

    def come_to_an_end(self) -> None:
        """No more faults: messages arrive, workers step, timers fire, requests are placed."""
        self.faults_left = self.cancels_left = self.arrivals_left = 0
        for _ in range(NUM_ROUNDS_MAX):
            if self.is_over():
                self.check_index()
                return
            self.happen()
            if self.random.random() < 0.05:
                self.pass_time()
                for request in self.router.requests:
                    self.router.give_up(request)
        raise AssertionError(
            f"every_fault_free_run_ends_clean: {[r.state for r in self.router.requests]} "
            f"{[node.desk.seats.by_slot for node in self.fleet.nodes]}"
        )

    def check_index(self) -> None:
        """What the router heard of the caches is what they hold."""
        for node, kept in zip(self.fleet.nodes, self.router.kept, strict=True):
            keys = node.desk.seats.prefixes._page_of
            assert kept == {wire_hash(key) for key in keys}


@pytest.mark.parametrize("seed", SEEDS)
def test_invariants_hold_in_every_history_and_it_ends_clean(seed: int) -> None:
    history = History(seed)
    for _ in range(NUM_ACTIONS):
        history.happen()
    history.come_to_an_end()


def test_the_histories_see_everything() -> None:
    """A history in which a thing never happens proves nothing about it."""
    seen: Counter[str] = Counter()
    for seed in range(40):
        history = History(seed)
        for _ in range(NUM_ACTIONS):
            history.happen()
        seen += history.seen
    wanted = "turn command report connect begin go write written end down place move cancel crash"
    missing = {
        *wanted.split(),
        "preempt",
        "cut",
        "shared",
        "preempted for pages",
        "mixed",
        "paused",
        "reused",
        "import begins with cached pages",
        "drop",
        "double",
        "give up",
        "time passes",
    } - set(seen)
    assert not missing
