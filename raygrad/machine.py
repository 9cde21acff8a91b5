"""What a run was started with: versions and the machine, for environment.json. No bit depends on it."""

import os
import platform
from importlib import metadata
from pathlib import Path

PACKAGES = ("raygrad", "ray", "torch", "torchvision", "pyarrow", "numpy", "scikit-learn")


def environment() -> dict[str, str | int | float | None]:
    """Versions, the operating system, the processor, its cores, and the memory in GB (None: not known)."""
    return {
        **{name: _version(name) for name in PACKAGES},
        "python": platform.python_version(),
        "system": platform.platform(),
        "processor": _processor(),
        "cores": os.cpu_count(),
        "memory_gb": _memory_gb(),
    }


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _memory_gb() -> float | None:
    try:
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9, 1)
    except (ValueError, OSError, AttributeError):
        return None
