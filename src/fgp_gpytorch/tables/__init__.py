"""Tables: a model of a DataFrame, and the kinds of its columns."""

from fgp_gpytorch.tables.columns import Binary, Categorical, Column, Count, Gaussian, Log, Ordinal, Periodic
from fgp_gpytorch.tables.table_model import TableModel
from fgp_gpytorch.tables.tune import Tuning, tune

__all__ = [
    "Binary",
    "Categorical",
    "Column",
    "Count",
    "Gaussian",
    "Log",
    "Ordinal",
    "Periodic",
    "TableModel",
    "Tuning",
    "tune",
]
