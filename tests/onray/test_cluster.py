"""What is refused before a Ray is started or joined."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from raygrad.errors import BadInput, Stopped
from raygrad.experiment import Where
from raygrad.onray import cluster


@pytest.fixture
def no_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cluster.ray, "is_initialized", lambda: False)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("no_ray")
@pytest.mark.parametrize(
    ("where", "message"),
    [
        (Where(address="garbage"), "neither auto nor HOST:PORT"),
        (Where(address="ray://127.0.0.1:10001"), "neither auto nor HOST:PORT"),
        (Where(address="127.0.0.1:1"), "no Ray answers at 127.0.0.1:1"),
        (Where(hosts=16 * (os.cpu_count() or 1) + 1), r"this machine has \d+ cores; ask for at most"),
        (Where(hosts="999999..1000000"), r"hosts is 999999..1000000, but this machine has \d+ cores"),
        (Where(gpus_per_host=0.5, device="cpu"), "the device is cpu"),
    ],
)
def test_what_cannot_be(where: Where, message: str) -> None:
    with pytest.raises(BadInput, match=message):
        cluster.check(where)


@pytest.mark.usefixtures("no_ray")
def test_a_ray_that_does_not_start_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**kw: object) -> None:
        raise Exception("The current node timed out during startup.\nLook at its logs.")

    monkeypatch.setattr(cluster.ray, "init", init)
    with (
        pytest.raises(Stopped, match=r"did not start on this machine \(The current .* startup\.\); is it short of"),
        cluster.connected(Where()),
    ):
        pass


@pytest.mark.usefixtures("no_ray")
def test_no_address_starts_a_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    assert cluster.check(Where()) is None
    assert cluster.check(Where(address="auto")) == "auto"
    monkeypatch.setenv("RAY_ADDRESS", "auto")
    assert cluster.check(Where()) == "auto"


def test_a_ray_that_was_started_early_is_used_and_shut_down(tmp_path: Path) -> None:
    """In a process of its own, since this one has a Ray already."""
    code = (
        "import sys, ray, raygrad\n"
        "from contextlib import closing\n"
        "from raygrad.onray.start import EarlyStart\n"
        "assert 'torch' not in sys.modules\n"
        "from pathlib import Path\n"
        "with closing(EarlyStart(2)) as early:\n"
        "    from raygrad import run, verify\n"
        "    from raygrad.algorithms.fedga import FedGA\n"
        f"    made = run.create(verify.problem(FedGA()), raygrad.Where(), run_root={str(tmp_path)!r}, name='early')\n"
        "    digests = [r.index for r in run.play(made, early=early)]\n"
        "    assert early.actors() == [] and ray.is_initialized()\n"
        "assert not ray.is_initialized()\n"
        f"made = run.create(verify.problem(FedGA()), raygrad.Where(on='local'), run_root={str(tmp_path)!r}, name='l')\n"
        "list(run.play(made))\n"
        "from raygrad.files.runs import load\n"
        f"assert load('early', {str(tmp_path)!r}).digest() == load('l', {str(tmp_path)!r}).digest()\n"
    )
    found = subprocess.run([sys.executable, "-c", code], timeout=180, capture_output=True, text=True)
    assert found.returncode == 0, found.stderr
