"""A sweep on a cluster whose head has no CPUs and whose autoscaler adds nodes for it and takes them away again.

Prints JSON: how many CPUs there were before, at most during, and after it, and what came of the trials.

python tests/onray/autoscaling.py FOLDER
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from threading import Event, Thread

import ray

from raygrad.algorithms.fedga import FedGA
from raygrad.onray.tuning import may_grow
from raygrad.sweeps import sweep as sweeps
from raygrad.verify import problem

HEAD = "f" * 51 + "00000"  # the id that Ray's provider of made-up nodes gives the head
PROVIDER = "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider"
PATIENCE_S = 90.0
NODES = 2


@contextmanager
def cluster(folder: Path) -> Iterator[str]:
    """A head without CPUs and an autoscaler that may start processes in place of machines; the address."""
    import socket

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    address = f"{ray.util.get_node_ip_address()}:{port}"
    node = {"node_config": {}, "min_workers": 0, "max_workers": NODES}
    empty = (
        "initialization_commands", "setup_commands", "head_setup_commands", "worker_setup_commands",
        "head_start_ray_commands", "worker_start_ray_commands", "cluster_synced_files", "rsync_exclude", "rsync_filter",
    )  # fmt: skip
    config = {
        "cluster_name": "autoscaling", "max_workers": NODES, "upscaling_speed": 1.0, "idle_timeout_minutes": 0.1,
        "provider": {
            "type": "external", "module": PROVIDER, "use_node_id_as_ip": True, "disable_node_updaters": True,
            "disable_launch_config_check": True, "launch_multiple": True, "head_node_id": HEAD, "gcs_address": address,
        },
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "cpu": {"resources": {"CPU": 1, "object_store_memory": 100 * 2**20}, **node},
        },
        "head_node_type": "ray.head.default", "auth": {}, "docker": {}, "file_mounts": {},
        "file_mounts_sync_continuously": False,
        **{name: [] for name in empty},
    }  # fmt: skip
    file, log = folder / "autoscaling.json", folder / "head.log"
    file.write_text(json.dumps(config))
    variables = {
        "AUTOSCALER_UPDATE_INTERVAL_S": "1", "RAY_FAKE_CLUSTER": "1", "RAY_USAGE_STATS_ENABLED": "0",
        "RAY_enable_autoscaler_v2": "1", "RAY_CLOUD_INSTANCE_ID": HEAD, "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD,
    }  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="ras", dir="/tmp") as short, log.open("w") as out:
        words = [
            str(Path(sys.executable).with_name("ray")), "start", "--head", "--block", f"--port={port}", "--num-cpus=0",
            f"--autoscaling-config={file}", "--include-dashboard=false", f"--temp-dir={short}/s",
            "--disable-usage-stats",
        ]  # fmt: skip
        head = subprocess.Popen(words, env={**os.environ, **variables}, stdout=out, stderr=out, start_new_session=True)
        try:
            deadline = time.monotonic() + PATIENCE_S
            while "Ray runtime started" not in log.read_text():
                assert head.poll() is None and time.monotonic() < deadline, log.read_text()[-2000:]
                time.sleep(0.1)
            yield address
        finally:
            head.send_signal(signal.SIGTERM)
            with suppress(subprocess.TimeoutExpired):
                head.wait(20)
            for process in Path("/proc").glob("[0-9]*"):  # the made-up nodes are children of the autoscaler
                with suppress(OSError):
                    if short.encode() in (process / "cmdline").read_bytes():
                        os.kill(int(process.name), signal.SIGKILL)


def cpus() -> int:
    return int(ray.cluster_resources().get("CPU", 0))


def main(folder: Path) -> None:
    s = sweeps.Sweep(
        replace(problem(FedGA()), rounds=4), {"alpha": "0.1,0.2,0.05"}, search="grid", winner_seeds=0, max_concurrent=2
    )
    with cluster(folder) as address:
        ray.init(address=address, log_to_driver=False)
        found: dict[str, object] = {"before": cpus(), "may_grow": may_grow()}
        most, over = [0], Event()

        def watch() -> None:
            while not over.wait(0.2):
                most.append(cpus())

        watcher = Thread(target=watch, daemon=True)
        watcher.start()
        done = sweeps.run(s, run_root=folder, name="grown", say=lambda line: print(line, file=sys.stderr, flush=True))
        over.set()
        watcher.join()
        deadline = time.monotonic() + PATIENCE_S
        while cpus() and time.monotonic() < deadline:
            time.sleep(0.2)
        found |= {"during": max(most), "after": cpus(), "outcomes": done.trials()["outcome"].to_pylist()}
        ray.shutdown()
    print(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
