"""Figures of a run are what they say they are."""

from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from dopd.cli.bench import parse, report
from dopd.cli.bench.arrivals import Arrival
from dopd.cli.bench.load import Result, Sample, Target
from dopd.cli.console import CommandError
from dopd.cli.http import Server


def sample(due_s: float, first_s: float, last_s: float, tokens: int) -> Sample:
    return Sample(
        Arrival(due_s, 10, tokens),
        due_s,
        due_s + 0.001,
        first_s,
        last_s,
        tokens=tokens,
        is_complete=True,
    )


TARGET = Target(Server("http://a:1"), "m", "a:1")
RESULT = Result(
    samples=[
        sample(0.0, 0.1, 1.1, 11),
        sample(1.0, 1.5, 1.5, 1),
        Sample(Arrival(2.0, 10, 5), 2.0, error="status 503: queue full", error_code="503"),
    ],
    start_s=0.0,
    end_s=4.0,
    cpu_s=0.4,
)


def build(*words: str) -> dict[str, object]:
    return report.document(parse([*words]), TARGET, RESULT)


def test_ttft_counts_from_the_due_moment_and_tpot_from_the_first_token() -> None:
    first, single, failed = RESULT.samples
    assert report.ttft_ms(first) == pytest.approx(100)
    assert report.tpot_ms(first) == pytest.approx(100)
    assert report.tpot_ms(single) is None
    assert report.ttft_ms(failed) is None


def test_goodput_counts_failed_requests_as_missed() -> None:
    found = build("--slo-ttft-ms", "200")["goodput"]
    assert found["share"] == pytest.approx(1 / 3, abs=1e-4)
    assert found["requests_per_s"] == 0.25
    assert build()["goodput"] is None


def test_the_document_adds_up() -> None:
    found = build()
    assert (found["sent"], found["completed"], found["failed"]) == (3, 2, 1)
    assert found["errors"] == {"503": {"count": 1, "example": "status 503: queue full"}}
    assert found["output_tokens_per_s"] == 3.0
    assert found["client_cpu_share"] == 0.1


def test_percentiles_are_those_of_the_standard_library() -> None:
    values = sorted([5.0, 1.0, 9.0, 2.0, 7.0, 3.0])
    cuts = statistics.quantiles(values, n=100, method="inclusive")
    assert [report.percentile(values, p) for p in (50, 90, 99)] == pytest.approx(
        [cuts[49], cuts[89], cuts[98]]
    )
    assert report.percentile([4.0], 99) == 4.0


def test_the_report_for_people_has_the_errors() -> None:
    text = report.render(build("--slo-ttft-ms", "200"))
    assert "1 x 503: status 503: queue full" in text
    assert "goodput 0.25 requests/s: 33.3%" in text


def test_a_request_that_was_interrupted_is_neither_complete_nor_good() -> None:
    cut = sample(0.5, 0.6, 0.9, 0)
    cut.is_complete, cut.tokens = False, None
    result = Result([RESULT.samples[0], cut], 0.0, 1.2)
    found = report.document(parse(["--slo-ttft-ms", "200"]), TARGET, result)
    assert (found["sent"], found["completed"], found["failed"]) == (2, 1, 0)
    assert found["goodput"]["share"] == 0.5
    assert [one["is_complete"] for one in report.requests(result)] == [True, False]


@pytest.mark.parametrize("option", ["--json", "--png"])
def test_a_report_that_cannot_be_written_is_refused_before_the_run(
    option: str, tmp_path: Path
) -> None:
    (tmp_path / "a.png").mkdir()
    for path in (tmp_path / "a.png", tmp_path / "missing" / "out.png"):
        with pytest.raises(CommandError, match="folder"):
            report.check_outputs(parse([option, str(path)]))


def test_a_report_that_cannot_be_written_is_one_line() -> None:
    with pytest.raises(CommandError, match="/dev/full cannot be written: no space left"):
        with report.writing("/dev/full"), open("/dev/full", "w") as full:
            full.write("x")
