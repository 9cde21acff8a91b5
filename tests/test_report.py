"""Reports, from run folders made by hand."""

import json
import warnings
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from matplotlib.figure import Figure

from raygrad.errors import BadInput
from raygrad.files.tables import TABLES, TableWriter, folder
from raygrad.reports import curves, pictures, report, turnout
from raygrad.reports import page as pages
from raygrad.rng import Purpose, rng

CLASSES = 3


def put(run: Path, name: str, **columns: Any) -> None:
    """Write a table; a column that may be null and is not given is as in the files of old."""
    count = len(columns["round"])
    later = {f.name: [None] * count for f in TABLES[name] if f.nullable and f.name not in columns}
    writer = TableWriter(folder(run, name), TABLES[name], 0)
    writer.append({**later, **columns})
    writer.flush(force=True)


def record(path: Path, **values: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"schema_version": 1, **values}))


def experiment(run: Path, seed: int = 0, rounds: int = 6, mode: str = "validation", **algorithm: object) -> None:
    """The run's experiment.json; the algorithm is FedGA unless `algorithm` says otherwise."""
    policy = algorithm.pop("stragglers", "wait")
    settings = {
        "stragglers": {"kind": policy},
        "data": {"kind": "digits"},
        "partition": {"kind": "labels", "clients": 3, "labels": 1},
        "algorithm": algorithm or {"kind": "fedga", "lr": 0.1, "beta": 0.05},
        "local": {"steps": 5, "clip_norm": None},
        "rounds": rounds,
        "seed": seed,
        "metrics": ["accuracy"],
        "evaluation": {"mode": mode, "every": 2},
    }
    record(
        run / "experiment.json",
        name=run.parent.name,
        id=run.name,
        hash=report.experiment_hash(settings),
        experiment=settings,
    )


def make(
    run: Path,
    accuracy: list[float | None],
    phases: int = 2,
    mode: str = "validation",
    second: float = 1.0,
    virtual: float = 0.0,
    loss: list[float | None] | None = None,
    **more: Any,
) -> Path:
    """A run with 2 of 3 clients a round. A communication moves 20 bytes down and 10 up, a round takes `second`, and
    `virtual` seconds on the modelled clock.

    The loss is 1 - accuracy unless it is given.
    """
    rounds = len(accuracy)
    index = np.arange(1, rounds + 1)
    experiment(run, rounds=more.pop("planned", rounds), mode=mode, **more)
    record(run / "where.json", on="ray", hosts=2)
    losses = loss or [None if a is None else 1 - a for a in accuracy]
    nothing = [None] * rounds
    paper = mode == "paper"
    put(
        run,
        "rounds",
        round=index,
        clients_asked=np.full(rounds, 2),
        clients_answered=np.full(rounds, 2),
        lr_factor=np.ones(rounds),
        train_loss=np.linspace(1, 0.5, rounds),
        communications=np.full(rounds, phases),
        bytes_down=np.full(rounds, 20 * phases),
        bytes_up=np.full(rounds, 10 * phases),
        virtual_s=virtual * index,
        validation_accuracy=nothing if paper else accuracy,
        validation_loss=nothing if paper else losses,
        test_accuracy=accuracy if paper else nothing,
        test_loss=losses if paper else nothing,
    )
    put(run, "seconds", round=index, wall_s=np.full(rounds, second), elapsed_s=index * second, process=0 * index)
    clients = np.stack([index % 3, (index + 1) % 3], 1)
    put(
        run,
        "clients",
        round=np.repeat(index, 2),
        client=clients.ravel(),
        weight=np.ones(2 * rounds),
        train_loss=np.ones(2 * rounds),
    )
    return run


LATER = ("r_gradient_norm", "client_gradient_norm", "pairwise_cosine", "drift", "client_accuracy", "worst_accuracy")
"""The columns of the table `probes` that runs of old lack."""


def fates(run: Path, rounds: list[dict[str, int]], *rows: tuple[int, int, str, float, int]) -> None:
    """What became of clients: the counts of each round, and rows (round, client, outcome, seconds, staleness)."""
    import pyarrow.parquet as pq

    for part in folder(run, "rounds").glob("*.parquet"):
        table = pq.read_table(part)
        for name in ("asked", "answered", "late", "left", "failed", "rejected"):
            column = f"clients_{name}"
            at, values = table.schema.get_field_index(column), [r.get(name, 0) for r in rounds]
            table = table.set_column(at, TABLES["rounds"].field(column), [pa.array(values, pa.int32())])
        pq.write_table(table, part)
    columns = list(zip(*rows, strict=True))
    put(
        run, "clients", round=columns[0], client=columns[1], weight=[1.0] * len(rows), outcome=columns[2],
        virtual_s=columns[3], staleness=columns[4],
    )  # fmt: skip


def probe(run: Path, rounds: list[int], r: list[float], **later: list[float | None]) -> None:
    n = len(rounds)
    put(
        run,
        "probes",
        round=rounds,
        clients=[3] * n,
        r=r,
        gradient_norm=[1.0] * n,
        diversity=[1 + 2 * x for x in r],
        cosine=[0.5] * n,
        **{name: later.get(name, [None] * n) for name in LATER},
    )


def measure(run: Path, part: str, rounds: list[int], **values: list[float]) -> None:
    """Rows of the table `metrics`."""
    n, names = len(rounds), sorted(values)
    put(
        run,
        "metrics",
        round=np.repeat(rounds, len(names)),
        part=[part] * n * len(names),
        metric=names * n,
        value=[values[name][i] for i in range(n) for name in names],
    )


def split(run: Path, counts: list[list[int]] | None, examples: list[int]) -> None:
    """Clients with `examples` to train on, `counts` of each class, and one more for validation."""
    n = len(examples)
    rows = counts if counts is not None else [None] * n
    put(
        run,
        "partition",
        round=[0] * n,
        client=list(range(n)),
        examples=examples,
        validation_examples=[1] * n,
        label_counts=rows,
    )


@pytest.fixture
def whole(tmp_path: Path) -> Path:
    """A finished FedGA run with everything that a run may leave."""
    run = make(tmp_path / "digits" / "one", [None, 0.5, None, 0.9, None, 0.8])
    probe(
        run, [2, 4, 6], [0.5, 0.1, 0.02], r_gradient_norm=[3.0, 2.0, 1.0], client_gradient_norm=[1.0] * 3,
        pairwise_cosine=[-0.25, None, 0.75], drift=[0.125, float("inf"), 0.25], client_accuracy=[0.3, 0.6, 0.9],
        worst_accuracy=[0.1, 0.2, 0.7],
    )  # fmt: skip
    split(run, [[10, 0, 0], [0, 10, 0], [5, 5, 10]], [10, 10, 20])
    put(
        run,
        "operations",
        round=[1, 1, 2],
        phase=[0, 0, 0],
        work=["gradient"] * 3,
        gang=[0, 0, 0],
        host=["a", "b", "b"],
        attempt=[1, 2, 1],
        clients=[2, 2, 2],
        start_s=[0.0, 1.0, 2.0],
        wall_s=[1.0] * 3,
        bytes_down=[1] * 3,
        bytes_up=[1] * 3,
        outcome=["lost: ActorDiedError", "answered", "answered"],
    )
    record(run / "data.json", classes=CLASSES, class_names=["<a>", "b", "c"], clients=3, test_examples=36)
    record(run / "numerics.json", torch="2.9")
    record(run / "final.json", round=6, examples=36, loss=0.3, metrics={"accuracy": 0.75})
    return run


def image_of(figure: Figure, axes: int) -> np.ndarray:
    values = figure.axes[axes].images[0].get_array()
    assert values is not None
    return np.ma.filled(values, 0.0)


class Page(HTMLParser):
    """Checks that tags close in order, and collects ids, tags and addresses."""

    VOID = frozenset({"meta", "br", "link", "img"})

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.open: list[str] = []
        self.ids: list[str] = []
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.pictures: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_startendtag(tag, attrs)
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        given = dict(attrs)
        self.ids += [v for k, v in attrs if k == "id" and v]
        self.addresses += [v for k, v in attrs if k in ("src", "href", "xlink:href", "action") and v]
        if given.get("role") == "img":
            self.pictures.append(given.get("aria-label") or "")

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def page(runs: list[Path], out: Path, target: float | None = None) -> Page:
    with warnings.catch_warnings():
        warnings.simplefilter("error", RuntimeWarning)
        return Page(pages.write_report(runs, out, target).read_text())


# --- one run


def test_a_view_is_cumulative(whole: Path) -> None:
    v = report.view(whole)
    assert v.communications.tolist() == [2, 4, 6, 8, 10, 12]
    assert v.bytes_down.tolist() == [40, 80, 120, 160, 200, 240]
    assert v.bytes_up[-1] == 120
    assert v.seconds.tolist() == [1, 2, 3, 4, 5, 6]
    assert np.isnan(v.validation_accuracy[0]) and v.validation_accuracy[3] == 0.9
    assert v.finished and v.title == "digits/one" and v.class_names == ("<a>", "b", "c")
    assert v.settings["algorithm.beta"] == 0.05 and v.settings["metrics"] == "accuracy"


def test_a_repeated_round_counts_with_its_last_time(tmp_path: Path) -> None:
    run = make(tmp_path / "digits" / "r", [None, 0.5])
    put(run, "seconds", round=[1, 2, 2], wall_s=[1.0] * 3, elapsed_s=[1.0, 2.0, 7.5], process=[0, 0, 1])
    assert report.view(run).seconds.tolist() == [1.0, 7.5]


def test_summary(whole: Path) -> None:
    rows = dict(report.summary(whole))
    assert rows["algorithm"] == "fedga (lr 0.1, beta 0.05)"
    assert rows["data"] == "digits; labels (clients 3, labels 1)"
    assert rows["rounds"] == "6"
    assert rows["communications"] == "12"
    assert rows["bytes down / up"] == "240 B / 120 B"
    assert rows["wall time"] == "6 s, 1 rounds/s"
    assert rows["validation accuracy"] == "0.8000 final (round 6), 0.9000 best (round 4)"
    assert rows["validation loss"] == "0.2000 final (round 6), 0.1000 best (round 4)"
    assert rows["examples"] == "40 training, 3 validation, 36 test"
    assert rows["test accuracy"] == "0.7500 final (round 6, 36 examples)"
    assert rows["test loss"] == "0.3000 final (round 6, 36 examples)"
    assert rows["r(x)"] == "0.5 (round 2) → 0.02 (round 6), n = 3 clients"
    assert rows["gradient diversity n·Δ"].startswith("2 (round 2) → 1.04")
    assert rows["‖∇r(x)‖"] == "3 (round 2) → 1 (round 6), n = 3 clients"
    assert rows["mean cosine between clients' gradients"].startswith("-0.25 (round 2) → 0.75 (round 6)")
    assert rows["client drift"].startswith("0.125 (round 2) → 0.25")
    assert rows["accuracy per client"].startswith("0.3 (round 2) → 0.9")
    assert rows["accuracy of the worst tenth of clients"].startswith("0.1 (round 2) → 0.7")
    assert rows["net alignment against GD"] == (
        "+0.075 ∇r(x) a round at α = 0.1, K = 5: positive: FedAvg's own drift outweighs the displacement"
    )
    assert rows["β that aligns as much"] == "0.2 as SCAFFOLD, 0.25 as sequential SGD; here 0.05"
    assert rows["clients"] == "12 asked, 12 answered"
    assert rows["gangs"] == "3 attempts, 1 repeated, 1 lost"


def test_the_last_measurement_may_stand_in_final_json(tmp_path: Path) -> None:
    run = make(tmp_path / "digits" / "a", [None, 0.5, None])
    record(run / "final.json", round=3, validation={"accuracy": 0.7, "loss": 0.25, "examples": 10})
    rows = dict(report.summary(run))
    assert rows["validation accuracy"] == "0.7000 final (round 3), 0.7000 best (round 3)"
    assert report.view(run).validation_accuracy[1:].tolist() == [0.5, 0.7]  # the curve has it, too
    assert rows["validation loss"].startswith("0.2500 final (round 3)")
    assert "test accuracy" not in rows and "test loss" not in rows
    record(run / "final.json", round=1, validation={"accuracy": 0.7})  # of before the run was extended
    assert dict(report.summary(run))["validation accuracy"].startswith("0.5000 final (round 2)")


def test_an_unfinished_run_and_one_without_tables(tmp_path: Path) -> None:
    going = make(tmp_path / "digits" / "going", [None, 0.5], planned=50)
    fresh = tmp_path / "digits" / "fresh"
    experiment(fresh, rounds=50)
    rows = dict(report.summary(going))
    assert rows["rounds"] == "2 of 50 (unfinished)"
    assert "test loss" not in rows and "r(x)" not in rows and "gangs" not in rows
    assert dict(report.summary(fresh))["rounds"] == "0 of 50 (unfinished)"
    assert "No round is finished yet" in page([fresh], tmp_path / "fresh.html").text
    assert len(page([going], tmp_path / "going.html").pictures) == 2  # learning, participation
    page([going, fresh], tmp_path / "both.html")


def test_the_users_own_metrics_are_in_the_summary(tmp_path: Path) -> None:
    run = make(tmp_path / "digits" / "a", [None, 0.5, None, 0.6, None])
    one = {"accuracy": [0.5, 0.6], "loss": [0.5, 0.4], "examples": [10.0, 10.0]}
    measure(run, "validation", [2, 4], **one, top5=[0.7, 0.8], square=[2e-7, 1e-7])
    rows = dict(report.summary(run))
    assert rows["validation top5"] == "0.8000 final (round 4)"
    assert rows["validation square"] == "1e-07 final (round 4)"
    assert not any("examples" in label for label in rows)
    own = {"top5": 0.75, "a.b": 0.5, "accuracy": 0.55}
    validation = {"accuracy": 0.6, "loss": 0.4, "examples": 10, "top5": 0.9}
    record(run / "final.json", round=5, examples=1234, loss=0.3, metrics=own, validation=validation)
    rows = report.summary(run)
    assert dict(rows)["validation top5"] == "0.9000 final (round 5)"
    assert dict(rows)["test a.b"] == "0.5000 final (round 5, 1,234 examples)"
    measured = [label for label, _ in rows if label.startswith(("validation", "test"))]
    wanted = ["accuracy", "loss", "square", "top5"]
    assert measured == [
        *(f"validation {m}" for m in wanted),
        *(f"test {m}" for m in ("accuracy", "loss", "a.b", "top5")),
    ]


def test_a_run_without_accuracy_shows_its_loss(tmp_path: Path) -> None:
    run = make(tmp_path / "quadratic" / "a", [None] * 4, loss=[None, 3.0, None, 2.0])
    record(run / "final.json", round=4, examples=36, loss=2.5, metrics={}, validation={"loss": 2.0, "examples": 3})
    rows = dict(report.summary(run))
    assert rows["validation loss"] == "2.0000 final (round 4), 2.0000 best (round 4)"
    assert rows["test loss"] == "2.5000 final (round 4, 36 examples)"
    assert not any("accuracy" in label for label in rows)
    shown = page([run], tmp_path / "out.html")
    assert "training" in shown.text and "validation accuracy" not in shown.text and "nothing measured" not in shown.text
    assert "Validation loss: from 3.0000 to 2.0000 in 8 communications; the best is 2.0000" in shown.text
    other = make(tmp_path / "quadratic" / "b", [None] * 4, seed=1, loss=[None, 3.0, None, 1.0])
    header, table = report.comparison([run, other])
    assert header == ["group", "seeds", "final validation loss", "best validation loss", "final test loss"]
    assert table == [["quadratic", "2", "1.5000 ± 0.7071", "1.5000 ± 0.7071", "2.5000"]]
    both = page([run, other], tmp_path / "out.html").text
    assert (
        "2 runs, 1 group" in both
        and " Loss group seeds" in both
        and "nothing measured" not in both
        and "validation accuracy" not in both
    )


def test_a_run_that_measured_nothing_has_no_empty_axes(tmp_path: Path) -> None:
    runs = [make(tmp_path / "d" / f"{s}", [None, None], seed=s) for s in range(2)]
    shown = page(runs, tmp_path / "out.html")
    assert "Nothing is measured yet." in shown.text and shown.pictures == []
    assert report.comparison(runs)[1] == [["d", "2", "–", "–", "–"]]


def test_bad_run_folders(tmp_path: Path, whole: Path) -> None:
    with pytest.raises(BadInput, match=r"no run folder: it has no experiment\.json"):
        report.view(tmp_path / "nothing")
    with pytest.raises(BadInput, match="at least one run"):
        pages.write_report([], tmp_path / "out.html")
    part = next(folder(whole, "rounds").glob("*.parquet"))
    kept = part.read_bytes()
    part.write_bytes(kept[: len(kept) // 2])
    with pytest.raises(BadInput, match=part.name):
        report.view(whole)
    part.write_bytes(kept)
    record(whole / "final.json", schema_version=2)
    with pytest.raises(BadInput, match=r"final\.json has schema_version 2"):
        report.view(whole)
    (whole / "final.json").write_text("{")
    with pytest.raises(BadInput, match=r"final\.json is damaged"):
        report.view(whole)
    (whole / "experiment.json").write_text('{"schema_version": 1, "experiment": []}')
    with pytest.raises(BadInput, match=r"experiment\.json is damaged"):
        report.view(whole)


def test_clients_with_unequal_label_counts_are_bad_input(tmp_path: Path) -> None:
    run = make(tmp_path / "digits" / "a", [0.5])
    split(run, [[1, 2], [3]], [3, 3])
    with pytest.raises(BadInput, match="label counts"):
        pages.write_report([run], tmp_path / "out.html")


def test_the_page_of_one_run(whole: Path, tmp_path: Path) -> None:
    shown = page([whole], tmp_path / "out.html")
    assert {"learning", "alignment", "alignment-cost", "participation", "hosts", "partition"} <= set(shown.ids)
    assert len(shown.ids) == len(set(shown.ids))
    assert len(shown.pictures) == 6 and all(len(words) > 40 for words in shown.pictures)
    for text in (
        "communications",
        "wall seconds",
        "r(x)",
        "gradient diversity n·Δ (n = 3)",
        "‖∇r(x)‖",
        "mean cosine of client gradients",
        "client drift",
        "accuracy per client",
        "all clients",
        "between two clients",
        "worst tenth of the clients",
        "accuracy per client 0.3 to 0.9",
        "c = −αK(β − α(K−1)/2) = +0.075 at α = 0.1, K = 5; positive: FedAvg's own drift",
        "β = α(K−1)/2 = 0.2 would align as much as SCAFFOLD (c = 0), β = αK/2 = 0.25 as much as sequential SGD",
        "who took part",
        "classes of each client",
        "raygrad run experiment.json",
        "raygrad resume digits/one",
        "raygrad digest digits/one",
        "2106.13897",
        "algorithm.beta",
    ):
        assert text in shown.text, text
    assert "<a>" in shown.text  # a class name, as text and not as a tag


def test_runs_of_old_show_what_they_measured(tmp_path: Path) -> None:
    """Their tables lack columns, and are read as nothing measured."""
    import pyarrow.parquet as pq

    runs = [make(tmp_path / "digits" / f"{i}", [None, 0.5, None, 0.9], seed=i) for i in range(2)]
    for run in runs:
        probe(run, [2, 4], [0.5, 0.1])
    probe(runs[1], [2, 4], [0.5, 0.1], drift=[0.5, 0.25])
    (part,) = folder(runs[0], "probes").glob("*.parquet")
    pq.write_table(pq.read_table(part).drop_columns(list(LATER)), part)
    rows = dict(report.summary(runs[0]))
    assert {"r(x)", "gradient diversity n·Δ", "mean cosine to the mean gradient"} <= set(rows)
    assert not {"client drift", "‖∇r(x)‖", "accuracy per client"} & set(rows)
    shown = page([runs[0]], tmp_path / "a.html").text
    assert "r(x)" in shown and "drift:" not in shown and "between two clients" not in shown
    assert "client drift" in page(runs, tmp_path / "b.html").text


def test_a_measure_that_is_missing_at_the_ends_starts_later(tmp_path: Path) -> None:
    run = make(tmp_path / "digits" / "a", [None] * 6)
    probe(run, [2, 4, 6], [0.5, 0.1, 0.1], drift=[None, 0.5, None], pairwise_cosine=[0.1, 0.2, None])
    rows = dict(report.summary(run))
    assert rows["client drift"] == "0.5 (round 4), n = 3 clients"
    assert rows["mean cosine between clients' gradients"] == "0.1 (round 2) → 0.2 (round 4), n = 3 clients"


def test_the_net_coefficient() -> None:
    """FedGA's round minus K steps of gradient descent is that multiple of grad r, up to third order."""
    assert report.net_coefficient(0.1, 10, 0.45) == pytest.approx(0, abs=1e-17)
    assert report.net_coefficient(0.1, 10, 0.5) == pytest.approx(-10 * 0.1**2 / 2)  # sequential SGD's
    assert report.net_coefficient(0.1, 10, 0.05) == pytest.approx(8 * 10 * 0.1**2 / 2)  # beta = alpha/2: 8 to its -1
    assert report.net_coefficient(0.1, 10) == pytest.approx(0.1**2 * 10 * 9 / 2)  # FedAvg
    assert report.net_coefficient(0.1, 1, 0.05) == pytest.approx(-0.1 * 0.05)  # GradAlign
    assert report.matching_betas(0.1, 10) == pytest.approx((0.45, 0.5))

    draw = rng(0, Purpose.SYNTHETIC)
    roots, minima = draw.normal(size=(4, 3, 3)), draw.normal(size=(4, 3))
    hessians = roots @ roots.transpose(0, 2, 1) / 3
    x = draw.normal(size=3)

    def gradients(y: np.ndarray) -> np.ndarray:
        """Of the four quadratics at their own points [4, 3]."""
        return np.einsum("nij,nj->ni", hessians, y - minima)

    g = gradients(np.tile(x, (4, 1)))
    r_gradient = np.einsum("nij,nj->ni", hessians, g - g.mean(0)).mean(0)
    for steps, ratio in ((1, 0.5), (4, 0.5), (4, 3.0), (4, 0.0)):
        left = []
        for alpha in (2.0**-8, 2.0**-9, 2.0**-10):
            beta = ratio * alpha
            start = x - beta * (g.mean(0) - g)
            y, descent = start.copy(), x.copy()
            for _ in range(steps):
                y = y - alpha * gradients(y)
                descent = descent - alpha * gradients(np.tile(descent, (4, 1))).mean(0)
            net = report.net_coefficient(alpha, steps, beta)
            left.append(np.linalg.norm((x + (y - start).mean(0)) - descent - net * r_gradient))
            assert left[-1] < 0.1 * np.linalg.norm(net * r_gradient)
        if left[-1] > 1e-15:  # one step on quadratics leaves nothing
            assert np.log2(np.array(left[:-1]) / left[1:]) == pytest.approx(3, abs=0.15)


@pytest.mark.parametrize(
    ("algorithm", "net", "says"),
    [
        ({"kind": "fedga", "lr": 0.1, "beta": 0.5}, -0.15, "negative: aligns the clients more"),
        ({"kind": "fedga", "lr": 0.1, "beta": 0.2}, 0.0, "aligned as much as by K steps"),
        ({"kind": "fedga", "lr": 0.1, "beta": 0.0}, 0.1, "positive: FedAvg's own drift raises r(x)"),
        ({"kind": "mine:FedGA", "lr": 0.1, "beta": 0.5, "server_lr": 0.5}, -0.075, "negative"),
        ({"kind": "gradalign", "lr": 0.1, "beta": 0.5}, -0.05, "negative"),
        ({"kind": "fedavg", "lr": 0.1}, 0.1, "positive: FedAvg's own drift raises r(x)"),
        ({"kind": "scaffold-fresh", "lr": 0.1}, 0.0, "aligned as much as by K steps"),
        ({"kind": "scaffold", "lr": 0.1}, None, ""),
        ({"kind": "mine:Other", "lr": 0.1, "beta": 0.5}, None, ""),
        ({"kind": "fedavg", "lr": 0.1, "stragglers": "buffered"}, None, ""),
        ({"kind": "fedavg", "lr": 0.1, "stragglers": "partial-work"}, None, ""),
    ],
)
def test_what_theory_says_of_a_run(tmp_path: Path, algorithm: dict[str, object], net: float | None, says: str) -> None:
    """K is 5, but 1 for GradAlign."""
    run = make(tmp_path / "d" / "a", [0.5], **algorithm)
    found, rows = report.net_alignment(report.view(run)), dict(report.summary(run))
    shown = page([run], tmp_path / "o.html").text
    if net is None:
        assert found is None and "net alignment against GD" not in rows and "gradient descent" not in shown
        return
    assert found is not None and found.coefficient == pytest.approx(net, abs=1e-17)
    assert says in rows["net alignment against GD"] and says in shown
    assert ("β that aligns as much" in rows) == ("beta" in algorithm)
    assert ("server_lr = 0.5" in found.at) == ("server_lr" in algorithm)
    assert found.steps == (1 if algorithm["kind"] == "gradalign" else 5)


def test_epochs_give_the_mean_number_of_steps(tmp_path: Path) -> None:
    """As many as the clients really take."""
    from raygrad.local import Local

    examples = [10, 11, 25, 3, 40]
    for i, (epochs, size) in enumerate([(1, 10), (2.5, 4), (0.1, 10), (3, "full"), (0.3, 1)]):
        run = make(tmp_path / "d" / f"{i}", [0.5])
        record_of = json.loads((run / "experiment.json").read_text())["experiment"]
        settings = {**record_of, "local": {"steps": None, "epochs": epochs, "batch_size": size}}
        settings["schedule"] = {"kind": "cosine"}
        record(run / "experiment.json", hash=report.experiment_hash(settings), experiment=settings)
        split(run, None, examples)
        steps = [Local(None, epochs, size).steps_for(n) for n in examples]  # pyright: ignore[reportArgumentType]
        net = report.net_alignment(report.view(run))
        assert net is not None and net.steps == np.mean(steps)
        assert net.coefficient == pytest.approx(report.net_coefficient(0.1, net.steps, 0.05))
        assert ("on average" in net.at) == (net.steps != int(net.steps))
        assert net.at.endswith("before the schedule")


def test_the_page_needs_nothing_from_outside(whole: Path, tmp_path: Path) -> None:
    out = pages.write_report([whole], tmp_path / "out.html")
    text = out.read_text()
    shown = Page(text)
    assert "script" not in shown.tags and "link" not in shown.tags and "metadata" not in shown.tags
    assert all(a.startswith(("#", "data:image/png;base64,")) for a in shown.addresses)
    assert "@import" not in text and "url(http" not in text
    ids = set(shown.ids)
    assert all(a[1:] in ids for a in shown.addresses if a.startswith("#"))


def test_the_same_run_gives_the_same_bytes(whole: Path, tmp_path: Path) -> None:
    import matplotlib

    first = pages.write_report([whole], tmp_path / "a.html").read_bytes()
    with matplotlib.rc_context({"lines.linewidth": 9, "svg.hashsalt": "other", "axes.facecolor": "red"}):
        assert pages.write_report([whole], tmp_path / "b.html").read_bytes() == first
        assert matplotlib.rcParams["lines.linewidth"] == 9  # the caller's settings stay


def test_a_folder_takes_report_html(whole: Path) -> None:
    assert pages.write_report([whole], whole) == whole / "report.html"
    assert dict(report.summary(whole))["rounds"] == "6"  # a report changes nothing that a report reads


def test_the_papers_protocol_is_labelled(tmp_path: Path) -> None:
    run = make(tmp_path / "emnist" / "p", [0.5, 0.9, 0.8], mode="paper")
    record(run / "final.json", round=3, examples=36, loss=0.2, metrics={"accuracy": 0.8}, best={"round": 2})
    label = "paper's protocol: best over the run, no validation set"
    assert dict(report.summary(run))["test accuracy"] == f"0.8000 final (round 3), 0.9000 best (round 2); {label}"
    assert not any(name.startswith("validation") for name in dict(report.summary(run)))
    assert f"Test accuracy ({label})" in page([run], tmp_path / "out.html").text
    late = make(tmp_path / "emnist" / "late", [0.5, None], mode="paper")
    record(late / "final.json", round=2, examples=36, loss=0.1, metrics={"accuracy": 0.9})
    assert dict(report.summary(late))["test accuracy"].startswith("0.9000 final (round 2), 0.9000 best (round 2)")
    header, rows = report.comparison([run], 0.85)
    assert header[-2:] == ["final test accuracy", "best test accuracy"]
    assert rows[0][-2:] == ["0.8000", "0.9000"]
    assert rows[0][2:4] == ["2", "4"]


# --- several runs


def test_seeds_make_one_group_and_settings_another(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    runs = [make(root / f"ga{s}", [0.5], seed=s) for s in range(3)]
    runs.append(make(root / "avg0", [0.4], seed=0, kind="fedavg", lr=0.1))
    groups = report.group([report.view(r) for r in runs])
    assert [(g.label, len(g.runs)) for g in groups] == [("fedga", 3), ("fedavg", 1)]
    assert groups[0].fields == {"algorithm.kind": "fedga", "algorithm.beta": 0.05}
    runs.append(make(root / "gb0", [0.4], kind="fedga", lr=0.1, beta=0.2))
    assert [g.label for g in report.group([report.view(r) for r in runs])] == [
        "fedga, beta=0.05",
        "fedavg",
        "fedga, beta=0.2",
    ]


def test_groups_that_differ_in_much_are_called_by_their_runs(tmp_path: Path) -> None:
    many = {f"a_setting_{i}": 1 for i in range(9)}
    a = [make(tmp_path / "one" / f"a{s}", [0.5], seed=s, **many) for s in range(2)]
    b = make(tmp_path / "other" / "b", [0.5], **dict.fromkeys(many, 2))
    assert [g.label for g in report.group([report.view(r) for r in (*a, b)])] == ["one", "other"]
    c = make(tmp_path / "one" / "c", [0.5], **dict.fromkeys(many, 3))  # two groups have runs of this name
    labels = [g.label for g in report.group([report.view(r) for r in (*a, b, c)])]
    assert len({*labels}) == 3 and all("a_setting_0=" in label for label in labels)


def test_a_repeated_seed_is_no_new_evidence(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    short = make(root / "short", [0.5], planned=3)
    long = make(root / "long", [0.5, 0.6, 0.7])
    again = make(root / "again", [0.5, 0.6, 0.7])
    (only,) = report.group([report.view(r) for r in (short, long, again)])
    assert [v.id for v in only.runs] == ["long"]
    assert page([short, long, again], tmp_path / "o.html").text.count("not counted: repeats a seed") == 2


def test_a_part_with_two_settings_of_the_same_name_keeps_its_full_name(tmp_path: Path) -> None:
    a = make(tmp_path / "d" / "a", [0.5], kind="server", lr=1.0, inner={"kind": "fedavg", "lr": 0.1})
    b = make(tmp_path / "d" / "b", [0.5], kind="server", lr=0.5, inner={"kind": "fedavg", "lr": 0.2})
    labels = [g.label for g in report.group([report.view(a), report.view(b)])]
    assert labels == ["algorithm.lr=1, algorithm.inner.lr=0.1", "algorithm.lr=0.5, algorithm.inner.lr=0.2"]
    assert dict(report.summary(a))["algorithm"] == "server (lr 1, inner.kind fedavg, inner.lr 0.1)"


def test_the_cost_of_a_target(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    runs = [
        make(root / "ga0", [None, 0.5, None, 0.9], seed=0),
        make(root / "ga1", [None, 0.8, None, 0.95], seed=1),
        make(root / "avg0", [0.2, 0.3, 0.4, 0.6], phases=1, kind="fedavg", lr=0.1),
        make(root / "avg1", [0.2, 0.81, 0.4, 0.6], phases=1, seed=1, kind="fedavg", lr=0.1),
    ]
    header, rows = report.comparison(runs, 0.8)
    assert header[:6] == ["group", "seeds", "rounds to 0.8", "communications to 0.8", "MB to 0.8", "seconds to 0.8"]
    (ga, avg) = rows
    # FedGA: rounds 4 and 2, communications 8 and 4, seconds 4 and 2; sample standard deviations sqrt(2), 2 sqrt(2).
    assert ga[:4] == ["fedga", "2", "3.00 ± 1.41", "6.00 ± 2.83"]
    assert ga[5:8] == ["3.00 ± 1.41", "0.9250 ± 0.0354", "0.9250 ± 0.0354"]
    assert avg[:4] == ["fedavg", "2", "2 (1 of 2 seeds)", "2 (1 of 2 seeds)"]
    assert report.comparison(runs, 0.99)[1][0][2] == "not reached"
    for bad in (0.0, 1.5, float("nan")):
        with pytest.raises(BadInput, match="target accuracy"):
            report.comparison(runs, bad)


def test_bytes_of_a_target_count_both_directions(tmp_path: Path) -> None:
    v = report.view(make(tmp_path / "d" / "a", [0.2, 0.9]))
    assert report.reach(v, 0.9) == report.Reached(rounds=2, communications=4, bytes=120, seconds=2.0)
    assert report.reach(v, 0.91) is None


# --- clients and modelled time


def test_the_summary_says_what_became_of_the_clients(tmp_path: Path) -> None:
    run = make(tmp_path / "d" / "a", [None, 0.5], virtual=90.0)
    record(run / "data.json", clients=6)
    fates(
        run,
        [{"asked": 6, "answered": 4, "late": 1, "left": 1}, {"asked": 6, "answered": 2, "failed": 3, "rejected": 1}],
        *[(1, c, o, 1.0, 0) for c, o in enumerate(["answered"] * 4 + ["late", "unavailable"])],
        *[
            (2, c, o, 1.0, 0)
            for c, o in enumerate(["answered", "damaged", "rejected", "killer", "damaged", "answered"])
        ],
    )
    rows = dict(report.summary(run))
    told = (
        "12 asked, 6 answered, 1 late, 1 left (1 not there when asked), "
        "3 failed (2 with a damaged shard, 1 that kill their hosts), 1 rejected (not finite)"
    )
    assert rows["clients"] == told and rows["virtual time"] == "180 s"
    assert "leans to fast clients" not in rows
    shown = page([run], tmp_path / "o.html").text
    assert f"Taking part is an answer that counts; {told}." in shown
    assert "5 of 6 clients took part; a client took part in 0 to 2 rounds, 1 on average." in shown


def test_gangs_that_did_not_answer_are_counted_by_what_became_of_them(whole: Path) -> None:
    outcomes = ["superseded", "hung: for 9 s", "lost behind one that hung: for 9 s", "lost for good: ActorDiedError"]
    n = len(outcomes)
    put(
        whole, "operations", round=[1] * n, phase=[0] * n, work=["local"] * n, gang=[*range(n)], host=["a"] * n,
        attempt=[1, 2, 2, 3], clients=[2] * n, start_s=[0.0] * n, wall_s=[1.0] * n, bytes_down=[1] * n,
        bytes_up=[1] * n, outcome=outcomes,
    )  # fmt: skip
    assert dict(report.summary(whole))["gangs"] == "4 attempts, 3 repeated, 1 hung, 2 lost, 1 superseded"


def test_runs_of_old_count_clients_as_they_did(tmp_path: Path) -> None:
    """Their tables lack the columns of outcomes, as files and as nulls."""
    import pyarrow.parquet as pq

    run = make(tmp_path / "d" / "a", [None, 0.5], stragglers="buffered")
    for later in (("clients_late", "clients_left", "clients_failed", "clients_rejected", "outcome", "staleness"), ()):
        assert dict(report.summary(run))["clients"] == "4 asked, 4 answered"
        assert turnout.leaning(run, 3) is None
        shown = page([run], tmp_path / "o.html").text
        assert "3 of 3 clients took part" in shown and "Taking part" not in shown and "leans" not in shown
        for name in ("rounds", "clients"):
            (part,) = folder(run, name).glob("*.parquet")
            table = pq.read_table(part)
            pq.write_table(table.drop_columns([c for c in later if c in table.column_names]), part)


def asynchronous(run: Path) -> Path:
    """Twenty clients; the two fastest answer 9 times each, the two slowest once, the others twice; one is too stale."""
    make(run, [None, 0.5, 0.6], virtual=2.0, kind="fedavg", lr=0.1, stragglers="buffered")
    rows = [
        (1 + i % 3, c, "answered", 0.5 + c, c // 5)
        for c in range(20)
        for i in range(9 if c < 2 else 1 if c > 17 else 2)
    ]
    fates(run, [{"asked": 60}, {"answered": 52, "late": 1}, {"left": 1}], *rows, (3, 19, "stale", 30.0, 9))
    record(run / "data.json", clients=20)
    return run


def test_an_asynchronous_run_says_how_far_it_leans_to_fast_clients(tmp_path: Path) -> None:
    run = asynchronous(tmp_path / "d" / "a")
    rows = dict(report.summary(run))
    assert rows["clients"] == ("60 asked, 52 answered, 1 too stale, 1 left, 6 still at work")
    found = turnout.leaning(run, 20)
    ages = np.repeat(np.arange(20) // 5, [9] * 2 + [2] * 16 + [1] * 2)
    assert found is not None and found.busiest == 18 / 52 and found.ratio == 9
    assert found.mean_staleness == pytest.approx(ages.mean()) and found.max_staleness == 3
    said = rows["leans to fast clients"]
    assert said == (
        "the tenth of the clients that answered most often gave 35% of the answers; the fastest tenth answered 9 times "
        f"as often as the slowest; staleness {ages.mean():.3g} on average, 3 at most"
    )
    shown = page([run], tmp_path / "o.html").text
    assert (
        "An asynchronous run leans to the data of fast clients, since whoever is done may begin again; here the"
        in shown
    )
    assert said in shown
    assert turnout.leaning(run, 200) is not None  # clients that were never asked are clients, too
    assert turnout.leaning(run, 200).busiest == 1  # pyright: ignore[reportOptionalMemberAccess]


def test_slow_clients_that_never_counted(tmp_path: Path) -> None:
    run = make(tmp_path / "d" / "a", [0.5], virtual=2.0, stragglers="buffered")
    fates(run, [{"asked": 3, "answered": 2, "late": 1}], (1, 0, "answered", 1.0, 0), (1, 1, "answered", 2.0, 1),
          (1, 2, "stale", 9.0, 5))  # fmt: skip
    found = turnout.leaning(run, 3)
    assert found is not None and found.ratio == float("inf")
    assert "the slowest tenth gave none that counts" in str(found)
    fates(run, [{"asked": 3, "late": 1}], (1, 2, "stale", 9.0, 5))
    assert turnout.leaning(run, 3) is None


def test_virtual_seconds_stand_beside_communications(tmp_path: Path) -> None:
    root = tmp_path / "d"
    runs = [make(root / f"ga{s}", [None, 0.5, None, 0.9], virtual=10.0 * (s + 1), seed=s) for s in range(2)]
    runs.append(make(root / "avg", [0.2, 0.3, 0.9, 0.6], 1, virtual=5.0, kind="fedavg", lr=0.1))
    header, (ga, avg) = report.comparison(runs, 0.5)
    assert header[5:7] == ["seconds to 0.5", "virtual seconds to 0.5"]
    assert ga[6] == "30.0 ± 14.1" and avg[6] == "15"
    assert report.comparison(runs, 0.99)[1][0][2:7] == ["not reached"] * 5
    plain = make(root / "plain", [0.2, 0.3, 0.9], 1, kind="fedprox", lr=0.1)
    header, rows = report.comparison([*runs, plain], 0.5)
    assert rows[2][6] == "–" and len(rows[2]) == len(header)
    assert "virtual seconds" not in " ".join(report.comparison([plain], 0.5)[0])
    for run in (*runs, plain):
        probe(run, [2, 3], [0.5, 0.1])
    one, several = (page(some, tmp_path / "o.html") for some in ([runs[0]], [*runs, plain]))
    for shown in (one, several):
        # Accuracy, loss, r(x) and diversity: each over everything that was spent.
        assert shown.text.count(" virtual seconds ") >= 4
    assert "virtual seconds" not in page([plain], tmp_path / "o.html").text
    assert "Virtual seconds: of the modelled clock." in several.text


def test_a_group_without_a_device_model_has_no_curve_over_virtual_seconds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[pictures.Panel] = []
    lines = pictures.lines
    monkeypatch.setattr(pictures, "lines", lambda grid: (drawn.extend(p for r in grid for p in r), lines(grid))[1])
    runs = [
        make(tmp_path / "d" / "a", [0.5, 0.6], virtual=3.0),
        make(tmp_path / "d" / "b", [0.5, 0.7], beta=0.2, lr=0.1, kind="fedga"),
    ]
    for run in runs:
        probe(run, [1, 2], [0.5, 0.1])
    pages.write_report(runs, tmp_path / "o.html")
    virtual = [p for p in drawn if p.x_label == "virtual seconds"]
    others = [p for p in drawn if p.x_label == "communications"]
    assert {p.title for p in virtual} < {p.title for p in others} and (len(virtual), len(others)) == (4, 5)
    assert all(len(p.curves) == 1 for p in virtual) and all(len(p.curves) == 2 for p in others)
    assert all(p.curves[0].x.tolist() == [3, 6] for p in virtual)


@pytest.mark.parametrize(("best", "target"), [(0.879, 0.87), (0.87, 0.87), (0.9967, 0.996), (1.0, 1.0), (0.004, None)])
def test_the_target_is_what_every_run_reaches(tmp_path: Path, best: float, target: float | None) -> None:
    runs = [make(tmp_path / "d" / "a", [0.0, best, 0.001]), make(tmp_path / "d" / "b", [1.0], seed=1)]
    runs.append(make(tmp_path / "d" / "c", [None], seed=2))  # without an accuracy it does not count
    assert report.common_target(report.group([report.view(r) for r in runs])) == target


def test_the_page_of_several_runs(tmp_path: Path) -> None:
    root = tmp_path / "digits"
    runs = [make(root / f"ga{s}", [None, 0.5, None, 0.9], seed=s) for s in range(2)]
    runs += [make(root / f"avg{s}", [0.2, 0.3, 0.4, 0.6], 1, seed=s, kind="fedavg", lr=0.1) for s in range(2)]
    for run in runs:
        probe(run, [2, 4], [0.5, 0.1])
    shown = page([*runs, runs[0]], tmp_path / "out.html")
    assert "4 runs, 2 groups" in shown.text
    assert "Target accuracy 0.6: the largest accuracy that every run reaches, rounded down." in shown.text
    assert "Mean ± sample standard deviation over seeds" in shown.text
    assert len(shown.pictures) == 3 and len(shown.ids) == len(set(shown.ids))
    assert "as asked for" in page(runs, tmp_path / "out.html", 0.5).text


def test_means_are_taken_at_equal_communications(tmp_path: Path) -> None:
    a = report.view(make(tmp_path / "d" / "a", [None, 0.2, None, 0.4, None, 0.9]))
    b = report.view(make(tmp_path / "d" / "b", [None, 0.4, None, 0.8], seed=1, planned=6, second=3.0))
    (both,) = report.group([a, b])
    x, mean, low, high = curves.mean_over_seeds(both, "accuracy", "communications")
    assert x.tolist() == [4, 8]  # the unfinished seed ends the curve
    assert mean == pytest.approx([0.3, 0.6])
    assert low is not None and low.tolist() == [0.2, 0.4]
    assert high is not None and high.tolist() == [0.4, 0.8]
    assert curves.mean_over_seeds(both, "accuracy", "seconds")[0].tolist() == [4, 8]  # the mean of 2 and 6, of 4 and 12


def test_many_groups_grey_out_the_weakest(tmp_path: Path) -> None:
    runs = [make(tmp_path / "d" / f"{i}", [i / 20], kind="fedga", lr=0.1, beta=i / 10) for i in range(12)]
    groups = report.group([report.view(r) for r in runs])
    assert curves.looks(groups) == [None, None, *range(10)]
    assert "Grey: the 2 groups with lower accuracy." in page(runs, tmp_path / "o.html").text
    for i, run in enumerate(runs):
        make(run, [None], kind="fedga", lr=0.1, beta=i / 10, loss=[i / 20])
    groups = report.group([report.view(r) for r in runs])
    assert curves.looks(groups) == [*range(10), None, None]
    assert "Grey: the 2 groups with larger loss." in page(runs, tmp_path / "o.html").text


# --- pictures and partitions


def test_thin_keeps_ends_and_extremes() -> None:
    y = rng(0, Purpose.SYNTHETIC).normal(size=100_000)
    y[54_321], y[777] = 100.0, -100.0
    at = pictures.thin(y)
    assert len(at) <= pictures.MAX_POINTS and (np.diff(at) > 0).all()
    assert {0, 777, 54_321, 99_999} <= set(at.tolist())
    assert pictures.thin(y[:2000]).tolist() == list(range(2000))
    assert pictures.thin(y[:0]).tolist() == []


def test_long_curves_are_thinned_before_they_are_drawn() -> None:
    x = np.arange(100_000, dtype=np.float64)
    curve = pictures.Curve("c", x, np.sin(x), np.sin(x) - 1, np.sin(x) + 1)
    axes = pictures.lines([[pictures.Panel("t", "x", [curve])]]).axes[0]
    assert len(axes.lines[0].get_xdata()) <= pictures.MAX_POINTS  # pyright: ignore[reportArgumentType]


def test_a_curve_leaves_out_what_was_not_measured() -> None:
    y = np.array([np.nan, 1.0, np.inf, 3.0])
    axes = pictures.lines([[pictures.Panel("t", "x", [pictures.Curve("c", np.arange(4.0), y)])]]).axes[0]
    assert np.asarray(axes.lines[0].get_ydata()).tolist() == [1.0, 3.0]


@pytest.mark.parametrize("log_x", [False, True])
def test_an_axis_may_go_by_doublings(log_x: bool) -> None:
    curve = pictures.Curve("c", 2.0 ** np.arange(2, 10), np.arange(8.0))
    axes = pictures.lines([[pictures.Panel("t", "batch size", [curve], log_x=log_x)]]).axes[0]
    assert axes.get_xscale() == ("log" if log_x else "linear")
    assert (axes.get_xlim()[0] > 0) == log_x


@pytest.mark.parametrize(("n", "limit"), [(1, 5), (5, 5), (7, 5), (1000, 200), (1001, 200)])
def test_bins_cover_everything_once(n: int, limit: int) -> None:
    edges = pictures.bins(n, limit)
    size = np.diff(edges)
    assert edges[0] == 0 and edges[-1] == n and len(size) == min(n, limit)
    assert size.min() >= 1 and size.max() - size.min() <= 1


def test_participation_shows_each_answer() -> None:
    figure = pictures.participation(np.array([0, 2, 1]), np.array([1, 1, 3]), population=4, last=3)
    image = image_of(figure, 0)
    assert image.tolist() == [[1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 0, 0]]


def test_participation_is_binned_when_large() -> None:
    draw = rng(0, Purpose.SYNTHETIC)
    clients, rounds = draw.integers(0, 5000, 40_000), draw.integers(1, 2001, 40_000)
    figure = pictures.participation(clients, rounds, population=5000, last=2000)
    image = image_of(figure, 0)
    assert image.shape == (pictures.MAX_CLIENTS, pictures.MAX_ROUNDS)
    assert image.sum() * 25 * 5 == pytest.approx(40_000)


def test_partition_table() -> None:
    counts = np.array([[4, 0, 0, 0], [0, 4, 0, 0], [2, 2, 2, 2], [0, 0, 0, 0]])
    rows = dict(report.partition_table(counts, counts.sum(1)))
    assert rows["clients"] == "4" and rows["training examples"] == "16" and "validation examples" not in rows
    assert rows["training examples per client"] == "min 0, median 4, max 8"
    assert rows["clients without training examples"] == "1"
    assert rows["largest client's share"] == "50.00% of all training examples"
    assert rows["labels per client"] == "min 0, median 1, max 4, of 4"
    assert rows["effective labels per client"] == "2.00 on average (exp of the entropy)"  # (1 + 1 + 4) / 3
    assert rows["largest label's share"] == "75.0% of a client's training examples, on average"
    assert "labels per client" not in dict(report.partition_table(None, np.array([3, 4])))


def test_the_partition_of_a_run_is_what_its_clients_train_on(whole: Path, tmp_path: Path) -> None:
    counts, examples, validation = report.partition_of(report.view(whole))
    assert counts is not None and counts.tolist() == [[10, 0, 0], [0, 10, 0], [5, 5, 10]]
    assert examples.tolist() == counts.sum(1).tolist() and validation.tolist() == [1, 1, 1]
    shown = page([whole], tmp_path / "out.html").text
    assert "training examples 40 validation examples 3 training examples per client min 10, median 10, max 20" in shown
    assert "What each client trains on, its validation part aside." in shown


def test_a_partition_of_many_clients_is_sorted_and_binned() -> None:
    counts = np.zeros((1000, 4), np.int64)
    counts[np.arange(1000), rng(0, Purpose.SYNTHETIC).integers(0, 4, 1000)] = 10
    figure = pictures.partition(counts, counts.sum(1))
    image = image_of(figure, 1)
    assert image.shape == (4, pictures.MAX_CLIENTS)
    assert (image.max(0) == 1).mean() > 0.98  # one class to a column but where two classes meet
    assert (np.diff(image.argmax(0)) >= 0).all()


@pytest.mark.parametrize("counts", [np.array([[3, 0], [1, 2]]), None])
@pytest.mark.parametrize(("suffix", "start"), [(".png", b"\x89PNG"), (".svg", b"<?xml"), (".pdf", b"%PDF")])
def test_partition_pictures(tmp_path: Path, counts: np.ndarray | None, suffix: str, start: bytes) -> None:
    out = [tmp_path / f"{i}{suffix}" for i in range(2)]
    for path in out:
        report.partition_picture(counts, np.array([3, 3]), ["cat", "dog"], path)
    assert out[0].read_bytes() == out[1].read_bytes()
    assert out[0].read_bytes().startswith(start)


def test_partition_picture_of_another_kind(tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=r"\.png, \.svg or \.pdf"):
        report.partition_picture(None, np.array([3, 3]), [], tmp_path / "a.gif")
    with pytest.raises(BadInput, match="2 clients but label counts for 1"):
        report.partition_picture(np.array([[1]]), np.array([3, 3]), [], tmp_path / "a.png")


def test_an_experiment_that_was_edited_is_not_reported_as_what_ran(tmp_path: Path) -> None:
    run = make(tmp_path / "name" / "id", [0.5, 0.6])
    file = run / "experiment.json"
    file.write_text(file.read_text().replace('"beta": 0.05', '"beta": 0.5'))
    with pytest.raises(BadInput, match="was changed since the run started"):
        report.view(run)


def test_the_hash_is_the_experiments() -> None:
    from dataclasses import replace

    from raygrad.devices import Trace
    from raygrad.recipes import RECIPES

    for make_experiment in RECIPES.values():
        e = make_experiment()
        assert report.experiment_hash(json.loads(json.dumps(e.to_json()))) == e.hash
    traced = replace(e, devices=Trace("a.csv", sha256="0" * 64))
    assert report.experiment_hash(json.loads(json.dumps(traced.to_json()))) == traced.hash
    assert traced.hash == replace(e, devices=Trace("b.csv", sha256="0" * 64)).hash
