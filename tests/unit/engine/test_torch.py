"""The engine's duties: rows fail alone, moves and replays go on alike, settings are checked."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from dopd.engine.load import load
from dopd.engine.timings import Timings
from dopd.engine.torch import TorchEngine
from dopd.errors import ConfigError, DopdError
from dopd.types import Row, Sampled, SamplingParams, StepWork
from tests.support import reference, stepping

NUM_TOKENS = 20
PROMPTS = [[5, 9, 300, 7], list(range(40, 90)), [17] * 33]
GREEDY = SamplingParams(temperature=0.0)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("tiny")
    reference.tiny_llama().save_pretrained(folder)
    return folder


def load_tiny(folder: Path, kv_memory: str = "4MiB") -> TorchEngine:
    return load(folder, dtype="float32", device="cpu", kv_memory=kv_memory, name="tiny")


def test_facts_of_a_loaded_engine(folder: Path) -> None:
    engine = load_tiny(folder)
    assert (engine.model, engine.device) == ("tiny", "cpu")
    assert (engine.vocab_size, engine.max_model_len) == (320, 256)
    assert engine.eos_token_ids == {2}
    geometry = engine.geometry
    assert (geometry.num_layers, geometry.num_kv_heads, geometry.head_dim) == (2, 2, 16)
    # Two layers of 16 keys and 16 values of 2 x 16 floats.
    assert geometry.page_bytes == engine.pool.page_bytes == 2 * 2 * 16 * 2 * 16 * 4
    assert engine.pool.num_pages == (4 << 20) // geometry.page_bytes
    assert not engine.pool.tensor.any(), "warming up must leave clean pages"


def test_pages_copied_to_another_worker_go_on_alike(folder: Path) -> None:
    """A hand-off after prefill and a move in mid-answer equal one worker that does it all."""
    prefiller, decoder, alone = (load_tiny(folder) for _ in range(3))
    expected = stepping.run(alone, stepping.start(alone, PROMPTS, NUM_TOKENS), NUM_TOKENS, 16)
    for drawn_before in (1, 9):
        sources = stepping.start(prefiller, PROMPTS, NUM_TOKENS)
        stepping.run(prefiller, sources, drawn_before, budget=16)
        # Other pages on the other side, full of what an earlier owner left.
        decoder.pool.tensor.fill_(float("nan"))
        targets = stepping.start(decoder, PROMPTS[::-1], NUM_TOKENS)[::-1]
        for source, target in zip(sources, targets, strict=True):
            assert source.computed == len(source.prompt) + drawn_before - 1
            pages = -(-source.computed // decoder.geometry.page_size)
            for one, other in zip(source.pages[:pages], target.pages[:pages], strict=True):
                decoder.pool.page(other)[:] = prefiller.pool.page(one)
            target.computed, target.drawn = source.computed, list(source.drawn)
        assert stepping.run(decoder, targets, NUM_TOKENS) == expected


def test_replay_from_prompt_and_answer_so_far_goes_on_alike(folder: Path) -> None:
    engine = load_tiny(folder)
    params = SamplingParams(temperature=0.8, top_p=0.9, seed=11)
    (whole,) = stepping.run(
        engine, stepping.start(engine, PROMPTS[:1], NUM_TOKENS, params), NUM_TOKENS
    )
    pages = list(range(8, 0, -1))
    replay = Row(0, PROMPTS[0] + whole[:6], 0, pages, params, 6)
    (again,) = engine.step([replay])
    assert isinstance(again, Sampled)
    assert again.token == whole[6]


def test_sampled_answers_do_not_depend_on_the_batch(folder: Path) -> None:
    engine = load_tiny(folder)
    params = SamplingParams(temperature=1.2, top_k=50, seed=3)
    together = stepping.run(
        engine, stepping.start(engine, PROMPTS, NUM_TOKENS, params), NUM_TOKENS, budget=9
    )
    alone = [
        stepping.run(engine, stepping.start(engine, [prompt], NUM_TOKENS, params), NUM_TOKENS)[0]
        for prompt in PROMPTS
    ]
    assert together == alone
    assert len({tuple(tokens) for tokens in alone}) == len(PROMPTS)


@pytest.mark.parametrize("budget", [stepping.UNBOUNDED, 7])
def test_prompt_logprobs_are_those_of_the_model_whatever_the_chunks(
    folder: Path, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = load_tiny(folder)
    # Slices of 5 positions, so that chunks are cut too.
    monkeypatch.setattr("dopd.engine.torch.SCORED_AT_ONCE", 5 * engine.vocab_size)
    running = stepping.start(engine, PROMPTS, NUM_TOKENS)
    running[0].num_top, running[1].num_top = 0, 3
    told = stepping.run(engine, running, 2, budget)
    plain = stepping.start(engine, PROMPTS, NUM_TOKENS)
    assert stepping.run(engine, plain, 2, budget) == told
    model = reference.tiny_llama()
    for one, prompt, num_top in zip(running, PROMPTS, (0, 3, None), strict=True):
        if num_top is None:
            assert not one.scored
            continue
        logits = model(torch.tensor([prompt])).logits[0].float()
        expected = torch.log_softmax(logits.detach(), dim=-1)[:-1]
        assert len(one.scored) == len(prompt) - 1
        for got, wanted, token in zip(one.scored, expected, prompt[1:], strict=True):
            assert got.chosen == pytest.approx(float(wanted[token]), abs=1e-3)
            values, ids = wanted.topk(num_top)
            assert [token for token, _ in got.top] == ids.tolist()
            assert [p for _, p in got.top] == pytest.approx(values.tolist(), abs=1e-3)


def bad_rows() -> dict[str, Row]:
    return {
        "are none": Row(9, [], 0, [0], GREEDY, 0),
        "not within 0 to 256": Row(9, [1], 256, list(range(17)), GREEDY, 0),
        "outside the vocabulary of 320": Row(9, [1, 320], 0, [0], GREEDY, 0),
        "need 2 pages, the row has 1": Row(9, [1], 16, [0], GREEDY, 0),
        "outside the pool": Row(9, [1], 0, [1 << 20], GREEDY, 0),
    }


@pytest.mark.parametrize("message", bad_rows())
def test_row_that_cannot_be_computed_fails_alone(folder: Path, message: str) -> None:
    engine = load_tiny(folder)
    good = [Row(0, [5], 0, [3], GREEDY, 0), Row(2, PROMPTS[2], 0, [4, 5, 6], GREEDY, 0)]
    expected = engine.step(good)
    first, failed, last = engine.step([good[0], bad_rows()[message], good[1]])
    assert [first, last] == expected
    assert isinstance(failed, DopdError)
    assert "slot 9 cannot be computed" in str(failed)
    assert message in str(failed)


def test_step_with_only_bad_rows_answers_each(folder: Path) -> None:
    results = load_tiny(folder).step(list(bad_rows().values()))
    assert all(isinstance(result, DopdError) for result in results)


def test_poisoned_sequence_fails_alone_and_its_pages_are_fit_for_the_next(folder: Path) -> None:
    engine = load_tiny(folder)
    running = stepping.start(engine, PROMPTS, NUM_TOKENS)
    stepping.run(engine, running, 3)
    rows = [sequence.row(slot, 1) for slot, sequence in enumerate(running)]
    expected = engine.step(rows)
    poisoned = running[1].pages[0]
    engine.pool.tensor[poisoned, 0, 0, 0] = float("nan")
    results = engine.step(rows)
    assert [results[0], results[2]] == [expected[0], expected[2]]
    assert isinstance(results[1], DopdError)
    assert "not finite" in str(results[1])
    # The next owner of the page begins with a clean one.
    (fresh,) = engine.step([Row(0, [5, 9, 300, 7], 0, [poisoned], GREEDY, 0)])
    (clean,) = engine.step([Row(0, [5, 9, 300, 7], 0, [40], GREEDY, 0)])
    assert fresh == clean


def test_chunk_that_is_not_the_last_draws_nothing(folder: Path) -> None:
    engine = load_tiny(folder)
    assert engine.step([Row(0, [1, 2, 3], 0, [0], None, 0)]) == [None]


def test_forbidden_tokens_reach_the_draw(folder: Path) -> None:
    engine = load_tiny(folder)
    (first,) = engine.step([Row(0, [1, 2, 3], 0, [0], GREEDY, 0)])
    assert isinstance(first, Sampled)
    row = Row(0, [1, 2, 3], 0, [0], GREEDY, 0, frozenset({first.token}))
    (second,) = engine.step([row])
    assert isinstance(second, Sampled)
    assert second.token != first.token


def test_step_time_is_expected_to_grow_with_work(folder: Path) -> None:
    engine = load_tiny(folder)
    assert 0 < engine.cost_us(StepWork(0, 0, 1, 21)) <= engine.cost_us(StepWork(40, 820, 1, 21))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"dtype": "int8"}, "dtype 'int8' is unknown; give auto, float32"),
        ({"device": "tpu"}, "device 'tpu' is"),
        ({"device": "cuda:99"}, "device cuda:99 is not there"),
        ({"page_size": 0}, "page-size is 0, must be 1 to 256"),
        ({"threads": 0}, "threads is 0, must be 1 to"),
        ({"max_model_len": 257}, "max-model-len is 257, the model allows 1 to 256"),
        ({"kv_memory": "8KiB", "max_model_len": 256}, "fewer than one sequence"),
        ({"kv_memory": "1KiB"}, "fewer than one sequence"),
        ({"kv_memory": "lots"}, "is no size"),
    ],
)
def test_settings_that_cannot_be_met_are_refused(
    folder: Path, changes: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        load(folder, **{"dtype": "float32", "device": "cpu"} | changes)  # type: ignore[arg-type]


def test_length_follows_the_pool_unless_asked_for(folder: Path) -> None:
    engine = load_tiny(folder, kv_memory="64KiB")
    assert engine.max_model_len == engine.pool.num_pages * 16 == 128


def test_progress_names_each_stage_to_its_end(folder: Path) -> None:
    heard: list[tuple[str, float, int]] = []
    load(folder, device="cpu", kv_memory="4MiB", progress=lambda *part: heard.append(part))
    done = {stage: num_bytes for stage, share, num_bytes in heard if share == 1.0}
    assert list(done) == ["read", "map", "copy", "warm-up"]
    assert done["map"] == sum(file.stat().st_size for file in folder.glob("*.safetensors"))
    # In the file as float32, as here: all but its header.
    assert 0 < done["map"] - done["copy"] < 10_000


def test_auto_dtype_reaches_weights_and_pool(folder: Path) -> None:
    engine = load(folder, device="cpu", kv_memory="4MiB")
    assert engine.geometry.dtype == "float32"
    assert str(engine.pool.tensor.dtype) == f"torch.{engine.geometry.dtype}"
    results = engine.step([Row(0, [1, 2, 3], 0, [0], GREEDY, 0)])
    assert isinstance(results[0], Sampled)
    assert torch.get_num_threads() == 1


def test_a_calibration_takes_the_place_of_the_warm_up(folder: Path) -> None:
    timings = Timings("measured", step_decode_us=123.0, weights_us=1000.0)
    engine = load(folder, device="cpu", kv_memory="4MiB", timings=timings)
    assert Timings.from_json(engine.timings_json) == timings
    assert engine.cost_us(StepWork(0, 0, 1)) == 1123
