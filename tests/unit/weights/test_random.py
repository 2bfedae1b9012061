"""Made-up models: the same weights wherever they are made, by name and seed alone."""

from __future__ import annotations

import pytest
import torch

from dopd.engine.load import load
from dopd.errors import ModelError
from dopd.types import Row, Sampled, SamplingParams
from dopd.weights.checkpoint import check_shapes, open_checkpoint
from dopd.weights.hash import model_hash
from dopd.weights.made_up import CONFIGS, END_TOKEN, parse
from dopd.weights.random import AT_ONCE, RandomCheckpoint

CPU = torch.device("cpu")
NAME = "model.layers.1.mlp.down_proj.weight"


def test_names_are_models_and_paths_are_none() -> None:
    tiny = parse("random:tiny")
    assert tiny is not None and (tiny.name, tiny.seed) == ("tiny", 0)
    assert parse("random:tiny:0") == tiny
    assert parse("models/random:tiny") is None
    for model, problem in (
        ("random:huge", "no such shape; there are tiny, smollm2-135m, llama-3.1-8b"),
        ("random:tiny:x", "the seed is 'x', must be 0 to 4294967295"),
        ("random:tiny:4294967296", "must be 0 to"),
        ("random:tiny:²", "must be 0 to"),
    ):
        with pytest.raises(ModelError, match=problem):
            parse(model)


def test_hashes_are_of_name_and_seed_as_the_router_makes_them() -> None:
    """sha256 of "dopd-random-1:tiny:0"; router/src/tokens/made_up.rs has the same words."""
    assert model_hash("random:tiny").hex().startswith("e64b3139ba88d271")
    hashes = {model_hash(f"random:{name}:{seed}") for name in CONFIGS for seed in (0, 1)}
    assert len(hashes) == 2 * len(CONFIGS)


def test_tensors_are_of_their_name_and_seed() -> None:
    one, same, other = (open_checkpoint(f"random:tiny:{seed}").tensor(NAME) for seed in (4, 4, 5))
    assert torch.equal(one, same) and not torch.equal(one, other)
    sibling = open_checkpoint("random:tiny:4").tensor(NAME.replace("1", "0"))
    assert not torch.equal(one, sibling)
    # What any device must make of it: integers, and products that float32 holds exactly.
    assert one.flatten()[:3].tolist() == [
        0.05288856104016304,
        -0.05680372193455696,
        0.02970360592007637,
    ]


def test_a_matrix_keeps_the_variance_of_what_it_multiplies() -> None:
    checkpoint = open_checkpoint("random:tiny")
    weight = checkpoint.tensor(NAME)
    assert float(weight.mean()) == pytest.approx(0.0, abs=2e-3)
    assert float(weight.std()) == pytest.approx(weight.shape[1] ** -0.5, rel=0.02)
    assert bool((checkpoint.tensor("model.norm.weight") == 1).all())


def test_numbers_made_in_parts_are_those_made_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = open_checkpoint("random:tiny").tensor(NAME)
    monkeypatch.setitem(AT_ONCE, "cpu", 1000)
    assert torch.equal(open_checkpoint("random:tiny").tensor(NAME), whole)


@pytest.mark.parametrize("name", CONFIGS)
def test_shapes_are_those_that_the_model_asks_for(name: str) -> None:
    made = parse(f"random:{name}")
    assert made is not None and END_TOKEN < made.config.vocab_size
    check_shapes(RandomCheckpoint(made, CPU))


def test_an_engine_of_it_draws_tokens_that_its_input_decides() -> None:
    engine = load("random:tiny", device="cpu", kv_memory="16MiB")
    assert engine.model == "random:tiny"
    assert engine.geometry.model_hash == model_hash("random:tiny")
    greedy = SamplingParams(temperature=0.0)
    rows = [Row(i, [i, 7, 2 * i], 0, [i], greedy, 0) for i in range(8)]
    drawn = engine.step(rows)
    assert len({result.token for result in drawn if isinstance(result, Sampled)}) > 4
