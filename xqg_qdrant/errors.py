"""The exceptions of the package, and the exit code of each on the command line.

    XqgError              1  a bug, or an unforeseen failure
    ├── InputError        2  a file or an option from the user cannot be used
    ├── MismatchError     4  the collection was made with other models or another recipe
    ├── StoreError        5  the database cannot be reached, or refuses
    │   └── InUseError           another process holds the collection
    ├── ModelError        6  a model folder or a device cannot be used
    │   └── OutOfMemoryError     a run needs more memory than the device has left
    └── DamageError       7  stored points are not as xqg stored them, or are missing

An error has a message (what is wrong, and where) and a cure (one action). Rejected rows raise nothing while the rest
is stored: they are counted, and the exit code is 3.
"""

from __future__ import annotations

ROWS_REJECTED_EXIT_CODE = 3
INTERRUPTED_EXIT_CODE = 130


class XqgError(Exception):
    """The base of all errors of the package.

    Attributes:
        message: What is wrong, and where.
        cure: One action that helps; empty if there is none.
        exit_code: The exit code of the command line.
    """

    exit_code = 1

    def __init__(self, message: str, cure: str = "") -> None:
        super().__init__(message, cure)
        self.message = message
        self.cure = cure.removesuffix(".")

    def __str__(self) -> str:
        if not self.cure:
            return self.message
        space = "\n" if "\n" in self.message else " "
        return f"{self.message}{space}Cure: {self.cure}."


class InputError(XqgError):
    """A file or an option from the user cannot be used."""

    exit_code = 2


class MismatchError(XqgError):
    """The collection was made with other models or another recipe than the current ones."""

    exit_code = 4


class ForeignCollectionError(MismatchError):
    """Xqg did not create the collection; the cure is for reading it."""


class StoreError(XqgError):
    """The database cannot be reached, is in use, or refuses the request."""

    exit_code = 5


class InUseError(StoreError):
    """Another process holds the collection."""


class ModelError(XqgError):
    """A model folder or a device cannot be used."""

    exit_code = 6


class OutOfMemoryError(ModelError):
    """A run needs more memory than the device has left; a smaller run may fit."""


class DamageError(XqgError):
    """Stored points are not as xqg stored them, or are missing."""

    exit_code = 7
