"""When the load generator sends what."""

from __future__ import annotations

import gzip
import itertools
import json
import statistics
from pathlib import Path

import pytest

from dopd.cli.bench import parse
from dopd.cli.bench.arrivals import Arrival, from_trace, plan, random_lengths, spread
from dopd.cli.console import CommandError


def test_poisson_has_the_asked_rate_and_is_the_same_for_a_seed() -> None:
    args = parse(["--rate", "50", "--seed", "3"])
    first = list(itertools.islice(random_lengths(args), 5_000))
    assert first == list(itertools.islice(random_lengths(args), 5_000))
    assert len(first) / first[-1].at_s == pytest.approx(50, rel=0.1)


def test_duration_and_requests_both_end_a_plan() -> None:
    assert len(plan(parse(["--rate", "100", "--requests", "7"]))) == 7
    assert plan(parse(["--rate", "100", "--duration", "2"]))[-1].at_s < 2


def test_a_plan_without_requests_is_refused() -> None:
    with pytest.raises(CommandError, match="no request"):
        plan(parse(["--rate", "0.001", "--duration", "0.001"]))


def test_a_csv_trace_starts_at_zero_and_can_be_sped_up(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv.gz"
    text = "arrival_s,prompt_tokens,output_tokens\n12.0,5,0\n10.0,3,4\n"
    trace.write_bytes(gzip.compress(text.encode()))
    assert list(from_trace(trace, 2.0)) == [Arrival(0.0, 3, 4), Arrival(1.0, 5, 1)]


def test_a_jsonl_trace_is_in_milliseconds(tmp_path: Path) -> None:
    trace = tmp_path / "t.jsonl"
    rows = ((0, 10, 1), (3000, 20, 2))
    trace.write_text(
        "\n".join(
            f'{{"timestamp": {at}, "input_length": {prompt}, "output_length": {output}}}'
            for at, prompt, output in rows
        )
    )
    assert list(from_trace(trace, 1.0)) == [Arrival(0.0, 10, 1), Arrival(3.0, 20, 2)]


def test_rows_of_one_stamp_are_spread_until_the_next() -> None:
    rows = [Arrival(at, 1, 1) for at in (0.0, 0.0, 0.0, 3.0, 3.0)]
    assert [row.at_s for row in spread(rows)] == [0.0, 1.0, 2.0, 3.0, 4.5]


@pytest.mark.parametrize("text", ["a,b\n1,2\n", "arrival_s,prompt_tokens,output_tokens\nx,1,1\n"])
def test_a_broken_trace_names_the_columns(tmp_path: Path, text: str) -> None:
    trace = tmp_path / "t.csv"
    trace.write_text(text)
    with pytest.raises(CommandError) as caught:
        list(from_trace(trace, 1.0))
    assert "t.csv" in str(caught.value)
    assert "prompt_tokens" in (caught.value.fix or "")


def test_a_trace_that_is_cut_off_is_a_usage_error(tmp_path: Path) -> None:
    trace = tmp_path / "t.csv.gz"
    trace.write_bytes(gzip.compress(b"arrival_s,prompt_tokens,output_tokens\n0,1,1\n")[:-12])
    with pytest.raises(CommandError, match="cannot be read"):
        list(from_trace(trace, 1.0))


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "0"],
        ["--rate", "nan"],
        ["--requests", "0"],
        ["--speed", "-1"],
    ],
)
def test_values_out_of_range_are_usage_errors(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2


def test_burstiness_changes_the_spread_and_not_the_rate() -> None:
    def gaps(burstiness: str) -> list[float]:
        args = parse(["--rate", "50", "--burstiness", burstiness, "--requests", "5000"])
        times = [arrival.at_s for arrival in plan(args)]
        return [b - a for a, b in itertools.pairwise(times)]

    for burstiness in ("0.25", "1", "4"):
        found = gaps(burstiness)
        assert statistics.mean(found) == pytest.approx(1 / 50, rel=0.1)
        # Of a gamma distribution: 1 over the root of its shape.
        variation = statistics.stdev(found) / statistics.mean(found)
        assert variation == pytest.approx(float(burstiness) ** -0.5, rel=0.1)


def test_an_infinite_rate_is_all_at_once() -> None:
    assert {a.at_s for a in plan(parse(["--rate", "inf", "--requests", "9"]))} == {0.0}


def test_lengths_vary_by_the_asked_share() -> None:
    words = ["--prompt-tokens", "100", "--output-tokens", "10", "--range-ratio", "0.5"]
    found = plan(parse([*words, "--requests", "2000"]))
    prompts = [arrival.prompt_tokens for arrival in found]
    assert (min(prompts), max(prompts)) == (50, 150)
    assert statistics.mean(prompts) == pytest.approx(100, rel=0.05)
    assert found == plan(parse([*words, "--requests", "2000"]))


def test_prompts_of_a_dataset_are_sent_once_in_order(tmp_path: Path) -> None:
    file = tmp_path / "d.jsonl"
    file.write_text('{"prompt": "a", "output_tokens": 3}\n\n{"prompt": "b"}\n')
    found = plan(parse(["--dataset", str(file), "--output-tokens", "9"]))
    assert [(a.text, a.output_tokens) for a in found] == [("a", 3), ("b", 9)]
    sharegpt = tmp_path / "s.json"
    talk = {"conversations": [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "x"}]}
    sharegpt.write_text(json.dumps([talk, {"conversations": []}]))
    assert [a.text for a in plan(parse(["--dataset-path", str(sharegpt)]))] == ["hi"]
    file.write_text('{"text": "a"}')
    with pytest.raises(CommandError, match="cannot be read: KeyError"):
        plan(parse(["--dataset", str(file)]))


@pytest.mark.parametrize(
    "words",
    [
        ["--rate", "0"],
        ["--rate", "inf", "--duration", "3"],
        ["--trace", "a", "--dataset", "b"],
        ["--goodput", "itl:3"],
        ["--goodput", "ttft"],
        ["--goodput", "ttft:-1"],
        ["--extra-body", "[]"],
        ["--range-ratio", "1"],
    ],
)
def test_a_load_that_cannot_be_is_a_usage_error(words: list[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parse(words)
    assert caught.value.code == 2


def test_what_vllms_users_type_works() -> None:
    args = parse(
        "--request-rate 5 --num-prompts 7 --random-input-len 11 --random-output-len 13 "
        "--max-concurrency 3 --num-warmups 0 --goodput ttft:500 tpot:50 e2el:9000".split()
    )
    assert (args.rate, args.requests, args.prompt_tokens, args.output_tokens) == (5, 7, 11, 13)
    assert (args.concurrency, args.warmup) == (3, 0)
    assert (args.slo_ttft_ms, args.slo_tpot_ms, args.slo_e2e_ms) == (500, 50, 9000)
