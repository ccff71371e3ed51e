"""The documentation: its Python blocks run, its links lead somewhere, its commands exist.

The build of the site runs the notebooks and checks the reference; nothing of Sphinx is
needed here. README's blocks are run by ``test_package.py``.
"""

import importlib.util
import pathlib
import re
import textwrap

import jax
import pytest

import blackjax_smile
from blackjax_smile import arviz_export

ROOT = pathlib.Path(__file__).parents[1]
DOCS, NOTEBOOKS = ROOT / "docs", ROOT / "notebooks"
if not DOCS.is_dir():
    pytest.skip("tests from a package without docs/", allow_module_level=True)

PAGES = sorted(DOCS.rglob("*.md"))
PAGES = [page for page in PAGES if not {"_build", "notebooks"} & set(page.relative_to(DOCS).parts)]
LINKED = [
    *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
    ROOT / "benchmarks" / "README.md",
    *PAGES,
    *sorted(NOTEBOOKS.glob("*.md")),
]

FENCE = re.compile(r"^( *)(`{3,}|:{3,})([^\n]*)\n(.*?)^\1\2 *$", re.M | re.S)


def name_of(path):
    return str(path.relative_to(ROOT))


def blocks(path, *languages):
    """Return the code blocks in some languages, with their first lines' numbers."""
    text = path.read_text()
    return [
        (text.count("\n", 0, match.start(4)) + 1, textwrap.dedent(match[4]))
        for match in FENCE.finditer(text)
        if match[3].strip() in languages
    ]


def prose(path):
    """Return a page without its code, in blocks and in lines."""
    text = FENCE.sub(lambda m: m[4] if m[3].startswith("{include}") else "\n", path.read_text())
    return re.sub(r"`[^`\n]+`", "code", text)


def pages_that_run():
    """Those that use ArviZ run on every version of Python."""
    return [
        pytest.param(
            page,
            id=name_of(page),
            marks=() if "arviz" in page.read_text() else pytest.mark.numerics,
        )
        for page in PAGES
        if blocks(page, "python")
    ]


@pytest.fixture
def quick_compilation():
    """Compile for speed of compilation: what runs here runs once, on little data."""
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", False)


@pytest.mark.parametrize("page", pages_that_run())
@pytest.mark.usefixtures("quick_compilation")
def test_python_blocks_run(page, monkeypatch, tmp_path):
    """In order, in one namespace, as a reader copies them; warnings are errors."""
    monkeypatch.chdir(tmp_path)
    arviz_export.import_arviz()  # ArviZ 0.23 announces ArviZ 1 on its first import
    namespace: dict = {"__name__": page.stem}
    with jax.numpy_rank_promotion("allow"):  # as users have it
        for line, source in blocks(page, "python"):
            # Empty lines first: a traceback then shows the line of the page.
            exec(compile("\n" * (line - 1) + source, name_of(page), "exec"), namespace)


def test_diffs_are_proved():
    """Every changed script of a diff is followed by a block that runs."""
    text = (DOCS / "from_blackjax.md").read_text()
    sections = re.split(r"^## ", text, flags=re.M)[1:]
    with_diffs = [section for section in sections if "```diff" in section]
    assert with_diffs
    for section in with_diffs:
        assert "```python" in section.split("```diff")[1], section.splitlines()[0]


def commands(page):
    """Yield the commands of shell blocks, and those that tables and prose quote."""
    for _, source in blocks(page, "bash", "console"):
        yield from re.split(r"\n|&&", source)
    for quoted in re.findall(r"`((?:python|pip|pytest|bash|ruff|mypy) [^`]+)`", page.read_text()):
        yield from quoted.split("&&")


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_commands_name_what_exists(page):
    extras = re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(), re.M)
    for command in commands(page):
        for path in re.findall(r"(?<![\w.-])[\w.]*[\w-]+/[\w/-]*(?:\.\w+|(?<=/)run)\b", command):
            assert (ROOT / path).exists(), f"{page.name}: {command!r} names {path}"
        for names in re.findall(r"(?:\.|blackjax-smile)\[([\w,]+)\]", command):
            assert set(names.split(",")) <= set(extras), f"{page.name}: {command!r}"
        module = re.search(r"-m (blackjax_smile[\w.]*)", command)
        if module:
            from blackjax_smile.__main__ import build_parser

            flags = re.findall(r"(?<= )--[\w-]+", command)
            assert all(flag in build_parser().format_help() for flag in flags), command


def slug(heading):
    """Return a heading's anchor as GitHub and MyST make it."""
    heading = re.sub(r"[`*]|\[([^]]*)\]\([^)]*\)", r"\1", heading.strip()).lower()
    return re.sub(r"\s", "-", re.sub(r"[^\w\s-]", "", heading))


def anchors(path):
    text = FENCE.sub(
        lambda m: included(path, m) if m[3].startswith("{include}") else "\n", path.read_text()
    )
    headings = re.findall(r"^#+ +(.*)$", text, re.M)
    return {slug(heading) for heading in headings} | set(re.findall(r"^\((.+)\)=$", text, re.M))


def included(path, fence):
    return (path.parent / fence[3].split()[1]).read_text()


def links(path):
    """Yield the targets of a page's links and images that are no addresses."""
    for target in re.findall(r"\]\(\s*<?([^)\s>]+)", prose(path)):
        if not re.match(r"\w+:", target):
            yield target


@pytest.mark.parametrize("page", LINKED, ids=name_of)
def test_links_lead_somewhere(page):
    for target in links(page):
        path, _, anchor = target.partition("#")
        found = (page.parent / path).resolve() if path else page
        assert found.exists(), f"{name_of(page)} links to {target}"
        if anchor:
            assert anchor in anchors(found), f"{name_of(page)} links to {target}"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_included_files_exist(page):
    for match in FENCE.finditer(page.read_text()):
        if match[3].startswith("{include}"):
            assert included(page, match).strip()


def toctree(path):
    """Return the pages of the site below a page."""
    below = {path}
    for match in FENCE.finditer(path.read_text()):
        if match[3].strip() != "{toctree}":
            continue
        for entry in match[4].splitlines():
            if entry and not entry.startswith(":"):
                pages = list(path.parent.glob(f"{entry}.md"))
                assert pages, f"{name_of(path)} lists {entry}"
                below |= {p for page in pages for p in toctree(page)}
    return below


def test_every_page_and_notebook_is_in_a_toctree():
    notebooks = {DOCS / "notebooks" / path.name for path in NOTEBOOKS.glob("*.md")}
    assert toctree(DOCS / "index.md") == set(PAGES) | notebooks


def load_extension(name):
    spec = importlib.util.spec_from_file_location(name, DOCS / "_ext" / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_docstrings_become_restructured_text():
    docstring = """Do it [1]_.

Parameters
----------
a, b
    Two of them.

Returns
-------
A number,
in words.

References
----------
.. [1] Author, "Title",
   2020."""
    assert load_extension("docstring_sections").convert(docstring.splitlines()) == [
        *("Do it [1].", "", "", ".. rubric:: Parameters", ""),
        *("``a``, ``b``", "    Two of them.", "", "", ".. rubric:: Returns", ""),
        *("A number,", "in words.", "", "", ".. rubric:: References", ""),
        *("", "[1]", '   Author, "Title",', "   2020."),
    ]


def test_a_public_name_without_a_docstring_is_found(monkeypatch):
    """Functions, tuples and values; Python's own docstring of a tuple is none."""
    pytest.importorskip("sphinx")
    has_docstring = load_extension("public_names").has_docstring
    names = ["blackjax_smile.evaluation.rmse", "blackjax_smile.SmileState"]
    for name in [*names, "blackjax_smile.smile", "blackjax_smile.ensemble.REASONS"]:
        assert has_docstring(name)
    monkeypatch.setattr(blackjax_smile.evaluation.rmse, "__doc__", None)
    monkeypatch.setattr(blackjax_smile.SmileState, "__doc__", "SmileState(position, residual)")
    assert not any(map(has_docstring, names))


def test_the_notebooks_are_linked():
    link = DOCS / "notebooks"
    assert link.is_symlink()
    assert link.readlink() == pathlib.Path("../notebooks")
