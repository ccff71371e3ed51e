"""Docstrings of the project as reStructuredText.

Napoleon and numpydoc read ``Returns`` as a list of types, line by line; here it is
prose, as ``NamedTuple`` fields are a definition list without a heading. What is left to
do is little: section headings become rubrics, and footnotes plain text, for several
docstrings stand on one page.
"""

import re

SECTIONS = (
    "Parameters",
    "Returns",
    "Yields",
    "Raises",
    "Warns",
    "Notes",
    "References",
    "Examples",
)

#: Sections whose terms are names.
LISTS = ("Parameters", "Raises", "Warns")


def convert(lines: list[str]) -> list[str]:
    """Return a docstring's lines as reStructuredText."""
    result: list[str] = []
    section, i = "", 0
    while i < len(lines):
        line = lines[i]
        heading = line.strip() in SECTIONS and i + 1 < len(lines)
        if heading and re.fullmatch(r"-{3,}", lines[i + 1].strip()):
            section = line.strip()
            result += ["", f".. rubric:: {section}", ""]
            i += 2
            continue
        is_term = line and not line[0].isspace() and i + 1 < len(lines) and lines[i + 1][:1] == " "
        if is_term and (section in LISTS or (not section and re.fullmatch(r"[\w, ]+", line))):
            line = ", ".join(f"``{name}``" for name in line.split(", "))
        footnote = re.match(r"\.\. (\[\d+\]) (.*)", line)
        if footnote:
            result += ["", footnote[1], f"   {footnote[2]}"]
        else:
            result.append(re.sub(r"(\[\d+\])_", r"\1", line))
        i += 1
    return result


def _process(app, what, name, obj, options, lines):
    lines[:] = convert(lines)


def setup(app):
    """Register the extension."""
    app.connect("autodoc-process-docstring", _process)
    return {"parallel_read_safe": True}
