"""Decisions about hosts and gangs, on a made-up clock without Ray."""

import numpy as np
import pytest

from raygrad.gang import Gang
from raygrad.onray import schedule as rules
from raygrad.onray.pace import Pace
from raygrad.onray.schedule import Call, Host, Job, Schedule
from raygrad.rng import Purpose, rng


def gangs(count: int) -> list[Job]:
    return [Job(Gang(i, np.array([i]), np.ones(1), np.ones(1), ())) for i in range(count)]


def schedule(hosts: int, jobs: int, learned: dict[int, float] | None = None, number: int = 0) -> Schedule:
    """In phase `number` of a conversation, in which a gang took host i so many seconds; nobody works."""
    s = Schedule()
    s.hosts = [Host(None, f"h{i}") for i in range(hosts)]
    for k in range(number + 1):
        s.begin(k, f"phase{k}")
    for _ in range(5):
        for i, seconds in (learned or {}).items():
            for work in s.works:
                s.pace.learn(s.hosts[i], work, 1, seconds, 0.0)
    s.waiting.extend(gangs(jobs))
    return s


def submit(s: Schedule, now: float) -> list[Call]:
    calls = []
    while (found := s.next(now)) is not None:
        calls.append(s.place(*found, now))
    return calls


def answer(s: Schedule, call: Call, now: float) -> None:
    s.answered(call, now - call.began_s, now)
    s.ended(call, now)


def test_pace_knows_typical_times_and_speeds() -> None:
    pace = Pace()
    assert pace.expected_s(["a"], 3) is None and pace.speed("x") == 1.0
    for _ in range(10):
        for host in "wxyz":
            pace.learn(host, "a", 2, 20.0 if host == "z" else 2.0, 5.0)
    assert pace.expected_s(["a"], 3) == pytest.approx(3.0)
    assert pace.expected_s(["b", "a"], 3) == pytest.approx(3.0)
    assert pace.longest_s(["a"], 1) == pytest.approx(10.0)
    assert pace.speed("x") == pytest.approx(1.0) and pace.speed("z") == pytest.approx(0.1)
    assert not pace.stale("z", 405.0) and pace.stale("z", 405.1)
    pace.forget("z")
    assert pace.speed("z") == 1.0


def test_hosts_pull_two_gangs_each_but_the_last_long_ones_wait() -> None:
    s = schedule(2, 8)
    assert [c.host.name for c in submit(s, 0.0)] == ["h0", "h1", "h0", "h1"]
    s = schedule(2, 3, {0: 1.0, 1: 1.0})
    assert [c.job.gang.index for c in submit(s, 0.0)] == [0, 1]
    s = schedule(2, 3, {0: 0.01, 1: 0.01})
    assert [c.job.gang.index for c in submit(s, 0.0)] == [0, 1, 2]


def test_a_slow_host_gets_what_it_finishes_in_time() -> None:
    """Ten times slower than the four others: nothing of eight gangs, two of a hundred."""
    for jobs, given in ((8, 0), (100, 2)):
        s = schedule(5, jobs, {1: 1.0, 2: 1.0, 3: 1.0, 4: 1.0, 0: 10.0})
        slow = s.hosts[0]
        now, taken, running = 0.0, 0, submit(s, 0.0)
        while running:
            for_each = {c: c.began_s + (10.0 if c.host is slow else 1.0) for c in running if c is c.host.calls[0]}
            call = min(for_each, key=lambda c: for_each[c])
            now = max(now, for_each[call])
            taken += call.host is slow
            answer(s, call, now)
            running.remove(call)
            running += submit(s, now)
        assert taken == given
        assert now == pytest.approx(-(-(jobs - given) // 4))


def test_alone_even_a_slow_host_gets_everything() -> None:
    s = schedule(3, 4, {0: 1.0, 1: 1.0, 2: 1.0})
    for i, host in enumerate(s.hosts):
        s.pace.learn(host, "phase0", 1, 10.0 + 50 * i, 0.0)
    assert all(s.pace.speed(h) < rules.SLOW for h in s.hosts)
    assert [c.host.name for c in submit(s, 0.0)] == ["h0"]  # all are slow: the fastest takes what there is
    s = schedule(2, 4, {1: 1.0, 0: 100.0})
    s.hosts = s.hosts[:1]
    assert len(submit(s, 0.0)) == 2


def test_an_idle_host_starts_again_what_is_late() -> None:
    s = schedule(3, 3, {0: 1.0, 1: 1.0, 2: 1.0})
    calls = submit(s, 0.0)
    for call in calls[1:]:
        answer(s, call, 1.0)
    assert s.again(1.0) is None
    assert s.again(1.05) is None  # not looked at again so soon
    found = s.again(1.8)
    assert found is not None
    job, host, probe = found
    assert job is calls[0].job and host is not calls[0].host and not probe
    second = s.place(job, host, 1.8)
    assert second.attempt == 2 and s.again(9.0) is None  # never three copies
    answer(s, second, 2.8)
    assert calls[0].wanted and calls[0] in job.calls  # the executor gives it up


def test_what_was_started_again_in_vain_makes_patient() -> None:
    """Where gangs are unequal, the first attempt tends to win."""
    s = schedule(2, 1, {0: 1.0, 1: 1.0})
    for late, again in ((1.75, True), (1.75, False), (3.3, True), (3.3, False)):
        s.waiting.extend(gangs(1) if not s.waiting else [])
        (first,) = submit(s, 0.0)
        s._look_s = 0.0
        found = s.again(late)
        assert (found is not None) is again
        if found is not None:
            second = s.place(*found[:2], late)
            answer(s, first, late + 0.01)
            s.ended(second, late + 0.01)
        else:
            s.ended(first, late)


def test_what_was_lost_before_is_not_started_again() -> None:
    """It may be what its hosts die of."""
    s = schedule(2, 1, {0: 1.0, 1: 1.0})
    s.waiting[0].losses = 1
    submit(s, 0.0)
    assert s.again(100.0) is None


def test_a_gang_whose_scratch_lies_on_a_busy_host_moves_if_that_is_sooner() -> None:
    """It stays where it is as long as computing the scratch again would take longer."""
    s = schedule(2, 2, {0: 1.0, 1: 1.0})
    calls = submit(s, 0.0)
    answer(s, calls[1], 1.0)
    calls[0].wanted = False  # it was answered elsewhere, and the host is still busy
    s.begin(1, "phase1")
    owner, other = calls[0].host, calls[1].host
    s._owners = {0: other, 1: owner}
    for host in s.hosts:
        s.pace.learn(host, "phase1", 1, 1.0, 1.0)
    s.waiting.extend(gangs(2))
    assert [(c.job.gang.index, c.works) for c in submit(s, 1.0)] == [(0, ("phase1",))]
    answer(s, other.calls[0], 2.0)
    found = s.again(8.0)  # what took eight seconds is expected to take eight more
    assert found is not None and found[0].gang.index == 1 and found[1] is other
    assert s.place(*found[:2], 8.0).works == ("phase0", "phase1")
    assert not s.waiting


def test_first_answers_count_until_there_are_better_ones() -> None:
    pace = Pace()
    pace.learn("x", "a", 1, 9.0, 0.0)
    pace.learn("y", "a", 1, 7.0, 0.0)
    assert pace.expected_s(["a"], 1) == 7.0
    pace.learn("x", "a", 1, 1.0, 0.0)
    assert pace.expected_s(["a"], 1) == 1.0 and pace.speed("x") == 1.0
    pace.learn("z", "a", 1, 20.0, 0.0)
    assert pace.expected_s(["a"], 1) == 1.0 and pace.speed("z") == 0.05
    assert pace.stale("z", 0.0)  # a new host is measured again at once
    pace.learn("z", "a", 1, 1.0, 0.0)
    assert pace.speed("z") == 1.0 and not pace.stale("z", 0.0)


def test_a_slow_silent_host_is_tried_with_a_copy() -> None:
    learned = {1: 1.0, 2: 1.0, 0: 10.0}
    s = schedule(3, 1, learned)
    submit(s, 100.0)
    assert s.again(100.5) is None
    s = schedule(3, 1, learned)
    submit(s, 201.0)
    found = s.again(201.5)
    assert found is not None and found[1] is s.hosts[0] and found[2]


def test_a_host_hangs_when_it_takes_far_longer_than_any_before(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rules, "HUNG_S", 5.0)
    s = schedule(1, 1)
    (call,) = submit(s, 0.0)
    assert s.hung(s.hosts, 1000.0) == []  # no such gang was ever answered
    s = schedule(1, 1, {0: 1.0})
    (call,) = submit(s, 0.0)
    assert s.hung(s.hosts, 19.0) == []
    assert s.hung(s.hosts, 21.0) == [call.host]
    call.job.losses = 1
    assert s.hung(s.hosts, 99.0) == []
    assert s.hung(s.hosts, 101.0) == [call.host]


def test_ending_a_call_begins_the_next() -> None:
    s = schedule(1, 2)
    first, second = submit(s, 0.0)
    answer(s, first, 3.0)
    assert second.began_s == 3.0 and s.hosts[0].calls == [second]
    s.gone(s.hosts[0])
    assert s._owners == {} and s._last == {}


@pytest.mark.parametrize("seed", range(30))
def test_whatever_hosts_do_every_gang_is_answered_once(seed: int) -> None:
    """Speeds that differ and change, phases of any size: somebody always takes what is left."""
    random = rng(seed, Purpose.CANARY)
    s = Schedule()
    s.hosts = [Host(None, f"h{i}") for i in range(random.integers(1, 6))]
    now, count = 0.0, 0
    for phase in range(12):
        s.begin(phase % 2, f"phase{phase % 2}")
        speeds = {h: 10.0 ** random.uniform(-1.5, 0.5) for h in s.hosts}
        count = int(random.integers(1, 12)) if phase % 2 == 0 else count
        s.waiting.extend(gangs(count))
        answered: list[int] = []
        while len(answered) < count:
            submit(s, now)
            while (late := s.again(now)) is not None:
                s.place(late[0], late[1], now, late[2])
            heads = [h.calls[0] for h in s.hosts if h.calls]
            assert heads, "nobody works, but gangs are waiting"
            ends = {c: c.began_s + len(c.works) / speeds[c.host] for c in heads}
            call = min(heads, key=lambda c: ends[c])
            if ends[call] > now + s.pause_s():
                now += s.pause_s()
                continue
            now = max(now, ends[call])
            others = [c for c in call.job.calls if c is not call]
            answer(s, call, now)
            if call.wanted:
                answered.append(call.job.gang.index)
                for other in others:
                    other.wanted = False
                    call.job.calls.remove(other)
        assert sorted(answered) == list(range(count))
