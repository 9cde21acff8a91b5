"""The command line: what it prints, what it leaves, and its exit codes."""

import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from io import StringIO
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from raygrad import BadInput, citations, cli, load
from raygrad.algorithms import ALGORITHMS
from raygrad.alignment import Alignment
from raygrad.commands import experiments, options
from raygrad.data.partition import PARTITIONERS
from raygrad.devices import DEVICES
from raygrad.errors import EXIT_CODES
from raygrad.models import MODELS
from raygrad.player import Round
from raygrad.progress import Lines, Reading, Screen, duration, virtual
from raygrad.recipes import RECIPES
from raygrad.samplers import SAMPLERS
from raygrad.stragglers import POLICIES
from raygrad.verify import Check

QUICK = ["--set", "model=linear", "--set", "probe.every=2", "--set", "evaluation.every=2"]
COMMANDS = [
    "run", "resume", "sweep", "report", "export", "digest", "list", "partition", "verify", "benchmark", "trace", "cite",
]  # fmt: skip


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("shards")


@pytest.fixture
def train(shards: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """Run a few rounds in this process and return the run's folder."""

    def go(*words: str, code: int = 0) -> str:
        given = [*words, "--on", "local", "--quiet", "--shard-root", str(shards)]
        given += [] if "--report" in words else ["--no-report"]
        capsys.readouterr()
        assert cli.run(["run", *QUICK, *(w for w in given if w != "--report")]) == code, capsys.readouterr().err
        return capsys.readouterr().out.strip()

    return go


def said(capsys: pytest.CaptureFixture[str], *words: str, code: int = 0) -> str:
    """What a command prints, after its exit code was checked."""
    capsys.readouterr()
    found = cli.run(words)
    out, err = capsys.readouterr()
    assert found == code, err
    return out if code == 0 else err


# --- help -----------------------------------------------------------------------------------------------------------


def test_help_shows_every_command_and_every_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, "--help")
    assert all(re.search(rf"\b{c}\b", text) for c in COMMANDS)
    flat = " ".join(text.split())
    assert all(f"{code} {meaning.split('(')[0].strip()}" in flat for code, meaning in EXIT_CODES.items())


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_teaches_with_examples(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    text = said(capsys, command, "--help")
    assert re.search(r"^ *Examples? *$", text, re.M)
    assert f"raygrad {command}" in text.split("Example")[1]


def test_help_needs_nothing_heavy() -> None:
    code = (
        "import sys; from raygrad.cli import run\n"
        "assert run(['--help']) == 0 and run(['run', '--help']) == 0 and run(['run', '--bogus']) == 2\n"
        "print(sorted({'torch', 'ray', 'pyarrow', 'sklearn', 'matplotlib', 'numpy'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "[]"
    assert "--bogus" in done.stderr and done.stderr.count("\n") == 1


def test_as_a_module() -> None:
    done = subprocess.run([sys.executable, "-m", "raygrad", "--version"], capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert re.fullmatch(r"raygrad \d+\.\d+\S*\n", done.stdout)


def test_completion_names_recipes_and_runs(train: Callable[..., str]) -> None:
    folder = Path(train("--rounds", "1"))
    assert options.recipe_names("") == sorted(RECIPES)
    assert options.run_names("dig") == ["digits", f"digits/{folder.name}"]


# --- bad input ------------------------------------------------------------------------------------------------------

BAD = {
    "recipe": ("run digit", "did you mean digits"),
    "algorithm": ("run --set algorithm=scafold", "did you mean scaffold"),
    "field": ("run --set algorithm.bta=1", "did you mean beta"),
    "section": ("run --set algo=fedavg", "did you mean algorithm"),
    "not a setting": ("run --set algorithm.lr", "PATH=VALUE"),
    "not a number": ("run --set algorithm.lr=fast", "must be a finite number"),
    "nan": ("run --alpha nan", "must be a finite number"),
    "negative lr": ("run --alpha -1", ">= 0"),
    "lr of more bits": ("run --alpha 1e300", "algorithm.lr is 1e+300; numbers of float32 are at most 3.4e+38"),
    "inner lr": ("run --set algorithm=fedadam --set algorithm.inner.lr=1e39", "algorithm.inner.lr is 1e+39"),
    "no rounds": ("run --rounds 0", "rounds is 0"),
    "rounds not whole": ("run --rounds x", "--rounds"),
    "no hosts": ("run --hosts 0", "hosts is 0"),
    "hosts not a number": ("run --hosts x", "hosts is 'x'; it must be a number, auto, or FEWEST..MOST"),
    "fewest hosts": ("run --hosts 0..3", "hosts is 0..3; it must be >= 1"),
    "most hosts": ("run --hosts 5..2", "hosts is 5..2; the most (2) must be at least the fewest (5)"),
    "odd gpus": ("run --gpus-per-host 1.5", "whole number"),
    "where": ("run --on mars", "'ray', 'local'"),
    "option": ("run --bogus", "--bogus"),
    "command": ("bogus", "bogus"),
    "beta of fedavg": ("run --set algorithm=fedavg --beta 0.1", "FedAvg"),
    "cohort": ("run --set sampler.cohort=11", "only 10 clients"),
    "clients": ("run --set partition.clients=5000", "use at most 1438 clients"),
    "steps and epochs": ("run --set local.steps=5 --set local.epochs=1", "local.steps or local.epochs"),
    "kind needs more": ("run --set data=idx", "set data.train_images, data.train_labels too"),
    "no data root": ("run mnist-het --data-root nowhere", "nowhere is not a folder"),
    "no data": ("run mnist-het --data-root .", "train-images-idx3-ubyte"),
    "model and data": ("run --set model=emnist-cnn", "16 x 16"),
    "model and labels": ("run --set model=custom --set model.factory=small:net", "10 classes need (10,)"),
    "metric and labels": ("run quadratic --set metrics=accuracy", "metric accuracy needs class labels"),
    "no weights": ("run --init none.safetensors", "none.safetensors"),
    "run root is a file": ("run --run-root file.txt", "file.txt"),
    "name": ("run --name ../x", "'../x' cannot name a folder"),
    "no experiment": ("run none.json", "none.json cannot be read"),
    "damaged experiment": ("run file.json", "file.json is damaged"),
    "no file": ("run none.py", "none.py is missing"),
    "no listener": ("run --address 127.0.0.1:1", "no Ray answers at 127.0.0.1:1"),
    "local with address": ("run --on local --address auto", "--on local"),
    "sweep field": ("sweep --set algorithm.bta=1,2", "did you mean beta"),
    "sweep of nothing": ("sweep --alpha 0.1", "the search space is empty"),
    "sweep listener": ("sweep --alpha 0.1,0.2 --address 127.0.0.1:1", "no Ray answers at 127.0.0.1:1"),
    "sweep": ("sweep --resume nothing", "unknown sweep 'nothing'"),
    "run": ("resume nothing", "unknown run 'nothing'"),
    "folder is no run": ("digest folder", "has no experiment.json"),
    "list": ("list foo", "'recipes'"),
    "no runs": ("report", "RUN"),
    "target": ("report x --target 2", "unknown run"),
    "verify": ("verify nope", "unknown algorithm 'nope'"),
    "picture": ("partition --out x.txt", "x.txt"),
    "partition": ("run quadratic --set partition=iid", "clients = 0"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_and_exit_2_before_any_host_starts(
    name: str, shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygrad import player

    def started(*_: object) -> None:
        raise AssertionError("hosts were started")

    monkeypatch.setattr(player, "open_executor", started)
    (tmp_path / "folder").mkdir()
    for file in ("file.txt", "file.json"):
        (tmp_path / file).write_text("[")
    (tmp_path / "small.py").write_text(
        "from torch import nn\ndef net(shape, classes): return nn.Sequential(nn.Flatten(), nn.Linear(64, 9))\n"
    )
    command, expected = BAD[name]
    words = command.split()
    if words[0] == "run" and "--run-root" not in words:
        words += ["--shard-root", str(shards)]
    error = said(capsys, *words, code=2)
    assert error.startswith("raygrad: ") and error.count("\n") == 1
    assert expected in error
    assert not list(tmp_path.glob("runs/*/*/experiment.json"))


def test_a_bug_is_not_dressed_up_as_bad_input(monkeypatch: pytest.MonkeyPatch) -> None:
    from importlib import metadata

    monkeypatch.setattr(metadata, "version", lambda name: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        cli.run(["cite"])


# --- from words to an experiment ------------------------------------------------------------------------------------


def test_settings_apply_in_order_and_aliases_last() -> None:
    chosen = experiments.choose(
        "digits",
        ["algorithm.lr=0.3", "algorithm=scaffold", "algorithm.option=I", "rounds=7", "rounds=8"],
        {"algorithm.lr": 0.4, "algorithm.beta": None},
    )
    assert chosen.name == "digits"
    assert chosen.experiment.to_json()["algorithm"] == {"kind": "scaffold", "lr": 0.4, "option": "I", "server_lr": 1.0}
    assert chosen.experiment.rounds == 8


@pytest.mark.parametrize(
    ("settings", "given", "steps", "epochs"),
    [
        (["local.epochs=2"], {}, None, 2.0),
        (["local.epochs=2", "local.steps=none"], {}, None, 2.0),
        (["local.steps=none", "local.epochs=0.5"], {}, None, 0.5),
        (["local.steps=3"], {}, 3, None),
        ([], {"local.steps": 4}, 4, None),
    ],
)
def test_steps_and_epochs_replace_each_other(
    settings: list[str], given: dict[str, int | str | float | Path | None], steps: int | None, epochs: float | None
) -> None:
    local = experiments.choose("digits", settings, given).experiment.local
    assert (local.steps, local.epochs) == (steps, epochs)


def test_a_kind_and_the_fields_it_needs_may_come_together() -> None:
    chosen = experiments.choose("digits", ["data=image-folder", "data.path=photos", "data.size=64"])
    assert chosen.experiment.to_json()["data"] | {"mean": 0, "std": 0} == {
        "kind": "image-folder", "path": "photos", "size": 64, "channels": 3, "holdout": 0.2, "augment": False,
        "mean": 0, "std": 0,
    }  # fmt: skip


def test_where_options_lie_over_what_a_run_recorded() -> None:
    recorded = experiments.place({"hosts": 3, "gpus_per_host": 0.5, "address": "here:1", "shard_root": None})
    assert (recorded.on, recorded.hosts, recorded.numerics) == ("ray", 3, "strict")
    again = experiments.place({"hosts": 4, "on": None}, recorded)
    assert (again.hosts, again.address, again.gpus_per_host) == (4, "here:1", 0.5)
    local = experiments.place({"on": "local"}, recorded)
    assert (local.on, local.address, local.gpus_per_host) == ("local", None, 0.0)
    assert experiments.place({"address": ""}, recorded).address is None


def recipe_file(folder: Path, name: str, body: str) -> Path:
    path = folder / name
    path.write_text(textwrap.dedent(body))
    return path


@pytest.mark.parametrize(
    ("name", "body", "expected"),
    [
        ("bad_import.py", "\nimport no_such_module\n", "bad_import.py, line 2: ModuleNotFoundError"),
        ("bad_syntax.py", "x = 1\ndef recipe(:\n", "bad_syntax.py, line 2: "),
        ("bad_none.py", "x = 1\n", "bad_none.py defines no recipe()"),
        ("bad_call.py", "def recipe():\n    return 1 / 0\n", "line 2: recipe() raised ZeroDivisionError"),
        (
            "bad_value.py",
            "from raygrad import Experiment\n\ndef recipe():\n    return Experiment(rounds=0)\n",
            "line 4",
        ),
        ("bad_return.py", "def recipe():\n    return 7\n", "returned int, not a raygrad.Experiment"),
        ("json.py", "def recipe(): ...\n", "a module called json is in use"),
    ],
)
def test_a_broken_recipe_file_is_bad_input_with_its_line(name: str, body: str, expected: str, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match=re.escape(expected)):
        experiments.choose(str(recipe_file(tmp_path, name, body)))


# --- runs -----------------------------------------------------------------------------------------------------------


def test_a_run_from_start_to_report(capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path) -> None:
    words = ["run", "--on", "local", "--rounds", "4", "--shard-root", str(shards), *QUICK]
    out = said(capsys, *words)
    assert re.search(r"round 4 of 4 · validation accuracy 0\.\d{4} · loss \S+ · r\(x\) \S+ · [\d,]+ clients/s", out)
    (folder,) = tmp_path.glob("runs/digits/*")
    final = json.loads((folder / "final.json").read_text())
    assert re.search(rf"test accuracy +{final['metrics']['accuracy']:.4f}", out)
    assert (folder / "report.html").stat().st_size > 10_000
    name = f"digits/{folder.name}"
    assert f"raygrad resume {name} --rounds 8" in out
    assert f"runs/{name}/report.html" in out

    out = said(capsys, "resume", "digits")
    assert f"{name} is finished: 4 rounds, nothing left to do" in out

    line = said(capsys, "digest", name)
    assert re.fullmatch(r"[0-9a-f]{64}\n", line)
    assert line.strip() == load(folder).digest()

    # The same experiment again, from its file, is the same run; and a longer run is its extension.
    again = said(capsys, "run", str(folder / "experiment.json"), "--on", "local", "--quiet").strip()
    assert Path(again).parent.name == "digits"
    assert said(capsys, "digest", again) == line
    said(capsys, "resume", str(folder), "--rounds", "6", "--quiet")
    longer = said(capsys, "run", str(folder), "--on", "local", "--quiet", "--no-report", "--rounds", "6").strip()
    assert load(folder).experiment.rounds == 6
    assert said(capsys, "digest", name) == said(capsys, "digest", longer) != line
    assert json.loads((folder / "final.json").read_text())["round"] == 6
    assert "ask for more" in said(capsys, "resume", name, "--rounds", "5", code=2)


def test_a_fork_goes_on_from_a_checkpoint_and_says_if_nothing_is_left(
    train: Callable[..., str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = Path(train("--rounds", "2"))
    words = ["fork", f"digits/{first.name}", "--set", "algorithm.beta=0.3", "--on", "local", "--no-report"]
    out = said(capsys, *words, "--name", "copied")
    assert re.search(r"copied/\S+ is finished: 2 rounds, nothing left to do; --rounds extends it", out)
    out = said(capsys, *words, "--name", "longer", "--rounds", "3")
    assert "round 3 of 3" in out and "nothing left" not in out and "beta=0.3" in out
    assert "no checkpoint after round 1" in said(capsys, *words, "--name", "none", "--at", "1", code=2)


def test_an_asynchronous_run_says_who_is_at_work_and_that_it_leans(
    capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    words = ["run", *QUICK, "--on", "local", "--shard-root", str(shards), "--rounds", "6", "--no-report"]
    words += ["--set", "algorithm=fedavg", "--set", "devices=lognormal", "--set", "devices.dropout=0.2"]
    words += ["--set", "stragglers=buffered", "--set", "stragglers.concurrency=6", "--set", "stragglers.report_goal=3"]
    out = said(capsys, *words)
    assert re.search(r"^round 6 of 6 · .* · virtual \S+ s · [\d,]+ clients/s", out, re.M)
    assert re.search(r"^virtual time +\S+ s$", out, re.M)
    told = re.search(r"^clients +(\d+) asked, 18 answered, (\d+) left, 5 still at work$", out, re.M)
    assert told is not None and int(told[1]) == 18 + int(told[2]) + 5
    assert re.search(r"^leans to fast clients +the tenth of the clients that .* staleness \S+ on average", out, re.M)
    assert out.index("clients  ") > out.index("test accuracy")  # among the last lines


def test_clients_that_failed_are_told_even_by_quiet_commands(
    capsys: pytest.CaptureFixture[str], shards: Path, tmp_path: Path
) -> None:
    recipe_file(
        tmp_path, "sometimes_nan.py",
        """
        from dataclasses import dataclass
        from raygrad.algorithms.fedavg import FedAvg
        from raygrad.experiment import Experiment, Gangs
        from raygrad.models import Linear

        @dataclass(frozen=True)
        class Sometimes(FedAvg):
            def local(self, task, x):
                answer = super().local(task, x)
                bad = float("nan") if task.examples < 128 else 1.0
                return type(answer)({"delta": bad * answer.update["delta"]})

        def recipe():
            return Experiment(model=Linear(), algorithm=Sometimes(), rounds=2, gangs=Gangs(5, "loop"))
        """,
    )  # fmt: skip
    words = ["run", "sometimes_nan.py", "--on", "local", "--shard-root", str(shards), "--no-report"]
    assert "not finite" in said(capsys, *words, code=3)
    skip = ["--set", "failures.nan=skip"]
    out = said(capsys, *words, *skip)
    told = re.search(r"^clients +(20 asked, (\d+) answered, (\d+) rejected \(not finite\))$", out, re.M)
    assert told is not None and int(told[2]) + int(told[3]) == 20 and 0 < int(told[3]) < 20
    capsys.readouterr()
    assert cli.run([*words, *skip, "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.count("\n") == 1 and err == f"clients  {told[1]}\n"


def test_a_changed_experiment_is_not_resumed(train: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(train("--rounds", "1")) / "experiment.json"
    record = json.loads(file.read_text())
    record["experiment"]["algorithm"]["lr"] = 0.2
    file.write_text(json.dumps(record))
    error = said(capsys, "resume", "digits", code=2)
    assert "was changed since the run started" in error and error.count("\n") == 1


def test_a_damaged_record_is_named(train: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    file = Path(train("--rounds", "1")) / "experiment.json"
    record = json.loads(file.read_text())
    for broken in ({"schema_version": 1, "name": "digits"}, record | {"schema_version": 99}, []):
        file.write_text(json.dumps(broken))
        error = said(capsys, "resume", "digits", code=2)
        assert "experiment.json" in error and error.count("\n") == 1


def test_quiet_prints_the_folder_and_names_may_be_chosen(train: Callable[..., str]) -> None:
    folder = train("--rounds", "1", "--name", "mine", "--run-root", "elsewhere")
    assert re.fullmatch(r"elsewhere/mine/\d{8}-\d{6}-[0-9a-f]{6}", folder)
    assert not (Path(folder) / "report.html").exists()


def test_divergence_is_exit_3_with_round_client_and_a_checkpoint(
    train: Callable[..., str], capsys: pytest.CaptureFixture[str], shards: Path
) -> None:
    words = ["run", *QUICK, "--on", "local", "--shard-root", str(shards), "--alpha", "1e38", "--rounds", "3"]
    error = said(capsys, *words, code=3)
    assert re.search(r"raygrad: .* is not finite in round \d+ at client \d", error)
    assert "--alpha" in error.splitlines()[1]
    (folder,) = Path("runs/digits").iterdir()
    assert list(folder.glob("checkpoints/*/meta.json"))


def test_export_and_start_from_it(train: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    import torch
    from safetensors.torch import load_file

    folder = train("--rounds", "2")
    out = said(capsys, "export", "digits", "model.safetensors")
    assert out.startswith("model.safetensors: 2 tensors, 650 numbers, after round 2")
    exported, module = load_file("model.safetensors"), load(folder).module()
    assert exported.keys() == module.state_dict().keys()
    assert all(torch.equal(exported[n], t) for n, t in module.state_dict().items())
    assert "--force" in said(capsys, "export", "digits", "model.safetensors", code=2)
    said(capsys, "export", "digits", "model.safetensors", "--force")
    assert "cannot be written" in said(capsys, "export", "digits", "nowhere/model.safetensors", code=2)

    still = train("--init", "model.safetensors", "--alpha", "0", "--beta", "0", "--rounds", "1")
    started = load(still)
    assert all(torch.equal(exported[n], t) for n, t in started.module().state_dict().items())
    assert started.experiment.init_sha256 is not None
    # Other weights under the name that was recorded are refused.
    train("--rounds", "1", "--seed", "5")
    said(capsys, "export", "digits", "model.safetensors", "--force")
    assert "is not the file" in said(capsys, "run", still, "--on", "local", code=2)


def test_reports_and_lists_of_runs(train: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    one, two = train("--rounds", "4"), train("--rounds", "4", "--set", "algorithm=fedavg", "--name", "plain")
    out = said(capsys, "report", one, "plain", "--out", "both.html", "--target", "0.2")
    header, first, second = out.splitlines()[:3]
    assert "rounds to 0.2" in header and "fedga" in first and "fedavg" in second
    assert "<html" in Path("both.html").read_text()
    out = said(capsys, "report", one)
    assert "communications" in out and (Path(one) / "report.html").is_file()
    # The same run twice is one run.
    assert said(capsys, "report", one, "digits") == out

    (Path(two) / "experiment.json").write_text("{")
    out = said(capsys, "list", "runs")
    assert re.search(rf"digits/{Path(one).name}\s+4 of 4\s+0\.\d+ validation\s+finished\s+fedga", out)
    assert re.search(r"plain/\S+\s+damaged", out)
    assert "no runs in empty" in said(capsys, "list", "runs", "--run-root", "empty")
    assert "no sweeps in runs" in said(capsys, "list", "sweeps")


@pytest.mark.parametrize(
    ("what", "expected"),
    [
        ("recipes", ["digits ", "FedGA on scikit-learn's 8 x 8 digits"]),
        ("algorithms", ["scaffold  (algorithm=scaffold)", "algorithm.option = II", "SCAFFOLD: control variates"]),
        ("datasets", ["data.path = (must be set)", "image-folder  (data=image-folder)"]),
        ("partitioners", ["partition.concentration = 0.5"]),
        ("models", ["model.hidden = 64", "resnet"]),
        (
            "samplers",
            ["sampler.cohort = 10", "power-of-choice  (sampler=power-of-choice)", "sampler.preferred_s = none"],
        ),
        ("devices", ["lognormal  (devices=lognormal)", "devices.slowness = 1.0,4.0", "devices.path = (must be set)"]),
        ("stragglers", ["over-select  (stragglers=over-select)", "stragglers.factor = 1.3", "stragglers.hinge = 4"]),
        ("membership", ["membership.rounds = 1", "membership.clients = 10", "everybody  (membership=everybody)"]),
        ("schedules", ["schedule.length = 1000"]),
        ("regularizers", ["spectral  (regularizer=spectral)", "regularizer.iterations = 10"]),
        ("tasks", ["label-flips  (tasks=label-flips)", "tasks.every = 10"]),
    ],
)
def test_lists(what: str, expected: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "list", what)
    assert all(text in out for text in expected)


def test_methods_around_alignment_are_listed_with_their_papers(capsys: pytest.CaptureFixture[str]) -> None:
    """As an algorithm or as a recipe."""
    wanted = (
        "fedavgm fedadagrad fedadam fedyogi feddyn fedaware divebatch adabatch spectral wasserstein dsgd lfgd lfsgd "
        "width local-gd"
    )
    recipes = dict(line.split(maxsplit=1) for line in said(capsys, "list", "recipes").splitlines())
    for name in wanted.split():
        papers = citations.of_kind(ALGORITHMS[name], whole_file=True) if name in ALGORITHMS else []
        assert papers or re.search(r"\(arXiv \d{4}\.\d{5}", recipes[name]), name
    assert "(arXiv 2106.06639" in recipes["fedbuff"]


def test_papers_are_spelled_with_letters(capsys: pytest.CaptureFixture[str]) -> None:
    assert '"Rényi Differential Privacy"' in said(capsys, "list", "algorithms")
    assert not [r.short for r in citations.REFERENCES.values() if "\\" in r.short or "{" in r.short]


def test_partition_describes_and_draws(shards: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["partition", "--set", "partition=dirichlet", "--seed", "3", "--shard-root", str(shards)]
    out = said(capsys, *words, "--out", "clients.png")
    assert re.search(r"^clients +10$", out, re.M)
    assert re.search(r"labels per client +min \d+, median \d", out)
    assert Path("clients.png").read_bytes().startswith(b"\x89PNG")


def test_citations_are_bibtex(capsys: pytest.CaptureFixture[str]) -> None:
    out = said(capsys, "cite")
    assert "2106.13897" in out and "6454--6462" in out and "title   = {raygrad}" in out
    assert out.count("{") == out.count("}") and len(re.findall(r"^@\w+\{\w+,$", out, re.M)) == 2


def test_a_run_is_cited_with_all_that_it_used(train: Callable[..., str], capsys: pytest.CaptureFixture[str]) -> None:
    run = train(
        "--rounds", "1", "--set", "algorithm=fedadam", "--set", "algorithm.inner=feddyn", "--set", "sampler=oort"
    )
    out = said(capsys, "cite", run)
    assert re.findall(r"arXiv:([0-9.]+)", out) == ["2106.13897", "2003.00295", "2111.04263", "2010.06081"]
    assert "author    = {Acar, Durmus Alp Emre and" in out and out.count("{") == out.count("}")


def test_every_paper_that_is_named_is_known() -> None:
    registries = (ALGORITHMS, MODELS, SAMPLERS, POLICIES, PARTITIONERS, DEVICES)
    kinds = [cls for registry in registries for cls in registry.values()]
    numbers = {n for cls in kinds for n in citations.of_kind(cls, whole_file=cls in ALGORITHMS.values())}
    assert numbers <= citations.REFERENCES.keys() and len(numbers) >= 14
    lacking = [name for name, cls in ALGORITHMS.items() if not citations.of_kind(cls, whole_file=True)]
    assert lacking == []
    assert len({r.key for r in citations.REFERENCES.values()}) == len(citations.REFERENCES)


def test_verify_reports_each_check_and_fails_with_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygrad import verify

    asked: list[tuple[str, bool]] = []

    def suite(reference: str, *, on_ray: bool = True) -> Iterator[Check]:
        asked.append((reference, on_ray))
        yield Check("first", True, "all [well]")
        yield Check("second", reference == "fedavg", "0.1 apart")

    monkeypatch.setattr(verify, "suite", suite)
    out = said(capsys, "verify", "fedavg")
    assert [line.split()[:2] for line in out.splitlines()[:2]] == [["ok", "first"], ["ok", "second"]]
    assert "all [well]" in out and "all 2 checks hold" in out
    error = said(capsys, "verify", "my:Algorithm", "--on", "local", code=1)
    assert error == "raygrad: 1 of 2 checks failed for my:Algorithm\n"
    assert asked == [("fedavg", True), ("my:Algorithm", False)]


@pytest.mark.parametrize("command", ["run digits", "verify faults digits"])
def test_a_ray_that_is_joined_is_shown_the_token(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from raygrad import verify

    shown = []
    monkeypatch.setattr("raygrad.onray.tokens.use_by_default", lambda: shown.append(command))
    words = [*command.split(), "--address", "127.0.0.1:1"]
    assert "no Ray answers at 127.0.0.1:1" in said(capsys, *words, code=2)
    assert shown.pop() == command
    monkeypatch.setattr(verify, "suite", lambda reference, on_ray: iter(()))
    said(capsys, "verify", "fedavg")
    assert not shown  # no Ray is joined
    monkeypatch.setenv("RAY_ADDRESS", "127.0.0.1:1")
    said(capsys, "verify", "fedavg")
    assert shown == [command]


# --- signals and Ray ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_leaves_a_run_that_can_be_resumed(
    number: int, code: int, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [sys.executable, "-m", "raygrad", "run", *QUICK, "--on", "local", "--rounds", "1000000"]
    words += ["--shard-root", str(shards)]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    for line in process.stdout:
        if line.startswith("round"):
            break
    time.sleep(0.1)
    os.kill(process.pid, number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    name = re.search(r"`raygrad resume (digits/\S+)`", error)
    assert name is not None and "Traceback" not in error
    folder = tmp_path / "runs" / name[1]
    done = load(folder).checkpoint.round
    assert done >= 1
    said(capsys, "resume", name[1], "--rounds", str(done + 2), "--quiet", "--no-report")
    assert load(folder).checkpoint.round == done + 2


def test_a_stop_is_saved_within_the_grace_time_of_a_job(shards: Path, tmp_path: Path) -> None:
    """Three seconds after SIGTERM a Ray job is killed; the rounds that it has told of are in a checkpoint then."""
    words = [sys.executable, "-m", "raygrad", "run", *QUICK, "--on", "local", "--rounds", "1000000"]
    words += ["--shard-root", str(shards), "--set", "checkpoints.every=1000000"]
    process = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    told = 0
    while told < 5:
        line = process.stdout.readline()
        told = int(line.split()[1]) if re.match(r"round +\d", line) else told
    process.terminate()
    try:
        process.communicate(timeout=3)
    except subprocess.TimeoutExpired:
        process.kill()
        process.communicate()
    (folder,) = (tmp_path / "runs" / "digits").iterdir()
    assert load(folder).checkpoint.round >= told


def test_a_signal_while_ray_waits_ends_the_command(shards: Path, tmp_path: Path) -> None:
    """Inside of Ray's waiting a handler's exception becomes a SystemError."""
    words = [sys.executable, "-m", "raygrad", "run", *QUICK, "--on", "ray", "--hosts", "1"]
    process = subprocess.Popen(
        [*words, "--shard-root", str(shards)], cwd=tmp_path, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert any(line.startswith("starting") for line in process.stdout)
    time.sleep(0.1)
    process.terminate()
    _, error = process.communicate(timeout=60)
    assert process.returncode == 75 and "Traceback" not in error, error


@pytest.mark.parametrize("after", [0.6, 1.2, 2.0, 3.0])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 75)])
def test_a_signal_while_ray_starts_ends_the_command(number: int, code: int, after: float, tmp_path: Path) -> None:
    """Whatever the command is at then: importing in two threads, preparing the data, waiting for Ray."""
    words = [sys.executable, "-m", "raygrad", "run", "--rounds", "1000000"]
    process = subprocess.Popen(words, cwd=tmp_path, stderr=subprocess.PIPE, text=True, start_new_session=True)
    modules = Path(f"/proc/{process.pid}/maps")
    while modules.exists() and "_raylet" not in modules.read_text() and process.poll() is None:
        time.sleep(0.02)
    time.sleep(after - 0.5)
    os.killpg(process.pid, number) if number == signal.SIGINT else process.send_signal(number)
    _, error = process.communicate(timeout=60)
    assert process.returncode == code, error
    assert "Traceback" not in error and len(error.splitlines()) <= 2


def test_a_recipe_file_with_its_own_algorithm_runs_on_ray_with_the_same_bits(
    ray_local: None, shards: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "deep").mkdir()
    recipe_file(
        tmp_path / "deep", "own_recipe_of_test_cli.py",
        """
        from dataclasses import dataclass
        from raygrad import Experiment
        from raygrad.algorithms.fedavg import FedAvg
        from raygrad.models import Linear

        @dataclass(frozen=True)
        class Own(FedAvg):
            boost: float = 2.0

            def local(self, task, x):
                answer = super().local(task, x)
                return type(answer)({"delta": self.boost * answer.update["delta"]})

        def recipe():
            return Experiment(model=Linear(), algorithm=Own(lr=1), rounds=3)
        """,
    )  # fmt: skip
    words = ["run", "deep/own_recipe_of_test_cli.py", "--quiet", "--no-report", "--shard-root", str(shards)]
    local = said(capsys, *words, "--on", "local").strip()
    on_ray = said(capsys, *words, "--on", "ray", "--hosts", "2").strip()
    assert load(on_ray).experiment.to_json()["algorithm"] == {
        "kind": "own_recipe_of_test_cli:Own", "lr": 1.0, "server_lr": 1.0, "boost": 2.0,
    }  # fmt: skip
    assert said(capsys, "digest", on_ray) == said(capsys, "digest", local)
    hosts = set(load(on_ray).table("operations")["host"].to_pylist())
    assert "local" not in hosts
    # What began on Ray goes on in this process.
    for run in (on_ray, local):
        said(capsys, "resume", run, "--on", "local", "--rounds", "4", "--quiet", "--no-report")
    assert said(capsys, "digest", on_ray) == said(capsys, "digest", local)


# --- the display ----------------------------------------------------------------------------------------------------


def a_round(index: int, of: int = 10, validation: dict[str, float] | None = None, r: float | None = None) -> Round:
    alignment = None if r is None else Alignment(10, r, 1.0, 2.0, 0.5)
    return Round(
        index, of, np.arange(10), 2.0 / index, validation, None, alignment, 2 * index, 0, 0, 0.5, 0.5 * index, Path(),
        None,  # pyright: ignore[reportArgumentType]
    )  # fmt: skip


def test_the_pace_is_that_of_the_last_rounds() -> None:
    now = iter([10.0, 12.0, 14.0])
    reading = Reading(lambda: next(now))
    reading.take(a_round(1))
    assert reading.seconds_left is None
    reading.take(a_round(2))
    reading.take(a_round(3, validation={"accuracy": 0.5, "loss": 1.5, "examples": 9.0}, r=0.25))
    assert reading.seconds_left == pytest.approx(7 * 2.0)  # rounds left times seconds per round
    assert reading.clients_per_s == pytest.approx(20.0)  # 10 clients in half a second
    assert reading.parts() == ["validation accuracy 0.5000", "loss 1.5", "r(x) 0.25", "20 clients/s"]
    reading = Reading(lambda: 0.0)
    reading.take(replace(a_round(1), virtual_s=12.34))
    assert reading.parts() == ["training loss 2", "virtual 12.3 s", "20 clients/s"]


def test_plain_lines_come_with_evaluations_and_with_time() -> None:
    times = [0.0]
    console = Console(record=True, width=200, file=StringIO())
    lines = Lines(console, lambda: times[0])
    for index in range(1, 11):
        judged = {"accuracy": 0.9, "loss": 0.1, "examples": 5.0} if index == 4 else None
        lines.show(a_round(index, validation=judged))
        times[0] += 0.5
    shown = [int(n) for n in re.findall(r"^round (\d+) of 10", console.export_text(), re.M)]
    assert shown == [1, 4, 8, 10]  # first, evaluated, two seconds later, last


def test_the_live_display_shows_the_last_round() -> None:
    console = Console(record=True, width=120, force_terminal=True, file=StringIO())
    with Screen(console) as screen:
        screen.waiting("starting 2 hosts")
        screen.say("a note [as it is]")
        for index in (1, 2, 3):
            screen.show(a_round(index, validation={"accuracy": 0.25 * index, "loss": 1.0, "examples": 5.0}))
    text = console.export_text()
    assert "a note [as it is]" in text and "round 3 of 10" in text and "validation accuracy 0.7500" in text


@pytest.mark.parametrize(("seconds", "text"), [(0.4, "0:00"), (61.6, "1:02"), (3600 * 3 + 130, "3:02:10")])
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(("seconds", "text"), [(0.01234, "0.0123 s"), (99.4, "99.4 s"), (725.2, "12:05")])
def test_virtual_durations(seconds: float, text: str) -> None:
    assert virtual(seconds) == text
