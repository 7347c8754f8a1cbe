"""The one error that a user's input can cause."""

from __future__ import annotations


class InputError(ValueError):
    """Bad input from outside, told in one line.

    Args:
        what: What is wrong, naming the file and the value.
        remedy: What the user can do about it.
    """

    def __init__(self, what: str, remedy: str) -> None:
        super().__init__(what, remedy)  # what another process makes it anew of
        self.what = what
        self.remedy = remedy

    def __str__(self) -> str:
        return f"{self.what} ({self.remedy})"
