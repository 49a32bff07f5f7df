import ast
import sys
from collections.abc import Container, Iterator
from graphlib import TopologicalSorter
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parents[2] / "infnet_dist"
FILES = sorted(PACKAGE.rglob("*.py"))

# docs/architecture.md: a module imports only from its own room and from rooms above it.
ORDER = [
    "errors",
    "io",
    "schema",
    "batch",
    "config",
    "lookups",
    "distributed",
    "features",
    "data",
    "ingest",
    "model",
    "planning",
    "sharding",
    "evaluation",
    "reranking",
    "checkpoint",
    "warm_start",
    "deltas",
    "rolling",
    "tracking",
    "training",
    "prediction",
    "serving",
    "profiling",
    "comparison",
    "contrib",
]
ALONE = "tools"  # the doctor must run where everything else is broken


def modules() -> dict[str, list[Path]]:
    """Top-level modules of the package and their files."""
    found: dict[str, list[Path]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        top = path.relative_to(PACKAGE).parts[0].removesuffix(".py")
        if top != "__init__":
            found.setdefault(top, []).append(path)
    return found


def imports(path: Path) -> Iterator[tuple[int, str]]:
    """Line and full name of everything a file imports, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield node.lineno, alias.name
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}:{node.lineno}: relative import; name it in full"
            for alias in node.names:
                yield node.lineno, f"{node.module}.{alias.name}"


def ours(name: str) -> str | None:
    """The top-level module that an import of ours names; None for other packages."""
    package, _, rest = name.partition(".")
    return rest.split(".")[0] if package == "infnet_dist" else None


def place(path: Path, line: int) -> str:
    return f"{path.relative_to(PACKAGE.parent)}:{line}"


def test_every_module_has_a_place():
    unknown = sorted(set(modules()) - {*ORDER, ALONE})
    assert not unknown, f"{unknown} have no place in ORDER: put them where they belong"
    hubs = [path for path in PACKAGE.rglob("*.py") if path.stem in {"util", "utils", "helpers"}]
    assert not hubs, f"{hubs}: name a module after what it does"


@pytest.mark.parametrize("module", ORDER)
def test_imports_only_rooms_above(module: str):
    allowed = set(ORDER[: ORDER.index(module) + 1]) | {"__version__"}
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in modules().get(module, [])
        for line, name in imports(path)
        if ours(name) is not None and ours(name) not in allowed
    ]
    assert not wrong, f"{module} imports rooms below it: {wrong}"


def test_no_module_imports_itself_by_way_of_others():
    names = {
        path: ".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in FILES
    }
    by_name = {name.removesuffix(".__init__"): path for path, name in names.items()}
    graph = {
        name: {found for _, one in imports(path) if (found := _module(one, by_name)) != name}
        for name, path in by_name.items()
    }
    TopologicalSorter({name: found - {None} for name, found in graph.items()}).prepare()


def _module(name: str, known: Container[str]) -> str | None:
    """The module of ours that has this name, or that holds the thing of this name."""
    return next((n for n in (name, name.rpartition(".")[0]) if n in known), None)


def test_library_knows_nothing_of_ray():
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in PACKAGE.rglob("*.py")
        if path.stem != "doctor_probes"  # it tries out whether ray loads
        for line, name in imports(path)
        if name.split(".")[0] in {"ray", "ray_jobs"}
    ]
    assert not wrong, wrong


def test_towers_are_innocent():
    allowed = {"torch", *sys.stdlib_module_names}
    own = ("infnet_dist.model.tokens.", "infnet_dist.model.towers.")
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in (PACKAGE / "model" / "towers").rglob("*.py")
        for line, name in imports(path)
        if (name.split(".")[0] not in allowed and not name.startswith(own))
        or name.startswith("torch.distributed")
    ]
    assert not wrong, f"towers import torch, tokens and one another alone: {wrong}"


def test_bundles_are_read_with_torch_and_numpy_alone():
    """What `serving.bundle` imports, and what that imports; test_export.py runs it."""
    waiting, seen = ["infnet_dist.serving.bundle"], set()
    while waiting:
        path = PACKAGE.parent.joinpath(*waiting.pop().split(".")).with_suffix(".py")
        if path in seen:
            continue
        seen.add(path)
        for line, name in imports(path):
            if ours(name) is not None:
                waiting.append(name.rpartition(".")[0])
            else:
                top = name.split(".")[0]
                light = {"torch", "numpy", *sys.stdlib_module_names}
                assert top in light, f"{place(path, line)} imports {name}"
    assert len(seen) > 4


def test_features_need_numpy_alone():
    """A server that encodes requests has nothing else; torch is in one module."""
    allowed = {"numpy", *sys.stdlib_module_names}
    wrong = [
        f"{place(path, line)} imports {name}"
        for path in (PACKAGE / "features").glob("*.py")
        for line, name in imports(path)
        if name.split(".")[0] not in allowed
        and not name.startswith(("infnet_dist.features.", "infnet_dist.errors."))
        and not (path.stem == "torch_backend" and name.split(".")[0] == "torch")
    ]
    assert not wrong, wrong


def test_doctor_needs_nothing():
    allowed = {"rich", *sys.stdlib_module_names}
    doctor = PACKAGE / "tools" / "doctor.py"
    wrong = [name for _, name in imports(doctor) if name.split(".")[0] not in allowed]
    assert not wrong, wrong
    for path in (PACKAGE / "tools").glob("*.py"):
        assert not [name for _, name in imports(path) if ours(name)]


def test_package_itself_imports_nothing():
    assert list(imports(PACKAGE / "__init__.py")) == []


# Functions that run code held in data, and where they may be used.
RUNS_CODE = {
    *(
        f"{module}.{name}"
        for module in ("pickle", "dill", "cloudpickle", "marshal")
        for name in ("load", "loads", "Unpickler", "_Unpickler")
    ),
    *("torch.load", "joblib.load", "shelve.open", "pandas.read_pickle", "pd.read_pickle"),
    *("yaml.load", "yaml.load_all", "yaml.full_load", "yaml.unsafe_load", "yaml.Loader"),
    *("yaml.FullLoader", "yaml.UnsafeLoader", "eval", "exec", "compile", "__import__"),
}
ALLOWED_CODE = {
    ("infnet_dist/io/parsing.py", "yaml.load"),  # with a loader below SafeLoader
    # Petastorm keeps pickles: they are opened with a list of the few names that may stand there.
    ("infnet_dist/contrib/petastorm/unischema_pickle.py", "pickle._Unpickler"),
    # What a worker process that this very process started sends through its pipe.
    ("ray_jobs/_local.py", "pickle.loads"),
}


def runs_code(path: Path) -> Iterator[tuple[int, str]]:
    """Line and name of everything in a file that may run code of data."""
    for node in ast.walk(ast.parse(path.read_text(), str(path))):
        if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name):
            if (name := f"{node.value.id}.{node.attr}") in RUNS_CODE:
                yield node.lineno, name
        elif isinstance(node, ast.Name) and node.id in RUNS_CODE:
            if not isinstance(node.ctx, ast.Store):  # a key of a config may have such a name
                yield node.lineno, node.id
        elif isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if f"{node.module}.{alias.name}" in RUNS_CODE:
                    yield node.lineno, f"{node.module}.{alias.name}"
        elif isinstance(node, ast.keyword) and node.arg == "allow_pickle":
            if not (isinstance(node.value, ast.Constant) and node.value.value is False):
                yield node.value.lineno, "allow_pickle"


def test_data_is_never_run():
    root = PACKAGE.parent
    found = {
        (str(path.relative_to(root)), name): line
        for folder in ("infnet_dist", "ray_jobs")
        for path in (root / folder).rglob("*.py")
        for line, name in runs_code(path)
    }
    wrong = [f"{file}:{found[file, name]}: {name}" for file, name in found.keys() - ALLOWED_CODE]
    assert not wrong, f"{sorted(wrong)}: what is read may come from elsewhere; load it as data"
    assert not ALLOWED_CODE - found.keys(), "no longer needed: take it off the list"


def test_code_in_data_is_seen(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "import torch\nfrom pickle import loads\ntorch.load('x')\nmodel.eval()\neval('1')\n"
        "np.load('x', allow_pickle=True)\nnp.load('x', allow_pickle=False)\ncompile: bool = False\n"
    )
    names = {(2, "pickle.loads"), (3, "torch.load"), (5, "eval"), (6, "allow_pickle")}
    assert set(runs_code(path)) == names


def test_a_breach_is_seen(tmp_path: Path):
    path = tmp_path / "x.py"
    path.write_text(
        "def f():\n    from infnet_dist.training.trainer import fit\n    import ray.train\n"
    )
    assert list(imports(path)) == [(2, "infnet_dist.training.trainer.fit"), (3, "ray.train")]
    assert ours("infnet_dist.training.trainer.fit") == "training"
    assert ours("infnet_dist") == ""
    assert ours("torch.nn") is None
