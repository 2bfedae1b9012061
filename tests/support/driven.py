"""One worker of a fake fleet, driven turn by turn, and what its reports said."""

from __future__ import annotations

from collections import defaultdict

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.types import Command, Commands
from tests.support.fleet import Fleet, Node

TURNS_MAX = 400


class Driven:
    """What a test adds: `heard` for what else it reads of reports, `is_over` for when it ends.

    tokens: by slot, of all its lives.
    """

    def __init__(self, num_pages: int, *, prefix_cache: bool = False) -> None:
        self.fleet = Fleet(1, num_pages, prefix_cache=prefix_cache)
        self.node: Node = self.fleet.nodes[0]
        self.node.attach(1)
        self.tokens: dict[int, list[int]] = defaultdict(list)

    def send(self, *commands: Command) -> None:
        """Says it to the worker's session, in one batch."""
        session = self.node.session
        assert session is not None
        self.node.desk.post(Commands(session.id, list(commands)))

    def turn(self) -> None:
        """One turn of its loop; reads its reports."""
        self.node.loop.turn()
        self.node.check()
        while self.node.reports:
            report = self.node.reports.popleft()
            for slot, token in zip(report.token_slots, report.tokens, strict=True):
                self.tokens[slot].append(token)
            self.heard(report)

    def heard(self, report: pb.Report) -> None:
        """What a report says besides tokens."""

    def is_over(self) -> bool:
        """Nobody is left."""
        return self.node.is_clean()

    def run(self) -> None:
        """Until nobody is left."""
        for _ in range(TURNS_MAX):
            self.turn()
            if self.is_over():
                return
        raise AssertionError("it does not end")
