"""House rules as programs: who may import whom, what must not be in the tree, how long a file may get."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGE = ROOT / "raygrad"
MODULES = sorted(PACKAGE.rglob("*.py"))


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(p for p in parts if p != "__init__")


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """The modules that a file imports; with `top_level_only` not those inside functions or TYPE_CHECKING."""
    tree = ast.parse(path.read_text())
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found: set[str] = set()
    for node in nodes:
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found.add(node.module)
            found |= {f"{node.module}.{a.name}" for a in node.names if (ROOT / node.module.replace(".", "/")).is_dir()}
    return found


def own(path: Path, **kw: bool) -> set[str]:
    return {m for m in imports(path, **kw) if m.split(".")[0] == "raygrad"}


def outside(path: Path) -> set[str]:
    return {m.split(".")[0] for m in imports(path)} - {"raygrad"} - set(sys.stdlib_module_names)


BASE = {"raygrad.errors", "raygrad.logs", "raygrad.naming", "raygrad.rng", "raygrad"}
# What each core module may import of raygrad, and of others.
LAYERS: dict[str, tuple[set[str], set[str]]] = {
    "raygrad.errors": (set(), set()),
    "raygrad.naming": ({"raygrad.errors"}, set()),
    "raygrad.logs": ({"raygrad.errors"}, set()),
    "raygrad.hosts": ({"raygrad.errors"}, set()),
    "raygrad.rng": (set(), {"numpy"}),
    "raygrad.sweeps.space": (BASE, set()),
    "raygrad.contract": ({"raygrad.rng"}, {"numpy", "torch"}),
    "raygrad.hull": (set(), {"numpy", "scipy", "threadpoolctl", "torch"}),
    "raygrad.mixing": (BASE, {"numpy", "scipy", "torch"}),
    "raygrad.objectives": (BASE, {"torch"}),
    "raygrad.models": (BASE, {"torch"}),
    "raygrad.flat": (BASE | {"raygrad.models"}, {"torch"}),
    "raygrad.local": (BASE | {"raygrad.contract"}, {"torch"}),
    "raygrad.regularizers": (BASE | {"raygrad.flat"}, {"torch"}),
    "raygrad.samplers": (BASE | {"raygrad.contract"}, {"numpy", "torch"}),
    "raygrad.stragglers": (BASE | {"raygrad.devices.base"}, {"numpy"}),
    "raygrad.faults": (BASE, {"numpy"}),
    "raygrad.talk": (BASE | {"raygrad.contract", "raygrad.gang"}, {"numpy", "torch"}),
    "raygrad.membership": (BASE, {"numpy"}),
    "raygrad.costs": (BASE | {"raygrad.contract", "raygrad.local"}, {"numpy", "torch"}),
    "raygrad.schedules": (BASE, set()),
    "raygrad.streams": (BASE, {"torch"}),
    "raygrad.devices.base": (BASE, {"numpy"}),
    "raygrad.devices.none": (BASE | {"raygrad.devices.base"}, {"numpy"}),
    "raygrad.devices.drawn": (BASE | {"raygrad.devices.base"}, {"numpy"}),
    "raygrad.devices.timelines": (BASE, {"numpy", "pyarrow"}),
    "raygrad.devices.trace": (BASE | {"raygrad.devices.base", "raygrad.devices.timelines"}, {"numpy"}),
    "raygrad.devices.diurnal": (
        BASE | {"raygrad.devices.base", "raygrad.devices.drawn"},
        {"numpy", "pyarrow"},
    ),
    "raygrad.files.storage": (BASE, {"pyarrow"}),
    "raygrad.files.remote": (BASE | {"raygrad.files", "raygrad.files.storage"}, {"pyarrow"}),
    "raygrad.files.mirror": (BASE | {f"raygrad.files{n}" for n in ("", ".storage", ".remote")}, set()),
    "raygrad.alignment": (BASE | {"raygrad.contract", "raygrad.local"}, {"numpy", "torch"}),
    "raygrad.gang": (BASE | {"raygrad.contract"}, {"numpy", "torch"}),
    "raygrad.driver": (
        BASE
        | {
            f"raygrad.{name}"
            for name in (
                "asynchronous",
                "contract",
                "costs",
                "devices.base",
                "faults",
                "gang",
                "local",
                "stragglers",
                "talk",
            )
        },
        {"numpy", "torch"},
    ),
}


@pytest.mark.parametrize("module", sorted(LAYERS))
def test_layers(module: str) -> None:
    path = ROOT / (module.replace(".", "/") + ".py")
    ours, others = LAYERS[module]
    assert own(path) <= ours
    assert outside(path) <= others


@pytest.mark.parametrize("path", sorted((PACKAGE / "algorithms").glob("*.py")), ids=lambda p: p.stem)
def test_algorithms_know_neither_ray_nor_files(path: Path) -> None:
    allowed = BASE | {f"raygrad.{name}" for name in ("config", "contract", "hull", "local", "mixing", "privacy")}
    assert {m for m in own(path) if not m.startswith("raygrad.algorithms")} <= allowed
    assert outside(path) <= {"torch"}
    assert not imports(path) & {"os", "pathlib", "io", "random"}


def test_only_onray_imports_ray() -> None:
    guilty = [name_of(p) for p in MODULES if "ray" in outside(p) and PACKAGE / "onray" not in p.parents]
    assert guilty == []


def test_a_local_run_imports_no_ray(tmp_path: Path) -> None:
    code = (
        "import sys, raygrad\n"
        "from raygrad.verify import problem\n"
        "from raygrad.algorithms.fedga import FedGA\n"
        f"list(raygrad.rounds(problem(FedGA()), raygrad.Where(on='local'), run_root={str(tmp_path)!r}))\n"
        "sys.exit(bool({'ray', 'torch._inductor'} & set(sys.modules)))"  # the compiler takes seconds
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=600).returncode == 0


def test_the_viewer_starts_without_torch() -> None:
    code = (
        "import sys, raygrad.commands.view, raygrad.viewer.server; sys.exit(bool({'torch', 'ray'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=120).returncode == 0


def test_nothing_in_the_package_imports_jobs_or_dashboards() -> None:
    assert not any({"jobs", "dashboards", "tests"} & outside(p) for p in MODULES)


@pytest.mark.parametrize("path", sorted((PACKAGE / "reports").glob("*.py")), ids=lambda p: p.stem)
def test_reports_read_tables_only(path: Path) -> None:
    """Reports know no driver and no experiment, and matplotlib is imported when something is drawn."""
    names = ["citations", "errors", "logs", "files", "files.storage", "files.tables"]
    if path.stem == "sweep_report":
        names += [
            "files.mirror",
            "files.remote",
            "sweeps",
            *(f"sweeps.{n}" for n in ("space", "sweep", "trial", "trials")),
        ]
    assert {m for m in own(path) if not m.startswith("raygrad.reports")} <= {
        "raygrad",
        *(f"raygrad.{n}" for n in names),
    }
    assert not imports(path, top_level_only=True) & {"matplotlib", "torch"}


def test_no_cycles_among_modules() -> None:
    """Top-level imports form no cycle."""
    graph = {name_of(p): {m for m in own(p, top_level_only=True) if m != name_of(p)} for p in MODULES}
    done: set[str] = set()

    def visit(module: str, path: tuple[str, ...]) -> None:
        assert module not in path, " -> ".join((*path, module))
        if module in done or module not in graph:
            return
        for other in graph[module]:
            if other != "raygrad":
                visit(other, (*path, module))
        done.add(module)

    for module in graph:
        visit(module, ())


def test_randomness_is_addressed() -> None:
    """No module draws from a global or unseeded generator."""
    global_draw = re.compile(
        r"np\.random\.(?!Generator|PCG64|SeedSequence)|\brandom\.(random|choice|shuffle|randint)\(|default_rng\(\)"
    )
    guilty = [name_of(p) for p in MODULES if global_draw.search(p.read_text())]
    assert guilty == []


def test_nothing_is_unpickled_from_files() -> None:
    forbidden = re.compile(r"\bpickle\.load\(|(?<!safetensors\.)\btorch\.load\(|allow_pickle=True")
    assert [name_of(p) for p in MODULES if forbidden.search(p.read_text())] == []


def test_public_things_have_docstrings() -> None:
    missing = []
    for path in MODULES:
        tree = ast.parse(path.read_text())
        if ast.get_docstring(tree) is None:
            missing.append(name_of(path))
        for node in tree.body:
            if (
                isinstance(node, ast.FunctionDef | ast.ClassDef)
                and not node.name.startswith("_")
                and ast.get_docstring(node) is None
            ):
                missing.append(f"{name_of(path)}.{node.name}")
    assert missing == []


def test_algorithm_files_stay_short() -> None:
    long = {p.name: n for p in (PACKAGE / "algorithms").glob("*.py") if (n := len(p.read_text().splitlines())) > 110}
    assert long == {}


def test_files_stay_readable() -> None:
    long = {name_of(p): n for p in MODULES if (n := len(p.read_text().splitlines())) > 900}
    assert long == {}


def test_no_module_is_named_like_a_drawer() -> None:
    assert not {p.stem for p in MODULES} & {"utils", "util", "helpers", "common", "misc"}


def test_style_and_types() -> None:
    for tool in (["ruff", "check", "."], ["ruff", "format", "--check", "."], ["pyright"]):
        done = subprocess.run([sys.executable, "-m", *tool], cwd=ROOT, capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
