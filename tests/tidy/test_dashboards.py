"""Boards and alerts ask for metrics that exist, and alerts say what to do."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.promtool import promtool

ROOT = Path(__file__).parents[2]
DEPLOY = ROOT / "deploy"
BOARDS = sorted((DEPLOY / "grafana").glob("*.json"))
ALERTS = DEPLOY / "prometheus" / "alerts.yml"
SUFFIXES = ("_bucket", "_sum", "_count")
METRIC = re.compile(r"\b(?:dopd|vllm)[_:][a-z0-9_:]+")


def _catalog() -> dict[str, tuple[str, set[str]]]:
    """Type and labels of every metric, from the reference that a Rust test keeps true."""
    found = {}
    for line in (ROOT / "docs" / "reference" / "metrics.md").read_text().splitlines():
        if line.startswith("| `dopd_"):
            name, kind, labels = (cell.strip() for cell in line.split("|")[1:4])
            found[name.strip("`")] = (kind, set(re.findall(r"`(\w+)`", labels)) | {"model"})
    assert len(found) > 30
    return found


def _problems(expression: str) -> list[str]:
    """What an expression asks for that is not there."""
    catalog = _catalog()
    names = METRIC.findall(expression)
    problems = []
    for name in names:
        base = next((name.removesuffix(s) for s in SUFFIXES if name.endswith(s)), name)
        if name in catalog and catalog[name][0] != "histogram":
            continue
        if name == base or catalog.get(base, ("", set()))[0] != "histogram":
            problems.append(f"{name} does not exist")
    known = {"le", "job", "instance", "version"}.union(
        *(catalog.get(re.sub("_(bucket|sum|count)$", "", name), catalog.get(name, ("", set())))[1]
          for name in names)
    )  # fmt: skip
    used = set(re.findall(r"(\w+)\s*(?:=~|!~|!=|=)\s*\"", expression))
    for group in re.findall(r"\bby\s*\(([^)]*)\)", expression):
        used |= {label.strip() for label in group.split(",")}
    return problems + [f"no metric has label {label}" for label in sorted(used - known)]


def _alerts() -> list[dict[str, str]]:
    """Name, expression and annotations; the file has one form, so no YAML parser is needed."""
    found: list[dict[str, str]] = []
    key = ""
    for line in ALERTS.read_text().splitlines():
        if match := re.match(r"\s+- alert: (\w+)", line):
            found.append({"alert": match[1]})
        elif match := re.match(r"\s+(expr|summary|runbook): (.*)", line):
            key = match[1]
            found[-1][key] = match[2].removeprefix(">-").strip('" ')
        elif re.match(r"\s+(for|labels|annotations):", line):
            key = ""
        elif key == "expr":
            found[-1][key] += " " + line.strip()
    return found


def _expressions(board: dict[str, Any]) -> Iterator[str]:
    for panel in board["panels"]:
        for target in panel["targets"]:
            yield target["expr"]
    for variable in board["templating"]["list"]:
        yield variable.get("definition", "")


def test_a_name_that_does_not_exist_is_found() -> None:
    assert _problems("rate(dopd_request_total[5m])") == ["dopd_request_total does not exist"]
    assert _problems("sum by (le) (rate(dopd_request_queue_seconds_bucket[5m]))") == []
    assert _problems("dopd_request_queue_seconds") == ["dopd_request_queue_seconds does not exist"]
    assert _problems('dopd_workers{pool="x"}') == ["no metric has label pool"]


@pytest.mark.parametrize("path", BOARDS, ids=lambda path: path.stem)
def test_boards_ask_for_what_exists(path: Path) -> None:
    board = json.loads(path.read_text())
    problems = [found for text in _expressions(board) for found in _problems(text)]
    assert problems == []
    ids = [panel["id"] for panel in board["panels"]]
    assert len(set(ids)) == len(ids) and board["uid"].startswith("dopd-")
    for panel in board["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        assert panel["datasource"]["uid"] == "${datasource}", "no board knows a data source"
        assert all('model=~"$model"' in target["expr"] or "build_info" in target["expr"]
                   for target in panel["targets"])  # fmt: skip


def test_every_metric_is_on_a_board() -> None:
    shown = " ".join(text for path in BOARDS for text in _expressions(json.loads(path.read_text())))
    # Counted for those who look for it; no board needs them.
    apart = {"dopd_sequences_total", "dopd_request_fields_ignored_total",
             "dopd_refusals_unlogged_total"}  # fmt: skip
    missing = {name for name in _catalog() if name not in shown} - apart
    assert missing == set()


def test_alerts_ask_for_what_exists_and_say_what_to_do() -> None:
    alerts = _alerts()
    assert len(alerts) >= 10
    for alert in alerts:
        assert _problems(alert["expr"]) == [], alert["alert"]
        assert alert["summary"] and len(alert["runbook"]) > 30, alert["alert"]


def test_every_alert_is_tested() -> None:
    tests = (ALERTS.parent / "alerts_test.yml").read_text()
    for alert in _alerts():
        pattern = rf"alertname: {alert['alert']}\n\s+exp_alerts:"
        assert re.search(pattern, tests), f"{alert['alert']} never fires in alerts_test.yml"


@pytest.mark.parametrize(
    "words",
    [
        ("check", "rules", "alerts.yml"),
        ("test", "rules", "alerts_test.yml"),
        ("check", "config", "scrape.yml"),
    ],
    ids=" ".join,
)
def test_promtool_agrees(words: tuple[str, ...]) -> None:
    checked = subprocess.run(
        [promtool(), *words],
        cwd=ALERTS.parent,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert checked.returncode == 0, checked.stdout + checked.stderr
