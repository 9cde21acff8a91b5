"""A plain torch loop that trains what a run trained, to hold raygrad's numbers against.

    python jobs/results/plain.py RUN --rounds 5                    the same draws as raygrad
    python jobs/results/plain.py RUN --dtype float64               the same in double precision
    python jobs/results/plain.py RUN --control                     what rounding alone does
    python jobs/results/plain.py RUN --rounds 40 --draws own:1     random numbers of its own, seed 1

FedAvg, FedProx, FedGA and SCAFFOLD with fresh variates are written here once more, with `nn.Module`, autograd and
`torch.optim.SGD`; images are augmented and normalised once more, too. Of raygrad it takes the prepared shards, the
initial weights and, with the same draws, the addressed random numbers. Then all that is left is rounding: the loop
plays the run's first rounds beside raygrad and prints how far the two models, the clients' training losses and the test
accuracies are apart, and whether raygrad's own rows are those of the run. In float32 a last bit can decide on which
side of a kink of ReLU or max-pooling an activation falls; `--control` shows what that alone does, with a second plain
loop in raygrad's place whose pixels are rounded differently. In float64 hardly any falls on the other side. With draws
of its own the curves agree as far as two seeds do.
"""

import argparse
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from time import perf_counter
from typing import Protocol

import numpy as np
import pyarrow as pa
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import raygrad
from raygrad.data.shards import Shards
from raygrad.errors import BadInput
from raygrad.experiment import Evaluation, Experiment, Probe, Where
from raygrad.files import storage
from raygrad.files.runs import LoadedRun
from raygrad.flat import initial_module
from raygrad.rng import Purpose, rng
from raygrad.run import shard_root
from raygrad.runner import CHUNK_BYTES

PADDING = 4
"""Black pixels on each side before a random crop, as in the paper's code."""


@dataclass(frozen=True)
class Crops:
    """How n images are cropped and flipped: the crop's corner in the padded image, and who is mirrored."""

    down: np.ndarray  # [n] of 0..8
    right: np.ndarray  # [n] of 0..8
    mirrored: np.ndarray  # [n] bool


class Draws(Protocol):
    """Everything random in a run, but for the initial weights and the partition."""

    def cohort(self, round: int) -> list[int]:
        """The clients of a round."""
        ...

    def order(self, round: int, client: int, examples: int, length: int) -> np.ndarray:
        """The positions in the client's shard of the examples of its mini-batches, laid end to end: [length]."""
        ...

    def crops(self, round: int, client: int, whole: bool, n: int) -> Crops:
        """For `n` images of the mini-batches, or of the `whole` shard, of a client in a round."""
        ...


def _end_to_end(generator: np.random.Generator, examples: int, length: int) -> np.ndarray:
    permutations = [generator.permutation(examples) for _ in range(-(-length // examples))]
    return np.concatenate(permutations)[:length]


def _crops(generator: np.random.Generator, n: int) -> Crops:
    down, right = generator.integers(0, 2 * PADDING + 1, size=(2, n))
    return Crops(down, right, generator.random(n) < 0.5)


@dataclass(frozen=True)
class SameDraws:
    """raygrad's draws. It augments in pieces of `piece` images of a batch sequence, `whole_piece` of a whole shard."""

    seed: int
    clients: int
    cohort_size: int
    piece: int
    whole_piece: int

    def cohort(self, round: int) -> list[int]:
        """The draw of `raygrad.samplers.Uniform`."""
        generator = rng(self.seed, Purpose.SAMPLING, round)
        return sorted(generator.choice(self.clients, self.cohort_size, replace=False, shuffle=False).tolist())

    def order(self, round: int, client: int, examples: int, length: int) -> np.ndarray:
        """Fresh permutations."""
        return _end_to_end(rng(self.seed, Purpose.BATCHES, round, client), examples, length)

    def crops(self, round: int, client: int, whole: bool, n: int) -> Crops:
        """Piece after piece from one generator."""
        generator = rng(self.seed, Purpose.AUGMENT_FULL if whole else Purpose.AUGMENT, round, client)
        piece = self.whole_piece if whole else self.piece
        parts = [_crops(generator, min(piece, n - a)) for a in range(0, n, piece)]
        return Crops(*(np.concatenate([getattr(p, f) for p in parts]) for f in ("down", "right", "mirrored")))


class OwnDraws:
    """Draws from one numpy generator, in the order in which they are asked for."""

    def __init__(self, seed: int, clients: int, cohort_size: int) -> None:
        self._generator = np.random.default_rng([seed, 20210613])
        self._clients, self._cohort_size = clients, cohort_size

    def cohort(self, round: int) -> list[int]:
        """Uniform without replacement."""
        return self._generator.permutation(self._clients)[: self._cohort_size].tolist()

    def order(self, round: int, client: int, examples: int, length: int) -> np.ndarray:
        """Fresh permutations."""
        return _end_to_end(self._generator, examples, length)

    def crops(self, round: int, client: int, whole: bool, n: int) -> Crops:
        """Independent of everything drawn before."""
        return _crops(self._generator, n)


def cropped(x: np.ndarray, c: Crops) -> np.ndarray:
    """Images [n, C, H, W] after padding with zeros, cropping and mirroring."""
    n, _, height, width = x.shape
    pad = ((0, 0), (0, 0), (PADDING, PADDING), (PADDING, PADDING))
    columns = np.arange(width)
    columns = np.where(c.mirrored[:, None], columns[::-1], columns) + c.right[:, None]  # [n, W]
    rows = c.down[:, None] + np.arange(height)  # [n, H]
    at = np.arange(n)[:, None, None]
    return np.pad(x, pad)[at, :, rows[:, :, None], columns[:, None, :]].transpose(0, 3, 1, 2)


@dataclass(frozen=True)
class Step:
    """What a round of the plain loop did."""

    cohort: list[int]
    losses: list[float]  # one per client: the mean over its K batches

    @property
    def train_loss(self) -> float:
        """The mean over the clients."""
        return float(np.mean(self.losses))


class PlainLoop:
    """A run's training as one would write it without a framework. Clients weigh the same; full precision of `dtype`."""

    def __init__(self, run: LoadedRun, shards: Shards, draws: Draws, multiplied: bool = False) -> None:
        """`multiplied` normalises pixels by one product and one sum: the same but for the last bit."""
        e = run.experiment
        self.multiplied = multiplied
        self.method, self.settings = _settings(e)
        self.shards, self.draws = shards, draws
        assert e.local.steps is not None and e.local.batch_size != "full"
        self.steps, self.batch, self.weight_decay = e.local.steps, e.local.batch_size, e.local.weight_decay
        self.dtype = getattr(torch, e.dtype)
        self.model = initial_module(e.model, shards.shape, shards.classes, e.seed).to(self.dtype)
        self.mean, self.std = (torch.tensor(v, dtype=self.dtype).view(1, -1, 1, 1) for v in _normalisation(shards))

    def parameters(self) -> list[Tensor]:
        """Copies of the model's parameters."""
        return [p.detach().clone() for p in self.model.parameters()]

    def load(self, values: Sequence[Tensor]) -> None:
        """Set the model's parameters."""
        with torch.no_grad():
            for p, v in zip(self.model.parameters(), values, strict=True):
                p.copy_(v)

    def vector(self) -> Tensor:
        """The parameters as one vector [d]."""
        return nn.utils.parameters_to_vector(self.model.parameters()).detach()

    def images(self, x: np.ndarray, crops: Crops | None) -> Tensor:
        """Stored images as the model takes them."""
        if crops is not None:
            x = cropped(x, crops)
        pixels = torch.from_numpy(np.array(x, order="C")).to(self.dtype)
        scale = self.shards.transform.scale
        if self.multiplied:
            return pixels * (scale / self.std) - self.mean / self.std
        return ((pixels / 255 if scale == 1 / 255 else pixels * scale) - self.mean) / self.std

    def _augmented(self) -> bool:
        return self.shards.transform.augment == "crop-flip"

    def batches(self, round: int, client: int) -> Iterator[tuple[Tensor, Tensor]]:
        """The client's K mini-batches."""
        x, y = self.shards.read("train", client)
        order = self.draws.order(round, client, len(y), self.steps * self.batch)
        c = self.draws.crops(round, client, False, len(order)) if self._augmented() else None
        for a in range(0, len(order), self.batch):
            at = slice(a, a + self.batch)
            crops = None if c is None else Crops(c.down[at], c.right[at], c.mirrored[at])
            yield self.images(x[order[at]], crops), torch.from_numpy(y[order[at]])

    def full_gradient(self, round: int, client: int) -> list[Tensor]:
        """The gradient of the mean loss over the client's whole shard, without weight decay."""
        x, y = self.shards.read("train", client)
        images = self.images(x, self.draws.crops(round, client, True, len(y)) if self._augmented() else None)
        labels = torch.from_numpy(np.array(y))
        self.model.zero_grad()
        for a in range(0, len(y), 500):
            loss = F.cross_entropy(self.model(images[a : a + 500]), labels[a : a + 500], reduction="sum") / len(y)
            loss.backward()
        return [p.grad.clone() for p in self.model.parameters() if p.grad is not None]

    def play(self, round: int) -> Step:
        """One round; leaves the new model in `self.model`."""
        x = self.parameters()
        cohort = self.draws.cohort(round)
        two_phases = self.method in ("fedga", "scaffold-fresh")
        gradients = []  # of each client at x
        if two_phases:
            gradients = [self.full_gradient(round, client) for client in cohort]
        mean = [torch.stack(parts).mean(0) for parts in zip(*gradients, strict=True)]
        total = [torch.zeros_like(p) for p in x]
        losses = []
        for i, client in enumerate(cohort):
            own = gradients[i] if two_phases else []
            if self.method == "fedga":
                beta = self.settings["beta"]
                self.load([p - beta * (m - g) for p, m, g in zip(x, mean, own, strict=True)])
            else:
                self.load(x)
            losses.append(self.local(round, client, x, mean, own))
            for t, p in zip(total, self.model.parameters(), strict=True):
                t += p.detach()
        # The mean of the clients' models: FedGA's displacements sum to zero over the cohort.
        averages = [t / len(cohort) for t in total]
        eta = self.settings["server_lr"]
        self.load([p + eta * (a - p) for p, a in zip(x, averages, strict=True)])
        return Step(cohort, losses)

    def local(self, round: int, client: int, x: list[Tensor], mean: list[Tensor], own: list[Tensor]) -> float:
        """A client's K steps on `self.model`, from where it stands; the mean of the batches' losses."""
        optimizer = torch.optim.SGD(self.model.parameters(), lr=self.settings["lr"], weight_decay=self.weight_decay)
        losses = []
        for images, labels in self.batches(round, client):
            optimizer.zero_grad()
            loss = F.cross_entropy(self.model(images), labels)
            losses.append(loss.item())
            if self.method == "fedprox":
                away = sum(((p - q) ** 2).sum() for p, q in zip(self.model.parameters(), x, strict=True))
                loss = loss + self.settings["mu"] / 2 * away
            loss.backward()
            if self.method == "scaffold-fresh":
                for p, m, g in zip(self.model.parameters(), mean, own, strict=True):
                    assert p.grad is not None
                    p.grad += m - g
            optimizer.step()
        return float(np.mean(losses))

    def test(self) -> tuple[float, float]:
        """Accuracy and mean loss on the test set."""
        right, loss = 0, 0.0
        with torch.no_grad():
            for b in range(self.shards.test_batches):
                x, y = self.shards.read("test", b)
                out, labels = self.model(self.images(x, None)), torch.from_numpy(np.array(y))
                right += int((out.argmax(1) == labels).sum())
                loss += float(F.cross_entropy(out, labels, reduction="sum"))
        return right / self.shards.test_examples, loss / self.shards.test_examples


def _settings(e: Experiment) -> tuple[str, dict[str, float]]:
    """The method's name and numbers. Raises BadInput for an experiment that this loop cannot do."""
    algorithm = {k: v for k, v in e.to_json()["algorithm"].items() if k != "kind"}
    method = e.to_json()["algorithm"]["kind"]
    known = ("fedavg", "fedprox", "fedga", "scaffold-fresh")
    lacking = [
        text
        for text, bad in (
            (f"algorithm {method} (it has {', '.join(known)})", method not in known),
            ("local.epochs", e.local.steps is None),
            ("full batches", e.local.batch_size == "full"),
            ("local.clip_norm", e.local.clip_norm is not None),
            ("weights=examples", e.weights != "equal"),
            ("a schedule", e.to_json()["schedule"]["kind"] != "constant"),
            ("another loss than cross_entropy", e.loss != "cross_entropy"),
            ("weights from a file", e.init is not None),
            ("regulariser", e.regularizer.weight != 0),
            ("stream of tasks", e.to_json()["tasks"]["kind"] != "one"),
        )
        if bad
    ]
    if lacking:
        raise BadInput(f"the plain loop has no {lacking[0]}; choose a run without it")
    return method, algorithm


def _normalisation(shards: Shards) -> tuple[tuple[float, ...], tuple[float, ...]]:
    return shards.transform.mean or (0.0,), shards.transform.std or (1.0,)


def shards_of(run: LoadedRun) -> Shards:
    """The prepared shards that the run reads. Raises BadInput if they are gone."""
    root = shard_root(run.where, run.folder)
    wanted = storage.read_json(run.folder / "data.json")["id"]
    for meta in sorted(root.glob("*/meta.json")):
        if storage.read_json(meta).get("id") == wanted:
            return Shards.open(meta.parent)
    raise BadInput(f"{root} has no shards with the id {wanted[:12]}… of {run.folder}; `raygrad resume` prepares them")


def same_draws(e: Experiment, shards: Shards) -> SameDraws:
    """raygrad's draws for this experiment."""
    assert e.local.batch_size != "full"
    example = int(np.prod(shards.shape)) * getattr(torch, e.dtype).itemsize
    chunk = max(1, CHUNK_BYTES // max(1, example))
    piece = max(1, chunk // e.local.batch_size) * e.local.batch_size
    return SameDraws(e.seed, shards.clients, e.sampler.cohort, piece, chunk)


@dataclass(frozen=True)
class Compared:
    """How far the plain loop and the other side are apart after a round, in absolute numbers."""

    round: int
    model: float  # largest difference of a parameter
    moved: float  # largest change of a parameter since the start, on the other side
    loss: float  # largest difference of a client's training loss
    images: int  # by how many test images the accuracies differ
    same_rows: bool | None  # whether the other side's losses are the run's, bit for bit; None: there are none


@dataclass(frozen=True)
class Other:
    """A round of the other side."""

    cohort: list[int]
    losses: list[float]
    x: Tensor  # [d]
    accuracy: float


def beside(run: LoadedRun, shards: Shards, rounds: int) -> Iterator[Other]:
    """The run's first rounds, played once more by raygrad in a folder of its own."""
    measured = replace(
        run.experiment, rounds=rounds, evaluation=Evaluation("paper", 1), probe=Probe(every=0)
    )  # measuring changes no bit of the model
    where = Where(on="local", data_root=run.where.data_root, shard_root=str(shards.path.parent), device="cpu")
    with tempfile.TemporaryDirectory() as folder:
        played = list(raygrad.rounds(measured, where, run_root=folder, name="beside"))
        losses = _losses(raygrad.load(played[-1].folder).table("clients"))
    for round in played:
        assert round.test is not None
        yield Other(round.clients.tolist(), losses[round.index], round.x, round.test["accuracy"])


def control(run: LoadedRun, shards: Shards, rounds: int) -> Iterator[Other]:
    """The run's first rounds by a plain loop that rounds pixels differently."""
    loop = PlainLoop(run, shards, same_draws(run.experiment, shards), multiplied=True)
    for index in range(1, rounds + 1):
        step = loop.play(index)
        yield Other(step.cohort, step.losses, loop.vector(), loop.test()[0])


def compare(
    run: LoadedRun, shards: Shards, others: Iterator[Other], stored: Mapping[int, list[float]]
) -> Iterator[Compared]:
    """Play the plain loop on raygrad's draws beside the rounds of `others`.

    `stored` are the clients' losses by round that the other side should repeat.
    """
    loop = PlainLoop(run, shards, same_draws(run.experiment, shards))
    start = loop.vector()
    for index, other in enumerate(others, 1):
        mine = loop.play(index)
        if mine.cohort != other.cohort:
            raise BadInput(f"round {index}: the cohorts are {mine.cohort} and {other.cohort}")
        yield Compared(
            index,
            float((loop.vector() - other.x).abs().max()),
            float((other.x - start).abs().max()),
            float(np.abs(np.subtract(mine.losses, other.losses)).max()),
            images_apart(loop.test()[0], other.accuracy, shards.test_examples),
            stored[index] == other.losses if index in stored else None,
        )


def images_apart(mine: float, theirs: float, examples: int) -> int:
    """By how many images two accuracies on as many examples differ."""
    return round(abs(mine - theirs) * examples)


def _losses(clients: pa.Table) -> dict[int, list[float]]:
    """The table `clients` as each round's training losses, in the order of the cohort."""
    found: dict[int, list[float]] = {}
    for index, loss in zip(clients["round"].to_pylist(), clients["train_loss"].to_pylist(), strict=True):
        found.setdefault(index, []).append(loss)
    return found


def _print_same(run: LoadedRun, rounds: int, rounding_alone: bool, as_run: bool) -> None:
    shards = shards_of(run)
    stored = _losses(run.table("clients")) if as_run and not rounding_alone else {}
    others = (control if rounding_alone else beside)(run, shards, rounds)
    print("| round | largest difference of the model | the model has moved by | of a client's training loss |", end="")
    print(" of the test images judged right | these losses are the run's |")
    print("|---|---|---|---|---|---|")
    for c in compare(run, shards, others, stored):
        same = {True: "bit for bit", False: "**no**", None: "–"}[c.same_rows]
        print(
            f"| {c.round} | {c.model:.1e} | {c.moved:.2g} | {c.loss:.1e} | {c.images} | {same} |",
            flush=True,
        )


def _print_own(run: LoadedRun, rounds: int, seed: int) -> None:
    shards = shards_of(run)
    loop = PlainLoop(run, shards, OwnDraws(seed, shards.clients, run.experiment.sampler.cohort))
    stored = {r["round"]: r for r in run.table("rounds").to_pylist()}
    print("| round | training loss, plain | raygrad | test accuracy, plain | raygrad |\n|---|---|---|---|---|")
    began = perf_counter()
    for index in range(1, rounds + 1):
        step = loop.play(index)
        row = stored.get(index, {})
        if row.get("test_accuracy") is None and index < rounds:
            continue
        accuracy = row.get("test_accuracy")
        theirs = ("–", "–") if not row else (f"{row['train_loss']:.4f}", "–" if accuracy is None else f"{accuracy:.4f}")
        print(f"| {index} | {step.train_loss:.4f} | {theirs[0]} | {loop.test()[0]:.4f} | {theirs[1]} |", flush=True)
    print(f"{perf_counter() - began:.0f} s", file=sys.stderr)


def main() -> int:
    """Read the command line and compare; returns the exit code."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", help="a run: its folder")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dtype", choices=("float32", "float64"), help="of both sides; the run's own by default")
    parser.add_argument("--control", action="store_true", help="against a plain loop that rounds pixels differently")
    parser.add_argument("--draws", default="same", help="same (as raygrad), or own:SEED")
    given = parser.parse_args()
    kind, _, seed = given.draws.partition(":")
    if kind not in ("same", "own") or (kind == "own" and not seed.isdecimal()):
        parser.error(f"--draws is {given.draws!r}; it must be same, or own:SEED")
    torch.set_num_threads(1)
    try:
        run = raygrad.load(given.run)
        if given.dtype is not None:
            run = replace(run, experiment=replace(run.experiment, dtype=given.dtype))
        if kind == "same":
            _print_same(run, given.rounds, given.control, given.dtype is None)
        else:
            _print_own(run, given.rounds, int(seed))
    except BadInput as e:
        print(f"plain.py: {e}", file=sys.stderr)
        return e.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
