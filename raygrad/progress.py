"""What a command shows while it works: one live display on a terminal, plain lines elsewhere, JSON lines, or nothing.

Everybody who drives the rounds gives them to a `Display`; nothing calls back. How far other long things are, and log
lines, come from `raygrad.logs`, to which `display` listens.
"""

import json
import logging
import sys
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from math import isfinite
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol, TextIO

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from raygrad import logs
from raygrad.logs import Step

if TYPE_CHECKING:
    from raygrad.player import Round

LINE_EVERY_S = 2.0
"""Without a terminal, a line at least this often while rounds come."""
LONGEST_PAUSE_S = 60.0
"""Of other things without a terminal: a line after `LINE_EVERY_S`, then after twice the time, up to this."""
STEP_S = 0.5
"""What takes less is not shown as a step; JSON lines of a step come at most this often, besides its last."""
_WINDOW = 20  # rounds over which clients/s and the time left are averaged


class Display(Protocol):
    """Where a command says what happens."""

    def say(self, line: str) -> None:
        """A line that stays."""
        ...

    def waiting(self, what: str) -> None:
        """What is going on now that no round is."""
        ...

    def show(self, round: "Round") -> None:
        """A round is done."""
        ...

    def step(self, step: Step) -> None:
        """So far is something long."""
        ...

    def log(self, record: logging.LogRecord) -> None:
        """A log line."""
        ...

    def event(self, values: Mapping[str, Any]) -> None:
        """Something for programs; `values["event"]` is its kind."""
        ...


_LINE = logs.Line()


class Quiet:
    """Shows nothing but log lines, on stderr."""

    def say(self, line: str) -> None: ...

    def waiting(self, what: str) -> None: ...

    def show(self, round: "Round") -> None: ...

    def step(self, step: Step) -> None: ...

    def log(self, record: logging.LogRecord) -> None:
        logs.OnStderr().emit(record)

    def event(self, values: Mapping[str, Any]) -> None: ...


class Pace:
    """How long something long has taken and will take."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self.what, self.began_s, self._first, self._left = "", 0.0, 0, 0.0

    def take(self, step: Step) -> None:
        """How far it is."""
        now = self._clock()
        if step.what != self.what or step.done < self._first:
            self.what, self.began_s, self._first = step.what, now, step.done
        done, took_s = step.done - self._first, now - self.began_s
        self._left = (step.of - step.done) * took_s / done if done and took_s > 1 else 0.0

    @property
    def seconds_left(self) -> float | None:
        """At its mean pace since it began here; None in the beginning."""
        return self._left or None


def more(step: Step) -> list[str]:
    """The further numbers of a step as short texts, without counts of 0. Names with _ are for programs."""
    shown = []
    for name, value in step.more.items():
        if "_" in name:
            continue
        if isinstance(value, float):
            shown.append(f"{name} {value:.4g}")
        elif isinstance(value, str):
            shown.append(f"{name} {value}")
        elif value:
            shown.append(f"{value:,} {name}")
    return shown


class Reading:
    """What there is to say of the run after each round: of what is not measured every time, the newest value."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._metrics: dict[str, str] = {}
        self._loss = self._r = self._virtual = ""
        self._seen: deque[tuple[float, int, float]] = deque(maxlen=_WINDOW)  # when, clients, seconds of the round
        self._left = 0

    def take(self, round: "Round") -> None:
        """Read a round."""
        judged = round.test or round.validation
        if judged is not None:
            part = "test" if round.test else "validation"
            self._metrics = {f"{part} {n}": f"{v:.4f}" for n, v in judged.items() if n not in ("loss", "examples")}
            self._loss = f"{part if not self._metrics else ''} loss {judged['loss']:.4g}".strip()
        elif round.train_loss is not None and (not self._loss or self._loss.startswith("training")):
            self._loss = f"training loss {round.train_loss:.4g}"
        if round.alignment is not None:
            self._r = f"r(x) {round.alignment.r:.3g}"
        if round.virtual_s:
            self._virtual = f"virtual {virtual(round.virtual_s)}"
        self._seen.append((self._clock(), len(round.clients), round.wall_s))
        self._left = round.of - round.index

    @property
    def clients_per_s(self) -> float:
        """Clients that trained per second of training, over the last rounds."""
        return sum(n for _, n, _ in self._seen) / max(1e-9, sum(s for _, _, s in self._seen))

    @property
    def seconds_left(self) -> float | None:
        """The time that the rounds left will take, at the pace of the last ones; None before the second round."""
        if len(self._seen) < 2:
            return None
        return self._left * (self._seen[-1][0] - self._seen[0][0]) / (len(self._seen) - 1)

    def parts(self) -> list[str]:
        """Everything but the round's number and the time left, as short texts."""
        known = [*(f"{n} {v}" for n, v in self._metrics.items()), self._loss, self._r, self._virtual]
        return [*(text for text in known if text), f"{self.clients_per_s:,.0f} clients/s"]


def duration(seconds: float) -> str:
    """Seconds as 0:42, 12:05 or 3:02:10."""
    minutes, s = divmod(round(seconds), 60)
    hours, m = divmod(minutes, 60)
    return f"{hours}:{m:02}:{s:02}" if hours else f"{m}:{s:02}"


def virtual(seconds: float) -> str:
    """Seconds of the modelled clock, as 0.0123 s, 45.6 s or 12:05."""
    return f"{seconds:.3g} s" if seconds < 100 else duration(seconds)


class Lines(Quiet):
    """Plain lines: one for every evaluated round, and at least one every `LINE_EVERY_S` seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._clock = console, clock
        self._reading, self._last = Reading(clock), -LINE_EVERY_S
        self._pace, self._next_s, self._pause_s, self._told = Pace(clock), 0.0, LINE_EVERY_S, False

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, emoji=False, highlight=False, soft_wrap=True)

    def waiting(self, what: str) -> None:
        self.say(f"{what} …")

    def show(self, round: "Round") -> None:
        self._reading.take(round)
        evaluated = round.validation is not None or round.test is not None
        if evaluated or round.index == round.of or self._clock() - self._last >= LINE_EVERY_S:
            self._last = self._clock()
            left = self._reading.seconds_left
            parts = self._reading.parts() + ([] if left is None else [f"{duration(left)} left"])
            self.say(f"round {round.index} of {round.of} · {' · '.join(parts)}")

    def step(self, step: Step) -> None:
        """Of what takes longer than `LINE_EVERY_S` a line now and then, ever more seldom."""
        now = self._clock()
        if step.what != self._pace.what:
            self._pause_s, self._next_s, self._told = LINE_EVERY_S, now + LINE_EVERY_S, False
        self._pace.take(step)
        over = step.done >= step.of
        if now >= self._next_s or (over and self._told):
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
            self._next_s, self._told = now + self._pause_s, not over
            left = self._pace.seconds_left
            self.say(" · ".join([str(step), *more(step), *([] if left is None else [f"{duration(left)} left"])]))


class Screen:
    """A bar and one line of values on a terminal, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._reading, self._pace = Reading(), Pace()
        self._waiting, self._round = "starting", (0, 0)
        self._step: Step | None = None
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8)

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False, emoji=False, highlight=False)

    def waiting(self, what: str) -> None:
        self._waiting, self._step = what, None

    def show(self, round: "Round") -> None:
        self._waiting, self._step = "", None
        self._reading.take(round)
        self._round = (round.index, round.of)
        if round.index == round.of:
            self._waiting = "evaluating on the test set"

    def step(self, step: Step) -> None:
        self._pace.take(step)
        self._step = step if step.done < step.of else None

    def log(self, record: logging.LogRecord) -> None:
        self._live.console.print(Text(_LINE.format(record), style=_COLOURS.get(record.levelname, "dim")))

    def event(self, values: Mapping[str, Any]) -> None: ...

    def _draw(self) -> Group | Text:
        (done, of), step = self._round, self._step
        if step is not None and monotonic() - self._pace.began_s < STEP_S:
            step = None
        if not done:
            return Text(f"{self._waiting} …", style="dim") if step is None else self._stepping(step)
        left = self._reading.seconds_left
        bar = Table.grid(padding=(0, 1))
        said = f"{self._waiting} …" if self._waiting else "" if left is None else f"{duration(left)} left"
        bar.add_row(f"round {done:,} of {of:,}", ProgressBar(of, done, width=30), Text(said, style="dim"))
        values = Text(" · ".join(self._reading.parts()), style="bold")
        return Group(bar, values) if step is None else Group(bar, values, self._stepping(step))

    def _stepping(self, step: Step) -> Group:
        bar, left = Table.grid(padding=(0, 1)), self._pace.seconds_left
        said = Text("" if left is None else f"{duration(left)} left", style="dim")
        bar.add_row(Text(str(step)), ProgressBar(max(1, step.of), step.done, width=30), said)
        return Group(bar, Text(" · ".join(more(step)), style="bold")) if more(step) else Group(bar)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting, self._step = "", None
        self._live.stop()


_COLOURS = {"WARNING": "yellow", "ERROR": "red", "CRITICAL": "red"}


class JsonLines:
    """One JSON object a line: `event` says what kind it is, `time` when it was (UTC). docs/progress.md lists them."""

    def __init__(self, out: TextIO, brief: bool = False, clock: Callable[[], float] = monotonic) -> None:
        """With `brief` only what a command ends with, and log lines."""
        self._out, self._brief, self._clock = out, brief, clock
        self._pace, self._next_s, self._told = Pace(clock), 0.0, Step("", 0, 0)

    def say(self, line: str) -> None:
        self.event({"event": "note", "text": line})

    def waiting(self, what: str) -> None:
        self.event({"event": "waiting", "what": what})

    def show(self, round: "Round") -> None:
        self.event({"event": "round", **round.to_json()})

    def step(self, step: Step) -> None:
        now, over = self._clock(), step.done >= step.of
        if step.what != self._pace.what:
            self._next_s = now + STEP_S
        self._pace.take(step)
        news, begun = step != self._told, step.what == self._told.what
        if (news and (now >= self._next_s or (over and begun))) or now >= self._next_s + LONGEST_PAUSE_S:
            self._next_s, self._told = now + STEP_S, step
            known = {"what": step.what, "done": step.done, "of": step.of, "unit": step.unit}
            self.event({"event": "progress", **known, **step.more, "left_s": self._pace.seconds_left})

    def log(self, record: logging.LogRecord) -> None:
        about = getattr(record, "about", logs.About())
        known = {n: v for n, v in asdict(about).items() if v}
        self._write({"event": "log", "level": record.levelname.lower(), "message": record.getMessage(), **known})

    def event(self, values: Mapping[str, Any]) -> None:
        if not self._brief or values["event"] in ("summary", "error"):
            self._write(values)

    def _write(self, values: Mapping[str, Any]) -> None:
        now = datetime.now(UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")
        line = json.dumps(finite({"event": values["event"], "time": now, **values}), allow_nan=False, default=str)
        print(line, file=self._out, flush=True)


def finite(value: Any) -> Any:
    """What JSON can say of a value: numbers that are not finite become null."""
    if isinstance(value, Mapping):
        return {str(n): finite(v) for n, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not isfinite(value) else value


class _Hand(logging.Handler):
    """Gives what is logged to a display."""

    def __init__(self, display: Display) -> None:
        super().__init__()
        self._display = display

    def emit(self, record: logging.LogRecord) -> None:
        if (step := getattr(record, "step", None)) is not None:
            self._display.step(step)
        elif (event := getattr(record, "event", None)) is not None:
            self._display.event(event)
        else:
            self._display.log(record)


@contextmanager
def display(
    quiet: bool = False, console: Console | None = None, as_json: bool = False, log_level: str | None = None
) -> Iterator[Display]:
    """The display for where the output goes: live on a terminal, lines in a pipe or file, JSON lines if asked for.

    Log lines from `log_level` on (default: warning, or error where it is to be quiet) come through it, too.
    """
    console = console or Console()
    level = log_level or ("error" if quiet else "warning")
    with _made(quiet, console, as_json) as shown, logs.listening(_Hand(shown), level, _Hand(shown)):
        yield shown


@contextmanager
def _made(quiet: bool, console: Console, as_json: bool) -> Iterator[Display]:
    if as_json:
        yield JsonLines(sys.stdout, brief=quiet)
    elif quiet:
        yield Quiet()
    elif console.is_terminal:
        with Screen(console) as screen:
            yield screen
    else:
        yield Lines(console)
