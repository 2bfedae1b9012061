"""A router that does what a test tells it: real gRPC on a free port, no brain."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from concurrent import futures
from dataclasses import dataclass, field

import grpc

from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd._gen.dopd.worker.v1 import worker_pb2_grpc as pb_grpc

TOKEN = "token-of-the-tests"
WAIT_S = 30.0
HEARTBEAT_S = 0.1
PROMPT_HASH = 7


@dataclass
class Attached:
    """One stream of one worker, from the router's side. `state` is what its reports added up to."""

    hello: pb.Hello
    session: int
    outgoing: queue.SimpleQueue[pb.AttachResponse | None] = field(default_factory=queue.SimpleQueue)
    reports: list[pb.Report] = field(default_factory=list)
    opened: dict[int, pb.Grant] = field(default_factory=dict)
    arrived: dict[int, tuple[int, list[int]]] = field(default_factory=dict)
    tokens: dict[int, list[int]] = field(default_factory=dict)
    closed: dict[int, str] = field(default_factory=dict)
    messages: dict[int, str] = field(default_factory=dict)
    is_gone: bool = False

    def send(self, *commands: pb.Command) -> None:
        """One Cmd."""
        self.send_as(self.session, *commands)

    def send_as(self, session: int, *commands: pb.Command) -> None:
        """One Cmd under any session."""
        self.outgoing.put(pb.AttachResponse(cmd=pb.Cmd(session=session, commands=commands)))

    def hang_up(self) -> None:
        """End the stream from the router's side."""
        self.outgoing.put(None)

    def add(self, report: pb.Report) -> None:
        """Take a report, column by column, in the order of worker.proto."""
        self.reports.append(report)
        self.opened.update(zip(report.opened_slots, report.opened_grants, strict=True))
        tails = list(report.arrived_tails)
        for slot, pos, size in zip(
            report.arrived_slots, report.arrived_pos, report.arrived_tail_lens, strict=True
        ):
            self.arrived[slot] = (pos, tails[:size])
            tails = tails[size:]
        for slot, token in zip(report.token_slots, report.tokens, strict=True):
            assert slot not in self.closed, "a token after closed"
            self.tokens.setdefault(slot, []).append(token)
        for slot, reason, message in zip(
            report.closed_slots, report.closed_reasons, report.closed_messages, strict=True
        ):
            assert slot not in self.closed, "a second closed for one Open"
            self.closed[slot] = pb.CloseReason.Name(reason).removeprefix("CLOSE_REASON_").lower()
            self.messages[slot] = message

    @property
    def last(self) -> pb.Report:
        """The newest report."""
        return self.reports[-1]


class ScriptedRouter(pb_grpc.WorkerServiceServicer):
    """Takes workers in and notes what they report; tests wait on conditions, never on time."""

    def __init__(
        self,
        lease_ms: int = 3000,
        refusal: pb.Refusal | None = None,
        address: str = "127.0.0.1:0",
    ) -> None:
        self.attached: list[Attached] = []
        self.lease_ms = lease_ms
        self.refusal = refusal
        self.num_refused = 0
        # No heartbeats: leases run out.
        self.is_silent = False
        # Reports are not read either, as by a process that was stopped.
        self.is_deaf = False
        self._changed = threading.Condition()
        self._server = grpc.server(futures.ThreadPoolExecutor(16))
        pb_grpc.add_WorkerServiceServicer_to_server(self, self._server)
        self.address = f"127.0.0.1:{self._server.add_insecure_port(address)}"

    def __enter__(self) -> ScriptedRouter:
        self._server.start()
        return self

    def __exit__(self, *_: object) -> None:
        for one in self.attached:
            one.hang_up()
        self._server.stop(grace=0.2).wait()

    def wait_for(self, condition: Callable[[], object], what: str) -> None:
        """Until the condition holds; it is looked at after every report."""
        with self._changed:
            assert self._changed.wait_for(condition, WAIT_S), f"timed out waiting for {what}"

    def worker(self, name: str) -> Attached:
        """The living stream of a worker, once it is there."""
        found: list[Attached] = []

        def is_there() -> bool:
            found[:] = [a for a in self.attached if a.hello.worker == name and not a.is_gone]
            return bool(found)

        self.wait_for(is_there, f"worker {name}")
        return found[-1]

    def Attach(
        self, requests: Iterator[pb.AttachRequest], context: grpc.ServicerContext
    ) -> Iterator[pb.AttachResponse]:
        metadata = dict(context.invocation_metadata())
        if metadata.get("authorization") != f"Bearer {TOKEN}":
            context.abort(grpc.StatusCode.UNAUTHENTICATED, "wrong join token")
        hello = next(requests).hello
        if self.refusal is not None:
            refusal = self.refusal
            with self._changed:
                self.num_refused += 1
                self._changed.notify_all()
            yield pb.AttachResponse(refusal=refusal)
            return
        with self._changed:
            one = Attached(hello, session=len(self.attached) + 1)
            self.attached.append(one)
            self._changed.notify_all()
        yield pb.AttachResponse(
            welcome=pb.Welcome(
                session=one.session,
                router="scripted",
                lease_ms=self.lease_ms,
                report_interval_ms=50,
                kv_check=pb.KV_CHECK_HEADER,
                kv_scrub=pb.KV_SCRUB_TENANT,
            )
        )
        threading.Thread(target=self._read, args=(one, requests), daemon=True).start()
        while True:
            try:
                message = one.outgoing.get(timeout=HEARTBEAT_S)
            except queue.Empty:
                if self.is_silent:
                    continue
                message = pb.AttachResponse(cmd=pb.Cmd(session=one.session))
            if message is None or one.is_gone:
                return
            yield message

    def _read(self, one: Attached, requests: Iterator[pb.AttachRequest]) -> None:
        try:
            for request in requests:
                with self._changed:
                    one.add(request.report)
                    self._changed.notify_all()
                    while self.is_deaf:
                        self._changed.wait(HEARTBEAT_S)
        except grpc.RpcError:
            pass
        with self._changed:
            one.is_gone = True
            one.outgoing.put(None)
            self._changed.notify_all()


def open_compute(
    slot: int,
    prompt: list[int],
    max_tokens: int,
    *,
    answer: list[int] | None = None,
    **limits: object,
) -> pb.Command:
    """Open a seat that computes."""
    return pb.Command(
        open=pb.Open(
            slot=slot,
            pages=-(-(len(prompt) + max_tokens) // 16),
            prompt_tokens=len(prompt),
            prompt_hash=PROMPT_HASH,
            sampling=pb.Sampling(temperature=0.0),
            limits=pb.Limits(max_tokens=max_tokens, **limits),
            compute=pb.Compute(prompt=prompt, answer=answer or []),
        )
    )


def open_import(
    slot: int, prompt_tokens: int, max_tokens: int, have: int = 0, **limits: object
) -> pb.Command:
    """Open a seat whose KV comes from another worker."""
    message = pb.Open(
        slot=slot,
        pages=-(-(prompt_tokens + max_tokens) // 16),
        prompt_tokens=prompt_tokens,
        prompt_hash=PROMPT_HASH,
        sampling=pb.Sampling(temperature=0.0),
        limits=pb.Limits(max_tokens=max_tokens, **limits),
    )
    getattr(message, "import").SetInParent()
    getattr(message, "import").have = have
    return pb.Command(open=message)


def set_role(role: pb.Role, epoch: int, *, drain: bool = False) -> pb.Command:
    """Change the label."""
    return pb.Command(set_role=pb.SetRole(role=role, drain=drain, epoch=epoch))


def send(slot: int, grant: pb.Grant | None) -> pb.Command:
    """Ship, or stay."""
    return pb.Command(send=pb.Send(slot=slot, grant=grant))


def close(slot: int) -> pb.Command:
    """Close a seat."""
    return pb.Command(close=pb.Close(slot=slot))
