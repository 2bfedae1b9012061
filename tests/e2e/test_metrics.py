"""Names, types and labels on the metrics page are an interface: dashboards stand on them."""

from __future__ import annotations

import re

from tests.support.server import Server
from tests.support.snapshots import assert_snapshot


def test_the_names_are_those_that_were_promised(mock: Server) -> None:
    mock.complete([1, 2, 3], max_tokens=2)
    page = mock.get("/metrics").body.decode()
    assert_snapshot("metrics", "\n".join(sorted(re.findall(r"^# TYPE (.+)$", page, re.M))) + "\n")


def test_both_listeners_show_the_same_page(mock: Server) -> None:
    def names(address: str) -> list[str]:
        page = mock.get("/metrics", address=address).body.decode()
        return re.findall(r"^# TYPE (.+)$", page, re.M)

    assert names(mock.http) == names(mock.admin)


def test_pages_add_up_for_every_worker(mock: Server) -> None:
    mock.wait_idle()
    for worker in mock.status()["workers"]:
        pages = worker["pages"]
        used = pages["free"] + pages["owned"] + pages["cached"] + pages["fenced"]
        assert used == pages["total"]
