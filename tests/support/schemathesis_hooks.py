"""Loaded into schemathesis by its configuration: a check of our own.

`positive_data_acceptance` wants a success for every body of the schema. A schema cannot say how
fields bear on each other, so a refusal for such a relation is right; any other one is a bound that
the page does not tell.
"""

from __future__ import annotations

from typing import Any

import schemathesis

# (code, field or None for any): why a body of the schema may be refused.
RELATIONS = {
    ("invalid_value", "stream_options"): "needs stream",
    ("invalid_value", "top_logprobs"): "needs logprobs",
    ("invalid_value", "min_tokens"): "is at most what the answer may have",
    ("invalid_value", "max_tokens"): "is 0 with echo only",
    ("invalid_value", "best_of"): "is at least n, and not streamed",
    ("invalid_value", "prompt_logprobs"): "are not streamed",
    ("invalid_value", "messages"): "are not tokenized beside a prompt",
    ("invalid_value", "logit_bias"): "names tokens",
    ("invalid_value", "stop"): "is bounded in bytes, which a schema cannot count",
    ("invalid_value", "prompt"): "has a token; which texts have none, the tokenizer knows",
    ("unsupported_value", "tools"): "need the choice of tool to be none",
    ("unsupported_value", "functions"): "need the choice of tool to be none",
    ("context_length_exceeded", None): "prompt plus answer fit the context",
}


@schemathesis.check
def refusals_of_valid_bodies_are_relations(ctx: Any, response: Any, case: Any) -> None:
    """A body of the schema is answered, or refused for how its fields bear on each other."""
    meta = case.meta
    if meta is None or not meta.generation.mode.is_positive or response.status_code != 400:
        return
    error = response.json()["error"]
    known = {(error["code"], error["param"]), (error["code"], None)}
    assert known & RELATIONS.keys(), f"refused though of the schema: {error}"
