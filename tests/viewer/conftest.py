"""Real runs for the viewer, a viewer of its own for each test, and a browser."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from raygrad import run as engine
from raygrad.algorithms.fedavg import FedAvg
from raygrad.algorithms.fedga import FedGA
from raygrad.experiment import Where
from raygrad.files import storage
from raygrad.sweeps.sweep import Book, LoadedSweep, Maker, Sweep, winning_points
from raygrad.sweeps.trial import Trial
from raygrad.verify import problem

if TYPE_CHECKING:
    from selenium.webdriver.chrome.webdriver import WebDriver

Viewer = Callable[..., str]


@pytest.fixture(scope="session")
def run_root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two algorithms with two seeds each, finished, and a run that was stopped. Not to be changed."""
    root = tmp_path_factory.mktemp("viewed") / "runs"
    for algorithm, name in ((FedGA(), "fedga"), (FedAvg(), "fedavg")):
        for seed in (0, 1):
            experiment = replace(problem(algorithm), seed=seed)
            for _ in engine.rounds(experiment, Where(on="local"), run_root=root, name=name):
                pass
    stopped = engine.rounds(problem(FedGA()), Where(on="local"), run_root=root, name="stopped")
    next(stopped)
    stopped.close()
    a_sweep(root)
    return root


def a_sweep(root: Path) -> None:
    """A grid of four trials and its best setting again, played in this process."""
    made = Sweep(problem(FedGA()), {"alpha": "0.05,0.1", "K": "1,2"}, search="grid", winner_seeds=2)
    where = Where(on="local")
    folder = root / "searched" / "20260101-000000-abcdef"
    folder.mkdir(parents=True)
    record = {"schema_version": 1, "name": "searched", "id": folder.name, "hash": made.hash, "sweep": made.to_json()}
    storage.write_json(folder / "where.json", where.to_json())
    storage.write_json(folder / "sweep.json", record)
    loaded = LoadedSweep(folder, "searched", made, where)
    book, points = Book(loaded), list(Maker(made, where, root).known())
    for play in (lambda: points, lambda: winning_points(loaded, points)):
        for point in play():
            trial = Trial(point.jobs(folder), where, tested=point.role == "winner")
            while not trial.next().over:
                pass
            book.close(point, "finished")
        book.write()


@contextmanager
def viewing(root: Path | str, *words: str, **environment: str) -> Iterator[str]:
    """`raygrad view` as a process; gives the address that it printed."""
    command = [sys.executable, "-m", "raygrad", "view", "--port", "0", "--run-root", str(root), *words]
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, **environment}
    )
    try:
        assert process.stdout is not None and process.stderr is not None
        line = process.stdout.readline()
        assert line.startswith("raygrad view  http"), line + process.stderr.read()
        yield line.split()[-1]
    finally:
        process.send_signal(signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(20)
        process.kill()
        _, said = process.communicate()
    assert process.returncode == 0 and said == "", said


@pytest.fixture(scope="session")
def viewer(run_root: Path) -> Iterator[str]:
    """The address of a viewer of `run_root`."""
    with viewing(run_root) as address:
        yield address


@pytest.fixture(scope="session")
def browser(require: Callable[[str], dict[str, str]]) -> "Iterator[WebDriver]":
    """Debian's Chromium, headless."""
    paths = require("chromium")
    from selenium import webdriver
    from selenium.webdriver.chrome.options import Options
    from selenium.webdriver.chrome.service import Service

    options = Options()
    options.binary_location = paths["chromium"]
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"):
        options.add_argument(argument)
    options.add_argument("--window-size=1280,2000")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(paths["chromedriver"]))
    try:
        yield driver
    finally:
        driver.quit()
