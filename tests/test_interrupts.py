"""A signal ends a run wherever it comes: what it raises may be lost on its way, what was asked for is not."""

import gc
import importlib
import signal
import sys
import time
import weakref
from pathlib import Path

import pytest

from raygrad.errors import Stopped
from raygrad.interrupts import Interrupts

SIGNALS = pytest.mark.parametrize(("number", "raised"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, Stopped)])


class Thing:
    """What a weak reference can point to."""


@SIGNALS
def test_what_python_ignores_is_asked_for_again(
    number: signal.Signals, raised: type[BaseException], capfd: pytest.CaptureFixture[str]
) -> None:
    came = []

    def callback(reference: object) -> None:
        came.append(reference)
        signal.raise_signal(number)
        time.sleep(0)  # a line in which the handler runs at the latest
        came.append("whole")

    with pytest.raises(raised), Interrupts().installed():
        thing = Thing()
        reference = weakref.ref(thing, callback)
        del thing
        gc.collect()
        assert came == [reference], "the callback was not broken off: this test shows nothing"
        time.sleep(10)
        pytest.fail("the signal was lost")
    assert capfd.readouterr().err == ""


def test_what_python_ignores_of_others_is_shown_as_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken:
        def __del__(self) -> None:
            raise ValueError("not ours")

    shown = []
    monkeypatch.setattr(sys, "unraisablehook", lambda lost: shown.append(str(lost.exc_value)))
    hook = sys.unraisablehook
    with Interrupts().installed():
        Broken()
        gc.collect()
    assert shown == ["not ours"] and sys.unraisablehook is hook


@SIGNALS
def test_what_a_library_catches_is_raised_at_the_end_of_a_step(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    whole = []
    with pytest.raises(raised), Interrupts().installed() as interrupts:
        try:
            signal.raise_signal(number)
            time.sleep(1)
        except BaseException:  # as a library might
            whole.append("lost")
        with interrupts.shielded():
            whole.append("step")
        pytest.fail("the signal was lost")
    assert whole == ["lost", "step"]


@SIGNALS
def test_an_import_is_not_broken_into(
    number: signal.Signals, raised: type[BaseException], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    name = f"interrupted_by_{number.name.lower()}"
    (tmp_path / f"{name}.py").write_text(
        f"import signal, time\nsignal.raise_signal({int(number)})\ntime.sleep(0.1)\nDONE = True\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(raised), Interrupts().installed():
        importlib.import_module(name)
        time.sleep(10)
        pytest.fail("the signal was lost")
    assert sys.modules.pop(name).DONE


@SIGNALS
def test_what_saves_after_a_signal_is_not_broken_into_by_it_or_its_echo(
    number: signal.Signals, raised: type[BaseException]
) -> None:
    saved = []
    with pytest.raises(raised), Interrupts().installed() as interrupts:
        try:
            signal.raise_signal(number)
            time.sleep(1)
        except BaseException:
            interrupts.seen()
            signal.raise_signal(signal.SIGTERM)
            time.sleep(0)
            with interrupts.shielded():
                saved.append("part")
            saved.append("whole")
            raise
    assert saved == ["part", "whole"]


@SIGNALS
def test_a_later_signal_breaks_into_what_saves(
    number: signal.Signals, raised: type[BaseException], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("raygrad.interrupts.ECHO_S", 0.05)
    with pytest.raises(raised), Interrupts().installed() as interrupts:
        try:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(1)
        except Stopped:
            interrupts.seen()
            time.sleep(0.1)
            signal.raise_signal(number)
            time.sleep(10)
