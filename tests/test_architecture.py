"""The rules of ARCHITECTURE.md, checked on the source text: layers, where torch may live, sizes, packaging."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from functools import cache
from importlib.resources import files
from pathlib import Path

import pytest

from edgeyolo.profile import load_profile

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).resolve().parents[1]

LAYERS = (
    {"errors"},
    {"qtype"},
    {
        *("agreement", "assets", "bundle", "calibration", "detector", "draw", "images", "ort", "output", "packing"),
        *(
            "engine_process",
            "html",
            "jetson",
            "mobile",
            "nms",
            "plots",
            "postprocess",
            "profile",
            "profile_file",
            "program",
            "program_check",
            "program_facts",
        ),
        *("program_image", "progress", "targets"),
    },
    {"passes", "datasets"},
    {"frontend"},
    {"compress", "train"},
    {"quant"},
    {"lower", "runners"},
    {"finetune"},
    {"evaluate"},
    {"bootstrap"},
    {"bench"},
    {"export", "serve", "sheet"},
    {"verify_noise"},
    {"engine_build", "engine_layers", "verify", "verify_mobile", "verify_tensorrt"},
    {"cli"},
    {"__main__"},
)
"""Low to high. A module imports lower rows and its own sub-package; the modules of PEERS_ROW also one another."""

PEERS_ROW = 2

PLANNED = {"compress"}
"""Rows may name these before they exist."""

LOWERINGS = (
    {"fixed", "emit", "segments", "memory"},
    {"blobs", "blob_files", "blob_index", "ctables", "cnetwork", "seed_v1"},
    {"mobile", "tensorrt"},
)
"""The modules of ``lower`` by what they make; no group imports another."""

TORCH_HOMES = ("edgeyolo.frontend.darknet.", "edgeyolo.frontend.torch_export", "edgeyolo.runners.darknet",
               "edgeyolo.bench.backends.torch", "edgeyolo.bench.backends.torch_compile",
               "edgeyolo.compress", "edgeyolo.finetune", "edgeyolo.train")  # fmt: skip
"""Beginnings of the names of the modules that may import torch."""

DEVICE = ("edgeyolo.cli.detect", "edgeyolo.runners.integer", "edgeyolo.runners.engine", "edgeyolo.images",
          "edgeyolo.postprocess", "edgeyolo.draw", "edgeyolo.profile")  # fmt: skip
"""What runs a bundle on a device, where only the core dependencies are installed."""

EXTRAS = ("torch", "onnx", "onnx_ir", "onnxruntime", "onnxsim")
MAX_FILE_LINES = 400
MAX_FUNCTION_LINES = 60

WORKPLACE = re.compile(r"(?<![\w.])/(?:work|home|root|Users)/|(?<!\w)[.]library\b|\bfarm[-_ ]bench\b")
"""Somebody's machine. The project speaks only of itself."""


PACKAGES = (
    (ROOT / "edgeyolo", "edgeyolo"),
    (ROOT / "targets", "edgeyolo.targets"),
    (ROOT / "calibration", "edgeyolo.calibration"),
)
"""Where the modules of the package stand in the checkout."""


def _modules() -> dict[str, Path]:
    """Every module of the package with its file, as it is called once installed."""
    found = {}
    for folder, package in PACKAGES:
        for path in sorted(folder.rglob("*.py")):
            parts = path.relative_to(folder).with_suffix("").parts
            found[".".join((package, *parts)).removesuffix(".__init__")] = path
    return found


MODULES = _modules()


@cache
def _tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text("utf-8"))


def _targets(node: ast.stmt) -> list[str]:
    """What an import statement names; ``from package import module`` names the module."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    if not isinstance(node, ast.ImportFrom):
        return []
    assert node.level == 0, "imports are absolute"
    inner = [f"{node.module}.{alias.name}" for alias in node.names]
    return [name if name in MODULES else str(node.module) for name in inner]


def imports(module: str) -> set[str]:
    """Everything that ``module`` imports anywhere: inside functions and under TYPE_CHECKING too."""
    return {name for node in ast.walk(_tree(MODULES[module])) if isinstance(node, ast.stmt) for name in _targets(node)}


def eager_imports(module: str) -> set[str]:
    """What importing ``module`` imports at once."""
    found: set[str] = set()
    todo: list[ast.stmt] = list(_tree(MODULES[module]).body)
    while todo:
        node = todo.pop()
        found.update(_targets(node))
        if isinstance(node, ast.If) and "TYPE_CHECKING" not in ast.unparse(node.test):
            todo += [*node.body, *node.orelse]
        elif isinstance(node, ast.Try):
            todo += [*node.body, *(s for h in node.handlers for s in h.body), *node.orelse, *node.finalbody]
    return found


def _parents(module: str) -> list[str]:
    parts = module.split(".")
    return [".".join(parts[:i]) for i in range(1, len(parts) + 1)]


def _unit(module: str) -> str:
    """The name that stands in LAYERS: ``edgeyolo.quant.refine.equalise`` -> ``quant``."""
    return f"{module}.".split(".")[1]


def _row(unit: str) -> int:
    return next(i for i, row in enumerate(LAYERS) if unit in row)


def _may_use_torch(module: str) -> bool:
    return f"{module}.".startswith(tuple(f"{home.rstrip('.')}." for home in TORCH_HOMES))


def test_every_module_stands_in_exactly_one_layer():
    units = {_unit(m) for m in MODULES if _unit(m)}
    placed = [name for row in LAYERS for name in row]
    assert sorted(placed) == sorted(set(placed))
    assert units - set(placed) == set()
    assert set(placed) - units <= PLANNED, "a row names a module that does not exist"


def test_imports_point_downwards():
    wrong = []
    for module in MODULES:
        for target in imports(module):
            here, there = _unit(module), _unit(target)
            if not target.startswith("edgeyolo.") or here in ("", "targets") or here == there:
                continue
            if _row(there) > _row(here) or (_row(there) == _row(here) and _row(here) != PEERS_ROW):
                wrong.append(f"{module} imports {target}")
    assert wrong == []


def test_targets_import_nothing_of_the_package():
    wrong = [
        m for m in MODULES if m.startswith("edgeyolo.targets") and any(t.startswith("edgeyolo") for t in imports(m))
    ]
    assert wrong == []


def test_no_module_imports_itself_through_others():
    graph = {m: {t for t in eager_imports(m) if t in MODULES} - {m} for m in MODULES}
    for start, reached in graph.items():
        seen: set[str] = set()
        todo = [*reached]
        while todo:
            module = todo.pop()
            assert module != start, f"{start} is in a cycle of imports"
            if module not in seen:
                seen.add(module)
                todo += graph[module]


def test_no_lowering_imports_another():
    group = {name: i for i, names in enumerate(LOWERINGS) for name in names}
    prefix = "edgeyolo.lower."
    names = {m.removeprefix(prefix) for m in MODULES if m.startswith(prefix)}
    assert {name.split(".")[0] for name in names} == set(group), "every module of lower/ belongs to one group"
    wrong = [
        f"{name} imports {target}"
        for name in names
        for target in (t.removeprefix(prefix) for t in imports(prefix + name) if t.startswith(prefix))
        if group[target.split(".")[0]] != group[name.split(".")[0]]
    ]
    assert wrong == []


def test_torch_is_imported_in_its_homes_only():
    users = {m for m in MODULES if any(t.split(".")[0] == "torch" for t in imports(m))}
    assert users
    assert [m for m in users if not _may_use_torch(m)] == []


def test_torch_onnx_is_used_in_the_front_ends_only():
    users = {
        module
        for module, path in MODULES.items()
        for node in ast.walk(_tree(path))
        if (isinstance(node, ast.Attribute) and ast.unparse(node) == "torch.onnx")
        or (isinstance(node, ast.ImportFrom | ast.Import) and any(t.startswith("torch.onnx") for t in _targets(node)))
        or (isinstance(node, ast.ImportFrom) and node.module == "torch" and any(a.name == "onnx" for a in node.names))
    }
    assert "edgeyolo.frontend.torch_export" in users
    assert all(module.startswith("edgeyolo.frontend.") for module in users), users


@pytest.mark.parametrize("module", [m for m in MODULES if not _may_use_torch(m)])
def test_the_core_reaches_no_torch_when_imported(module):
    seen: set[str] = set()
    todo = _parents(module)
    while todo:
        name = todo.pop()
        assert name.split(".")[0] != "torch", f"by way of {sorted(seen)}"
        if name in MODULES and name not in seen:
            seen.add(name)
            todo += [p for target in eager_imports(name) for p in _parents(target)]


BLOCKED_IMPORT = """
import importlib, sys
blocked = set(sys.argv[1].split(","))
class Block:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in blocked:
            raise ModuleNotFoundError(name + " is blocked", name=name)
sys.meta_path.insert(0, Block())
for name in sys.argv[2].split(","):
    importlib.import_module(name)
"""


def _import_without(blocked: tuple[str, ...], names: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-c", BLOCKED_IMPORT, ",".join(blocked), ",".join(names)]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_the_core_imports_where_torch_is_missing(tmp_path):
    done = _import_without(("torch",), [m for m in MODULES if not _may_use_torch(m)], tmp_path)
    assert done.returncode == 0, done.stderr
    assert _import_without(("torch",), ["edgeyolo.frontend.torch_export"], tmp_path).returncode != 0


def test_a_device_needs_the_core_dependencies_only(tmp_path):
    done = _import_without(EXTRAS, list(DEVICE), tmp_path)
    assert done.returncode == 0, done.stderr


def _sources(*patterns: str) -> list[Path]:
    folders = [ROOT / name for name in ("edgeyolo", "targets", "tests", "benchmarks", "calibration")]
    return sorted(path for folder in folders for pattern in patterns for path in folder.rglob(pattern))


def test_files_are_short():
    long = {
        str(path.relative_to(ROOT)): count
        for path in _sources("*.py", "*.c", "*.h")
        if (count := len(path.read_text("utf-8").splitlines())) >= MAX_FILE_LINES
    }
    assert long == {}


def test_functions_are_short():
    long = {
        f"{path.relative_to(ROOT)}:{node.name}": count
        for path in _sources("*.py")
        for node in ast.walk(_tree(path))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
        and (count := (node.end_lineno or 0) - node.lineno + 1) >= MAX_FUNCTION_LINES
    }
    assert long == {}


def _pyproject() -> dict:
    return tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))


def test_every_folder_of_code_is_a_listed_package():
    stated = set(_pyproject()["tool"]["setuptools"]["packages"])
    assert stated == {m for m, path in MODULES.items() if path.name == "__init__.py"}


PROGRAMS = ("selftest", "bench", "bench-aarch64")
"""What make leaves in targets/engine/."""


def test_every_data_file_is_in_the_package():
    patterns = _pyproject()["tool"]["setuptools"]["package-data"]
    folders = {m: path.parent for m, path in MODULES.items() if path.name == "__init__.py"}
    packaged = {path for name in patterns for pattern in patterns[name] for path in folders[name].glob(pattern)}
    built = {".o", ".pyc"}
    forgotten = [
        str(path.relative_to(ROOT))
        for folder, _ in PACKAGES
        for path in folder.rglob("*")
        if path.is_file() and path.suffix not in {".py", *built} and path.name not in (".gitignore", *PROGRAMS)
        if path not in packaged
    ]
    assert forgotten == []


def test_the_installed_package_has_its_data():
    assert load_profile("fpga").name == "generic"
    engine = {item.name for item in files("edgeyolo.targets.engine").iterdir()}
    assert engine >= {
        path.name for pattern in ("*.c", "*.h", "Makefile") for path in ROOT.glob(f"targets/engine/{pattern}")
    }
    assert files("edgeyolo").joinpath("py.typed").is_file()


def test_top_level_folders_are_not_importable_once_installed(tmp_path):
    names = ["targets", "calibration", "benchmarks", "tests"]
    code = (
        "import importlib.util, sys\n"
        "for name in sys.argv[1:]:\n"
        "    spec = importlib.util.find_spec(name)\n"
        "    print(*(spec.submodule_search_locations or [spec.origin]) if spec else [], sep='\\n')\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, *names], cwd=tmp_path, capture_output=True, text=True, check=True
    )
    ours = [line for line in done.stdout.split("\n") if line and Path(line).is_relative_to(ROOT)]
    assert ours == []


def test_constraints_pin_everything_that_pyproject_asks_for():
    project = _pyproject()["project"]
    wanted = [*project["dependencies"], *(r for extra in project["optional-dependencies"].values() for r in extra)]
    names = {re.split(r"[<>=\[;! ]", requirement)[0] for requirement in wanted if "python_version" not in requirement}
    pinned = re.findall(r"^([\w-]+)==[\w.]+$", (ROOT / "constraints.txt").read_text("utf-8"), re.M)
    assert names - {"edgeyolo"} <= set(pinned)


def test_the_project_speaks_only_of_itself():
    folders = [ROOT / name for name in ("edgeyolo", "targets", "tests", "docs", "benchmarks", "calibration", ".ci")]
    paths = [p for folder in folders for p in folder.rglob("*") if not {"__pycache__", "runtime"} & {*p.parts}]
    paths += [p for p in ROOT.iterdir() if p.suffix in (".md", ".toml", ".txt") or p.name == "Makefile"]
    wrong = []
    for path in sorted(p for p in paths if p.is_file() and p.stat().st_size < 1 << 20):
        text = path.read_text("utf-8", errors="replace")
        wrong += [f"{path.relative_to(ROOT)}: {match}" for match in WORKPLACE.findall(text)]
    assert wrong == []
