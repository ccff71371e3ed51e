"""The error of a user's input, which the command line reports without a traceback."""

__all__ = ["UserInputError"]


class UserInputError(ValueError):
    """Something in the arguments or the data that the user can put right."""
