"""What is refused before a Ray is started or joined."""

import os

import pytest

from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.onray import cluster


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Where(address="garbage"), "neither auto nor HOST:PORT"),
        (Where(address="ray://127.0.0.1:10001"), "neither auto nor HOST:PORT"),
        (Where(address="127.0.0.1:1"), "no Ray answers at 127.0.0.1:1"),
        (Where(hosts=16 * (os.cpu_count() or 1) + 1), r"this machine has \d+ cores; ask for at most"),
        (Where(gpus_per_host=0.5, device="cpu"), "the device is cpu"),
    ],
)
def test_what_cannot_be(where: Where, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cluster.check(where)


@pytest.mark.usefixtures("no_ray")
def test_no_address_starts_a_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.check(Where()) is None
    assert cluster.check(Where(address="auto")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.check(Where()) == "auto"
