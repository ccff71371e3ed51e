"""Documents in a linked folder (``docs/notebooks``), found by their own paths, too.

Sphinx resolves links in the file system before it looks a path up, so from a notebook
``other_notebook.md`` and ``../docs/page.md`` are what they are in the repository.
"""

import pathlib


def _add_real_paths(app, env, docnames):
    project = env.project
    for docname in project.docnames:
        path = pathlib.Path(project.doc2path(docname, absolute=True))
        project._path_to_docname.setdefault(path.resolve(), docname)


def setup(app):
    """Register the extension."""
    app.connect("env-before-read-docs", _add_real_paths)
    return {"parallel_read_safe": True}
