"""Kinds of columns: what a table's column contains, and how it becomes elements of an observation."""

from abc import ABC, abstractmethod
from collections.abc import Hashable, Sequence
from typing import Any, ClassVar

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError
from fgp_gpytorch.likelihoods import (
    BernoulliElements,
    CategoricalElements,
    Elements,
    GaussianElements,
    NegativeBinomialElements,
    OrdinalElements,
    PoissonElements,
    mixture_variance,
)
from fgp_gpytorch.tables._warp import Warp

QUANTILES = {"q05": 0.05, "q50": 0.5, "q95": 0.95}
_LARGEST = 1e100  # its square is finite
_NODES, _WEIGHTS = np.polynomial.hermite_e.hermegauss(15)
_WEIGHTS = _WEIGHTS / _WEIGHTS.sum()
_MOST_CATEGORIES = 50


class Column(ABC):
    """A column of y: its kind, and what `TableModel.fit` learns of it.

    Args:
        name: Of the column.

    Raises:
        ArgumentError: If the name cannot be that of a column.

    Examples:
        >>> columns = [Gaussian("height"), Log("income"), Binary("smokes"), Ordinal("pain"), Count("visits")]
        >>> [column.kind for column in columns], all(isinstance(column, Column) for column in columns)
        (['gaussian', 'gaussian', 'binary', 'ordinal', 'count'], True)
        >>> model = TableModel(y=columns, x="age", group="person")
    """

    kind: ClassVar[str]
    labelled: ClassVar[bool] = False  # whether values are categories
    logged: ClassVar[bool] = False  # whether networks take log(1 + y)

    def __init__(self, name: Hashable) -> None:
        self.name = check.instance(name, "name", Hashable, "Try the name of a column.")

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.name!r})"

    @property
    def num_elements(self) -> int:
        """Elements of an observation that the column takes."""
        return 1

    @abstractmethod
    def learn(self, values: pd.Series) -> None:
        """Learn scale or categories from the training table.

        Raises:
            DataError: If the column has values of another kind, or only one value.
        """

    @abstractmethod
    def encode(self, values: pd.Series) -> np.ndarray:
        """Elements (N, num_elements), NaN where a value is missing.

        Raises:
            DataError: If a value does not fit what was learned.
        """

    @abstractmethod
    def elements(self) -> Elements:
        """The part of the likelihood."""

    @abstractmethod
    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """Mean, sd and quantiles of the mixture over S draws of the decoder's output (S, P, num_outputs).

        Returns:
            For each row of the answer (None, or a category) its columns, each (P,), in the table's units.
        """

    @abstractmethod
    def values(self, elements: np.ndarray) -> np.ndarray:
        """The table's values of draws or observations (..., num_elements): (...)."""

    @abstractmethod
    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """One value for each of P members, to fill a gap: a mean, or the most probable category, (P,)."""

    def density_factor(self, elements: np.ndarray) -> np.ndarray:
        """Log of |d elements / d value|, which turns a density of elements into one of table values, (...)."""
        return np.zeros(elements.shape[:-1])

    def _numbers(self, values: pd.Series) -> np.ndarray:
        kind = values.dtype
        if pd.api.types.is_object_dtype(kind) and values.isna().all():  # a column of None
            return np.full(len(values), np.nan)
        if not pd.api.types.is_numeric_dtype(kind) or pd.api.types.is_complex_dtype(kind):
            names, numbers = f"Categorical({self.name!r})", f"pd.to_numeric(df[{self.name!r}])"
            known = pd.Series(pd.to_numeric(values, errors="coerce")).count() == values.count()
            hint = f"{numbers}, or {names}" if known else f"{names}, or {numbers}"
            raise DataError(f"y: expected numbers in column {self.name!r}, got {kind}. Try {hint}.")
        numbers = values.to_numpy(dtype=np.float64, na_value=np.nan)
        if np.isinf(numbers).any():
            raise DataError(f"y: expected finite numbers in column {self.name!r}, got inf. Try NaN for missing values.")
        largest = np.nanmax(np.abs(numbers), initial=0.0)
        if largest > _LARGEST:
            raise DataError(
                f"y: expected numbers up to {_LARGEST:g} in column {self.name!r}, got {largest:g}. Try a larger unit."
            )
        return numbers

    def _several(self, values: np.ndarray) -> np.ndarray:
        """Values that were observed. There must be two different ones."""
        seen = values[~np.isnan(values)]
        if not len(seen):
            raise DataError(f"y: expected values in column {self.name!r}, got none. Try y without this column.")
        if seen.min() == seen.max():
            raise DataError(
                f"y: expected different values in column {self.name!r}, got {seen[0]:g} only. Try y without this "
                "column: there is nothing to learn."
            )
        return seen


class Gaussian(Column):
    """A column of real numbers with Gaussian noise. A plain name in `y` stands for it.

    Args:
        name: Of the column.
        transform: "auto" models the column or a power of it (Box and Cox 1964), whichever has the larger evidence under
            one Gaussian process a column. "none" never transforms, "log" takes the logarithm.
        heteroscedastic: Whether the noise depends on the latents.

    Raises:
        ArgumentError: If an option is unknown.

    Examples:
        >>> column = Gaussian("height", transform="none")
        >>> column.learn(pd.Series([150.0, 170.0]))
        >>> elements = column.encode(pd.Series([160.0, 170.0, None]))
        >>> elements[:, 0].round(4).tolist(), column.values(elements).tolist()
        ([0.0, 0.7071, nan], [160.0, 170.0, nan])
    """

    kind = "gaussian"

    def __init__(self, name: Hashable, transform: str = "auto", heteroscedastic: bool = False) -> None:
        super().__init__(name)
        self.transform = check.choice(transform, "transform", ("auto", "none", "log"))
        self.heteroscedastic = check.instance(heteroscedastic, "heteroscedastic", bool, "Try heteroscedastic=True.")
        self.warp: Warp = Warp()

    def learn(self, values: pd.Series) -> None:
        """Learn mean and scale, and the logarithm or none. `TableModel` may choose another power."""
        if pd.api.types.is_bool_dtype(values.dtype):
            raise DataError(f"y: expected numbers in column {self.name!r}, got booleans. Try Binary({self.name!r}).")
        seen = self._several(self._numbers(values))
        if self.transform == "log" and seen.min() <= 0:
            raise DataError(
                f"y: expected positive values in Log column {self.name!r}, got {seen.min():g}. Try {self.name!r} "
                "itself, or add a constant."
            )
        self.low, self.high = float(seen.min()), float(seen.max())
        self.warp = Warp.of(seen, 0.0 if self.transform == "log" else 1.0)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Transformed and standardized values."""
        numbers = self._numbers(values)
        if self.transform == "log" and np.nanmin(numbers, initial=np.inf) <= 0:
            raise DataError(
                f"y: expected positive values in column {self.name!r}, got {np.nanmin(numbers):g}. Try NaN for "
                "missing values, or a table in the units of the training table."
            )
        return self.warp(numbers)[:, None]

    def elements(self) -> Elements:
        """One Gaussian element."""
        return GaussianElements(1, heteroscedastic=self.heteroscedastic)

    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """Moments by Gauss-Hermite quadrature within each draw. Quantiles follow the increasing transform."""
        mean, variance = self._moments(part, output)
        quantiles = {
            name: self.warp.inverse(part.quantile(output, p)[..., 0].numpy(force=True)) for name, p in QUANTILES.items()
        }
        return {None: {"mean": mean, "sd": np.sqrt(variance), **quantiles}}

    def values(self, elements: np.ndarray) -> np.ndarray:
        """Values in the table's units."""
        return self.warp.inverse(elements[..., 0])

    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """The mean."""
        return self._moments(part, output)[0]

    def density_factor(self, elements: np.ndarray) -> np.ndarray:
        """Log of the derivative of the transform."""
        return self.warp.log_slope(self.warp.inverse(elements[..., 0]))

    def _moments(self, part: Elements, output: Tensor) -> tuple[np.ndarray, np.ndarray]:  # shape: 2 x (P,)
        """Mean and variance of the mixture. A transform that is not linear needs quadrature within each draw."""
        mean, variance = part.mean(output)[..., 0], part.variance(output)[..., 0]
        if self.warp.power == 1.0:
            total = mixture_variance(mean, variance).numpy(force=True) * self.warp.scale**2
            return self.warp.inverse(mean.mean(0).numpy(force=True)), total
        nodes = mean.numpy(force=True)[..., None] + variance.sqrt().numpy(force=True)[..., None] * _NODES
        values = self.warp.inverse(nodes)  # (S, P, nodes)
        center = np.einsum("spn,n->p", values, _WEIGHTS) / len(values)
        return center, np.einsum("spn,n->p", (values - center[:, None]) ** 2, _WEIGHTS) / len(values)


class Log(Gaussian):
    """A column of positive numbers, modelled on a logarithmic scale. Answers are in the table's units.

    Args:
        name: Of the column.
        heteroscedastic: Whether the noise depends on the latents.

    Examples:
        >>> column = Log("income")
        >>> column.learn(pd.Series([10.0, 1000.0]))
        >>> elements = column.encode(pd.Series([10.0, 100.0, 1000.0]))
        >>> elements[:, 0].round(4).tolist(), column.values(elements).round(4).tolist()
        ([-0.7071, 0.0, 0.7071], [10.0, 100.0, 1000.0])
    """

    def __init__(self, name: Hashable, heteroscedastic: bool = False) -> None:
        super().__init__(name, "log", heteroscedastic)


class _Labelled(Column):
    """A column of categories."""

    labelled = True

    def __init__(self, name: Hashable) -> None:
        super().__init__(name)
        self.levels: list[Any] = []

    def learn(self, values: pd.Series) -> None:
        """Learn the categories, in the order of the categorical dtype, or sorted."""
        if isinstance(values.dtype, pd.CategoricalDtype):
            present = set(values.dropna().unique())
            levels = [level for level in values.cat.categories if level in present]
        else:
            levels = list(pd.unique(values.dropna()))
            try:
                levels = sorted(levels)
            except TypeError:
                levels = sorted(levels, key=str)
        if len(levels) < 2:
            raise DataError(
                f"y: expected at least two categories in column {self.name!r}, got {levels}. Try y without this column."
            )
        if len(levels) > _MOST_CATEGORIES:
            raise DataError(
                f"y: expected at most {_MOST_CATEGORIES} categories in column {self.name!r}, got {len(levels)}. Try "
                f"{self.name!r} itself for numbers, or fewer categories."
            )
        self.levels = [check.number(level) for level in levels]
        if any(isinstance(level, float) and not np.isfinite(level) for level in self.levels):
            raise DataError(f"{self.name}: expected finite categories, got inf. Try NaN, which is a missing value.")

    def codes(self, values: pd.Series) -> np.ndarray:
        """The position of each value among the levels, NaN where it is missing.

        Raises:
            DataError: If a category was not in the training table.
        """
        places = {level: float(place) for place, level in enumerate(self.levels)}
        missing = values.isna().to_numpy()
        listed = [np.nan if gone else places.get(value, -1.0) for gone, value in zip(missing, values, strict=True)]
        codes = np.array(listed, dtype=np.float64)
        if (codes < 0).any():
            raise DataError(
                f"{self.name}: expected one of the categories {self.levels} of the training table, got "
                f"{values.iloc[int((codes < 0).argmax())]!r}. Try fit on a table that has it, or NaN in a "
                "column of y."
            )
        return codes

    def values(self, elements: np.ndarray) -> np.ndarray:
        """The categories of codes."""
        return np.array(self.levels, dtype=object)[elements[..., 0].astype(int)]


class Binary(_Labelled):
    """A column of two values: False and True, 0 and 1, or two names. Answers are those of the second value.

    Args:
        name: Of the column.

    Examples:
        >>> column = Binary("smokes")
        >>> column.learn(pd.Series(["yes", "no", None]))
        >>> column.levels, column.encode(pd.Series(["yes", "no", None])).tolist()
        (['no', 'yes'], [[1.0], [0.0], [nan]])
    """

    kind = "binary"

    def learn(self, values: pd.Series) -> None:
        """Learn the two values."""
        found = values.nunique()
        if found > _MOST_CATEGORIES:
            raise DataError(
                f"y: expected two values in Binary column {self.name!r}, got {found}. Try {self.name!r} itself, or "
                f"df[{self.name!r}] > value."
            )
        super().learn(values)
        if len(self.levels) != 2:
            raise DataError(
                f"y: expected two values in Binary column {self.name!r}, got {len(self.levels)}: {self.levels[:5]}. "
                f"Try Categorical({self.name!r})."
            )

    def encode(self, values: pd.Series) -> np.ndarray:
        """0 and 1."""
        return self.codes(values)[:, None]

    def elements(self) -> Elements:
        """One Bernoulli element."""
        return BernoulliElements(1)

    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """The probability of the second value, and quantiles that are 0 or 1."""
        probability = part.mean(output).mean(0)[..., 0].numpy(force=True)
        return {None: _of_indicator(probability)}

    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """The more probable value."""
        probability = part.mean(output).mean(0).numpy(force=True)
        return self.values((probability > 0.5).astype(float))


class Categorical(_Labelled):
    """A column of names: of y, or of x. In y every category gets a probability.

    Args:
        name: Of the column.

    Examples:
        >>> column = Categorical("colour")
        >>> column.learn(pd.Series(["red", "blue", "green"]))
        >>> column.levels, column.encode(pd.Series(["green", None])).tolist()
        (['blue', 'green', 'red'], [[0.0, 1.0, 0.0], [nan, nan, nan]])
    """

    kind = "categorical"

    @property
    def num_elements(self) -> int:
        """One element for each category."""
        return len(self.levels)

    def encode(self, values: pd.Series) -> np.ndarray:
        """One-hot rows."""
        codes = self.codes(values)
        rows = (codes[:, None] == np.arange(len(self.levels))).astype(np.float64)
        rows[np.isnan(codes)] = np.nan
        return rows

    def elements(self) -> Elements:
        """A one-hot block."""
        return CategoricalElements(len(self.levels))

    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """For each category its probability, and quantiles that are 0 or 1."""
        probability = part.mean(output).mean(0).numpy(force=True)
        return {level: _of_indicator(probability[..., place]) for place, level in enumerate(self.levels)}

    def values(self, elements: np.ndarray) -> np.ndarray:
        """The categories of one-hot rows."""
        return np.array(self.levels, dtype=object)[elements.argmax(-1)]

    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """The most probable category."""
        return self.values(part.mean(output).mean(0).numpy(force=True))


class Ordinal(_Labelled):
    """A column of ordered categories: numbers, or an ordered categorical of pandas. Its noise is a cumulative logit.

    Answers of numbers are numbers. Those of names are probabilities, as for `Categorical`.

    Args:
        name: Of the column.

    Examples:
        >>> levels = pd.CategoricalDtype(["none", "mild", "severe"], ordered=True)
        >>> pain = pd.Series(["mild", "none", "severe"], dtype=levels)
        >>> column = Ordinal("pain")
        >>> column.learn(pain)
        >>> column.encode(pain).tolist()
        [[1.0], [0.0], [2.0]]
    """

    kind = "ordinal"

    def learn(self, values: pd.Series) -> None:
        """Learn the levels in their order."""
        super().learn(values)
        if not self._numeric() and not (isinstance(values.dtype, pd.CategoricalDtype) and values.cat.ordered):
            raise DataError(
                f"y: expected numbers or an ordered categorical in Ordinal column {self.name!r}, got {values.dtype}. "
                f"Try df[{self.name!r}].astype(pd.CategoricalDtype(['low', 'high'], ordered=True))."
            )

    def _numeric(self) -> bool:
        return all(isinstance(level, int | float) for level in self.levels)

    def encode(self, values: pd.Series) -> np.ndarray:
        """Codes from 0."""
        return self.codes(values)[:, None]

    def elements(self) -> Elements:
        """One ordinal element."""
        return OrdinalElements(len(self.levels))

    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """Moments and quantiles of numbers, probabilities of names."""
        probability = self._probabilities(part, output)
        if not self._numeric():
            return {level: _of_indicator(probability[..., place]) for place, level in enumerate(self.levels)}
        levels = np.array(self.levels, dtype=np.float64)
        mean = probability @ levels
        sd = np.sqrt(np.maximum(probability @ levels**2 - mean**2, 0))
        reached = probability.cumsum(-1)
        quantiles = {name: levels[(reached >= p - 1e-12).argmax(-1)] for name, p in QUANTILES.items()}
        return {None: {"mean": mean, "sd": sd, **quantiles}}

    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """The median level."""
        reached = self._probabilities(part, output).cumsum(-1)
        return self.values((reached >= 0.5).argmax(-1)[..., None])

    def _probabilities(self, part: Elements, output: Tensor) -> np.ndarray:  # shape: (P, levels)
        code = torch.arange(len(self.levels), dtype=output.dtype, device=output.device)
        reached = torch.stack([part.cdf(output, c.reshape(1)).mean(0)[..., 0] for c in code], -1).numpy(force=True)
        return np.diff(reached, axis=-1, prepend=0.0).clip(0)


class Count(Column):
    """A column of counts 0, 1, 2, ...

    Args:
        name: Of the column.
        family: "negative_binomial", whose variance is learned, or "poisson", whose variance is its mean.

    Raises:
        ArgumentError: If the family is unknown.

    Examples:
        >>> Count("visits").encode(pd.Series([0, 3, None])).tolist()
        [[0.0], [3.0], [nan]]
        >>> Count("visits").encode(pd.Series([0.5]))
        Traceback (most recent call last):
            ...
        fgp_gpytorch.errors.DataError: y: expected counts 0, 1, 2, ... in Count column 'visits', got 0.5. ...
    """

    kind = "count"
    logged = True

    def __init__(self, name: Hashable, family: str = "negative_binomial") -> None:
        super().__init__(name)
        self.family = check.choice(family, "family", ("negative_binomial", "poisson"))

    def learn(self, values: pd.Series) -> None:
        """Require counts."""
        self._several(self.encode(values)[:, 0])

    def encode(self, values: pd.Series) -> np.ndarray:
        """The counts themselves."""
        numbers = self._numbers(values)
        wrong = (numbers < 0) | (numbers != np.round(numbers))
        if (wrong & ~np.isnan(numbers)).any():
            raise DataError(
                f"y: expected counts 0, 1, 2, ... in Count column {self.name!r}, got "
                f"{numbers[wrong & ~np.isnan(numbers)][0]:g}. Try {self.name!r} itself for real numbers."
            )
        return numbers[:, None]

    def elements(self) -> Elements:
        """One element of counts."""
        return PoissonElements(1) if self.family == "poisson" else NegativeBinomialElements(1)

    def answers(self, part: Elements, output: Tensor) -> dict[Any, dict[str, np.ndarray]]:
        """Moments, and integer quantiles."""
        means, variances = part.mean(output)[..., 0], part.variance(output)[..., 0]
        sd = (variances.mean(0) + means.var(0, unbiased=False)).sqrt()
        quantiles = {name: part.quantile(output, p)[..., 0].numpy(force=True) for name, p in QUANTILES.items()}
        return {None: {"mean": means.mean(0).numpy(force=True), "sd": sd.numpy(force=True), **quantiles}}

    def values(self, elements: np.ndarray) -> np.ndarray:
        """The counts themselves."""
        return elements[..., 0]

    def best(self, part: Elements, output: Tensor) -> np.ndarray:
        """The expected count."""
        return part.mean(output)[..., 0].mean(0).numpy(force=True)


class Periodic:
    """A column of x on a circle, such as the hour of a day.

    Args:
        name: Of the column.
        period: In the column's units, such as 24.

    Raises:
        ArgumentError: If the period is not a positive number.

    Examples:
        >>> hour = Periodic("hour", period=24)  # 23 is as near to 0 as to 22
        >>> TableModel(y="temperature", x=["day", hour], group="station")
        TableModel(y=['temperature'], x=['day', 'hour'], group='station')
    """

    def __init__(self, name: Hashable, period: float) -> None:
        self.name = check.instance(name, "name", Hashable, "Try the name of a column.")
        self.period = check.positive(period, "period", hint="Try 24 for hours, 2 * math.pi for radians.")

    def __repr__(self) -> str:
        return f"Periodic({self.name!r}, {self.period:g})"


def as_columns(y: Any) -> list[Column]:
    """Columns of y: plain names become Gaussian columns.

    Raises:
        ArgumentError: If there is no column, an entry is not one, or a name occurs twice.
    """
    listed = list(y) if isinstance(y, Sequence | pd.Index) and not isinstance(y, str | tuple) else [y]
    columns = [entry if isinstance(entry, Column) else Gaussian(entry) for entry in listed]
    for column in columns:
        if isinstance(column.name, Periodic):
            raise ArgumentError(f"y: expected names or columns of y, got {column.name!r}, which is one of x. Try x=.")
    names = [column.name for column in columns]
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"y: expected different columns, got {names}. Try y=['height', Log('weight')].")
    return columns


def _of_indicator(probability: np.ndarray) -> dict[str, np.ndarray]:
    """Mean, sd and quantiles of a value that is 1 with this probability, else 0."""
    quantiles = {name: (1 - probability < p).astype(np.float64) for name, p in QUANTILES.items()}
    return {"mean": probability, "sd": np.sqrt(probability * (1 - probability)), **quantiles}
