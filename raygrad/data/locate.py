"""Finding a data set's files: under the data root, plain or gzipped, or in torchvision's download."""

import zlib
from collections.abc import Sequence
from pathlib import Path

from raygrad.errors import BadInput


def root_of(data_root: Path | None, cache: Path) -> Path:
    """Where the known data sets lie: the data root, or torchvision's downloads in the cache where none is given."""
    return cache / "torchvision" if data_root is None else data_root


def locate(names: Sequence[str], data_root: Path | None, cache: Path) -> list[Path] | None:
    """Each of the files under `root_of`, plain or .gz; None when one is missing."""
    root = root_of(data_root, cache)
    found = []
    for name in names:
        here = [path for path in (root / name, root / f"{name}.gz") if path.is_file()]
        if not here:
            return None
        found.append(here[0])
    return found


def obtain(
    kind: str, torchvision_name: str | None, names: Sequence[str], data_root: Path | None, cache: Path, **options: str
) -> list[Path]:
    """`locate`, with torchvision's download where no data root is given. Raises BadInput naming what is missing."""
    found = locate(names, data_root, cache)
    if found is not None:
        return found
    layout = f"{', '.join(names)}, plain or with .gz"
    if data_root is not None:
        missing = [name for name in names if locate([name], data_root, cache) is None]
        raise BadInput(
            f"data set {kind}: {len(missing)} of {len(names)} files are missing under the data root {data_root}: "
            f"looked for {', '.join(missing)}, plain or with .gz"
        )
    if torchvision_name is None:
        raise BadInput(f"data set {kind} cannot be downloaded: give --data-root DIR, a folder with {layout}")
    download(kind, torchvision_name, cache, layout, **options)
    found = locate(names, data_root, cache)
    if found is None:
        raise BadInput(f"data set {kind}: torchvision's download into {root_of(None, cache)} left out some of {layout}")
    return found


def download(kind: str, torchvision_name: str, cache: Path, layout: str, **options: str) -> None:
    """Let torchvision download a data set into `root_of(None, cache)`. Raises BadInput saying what to give instead."""
    import torchvision

    root = root_of(None, cache)
    try:
        root.mkdir(parents=True, exist_ok=True)
        getattr(torchvision.datasets, torchvision_name)(str(root), download=True, **options)
    except (OSError, RuntimeError, EOFError, ValueError, zlib.error) as e:
        reason = next(iter(str(e).strip().splitlines()[::-1]), type(e).__name__)
        raise BadInput(
            f"data set {kind} could not be downloaded ({reason}): give --data-root DIR, a folder with {layout}"
        ) from e


def resolve(name: str, data_root: Path | None) -> Path:
    """A path that the user gave: relative to the data root where there is one."""
    path = Path(name).expanduser()
    return path if data_root is None else data_root / path


def if_all_exist(paths: list[Path]) -> list[Path] | None:
    """`paths`; None when there are none or one is missing."""
    return paths if paths and all(path.is_file() for path in paths) else None


def must_exist(kind: str, paths: list[Path]) -> list[Path]:
    """`paths`. Raises BadInput naming the first that is missing."""
    for path in paths:
        if not path.is_file():
            raise BadInput(f"data set {kind}: there is no file {path}")
    return paths
