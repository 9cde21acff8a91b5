"""Tests that need programs of the machine: skipped by name where those are missing, or failed if they are required."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
TEST = "def test_needs_it(require):\n    assert set(require('prometheus')) == {'prometheus', 'promtool'}\n"


def outcome(folder: Path, **environment: str) -> tuple[int, str]:
    """What pytest says of a test that needs Prometheus."""
    (folder / "conftest.py").write_text((ROOT / "tests/conftest.py").read_text())
    (folder / "test_it.py").write_text(TEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-rsf", "-p", "no:cacheprovider", "test_it.py"],
        cwd=folder, env={**os.environ, "REQUIRE": "", **environment}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


@pytest.fixture
def programs(tmp_path: Path) -> Path:
    """A folder with programs of Prometheus's names."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in ("prometheus", "promtool"):
        (folder / name).write_text("#!/bin/sh\n")
        (folder / name).chmod(0o755)
    return folder


def test_missing_is_skipped_by_name(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, PATH="/nowhere")
    assert code == 0 and "no prometheus, promtool on this machine" in said and "1 skipped" in said


def test_missing_and_required_fails(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, PATH="/nowhere", REQUIRE="chromium,prometheus")
    assert code == 1 and "1 failed" in said and "REQUIRE=prometheus, but there is no prometheus, promtool" in said


def test_missing_and_something_else_required_is_skipped(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, PATH="/nowhere", REQUIRE="chromium")
    assert code == 0 and "1 skipped" in said


def test_present_is_found(tmp_path: Path, programs: Path) -> None:
    code, said = outcome(tmp_path, PATH=str(programs), REQUIRE="prometheus")
    assert code == 0 and "1 passed" in said


def test_an_unknown_name_is_refused(tmp_path: Path) -> None:
    code, said = outcome(tmp_path, REQUIRE="chromuim")
    assert code == 4 and "REQUIRE names chromuim; it knows chromium, prometheus" in said


def test_make_and_continuous_integration_pass_it_on(tmp_path: Path) -> None:
    alone = {k: v for k, v in os.environ.items() if k not in ("MAKEFLAGS", "MAKELEVEL", "REQUIRE")}  # not make's child
    shown = subprocess.run(
        ["make", "-f", ROOT / "Makefile", "-f", "-", "shown", "REQUIRE=chromium,prometheus"],
        input="shown:\n\t@echo required $$REQUIRE\n", cwd=tmp_path, env=alone, capture_output=True, text=True,
        timeout=60,
    )  # fmt: skip
    assert shown.stdout == "required chromium,prometheus\n"
    assert "make test REQUIRE=chromium,prometheus\n" in (ROOT / ".ci/run").read_text()
