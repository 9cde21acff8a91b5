"""How many hosts: what may be written, and what it means."""

import pytest

from raygrad.errors import BadInput
from raygrad.experiment import Where
from raygrad.hosts import HostRange


@pytest.mark.parametrize(
    ("hosts", "expected"),
    [
        (3, HostRange(3, 3, False)),
        ("3", HostRange(3, 3, False)),
        ("auto", HostRange(1, None, True)),
        ("2..16", HostRange(2, 16, True)),
        ("4..4", HostRange(4, 4, True)),
    ],
)
def test_numbers_ranges_and_auto(hosts: int | str, expected: HostRange) -> None:
    where = Where(hosts=hosts)
    assert where.host_range == expected
    assert Where.from_json(where.to_json()).host_range == expected


@pytest.mark.parametrize(
    ("hosts", "message"),
    [
        (0, "hosts is 0; it must be >= 1"),
        (-2, "hosts is -2; it must be >= 1"),
        ("0..3", "hosts is 0..3; it must be >= 1"),
        ("5..2", "hosts is 5..2; the most (2) must be at least the fewest (5)"),
        ("x", "hosts is 'x'; it must be a number, auto, or FEWEST..MOST such as 2..16"),
        ("2..", "hosts is '2..'; it must be a number, auto, or FEWEST..MOST such as 2..16"),
    ],
)
def test_what_cannot_be(hosts: int | str, message: str) -> None:
    with pytest.raises(BadInput) as caught:
        Where(hosts=hosts)
    assert str(caught.value) == message
    with pytest.raises(BadInput):
        Where.from_json({"hosts": hosts})


def test_a_ray_of_its_own_has_as_many_cpus_as_can_be_used() -> None:
    assert [HostRange.of(h).cpus(8) for h in (2, 12, "auto", "2..4", "2..16", "10..16")] == [2, 12, 8, 4, 8, 10]
    assert [HostRange.of(h).first(8) for h in (2, 12, "auto", "2..3", "2..16", "10..16")] == [2, 12, 4, 3, 4, 10]
    assert HostRange.of("auto").first(1) == HostRange.of("auto").first(0) == 1
