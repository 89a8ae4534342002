"""Power transforms of a column, and which of them its Gaussian process prefers."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats

_MOST_ZEROS = 0.2


@dataclass(frozen=True)
class Warp:
    """An increasing map of a column: the power transform of Box and Cox, then mean 0 and standard deviation 1.

        v = (value + shift) / unit;   u = (v^power - 1) / power, or log v for power 0;   element = (u - mean) / scale

    For power 1 it standardizes, and negative values are possible.

    Attributes:
        power: From 0 to 1.
        unit: The median of the column, for powers below 1.
        mean: Of u.
        scale: Of u.
        least: The smallest value of the training table.
        shift: Half the smallest positive value of a column with zeros, else 0.
    """

    power: float = 1.0
    unit: float = 1.0
    mean: float = 0.0
    scale: float = 1.0
    least: float = -math.inf
    shift: float = 0.0

    @classmethod
    def of(cls, values: np.ndarray, power: float) -> "Warp":
        """Learn mean and scale of observed values (N,)."""
        shift = 0.0 if power == 1.0 else _shift(values)
        unit = 1.0 if power == 1.0 else float(np.median(values) + shift)
        raw = cls(power, unit, least=float(values.min()), shift=shift)
        powered = raw._power(values)
        scale = float(powered.std(ddof=1)) if len(powered) > 1 else 1.0
        return cls(power, unit, float(powered.mean()), scale if scale > 0 else 1.0, raw.least, shift)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Elements of values; NaN stays NaN. Far below the training values, the power continues as a line."""
        start = self.start
        found = (self._power(np.maximum(values, start)) - self.mean) / self.scale
        if self.power == 1.0:
            return found
        return found + np.minimum(values - start, 0.0) * np.exp(self.log_slope(np.array(start)))

    @property
    def start(self) -> float:
        """The value below which the transform is a line: half of the smallest one, counted from -shift."""
        return -math.inf if self.power == 1.0 else 0.5 * (self.least - self.shift)

    def inverse(self, elements: np.ndarray) -> np.ndarray:
        """Values of elements. Elements below the smallest possible value give 0."""
        u = elements * self.scale + self.mean
        if self.power == 1.0:
            return u
        if self.power == 0.0:
            v = np.exp(np.minimum(u, 700.0))
        else:
            v = np.maximum(1 + self.power * u, 0.0) ** (1 / self.power)
        return np.maximum(v * self.unit - self.shift, 0.0)

    def log_slope(self, values: np.ndarray) -> np.ndarray:
        """Log of d element / d value."""
        values = np.maximum(values, self.start)
        slope = np.zeros_like(values) - math.log(self.scale)
        if self.power != 1.0:
            v = np.maximum(values + self.shift, 1e-300) / self.unit
            slope = slope + (self.power - 1) * np.log(v) - math.log(self.unit)
        return slope

    def _power(self, values: np.ndarray) -> np.ndarray:
        if self.power == 1.0:
            return np.asarray(values, dtype=np.float64)
        v = (values + self.shift) / self.unit
        return np.log(v) if self.power == 0.0 else (v**self.power - 1) / self.power


def _shift(values: np.ndarray) -> float:
    return 0.5 * float(values[values > 0].min()) if values.min() == 0 else 0.0


def likely_power(values: np.ndarray) -> float:
    """The maximum-likelihood power of values (N,), limited to 0 to 1. 1 for columns with negative values.

    A column with many zeros has none either: no power makes them Gaussian.
    """
    if values.min() < 0 or (values == 0).mean() > _MOST_ZEROS:
        return 1.0
    values = values + _shift(values)
    if values.max() / values.min() < 1.2:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        power = float(stats.boxcox_normmax(values / np.median(values), method="mle"))
    power = round(min(max(power, 0.0), 1.0), 2) if math.isfinite(power) else 1.0
    return 0.0 if power < 0.05 else 1.0 if power > 0.95 else power
