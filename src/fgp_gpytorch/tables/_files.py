"""What a table model learned of its columns, as plain values."""

from typing import Any

import pandas as pd

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.tables import columns as kinds
from fgp_gpytorch.tables._features import Covariate, Feature
from fgp_gpytorch.tables._warp import Warp

_FORMAT = 1
_KINDS = {kind.__name__: kind for kind in (
    kinds.Gaussian, kinds.Log, kinds.Binary, kinds.Categorical, kinds.Ordinal, kinds.Count
)}  # fmt: skip


def pack_table(model: Any) -> dict[str, Any]:
    """The columns of a fitted model as plain values."""
    return {
        "format": _FORMAT,
        "columns": [_pack_column(column) for column in model.columns_],
        "features": [_pack_feature(feature) for feature in model.features_],
        "covariates": [_pack_covariate(covariate) for covariate in model.covariates_],
        "group": [_pack(name) for name in model.group],
        "options": {name: value for name, value in model.options().items() if name != "kernel"},
        "learned": {"elbo": model.elbo_, "moved": model.moved_, "spread": model.spread_},
    }


def unpack_table(kind: Any, content: dict[str, Any]) -> Any:
    """A model with these columns, without its networks.

    Raises:
        CheckpointError: If the content has another format.
    """
    if content["format"] != _FORMAT:
        raise CheckpointError(f"expected a table of format {_FORMAT}, got {content['format']}. Try another version.")
    columns = [_unpack_column(entry) for entry in content["columns"]]
    features = [_unpack_feature(entry) for entry in content["features"]]
    x = [_spec_of(feature) for feature in features]
    covariates = [_unpack_covariate(entry) for entry in content["covariates"]]
    names = [covariate.name for covariate in covariates]
    model = kind(columns, x, [_unpack(name) for name in content["group"]], names, **_options(content["options"]))
    model.columns_, model.features_, model.covariates_ = columns, features, covariates
    learned = content["learned"]
    model.elbo_, model.moved_, model.spread_ = learned["elbo"], learned["moved"], learned["spread"]
    return model


def _options(content: dict[str, Any]) -> dict[str, Any]:
    """Options as they were: JSON makes lists of pairs."""
    return {name: tuple(value) if isinstance(value, list) else value for name, value in content.items()}


def _pack_column(column: kinds.Column) -> dict[str, Any]:
    state = {name: value for name, value in vars(column).items() if name not in ("name", "warp", "levels")}
    packed: dict[str, Any] = {"kind": type(column).__name__, "name": _pack(column.name), "state": state}
    if isinstance(column, kinds.Gaussian):
        packed["warp"] = vars(column.warp)
    levels = getattr(column, "levels", None)
    if levels is not None:
        packed["levels"] = [_pack(level) for level in levels]
    return packed


def _unpack_column(entry: dict[str, Any]) -> kinds.Column:
    column = _KINDS[entry["kind"]](_unpack(entry["name"]))
    vars(column).update(entry["state"])
    if isinstance(column, kinds.Gaussian):
        column.warp = Warp(**entry["warp"])
    if "levels" in entry:
        vars(column)["levels"] = [_unpack(level) for level in entry["levels"]]
    return column


def _pack_feature(feature: Feature) -> dict[str, Any]:
    return {
        "name": _pack(feature.name), "kind": feature.kind, "period": feature.period, "dtype": str(feature.dtype),
        "category": None if feature.category is None else _pack_column(feature.category),
        "numbers": [feature.center, feature.scale, feature.low, feature.high],
        "logarithm": [feature.shift, feature.least],
    }  # fmt: skip


def _unpack_feature(entry: dict[str, Any]) -> Feature:
    name = _unpack(entry["name"])
    if entry["category"] is not None:
        category = _unpack_column(entry["category"])
        assert isinstance(category, kinds.Categorical)
        feature = Feature(category)
    else:
        feature = Feature(name if entry["period"] is None else kinds.Periodic(name, entry["period"]))
    feature.kind = entry["kind"]
    feature.center, feature.scale, feature.low, feature.high = entry["numbers"]
    feature.shift, feature.least = entry["logarithm"]
    dtype = entry["dtype"]
    feature.dtype = pd.api.types.pandas_dtype(dtype) if feature.kind == "date" else dtype
    return feature


def _pack_covariate(covariate: Covariate) -> dict[str, Any]:
    levels = None if covariate.levels is None else [_pack(level) for level in covariate.levels]
    return {"name": _pack(covariate.name), "levels": levels, "numbers": [
        covariate.center, covariate.scale, covariate.low, covariate.high
    ]}  # fmt: skip


def _unpack_covariate(entry: dict[str, Any]) -> Covariate:
    covariate = Covariate(_unpack(entry["name"]))
    covariate.levels = None if entry["levels"] is None else [_unpack(level) for level in entry["levels"]]
    covariate.center, covariate.scale, covariate.low, covariate.high = entry["numbers"]
    return covariate


def _spec_of(feature: Feature) -> Any:
    if feature.category is not None:
        return feature.category
    return feature.name if feature.period is None else kinds.Periodic(feature.name, feature.period)


def _pack(label: Any) -> Any:
    """A label as a pair of its kind and a plain value.

    Raises:
        CheckpointError: If it is no string, number, boolean or timestamp.
    """
    label = check.number(label)
    if isinstance(label, pd.Timestamp):
        return ["time", label.isoformat()]
    if isinstance(label, tuple):
        return ["tuple", [_pack(part) for part in label]]
    if not isinstance(label, str | int | float | bool):
        raise CheckpointError(
            f"save: expected labels that are strings, numbers, booleans or dates, got {type(label).__name__}. Try "
            "strings."
        )
    return ["plain", label]


def _unpack(pair: Any) -> Any:
    kind, value = pair
    if kind == "time":
        return pd.Timestamp(value)
    return tuple(_unpack(part) for part in value) if kind == "tuple" else value
