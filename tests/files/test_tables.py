"""The tables of a run folder and the digest."""

import errno
import math
import os
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from raygrad.errors import BadInput, Stopped
from raygrad.files import storage, tables
from raygrad.files.tables import BIT_STABLE, TABLES, TableWriter, digest, discard_from, folder, read
from raygrad.rng import Purpose, rng


def client_rows(round: int, m: int = 3) -> dict[str, Any]:
    """What the clients of one round report; some losses are null, NaN or a negative zero."""
    draw = rng(0, Purpose.SYNTHETIC, round)
    losses: list[float | None] = [float(v) for v in draw.normal(size=m)]
    losses[round % m] = [None, math.nan, -0.0][round % 3]
    return {
        "round": np.full(m, round),
        "client": draw.permutation(100)[:m],
        "weight": draw.random(m),
        "train_loss": losses,
        "outcome": ["answered", None, "late"][:m],
        "virtual_s": draw.random(m),
        "steps": [None] * m,
        "staleness": np.zeros(m, np.int64),
    }


def write(run: Path, first: int, last: int, every: int = 4, name: str = "clients") -> None:
    """Rounds first..last-1, a checkpoint every `every` rounds."""
    writer = TableWriter(folder(run, name), TABLES[name], first)
    for round in range(first, last):
        writer.append(client_rows(round))
        writer.flush()
        if (round + 1) % every == 0:
            writer.close(round + 1)
    writer.flush(force=True)


def names(run: Path, name: str = "clients") -> list[str]:
    return sorted(p.name for p in folder(run, name).iterdir())


# --- writing and reading --------------------------------------------------------------------------------------------


def test_every_table_can_be_written_and_read(tmp_path: Path) -> None:
    values = {pa.int32(): 3, pa.int64(): 2**40, pa.float64(): 0.1, pa.string(): "host", pa.list_(pa.int64()): [3, 0]}
    for name, schema in TABLES.items():
        writer = TableWriter(folder(tmp_path, name), schema, 0)
        row = {field.name: values[field.type] for field in schema}
        writer.append([row, {**row, "round": 4}])
        writer.close(5)
        found = read(tmp_path, name)
        assert found.schema.equals(schema, check_metadata=True)
        assert found.to_pylist() == [row, {**row, "round": 4}]
        assert all(field.metadata[b"description"] for field in schema)
    assert (tmp_path / "operations" / "gangs" / "part-000000.parquet").is_file()
    assert (tmp_path / "operations" / "seconds" / "part-000000.parquet").is_file()
    assert set(BIT_STABLE) <= set(TABLES)


def test_parts_are_cut_at_checkpoints_and_read_as_one(tmp_path: Path) -> None:
    write(tmp_path, 0, 10)
    assert names(tmp_path) == ["part-000000.parquet", "part-000004.parquet", "part-000008.parquet"]
    found = read(tmp_path, "clients")
    assert found.column("round").to_pylist() == [r for r in range(10) for _ in range(3)]
    assert found.column("client").to_pylist() == [c for r in range(10) for c in client_rows(r)["client"].tolist()]
    some = read(tmp_path, "clients", ["weight", "round"])
    assert some.column_names == ["weight", "round"] and some.num_rows == 30


def test_parts_are_in_order_of_their_numbers(tmp_path: Path) -> None:
    writer = TableWriter(folder(tmp_path, "clients"), TABLES["clients"], 999_999)
    for round in (999_999, 1_000_000, 10_000_000):
        writer.close(round)
        writer.append(client_rows(round))
    writer.close(10_000_001)
    assert read(tmp_path, "clients").column("round").to_pylist()[::3] == [999_999, 1_000_000, 10_000_000]


def test_rows_and_columns_are_the_same(tmp_path: Path) -> None:
    columns = client_rows(1)
    rows = [{name: values[i] for name, values in columns.items()} for i in range(3)]
    for run, given in ((tmp_path / "a", columns), (tmp_path / "b", rows)):
        writer = TableWriter(folder(run, "clients"), TABLES["clients"], 0)
        writer.append(given)
        writer.append([])
        writer.close(2)
    a, b = read(tmp_path / "a", "clients"), read(tmp_path / "b", "clients")
    assert digest({"clients": a}, {}) == digest({"clients": b}, {})


def row(**changes: Any) -> dict[str, Any]:
    later = {"outcome": "late", "virtual_s": 1.0, "steps": None, "staleness": 0}
    return {"round": 1, "client": 5, "weight": 1.0, "train_loss": None, **later, **changes}


@pytest.mark.parametrize(
    "rows",
    [
        [row(extra=1)],
        [{"round": 1, "client": 5, "weight": 1.0}],
        [row(), {"round": 1, "client": 5, "weight": 1.0}],
        [row(client=1.5)],
        [row(client="5")],
        [row(client=True)],
        [row(weight="0.5")],
        [row(round=2**31)],
        [row(weight=None)],
        [row(weight=object())],
        {"round": np.array([1, 1]), "client": np.array([5]), "weight": np.array([1.0]), "train_loss": np.array([1.0])},
        {"round": 1, "client": 5, "weight": 1.0, "train_loss": 0.5},
        {"round": "1", "client": "5", "weight": "1", "train_loss": "0"},
    ],
)
def test_what_does_not_fit_the_schema_is_a_bug(tmp_path: Path, rows: Any) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 0)
    with pytest.raises(ValueError):
        writer.append(rows)
    writer.close(2)
    assert names(tmp_path) == []


def test_rounds_outside_the_part_are_a_bug(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 5)
    with pytest.raises(ValueError, match="round 4"):
        writer.append(client_rows(4))
    writer.append(client_rows(6))
    for next_round in (6, 4):
        with pytest.raises(ValueError, match="cannot start"):
            writer.close(next_round)
    writer.close(7)


def test_the_open_part_is_rewritten_now_and_then(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 0, every_s=3600)
    writer.flush()
    writer.flush(force=True)
    assert names(tmp_path) == []
    writer.append(client_rows(0))
    writer.flush()
    assert read(tmp_path, "clients").num_rows == 3
    writer.append(client_rows(1))
    writer.flush()
    assert read(tmp_path, "clients").num_rows == 3, "an hour has not passed"
    writer.flush(force=True)
    assert read(tmp_path, "clients").num_rows == 6
    inode = writer.path.stat().st_ino
    writer.flush(force=True)
    writer.close(2)
    assert (tmp_path / "clients" / "part-000000.parquet").stat().st_ino == inode, "written again without need"
    assert names(tmp_path) == ["part-000000.parquet"]
    writer.close(4)
    assert names(tmp_path) == ["part-000000.parquet"], "no rows, no file"


def test_memory_holds_the_open_part_only(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 0)
    before = pa.total_allocated_bytes()
    for round in range(20):
        m = 5000
        writer.append(
            {
                "round": np.full(m, round),
                "client": np.arange(m),
                "weight": np.ones(m),
                "train_loss": np.ones(m),
                "outcome": ["answered"] * m,
                "virtual_s": np.zeros(m),
                "steps": np.ones(m, np.int64),
                "staleness": np.zeros(m, np.int64),
            }
        )
        writer.close(round + 1)
    assert pa.total_allocated_bytes() - before < 5000 * 60 * 4
    assert read(tmp_path, "clients", ["round"]).num_rows == 100_000


def test_without_a_folder_the_table_is_empty(tmp_path: Path) -> None:
    found = read(tmp_path / "nowhere", "rounds")
    assert found.num_rows == 0 and found.schema.equals(TABLES["rounds"])


@pytest.mark.parametrize("damage", ["empty", "cut", "flipped", "text"])
def test_a_damaged_part_is_named(tmp_path: Path, damage: str) -> None:
    write(tmp_path, 0, 8)
    path = tmp_path / "clients" / "part-000004.parquet"
    data = bytearray(path.read_bytes())
    data[20] ^= 1  # inside a page: only the checksum tells
    path.write_bytes({"empty": b"", "cut": bytes(data[:-9]), "flipped": bytes(data), "text": b"hello" * 99}[damage])
    with pytest.raises(BadInput, match=r"part-000004\.parquet is damaged") as caught:
        read(tmp_path, "clients")
    assert "\n" not in str(caught.value)


def test_no_flipped_bit_in_a_page_changes_rows_unseen(tmp_path: Path) -> None:
    write(tmp_path, 0, 4)
    path, whole = tmp_path / "clients" / "part-000000.parquet", read(tmp_path, "clients")
    data, caught = path.read_bytes(), 0
    footer = len(data) - 8 - int.from_bytes(data[-8:-4], "little")  # Parquet has checksums for pages only
    for position in range(0, footer, 3):
        path.write_bytes(data[:position] + bytes([data[position] ^ 4]) + data[position + 1 :])
        try:
            found = read(tmp_path, "clients")
        except BadInput:
            caught += 1
        else:
            assert digest({"clients": found}, {}) == digest({"clients": whole}, {}), position
    assert caught > 20


def test_a_part_of_another_table_is_named(tmp_path: Path) -> None:
    (tmp_path / "clients").mkdir()
    pq.write_table(pa.table({"round": pa.array([1], pa.int32())}), tmp_path / "clients" / "part-000000.parquet")
    with pytest.raises(BadInput, match=r"part-000000\.parquet does not fit: column client is missing"):
        read(tmp_path, "clients")
    pq.write_table(pa.table({"round": ["1"]}), tmp_path / "clients" / "part-000000.parquet")
    with pytest.raises(BadInput, match="column round is string, expected int32"):
        read(tmp_path, "clients", ["round"])


def test_a_nullable_column_that_is_missing_is_null(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    path = tmp_path / "clients" / "part-000000.parquet"
    pq.write_table(pq.read_table(path).drop_columns(["train_loss"]), path)
    assert read(tmp_path, "clients").column("train_loss").null_count == 6


def test_a_part_may_vanish_while_it_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, 0, 12)
    listed = tables._parts(tmp_path / "clients")
    discard_from(tmp_path / "clients", 4)
    monkeypatch.setattr(tables, "_parts", lambda _: listed)
    assert read(tmp_path, "clients").column("round").to_pylist()[::3] == [0, 1, 2, 3]


# --- resuming -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("killed_at", [1, 4, 6, 8, 11])
def test_a_resumed_run_has_the_rows_of_one_never_stopped(tmp_path: Path, killed_at: int) -> None:
    write(tmp_path / "whole", 0, 12)
    write(tmp_path / "resumed", 0, killed_at)
    (tmp_path / "resumed" / "clients" / ".part-000008.parquet.1234.tmp").write_bytes(b"half a fi")
    checkpoint = killed_at // 4 * 4
    discard_from(tmp_path / "resumed" / "clients", checkpoint)
    assert not any(n.startswith(".") for n in names(tmp_path / "resumed"))
    assert read(tmp_path / "resumed", "clients").num_rows == checkpoint * 3
    write(tmp_path / "resumed", checkpoint, 12)
    found = [read(tmp_path / run, "clients") for run in ("whole", "resumed")]
    assert digest({"clients": found[0]}, {}) == digest({"clients": found[1]}, {})
    assert names(tmp_path / "whole") == names(tmp_path / "resumed")


def test_discard_cuts_a_part_that_spans_the_round(tmp_path: Path) -> None:
    write(tmp_path, 0, 10, every=100)
    discard_from(tmp_path / "clients", 4)
    assert read(tmp_path, "clients").column("round").to_pylist()[::3] == [0, 1, 2, 3]
    discard_from(tmp_path / "clients", 0)
    assert names(tmp_path) == []
    discard_from(tmp_path / "absent", 0)


def test_discard_keeps_what_is_not_its_own(tmp_path: Path) -> None:
    write(tmp_path, 0, 2)
    (tmp_path / "clients" / "notes.txt").write_text("mine")
    discard_from(tmp_path / "clients", 0)
    assert names(tmp_path) == ["notes.txt"]


# --- lost storage ---------------------------------------------------------------------------------------------------


def test_a_lost_folder_stops_the_run(tmp_path: Path) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 0)
    writer.append(client_rows(0))
    shutil.rmtree(tmp_path / "clients")
    with pytest.raises(Stopped, match=r"storage lost while writing .*part-000000.*resumable"):
        writer.flush()


@pytest.mark.parametrize("code", ["ENOSPC", "EDQUOT", "EIO", "EROFS", "EACCES", "ESTALE"])
@pytest.mark.parametrize("call", ["fsync", "replace"])
def test_a_broken_disk_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, call: str) -> None:
    writer = TableWriter(tmp_path / "clients", TABLES["clients"], 0)
    writer.append(client_rows(0))

    def fail(*_: object) -> None:
        raise OSError(getattr(errno, code), f"made {code}")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        with pytest.raises(Stopped, match=f"made {code}.*resumable"):
            writer.close(1)
    assert names(tmp_path) == [], "the temporary file is removed"
    writer.close(1)
    assert read(tmp_path, "clients").num_rows == 3, "nothing was lost in memory"


def test_other_errors_are_not_called_lost_storage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.EMFILE, "too many open files")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="too many"), storage.run_storage(tmp_path):
        storage.write_atomic(tmp_path / "a", b"x")


# --- storage --------------------------------------------------------------------------------------------------------


def test_a_file_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "a.bin"
    storage.write_atomic(path, b"old")
    with pytest.raises(RuntimeError), storage.atomic(path) as sink:
        sink.write(b"ne")
        raise RuntimeError
    assert path.read_bytes() == b"old" and [p.name for p in tmp_path.iterdir()] == ["a.bin"]
    with storage.atomic(path) as sink:
        sink.write(b"ne")
        sink.write(b"w")
        assert path.read_bytes() == b"old"
    assert path.read_bytes() == b"new" and sink.bytes == 3 and sink.sha256 == storage.sha256(path)


def test_json_comes_back(tmp_path: Path) -> None:
    value = {"a": [1, 0.1, None, True], "ü": {"x": 1e-300}}
    storage.write_json(tmp_path / "a.json", value)
    assert storage.read_json(tmp_path / "a.json") == value
    with pytest.raises(ValueError):
        storage.write_json(tmp_path / "a.json", {"a": math.nan})
    assert storage.read_json(tmp_path / "a.json") == value


@pytest.mark.parametrize("text", ["", "{", "[1]", "\x80"])
def test_damaged_json_is_named(tmp_path: Path, text: str) -> None:
    path = tmp_path / "meta.json"
    path.write_bytes(text.encode("latin1"))
    with pytest.raises(BadInput, match=r"meta\.json is damaged"):
        storage.read_json(path)
    with pytest.raises(BadInput, match=r"other\.json is missing"):
        storage.read_json(tmp_path / "other.json")
    with pytest.raises(BadInput, match="cannot be read"):
        storage.read_json(tmp_path)


# --- the digest -----------------------------------------------------------------------------------------------------


FIRST = pa.schema([TABLES["clients"].field(name) for name in ("round", "client", "weight", "train_loss")])
"""The table of clients as it was at first: what is added later must not change what a digest is."""


def table(**changes: list[Any]) -> pa.Table:
    columns = {"round": [0, 0, 1], "client": [4, 7, 4], "weight": [1.0, 0.0, 2.0], "train_loss": [0.5, None, 0.25]}
    return pa.table({**columns, **changes}, schema=FIRST)


def test_the_digest_is_that_of_the_first_release() -> None:
    """A change of this constant makes every older run incomparable: give the digest a new name first."""
    tensors = {"w": torch.tensor([[1.0, -2.0]]), "n": torch.tensor(3)}
    assert digest({"clients": table()}, tensors) == "7d0e4066fef6a77f4adc375093995d0166e220d03ba4de35b66e2330858cd5f8"


def test_the_digest_does_not_see_the_files(tmp_path: Path) -> None:
    whole = table()
    expected = digest({"clients": whole}, {})
    cut = pa.concat_tables([whole.slice(0, 1), whole.slice(0, 0), whole.slice(1, 2)])
    assert digest({"clients": cut}, {}) == expected
    assert digest({"clients": whole.take([2, 0, 1]).take([1, 2, 0])}, {}) == expected
    pq.write_table(whole, tmp_path / "a.parquet", compression="gzip", row_group_size=1, use_dictionary=False)
    assert digest({"clients": pq.read_table(tmp_path / "a.parquet")}, {}) == expected


def test_the_digest_does_not_depend_on_how_it_streams(monkeypatch: pytest.MonkeyPatch) -> None:
    m = 1000
    long = pa.table(
        {"round": range(m), "client": range(m), "weight": np.ones(m), "train_loss": [None, 1.0] * (m // 2)},
        schema=FIRST,
    )
    expected = digest({"clients": long}, {})
    monkeypatch.setattr(tables, "_DIGEST_ROWS", 7)
    assert digest({"clients": long}, {}) == expected


@pytest.mark.parametrize(
    "other",
    [
        table(weight=[1.0, -0.0, 2.0]),
        table(weight=[1.0, 5e-324, 2.0]),
        table(train_loss=[0.5, math.nan, 0.25]),
        table(train_loss=[0.5, 0.0, 0.25]),
        table(train_loss=[0.5, 0.25, None]),
        table(client=[7, 4, 4]),
        table().slice(0, 2),
        table().rename_columns(["round", "client", "weight", "loss"]),
        table().select(["round", "client", "weight"]),
        table().take([1, 0, 2]),
    ],
)
def test_the_digest_sees_every_bit(other: pa.Table) -> None:
    assert digest({"clients": other}, {}) != digest({"clients": table()}, {})


def test_all_nans_are_one_in_a_table() -> None:
    odd = np.array([0.5, 0, 0.25])
    odd.view(np.uint64)[1] = 0xFFF8_0000_0000_0123
    plain = table(train_loss=[0.5, math.nan, 0.25])
    payload = plain.set_column(3, FIRST.field(3), pa.array(odd))
    assert np.isnan(odd[1]) and digest({"clients": payload}, {}) == digest({"clients": plain}, {})


def test_what_lies_under_a_null_does_not_count() -> None:
    validity = pa.array([True, False, True]).buffers()[1]
    hidden = pa.Array.from_buffers(pa.float64(), 3, [validity, pa.py_buffer(np.array([0.5, 99.0, 0.25]))])
    assert hidden.to_pylist() == [0.5, None, 0.25]
    under = table().set_column(3, FIRST.field(3), hidden)
    assert digest({"clients": under}, {}) == digest({"clients": table()}, {})


def test_the_digest_sees_tensors_by_name_dtype_shape_and_bits() -> None:
    x = torch.tensor([[1.0, 2.0, 0.0], [3.0, 4.0, 5.0]])
    expected = digest({}, {"x": x, "n": torch.tensor(1)})
    assert digest({}, {"n": np.array(1), "x": x.numpy()}) == expected
    assert digest({}, {"n": torch.tensor(1), "x": x.t().contiguous().t()}) == expected
    assert digest({}, {"n": np.array(1, ">i8"), "x": x.numpy().astype(">f4")}) == expected
    negative = x.clone()
    negative[0, 2] = -0.0
    others = [{"y": x}, {"x": x.double()}, {"x": x.reshape(3, 2)}, {"x": x.reshape(-1)}, {"x": negative}]
    found = {expected} | {digest({}, {"n": torch.tensor(1), **other}) for other in others}
    found |= {digest({}, {"x": x}), digest({}, {"x": x, "n": torch.tensor([1])}), digest({}, {})}
    assert len(found) == 1 + len(others) + 3
    assert all(len(d) == 64 and d == d.lower() for d in found)


def test_the_digest_takes_the_dtypes_of_models() -> None:
    kinds = [torch.bfloat16, torch.float16, torch.float64, torch.bool, torch.uint8, torch.int16, torch.complex64]
    found = {digest({}, {"x": torch.ones(4, dtype=kind)}) for kind in kinds}
    assert len(found) == len(kinds)
    a, b = torch.tensor([1.0, 2.0]).bfloat16(), torch.tensor([1.0, 2.0]).bfloat16()
    assert digest({}, {"x": a}) == digest({}, {"x": b}) != digest({}, {"x": a * 2})
    assert digest({}, {"x": torch.empty(0, 3)}) != digest({}, {"x": torch.empty(3, 0)})


def test_only_bit_stable_tables_have_a_digest(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="seconds is not bit-stable"):
        digest({"seconds": read(tmp_path, "seconds")}, {})


def test_digest_of_texts_counts_where_they_end() -> None:
    def metrics(names: list[str], cut: int) -> pa.Table:
        rows = {
            "round": pa.array([1] * len(names), pa.int32()),
            "part": pa.array(["validation"] * len(names)),
            "metric": pa.array(names),
            "value": pa.array([0.5] * len(names)),
        }
        whole = pa.table(rows, schema=TABLES["metrics"])
        return pa.concat_tables([whole.slice(0, cut), whole.slice(cut)])

    one = digest({"metrics": metrics(["ab", "c", "dé"], 1)}, {})
    assert one == digest({"metrics": metrics(["ab", "c", "dé"], 2)}, {})
    assert one != digest({"metrics": metrics(["a", "bc", "dé"], 1)}, {})
