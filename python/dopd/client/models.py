"""Models as `client` and `async_client` hand them out."""

from __future__ import annotations

from dopd._gen.dopd.v1 import inference_pb2 as pb
from dopd.client.results import Model


def model_of(model: pb.Model) -> Model:
    """The model without protobuf."""
    return Model(model.name, model.created_s, model.owned_by, model.max_model_len, model.ready)
