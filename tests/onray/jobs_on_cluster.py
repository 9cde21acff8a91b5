"""Jobs on a cluster of a head without CPUs and two nodes, with a token. Prints JSON: exit codes, outputs, digests.

python tests/onray/jobs_on_cluster.py FOLDER, with a private HOME, RAY_TMPDIR, RAY_AUTH_TOKEN_PATH.
"""

import io
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path
from typing import Any

from ray.cluster_utils import Cluster

from raygrad import cli
from raygrad.files.runs import load
from raygrad.onray.jobs import Jobs

RECIPE = """
from raygrad.recipes import RECIPES
from my_rounds import ROUNDS

def recipe():
    experiment = RECIPES["digits"]().set("model", "linear").set("probe.every", "0").set("evaluation.every", "20")
    return experiment.set("rounds", str(ROUNDS))
"""
SHORT, LONG, ENDLESS = 20, 200, 20_000
PATIENCE_S = 120.0


def say(*words: str) -> dict[str, Any]:
    """A command line's exit code and what it printed."""
    out, err = io.StringIO(), io.StringIO()
    began = time.monotonic()
    with redirect_stdout(out), redirect_stderr(err):
        code = cli.run(words)
    return {"code": code, "out": out.getvalue(), "err": err.getvalue(), "seconds": time.monotonic() - began}


def say_elsewhere(*words: str, **environment: str) -> dict[str, Any]:
    """The same in a process of its own, since Ray reads the token once."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "raygrad", *words], env={**os.environ, **environment}, capture_output=True, text=True,
        timeout=PATIENCE_S,
    )  # fmt: skip
    return {
        "code": done.returncode, "out": done.stdout, "err": done.stderr, "seconds": time.monotonic() - began,
    }  # fmt: skip


def say_and_interrupt(*words: str) -> dict[str, Any]:
    """The same with Ctrl-C after the first line."""
    client = subprocess.Popen(
        [sys.executable, "-m", "raygrad", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert client.stdout is not None
    client.stdout.readline()
    time.sleep(0.3)
    client.send_signal(signal.SIGINT)
    out, err = client.communicate(timeout=PATIENCE_S)
    return {"code": client.returncode, "out": out, "err": err}


def job_in(said: dict[str, Any]) -> str:
    return said["out"].split()[1]


def digest(name: str, runs: Path) -> str:
    return load(name, runs).digest()


def main(folder: Path) -> None:
    signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
    os.chdir(folder)
    here, there = folder / "here", folder / "there"
    (folder / "my_recipe.py").write_text(RECIPE)
    (folder / "my_rounds.py").write_text(f"ROUNDS = {SHORT}\n")
    (folder / "data.bin").write_bytes(bytes(1000))
    found: dict[str, Any] = {}
    local = ["--on", "local", "--quiet", "--no-report", "--run-root", str(here), "--name", "local"]
    assert say("run", "my_recipe.py", *local)["code"] == 0
    found["local_short"] = digest("local", here)
    assert say("run", "my_recipe.py", *local, "--resume", "--rounds", str(LONG))["code"] == 0
    found["local_long"] = digest("local", here)

    ports = {"dashboard_port": 0, "dashboard_agent_listen_port": 0}
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": True, **ports})
    for _ in range(2):
        cluster.add_node(num_cpus=2, dashboard_agent_listen_port=0)
    address = f"http://{cluster.webui_url}"  # pyright: ignore[reportAttributeAccessIssue]
    at = ["--address", address]
    on = ["--run-root", str(there), "--shard-root", str(here / ".shards"), "--no-report"]

    # What is refused here, and leaves no job behind.
    (folder / "broken.py").write_text("def recipe():\n    return 1 / 0\n")
    found["bad_recipe"] = say("job", "submit", "broken.py", *on, *at)
    found["bad_option"] = say("job", "submit", "digits", "--set", "algorithm.bta=1", *on, *at)
    found["jobs_before"] = len(Jobs(address).all())

    endless = ["my_recipe.py", "--name", "a", "--hosts", "1", *on]
    found["endless"] = say("job", "submit", "--no-wait", "--grace-s", "50", *endless, "--rounds", str(ENDLESS), *at)
    diverging = ["digits", "--name", "nan", "--set", "model=linear", "--alpha", "1e38", "--on", "local", *on]
    found["diverging"] = say("job", "submit", "--no-wait", *diverging, *at)
    found["bad_there"] = say("job", "submit", "--no-wait", "digits", "--set", "sampler.cohort=11", *on, *at)

    jobs, long_one = Jobs(address), job_in(found["endless"])
    end = time.monotonic() + PATIENCE_S
    while "round 20 of" not in jobs.log(long_one) and time.monotonic() < end:
        time.sleep(0.1)
    found["left"] = say_and_interrupt("job", "logs", long_one, "--follow", *at)
    found["after_ctrl_c"] = jobs.job(long_one).status
    found["stop"] = say("job", "stop", long_one, *at)
    found["stopped"] = say("job", "logs", long_one, "--follow", *at)
    found["diverged"] = say("job", "logs", job_in(found["diverging"]), "--follow", *at)
    found["refused_there"] = say("job", "logs", job_in(found["bad_there"]), "--follow", *at)

    found["whole"] = say("job", "submit", *at, "my_recipe.py", "--name", "whole", *on)
    found["whole_digest"] = digest("whole", there)
    found["resumed"] = say("job", "submit", *at, *endless, "--resume", "--rounds", str(LONG))
    found["resumed_digest"] = digest("a", there)
    found["runs_of_a"] = len(list((there / "a").iterdir()))
    found["differs"] = say("run", *endless, "--resume", "--on", "local", "--beta", "0.3")
    found["list"] = say("job", "list", *at)
    found["unknown"] = say("job", "logs", "raysubmit_none", *at)
    found["again"] = say("job", "stop", long_one, *at)
    details = jobs._client.get_job_info(job_in(found["whole"]))
    found["metadata"], found["environment"] = details.metadata, details.runtime_env

    found["doctor"] = say("doctor", "--address", cluster.address, "--run-root", str(there))
    (folder / "wrong").write_text("b" * 32)
    wrong, none = str(folder / "wrong"), str(folder / "absent")
    found["wrong_token"] = say_elsewhere("job", "list", *at, RAY_AUTH_TOKEN_PATH=wrong)
    found["no_token"] = say_elsewhere("job", "list", *at, RAY_AUTH_TOKEN_PATH=none)
    found["run_no_token"] = say_elsewhere(
        "run", "--address", cluster.address, RAY_AUTH_TOKEN_PATH=none, RAY_AUTH_MODE="token"
    )
    found["run_wrong_token"] = say_elsewhere("run", "--address", cluster.address, RAY_AUTH_TOKEN_PATH=wrong)
    host, _, port = cluster.webui_url.rpartition(":")  # pyright: ignore[reportAttributeAccessIssue]
    found["run_dashboard"] = say("run", "--address", f"{host}:{port}")
    cluster.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
