"""What can go wrong, and the exit code each kind has. `EXIT_CODES` is the one table every command uses."""

EXIT_CODES = {
    0: "done (also: a finished run was resumed and nothing was left to do)",
    1: "a check failed",
    2: "bad input, found before any work started",
    3: "diverged: a loss, an update or the model became NaN or infinite",
    4: "fewer clients answered than the quorum asks for",
    69: "a job was lost: its driver or node died, or its cluster no longer answers",
    75: "stopped, or storage was lost; the run can be resumed",
    130: "interrupted by Ctrl-C; the run can be resumed",
    143: "a job was stopped and is not known to have left a checkpoint",
}


class RaygradError(Exception):
    """The parent of every error that raygrad raises on purpose; `exit_code` is what the commands return for it."""

    exit_code = 1


class CheckFailed(RaygradError):
    """A verification did not hold."""

    exit_code = 1


class BadInput(RaygradError):
    """The user asked for something that cannot be: one clear line, before Ray starts."""

    exit_code = 2


class DamagedShard(BadInput):
    """What is stored of a client is not what was written. `client` is its number."""

    def __init__(self, message: str, client: int) -> None:
        super().__init__(message, client)
        self.client = client

    def __str__(self) -> str:
        return self.args[0]


class Diverged(RaygradError):
    """A value became NaN or infinite. `round` and `client` say where (`client` is None on the server)."""

    exit_code = 3

    def __init__(self, what: str, round: int, client: int | None) -> None:
        super().__init__(what, round, client)
        self.what, self.round, self.client = what, round, client

    def __str__(self) -> str:
        where = "on the server" if self.client is None else f"at client {self.client}"
        also = "" if self.client is None else ", or go on without such updates: resume with --set failures.nan=skip"
        return f"{self.what} is not finite in round {self.round} {where}; a smaller algorithm.lr often helps{also}"


class BelowQuorum(RaygradError):
    """Fewer clients answered than the run needs."""

    exit_code = 4


class Stopped(RaygradError):
    """The run had to stop and can be resumed."""

    exit_code = 75


class JobLost(RaygradError):
    """A submitted job ended without an exit code, or it is not known how it goes on."""

    exit_code = 69


class RaygradWarning(UserWarning):
    """Something works, but not as the user may expect."""
