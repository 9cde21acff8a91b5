"""Checkpoints: what a run can be resumed from, whatever happens while one is written."""

import errno
import json
import os
import shutil
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch
from torch import Tensor

from raygrad.errors import BadInput, RaygradWarning, Stopped
from raygrad.files import checkpoint, storage
from raygrad.files.checkpoint import latest, save
from raygrad.files.states import StateStore
from raygrad.rng import Purpose, rng

TEMPLATE = {"c": torch.tensor([[0.5, 1.0, 2.0]]), "n": torch.tensor(0), "on": torch.tensor([True, False])}
CLIENTS = 12
Snapshot = tuple[dict[str, Tensor], dict[str, np.ndarray]]


def tensors(round: int) -> dict[str, Tensor]:
    draw = rng(1, Purpose.SYNTHETIC, round)
    x = torch.from_numpy(draw.normal(size=20)).float()
    return {
        "x": x,
        "inner.momentum": x[3:9],
        "buffers": torch.tensor([-0.0, float("nan")]),
        "count": torch.tensor(round),
        "half": x[:4].bfloat16(),
        "turned": x.reshape(4, 5).t(),
    }


def advance(store: StateStore, round: int, m: int = 4) -> None:
    """The clients of one round get new states."""
    draw = rng(2, Purpose.SYNTHETIC, round)
    clients = draw.permutation(CLIENTS)[:m]
    rows = {
        "c": draw.normal(size=(m, 1, 3)).astype(np.float32),
        "n": np.full(m, round),
        "on": draw.random((m, 2)) < 0.5,
    }
    store.put(clients, rows)


def everything(store: StateStore) -> dict[str, np.ndarray]:
    return {"seen": store.seen, **store.get(np.arange(CLIENTS))}


def bits(values: dict[str, Any]) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    found = {}
    for name, value in values.items():
        if isinstance(value, Tensor):
            raw = value.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        else:
            raw = value.tobytes()
        found[name] = (str(value.dtype), tuple(value.shape), raw)
    return found


@pytest.fixture(autouse=True)
def quick_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    """A killed process loses nothing that the kernel has, so these thousands of saves need not reach the device."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / "run").mkdir()
    return tmp_path / "run"


@pytest.fixture
def new_store(tmp_path: Path) -> Iterator[Callable[[], StateStore]]:
    made: list[StateStore] = []

    def make() -> StateStore:
        made.append(StateStore(tmp_path / f"scratch-{len(made)}", TEMPLATE, 1 << 20))
        return made[-1]

    yield make
    for store in made:
        store.close()


def files(run: Path) -> list[str]:
    root = run / "checkpoints"
    return sorted(str(p.relative_to(root)) for p in root.rglob("*") if p.is_file())


def damage(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


# --- round trips ----------------------------------------------------------------------------------------------------


def test_everything_comes_back_bit_for_bit(run: Path, new_store: Callable[[], StateStore]) -> None:
    store, extra = new_store(), {"virtual_s": 0.1, "hash": "ab", "totals": {"bytes": 2**60}, "none": None}
    advance(store, 1)
    folder = save(run, 100, tensors(1), store, extra)
    assert folder == run / "checkpoints" / "000100"
    assert files(run) == ["000100/meta.json", "000100/state.safetensors", "000100/states.arrow"]
    found = latest(run)
    assert found is not None and found.round == 100 and found.extra == extra and found.folder == folder
    assert bits(found.tensors()) == bits(tensors(1))
    other = new_store()
    advance(other, 77)
    found.restore(other)
    assert bits(everything(other)) == bits(everything(store))
    assert other.dirty.tolist() == [] and other.saved == found.chain == store.saved


def test_meta_lists_every_file_with_size_and_checksum(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    save(run, 1, tensors(1), store, {})
    store.put(np.array([0]), {k: v[:1] for k, v in store.get(np.array([0])).items()})
    folder = save(run, 2, tensors(2), store, {"a": 1})
    meta = json.loads((folder / "meta.json").read_text())
    assert meta["schema_version"] == 1 and meta["round"] == 2 and meta["extra"] == {"a": 1}
    assert set(meta["files"]) == {"state.safetensors", "states.arrow"}
    listed = {**{f"000002/{n}": f for n, f in meta["files"].items()}, **{f["path"]: f for f in meta["chain"]}}
    assert set(listed) == {"000002/state.safetensors", "000002/states.arrow", "000001/states.arrow"}
    for path, entry in listed.items():
        assert storage.sha256(run / "checkpoints" / path) == entry["sha256"]
        assert (run / "checkpoints" / path).stat().st_size == entry["bytes"]
    assert meta["files"]["states.arrow"]["rows"] == 1 and meta["chain"][0]["rows"] == 4


def test_the_states_file_is_plain_arrow(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    folder = save(run, 1, tensors(1), store, {})
    with pa.ipc.open_file(folder / "states.arrow") as reader:
        table = reader.read_all()
    assert table.column("client").to_pylist() == store.seen.tolist()
    assert table.schema.field("c").type == pa.list_(pa.float32(), 3)
    assert table.schema.field("on").type == pa.list_(pa.uint8(), 2)
    assert json.loads(table.schema.field("c").metadata[b"shape"]) == [1, 3]
    assert np.array(table.column("c").to_pylist(), np.float32).tobytes() == store.get(store.seen)["c"].tobytes()


def test_without_client_states_there_is_no_states_file(run: Path, tmp_path: Path) -> None:
    store = StateStore(tmp_path / "scratch", {}, 0)
    save(run, 7, tensors(7), store, {})
    assert files(run) == ["000007/meta.json", "000007/state.safetensors"]
    found = latest(run)
    assert found is not None and found.chain == ()
    found.restore(store)
    assert bits(found.tensors()) == bits(tensors(7))


def test_a_run_without_checkpoints_has_none(run: Path, new_store: Callable[[], StateStore]) -> None:
    assert latest(run) is None and latest(run / "absent") is None
    folder = save(run, 3, tensors(3), new_store(), {})
    (folder / "meta.json").unlink()
    assert latest(run) is None


def test_rounds_are_ordered_by_number(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    for round in (999_999, 1_000_000):
        save(run, round, tensors(round), store, {})
    found = latest(run)
    assert found is not None and found.round == 1_000_000 and found.folder.name == "1000000"


@pytest.mark.parametrize(("round", "keep"), [(-1, 2), (1, 0)])
def test_wrong_numbers_are_a_bug(run: Path, new_store: Callable[[], StateStore], round: int, keep: int) -> None:
    with pytest.raises(ValueError):
        save(run, round, tensors(1), new_store(), {}, keep)


def test_extra_must_be_json(run: Path, new_store: Callable[[], StateStore]) -> None:
    for extra in ({"loss": float("nan")}, {"x": object()}):
        with pytest.raises((ValueError, TypeError)):
            save(run, 1, tensors(1), new_store(), extra)
    assert not (run / "checkpoints").exists()


# --- the chain ------------------------------------------------------------------------------------------------------


def test_only_changed_clients_are_written(
    run: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_SLACK_BYTES", 0)
    store, longest = new_store(), 0
    for round in range(1, 30):
        advance(store, round)
        save(run, round, tensors(round), store, {})
        found = latest(run)
        assert found is not None
        longest = max(longest, len(found.chain))
        assert sum(f.rows for f in found.chain) <= 2 * len(store.seen)
        other = new_store()
        found.restore(other)
        assert bits(everything(other)) == bits(everything(store)), round
        kept = {f.path for r in (round, round - 1) if r for f in checkpoint._read(run / "checkpoints", r).chain}
        assert {n for n in files(run) if n.endswith(".arrow")} == kept
        assert sum(n.endswith("meta.json") for n in files(run)) == min(round, 2)
    assert longest > 2, "nothing was incremental"


def test_a_long_chain_begins_anew(
    run: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(checkpoint, "_LONGEST_CHAIN", 3)
    store, lengths = new_store(), []
    for round in range(1, 8):
        advance(store, round, m=1)
        save(run, round, tensors(round), store, {})
        lengths.append(len(store.saved))
    assert max(lengths) == 3 and 1 in lengths[3:]


def test_a_checkpoint_without_changed_clients_has_no_states_file(
    run: Path, new_store: Callable[[], StateStore]
) -> None:
    store = new_store()
    advance(store, 1)
    save(run, 1, tensors(1), store, {})
    for round in (2, 3, 4):
        save(run, round, tensors(round), store, {})
    assert files(run) == [
        "000001/states.arrow",
        "000003/meta.json",
        "000003/state.safetensors",
        "000004/meta.json",
        "000004/state.safetensors",
    ]
    found, other = latest(run), new_store()
    assert found is not None
    found.restore(other)
    assert bits(everything(other)) == bits(everything(store))


def test_a_resumed_run_goes_on_with_the_chain(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    for round in (1, 2):
        advance(store, round, m=5)
        save(run, round, tensors(round), store, {})
    found, resumed = latest(run), new_store()
    assert found is not None
    found.restore(resumed)
    advance(resumed, 3, m=1)
    save(run, 3, tensors(3), resumed, {})
    assert resumed.saved[:2] == store.saved and resumed.saved[2].rows == 1


def test_a_store_whose_files_are_gone_is_written_whole(
    run: Path, tmp_path: Path, new_store: Callable[[], StateStore]
) -> None:
    store = new_store()
    advance(store, 1)
    save(run, 1, tensors(1), store, {})
    (tmp_path / "other").mkdir()
    save(tmp_path / "other", 2, tensors(2), store, {})
    found, other = latest(tmp_path / "other"), new_store()
    assert found is not None and [f.path for f in found.chain] == ["000002/states.arrow"]
    found.restore(other)
    assert bits(everything(other)) == bits(everything(store))


@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept(run: Path, new_store: Callable[[], StateStore], keep: int) -> None:
    store = new_store()
    for round in range(5):
        save(run, round, tensors(round), store, {}, keep)
    assert [n for n in files(run) if n.endswith("meta.json")] == [f"{r:06d}/meta.json" for r in range(5 - keep, 5)]
    assert len(list((run / "checkpoints").iterdir())) == keep


def test_pruning_leaves_what_is_not_ours(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    save(run, 1, tensors(1), store, {})
    (run / "checkpoints" / "000001" / "notes.txt").write_text("mine")
    (run / "checkpoints" / "best").mkdir()
    (run / "checkpoints" / "best" / "meta.json").write_text("{}")
    for round in (2, 3, 4):
        save(run, round, tensors(round), store, {})
    assert {"000001/notes.txt", "best/meta.json"} <= set(files(run))
    assert "000001/state.safetensors" not in files(run)


def test_states_are_written_and_read_in_bounded_memory(run: Path, tmp_path: Path) -> None:
    template = {"c": torch.zeros(1 << 16)}
    store = StateStore(tmp_path / "a", template, 1 << 30)
    for client in range(160):  # 40 MB
        store.put(np.array([client]), {"c": np.full((1, 1 << 16), client, np.float32)})
    other = StateStore(tmp_path / "b", template, 1 << 30)
    arrow = pa.total_allocated_bytes()
    tracemalloc.start()
    save(run, 1, {}, store, {})
    found = latest(run)
    assert found is not None
    found.restore(other)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 16_000_000
    assert pa.total_allocated_bytes() - arrow < 16_000_000
    assert [other.get(np.array([c]))["c"][0, -1] for c in (0, 159)] == [0, 159]
    store.close()
    other.close()


# --- damage ---------------------------------------------------------------------------------------------------------


def three(run: Path, store: StateStore) -> dict[int, Snapshot]:
    """Checkpoints 1, 2 and 3, and what each must bring back."""
    found = {}
    for round in (1, 2, 3):
        advance(store, round, m=2)
        save(run, round, tensors(round), store, {"round": round})
        found[round] = (tensors(round), everything(store))
    return found


def check(run: Path, expected: dict[int, Snapshot], store: StateStore) -> int:
    """The newest checkpoint brings back its round exactly. Returns the round."""
    found = latest(run)
    assert found is not None
    found.restore(store)
    server, clients = expected[found.round]
    assert bits(found.tensors()) == bits(server)
    assert bits(everything(store)) == bits(clients)
    return found.round


@pytest.mark.parametrize("name", ["meta.json", "state.safetensors", "states.arrow"])
@pytest.mark.parametrize("how", ["cut", "flipped", "missing", "empty"])
def test_a_damaged_checkpoint_is_left_out(run: Path, new_store: Callable[[], StateStore], name: str, how: str) -> None:
    store = new_store()
    expected = three(run, store)
    path = run / "checkpoints" / "000003" / name
    if how == "cut":
        path.write_bytes(path.read_bytes()[:-7])
    elif how == "flipped" and name == "meta.json":
        path.write_text(path.read_text().replace('"round"', '"rund"'))
    elif how == "flipped":
        damage(path)
    elif how == "empty":
        path.write_bytes(b"")
    else:
        path.unlink()
    resumed = new_store()
    if (name, how) == ("meta.json", "missing"):
        assert check(run, expected, resumed) == 2  # it was never a checkpoint
    else:
        with pytest.warns(RaygradWarning, match=rf"000003 is damaged.*{name.replace('.', chr(92) + '.')}"):
            assert check(run, expected, resumed) == 2
    # The resumed run does the round again, and what it leaves is whole.
    advance(resumed, 3, m=2)
    save(run, 3, tensors(3), resumed, {"round": 3})
    assert check(run, expected, new_store()) == 3


def test_damage_of_a_shared_file_reaches_every_checkpoint(run: Path, new_store: Callable[[], StateStore]) -> None:
    three(run, new_store())
    damage(run / "checkpoints" / "000001" / "states.arrow")
    with pytest.warns(RaygradWarning, match=r"000001/states\.arrow has not the sha256"):
        assert latest(run) is None


def test_what_lies_ahead_of_a_new_checkpoint_goes(run: Path, new_store: Callable[[], StateStore]) -> None:
    expected = three(run, new_store())
    damage(run / "checkpoints" / "000003" / "state.safetensors")
    resumed = new_store()
    with pytest.warns(RaygradWarning):
        assert check(run, expected, resumed) == 2
    save(run, 2, tensors(2), resumed, {"round": 2})
    assert check(run, expected, new_store()) == 2
    assert not (run / "checkpoints" / "000003").exists()


def test_a_newer_format_is_refused(run: Path, new_store: Callable[[], StateStore]) -> None:
    folder = save(run, 1, tensors(1), new_store(), {})
    meta = json.loads((folder / "meta.json").read_text())
    (folder / "meta.json").write_text(json.dumps({**meta, "schema_version": 99}))
    with pytest.raises(BadInput, match="schema version 99"):
        latest(run)
    with pytest.raises(BadInput, match="schema version 99"):
        save(run, 2, tensors(2), new_store(), {})
    assert (folder / "state.safetensors").exists()


def test_a_meta_cannot_name_files_elsewhere(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    folder = save(run, 1, tensors(1), store, {})
    meta = json.loads((folder / "meta.json").read_text())
    (run / "secret.arrow").write_bytes(b"")
    meta["chain"] = [{"path": "../secret.arrow", "bytes": 0, "sha256": storage.sha256(run / "secret.arrow"), "rows": 1}]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.warns(RaygradWarning, match="unexpected file name"):
        assert latest(run) is None


def test_states_of_another_algorithm_are_refused(
    run: Path, tmp_path: Path, new_store: Callable[[], StateStore]
) -> None:
    store = new_store()
    advance(store, 1)
    save(run, 1, tensors(1), store, {})
    found = latest(run)
    assert found is not None
    for template in ({}, {"c": torch.zeros(4)}, {**TEMPLATE, "more": torch.zeros(1)}):
        other = StateStore(tmp_path / "other", template, 1 << 20)
        with pytest.raises(BadInput, match=r"states\.arrow does not fit the algorithm's client states: it holds c "):
            found.restore(other)
        other.close()


def test_files_that_vanish_are_named(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    folder = save(run, 1, tensors(1), store, {})
    found = latest(run)
    assert found is not None
    shutil.rmtree(folder)
    with pytest.raises(BadInput, match=r"state\.safetensors is gone"):
        found.tensors()
    with pytest.raises(BadInput, match=r"states\.arrow is gone"):
        found.restore(store)


# --- the same round again -------------------------------------------------------------------------------------------


def test_saving_the_same_again_writes_nothing(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    folder = save(run, 1, tensors(1), store, {"a": 1})
    before = {p.name: p.stat().st_ino for p in folder.iterdir()}
    chain = store.saved
    save(run, 1, tensors(1), store, {"a": 1})
    assert {p.name: p.stat().st_ino for p in folder.iterdir()} == before and store.saved == chain


def test_saving_something_else_replaces_it(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    for again in range(4):
        advance(store, again)
        save(run, 1, tensors(again), store, {"again": again})
        found, other = latest(run), new_store()
        assert found is not None and found.extra == {"again": again}
        assert bits(found.tensors()) == bits(tensors(again))
        found.restore(other)
        assert bits(everything(other)) == bits(everything(store))
        assert set(files(run)) == {f.path for f in found.files} | {"000001/meta.json"}


def test_other_client_states_are_something_else(run: Path, new_store: Callable[[], StateStore]) -> None:
    for change in ("dirty", "another store"):
        store = new_store()
        advance(store, 1)
        save(run, 1, tensors(1), store, {})
        if change == "dirty":
            advance(store, 2)
        else:
            store = new_store()
        save(run, 1, tensors(1), store, {})
        assert check(run, {1: (tensors(1), everything(store))}, new_store()) == 1


def test_a_file_that_the_store_needs_is_never_written_over(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    advance(store, 1)
    folder = save(run, 1, tensors(1), store, {})
    (folder / "meta.json").unlink()
    advance(store, 2, m=1)
    save(run, 1, tensors(2), store, {})
    assert check(run, {1: (tensors(2), everything(store))}, new_store()) == 1


def test_a_silently_damaged_file_is_written_again(run: Path, new_store: Callable[[], StateStore]) -> None:
    store = new_store()
    folder = save(run, 1, tensors(1), store, {})
    damage(folder / "state.safetensors")
    save(run, 1, tensors(1), store, {})
    found = latest(run)
    assert found is not None and bits(found.tensors()) == bits(tensors(1))


# --- dying at any moment --------------------------------------------------------------------------------------------


class Died(BaseException):
    """The process is dead: no code of it runs any more."""


@dataclass
class Fate:
    """Counts what changes the disk and dies at the `at`-th such moment; nothing reaches the disk afterwards."""

    at: int
    seen: list[str] = field(default_factory=list)

    def step(self, what: str) -> None:
        self.seen.append(what)
        if len(self.seen) > self.at:
            raise Died

    def patch(self, patch: pytest.MonkeyPatch) -> None:
        for name in ("replace", "unlink", "fsync", "mkdir", "rmdir"):
            patch.setattr(os, name, self._wrapped(name, getattr(os, name)))
        write = storage.Sink.write

        def half(sink: storage.Sink, data: Any, /) -> int:
            try:
                self.step("write")
            except Died:
                if len(self.seen) == self.at + 1:
                    sink._file.write(memoryview(data).cast("B")[: memoryview(data).nbytes // 2])
                    sink._file.flush()
                raise
            return write(sink, data)

        patch.setattr(storage.Sink, "write", half)

    def _wrapped(self, name: str, call: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **kwargs: Any) -> Any:
            self.step(name)
            return call(*args, **kwargs)

        return wrapped


def dies_at(at: int, action: Callable[[], object], monkeypatch: pytest.MonkeyPatch) -> Fate:
    fate = Fate(at)
    with monkeypatch.context() as patch:
        fate.patch(patch)
        try:
            action()
        except (Died, SystemError, OSError):  # an Arrow writer wraps what its sink raises
            assert len(fate.seen) > at
    return fate


@pytest.mark.parametrize("keep", [1, 2])
@pytest.mark.parametrize("case", ["next", "compaction", "same round", "after damage"])
def test_a_process_may_die_at_any_moment(
    tmp_path: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch, case: str, keep: int
) -> None:
    """Die at every single write, sync, rename and removal of a save; resume; do the save again; and once more."""
    if case == "compaction":
        monkeypatch.setattr(checkpoint, "_LONGEST_CHAIN", 2)
    target, at, steps = 3 if case != "same round" else 2, 0, set()
    while True:
        run = tmp_path / f"run-{at}"
        run.mkdir()
        store = new_store()
        expected: dict[int, Snapshot] = {}
        for round in (1, 2):
            advance(store, round, m=3)
            save(run, round, tensors(round), store, {}, keep)
            expected[round] = (tensors(round), everything(store))
        before = dict(expected)
        if case == "after damage":
            doomed = new_store()
            checkpoint._read(run / "checkpoints", 2).restore(doomed)
            advance(doomed, 3, m=3)
            save(run, 3, tensors(3), doomed, {}, max(keep, 2))
            damage(run / "checkpoints" / "000003" / "states.arrow")
        advance(store, 3, m=3)
        expected[target] = (tensors(3), everything(store))
        fate = dies_at(at, lambda r=run, s=store: save(r, target, tensors(3), s, {}, keep), monkeypatch)
        steps |= set(fate.seen)

        found, resumed = _quietly(run), new_store()
        assert found is not None, f"{case}: nothing left after dying at {fate.seen}"
        found.restore(resumed)
        state = (bits(found.tensors()), bits(everything(resumed)))
        allowed = [expected[target], before[2]]
        assert state in [(bits(a), bits(b)) for a, b in allowed], f"{case}: wrong after dying at {fate.seen}"

        if case != "after damage":
            present = checkpoint._present(run / "checkpoints").values()
            whole = [checkpoint._has_size(c.root, f) for c in present for f in c.files]
            assert all(whole), f"{case}: a checkpoint that counts lacks a file after dying at {fate.seen}"

        # The resumed process goes on: the same checkpoint, if it is not there, and the next one.
        if state[0] != bits(expected[target][0]):
            advance(resumed, 3, m=3)
            save(run, target, tensors(3), resumed, {}, keep)
        assert check(run, {target: expected[target]}, new_store()) == target
        advance(resumed, 4, m=3)
        save(run, 4, tensors(4), resumed, {}, keep)
        assert check(run, {4: (tensors(4), everything(resumed))}, new_store()) == 4
        needed = {f.path for c in checkpoint._present(run / "checkpoints").values() for f in c.files}
        left = {n for n in files(run) if not n.endswith("meta.json")}
        assert left == needed, "a killed save left something behind"
        if len(fate.seen) <= at:
            break
        at += 1
    assert {"write", "fsync", "replace", "unlink"} <= steps
    renames = [i for i, what in enumerate(fate.seen) if what == "replace"]
    assert len(renames) == 3, "state.safetensors, states.arrow, meta.json"
    assert all(fate.seen[i - 1] == fate.seen[i + 1] == "fsync" for i in renames), "the file before, its folder after"


def _quietly(run: Path) -> checkpoint.Checkpoint | None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("warnings.warn", lambda *_, **__: None)
        return latest(run)


def test_the_first_checkpoint_may_be_the_one_that_dies(
    tmp_path: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    at = 0
    while True:
        run, store = tmp_path / f"run-{at}", new_store()
        run.mkdir()
        advance(store, 1)
        fate = dies_at(at, lambda r=run, s=store: save(r, 1, tensors(1), s, {}), monkeypatch)
        found = latest(run)
        if found is not None:
            found.restore(store)
        save(run, 1, tensors(1), store, {})
        assert check(run, {1: (tensors(1), everything(store))}, new_store()) == 1
        assert files(run) == ["000001/meta.json", "000001/state.safetensors", "000001/states.arrow"]
        if len(fate.seen) <= at:
            break
        at += 1


@pytest.mark.parametrize("seed", range(3))
def test_a_long_life_with_many_deaths(
    run: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Rounds, checkpoints and deaths at random moments give what one uninterrupted life gives."""
    monkeypatch.setattr(checkpoint, "_SLACK_BYTES", 0)
    draw = rng(seed, Purpose.SYNTHETIC, 99)
    whole, expected = new_store(), {}
    for round in range(1, 25):
        advance(whole, round, m=2)
        expected[round] = (tensors(round), everything(whole))
    store, done, deaths = new_store(), 0, 0
    while done < 24:
        advance(store, done + 1, m=2)
        done += 1
        if draw.random() < 0.3:
            continue
        at = int(draw.integers(0, 60))
        fate = dies_at(at, lambda d=done, s=store: save(run, d, tensors(d), s, {}), monkeypatch)
        if len(fate.seen) > at:
            deaths += 1
            store = new_store()
            done = 0 if latest(run) is None else check(run, expected, store)
    save(run, done, tensors(done), store, {})
    assert check(run, expected, new_store()) == 24
    assert deaths > 3


# --- lost storage ---------------------------------------------------------------------------------------------------


def test_a_full_disk_stops_the_run_and_the_old_checkpoint_stays(
    run: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    expected = three(run, store)
    advance(store, 4)
    write, calls = storage.Sink.write, []

    def full(sink: storage.Sink, data: Any, /) -> int:
        calls.append(data)
        if len(calls) >= 4:
            raise OSError(errno.ENOSPC, "No space left on device")
        return write(sink, data)

    with monkeypatch.context() as patch:
        patch.setattr(storage.Sink, "write", full)
        with pytest.raises(Stopped, match=r"storage lost.*000004.*No space left.*resumable"):
            save(run, 4, tensors(4), store, {})
    assert not any(".tmp" in name for name in files(run))
    assert check(run, expected, new_store()) == 3
    save(run, 4, tensors(4), store, {})
    assert check(run, {4: (tensors(4), everything(store))}, new_store()) == 4


def test_a_run_folder_that_is_gone_stops_the_run(run: Path, new_store: Callable[[], StateStore]) -> None:
    shutil.rmtree(run)
    with pytest.raises(Stopped, match="storage lost"):
        save(run, 1, tensors(1), new_store(), {})


def test_rows_between_two_rounds_are_never_saved(
    run: Path, new_store: Callable[[], StateStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    store = new_store()
    expected = three(run, store)

    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", fail)
        with pytest.raises(Stopped):
            advance(store, 4)
    with pytest.raises(Stopped, match="not adopted whole"):
        save(run, 3, tensors(3), store, {"again": True})
    assert check(run, expected, new_store()) == 3
