"""Errors that say what was expected, what came, and what to try.

Every class here is a `ValueError`, so code that catches `ValueError` keeps working.
"""

from collections.abc import Sequence

__all__ = [
    "ArgumentError",
    "CheckpointError",
    "DataError",
    "FGPError",
    "GroupError",
    "MissingFileError",
    "NonFiniteError",
    "ShapeError",
]


class FGPError(ValueError):
    """Base of every error that fgp_gpytorch raises for a caller's mistake."""


class ArgumentError(FGPError):
    """An argument has the wrong type, or an option has a value outside its range."""


class ShapeError(FGPError):
    """A tensor has the wrong number of dimensions, or a size that does not match another tensor's."""


class DataError(FGPError):
    """Data are empty, have the wrong dtype or device, are not finite, or lie outside their permitted range."""


class GroupError(FGPError):
    """A group label is not an exact integer, is unknown, or does not fit the batch it is used with."""


class NonFiniteError(FGPError):
    """A computation produced NaN or infinity.

    Attributes:
        term: The term that is not finite, such as "log_likelihood"; None if it is not known.
        epoch: The epoch, counted from 0; None outside training.
        groups: Positions of the batch's groups in the training data.
    """

    def __init__(
        self, message: str, *, term: str | None = None, epoch: int | None = None, groups: Sequence[int] = ()
    ) -> None:
        super().__init__(message)
        self.term, self.epoch, self.groups = term, epoch, list(groups)


class CheckpointError(FGPError):
    """A saved model cannot be written, or a file is not a checkpoint of the model it should be."""


class MissingFileError(FGPError, FileNotFoundError):
    """A file that the caller named does not exist."""
