"""The API reference: a directive that writes it, and a check that it is complete.

A public name that the reference leaves out, or that has no docstring, is a warning, and
so an error of the strict build. Which names are public, `public_modules` and
`public_names` in ``conf.py`` say.
"""

import functools
import importlib
import inspect
from typing import Any

import blackjax
from sphinx.pycode import ModuleAnalyzer
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

logger = logging.getLogger(__name__)


def load(name: str) -> tuple[str, Any]:
    """Return the module part of a dotted name and the object."""
    module, _, attribute = name.rpartition(".")
    return module, getattr(importlib.import_module(module), attribute)


def documented(obj: Any) -> Any:
    """Return what carries the docstring: a sampler is an object around its function."""
    return obj.differentiable if isinstance(obj, blackjax.GenerateSamplingAPI) else obj


def is_data(obj: Any) -> bool:
    """Return whether an object is a value, with a ``#:`` comment for a docstring."""
    return not (inspect.isclass(obj) or callable(obj))


def has_docstring(name: str) -> bool:
    """Return whether somebody wrote one: Python's own for tuples and dataclasses is none."""
    module, obj = load(name)
    if is_data(obj):
        analyzer = ModuleAnalyzer.for_module(module)
        return ("", name.rpartition(".")[2]) in analyzer.find_attr_docs()
    obj = documented(obj)
    doc = (obj.__doc__ if inspect.isclass(obj) else inspect.getdoc(obj)) or ""
    return bool(doc.strip()) and not doc.startswith(f"{getattr(obj, '__name__', '')}(")


def all_public_names(modules: list[str], extra: list[str]) -> list[str]:
    """Return the dotted names of everything public that is no module."""
    names = list(extra)
    for module in modules:
        exported = importlib.import_module(module).__all__
        for name in (f"{module}.{attribute}" for attribute in exported):
            if not inspect.ismodule(load(name)[1]):
                names.append(name)
            elif name not in modules:
                logger.warning("the public module %s is not in public_modules", name)
    return names


class PublicNames(SphinxDirective):
    """Document names of a module: those listed, or all that it exports."""

    required_arguments = 1
    has_content = True

    def run(self):
        module = self.arguments[0]
        names = [line.strip() for line in self.content if line.strip()]
        lines = ["````{eval-rst}"]
        for name in names or importlib.import_module(module).__all__:
            obj = load(f"{module}.{name}")[1]
            kind = "class" if inspect.isclass(obj) else "data" if is_data(obj) else "function"
            lines += [f".. auto{kind}:: {module}.{name}"]
            lines += ["   :members:"] if kind == "class" else []
            lines += ["   :no-value:"] if kind == "data" else []
            lines += [""]
        return self.parse_text_to_nodes("\n".join([*lines, "````"]))


def _check(app, env):
    objects = env.domains.python_domain.objects
    for name in all_public_names(app.config.public_modules, app.config.public_names):
        if name not in objects:
            logger.warning("the public name %s is not in the API reference", name)
        if not has_docstring(name):
            logger.warning("the public name %s has no docstring", name)


def _sampler_docstring(app, what, name, obj, options, lines):
    if isinstance(obj, blackjax.GenerateSamplingAPI):
        lines[:] = inspect.getdoc(obj.differentiable).splitlines()


def _sampler_signature(app, what, name, obj, options, signature, return_annotation):
    if isinstance(obj, blackjax.GenerateSamplingAPI):
        function = inspect.signature(obj.differentiable)
        parameters = [p.replace(annotation=p.empty) for p in function.parameters.values()]
        return str(inspect.Signature(parameters)), None
    return None


def _skip_fields(app, what, name, obj, skip, options):
    """Leave out the fields of named tuples: the class's docstring has them."""
    is_field = type(obj).__name__ == "_tuplegetter"
    return True if is_field else None


def _unresolved(app, env, node, contnode):
    """Warn of a reference to something of the package that does not exist."""
    target = node.get("reftarget", "")
    if node.get("refdomain") != "py" or not target.startswith("blackjax_smile."):
        return
    try:
        importlib.import_module(target)
    except ImportError:
        try:
            functools.reduce(
                getattr, target.split(".")[1:], importlib.import_module("blackjax_smile")
            )
        except AttributeError:
            logger.warning("no such name: %s", target, location=node)


def setup(app):
    """Register the extension."""
    app.add_config_value("public_modules", [], "env")
    app.add_config_value("public_names", [], "env")
    app.add_directive("public-names", PublicNames)
    # Before the sections are converted.
    app.connect("autodoc-process-docstring", _sampler_docstring, priority=100)
    app.connect("autodoc-process-signature", _sampler_signature)
    app.connect("autodoc-skip-member", _skip_fields)
    app.connect("missing-reference", _unresolved)
    app.connect("env-check-consistency", _check)
    return {"parallel_read_safe": True}
