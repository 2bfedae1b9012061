"""A pair that times a transport leaves nothing behind: the process times others after it."""

from __future__ import annotations

import pytest

from dopd.errors import DopdError
from dopd.transfer.pairing import Transports
from dopd.worker import handoff_probe
from dopd.worker.handoff_probe import Place, pair

PLACE = Place(4096, 4)


@pytest.fixture
def closed(monkeypatch: pytest.MonkeyPatch) -> list[Transports]:
    """Transports of this process that were closed."""
    seen: list[Transports] = []
    close = Transports.close

    def noting(transports: Transports) -> None:
        seen.append(transports)
        close(transports)

    monkeypatch.setattr(Transports, "close", noting)
    return seen


def test_a_measurement_that_fails_leaves_no_listener(closed: list[Transports]) -> None:
    with pytest.raises(DopdError, match="did not arrive"), pair("shm", PLACE) as source:
        assert source.seconds(2, 2) > 0
        raise DopdError("the last shipment did not arrive")
    assert len(closed) == 1


def test_a_pair_without_a_link_leaves_no_listener(
    closed: list[Transports], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(handoff_probe, "WAIT_S", 0.0)
    monkeypatch.setattr(Transports, "dial", lambda transports, peer: None)
    with pytest.raises(DopdError, match="no link over shm within 0 s"), pair("shm", PLACE):
        pass
    assert len(closed) == 1
