"""Checkpoints: `checkpoints/000100/{state.safetensors, states.arrow, meta.json}` is the run after 100 rounds.

`state.safetensors` holds the server's tensors. `states.arrow` holds the states of those clients that changed since the
checkpoint before; the chain in `meta.json` lists the earlier files that are still needed. When the chain holds more
than twice the rows that are alive, every row is written and a new chain begins.

A checkpoint counts when its `meta.json` is there, which is written last. No file that a checkpoint refers to is ever
written over or removed while that checkpoint counts, so a process may die at any moment and the newest checkpoint that
was complete before can still be restored.
"""

import json
import re
import warnings
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from torch import Tensor

from raygrad.errors import BadInput, RaygradWarning
from raygrad.files import storage
from raygrad.files.states import StateStore
from raygrad.files.storage import SavedFile

SCHEMA_VERSION = 1

_META = "meta.json"
_FOLDER = re.compile(r"\d{6,}")
_OURS = re.compile(r"meta\.json|state(-\d+)?\.safetensors|states(-\d+)?\.arrow")
_LISTED = re.compile(r"\d{6,}/state(-\d+)?\.safetensors|\d{6,}/states(-\d+)?\.arrow")
_SLACK_BYTES = 1 << 20  # a chain of less is not worth rewriting
_LONGEST_CHAIN = 128  # files; every meta.json lists them all


class _Damaged(Exception):
    pass


@dataclass(frozen=True)
class Checkpoint:
    """The run after `round` rounds, as it lies in `root`, the run's `checkpoints`. `extra` was given to `save`."""

    root: Path
    round: int
    extra: dict[str, Any]
    state: SavedFile
    chain: tuple[SavedFile, ...]  # the files that rebuild the client states, oldest first, its own included

    @property
    def folder(self) -> Path:
        """Its own folder."""
        return _folder(self.root, self.round)

    @property
    def files(self) -> tuple[SavedFile, ...]:
        """Every file that it needs."""
        return (self.state, *self.chain)

    def tensors(self) -> dict[str, Tensor]:
        """The server's tensors, on the CPU. Raises BadInput when the file is gone or damaged."""
        import safetensors
        import safetensors.torch

        path = self.root / self.state.path
        try:
            return safetensors.torch.load(path.read_bytes())
        except (OSError, safetensors.SafetensorError) as error:
            raise _unreadable(path, error) from error

    def restore(self, store: StateStore) -> None:
        """Fill `store` with the client states; what it held is forgotten. Raises BadInput when they do not fit."""
        store.clear()
        schema = _schema(store)
        for file in self.chain:
            path = self.root / file.path
            try:
                with storage.open_input(path) as source, pa.ipc.open_file(source) as reader:
                    if reader.schema != schema:
                        raise BadInput(
                            f"{path} does not fit the algorithm's client states: {_listed(reader.schema, schema)}"
                        )
                    for i in range(reader.num_record_batches):
                        batch = reader.get_batch(i)
                        store.put(batch.column(0).to_numpy(), _rows(batch, store))
            except (OSError, pa.ArrowException) as error:
                raise _unreadable(path, error) from error
        store.mark_clean(self.chain)


def at(run: Path, round: int) -> Checkpoint | None:
    """The checkpoint of run folder `run` after `round` rounds; None if there is none that is whole."""
    root = run / "checkpoints"
    try:
        found = _read(root, round)
        for file in found.files:
            _verify(root, file)
    except _Damaged:
        return None
    return found


def copy(found: Checkpoint, run: Path, extra: Mapping[str, Any]) -> None:
    """Make `found` the checkpoint of another run folder, with other `extra`.

    Raises BadInput if it goes while it is read, Stopped when the storage is lost.
    """
    root = run / "checkpoints"
    with storage.run_storage(root):
        storage.make_folder(root)
        for file in found.files:
            storage.make_folder((root / file.path).parent)
            try:
                data = (found.root / file.path).read_bytes()
            except OSError as error:
                raise _unreadable(found.root / file.path, error) from error
            storage.write_atomic(root / file.path, data)
        storage.write_json(_folder(root, found.round) / _META, _meta(replace(found, root=root, extra=dict(extra))))


def latest(run: Path) -> Checkpoint | None:
    """The newest checkpoint of run folder `run` whose files are all there with the right checksums; None without one.

    A damaged one gives a RaygradWarning and the one before is taken. Raises BadInput when a newer raygrad wrote it.
    """
    root = run / "checkpoints"
    for round in reversed(_rounds(root)):
        meta = _folder(root, round) / _META
        if storage.size(meta) is None:
            continue
        try:
            found = _read(root, round)
            for file in found.files:
                _verify(root, file)
        except _Damaged as damage:
            if storage.size(meta) is not None:  # else it was being removed by the run itself
                warnings.warn(
                    f"checkpoint {meta.parent} is damaged and left out: {damage}", RaygradWarning, stacklevel=2
                )
            continue
        return found
    return None


def save(
    run: Path, round: int, tensors: Mapping[str, Tensor], store: StateStore, extra: Mapping[str, Any], keep: int = 2
) -> Path:
    """Save the run after `round` rounds: the server's tensors, the client states, `extra` (JSON). Returns the folder.

    Afterwards the newest `keep` checkpoints up to this round are left, and the files that they need. A checkpoint of
    the same round is replaced when it differs. Raises Stopped when the storage is lost; those before are intact.
    """
    if round < 0 or keep < 1:
        raise ValueError(f"round {round} must be at least 0, keep {keep} at least 1")
    root = run / "checkpoints"
    folder = _folder(root, round)
    plain: dict[str, Any] = json.loads(json.dumps(extra, allow_nan=False))
    payload, changed = _serialized(tensors), store.dirty
    with storage.run_storage(folder):
        storage.make_folder(root)
        storage.make_folder(folder)
        present = _present(root)
        if not _is_saved(root, present.get(round), payload, store, plain):
            taken = {file.path for checkpoint in present.values() for file in checkpoint.files}
            taken |= {file.path for file in store.saved}
            state = _free(folder, "state", ".safetensors", taken)
            with storage.atomic(root / state) as sink:
                sink.write(payload)
            saved = SavedFile(state, sink.bytes, sink.sha256)
            chain = _save_states(root, folder, store, changed, taken)
            storage.write_json(folder / _META, _meta(Checkpoint(root, round, plain, saved, chain)))
            store.mark_clean(chain)
        _prune(root, round, keep)
    return folder


def _save_states(
    root: Path, folder: Path, store: StateStore, clients: np.ndarray, taken: set[str]
) -> tuple[SavedFile, ...]:
    """Write the rows that no file holds yet. Returns the files that hold all rows, oldest first."""
    chain = store.saved if all(_has_size(root, file) for file in store.saved) else ()
    seen = store.seen
    rows = sum(file.rows for file in chain) + len(clients)
    too_many = 2 * len(seen) + _SLACK_BYTES // max(1, store.row_bytes)
    if not chain or len(clients) == len(seen) or rows > too_many or len(chain) >= _LONGEST_CHAIN:
        chain, clients = (), seen
    if not len(clients):
        return chain
    name, schema = _free(folder, "states", ".arrow", taken), _schema(store)
    with storage.atomic(root / name) as sink, pa.ipc.new_file(sink, schema) as writer:
        for group in store.groups(clients):
            writer.write_batch(_batch(group, store, schema))
    return (*chain, SavedFile(name, sink.bytes, sink.sha256, len(clients)))


def _is_saved(root: Path, old: Checkpoint | None, payload: bytes, store: StateStore, extra: dict[str, Any]) -> bool:
    """Whether the checkpoint that is there already says the same and is whole."""
    if old is None or old.extra != extra or len(store.dirty) or old.chain != store.saved:
        return False
    try:
        for file in old.files:
            _verify(root, file)
        return (root / old.state.path).read_bytes() == payload
    except (_Damaged, FileNotFoundError):
        return False


def _prune(root: Path, newest: int, keep: int) -> None:
    present = _present(root)
    whole = [c for round, c in sorted(present.items()) if round <= newest and all(_has_size(root, f) for f in c.files)]
    kept = whole[-keep:]
    needed = {file.path for checkpoint in kept for file in checkpoint.files}
    needed |= {f"{checkpoint.folder.name}/{_META}" for checkpoint in kept}
    folders = [_folder(root, round) for round in _rounds(root)]
    # A checkpoint that goes stops counting before any of its files goes, also files in the folders of others.
    for folder in folders:
        if f"{folder.name}/{_META}" not in needed:
            storage.remove(folder / _META)
    for folder in folders:
        left = 0
        for name in storage.names(folder):
            ours = storage.is_temporary(name) or _OURS.fullmatch(name)
            if ours and f"{folder.name}/{name}" not in needed:
                storage.remove(folder / name)
            else:
                left += 1
        if not left:
            with suppress(OSError):  # A network file system may keep a name for a reader.
                folder.rmdir()


def _folder(root: Path, round: int) -> Path:
    return root / f"{round:06d}"


def _rounds(root: Path) -> list[int]:
    """The rounds that have a folder, in order; a folder may be without a checkpoint that counts."""
    return sorted(int(name) for name in storage.names(root) if _FOLDER.fullmatch(name) and name == f"{int(name):06d}")


def _present(root: Path) -> dict[int, Checkpoint]:
    """The checkpoints whose meta.json can be read, by round."""
    found = {}
    for round in _rounds(root):
        try:
            found[round] = _read(root, round)
        except _Damaged:
            continue
    return found


def _free(folder: Path, stem: str, suffix: str, taken: set[str]) -> str:
    """A file name in `folder`, relative to its parent, that no checkpoint refers to."""
    number, path = 0, f"{folder.name}/{stem}{suffix}"
    while path in taken:
        number += 1
        path = f"{folder.name}/{stem}-{number}{suffix}"
    return path


def _meta(checkpoint: Checkpoint) -> dict[str, Any]:
    own = f"{checkpoint.folder.name}/"
    earlier = [file for file in checkpoint.chain if not file.path.startswith(own)]
    states = [file for file in checkpoint.chain if file.path.startswith(own)]
    files = {
        checkpoint.state.path.removeprefix(own): {"bytes": checkpoint.state.bytes, "sha256": checkpoint.state.sha256}
    }
    for file in states:
        files[file.path.removeprefix(own)] = {"bytes": file.bytes, "sha256": file.sha256, "rows": file.rows}
    return {
        "schema_version": SCHEMA_VERSION,
        "round": checkpoint.round,
        "files": files,
        "chain": [{"path": f.path, "bytes": f.bytes, "sha256": f.sha256, "rows": f.rows} for f in earlier],
        "extra": checkpoint.extra,
    }


def _read(root: Path, round: int) -> Checkpoint:
    """The checkpoint of `round`, its files not yet looked at. Raises _Damaged when its meta.json cannot be used."""
    path = _folder(root, round) / _META
    try:
        meta = storage.read_json(path)
    except BadInput as error:
        raise _Damaged(str(error)) from error
    version = meta.get("schema_version")
    if isinstance(version, int) and version > SCHEMA_VERSION:
        raise BadInput(
            f"{path} has schema version {version}, this raygrad reads up to {SCHEMA_VERSION}: use a newer raygrad"
        )
    own = path.parent.name
    try:
        files = [_file(f"{own}/{name}", entry) for name, entry in meta["files"].items()]
        earlier = [_file(entry["path"], entry) for entry in meta["chain"]]
        states = [file for file in files if file.path.endswith(".arrow")]
        (state,) = [file for file in files if not file.path.endswith(".arrow")]
        if meta["round"] != round or not isinstance(meta["extra"], dict):
            raise ValueError(f"it says round {meta['round']}")
        return Checkpoint(root, round, meta["extra"], state, (*earlier, *states))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise _Damaged(f"{path} is not the description of this checkpoint: {error!r}") from error


def _file(path: str, entry: Mapping[str, Any]) -> SavedFile:
    if not _LISTED.fullmatch(path):
        raise ValueError(f"unexpected file name {path}")
    return SavedFile(path, int(entry["bytes"]), str(entry["sha256"]), int(entry.get("rows", 0)))


def _has_size(root: Path, file: SavedFile) -> bool:
    return storage.size(root / file.path) == file.bytes


def _verify(root: Path, file: SavedFile) -> None:
    path = root / file.path
    found = storage.size(path)
    if found is None:
        raise _Damaged(f"{path} is missing")
    if found != file.bytes:
        raise _Damaged(f"{path} has {found:,} of {file.bytes:,} bytes")
    try:
        if storage.sha256(path) != file.sha256:
            raise _Damaged(f"{path} has not the sha256 that {_META} lists")
    except OSError as error:
        raise _Damaged(f"{path} cannot be read: {error.strerror}") from error


def _unreadable(path: Path, error: Exception) -> BadInput:
    if isinstance(error, FileNotFoundError):
        return BadInput(f"{path} is gone: the run has moved on to a newer checkpoint; try again")
    return BadInput(f"{path} is damaged: {str(error).strip() or type(error).__name__}")


def _serialized(tensors: Mapping[str, Tensor]) -> bytes:
    import safetensors.torch

    # Copies, because a format without sharing refuses tensors that are views of one another.
    return safetensors.torch.save({n: t.detach().to("cpu", copy=True).contiguous() for n, t in tensors.items()})


def _column_type(dtype: np.dtype) -> pa.DataType:
    return pa.uint8() if dtype == np.bool_ else pa.from_numpy_dtype(dtype)  # Arrow packs bools into bits


def _schema(store: StateStore) -> pa.Schema:
    columns = [pa.field("client", pa.int64(), nullable=False)]
    for name, value in store.template.items():
        shape = json.dumps(list(value.shape))
        kind = pa.list_(_column_type(value.dtype), value.size)
        columns.append(pa.field(name, kind, nullable=False, metadata={"shape": shape}))
    return pa.schema(columns)


def _listed(found: pa.Schema, expected: pa.Schema) -> str:
    def names(schema: pa.Schema) -> str:
        return ", ".join(f"{field.name} {field.type}" for field in list(schema)[1:]) or "nothing"

    return f"it holds {names(found)}; expected {names(expected)}"


def _batch(clients: np.ndarray, store: StateStore, schema: pa.Schema) -> pa.RecordBatch:
    columns: list[pa.Array] = [pa.array(clients, pa.int64())]
    for name, rows in store.get(clients).items():
        flat = rows.reshape(-1)
        values = pa.array(flat.view(np.uint8) if flat.dtype == np.bool_ else flat)
        columns.append(pa.FixedSizeListArray.from_arrays(values, store.template[name].size))
    return pa.RecordBatch.from_arrays(columns, schema=schema)


def _rows(batch: pa.RecordBatch, store: StateStore) -> dict[str, np.ndarray]:
    rows = {}
    for i, (name, value) in enumerate(store.template.items(), start=1):
        flat = batch.column(i).flatten().to_numpy(zero_copy_only=True)
        rows[name] = flat.view(value.dtype).reshape(batch.num_rows, *value.shape)
    return rows
