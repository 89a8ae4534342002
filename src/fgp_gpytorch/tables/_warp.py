"""Power transforms of a column, and which of them its Gaussian process prefers."""

import math
import warnings
from dataclasses import dataclass

import numpy as np
from scipy import stats


@dataclass(frozen=True)
class Warp:
    """An increasing map of a column: the power transform of Box and Cox, then mean 0 and standard deviation 1.

        u = (v^power - 1) / power, or log v for power 0;   element = (u - mean) / scale

    For power 1 it standardizes, and negative values are possible.

    Attributes:
        power: From 0 to 1.
        unit: The median of positive columns: v = value / unit.
        mean: Of u.
        scale: Of u.
        least: The smallest value of the training table.
    """

    power: float = 1.0
    unit: float = 1.0
    mean: float = 0.0
    scale: float = 1.0
    least: float = -math.inf

    @classmethod
    def of(cls, values: np.ndarray, power: float) -> "Warp":
        """Learn mean and scale of observed values (N,)."""
        unit = 1.0 if power == 1.0 else float(np.median(values))
        raw = cls(power, unit, least=float(values.min()))
        powered = raw._power(values)
        scale = float(powered.std(ddof=1)) if len(powered) > 1 else 1.0
        return cls(power, unit, float(powered.mean()), scale if scale > 0 else 1.0, raw.least)

    def __call__(self, values: np.ndarray) -> np.ndarray:
        """Elements of values; NaN stays NaN."""
        return (self._power(values) - self.mean) / self.scale

    def inverse(self, elements: np.ndarray) -> np.ndarray:
        """Values of elements. Elements below the smallest possible value give 0."""
        u = elements * self.scale + self.mean
        if self.power == 1.0:
            return u
        if self.power == 0.0:
            return np.exp(np.minimum(u, 700.0)) * self.unit
        return np.maximum(1 + self.power * u, 0.0) ** (1 / self.power) * self.unit

    def log_slope(self, values: np.ndarray) -> np.ndarray:
        """Log of d element / d value."""
        slope = np.zeros_like(values) - math.log(self.scale)
        if self.power != 1.0:
            slope = slope + (self.power - 1) * np.log(np.maximum(values, 1e-300) / self.unit) - math.log(self.unit)
        return slope

    def _power(self, values: np.ndarray) -> np.ndarray:
        if self.power == 1.0:
            return np.asarray(values, dtype=np.float64)
        v = values / self.unit
        return np.log(v) if self.power == 0.0 else (v**self.power - 1) / self.power


def likely_power(values: np.ndarray) -> float:
    """The maximum-likelihood power of positive values (N,), limited to 0 to 1. 1 for columns with values <= 0."""
    if values.min() <= 0 or values.max() / values.min() < 1.2:
        return 1.0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        power = float(stats.boxcox_normmax(values / np.median(values), method="mle"))
    power = round(min(max(power, 0.0), 1.0), 2) if math.isfinite(power) else 1.0
    return 0.0 if power < 0.05 else 1.0 if power > 0.95 else power
