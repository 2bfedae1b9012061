"""The calls that the client makes: paths and encodings.

Not the generated stubs: those refuse to load under an older grpcio than the one that wrote them.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client.details import fields
from dopd.client.results import HealthStatus

Q = TypeVar("Q")
R = TypeVar("R")

SERVICE = "dopd.v1.InferenceService"
# `grpc.health.v1.HealthCheckResponse.ServingStatus`
HEALTH_STATUSES: dict[int | bytes, HealthStatus] = {1: "serving", 2: "not_serving"}


@dataclass(frozen=True)
class Method(Generic[Q, R]):
    """One method of a service."""

    path: str
    encode: Callable[[Q], bytes]
    decode: Callable[[bytes], R]


def _health_request(service: str) -> bytes:
    """`HealthCheckRequest{service}`; a name is shorter than 128 bytes."""
    return bytes((1 << 3 | 2, len(service))) + service.encode()


def _health_status(data: bytes) -> HealthStatus:
    """`HealthCheckResponse{status}`."""
    return HEALTH_STATUSES.get(dict(fields(data)).get(1, 0), "unknown")


GENERATE = Method(
    f"/{SERVICE}/Generate",
    pb.GenerateRequest.SerializeToString,
    pb.GenerateResponse.FromString,
)
CHAT = Method(f"/{SERVICE}/Chat", pb.ChatRequest.SerializeToString, pb.ChatResponse.FromString)
TOKENIZE = Method(
    f"/{SERVICE}/Tokenize",
    pb.TokenizeRequest.SerializeToString,
    pb.TokenizeResponse.FromString,
)
DETOKENIZE = Method(
    f"/{SERVICE}/Detokenize",
    pb.DetokenizeRequest.SerializeToString,
    pb.DetokenizeResponse.FromString,
)
LIST_MODELS = Method(
    f"/{SERVICE}/ListModels",
    pb.ListModelsRequest.SerializeToString,
    pb.ListModelsResponse.FromString,
)
GET_MODEL = Method(
    f"/{SERVICE}/GetModel",
    pb.GetModelRequest.SerializeToString,
    pb.GetModelResponse.FromString,
)
CHECK_HEALTH = Method("/grpc.health.v1.Health/Check", _health_request, _health_status)
