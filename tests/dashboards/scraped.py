"""A real Prometheus reads runs and a sweep on a real Ray, with this repository's configuration and alerts. Prints JSON.

python tests/dashboards/scraped.py FOLDER PROMETHEUS

A run plays on until every query of the dashboards of runs has data, while its hosts die again and again until the alert
of that fires. Then the process of a run is killed, another run falls below its quorum, one diverges, one stalls, and
one has few answers and a loss that rises; alerts that wait for minutes are there a second time in a hurry. A small
sweep gives the other dashboard data.
"""

import json
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import ray
import yaml
from queries import ALERTS, PROMETHEUS, bound, hurried, panels

from raygrad.algorithms.fedga import FedGA
from raygrad.errors import BelowQuorum, Diverged
from raygrad.experiment import Experiment, Gangs, Probe, Where
from raygrad.onray.start import Lender
from raygrad.run import create, play
from raygrad.sweeps import sweep as sweeps
from raygrad.talk import Failures
from raygrad.verify import problem

ENOUGH_S = 90.0
"""Far more than anything here takes."""


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A Prometheus on loopback."""

    def __init__(self, port: int) -> None:
        self._at = f"http://127.0.0.1:{port}"
        self.fired: set[tuple[str, str]] = set()  # alerts and the runs they are about

    def get(self, path: str, **parameters: str) -> dict:
        """What it answers, also to a query that it refuses."""
        url = f"{self._at}{path}?{urllib.parse.urlencode(parameters)}"
        try:
            with urllib.request.urlopen(url, timeout=10) as answer:
                return json.load(answer)
        except urllib.error.HTTPError as e:
            return json.load(e)

    def ready(self) -> bool:
        """Whether it serves. While it starts it answers 503, in words instead of JSON."""
        try:
            with urllib.request.urlopen(f"{self._at}/-/ready", timeout=10):
                return True
        except OSError:
            return False

    def error(self, query: str) -> str:
        """Why it refuses a query, empty if it does not."""
        found = self.get("/api/v1/query", query=query)
        return "" if found["status"] == "success" else f"{query}: {found}"

    def has_data(self, query: str) -> bool:
        """Whether there is a finite value."""
        found = self.get("/api/v1/query", query=query)
        return found["status"] == "success" and any(r["value"][1] != "NaN" for r in found["data"]["result"])

    def fires(self, *wanted: tuple[str, str]) -> bool:
        """Whether all these alerts fire, each about its run."""
        alerts = self.get("/api/v1/alerts")["data"]["alerts"]
        fire = {(a["labels"]["alertname"], a["labels"]["run"]) for a in alerts if a["state"] == "firing"}
        self.fired |= fire
        return fire >= set(wanted)


@contextmanager
def prometheus(program: str, folder: Path, target: str) -> Iterator[Server]:
    """The repository's configuration, read from another place, every second."""
    folder.mkdir()
    (folder / "targets.json").write_text(json.dumps([{"targets": [target], "labels": {"job": "ray"}}]))
    config = yaml.safe_load(PROMETHEUS.read_text())
    config["global"] = {"scrape_interval": "1s", "evaluation_interval": "1s"}
    (folder / "hurried.yml").write_text(hurried())
    config["rule_files"] = [str(ALERTS), str(folder / "hurried.yml")]
    (job,) = config["scrape_configs"]
    (job["file_sd_configs"][0]["files"],) = ([str(folder / "targets.json")],)
    (folder / "prometheus.yml").write_text(yaml.safe_dump(config))
    port = free_port()
    with (folder / "log").open("w") as log:
        process = subprocess.Popen(
            [program, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
             f"--web.listen-address=127.0.0.1:{port}"], stdout=log, stderr=log,
        )  # fmt: skip
    try:
        server = Server(port)
        assert wait_for(server.ready), (folder / "log").read_text()
        yield server
    finally:
        process.terminate()
        process.wait(30)


def wait_for(what: Callable[[], bool], enough_s: float = ENOUGH_S) -> bool:
    """Wait until it is so. Prometheus has no event that could be awaited."""
    until = time.monotonic() + enough_s
    while not (there := what()) and time.monotonic() < until:
        time.sleep(0.2)
    return there


executors: list = []


def watched_executors() -> None:
    """Keep the executors of this process, to let their hosts die."""
    from raygrad.onray import executor

    plain = executor.RayExecutor.__init__

    def init(self: executor.RayExecutor, *args: object, **more: object) -> None:
        plain(self, *args, **more)  # type: ignore[arg-type]
        executors.append(self)

    executor.RayExecutor.__init__ = init  # type: ignore[method-assign]


def play_until(e: Experiment, folder: Path, name: str, lender: Lender, over: Callable[[int], bool]) -> None:
    """Play a run until it is `over(round)`, which is asked after every round."""
    run = create(e, Where(hosts=2), run_root=folder, name=name)
    until = time.monotonic() + ENOUGH_S
    rounds = play(run, lender=lender)
    for round in rounds:
        if over(round.index) or time.monotonic() > until:
            break
    rounds.close()


BASE = replace(problem(FedGA(), 6), rounds=100_000, probe=Probe(every=5, clients=4), gangs=Gangs(size=1))


def play_on(folder: Path, address: str) -> None:
    """A run in a process of its own, which will be killed."""
    for _ in play(create(BASE, Where(address=address, hosts=1), run_root=folder, name="lost")):
        pass


@contextmanager
def ended(process: subprocess.Popen) -> Iterator[None]:
    """Afterwards the process is gone."""
    try:
        yield
    finally:
        process.kill()
        process.wait()


def main(folder: Path, program: str) -> None:
    port = free_port()
    ray.init(
        address="local", num_cpus=3, include_dashboard=False, log_to_driver=False, object_store_memory=200 * 2**20,
        _metrics_export_port=port, _system_config={"metrics_report_interval_ms": 1000},
    )  # fmt: skip
    watched_executors()
    lender = Lender(2)  # the runs take turns with two hosts, which import torch once
    found: dict[str, object] = {}
    began = time.monotonic()
    address = ray.get_runtime_context().gcs_address
    losing = subprocess.Popen([sys.executable, __file__, str(folder), "--lost", address], stdout=subprocess.DEVNULL)
    with prometheus(program, folder / "prometheus", f"127.0.0.1:{port}") as server, ended(losing):
        left = {name: bound(q) for name, q in panels().items()}
        found["refused"] = [e for q in left.values() if (e := server.error(q))]
        looked_s = lost_s = time.monotonic()

        def all_there(index: int) -> bool:
            nonlocal looked_s, lost_s
            now = time.monotonic()
            if now - looked_s < 1:
                return False
            looked_s, flaps = now, server.fires(("RaygradHostFlaps", "seen"))
            if not flaps and now - lost_s > 2:
                lost_s = now
                executors[-1].lose_host()
            for name in [n for n, q in left.items() if not n.startswith("sweep") and server.has_data(q)]:
                del left[name]
            return flaps and all(n.startswith("sweep") for n in left)

        play_until(BASE, folder, "seen", lender, all_there)
        assert wait_for(lambda: server.has_data('ray_raygrad_rounds_total{run="lost"}'))
        losing.kill()
        found["runs_s"] = round(time.monotonic() - began, 1)

        # All but one client have left, and two must answer.
        raised = []
        short = replace(BASE, failures=Failures(quorum=2))
        try:
            for r in play(create(short, Where(hosts=1), run_root=folder, name="short"), lender=lender):
                if r.index == 2:
                    r.retire(range(1, 6))
        except BelowQuorum as e:
            raised.append(type(e).__name__)
        try:
            wild = replace(BASE, algorithm=replace(BASE.algorithm, lr=1e12))
            for _ in play(create(wild, Where(hosts=1), run_root=folder, name="wild"), lender=lender):
                pass
        except Diverged as e:
            raised.append(type(e).__name__)
        found["raised"] = raised
        play_until(
            BASE, folder, "stalls", lender,
            lambda index: index == 100 and wait_for(lambda: server.fires(("HurriedRunStalls", "stalls"))),
        )  # fmt: skip
        worse = replace(
            BASE,
            sampler=replace(BASE.sampler, cohort=2),
            failures=Failures(quorum=2),
            changes=("100:algorithm.lr=1e3",),
        )
        sinking = ("HurriedNearQuorum", "worse"), ("HurriedLossRises", "worse")
        play_until(worse, folder, "worse", lender, lambda index: index % 50 == 0 and server.fires(*sinking))
        wait_for(lambda: server.fires(("HurriedRunLost", "lost")), 60)
        found["fired"] = sorted(server.fired)
        found["faults_s"] = round(time.monotonic() - began, 1)

        lender.close()
        s = sweeps.Sweep(
            replace(BASE, rounds=2, evaluation=replace(BASE.evaluation, every=1)), {"alpha": "0.1"}, search="grid",
            winner_seeds=0, max_concurrent=1,
        )  # fmt: skip
        sweeps.run(s, run_root=folder, name="swept")
        wait_for(lambda: all(server.has_data(q) for q in left.values()), 30)
        found["without_data"] = sorted(n for n, q in left.items() if not server.has_data(q))
        found["sweep_s"] = round(time.monotonic() - began, 1)
        found["series"] = server.get("/api/v1/series", **{"match[]": '{__name__=~"ray_raygrad_.+"}'})["data"]
    ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    play_on(Path(sys.argv[1]), sys.argv[3]) if sys.argv[2] == "--lost" else main(Path(sys.argv[1]), sys.argv[2])
