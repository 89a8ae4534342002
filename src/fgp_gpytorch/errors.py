"""Errors that say what was expected, what was got, and what to try.

Every class here is a `ValueError`, so code that catches `ValueError` keeps working.
"""

__all__ = [
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


class ShapeError(FGPError):
    """A tensor has the wrong number of dimensions, or a size that does not match another tensor's."""


class DataError(FGPError):
    """Data are empty, of the wrong dtype or device, not finite, or outside their permitted range."""


class GroupError(FGPError):
    """A group label is not an exact integer, is unknown, or does not fit the batch it is used with."""


class NonFiniteError(FGPError):
    """A computation produced NaN or infinity: the message names the term, the epoch and the groups."""


class CheckpointError(FGPError):
    """A saved model cannot be written, or a file is not a checkpoint of the model it should be."""


class MissingFileError(FGPError, FileNotFoundError):
    """A file that the caller named does not exist."""
