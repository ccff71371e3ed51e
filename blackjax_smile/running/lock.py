"""One process at a time writes a run."""

import pathlib
from typing import IO

from blackjax_smile.errors import UserInputError

__all__ = ["RunLock"]


class RunLock:
    """A lock on a run's folder, which the system lets go when the process ends, however it does.

    Raises
    ------
    UserInputError
        If another process, or another call in this one, has it.
    """

    def __init__(self, folder: pathlib.Path):
        self.file: IO | None = None
        try:
            import fcntl
        except ImportError:  # Windows
            return
        folder.mkdir(parents=True, exist_ok=True)
        self.file = (folder / "lock").open("w")
        try:
            fcntl.flock(self.file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            self.release()
            raise UserInputError(
                f"The run in {folder} is being written by another process (or call). Wait until it "
                "has ended, or choose new paths for store and checkpoint."
            ) from None
        except OSError:  # a file system without locks
            self.release()

    def release(self) -> None:
        """Let the folder go."""
        if self.file is not None:
            self.file.close()
            self.file = None
