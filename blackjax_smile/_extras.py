"""Optional packages: imported when they are needed, with what to install if they are missing."""

import importlib
import importlib.util
from collections.abc import Mapping
from typing import Any

__all__ = ["COMMAND_PACKAGES", "check_installed", "require"]

#: Modules that the command line needs beside the core's, and the packages they come in.
COMMAND_PACKAGES = {
    "matplotlib": "matplotlib",
    "zarr": "zarr",
    "orbax": "orbax-checkpoint",
    "h5netcdf": "h5netcdf",
    "h5py": "h5py",  # h5netcdf reads and writes through it, and does not install it
}


def require(module: str, purpose: str, extra: str = "run") -> Any:
    """Import a module, or say which extra of ours to install for the purpose."""
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not module.startswith(error.name):
            raise
        raise ModuleNotFoundError(
            f"{purpose} needs {error.name}: pip install 'blackjax-smile[{extra}]'.",
            name=error.name,
        ) from error


def check_installed(packages: Mapping[str, str], purpose: str) -> None:
    """Raise with what to install if one of the modules (its package by name) is missing."""
    missing = [package for name, package in packages.items() if not importlib.util.find_spec(name)]
    if missing:
        raise ModuleNotFoundError(
            f"{purpose} needs {', '.join(missing)}: pip install 'blackjax-smile[demo]'."
        )
