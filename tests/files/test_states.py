"""The file-backed store of client states."""

import errno
import os
import tracemalloc
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from raygrad.errors import BadInput, Stopped
from raygrad.files.states import StateStore, refuse_if_too_large
from raygrad.files.storage import SavedFile

TEMPLATE = {
    "c": torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]]),
    "steps": torch.tensor(7, dtype=torch.int64),
    "mask": torch.tensor([True, False, True]),
    "half": torch.tensor([0.5, -0.0], dtype=torch.float16),
}
ROW_BYTES = 6 * 4 + 8 + 3 + 2 * 2


def rows(clients: list[int], shift: float = 0.0) -> dict[str, np.ndarray]:
    """Rows that tell which client they belong to."""
    ids = np.array(clients, dtype=np.float32)
    return {
        "c": (ids[:, None, None] * 10 + shift + np.arange(6, dtype=np.float32).reshape(2, 3)).astype(np.float32),
        "steps": np.array([c * 100 + int(shift) for c in clients], dtype=np.int64),
        "mask": np.array([[c % 2 == 0, True, c % 3 == 0] for c in clients], dtype=np.bool_).reshape(-1, 3),
        "half": np.array([[c % 999, -c % 999] for c in clients], dtype=np.float16).reshape(-1, 2),
    }


@pytest.fixture
def store(tmp_path: Path) -> Iterator[StateStore]:
    store = StateStore(tmp_path / "scratch" / "states.bin", TEMPLATE, limit_bytes=1 << 20)
    yield store
    store.close()


def same(found: dict[str, np.ndarray], expected: dict[str, np.ndarray]) -> bool:
    return set(found) == set(expected) and all(
        found[n].dtype == expected[n].dtype
        and found[n].shape == expected[n].shape
        and found[n].tobytes() == expected[n].tobytes()
        for n in expected
    )


def test_a_client_never_seen_has_the_template(store: StateStore) -> None:
    found = store.get(np.array([5, 0]))
    for name, value in TEMPLATE.items():
        assert found[name].shape == (2, *value.shape)
        assert found[name].dtype == value.numpy().dtype
        assert (found[name] == value.numpy()).all()
    assert store.row_bytes == ROW_BYTES
    assert store.seen.tolist() == [] and store.dirty.tolist() == []
    assert store.get(np.array([], dtype=np.int64))["c"].shape == (0, 2, 3)


def test_rows_come_back_bit_for_bit_in_any_order(store: StateStore) -> None:
    store.put(np.array([9, 2, 5]), rows([9, 2, 5]))
    store.put(np.array([2, 7]), rows([2, 7], shift=0.25))
    assert same(store.get(np.array([5, 9])), rows([5, 9]))
    assert same(store.get(np.array([7, 2, 7])), rows([7, 2, 7], shift=0.25))
    mixed = store.get(np.array([2, 1]))
    assert (mixed["c"][1] == TEMPLATE["c"].numpy()).all()
    assert (mixed["c"][0] == rows([2], shift=0.25)["c"][0]).all()
    assert store.seen.tolist() == [2, 5, 7, 9]


def test_the_file_has_rows_only_for_clients_seen(store: StateStore) -> None:
    store.put(np.array([100_000]), rows([100_000]))
    store.put(np.array([3, 100_000]), rows([3, 100_000]))
    assert store.path.stat().st_size == 2 * ROW_BYTES


def test_what_comes_back_is_a_copy(store: StateStore) -> None:
    store.put(np.array([1]), rows([1]))
    found = store.get(np.array([1, 2]))
    found["c"][:] = 0
    assert same(store.get(np.array([1])), rows([1]))
    assert (store.get(np.array([2]))["c"][0] == TEMPLATE["c"].numpy()).all()


def test_nan_payloads_survive(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", {"c": torch.zeros(2)}, 1 << 20)
    odd = np.array([[0x7FC00123, 0xFFC00001]], dtype=np.uint32).view(np.float32)
    store.put(np.array([0]), {"c": odd})
    assert store.get(np.array([0]))["c"].tobytes() == odd.tobytes()
    store.close()


def test_dirty_is_what_changed_since_the_last_mark(store: StateStore) -> None:
    store.put(np.array([4, 1]), rows([4, 1]))
    assert store.dirty.tolist() == [1, 4]
    saved = (SavedFile("000010/states.arrow", 1, "00", 2),)
    store.mark_clean(saved)
    assert store.dirty.tolist() == [] and store.saved == saved
    store.put(np.array([4, 8]), rows([4, 8]))
    assert store.dirty.tolist() == [4, 8] and store.saved == saved
    store.mark_clean()
    assert store.saved == ()
    store.clear()
    assert store.seen.tolist() == [] and (store.get(np.array([4]))["steps"] == 7).all()


def test_without_client_state_there_is_no_file(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "none" / "s", {}, limit_bytes=0)
    store.put(np.array([1, 2]), {})
    assert store.get(np.array([1, 2])) == {}
    assert store.row_bytes == 0 and store.seen.tolist() == [] and store.dirty.tolist() == []
    with pytest.raises(ValueError, match="c"):
        store.put(np.array([1]), {"c": np.zeros((1, 2), np.float32)})
    store.close()
    assert not (tmp_path / "none").exists()


def test_the_file_is_scratch(tmp_path: Path) -> None:
    path = tmp_path / "s"
    path.write_bytes(b"left by a process that died")
    store = StateStore(path, TEMPLATE, 1 << 20)
    assert path.stat().st_size == 0
    store.put(np.array([1]), rows([1]))
    store.close()
    store.close()
    assert not path.exists()
    with pytest.raises(ValueError, match="closed"):
        store.get(np.array([1]))


@pytest.mark.parametrize(
    ("clients", "change"),
    [
        ([1], {"c": np.zeros((1, 6), np.float32)}),
        ([1], {"c": np.zeros((1, 2, 3), np.float64)}),
        ([1], {"c": np.zeros((2, 2, 3), np.float32)}),
        ([1], {"other": np.zeros(1)}),
        ([-1], {}),
    ],
)
def test_what_does_not_fit_is_a_bug(store: StateStore, clients: list[int], change: dict[str, np.ndarray]) -> None:
    with pytest.raises(ValueError):
        store.put(np.array(clients), {**rows(clients), **change})
    with pytest.raises(ValueError):
        store.clear()
        store.put(np.array([1]), {"c": rows([1])["c"]})
    assert store.path.stat().st_size == 0


@pytest.mark.parametrize("value", [torch.zeros(2, dtype=torch.bfloat16), torch.zeros(2, dtype=torch.complex64)])
def test_a_dtype_that_cannot_be_kept_is_refused(tmp_path: Path, value: torch.Tensor) -> None:
    with pytest.raises(BadInput, match="client state c is"):
        StateStore(tmp_path / "s", {"c": value}, 1 << 20)


def test_an_empty_state_is_refused(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="empty"):
        StateStore(tmp_path / "s", {"c": torch.zeros(0)}, 1 << 20)


def test_the_limit_is_kept(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", TEMPLATE, limit_bytes=3 * ROW_BYTES)
    store.put(np.array([1, 2, 3]), rows([1, 2, 3]))
    store.put(np.array([3, 1]), rows([3, 1]))
    store.mark_clean()
    with pytest.raises(BadInput, match="4 clients"):
        store.put(np.array([1, 9]), rows([1, 9], shift=1.0))
    assert store.path.stat().st_size == 3 * ROW_BYTES
    store.close()


def test_the_size_is_known_before_the_start() -> None:
    assert refuse_if_too_large(1000, 4096, 4_096_000) == 4_096_000
    with pytest.raises(BadInput) as caught:
        refuse_if_too_large(1_000_000, 400_000, 10**10)
    text = str(caught.value)
    assert "1,000,000 clients" in text and "400,000,000,000 bytes" in text and "10.00 GB" in text
    assert "\n" not in text


def test_short_reads_and_writes_are_continued(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    pread, pwrite = os.pread, os.pwrite
    monkeypatch.setattr(os, "pread", lambda fd, n, offset: pread(fd, min(n, 7), offset))
    monkeypatch.setattr(os, "pwrite", lambda fd, data, offset: pwrite(fd, data[:5], offset))
    store.put(np.array([1, 2]), rows([1, 2]))
    assert same(store.get(np.array([2, 1])), rows([2, 1]))
    os.truncate(store.path, ROW_BYTES + 3)
    with pytest.raises(OSError, match="cut"):
        store.get(np.array([2]))


def test_a_full_disk_stops_the_run(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> int:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(Stopped, match=r"storage lost.*states\.bin.*resumable"):
        store.put(np.array([1]), rows([1]))


def test_rows_between_two_rounds_cannot_be_used(store: StateStore, monkeypatch: pytest.MonkeyPatch) -> None:
    store.put(np.array([1, 2]), rows([1, 2]))
    pwrite, calls = os.pwrite, []

    def second_fails(fd: int, data: memoryview, offset: int) -> int:
        calls.append(offset)
        if len(calls) == 2:
            raise OSError(errno.EIO, "Input/output error")
        return pwrite(fd, data, offset)

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", second_fails)
        with pytest.raises(Stopped, match="storage lost"):
            store.put(np.array([1, 2]), rows([1, 2], shift=1.0))
    for use in (
        lambda: store.get(np.array([1])),
        lambda: store.put(np.array([1]), rows([1])),
        lambda: store.seen,
        lambda: store.dirty,
    ):
        with pytest.raises(Stopped, match="not adopted whole"):
            use()
    store.clear()
    store.put(np.array([1]), rows([1]))
    assert same(store.get(np.array([1])), rows([1]))


def test_memory_does_not_grow_with_the_clients(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", {"c": torch.zeros(4096)}, limit_bytes=1 << 30)
    row = np.ones((4, 4096), np.float32)
    tracemalloc.start()
    for first in range(0, 2000, 4):  # 32 MB of states
        clients = np.arange(first, first + 4)
        store.put(clients, {"c": row})
        store.get(clients)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    store.close()
    assert peak < 2_000_000


def test_groups_are_small_and_complete(tmp_path: Path) -> None:
    store = StateStore(tmp_path / "s", {"c": torch.zeros(1 << 18)}, limit_bytes=1 << 30)
    groups = store.groups(np.arange(11))
    assert [len(g) for g in groups] == [4, 4, 3]
    assert np.concatenate(groups).tolist() == list(range(11))
    store.close()
