"""Shards where every host finds them: in a folder that all machines see, or in an object store.

From a store they are copied to each machine once, into the cache at shards/<root>/<data set>-<hash>; the hosts of a
machine share the copy and map it into memory as ever. In the store a file's name holds its sha256 and meta.json is
written last, so that what meta.json lists is there and never changes.
"""

import json
import os
import shutil
import uuid
from pathlib import Path

from raygrad.data.partition import Partitioner
from raygrad.data.shards import Progress, Shards, prepare, put_in_place, remove_leftovers, reusable
from raygrad.data.source import Dataset
from raygrad.errors import BadInput, Stopped
from raygrad.files import remote, storage
from raygrad.files.remote import Url, location

META = "meta.json"


def open_shards(address: str) -> Shards:
    """The shards in a folder, or at an address in an object store. Raises BadInput, and Stopped if a store is gone."""
    place = location(address)
    if isinstance(place, Path):
        return Shards.open(place)
    found = _copied(place)
    if found is None:
        raise BadInput(f"{place} holds no complete shards; prepare them again, as by `raygrad resume`")
    return found


def prepare_at(
    root: Path | Url,
    dataset: Dataset,
    partitioner: Partitioner,
    *,
    data_root: Path | None,
    seed: int,
    validation: float,
    recorded: str | None = None,
    progress: Progress | None = None,
) -> Shards:
    """`raygrad.data.shards.prepare` for a shard root that may be in an object store.

    There shards that somebody has prepared before are copied from the store, and others are copied to it. `recorded`
    is the name of shards that a run began with: if they are in the store, the data set is not looked at.
    """
    if isinstance(root, Path):
        return prepare(
            dataset, partitioner, shard_root=root, data_root=data_root, seed=seed, validation=validation,
            progress=progress,
        )  # fmt: skip
    with remote.at_start():
        if recorded is not None and (there := _copied(root / recorded)) is not None:
            return there

        def bring(folder: Path) -> None:
            if _copied(root / folder.name) is None:
                remote.check_writable(root)

        shards = prepare(
            dataset, partitioner, shard_root=_cache(root), data_root=data_root, seed=seed, validation=validation,
            progress=progress, bring=bring,
        )  # fmt: skip
    try:
        return _put(shards, root / shards.path.name)
    except remote.Unreachable as e:
        raise Stopped(f"storage lost while the shards were copied: {e.what}; repeat the command") from e


def _cache(root: Url) -> Path:
    return remote.cache_folder("shards", root.label)


def _key(name: str, sha256: str) -> str:
    """The object that holds a file."""
    stem, _, suffix = name.rpartition(".")
    return f"{stem}.{sha256[:16]}.{suffix}"


def _placed(shards: Shards, url: Url) -> Shards:
    shards.address = str(url)
    return shards


def _put(shards: Shards, url: Url) -> Shards:
    """Copy the shards to the store, unless they are there; meta.json last."""
    files = {_key(name, f["sha256"]): (name, int(f["bytes"])) for name, f in shards.meta["files"].items()}
    there = remote.children(url)
    lacking = {key: name for key, (name, size) in files.items() if there.get(key) != size}
    if lacking or META not in there:
        sizes = {key: files[key][1] for key in lacking}
        remote.each(
            lambda key: remote.upload(shards.path / lacking[key], url / key), sizes, "copying shards to the store"
        )
        remote.upload(shards.path / META, url / META)
    return _placed(shards, url)


def _copied(url: Url) -> Shards | None:
    """The copy on this machine of the shards at an address, made if need be; None if none are there, or not whole."""
    root = _cache(url.parent)
    folder = root / url.name
    if (found := _there(folder)) is not None:
        return _placed(found, url)
    with storage.hold(root / f".{url.name}.lock", wait=True):  # one process of a machine copies, the others wait
        if (found := _there(folder)) is not None:
            return _placed(found, url)
        remove_leftovers(root)
        temporary = root / f".{folder.name}.{os.getpid()}-{uuid.uuid4().hex}"
        try:
            with storage.run_storage(temporary):
                temporary.mkdir()
            meta = remote.read(url / META, patience="short")
            listed = json.loads(meta)["files"]
            files = {str(name): str(f["sha256"]) for name, f in listed.items()}
            sizes = {str(name): int(f["bytes"]) for name, f in listed.items()}
            if any("/" in name or name.startswith(".") for name in files):
                return None
            wrong: list[str] = []

            def copy(name: str) -> None:
                if remote.download(url / _key(name, files[name]), temporary / name) != files[name]:
                    wrong.append(name)

            remote.each(copy, sizes, "fetching shards")
            if wrong:
                return None
            with storage.run_storage(temporary):
                storage.write_atomic(temporary / META, meta)
                found = Shards.open(temporary)
                return _placed(put_in_place(temporary, folder, str(found.meta.get("key"))), url)
        except (FileNotFoundError, ValueError, KeyError, TypeError, AttributeError):
            return None
        finally:
            shutil.rmtree(temporary, ignore_errors=True)


def _there(folder: Path) -> Shards | None:
    try:
        return reusable(folder, str(Shards.open(folder).meta.get("key"))) if folder.is_dir() else None
    except BadInput:
        return None
