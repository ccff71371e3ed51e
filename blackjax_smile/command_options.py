"""What both commands check of their options before anything is computed."""

from typing import Any

from blackjax_smile.adaptation.setup import PRECONDITIONERS
from blackjax_smile.errors import UserInputError

__all__ = ["check_options"]

#: Smallest and largest values; None is without bound.
BOUNDS = {
    "num_chains": (1, None),
    "num_warmup": (100, None),
    "num_samples": (8, None),
    "thinning": (1, None),
    "batch_size": (2, None),
    "num_components": (1, 64),
    "hidden_units": (1, None),
    "seed": (0, 2**32 - 1),
}


def check_options(options: Any) -> None:
    """Raise for settings with which nothing can be fitted."""
    for name, (least, most) in BOUNDS.items():
        value = getattr(options, name, least)
        flag = "--" + name.replace("_", "-")
        if value < least:
            raise UserInputError(f"{flag} must be at least {least}, got {value}.")
        if most is not None and value > most:
            raise UserInputError(f"{flag} must be at most {most}, got {value}.")
    if options.batch_size % 2:
        raise UserInputError(f"--batch-size must be even; got {options.batch_size}.")
    if options.preconditioner not in PRECONDITIONERS:
        raise UserInputError(
            f"--preconditioner must be one of {', '.join(PRECONDITIONERS)}, got "
            f"{options.preconditioner!r}."
        )
