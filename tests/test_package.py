"""The package as a whole: names, documentation, the direction of imports, the README."""

import ast
import functools
import importlib
import inspect
import pathlib
import pkgutil
import re

import pytest

import blackjax_smile

PACKAGE = pathlib.Path(blackjax_smile.__file__).parent
ROOT = pathlib.Path(__file__).parents[1]
MODULES = sorted(m.name for m in pkgutil.walk_packages([str(PACKAGE)], "blackjax_smile."))

#: What each part may import of the others; data flows one way.
LAYERS = {
    "_checks": set(),
    "_sharding": set(),
    "_tree": set(),
    "_batching": {"_tree"},
    "_jitted": {"minibatch"},
    "gamma": set(),
    "minibatch_gradient": {"_tree"},
    "preconditioners": {"_tree"},
    "sgmcmc": {"_checks", "_tree", "_batching", "gamma", "minibatch_gradient", "preconditioners"},
    "minibatch": {"_tree", "_sharding"},
    "_streaming": {"_checks", "_sharding", "_tree", "_jitted", "minibatch"},
    "warm_start": {"_checks", "_tree", "_jitted", "minibatch", "minibatch_gradient"},
    "_epochs": set(),
    "_keyed": {"_batching", "_streaming", "minibatch"},
    "prediction": {"_tree", "_keyed", "_streaming", "minibatch"},
    "evaluation": {"_checks", "_tree", "prediction"},
    "function_space": {"_tree", "_streaming"},
    "_averaging": {"_tree", "_jitted", "minibatch_gradient"},
    "_chains": {"_sharding", "_tree", "minibatch"},
    "control_variates": {
        "_checks",
        "_tree",
        "_averaging",
        "_jitted",
        "minibatch",
        "minibatch_gradient",
    },
    "adaptation": {
        "_checks",
        "_tree",
        "_batching",
        "_epochs",
        "_averaging",
        "_jitted",
        "minibatch",
        "gamma",
        "minibatch_gradient",
        "preconditioners",
        "sgmcmc",
    },
    "ensemble": {"_checks", "_tree", "_averaging", "_chains", "_jitted", "adaptation", "minibatch"},
    "interop": {"_checks", "minibatch"},
    "errors": set(),
    "bnn": set(),
    "tabular": {"errors"},
    "tabular_file": {"errors"},
    "tabular_text": {"errors"},
    "command_options": {"adaptation", "errors"},
    "noise_diagnostics": {"_tree", "_jitted", "minibatch_gradient", "preconditioners"},
    "plots": {"_checks", "_extras", "gamma", "noise_diagnostics", "evaluation"},
    "arviz_export": {"_tree", "minibatch", "__version__"},
    "_extras": set(),
    "running": {
        "_checks",
        "_tree",
        "_epochs",
        "_averaging",
        "_chains",
        "_extras",
        "_jitted",
        "_sharding",
        "errors",
        "minibatch",
        "preconditioners",
        "sgmcmc",
        "adaptation",
        "arviz_export",
        "__version__",
    },
}


def layer_of(module):
    return module.split(".")[1]


@pytest.mark.parametrize("module", [m for m in MODULES if layer_of(m) in LAYERS])
def test_imports_go_one_way(module):
    path = PACKAGE / pathlib.Path(*module.split(".")[1:])
    path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
    imported = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "blackjax_smile":
            imported |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("blackjax_smile."):
            imported.add(layer_of(node.module))
    assert imported - {layer_of(module)} <= LAYERS[layer_of(module)]


def public_names():
    """Yield the names of the package and, with their module, of its public modules."""
    for name in blackjax_smile.__all__:
        public = getattr(blackjax_smile, name)
        if inspect.ismodule(public):
            yield from (f"{name}.{inner}" for inner in public.__all__)
        else:
            yield name


@pytest.mark.parametrize("name", list(public_names()))
def test_public_names_are_documented(name):
    public = functools.reduce(getattr, name.split("."), blackjax_smile)
    if name in ("smile", "online_smile"):
        public = public.differentiable
    doc = inspect.getdoc(public)
    assert doc
    if inspect.isfunction(public):
        for section in ("Parameters", "Returns", "Examples"):
            assert f"{section}\n---" in doc, f"{name} has no section {section}"
        for parameter in inspect.signature(public).parameters:
            assert re.search(rf"\b{parameter}\b", doc), f"{name}: {parameter} is not documented"
    else:
        for field in public._fields:
            assert re.search(rf"^\S.*\b{field}\b|^{field}\b", doc, re.M), f"{name}.{field}"


@pytest.mark.parametrize("module", MODULES)
def test_modules_say_what_they_export(module):
    if layer_of(module) in ("__main__",):
        return
    imported = importlib.import_module(module)
    assert imported.__doc__
    for name in getattr(imported, "__all__", ()):
        assert hasattr(imported, name)


def test_files_stay_short():
    long = {
        p.name: n for p in PACKAGE.rglob("*.py") if (n := len(p.read_text().splitlines())) > 310
    }
    assert not long


def test_typed():
    assert (PACKAGE / "py.typed").exists()


def test_versions_agree():
    assert f'version: "{blackjax_smile.__version__}"' in (ROOT / "CITATION.cff").read_text()
    assert f"## {blackjax_smile.__version__}" in (ROOT / "CHANGELOG.md").read_text()


def test_readme_example_runs(capsys):
    """Every Python block of the README, in order, in one namespace."""
    blocks = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    assert blocks
    namespace: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), namespace)
