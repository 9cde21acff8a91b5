"""Plays run folders in forked children and kills them. Reads one JSON job per line, answers one JSON line each.

A fork is cheap because torch is imported once; the parent never computes, so that it has no threads to lose.
"""

import json
import os
import signal
import sys
import time
from contextlib import AbstractContextManager

import raygrad.run  # torch and all else, once
from raygrad.files import remote, storage
from raygrad.files.runs import load


def kill_inside_write(countdown: int) -> None:
    """The n-th file that is written from now on is cut in half by a kill."""
    plain = storage.Sink.write

    def write(self: storage.Sink, data: bytes) -> int:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            view = memoryview(data).cast("B")
            plain(self, view[: len(view) // 2])
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(self, data)

    storage.Sink.write = write  # type: ignore[method-assign]


def kill_at_request(countdown: int) -> None:
    """The process dies when it is about to make its n-th request to an object store, or to begin one."""
    plain = remote._requesting

    def requesting(may_lack: bool = False) -> AbstractContextManager[None]:
        nonlocal countdown
        countdown -= 1
        if countdown == 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return plain(may_lack)

    remote._requesting = requesting


def play(folder: str, at_write: int | None, at_request: int | None, cache: str | None) -> None:
    if cache is not None:
        os.environ[remote.CACHE_VARIABLE] = cache
    if at_write is not None:
        kill_inside_write(at_write)
    if at_request is not None:
        kill_at_request(at_request)
    run = load(folder)
    for _ in raygrad.run.play(run):
        pass


def main() -> None:
    for line in sys.stdin:
        job = json.loads(line)
        started = time.perf_counter()
        child = os.fork()
        if child == 0:
            try:
                play(job["run"], job.get("at_write"), job.get("at_request"), job.get("cache"))
            except BaseException as e:
                print(f"{type(e).__name__}: {e}", file=sys.stderr, flush=True)
                os._exit(1)
            os._exit(0)
        after = job.get("after_s")
        if after is not None:
            while (
                time.perf_counter() - started < after
                and os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is None
            ):
                time.sleep(0.002)
            os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        answer = {"killed": os.WIFSIGNALED(status), "ok": status == 0, "seconds": time.perf_counter() - started}
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
