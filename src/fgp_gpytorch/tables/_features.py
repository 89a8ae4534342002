"""Columns of x, and of groups, as numbers."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportAssignmentType=false

import datetime
import math
import warnings
from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError, GroupError
from fgp_gpytorch.feature_maps import CategoricalFeatures, LinearFeatures, SelectedFeatures
from fgp_gpytorch.tables.columns import Categorical, Column, Periodic

_FAR = 10.0  # ranges of the training x: beyond them the units have probably changed
_BEYOND = 0.1  # of the range
_SPAN = 10.0  # largest over smallest positive number, of a scale that may be logarithmic


class Feature:
    """A column of x: a number, a date, a position on a circle, or a category.

    Args:
        column: A name, `Periodic` or `Categorical`.

    Attributes:
        kind: "number", "date", "periodic" or "category".
        center: Of numbers and dates (in seconds since 1970).
        scale: Of numbers and dates: their standard deviation.
        low, high: The training range in standardized units.
        shift: Of numbers on a logarithmic scale, log(x + shift); None for a linear scale.
        least: The smallest number of the training table. Smaller ones continue the logarithm as a line.
        levels: The categories.
        dtype: Of the training column.
    """

    def __init__(self, column: Hashable | Periodic | Categorical) -> None:
        if isinstance(column, Column) and not isinstance(column, Categorical):
            raise ArgumentError(f"x: expected names, Periodic or Categorical columns, got {column!r}. Try y=.")
        self.column = column
        special = isinstance(column, Periodic | Categorical)
        self.name: Any = column.name if special else check.instance(column, "x", Hashable, "Try x=['year'].")
        self.period = column.period if isinstance(column, Periodic) else None
        self.category = column if isinstance(column, Categorical) else None
        self.kind = "periodic" if self.period else "category" if self.category else "number"
        self.center, self.scale, self.low, self.high = 0.0, 1.0, 0.0, 0.0
        self.shift: float | None = None
        self.least = 0.0
        self.dtype: Any = None

    def __repr__(self) -> str:
        return repr(self.column)

    @property
    def levels(self) -> list[Any]:
        """The categories."""
        return [] if self.category is None else self.category.levels

    @property
    def is_number(self) -> bool:
        """Whether it is a number or a date."""
        return self.kind in ("number", "date")

    def learn(self, values: pd.Series) -> None:
        """Learn unit and range of the training table.

        Raises:
            DataError: If the column has another kind, or a missing value.
        """
        self.dtype = values.dtype
        if self.category is not None:
            self.category.learn(values)
            return
        if self.kind == "number" and _is_date(values):
            self.kind = "date"
        self._learn_unit(self._raw(values))

    def may_be_logarithmic(self, values: pd.Series) -> bool:
        """Whether values of the training table are numbers from 0 that span an order of magnitude."""
        if self.kind != "number":
            return False
        raw = self._raw(values)
        return bool((raw >= 0).all()) and raw.max() > _SPAN * np.min(raw, where=raw > 0, initial=np.inf)

    def set_scale(self, values: pd.Series, logarithmic: bool) -> None:
        """Take a logarithmic or a linear scale, and learn unit and range on it."""
        raw = self._raw(values)
        positive = float(np.min(raw, where=raw > 0, initial=np.inf))
        self.least, self.shift = float(raw.min()), None
        if logarithmic:
            self.shift = 0.0 if self.least > 0 else 0.5 * positive
        self._learn_unit(raw)

    def _learn_unit(self, raw: np.ndarray) -> None:
        scaled = self._scaled(raw)
        if self.period is None:
            self.center, spread = float(scaled.mean()), float(scaled.std())
            self.scale = spread if spread > 0 else 1.0
        numbers = (scaled - self.center) / self.scale
        self.low, self.high = float(numbers.min()), float(numbers.max())

    def _scaled(self, raw: np.ndarray) -> np.ndarray:
        if self.shift is None:
            return raw
        above, start = np.maximum(raw, self.least) + self.shift, self.least + self.shift
        return np.log(above) + np.minimum(raw - self.least, 0.0) / start

    def _number(self, standardized: Any) -> Any:
        """Numbers of the table, or seconds since 1970."""
        scaled = standardized * self.scale + self.center
        if self.shift is None:
            return scaled
        start = self.least + self.shift
        above, below = np.maximum(scaled, math.log(start)), np.minimum(scaled - math.log(start), 0.0)
        return np.where(above > math.log(start), np.exp(above) - self.shift, self.least) + below * start

    def encode(self, values: pd.Series, argument: str = "df") -> np.ndarray:
        """Numbers (N,) for kernels.

        Args:
            values: The column.
            argument: The table that has it, for errors.

        Raises:
            DataError: If a value is missing, of another kind, or an unknown category.
        """
        if self.category is not None:
            codes = self.category.codes(values)
            if np.isnan(codes).any():
                raise self._missing(values, argument)
            return codes
        raw = self._raw(values, argument)
        if self.period is None:
            place = far_from(raw, self._number(self.low), self._number(self.high))
            if place is not None:
                raise DataError(
                    f"{argument}: expected {self.name!r} near the training table's {self._back(self.low)} to "
                    f"{self._back(self.high)}, at most ten times that range away, got {values.iloc[place]}. Try its "
                    "units."
                )
        return (self._scaled(raw) - self.center) / self.scale

    def beyond(self, numbers: np.ndarray) -> str | None:
        """What to say of encoded numbers that lie more than a tenth of the range beyond the training table's."""
        if not self.is_number or self.high <= self.low:
            return None
        raw, least, most = self._number(numbers), self._number(self.low), self._number(self.high)
        away = np.maximum(least - raw, raw - most)
        if away.max(initial=0.0) <= _BEYOND * (most - least):
            return None
        low, high, furthest = (self._back(number) for number in (self.low, self.high, numbers[int(away.argmax())]))
        return f"expected {self.name!r} within the training table's {low} to {high}, got {furthest}"

    def like_training(self, values: Any) -> pd.Series:
        """Values of `at` as a column of the training table's dtype."""
        series = pd.Series([check.number(value) for value in values])
        if self.kind == "date" and not _is_date(series):
            try:
                if pd.api.types.is_numeric_dtype(series.dtype):
                    raise ValueError("a number is no date")
                series = pd.to_datetime(series)
            except (ValueError, TypeError) as error:
                raise DataError(
                    f"at: expected dates for {self.name!r}, got {check.number(series.iloc[0])!r} ({error}). Try "
                    "'2020-01-31', or pd.date_range(start, end)."
                ) from error
        if self.kind == "date" and series.dt.tz is None and getattr(self.dtype, "tz", None) is not None:
            series = series.dt.tz_localize(self.dtype.tz)
        return series

    def decode(self, numbers: np.ndarray) -> pd.Series:
        """Values of the table from numbers, for numbers, dates and positions on a circle."""
        raw = self._number(numbers)
        if self.kind != "date":
            return pd.Series(raw)
        dates = pd.Series(pd.to_datetime(raw, unit="s"))
        zone = getattr(self.dtype, "tz", None)
        return dates if zone is None else dates.dt.tz_localize("UTC").dt.tz_convert(zone)

    def _back(self, number: float) -> Any:
        if self.kind == "date":
            return self.decode(np.array([number])).iloc[0]
        value, width = float(self._number(number)), float(self._number(self.high) - self._number(self.low))
        return f"{0.0 if abs(value) < 1e-9 * width else value:g}"

    def _raw(self, values: pd.Series, argument: str = "df") -> np.ndarray:
        if values.isna().any():
            raise self._missing(values, argument)
        if self.kind == "date":
            if not _is_date(values):
                raise DataError(
                    f"{argument}: expected dates in column {self.name!r}, as in the training table, got "
                    f"{values.dtype}. Try pd.to_datetime({argument}[{self.name!r}])."
                )
            zone = getattr(self.dtype, "tz", None)
            if (zone is None) != (values.dt.tz is None):
                got = "none" if values.dt.tz is None else values.dt.tz
                repair = f"tz_localize({str(zone)!r})" if zone is not None else "tz_localize(None)"
                raise DataError(
                    f"{argument}: expected the time zone of the training table, {zone or 'none'}, in column "
                    f"{self.name!r}, got {got}. Try {argument}[{self.name!r}].dt.{repair}."
                )
            utc = values.dt.tz_convert("UTC").dt.tz_localize(None) if values.dt.tz is not None else values
            return (utc - pd.Timestamp(0)).dt.total_seconds().to_numpy(dtype=np.float64)
        if _is_date(values) or not pd.api.types.is_numeric_dtype(values.dtype):
            hint = f"pd.to_numeric({argument}[{self.name!r}]), or Categorical({self.name!r}) for names"
            if _is_date(values):
                hint = f"{argument}[{self.name!r}].dt.hour"
                if self.high > self.low:  # learned
                    hint = "numbers in the unit of the training table, or fit on a table with dates"
            elif _is_text_of_dates(values):
                hint = f"pd.to_datetime({argument}[{self.name!r}])"
            elif pd.api.types.is_timedelta64_dtype(values.dtype):
                hint = f"{argument}[{self.name!r}].dt.total_seconds()"
            elif isinstance(values.dtype, pd.PeriodDtype):
                hint = f"{argument}[{self.name!r}].dt.to_timestamp()"
            elif len(values) and isinstance(values.iloc[0], datetime.date):
                hint = f"pd.to_datetime({argument}[{self.name!r}])"
            raise DataError(f"{argument}: expected numbers in column {self.name!r}, got {values.dtype}. Try {hint}.")
        raw = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if not np.isfinite(raw).all():
            raise DataError(
                f"{argument}: expected finite numbers in column {self.name!r}, got inf. Try {argument} without "
                "these rows."
            )
        return raw

    def _missing(self, values: pd.Series, argument: str) -> DataError:
        return DataError(
            f"{argument}: expected a value in every row of column {self.name!r}, got {int(values.isna().sum())} "
            f"without. Try {argument}.dropna(subset=[{self.name!r}])."
        )


def _is_text_of_dates(values: pd.Series) -> bool:
    """Whether the first values are text that is no number, and that pandas reads as dates."""
    first = values.iloc[:20]
    if isinstance(values.dtype, pd.CategoricalDtype) or not all(isinstance(value, str) for value in first):
        return False
    if pd.Series(pd.to_numeric(first, errors="coerce")).notna().any():
        return False
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a format that pandas guesses
        return bool(pd.Series(pd.to_datetime(first, errors="coerce")).notna().all())


def as_features(x: Any) -> list[Feature]:
    """Columns of x.

    Raises:
        ArgumentError: If there is none, or a name occurs twice.
    """
    listed = list(x) if isinstance(x, Sequence | pd.Index) and not isinstance(x, str | tuple) else [x]
    features = [Feature(entry) for entry in listed]
    names = [feature.name for feature in features]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"x: expected different columns, got {names}. Try x=['year'].")
    return features


class Covariate:
    """A column whose effect all groups share: a number or a category. It is two columns of x.

    They are the number and whether it is known, or the code and a 1. A missing or unseen category has a code beyond.

    Args:
        name: Of the column.
    """

    def __init__(self, name: Hashable) -> None:
        self.name: Any = check.instance(name, "covariates", Hashable, "Try covariates=['region'].")
        self.levels: list[Any] | None = None
        self.center, self.scale = 0.0, 1.0
        self.low, self.high = 0.0, 0.0

    def __repr__(self) -> str:
        return repr(self.name)

    def learn(self, values: pd.Series) -> None:
        """Learn the categories, or mean, scale and range.

        Raises:
            DataError: If the column has only one value, or dates.
        """
        seen = values.dropna()
        if _is_date(values):
            raise DataError(f"covariates: expected numbers or categories in {self.name!r}, got dates. Try x=.")
        if seen.nunique() < 2:
            got = f"{check.number(seen.iloc[0])!r} only" if len(seen) else "none"
            raise DataError(
                f"covariates: expected different values in column {self.name!r}, got {got}. Try "
                "without this column: it has no effect that could be learned."
            )
        if pd.api.types.is_numeric_dtype(values.dtype) and not pd.api.types.is_bool_dtype(values.dtype):
            numbers = self._finite(seen)
            self.center, self.scale = float(numbers.mean()), float(numbers.std())
            self.low, self.high = float(numbers.min()), float(numbers.max())
        else:
            self.levels = sorted((check.number(level) for level in seen.unique()), key=str)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Two columns (N, 2).

        Raises:
            DataError: If a number is infinite, far from the training range, or a name.
        """
        if self.levels is None:
            if not pd.api.types.is_numeric_dtype(values.dtype) and not values.isna().all():
                raise DataError(
                    f"covariates: expected numbers in column {self.name!r}, as in the training table, got "
                    f"{values.dtype}. Try pd.to_numeric(df[{self.name!r}])."
                )
            numbers = self._finite(values)
            place = far_from(numbers, self.low, self.high)
            if place is not None:
                raise DataError(
                    f"covariates: expected {self.name!r} near the training table's {self.low:g} to {self.high:g}, at "
                    f"most ten times that range away, got {numbers[place]:g}. Try its units."
                )
            known = ~np.isnan(numbers)
            return np.stack([np.where(known, (numbers - self.center) / self.scale, 0.0), known.astype(float)], -1)
        places = {level: float(place) for place, level in enumerate(self.levels)}
        codes = [places.get(value, float(len(places))) for value in values]
        return np.stack([np.array(codes, dtype=np.float64), np.ones(len(values))], -1)

    def _finite(self, values: pd.Series) -> np.ndarray:
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise DataError(
                f"covariates: expected finite numbers in column {self.name!r}, got inf. Try NaN for missing values."
            )
        return numbers

    def feature_map(self, column: int) -> SelectedFeatures:
        """The features of the effect. `column` is the first of its two columns of x."""
        if self.levels is None:
            return SelectedFeatures(LinearFeatures(1), [column], known=column + 1)
        return SelectedFeatures(CategoricalFeatures(len(self.levels)), [column])


def far_from(numbers: np.ndarray, low: float, high: float) -> int | None:
    """The place of the first number that lies more than ten ranges from the range; None for none."""
    far = (numbers < low - _FAR * (high - low)) | (numbers > high + _FAR * (high - low))
    return int(far.argmax()) if high > low and far.any() else None


def as_covariates(names: Any) -> list[Covariate]:
    """Columns of covariates: none, a name, or a list of names."""
    listed = list(names) if isinstance(names, list | tuple) else [] if names is None else [names]
    return [Covariate(name) for name in listed]


def level_codes(frames: Sequence[pd.DataFrame], names: Sequence[Hashable]) -> list[np.ndarray]:
    """Codes of inner groups, (N, number of inner levels) for each frame: equal labels of one outer group are equal.

    Args:
        frames: Tables whose codes belong together.
        names: The columns of groups, outermost first.
    """
    if len(names) == 1:
        return [np.zeros((len(frame), 0)) for frame in frames]
    whole = pd.concat([frame[list(names)] for frame in frames], ignore_index=True)
    for name in names[1:]:
        if whole[name].isna().any():
            raise GroupError(
                f"group: expected a label in every row of {name!r}, got {int(whole[name].isna().sum())} missing. Try "
                f"df.dropna(subset=[{name!r}])."
            )
    whole = whole.astype(object)  # categories that do not occur are no groups
    columns = [whole.groupby(list(names[: depth + 1]), sort=False).ngroup() for depth in range(1, len(names))]
    codes = np.stack([column.to_numpy(dtype=np.float64) for column in columns], -1)
    ends = np.cumsum([len(frame) for frame in frames])[:-1]
    return np.split(codes, ends)


def _is_date(values: pd.Series) -> bool:
    return pd.api.types.is_datetime64_any_dtype(values.dtype)
