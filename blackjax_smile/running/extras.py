"""Optional packages, imported when they are needed."""

import importlib
from typing import Any

__all__ = ["require"]


def require(module: str, purpose: str) -> Any:
    """Import a module, or say what to install for the purpose."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name}: pip install 'blackjax-smile[run]'.", name=error.name
        ) from error
