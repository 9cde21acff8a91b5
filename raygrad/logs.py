"""What raygrad says of its work: log lines that name run, round and host, and how far something long has come.

All of it goes through the standard `logging`. Modules log to `logging.getLogger(__name__)`, below the logger `raygrad`;
`about` says which run and round it is about, and `Context` puts that into the records. Steps are records of the logger
`raygrad.steps`, which drops them unless somebody listens.
"""

import logging
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field, replace
from time import monotonic

from raygrad.errors import BadInput

Say = Callable[[str], None]
"""Takes lines that the user of a command or a loop should see."""

LEVELS = ("debug", "info", "warning", "error")
WINDOW_S = 10.0
"""So long after a line its repeats are folded..."""
ALIKE = 5
"""... and so many that are made from the same pattern, as of several hosts, pass within it."""
_ROOT, _STEPS = logging.getLogger("raygrad"), logging.getLogger("raygrad.steps")
_STEPS.propagate = False


@dataclass(frozen=True)
class About:
    """What log lines are about: `run` is name/id, `round` counts from 1 (0: none), `host` is machine:process."""

    run: str = ""
    round: int = 0
    host: str = ""

    def __str__(self) -> str:
        round, host = f"round {self.round}" if self.round else "", f"host {self.host}" if self.host else ""
        return " ".join(part for part in (self.run, round, host) if part)


_ABOUT: ContextVar[About] = ContextVar("raygrad_about", default=About())  # noqa: B039  (it is frozen)


def current() -> About:
    """What the lines of now are about."""
    return _ABOUT.get()


@contextmanager
def about(run: str | None = None, round: int | None = None, host: str | None = None) -> Iterator[None]:
    """Inside, log lines are about these, and about what they were before where nothing is given.

    Not to be held open over a `yield` of a generator: its caller would log in its name.
    """
    given = {n: v for n, v in (("run", run), ("round", round), ("host", host)) if v is not None}
    token = _ABOUT.set(replace(_ABOUT.get(), **given))
    try:
        yield
    finally:
        _ABOUT.reset(token)


class Context(logging.Filter):
    """Gives records `run`, `round` and `host`, unless whoever logs has given them by `extra`, and all as `about`."""

    def filter(self, record: logging.LogRecord) -> bool:
        now = current()
        for name in ("run", "round", "host"):
            if not hasattr(record, name):
                setattr(record, name, getattr(now, name))
        record.about = About(*(getattr(record, n) for n in ("run", "round", "host")))
        return True


class Line(logging.Formatter):
    """`10:41:07 warning digits/ID round 12 host node1:4711: message`, on one line; the date where `dated`."""

    def __init__(self, dated: bool = False) -> None:
        super().__init__(datefmt="%Y-%m-%d %H:%M:%S" if dated else "%H:%M:%S")

    def format(self, record: logging.LogRecord) -> str:
        about = str(getattr(record, "about", ""))
        text = " ".join(record.getMessage().split())
        error = record.exc_info[1] if record.exc_info else None
        text += f" ({type(error).__name__}: {' '.join(str(error).split())})" if error is not None else ""
        head = f"{self.formatTime(record, self.datefmt)} {record.levelname.lower()}"
        return f"{head} {about}: {text}" if about else f"{head} {text}"


class Folding(logging.Handler):
    """Passes records on to `target`, repeats only as their number: "… repeated 57 times".

    Within `WINDOW_S` the same message passes once, and messages of the same pattern `ALIKE` times. What was held back
    is told when the window is over and something else is logged, at `flush` and at `close`.
    """

    def __init__(self, target: logging.Handler, window_s: float = WINDOW_S) -> None:
        super().__init__()
        self._target, self._window_s = target, window_s
        self._same: dict[tuple[str, int, str], _Held] = {}
        self._alike: dict[tuple[str, int, str], _Held] = {}

    def emit(self, record: logging.LogRecord) -> None:
        now = monotonic()
        self._tell(now)
        where = (record.name, record.levelno)
        same, alike = (*where, record.getMessage()), (*where, str(record.msg))
        if (held := self._same.get(same)) is not None:
            held.more, held.last = held.more + 1, record
            return
        group = self._alike.setdefault(alike, _Held(now + self._window_s, record))
        group.passed += 1
        if group.passed > ALIKE:
            group.more, group.last = group.more + 1, record
            return
        self._same[same] = _Held(now + self._window_s, record)
        self._target.handle(record)

    def _tell(self, now: float) -> None:
        """Say how many were held back of those whose window is over."""
        for kind, known in (("repeated {} times", self._same), ("and {} more like it", self._alike)):
            for key in [k for k, held in known.items() if held.until_s <= now]:
                held = known.pop(key)
                if held.more:
                    said = logging.makeLogRecord(held.last.__dict__)
                    said.msg, said.args = f"{held.last.getMessage()} … {kind.format(held.more)}", None
                    self._target.handle(said)

    def flush(self) -> None:
        self.acquire()
        try:
            self._tell(float("inf"))
        finally:
            self.release()
        self._target.flush()

    def close(self) -> None:
        self.flush()
        super().close()


@dataclass
class _Held:
    """A message within its window: when that ends, and what was held back."""

    until_s: float
    last: logging.LogRecord
    more: int = 0
    passed: int = 0


# --- steps ----------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Step:
    """How far something long is: `done` of `of` `unit`s. `more` are further numbers, such as trials that run."""

    what: str
    done: int
    of: int
    unit: str = ""
    more: Mapping[str, str | int | float | None] = field(default_factory=dict)

    def __str__(self) -> str:
        if self.unit == "bytes":
            return f"{self.what}: {size(self.done)} of {size(self.of)}"
        return f"{self.what}: {self.done:,} of {self.of:,} {self.unit}".rstrip()


def step(what: str, done: int, of: int, unit: str = "", **more: str | int | float | None) -> None:
    """Say how far it is, to whoever listens."""
    if _STEPS.isEnabledFor(logging.DEBUG):
        _STEPS.debug("%s", what, extra={"step": Step(what, done, of, unit, more)})


def event(kind: str, **values: object) -> None:
    """Something happened that a program may want to know, such as a trial that is over."""
    if _STEPS.isEnabledFor(logging.DEBUG):
        _STEPS.debug("%s", kind, extra={"event": {"event": kind, **values}})


def size(count: int) -> str:
    """Bytes as 512 B, 3.1 MB or 12.0 GB."""
    for unit, each in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= each:
            return f"{count / each:,.1f} {unit}"
    return f"{count} B"


# --- who listens ----------------------------------------------------------------------------------------------------


def level(name: str) -> int:
    """A level of logging by its name. Raises BadInput."""
    if name.lower() not in LEVELS:
        raise BadInput(f"log level {name!r} is none of {', '.join(LEVELS)}")
    return logging.getLevelNamesMapping()[name.upper()]


class OnStderr(logging.Handler):
    """Lines on stderr, as commands show them."""

    def emit(self, record: logging.LogRecord) -> None:
        print(f"raygrad: {Line().format(record)}", file=sys.stderr, flush=True)


@contextmanager
def listening(target: logging.Handler, name: str, steps: logging.Handler | None = None) -> Iterator[None]:
    """Inside, what raygrad logs from level `name` on goes to `target`, folded, and steps to `steps`.

    Whoever listened by this before hears nothing meanwhile.
    """
    handler = Folding(target)
    handler.setLevel(level(name))
    handler.addFilter(Context())
    former, others = (_ROOT.level, _STEPS.level), [h for h in _ROOT.handlers if isinstance(h, Folding)]
    for other in others:
        _ROOT.removeHandler(other)
    _ROOT.addHandler(handler)
    _ROOT.setLevel(handler.level)
    if steps is not None:
        _STEPS.addHandler(steps)
        _STEPS.setLevel(logging.DEBUG)
    try:
        yield
    finally:
        _ROOT.removeHandler(handler)
        handler.close()
        _ROOT.setLevel(former[0])
        for other in others:
            _ROOT.addHandler(other)
        if steps is not None:
            _STEPS.removeHandler(steps)
            _STEPS.setLevel(former[1])


def on_host(name: str) -> None:
    """In a host's process: log lines from level `name` on go to its stderr, which Ray keeps, dated and folded."""
    if any(isinstance(h, Folding) for h in _ROOT.handlers):
        return
    target = logging.StreamHandler()
    target.setFormatter(Line(dated=True))
    handler = Folding(target)
    handler.addFilter(Context())
    _ROOT.addHandler(handler)
    _ROOT.setLevel(level(name))
    _ROOT.propagate = False  # Ray gives the root logger a handler of its own


def level_name() -> str:
    """The level from which on raygrad logs here, by its name, for hosts to do the same."""
    return logging.getLevelName(_ROOT.getEffectiveLevel()).lower() if _ROOT.level else "warning"
