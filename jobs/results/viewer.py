"""Pictures of the viewer for the docs, and how long its first paint takes.

    python jobs/results/viewer.py pictures runs/digits runs/fedavg --sweep runs/grid --out docs/viewer
    python jobs/results/viewer.py paint

`pictures` shows the newest runs of the folders that are given. `paint` makes 1,000 runs and one of 100,000 rounds out
of a small real run, and takes the time from the click to what is asked for on the screen: medians of five. Both need
Chromium and its driver (Debian: chromium, chromium-driver) and Python's selenium.
"""

import argparse
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from raygrad import run as engine
from raygrad.algorithms.fedga import FedGA
from raygrad.experiment import Where
from raygrad.files import tables
from raygrad.verify import problem

REPEATS = 5
RUNS, ROUNDS = 1_000, 100_000
SHOWN_S = 60


@contextmanager
def browser(width: int, height: int) -> Iterator[webdriver.Chrome]:
    """A headless Chromium."""
    programs = {name: shutil.which(name) for name in ("chromium", "chromedriver")}
    if missing := [name for name, path in programs.items() if path is None]:
        sys.exit(f"there is no {' and no '.join(missing)} on this machine; on Debian: apt-get install chromium-driver")
    options = Options()
    options.binary_location = str(programs["chromium"])
    for argument in ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--hide-scrollbars"):
        options.add_argument(argument)
    options.add_argument(f"--window-size={width},{height}")
    driver = webdriver.Chrome(options=options, service=Service(str(programs["chromedriver"])))
    try:
        yield driver
    finally:
        driver.quit()


@contextmanager
def viewer(root: Path) -> Iterator[str]:
    """`raygrad view` of a run root; gives its address."""
    command = [sys.executable, "-m", "raygrad", "view", "--port", "0", "--run-root", root.name]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root.parent)
    try:
        assert process.stdout is not None
        yield process.stdout.readline().split()[-1]
    finally:
        process.terminate()
        process.wait()


def until(driver: webdriver.Chrome, script: str) -> None:
    """Wait until a JavaScript expression is true."""
    WebDriverWait(driver, SHOWN_S, 0.01).until(lambda d: d.execute_script(f"return {script}"))


CHARTS = "document.querySelectorAll('.chart canvas').length"


def pictures(folders: list[Path], sweep: Path | None, out: Path) -> None:
    """A picture of each page."""
    runs = [p for folder in folders for p in sorted(folder.glob("*")) if (p / "experiment.json").is_file()]
    if not runs:
        sys.exit(f"there are no runs in {', '.join(map(str, folders))}; `raygrad run` makes some")
    root = runs[0].resolve().parents[1]
    at = [run.resolve().relative_to(root).as_posix() for run in runs]
    pages = {
        "list": ("", 520, "document.querySelector('tbody tr') && !document.body.innerText.includes('being read')"),
        "run": (f"run/{at[0]}", 1500, f"{CHARTS} >= 9"),
        "compare": (f"compare?runs={','.join(at)}", 1150, f"{CHARTS} >= 9"),
    }
    if sweep is not None:
        newest = sorted(p for p in sweep.glob("*") if (p / "sweep.json").is_file())[-1]
        pages["sweep"] = f"sweep/{newest.resolve().relative_to(root).as_posix()}", 1500, f"{CHARTS} >= 3"
    out.mkdir(parents=True, exist_ok=True)
    with viewer(root) as address:
        for name, (page, height, shown) in pages.items():
            with browser(1180, height) as driver:
                driver.get(address + page)
                until(driver, shown)
                driver.execute_async_script("requestAnimationFrame(() => requestAnimationFrame(arguments[0]))")
                driver.save_screenshot(str(out / f"{name}.png"))
                print(out / f"{name}.png")


def paint() -> None:
    """The time to the first paint of a list of many runs, and of a long run."""
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "runs"
        for _ in engine.rounds(problem(FedGA()), Where(on="local"), run_root=root, name="small"):
            pass
        small = next((root / "small").iterdir())
        for i in range(RUNS - 2):
            shutil.copytree(small, root / f"copy-{i % 20}" / f"20260101-{i:06d}-{small.name[-6:]}")
        lengthen(shutil.copytree(small, root / "long" / "20260102-000000-long"), ROUNDS)
        shown = {
            f"list of {RUNS:,} runs": ("", "document.querySelectorAll('tbody tr').length >= 50"),
            f"run of {ROUNDS:,} rounds": ("run/long/20260102-000000-long", f"{CHARTS} >= 2"),
        }
        with browser(1280, 1400) as driver:
            for what, (page, script) in shown.items():
                found = []
                for _ in range(REPEATS):
                    with viewer(root) as address:  # a new one each time: nothing is known yet
                        driver.get(address + page)
                        until(driver, script)
                        found.append(driver.execute_script("return performance.now()") / 1000)
                print(f"{what}: {statistics.median(found):.2f} s ({min(found):.2f} to {max(found):.2f})")


def lengthen(run: Path, rounds: int) -> None:
    """Give a run's tables so many rounds: its rows again and again."""
    for name in ("rounds", "clients", "probes", "metrics", "operations", "seconds"):
        table = tables.read(run, name)
        length = int(table["round"].to_numpy().max())
        copies = -(-rounds // length)
        rows = np.tile(np.arange(len(table)), copies)
        longer = table.take(rows)
        index = (longer["round"].to_numpy() + np.repeat(np.arange(copies), len(table)) * length).astype(np.int32)
        longer = longer.set_column(0, table.schema.field(0), [index])
        if name in ("operations", "seconds"):
            column = "start_s" if name == "operations" else "elapsed_s"
            later = longer[column].to_numpy() + np.repeat(np.arange(copies), len(table)) * 2.0
            longer = longer.set_column(longer.schema.get_field_index(column), table.schema.field(column), [later])
        for part in tables.folder(run, name).iterdir():
            part.unlink()
        pq.write_table(longer.filter(index <= rounds), tables.folder(run, name) / "part-000001.parquet")


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    drawn = commands.add_parser("pictures", help="pictures of the pages")
    drawn.add_argument("folders", nargs="+", type=Path)
    drawn.add_argument("--sweep", type=Path)
    drawn.add_argument("--out", type=Path, default=Path("docs/viewer"))
    commands.add_parser("paint", help="the time to the first paint")
    words = parser.parse_args()
    if words.command == "pictures":
        pictures(words.folders, words.sweep, words.out)
    else:
        paint()


if __name__ == "__main__":
    main()
