"""dopd explain and GET /admin/explain/{id}: what was decided about a request, told to people."""

from __future__ import annotations

import json
import urllib.error
import urllib.request
from typing import Any

from tests.support.processes import run
from tests.support.server import Server


def ask(server: Server, **extra: Any) -> tuple[str, str]:
    """One answer: its id in the body, and in the header."""
    body = {"model": server.model, "prompt": "hello", "max_tokens": 8, **extra}
    request = urllib.request.Request(
        f"http://{server.http}/v1/completions",
        json.dumps(body).encode(),
        {"content-type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=30) as answer:
        return json.load(answer)["id"], answer.headers["x-request-id"]


def page(server: Server, path: str) -> tuple[int, dict[str, Any]]:
    """One page of the admin listener."""
    try:
        with urllib.request.urlopen(f"http://{server.admin}{path}", timeout=30) as answer:
            return answer.status, json.load(answer)
    except urllib.error.HTTPError as error:
        with error:
            return error.code, json.load(error)


def test_request_is_explained_by_the_ids_that_its_client_has(mock: Server) -> None:
    in_body, in_header = ask(mock, n=2)
    assert in_body.endswith(in_header)
    pages = [page(mock, f"/admin/explain/{name}") for name in (in_body, in_header)]
    for status, found in pages:
        assert (status, found["status"], found["id"]) == (200, "found", in_header)
        assert not found["is_cut"]
        for choice in (0, 1):
            rows = [row for row in found["decisions"] if row["sequence"]["choice"] == choice]
            choices = [row["choice"] for row in rows]
            assert (choices[0], choices[-1]) == ("queue", "finish")
            assert {"keep", "pair"} & set(choices)
            placed = next(row for row in rows if row["choice"] in ("keep", "pair"))
            worker = str(placed.get("prefill", placed.get("worker")))
            assert found["workers"][worker]
            assert placed["saw"]["prompt_tokens"] > 0
            assert any(row["verdict"] == "chosen" for row in placed["alternatives"])


def test_each_prompt_of_a_request_is_explained(mock: Server) -> None:
    name, _ = ask(mock, prompt=["one", "two", "three"])
    status, found = page(mock, f"/admin/explain/{name}")
    assert status == 200
    assert len(set(found["prompts"])) == 3
    assert {row["sequence"]["request"] for row in found["decisions"]} == set(found["prompts"])
    numbers = [row["number"] for row in found["decisions"]]
    assert numbers == sorted(numbers)
    told = run("explain", name, "--url", f"http://{mock.admin}").stdout
    for place in range(3):
        assert f" ms  prompt {place} choice 0: arrived and waits\n" in told
    assert "prompt 3 choice" not in told


def test_story_is_told_to_people(mock: Server) -> None:
    name, _ = ask(mock)
    done = run("explain", name, "--url", f"http://{mock.admin}")
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[0].startswith(f"request {name.removeprefix('cmpl-')}: ")
    assert any(line.endswith(" ms  arrived and waits") for line in lines)
    assert any(" computes it" in line for line in lines)
    assert any(line.endswith(" ms  answered") for line in lines)
    as_it_is = run("explain", name, "--url", f"http://{mock.admin}", "--json")
    assert json.loads(as_it_is.stdout)["id"] == name.removeprefix("cmpl-")


def test_without_an_id_the_newest_decisions_are_told(mock: Server) -> None:
    ask(mock)
    status, found = page(mock, "/admin/explain")
    assert status == 200
    numbers = [row["number"] for row in found["decisions"]]
    assert numbers == sorted(numbers)
    assert numbers[-1] == found["ring"]["decisions_total"] - 1
    done = run("explain", "--url", f"http://{mock.admin}")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("the newest decisions: ")


def test_what_is_unknown_says_how_far_back_anything_is_known(mock: Server) -> None:
    ask(mock)
    status, found = page(mock, "/admin/explain/chatcmpl-nobody")
    assert (status, found["decisions"]) == (404, [])
    assert 'nothing is known of request "nobody"; the last' in found["status"]
    done = run("explain", "nobody", "--url", f"http://{mock.admin}")
    assert done.returncode == 1
    assert 'nothing is known of request "nobody"' in done.stderr
    assert "s old" in done.stderr


def test_clients_do_not_see_it(mock: Server) -> None:
    request = urllib.request.Request(f"http://{mock.http}/admin/explain")
    try:
        urllib.request.urlopen(request, timeout=30)
    except urllib.error.HTTPError as error:
        with error:
            assert error.code == 404
    else:
        raise AssertionError("the page is on the admin listener only")


def test_the_other_port_is_told_from_the_right_one(mock: Server) -> None:
    done = run("explain", "--url", f"http://{mock.http}")
    assert done.returncode == 1
    assert "no route" in done.stderr and "--url of the metrics port" in done.stderr
