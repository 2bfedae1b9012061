"""The stream between router and worker. Called by `worker/attach` and the desk.

What comes in is checked for shape here, before anything else sees it; defaults of sampling are
applied here, never by protobuf's zero values.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

from dopd._gen.dopd.worker.v1 import logprobs_pb2
from dopd._gen.dopd.worker.v1 import worker_pb2 as pb
from dopd.errors import ProtocolError
from dopd.types import (
    Close,
    CloseReason,
    Command,
    Commands,
    Compute,
    Endpoint,
    Grant,
    Import,
    KvCheck,
    KvGeometry,
    KvScrub,
    Limits,
    LogitAdjustments,
    Logprobs,
    Open,
    Refusal,
    ReportColumns,
    ReportHead,
    Role,
    SamplingParams,
    Send,
    SetRole,
    StepMode,
    StepPolicy,
    Welcome,
    WorkerFacts,
)

if TYPE_CHECKING:
    import grpc

_Word = TypeVar("_Word")

AttachRequest = pb.AttachRequest
AttachResponse = pb.AttachResponse


ATTACH_METHOD = f"/{pb.DESCRIPTOR.services_by_name['WorkerService'].full_name}/Attach"

_ROLES = {
    Role.PREFILL: pb.ROLE_PREFILL,
    Role.DECODE: pb.ROLE_DECODE,
    Role.MIXED: pb.ROLE_MIXED,
}
_ROLES_BACK = {number: role for role, number in _ROLES.items()}
_KV_CHECKS = {pb.KvCheck.Value(f"KV_CHECK_{check.name}"): check for check in KvCheck}
_KV_SCRUBS = {pb.KvScrub.Value(f"KV_SCRUB_{scrub.name}"): scrub for scrub in KvScrub}
_STEP_MODES = {pb.StepMode.Value(f"STEP_MODE_{mode.name}"): mode for mode in StepMode}
_REASONS = {reason: pb.CloseReason.Value(f"CLOSE_REASON_{reason.name}") for reason in CloseReason}


def attach_stream(
    channel: grpc.Channel, requests: Iterator[pb.AttachRequest], token: str
) -> grpc.CallIterator[pb.AttachResponse]:
    """Open the stream that is the worker's lease."""
    # The generated stub would do the same, untyped.
    attach = channel.stream_stream(
        ATTACH_METHOD,
        request_serializer=pb.AttachRequest.SerializeToString,
        response_deserializer=pb.AttachResponse.FromString,
    )
    return attach(requests, metadata=(("authorization", f"Bearer {token}"),))


# Worker -> router


def hello(facts: WorkerFacts, role: Role, role_epoch: int) -> pb.AttachRequest:
    """First message of a worker, with the label that it has now."""
    return pb.AttachRequest(
        hello=pb.Hello(
            worker=facts.worker,
            incarnation=facts.incarnation,
            role=_ROLES[role],
            geometry=geometry(facts.geometry),
            pages_total=facts.pages_total,
            max_num_seqs=facts.max_num_seqs,
            max_batch_tokens=facts.max_batch_tokens,
            max_model_len=facts.max_model_len,
            vocab_size=facts.vocab_size,
            model=facts.model,
            device=facts.device,
            data_address=facts.data_address,
            transports=facts.transports,
            pid=facts.pid,
            timings_json=facts.timings_json,
            role_epoch=role_epoch,
            version=facts.version,
        )
    )


def geometry(kv: KvGeometry) -> pb.KvGeometry:
    """What must be equal on both sides of a hand-off."""
    return pb.KvGeometry(
        model_hash=kv.model_hash,
        dtype=kv.dtype,
        page_size=kv.page_size,
        num_layers=kv.num_layers,
        num_kv_heads=kv.num_kv_heads,
        head_dim=kv.head_dim,
        layout=kv.layout,
        tensor_parallel=kv.tensor_parallel,
        page_bytes=kv.page_bytes,
    )


def grant_message(grant: Grant) -> pb.Grant:
    """A ticket, for the router to relay."""
    return pb.Grant(
        worker=grant.worker,
        incarnation=grant.incarnation,
        endpoints=[
            pb.Endpoint(transport=one.transport, address=one.address, host=one.host)
            for one in grant.endpoints
        ],
        nonce=grant.nonce,
    )


def report(head: ReportHead, columns: ReportColumns) -> pb.AttachRequest:
    """One report: what a step changed, in columns."""
    message = pb.AttachRequest()
    it = message.report
    it.session = head.session
    it.step = head.step
    it.step_us = head.step_us
    it.next_step_us = head.next_step_us
    it.role_epoch = head.role_epoch
    it.role = _ROLES[head.role]
    it.draining = head.draining
    it.pages_free = head.pages_free
    it.pages_cached = head.pages_cached
    it.pages_fenced = head.pages_fenced
    it.pages_owned = head.pages_owned
    it.running = head.running
    it.prefill_tokens_queued = head.prefill_tokens_queued
    it.step_prefill_tokens = head.step_prefill_tokens
    it.step_decode_seqs = head.step_decode_seqs
    it.step_expected_us = head.step_expected_us
    it.decode_step_us = head.decode_step_us
    it.mixed_penalty_permille = head.mixed_penalty_permille
    it.steps_mixed = head.steps_mixed
    it.steps_paused = head.steps_paused
    it.preempted = head.preempted
    it.token_slots.extend(columns.token_slots)
    it.tokens.extend(columns.tokens)
    if columns.opened_slots:
        it.opened_slots.extend(columns.opened_slots)
        it.opened_grants.extend(grant_message(grant) for grant in columns.opened_grants)
    for slot, pos, tail in columns.arrived:
        it.arrived_slots.append(slot)
        it.arrived_pos.append(pos)
        it.arrived_tail_lens.append(len(tail))
        it.arrived_tails.extend(tail)
    for slot, reason, text, retry_ms in columns.closed:
        it.closed_slots.append(slot)
        it.closed_reasons.append(_REASONS[reason])
        it.closed_messages.append(text)
        it.closed_retry_ms.append(retry_ms)
    for index, logprobs in columns.logprobs:
        it.logprobs.token_index.append(index)
        it.logprobs.chosen.append(logprobs.chosen)
        it.logprobs.top_lens.append(len(logprobs.top))
        it.logprobs.top_tokens.extend(token for token, _ in logprobs.top)
        it.logprobs.top_logprobs.extend(value for _, value in logprobs.top)
    for slot, start, values in columns.prompt_logprobs:
        _add_run(it.prompt_logprobs, slot, start, values)
    for slot, tokens in columns.reused:
        it.reused_slots.append(slot)
        it.reused_tokens.append(tokens)
    it.stored_hashes.extend(columns.stored)
    it.evicted_hashes.extend(columns.evicted)
    if columns.links is not None:
        it.links_changed = True
        for link in columns.links:
            it.links.add(peer=link.peer, transport=link.transport, bytes_per_s=link.bytes_per_s)
    return message


def _add_run(
    it: logprobs_pb2.PromptLogprobs, slot: int, start: int, values: list[Logprobs]
) -> None:
    it.slots.append(slot)
    it.starts.append(start)
    it.lens.append(len(values))
    it.chosen.extend(one.chosen for one in values)
    it.top_lens.extend(len(one.top) for one in values)
    it.top_tokens.extend(token for one in values for token, _ in one.top)
    it.top_logprobs.extend(value for one in values for _, value in one.top)


# Router -> worker


def response(message: pb.AttachResponse) -> Welcome | Refusal | Commands:
    """One message of the router. Raises ProtocolError if it is none of the known kinds."""
    kind = message.WhichOneof("kind")
    if kind == "cmd":
        return Commands(message.cmd.session, [command(one) for one in message.cmd.commands])
    if kind == "welcome":
        welcome = message.welcome
        if not welcome.lease_ms or not welcome.report_interval_ms:
            raise ProtocolError("welcome without lease or report interval")
        return Welcome(
            session=welcome.session,
            router=welcome.router,
            lease_s=welcome.lease_ms / 1e3,
            report_interval_s=welcome.report_interval_ms / 1e3,
            kv_check=_known(_KV_CHECKS, welcome.kv_check, "KV check"),
            kv_scrub=_known(_KV_SCRUBS, welcome.kv_scrub, "KV scrub"),
            prefix_cache=welcome.prefix_cache,
            step_policy=_step_policy(welcome),
        )
    if kind == "refusal":
        return Refusal(message.refusal.message, message.refusal.retry)
    raise ProtocolError("empty message from the router")


def _step_policy(welcome: pb.Welcome) -> StepPolicy:
    """What the router wants of steps; one that says nothing wants them filled."""
    if not welcome.HasField("step_policy"):
        return StepPolicy()
    policy = welcome.step_policy
    if not policy.tpot_us:
        raise ProtocolError("step policy without a target per token")
    return StepPolicy(
        mode=_known(_STEP_MODES, policy.mode, "step mode"),
        chunk_tokens=policy.chunk_tokens,
        tpot_us=policy.tpot_us,
        mixed_step_ratio=policy.mixed_step_ratio,
        pace_ratio=policy.pace_ratio,
        pause_max_us=policy.pause_max_us,
        pause_min_us=policy.pause_min_us,
        slack_quantile=policy.slack_quantile,
        mixed_penalty_start=policy.mixed_penalty_start,
        probe_every=policy.probe_every,
        idle_slice_max_us=policy.idle_slice_max_us,
    )


def command(message: pb.Command) -> Command:
    """One command. Raises ProtocolError if it is none of the known kinds."""
    kind = message.WhichOneof("kind")
    if kind == "open":
        return _open(message.open)
    if kind == "send":
        grant = message.send.grant if message.send.HasField("grant") else None
        return Send(message.send.slot, None if grant is None else _grant(grant))
    if kind == "close":
        return Close(message.close.slot)
    if kind == "set_role":
        role = _known(_ROLES_BACK, message.set_role.role, "role")
        return SetRole(role, message.set_role.drain, message.set_role.epoch)
    raise ProtocolError("empty command")


def _known(words: Mapping[Any, _Word], number: int, what: str) -> _Word:
    word = words.get(number)
    if word is None:
        raise ProtocolError(f"unknown {what} {number}")
    return word


def _open(message: pb.Open) -> Open:
    kind = message.WhichOneof("kind")
    if kind is None:
        raise ProtocolError(f"open of slot {message.slot} says neither compute nor import")
    opened: Compute | Import
    if kind == "compute":
        compute = message.compute
        opened = Compute(list(compute.prompt), list(compute.answer), compute.prompt_group)
    else:
        imported = getattr(message, "import")
        prompt, tail = list(imported.prompt), list(imported.tail)
        opened = Import(imported.have, prompt, imported.prefix, tail)
    limits = message.limits
    return Open(
        slot=message.slot,
        pages=message.pages,
        prompt_tokens=message.prompt_tokens,
        limits=Limits(
            max_tokens=limits.max_tokens,
            min_tokens=limits.min_tokens,
            stop_token_ids=frozenset(limits.stop_token_ids),
            ignore_eos=limits.ignore_eos,
        ),
        kind=opened,
        sampling=_sampling(message.sampling),
        priority=message.priority,
        prompt_hash=message.prompt_hash,
        request_id=message.request_id,
        adjustments=_adjustments(message.adjustments),
        prompt_logprobs=(message.prompt_logprobs if message.HasField("prompt_logprobs") else None),
        traceparent=message.traceparent,
        tenant=message.tenant,
        prefix_salt=message.prefix_salt,
        slo_tpot_us=message.slo_tpot_us,
    )


def _adjustments(message: pb.LogitAdjustments) -> LogitAdjustments:
    tokens, values = message.bias_tokens, message.bias_values
    if len(tokens) != len(values):
        raise ProtocolError(f"{len(tokens)} bias tokens with {len(values)} values")
    return LogitAdjustments(
        presence_penalty=message.presence_penalty,
        frequency_penalty=message.frequency_penalty,
        # Protobuf's zero would make all of these tokens alike: an absent value means off.
        repetition_penalty=message.repetition_penalty or 1.0,
        bias=tuple(zip(tokens, values, strict=True)),
    )


def _sampling(message: pb.Sampling) -> SamplingParams:
    has_logprobs = message.HasField("top_logprobs")
    return SamplingParams(
        temperature=message.temperature,
        # Protobuf's zero is not a nucleus: an absent value means off.
        top_p=message.top_p or 1.0,
        top_k=message.top_k,
        min_p=message.min_p,
        seed=message.seed,
        choice=message.choice,
        top_logprobs=message.top_logprobs if has_logprobs else None,
    )


def _grant(message: pb.Grant) -> Grant:
    return Grant(
        worker=message.worker,
        incarnation=message.incarnation,
        endpoints=tuple(Endpoint(e.transport, e.address, e.host) for e in message.endpoints),
        nonce=message.nonce,
    )
