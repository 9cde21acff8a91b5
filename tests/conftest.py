"""What the tests share: one private Ray per test process, one thread per process, the data beside the repository."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["RAY_AUTH_MODE"] = "disabled"  # before ray is imported: a local Ray would switch tokens on
os.environ["RAY_ENABLE_UV_RUN_RUNTIME_ENV"] = "0"
os.environ.pop("RAY_ADDRESS", None)
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest

PROGRAMS = {"chromium": ("chromium", "chromedriver"), "prometheus": ("prometheus", "promtool")}
"""What tests may need of the machine, by the name that `make test REQUIRE=...` knows, and its programs."""

SHARED = Path(__file__).resolve().parents[1].parent / "shared"


def pytest_configure(config: pytest.Config) -> None:
    if strange := required() - set(PROGRAMS):
        raise pytest.UsageError(f"REQUIRE names {', '.join(sorted(strange))}; it knows {', '.join(PROGRAMS)}")


def required() -> set[str]:
    """What REQUIRE names: without it a test fails instead of being skipped."""
    return set(os.environ.get("REQUIRE", "").replace(",", " ").split())


def find(name: str, wanted: set[str]) -> dict[str, str]:
    """The paths of the programs of `name`. Skips the test if one is missing, or fails it if `name` is `wanted`."""
    paths = {program: shutil.which(program) for program in PROGRAMS[name]}
    missing = ", ".join(p for p, path in paths.items() if path is None)
    if missing and name in wanted:
        pytest.fail(f"REQUIRE={name}, but there is no {missing} on this machine", pytrace=False)
    if missing:
        pytest.skip(f"no {missing} on this machine")
    return {program: str(path) for program, path in paths.items()}


@pytest.fixture(scope="session")
def require() -> Callable[[str], dict[str, str]]:
    """`require("prometheus")` gives the paths of its programs, by name, or skips the test where one is missing.

    With REQUIRE=prometheus in the environment it fails instead.
    """
    return lambda name: find(name, required())


def short_folder() -> tempfile.TemporaryDirectory[str]:
    """A folder for a Ray: the paths of its sockets have at most 107 bytes."""
    return tempfile.TemporaryDirectory(prefix="rg", dir="/tmp")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A Ray of this process's own, with room for four hosts and two declared (fake) GPUs."""
    import ray

    with short_folder() as folder:
        os.environ["RAY_TMPDIR"] = folder
        ray.init(
            address="local",
            num_cpus=4,
            num_gpus=2,
            include_dashboard=False,
            log_to_driver=False,
            object_store_memory=300 * 2**20,
        )
        try:
            yield
        finally:
            ray.shutdown()


@pytest.fixture
def in_another_ray(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[..., Any]:
    """`in_another_ray("nodes.py", …)` runs the script beside the test with `tmp_path` and the arguments in a process of
    its own, which may start a cluster, and gives the JSON of its last line.
    """

    def played(script: str, *arguments: str) -> Any:
        with short_folder() as folder:
            done = subprocess.run(
                [sys.executable, str(request.path.with_name(script)), str(tmp_path), *arguments],
                env={**os.environ, "RAY_TMPDIR": folder}, timeout=600, capture_output=True, text=True,
            )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    return played


@pytest.fixture
def shared_data() -> Path:
    """The real data sets beside the repository."""
    folder = SHARED / "data"
    if not folder.is_dir():
        pytest.skip("shared/data is absent")
    return folder
