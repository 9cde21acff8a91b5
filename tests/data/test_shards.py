"""Shards: what is written, that it is read without a copy, reuse, damage, concurrency."""

import json
import os
import pickle
import shutil
import threading
import tracemalloc
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from raygrad.data.datasets import Digits, Idx, SyntheticLogistic, SyntheticQuadratic
from raygrad.data.partition import IID, Dirichlet, Labels, Natural, Partitioner, Repeated
from raygrad.data.shards import Shards, prepare, validation_rows
from raygrad.data.source import Examples, Source
from raygrad.data.transform import Transform
from raygrad.errors import BadInput


@dataclass(frozen=True)
class Made:
    """A user's own data set: example i is all i, its label i mod classes."""

    examples: int = 60
    classes: int = 4
    width: int = 3
    test: int = 7
    dtype: str = "float32"

    def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
        def part(start: int, n: int) -> Examples:
            numbers = np.arange(start, start + n)
            return Examples(np.repeat(numbers[:, None], self.width, 1).astype(self.dtype), numbers % self.classes)

        train, test = part(0, self.examples), part(1000, self.test)
        names = tuple("abcdefgh"[: self.classes])
        return Source(train, test, self.classes, names, None, Transform(), f"made {self}")


def made(
    root: Path,
    dataset: object = None,
    partitioner: Partitioner | None = None,
    seed: int = 0,
    validation: float = 0.25,
) -> Shards:
    return prepare(
        dataset or Made(),  # type: ignore[arg-type]
        partitioner or Labels(4),
        shard_root=root,
        data_root=None,
        seed=seed,
        validation=validation,
    )


def contents(shards: Shards) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(shards.path.iterdir())}


def test_every_example_is_somewhere_once_and_whole(tmp_path: Path) -> None:
    shards = made(tmp_path, partitioner=Dirichlet(5, 0.5))
    assert (shards.clients, shards.shape, shards.dtype) == (5, (3,), np.float32)
    assert shards.classes == 4
    assert shards.class_names == ("a", "b", "c", "d")
    seen = []
    for part, sizes in (("train", shards.examples), ("validation", shards.validation_examples)):
        for client in range(5):
            x, y = shards.read(part, client)
            assert x.shape == (sizes[client], 3)
            assert y.shape == (sizes[client],)
            assert (x == x[:, :1]).all()
            assert np.array_equal(x[:, 0].astype(int) % 4, y)
            assert y.dtype == np.int64
            seen += x[:, 0].tolist()
    assert sorted(seen) == list(range(60))
    assert shards.validation_examples.sum() > 0
    counts = shards.label_counts
    assert counts is not None
    for client in range(5):
        assert np.array_equal(counts[client], np.bincount(shards.read("train", client)[1], minlength=4))


def test_the_test_part_comes_in_batches_of_1000_in_order(tmp_path: Path) -> None:
    shards = made(tmp_path, Made(test=2500))
    assert (shards.test_examples, shards.test_batches) == (2500, 3)
    assert [len(shards.read("test", i)[1]) for i in range(3)] == [1000, 1000, 500]
    numbers = np.concatenate([shards.read("test", i)[0][:, 0] for i in range(3)])
    assert np.array_equal(numbers, np.arange(1000, 3500))
    none = made(tmp_path, Made(test=0))
    assert (none.test_examples, none.test_batches) == (0, 0)
    with pytest.raises(IndexError, match="test has 0 batches"):
        none.read("test", 0)


def test_reading_is_zero_copy_and_read_only(tmp_path: Path) -> None:
    shards = made(tmp_path, Made(examples=4000, width=100))
    before = pa.total_allocated_bytes()
    x, y = shards.read("train", 1)
    assert pa.total_allocated_bytes() - before < x.nbytes // 100
    assert not x.flags.writeable
    assert not y.flags.writeable
    assert not x.flags.owndata
    again, _ = shards.read("train", 1)
    assert x.ctypes.data == again.ctypes.data  # the same page, not a copy of it
    with pytest.raises(ValueError, match="read-only"):
        x[0] = 1
    expected = x.copy()
    del shards, again
    assert np.array_equal(x, expected)  # a view keeps its map


def test_reading_refuses_what_is_not_there(tmp_path: Path) -> None:
    shards = made(tmp_path)
    for index in (-1, 4):
        with pytest.raises(IndexError, match=f"train has 4 batches, there is none with number {index}"):
            shards.read("train", index)
    with pytest.raises(ValueError, match="unknown part 'tests'"):
        shards.read("tests", 0)


def test_images_keep_shape_dtype_and_transform(tmp_path: Path) -> None:
    shards = made(tmp_path, Digits(), Labels(10), validation=0.2)
    source = Digits().open(None, tmp_path, 0)
    assert shards.path.name.startswith("digits-")
    assert shards.shape == (1, 8, 8)
    assert shards.transform == source.transform
    x, y = shards.read("train", 3)
    assert x.dtype == np.uint8
    assert set(y) == {3}
    both = np.concatenate([x, shards.read("validation", 3)[0]])
    wanted = source.train.x[source.train.y == 3]
    assert sorted(image.tobytes() for image in both) == sorted(image.tobytes() for image in wanted)
    assert shards.examples.sum() + shards.validation_examples.sum() == len(source.train)


def test_a_natural_partition_and_regression(tmp_path: Path) -> None:
    quadratic = SyntheticQuadratic(6, 20, 4)
    shards = made(tmp_path, quadratic, Natural(), validation=0.0)
    source = quadratic.open(None, tmp_path, 0)
    assert shards.classes is None
    assert shards.label_counts is None
    assert shards.dtype == np.float64
    x, y = shards.read("train", 2)
    assert y.dtype == np.float64
    assert np.array_equal(x, source.train.x[40:60])
    assert np.array_equal(y, source.train.y[40:60])
    with pytest.raises(BadInput, match="no clients of its own"):
        made(tmp_path, Digits(), Natural())
    with pytest.raises(BadInput, match="needs class labels"):
        made(tmp_path, quadratic, Labels(4))


def test_repeated_clients_share_the_stored_shards(tmp_path: Path) -> None:
    data = SyntheticLogistic(clients=5, examples=12, features=3, classes=4)
    own, many = made(tmp_path, data, Natural()), made(tmp_path, data, Repeated(clients=1_000_003))
    assert many.clients == len(many.examples) == len(many.validation_examples) == 1_000_003
    assert many.id != own.id
    for client in (0, 4, 5, 777, 1_000_002):
        for part in ("train", "validation"):
            for mine, theirs in zip(many.read(part, client), own.read(part, client % 5), strict=True):
                assert np.array_equal(mine, theirs)
        assert many.examples[client] == own.examples[client % 5]
        assert np.array_equal(many.label_counts[client], own.label_counts[client % 5])  # type: ignore[index]
    assert (many.path / "train.arrow").stat().st_size == (own.path / "train.arrow").stat().st_size
    with pytest.raises(IndexError):
        many.read("train", 1_000_003)
    with pytest.raises(BadInput, match="fewer than the data set's own 5"):
        made(tmp_path, data, Repeated(clients=4))
    with pytest.raises(BadInput, match=r"repeated: .* no clients of its own"):
        made(tmp_path, Digits(), Repeated(clients=100))


def test_all_bytes_are_a_function_of_the_settings(tmp_path: Path) -> None:
    one = made(tmp_path / "a", Digits(), Dirichlet(20, 0.3))
    two = made(tmp_path / "b", Digits(), Dirichlet(20, 0.3))
    assert contents(one) == contents(two)
    assert one.id == two.id
    ids = {
        made(tmp_path / "a", Digits(), Dirichlet(20, 0.3), seed=1).id,
        made(tmp_path / "a", Digits(), Dirichlet(20, 0.4)).id,
        made(tmp_path / "a", Digits(), Dirichlet(20, 0.3), validation=0.0).id,
        one.id,
    }
    assert len(ids) == 4
    assert len([p for p in (tmp_path / "a").iterdir() if p.name.startswith("digits-")]) == 4
    assert not [p for p in (tmp_path / "a").iterdir() if p.name.startswith(".")]


# --- validation -----------------------------------------------------------------------------------------------------


@settings(max_examples=200, deadline=None)
@given(
    st.lists(st.integers(0, 5), min_size=1, max_size=60),
    st.floats(0, 0.95),
    st.integers(0, 2**32),
    st.integers(0, 1000),
)
def test_validation_is_stratified(labels: list[int], fraction: float, seed: int, client: int) -> None:
    y = np.array(labels)
    held = validation_rows(y, fraction, seed, client)
    assert np.array_equal(held, validation_rows(y, fraction, seed, client))
    n = len(y)
    assert held.sum() < n
    assert n * fraction - 1 < held.sum() + 1e-9
    assert held.sum() < n * fraction + 1 + 1e-9
    for cls in set(labels):
        share = fraction * np.count_nonzero(y == cls)
        assert abs(np.count_nonzero(held & (y == cls)) - share) < 1 + 1e-9


def test_tiny_clients_give_validation_examples_on_average() -> None:
    y = np.array([0, 1, 2])
    held = np.array([validation_rows(y, 0.1, 0, client) for client in range(4000)])
    assert abs(held.mean() - 0.1) < 0.01
    assert np.allclose(held.mean(0), 0.1, atol=0.02)  # no label is preferred
    assert not validation_rows(np.array([4]), 0.9, 0, 0).any()


@pytest.mark.parametrize("fraction", [-0.1, 1.0, float("nan")])
def test_a_validation_fraction_out_of_range(tmp_path: Path, fraction: float) -> None:
    with pytest.raises(BadInput, match="validation"):
        made(tmp_path, validation=fraction)


# --- reuse ----------------------------------------------------------------------------------------------------------


def idx_file(path: Path, array: np.ndarray) -> str:
    sizes = b"".join(int(size).to_bytes(4, "big") for size in array.shape)
    path.write_bytes(bytes([0, 0, 8, array.ndim]) + sizes + array.tobytes())
    return str(path)


def test_shards_are_reused_without_reading_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    y = np.arange(20, dtype=np.uint8) % 2
    dataset = Idx(idx_file(tmp_path / "x", np.zeros((20, 2, 2), np.uint8)), idx_file(tmp_path / "y", y))
    first = made(tmp_path / "shards", dataset, IID(3))
    with monkeypatch.context() as patch:
        patch.setattr(Idx, "open", lambda *a: pytest.fail("reads the data again"))
        assert made(tmp_path / "shards", dataset, IID(3)).path == first.path
    # Other files under the same names are other data.
    idx_file(tmp_path / "x", np.ones((20, 2, 2), np.uint8))
    after = made(tmp_path / "shards", dataset, IID(3))
    assert after.path != first.path
    assert after.id != first.id
    assert after.read("train", 0)[0].min() == 1


def test_a_users_own_data_set_is_told_apart_by_its_fingerprint(tmp_path: Path) -> None:
    class Own:
        def __init__(self, made: Made) -> None:
            self.made = made

        def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
            return self.made.open(data_root, cache, seed)

    one, two, same = (made(tmp_path, Own(Made(examples=n))) for n in (60, 61, 60))
    assert one.path == same.path != two.path


def test_one_folder_is_enough_to_open_and_to_pickle(tmp_path: Path) -> None:
    shards = made(tmp_path)
    moved = tmp_path / "elsewhere"
    shutil.copytree(shards.path, moved)
    shards.read("train", 0)
    for again in (Shards.open(moved), pickle.loads(pickle.dumps(shards))):
        assert again.id == shards.id
        assert np.array_equal(again.examples, shards.examples)
        assert np.array_equal(again.read("validation", 2)[0], shards.read("validation", 2)[0])
        again.verify()


def test_progress_ends_with_all_clients(tmp_path: Path) -> None:
    told: list[tuple[int, int]] = []
    prepare(
        Made(),
        IID(7),
        shard_root=tmp_path,
        data_root=None,
        seed=0,
        validation=0.1,
        progress=lambda done, of: told.append((done, of)),
    )
    assert told[-1] == (7, 7)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


# --- damage ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", ["train.arrow", "validation.arrow", "test.arrow", "examples.npy", "labels.npy", "meta.json"]
)
@pytest.mark.parametrize("how", ["truncated", "gone"])
def test_a_damaged_file_is_named_and_prepared_again(tmp_path: Path, name: str, how: str) -> None:
    shards = made(tmp_path)
    good = contents(shards)
    path = shards.path / name
    if how == "gone":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(BadInput, match=name.replace(".", r"\.")) as error:
        Shards.open(shards.path)
    assert "\n" not in str(error.value)
    again = made(tmp_path)
    assert again.path == shards.path
    assert contents(again) == good
    assert not [p for p in tmp_path.iterdir() if p.name.startswith(".")]


def test_damage_of_the_same_size(tmp_path: Path) -> None:
    shards = made(tmp_path)
    path = shards.path / "train.arrow"
    data = bytearray(path.read_bytes())
    middle = len(data) // 3
    data[middle] ^= 255
    path.write_bytes(bytes(data))
    with pytest.raises(BadInput, match=r"train\.arrow: its SHA-256 sum"):
        Shards.open(shards.path).verify()
    path.write_bytes(b"x" * len(data))
    with pytest.raises(BadInput, match=r"train\.arrow: not an Arrow IPC file"):
        Shards.open(shards.path).read("train", 0)


def test_a_folder_that_is_no_shard_folder(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"nowhere/meta\.json"):
        Shards.open(tmp_path / "nowhere")
    (tmp_path / "meta.json").write_text("[1, 2")
    with pytest.raises(BadInput, match="not JSON"):
        Shards.open(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"schema_version": 99}))
    with pytest.raises(BadInput, match="schema_version 99"):
        Shards.open(tmp_path)
    (tmp_path / "meta.json").write_text(json.dumps({"schema_version": 1}))
    with pytest.raises(BadInput, match=r"meta\.json"):
        Shards.open(tmp_path)


def test_bad_sources_and_places_are_refused_and_leave_nothing(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Bad:
        y: object
        x: object = None

        def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
            good = Made().open(None, cache, 0)
            x = good.train.x if self.x is None else np.asarray(self.x)
            train = Examples(x, np.asarray(self.y))
            return Source(train, good.test, 4, good.class_names, None, Transform(), "bad")

    class Plain:
        def __init__(self, bad: Bad) -> None:
            self.open = bad.open

    ok = np.zeros(60, np.int64)
    nan = np.full((60, 3), np.nan, np.float32)
    for bad, message in (
        (Bad(ok + 4), r"labels are int64 from 4 to 4; expected int64 in 0\.\.3"),
        (Bad(ok.astype(float)), "labels are float64"),
        (Bad(ok[:5]), r"x has shape \(60, 3\) and y \(5,\)"),
        (Bad(ok, np.zeros((60, 3), np.int64)), "x has type int64"),
        (Bad(ok, nan), "client 0: an example holds a value that is NaN"),
        (Bad(ok, np.zeros((60, 2), np.float32)), r"test: x is float32 \(3,\); expected float32 \(2,\)"),
    ):
        with pytest.raises(BadInput, match=message):
            made(tmp_path, Plain(bad), IID(3))
    with pytest.raises(BadInput, match="not a folder"):
        prepare(Made(), IID(2), shard_root=tmp_path, data_root=tmp_path / "no", seed=0, validation=0.0)
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").write_text("")
    with pytest.raises(BadInput, match="cannot write shards under"):
        made(tmp_path / "file")


def test_a_users_partitioner_must_use_each_example_once(tmp_path: Path) -> None:
    @dataclass(frozen=True)
    class Mine:
        clients: int
        shares: tuple[tuple[int, ...], ...]

        def assign(self, labels: np.ndarray, classes: int, seed: int) -> list[np.ndarray]:
            return [np.array(share, np.int64) for share in self.shares]

    assert made(tmp_path, Made(examples=4), Mine(2, ((0, 2), (1, 3)))).clients == 2
    with pytest.raises(BadInput, match="of 4 examples 1 were given to no client and 1 more than once"):
        made(tmp_path, Made(examples=4), Mine(2, ((0, 2), (2, 3))))
    with pytest.raises(BadInput, match="of 4 examples 0 were given to no client and 1 more than once"):
        made(tmp_path, Made(examples=4), Mine(2, ((0, 0, 2), (1, 3))))
    with pytest.raises(BadInput, match=r"each of the indices 0\.\.3 must be given once"):
        made(tmp_path, Made(examples=4), Mine(2, ((0, 2), (1, 3, 4))))
    with pytest.raises(BadInput, match="each of its 2 clients an example"):
        made(tmp_path, Made(examples=4), Mine(2, ((0, 1, 2, 3), ())))


def test_leftovers_of_killed_preparations_are_removed_when_old(tmp_path: Path) -> None:
    ours = tmp_path / f".made-0123456789ab.17-{'a' * 32}"
    young = tmp_path / f".made-0123456789ab.18-{'b' * 32}"
    staged = tmp_path / "cache" / f".idx-5.19-{'c' * 32}"
    users = tmp_path / ".important"
    for folder in (ours, young, users):
        folder.mkdir()
        (folder / "train.arrow").write_text("half")
    staged.parent.mkdir()
    staged.write_text("half")
    for path in (ours, staged, users):
        os.utime(path, (0, 0))
    made(tmp_path)
    assert [path.exists() for path in (ours, young, staged, users)] == [False, True, False, True]


# --- memory and concurrency -----------------------------------------------------------------------------------------


def test_preparation_is_bounded_by_one_clients_examples(tmp_path: Path) -> None:
    n, width = 8000, 4096
    x = np.lib.format.open_memmap(tmp_path / "x.npy", mode="w+", dtype=np.uint8, shape=(n, width))
    for start in range(0, n, 1000):
        x[start : start + 1000] = np.arange(start, start + 1000)[:, None] % 251
    x.flush()

    class Mapped:
        def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
            train = Examples(np.load(tmp_path / "x.npy", mmap_mode="r"), np.arange(n) % 4)
            test = Examples(train.x[:2000], train.y[:2000])
            return Source(train, test, 4, ("a", "b", "c", "d"), None, Transform(), "mapped")

    arrow_before = pa.total_allocated_bytes()
    tracemalloc.start()
    try:
        shards = made(tmp_path / "shards", Mapped(), IID(40))
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 32 MB of examples, 0.8 MB per client; the test set goes in batches of 4 MB.
    assert peak < 7e6
    assert pa.total_allocated_bytes() - arrow_before < 1e6
    assert shards.read("train", 39)[0].shape[1] == width


def test_two_preparers_at_once_agree(tmp_path: Path) -> None:
    barrier = threading.Barrier(2)
    results: list[Shards] = []

    class Meeting:
        """Both preparers are in the middle of it before either writes."""

        def open(self, data_root: Path | None, cache: Path, seed: int) -> Source:
            source = Made().open(data_root, cache, seed)
            barrier.wait(timeout=30)
            return source

    def work() -> None:
        results.append(made(tmp_path, Meeting()))

    threads = [threading.Thread(target=work) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 2
    assert results[0].path == results[1].path
    assert contents(results[0]) == contents(results[1])
    assert len([p for p in tmp_path.iterdir() if p.name != "cache"]) == 1


def test_many_small_clients(tmp_path: Path) -> None:
    shards = made(tmp_path, SyntheticLogistic(2000, 3, 2, 2), Natural(), validation=0.2)
    assert shards.clients == 2000
    assert shards.examples.min() >= 1
    assert 900 < shards.validation_examples.sum() < 1500
    x, y = shards.read("train", 1999)
    assert len(x) == len(y) == shards.examples[1999]
