"""The gRPC front over real processes: Generate, health, reflection, errors with details."""

from __future__ import annotations

from collections.abc import Iterator

import grpc
import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import (
    ProtoReflectionDescriptorDatabase,
)
from grpc_status import rpc_status

from dopd._gen.dopd.v1 import inference_pb2, inference_pb2_grpc, types_pb2
from tests.support import mock_model
from tests.support.server import Server

TIMEOUT_S = 30.0


@pytest.fixture
def channel(mock: Server) -> Iterator[grpc.Channel]:
    with grpc.insecure_channel(mock.grpc) as found:
        yield found


def request(**fields: object) -> inference_pb2.GenerateRequest:
    ids = inference_pb2.TokenIds(ids=[7, 77, 177])
    sampling = inference_pb2.Sampling(temperature=0)
    base = {"max_tokens": 40, "ignore_eos": True, "sampling": sampling}
    prompt = {name: fields.pop(name) for name in ("model", "text", "token_ids") if name in fields}
    options = inference_pb2.AnswerOptions(**(base | fields))
    return inference_pb2.GenerateRequest(**({"token_ids": ids} | prompt), options=options)


def generate(channel: grpc.Channel, **fields: object) -> list[inference_pb2.GenerateResponse]:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    return list(stub.Generate(request(**fields), timeout=TIMEOUT_S))


def test_generate_tells_start_tokens_end_and_usage_in_order(channel: grpc.Channel) -> None:
    events = generate(channel)
    assert [event.sequence_number for event in events] == list(range(len(events)))
    kinds = [event.WhichOneof("event") for event in events]
    assert kinds[0] == "started"
    assert kinds[-2:] == ["finished", "done"]
    assert set(kinds[1:-2]) == {"delta"}
    tokens = [token for event in events for token in event.delta.token_ids]
    assert tokens == mock_model.answer([7, 77, 177], 40, ignore_eos=True)
    assert "".join(event.delta.text for event in events) == mock_model.text(tokens)
    assert events[0].started.prompt_tokens == 3
    assert events[-2].finished.reason == types_pb2.FINISH_REASON_LENGTH
    assert events[-1].done.usage.completion_tokens == 40


def test_choices_finish_once_each(channel: grpc.Channel) -> None:
    events = generate(channel, n=2, max_tokens=5)
    finished = [e.finished.choice for e in events if e.WhichOneof("event") == "finished"]
    assert sorted(finished) == [0, 1]


def test_logprobs_come_with_their_tokens(channel: grpc.Channel) -> None:
    deltas = [event.delta for event in generate(channel, max_tokens=5, top_logprobs=2)]
    for delta in deltas:
        assert [entry.chosen.token_id for entry in delta.logprobs] == list(delta.token_ids)
    assert sum(len(delta.logprobs) for delta in deltas) == 5


def test_an_error_carries_reason_and_field(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        generate(channel, sampling=inference_pb2.Sampling(temperature=9))
    assert caught.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    info, bad = error_details_pb2.ErrorInfo(), error_details_pb2.BadRequest()
    for detail in rpc_status.from_call(caught.value).details:
        for message in (info, bad):
            if detail.Is(message.DESCRIPTOR):
                detail.Unpack(message)
    assert (info.domain, info.reason) == ("dopd", "invalid_value")
    assert bad.field_violations[0].field.endswith("temperature")


def test_an_unknown_model_is_not_found(channel: grpc.Channel) -> None:
    with pytest.raises(grpc.RpcError) as caught:
        generate(channel, model="nope")
    assert caught.value.code() == grpc.StatusCode.NOT_FOUND


def test_a_deadline_ends_the_call(mock: Server, channel: grpc.Channel) -> None:
    stub = inference_pb2_grpc.InferenceServiceStub(channel)
    with pytest.raises(grpc.RpcError) as caught:
        list(stub.Generate(request(max_tokens=120_000), timeout=0.2))
    assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    mock.wait_idle()


def test_health_says_serving(channel: grpc.Channel) -> None:
    stub = health_pb2_grpc.HealthStub(channel)
    for service in ("", "dopd.v1.InferenceService"):
        answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=TIMEOUT_S)
        assert answer.status == health_pb2.HealthCheckResponse.SERVING


def test_reflection_lists_the_services(channel: grpc.Channel) -> None:
    found = ProtoReflectionDescriptorDatabase(channel).get_services()
    assert {"dopd.v1.InferenceService", "grpc.health.v1.Health"} <= set(found)
