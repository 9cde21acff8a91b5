"""What a run shows while it runs: one live display on a terminal, plain lines elsewhere, or nothing.

Everybody who drives the rounds gives them to a `Display`; nothing calls back.
"""

from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from time import monotonic
from typing import TYPE_CHECKING, Protocol

from rich.console import Console, Group
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from raygrad.run import Round

LINE_EVERY_S = 2.0
"""Without a terminal, a line at least this often while rounds come."""
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


class Quiet:
    """Shows nothing."""

    def say(self, line: str) -> None: ...

    def waiting(self, what: str) -> None: ...

    def show(self, round: "Round") -> None: ...


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


class Lines:
    """Plain lines: one for every evaluated round, and at least one every `LINE_EVERY_S` seconds."""

    def __init__(self, console: Console, clock: Callable[[], float] = monotonic) -> None:
        self._console, self._clock = console, clock
        self._reading, self._last = Reading(clock), -LINE_EVERY_S

    def say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)

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


class Screen:
    """A bar and one line of values on a terminal, redrawn in place."""

    def __init__(self, console: Console) -> None:
        self._reading = Reading()
        self._waiting, self._round = "starting", (0, 0)
        self._live = Live(get_renderable=self._draw, console=console, refresh_per_second=8)

    def say(self, line: str) -> None:
        self._live.console.print(line, markup=False, highlight=False)

    def waiting(self, what: str) -> None:
        self._waiting = what

    def show(self, round: "Round") -> None:
        self._waiting = ""
        self._reading.take(round)
        self._round = (round.index, round.of)
        if round.index == round.of:
            self._waiting = "evaluating on the test set"

    def _draw(self) -> Group | Text:
        done, of = self._round
        if not done:
            return Text(f"{self._waiting} …", style="dim")
        left = self._reading.seconds_left
        bar = Table.grid(padding=(0, 1))
        said = f"{self._waiting} …" if self._waiting else "" if left is None else f"{duration(left)} left"
        bar.add_row(f"round {done:,} of {of:,}", ProgressBar(of, done, width=30), Text(said, style="dim"))
        values = Text(" · ".join(self._reading.parts()), style="bold")
        return Group(bar, values)

    def __enter__(self) -> "Screen":
        self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._waiting = ""
        self._live.stop()


@contextmanager
def display(quiet: bool = False, console: Console | None = None) -> Iterator[Display]:
    """The display for where the output goes: live on a terminal, lines in a pipe or file."""
    console = console or Console()
    if quiet:
        yield Quiet()
    elif console.is_terminal:
        with Screen(console) as screen:
            yield screen
    else:
        yield Lines(console)
