"""Jobs on a cluster, by Ray's Jobs SDK: sent, followed, listed, stopped.

A job is a command that the cluster runs beside its head. What is sent along is a folder of code, never data. Nothing
secret goes into a job: everybody with the cluster's token reads its command, its metadata and its environment.
"""

import asyncio
import logging
import os
import shlex
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

from ray.exceptions import AuthenticationError
from ray.job_submission import JobSubmissionClient

from raygrad.errors import BadInput, JobLost
from raygrad.naming import unknown
from raygrad.onray import contact, tokens

GRACE = "RAY_JOB_STOP_WAIT_TIME_S"
LOOK_S = 15.0
"""After so long without a line it is asked whether the cluster still answers."""
SILENT_S = 60.0
"""How long a dashboard may take over one request; a job's folder may be on the way."""
LOST_S = 60.0
"""A cluster that does not answer for so long has lost the job, as far as we can know."""
ENDED = ("SUCCEEDED", "FAILED", "STOPPED")
_OVERRIDES = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")


@dataclass(frozen=True)
class Job:
    """A job as its cluster knows it. `status` is PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED.

    `exit_code` is its command's, None while it runs, and where it was stopped or lost.
    """

    id: str
    status: str
    entry_point: str
    message: str
    exit_code: int | None
    started: datetime | None
    ended: datetime | None

    @property
    def over(self) -> bool:
        """Whether it has ended, in whatever way."""
        return self.status in ENDED


class Jobs:
    """The jobs of one cluster. `address` is its dashboard's, as in `contact.dashboard`.

    Raises BadInput where no dashboard answers, or one that refuses our token or has another Ray. `note` is what else
    differs.
    """

    def __init__(self, address: str | None = None) -> None:
        for name in ("dashboard.modules.job.sdk", "dashboard.modules.dashboard_sdk", "_private.runtime_env.packaging"):
            logging.getLogger(f"ray.{name}").setLevel(logging.WARNING)
        self.url = contact.dashboard(address)
        self.note = contact.check_dashboard(self.url)
        with _unset(*_OVERRIDES), self._answering():
            self._client = _Client(self.url)

    def link(self, id: str) -> str:
        """Where a browser shows the job."""
        return f"{self.url}/#/jobs/{id}"

    def submit(self, words: Sequence[str], folder: Path | None, grace_s: int, metadata: dict[str, str]) -> str:
        """Start the command `words` in a copy of `folder` and return the job's id.

        When the job is stopped it has `grace_s` seconds to write a checkpoint.
        """
        environment: dict[str, Any] = {"env_vars": {GRACE: str(grace_s)}}
        if folder is not None:
            environment["working_dir"] = str(folder)
        try:
            with self._answering():
                return self._client.submit_job(entrypoint=shlex.join(words), runtime_env=environment, metadata=metadata)
        except ValueError as e:  # what Ray says of a folder that is too large
            raise BadInput(f"{folder} cannot be sent: {_first_line(e)}; send code only, never data") from e
        except RuntimeError as e:
            raise BadInput(f"the cluster at {self.url} takes no job: {_first_line(e)}") from e

    def job(self, id: str) -> Job:
        """Raises BadInput for a job that is not known."""
        try:
            with self._answering():
                return _job(self._client.get_job_info(id))
        except RuntimeError as e:
            known = [j.id for j in self.all()]
            if id in known:
                raise
            raise unknown("job", id, known) from e

    def all(self) -> list[Job]:
        """Those that were submitted, the newest first."""
        with self._answering():
            found = [_job(j) for j in self._client.list_jobs() if j.submission_id]
        return sorted(found, key=lambda j: (j.started is not None, j.started), reverse=True)

    def newest(self) -> Job:
        """The newest job. Raises BadInput if there is none."""
        found = self.all()
        if not found:
            raise BadInput(f"the cluster at {self.url} has no job; `raygrad job submit RECIPE` starts one")
        return found[0]

    def log(self, id: str) -> str:
        """All that the job has printed so far."""
        with self._answering():
            return self._client.get_job_logs(id)

    def stop(self, id: str) -> bool:
        """Ask a job to end; False if it had ended. It has its grace time, `wait` for it."""
        with self._answering():
            return self._client.stop_job(id)

    def follow(self, id: str) -> Iterator[str]:
        """What the job prints, as it comes, until it has ended. Raises JobLost if the cluster stays away."""
        shown, away_s = 0, None
        if self.job(id).over:
            yield self.log(id)
            return
        while True:
            passed = 0
            try:
                for text in _pieces(self._client.tail_job_logs(id), self._answers):
                    fresh = text[max(0, shown - passed) :]  # after a reconnection it begins at the beginning
                    passed += len(text)
                    if fresh:
                        shown += len(fresh)
                        yield fresh
                if self.job(id).over:
                    return
                away_s = None
            except (OSError, RuntimeError, BadInput, _Away) as e:
                away_s = away_s or monotonic()
                if monotonic() - away_s > LOST_S:
                    raise JobLost(f"{self.url} did not answer for {LOST_S:.0f} s; job {id} may still run") from e
            sleep(1.0)

    def wait(self, id: str) -> Job:
        """The job once it has ended."""
        while not (job := self.job(id)).over:
            sleep(0.2)
        return job

    def _answers(self) -> bool:
        with suppress(BadInput):
            contact.check_dashboard(self.url, quick=True)
            return True
        return False

    @contextmanager
    def _answering(self) -> Iterator[None]:
        """Around calls of the SDK: what the user can mend becomes BadInput."""
        try:
            yield
        except AuthenticationError as e:
            where = f"the Ray at {self.url}"
            raise BadInput(tokens.missing(where) if tokens.configured() is None else tokens.wrong(where)) from e
        except OSError as e:
            raise BadInput(f"no Ray's dashboard answers at {self.url} ({_first_line(e)}); is the tunnel open?") from e


class _Client(JobSubmissionClient):
    """Ray's own waits for ever."""

    def _do_request(self, method: str, endpoint: str, **kw: Any) -> Any:
        return super()._do_request(method, endpoint, **{"timeout": (contact.CONNECT_S, SILENT_S), **kw})


class _Away(Exception):
    """The cluster does not answer."""


def _pieces(tail: AsyncIterator[str], answers: Any) -> Iterator[str]:
    """What an asynchronous iterator gives, here. A connection that died without a word is noticed."""
    loop = asyncio.new_event_loop()
    task: asyncio.Task[str] | None = None
    try:
        while True:
            task = loop.create_task(anext(tail))  # pyright: ignore[reportArgumentType]
            while not loop.run_until_complete(asyncio.wait({task}, timeout=LOOK_S))[0]:
                if not answers():
                    raise _Away
            try:
                yield task.result()
            except StopAsyncIteration:
                return
    finally:
        if task is not None and not task.done():
            task.cancel()
        with suppress(BaseException):
            loop.run_until_complete(asyncio.gather(*([task] if task else []), return_exceptions=True))
        loop.close()


def _job(details: Any) -> Job:
    return Job(
        details.submission_id or "", str(getattr(details.status, "value", details.status)), details.entrypoint,
        details.message or "", details.driver_exit_code, _time(details.start_time), _time(details.end_time),
    )  # fmt: skip


def _time(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


@contextmanager
def _unset(*names: str) -> Iterator[None]:
    """Without environment variables that Ray would take for what it is told."""
    former = {name: os.environ.pop(name) for name in names if name in os.environ}
    try:
        yield
    finally:
        os.environ.update(former)
