"""Jobs on a real cluster: submitted, followed, stopped, continued, failing, refused."""

import json
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
TOKEN = "0123456789abcdef0123456789abcdef"
pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Any]]:
    """All that was said on one cluster, in a process of its own, since it is another Ray."""
    folder = tmp_path_factory.mktemp("jobs")
    with tempfile.TemporaryDirectory(prefix="rg", dir="/tmp") as short:  # socket paths have at most 107 bytes
        (Path(short) / "token").write_text(TOKEN)
        environment = {
            **{n: v for n, v in os.environ.items() if not n.startswith("RAY_")},
            "RAY_TMPDIR": short, "HOME": short, "RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": f"{short}/token",
            "RAY_USAGE_STATS_ENABLED": "0", "RAY_ENABLE_UV_RUN_RUNTIME_ENV": "0", "PYTHONPATH": str(ROOT),
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        }  # fmt: skip
        script = Path(__file__).with_name("jobs_on_cluster.py")
        done = subprocess.run(
            [sys.executable, str(script), str(folder)], env=environment, timeout=400, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        yield json.loads(done.stdout.splitlines()[-1])


def one_sentence(said: dict[str, Any]) -> str:
    """The one line of a refusal."""
    assert said["code"] == 2, said
    lines = said["err"].splitlines()
    assert len(lines) == 1 and lines[0].startswith("raygrad: "), said
    return lines[0]


def test_a_job_is_followed_to_its_end_and_gives_the_bits_of_a_local_run(found: dict[str, Any]) -> None:
    whole = found["whole"]
    assert whole["code"] == 0, whole
    id = whole["out"].split()[1]
    assert re.search(rf"^dashboard +http://127\.0\.0\.1:\d+/#/jobs/{id}$", whole["out"], re.M)
    assert "round 20 of 20 · validation accuracy" in whole["out"]
    assert "starting 2 hosts on the Ray at" in whole["out"]
    assert found["whole_digest"] == found["local_short"]


def test_a_stopped_job_goes_on_with_the_same_bits(found: dict[str, Any]) -> None:
    assert "stopped; it can go on" in found["stop"]["out"]
    assert found["stopped"]["code"] == 75
    assert "submit it again with --resume" in found["stopped"]["err"]
    assert found["resumed"]["code"] == 0, found["resumed"]
    assert re.search(r", continued after round \d+ → /", found["resumed"]["out"])
    assert found["resumed_digest"] == found["local_long"]
    assert found["runs_of_a"] == 1
    assert "has ended before: STOPPED" in found["again"]["out"]


def test_ctrl_c_leaves_the_job_running(found: dict[str, Any]) -> None:
    left = found["left"]
    assert left["code"] == 130
    first, log, stop = left["err"].strip().splitlines()
    assert first.endswith(" goes on") and "--follow --address http://" in log and "raygrad job stop" in stop
    assert found["after_ctrl_c"] == "RUNNING"


def test_a_run_is_not_continued_with_other_settings(found: dict[str, Any]) -> None:
    assert "was started with algorithm.beta=0.1, and this asks for 0.3" in one_sentence(found["differs"])


def test_a_failing_job_passes_its_exit_code_on(found: dict[str, Any]) -> None:
    assert found["diverged"]["code"] == 3
    assert "is not finite" in found["diverged"]["out"]
    assert found["refused_there"]["code"] == 2
    assert "only 10 clients" in found["refused_there"]["out"]


def test_what_is_bad_is_found_before_anything_is_sent(found: dict[str, Any]) -> None:
    assert "recipe() raised ZeroDivisionError" in one_sentence(found["bad_recipe"])
    assert "did you mean beta" in one_sentence(found["bad_option"])
    assert found["jobs_before"] == 0


def test_jobs_are_listed(found: dict[str, Any]) -> None:
    rows = [line.split() for line in found["list"]["out"].splitlines()[1:]]
    assert sorted(r[1] for r in rows) == ["FAILED", "FAILED", "STOPPED", "SUCCEEDED", "SUCCEEDED"]
    assert {r[2] for r in rows if r[1] == "FAILED"} == {"2", "3"}
    assert "unknown job 'raysubmit_none'" in one_sentence(found["unknown"])


def test_no_secret_and_no_data_is_in_a_job(found: dict[str, Any]) -> None:
    assert TOKEN not in json.dumps(found)
    assert found["metadata"].keys() <= {"raygrad", "job_submission_id", "job_name"}
    assert found["environment"]["env_vars"] == {"RAY_JOB_STOP_WAIT_TIME_S": "60"}
    assert found["environment"]["working_dir"].startswith("gcs://")


@pytest.mark.parametrize("case", ["wrong_token", "no_token", "run_no_token", "run_wrong_token", "run_dashboard"])
def test_a_wrong_or_missing_token_is_one_sentence_in_time(case: str, found: dict[str, Any]) -> None:
    expected = {
        "wrong_token": "refuses the token in", "run_wrong_token": "refuses the token in",
        "no_token": "asks for a token, and there is none here", "run_no_token": "there is no token here",
        "run_dashboard": "it may be a dashboard",
    }  # fmt: skip
    assert expected[case] in one_sentence(found[case])
    assert found[case]["seconds"] < 30


def test_the_doctor_looks_at_every_node(found: dict[str, Any]) -> None:
    doctor = found["doctor"]
    assert doctor["code"] == 0, doctor
    rows = [line.split() for line in doctor["out"].splitlines()[1:4]]
    assert len({tuple(r[1:7]) for r in rows}) == 1  # versions and numerics are equal
    assert [r[-1] for r in rows] == ["ok"] * 3
    assert "free" in doctor["out"] and "asked for" in doctor["out"] and "nothing to mend" in doctor["out"]
