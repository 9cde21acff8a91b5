"""What one node is like, for `raygrad doctor`. Sent to the nodes by value: it must run where raygrad is missing or old.

Only the standard library is imported at the top.
"""

import os
import platform
import shutil
import socket
import uuid
from importlib import metadata
from pathlib import Path
from typing import Any

Facts = dict[str, Any]


def look(root_files: dict[str, str], writable: list[str]) -> Facts:
    """What there is on this node.

    `root_files` are small files that the driver wrote, and what is in them; to the folders (or URLs) `writable` it is
    tried to write. What goes wrong is told under "storage", by path.
    """
    facts: Facts = {
        "host": socket.gethostname(),
        "python": platform.python_version(),
        "auth": os.environ.get("RAY_AUTH_MODE", ""),
        "storage": {},
    }
    for package in ("raygrad", "ray", "torch"):
        facts[package] = version(package)
    with_shm = Path("/dev/shm")
    facts["shm_bytes"] = shutil.disk_usage(with_shm).total if with_shm.is_dir() else 0
    facts |= numerics()
    for file, content in root_files.items():
        facts["storage"][file] = _read(file, content)
    for root in writable:
        facts["storage"][root] = _write(root)
    return facts


def version(package: str) -> str:
    """The version that a fresh process here would import; "" without it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return ""


def numerics() -> Facts:
    """What a host here would compute with: the canary's digest on the CPU and, where torch finds one, on a GPU."""
    found: Facts = {"cpu": "", "cpu_digest": "", "gpus": 0, "gpu": "", "gpu_digest": "", "error": ""}
    try:
        import torch

        from raygrad.onray.probe import digest

        found["cpu"] = torch.backends.cpu.get_cpu_capability()
        found["cpu_digest"] = digest("cpu")
        if torch.cuda.is_available():
            found |= {"gpus": torch.cuda.device_count(), "gpu": torch.cuda.get_device_name(0)}
            found["gpu_digest"] = digest("cuda")
    except Exception as e:  # whatever is wrong with this node's installation is what we are asked for
        found["error"] = f"{type(e).__name__}: {e}".splitlines()[0][:200]
    return found


# --- storage: the one place that knows how a root is read and written -------------------------------------------------


def _filesystem(path: str) -> tuple[Any, str]:
    """Arrow's file system for a path or URL, and the path in it."""
    from pyarrow import fs

    return fs.FileSystem.from_uri(path if "://" in path else str(Path(path).absolute()))


def write(path: str, content: str) -> None:
    """Write a small file. Raises OSError."""
    system, inner = _filesystem(path)
    with system.open_output_stream(inner) as stream:
        stream.write(content.encode())


def remove(path: str) -> None:
    """Remove a file. Raises OSError."""
    system, inner = _filesystem(path)
    system.delete_file(inner)


def _read(path: str, content: str) -> str:
    """What is wrong with a small file; "" if nothing is."""
    try:
        system, inner = _filesystem(path)
        with system.open_input_stream(inner) as stream:
            found = stream.read().decode(errors="replace")
    except Exception as e:  # Arrow raises what the storage's library says
        return f"cannot be read: {_why(e)}"
    return "" if found == content else "holds something else: it is another storage"


def inside(root: str) -> str:
    """A name in a root that nothing has yet. What follows a URL's question mark stays behind it."""
    path, mark, options = root.partition("?") if "://" in root else (root, "", "")
    return f"{path.rstrip('/')}/.raygrad-doctor-{uuid.uuid4().hex}{mark}{options}"


def _write(root: str) -> str:
    path = inside(root)
    try:
        write(path, "node")
        remove(path)
    except Exception as e:  # as above
        return f"cannot be written: {_why(e)}"
    return ""


def _why(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:200]
