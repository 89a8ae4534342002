"""A model of a person's DataFrame."""

# pandas' operations return unions of all that they might return for other arguments
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false, reportCallIssue=false, reportReturnType=false
# pyright: reportGeneralTypeIssues=false, reportIndexIssue=false, reportOperatorIssue=false, reportAssignmentType=false

import copy
import json
import math
import os
import warnings
from collections.abc import Callable, Hashable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Self, TypeVar

import numpy as np
import pandas as pd
import torch
from gpytorch.kernels import Kernel
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation, generators_restored
from fgp_gpytorch.data import GroupedDataset
from fgp_gpytorch.errors import ArgumentError, CheckpointError, DataError, GroupError
from fgp_gpytorch.likelihoods import ColumnLikelihood, GaussianElements
from fgp_gpytorch.models import FGPVAE, check_dropout
from fgp_gpytorch.objectives import ELBO
from fgp_gpytorch.saving import pack_model, read_checkpoint, unpack_model, write_checkpoint
from fgp_gpytorch.tables._features import as_covariates, as_features, level_codes
from fgp_gpytorch.tables._files import pack_table, unpack_table
from fgp_gpytorch.tables._fitting import (
    MOST_CHANNELS,
    Fitted,
    Verdict,
    as_numbers,
    by_folds,
    num_channels,
    num_knots,
    second_stage,
    shortened,
    warn_of_equal_groups,
)
from fgp_gpytorch.tables._frames import (
    fill_gaps,
    grid_of,
    group_names,
    require,
    targets_of,
    warn_of_overlap,
    warn_of_rows,
)
from fgp_gpytorch.tables._networks import MANY_GROUPS, MOST_KNOTS, column_evidence, may_scale_a_curve, model_of
from fgp_gpytorch.tables._scores import mean_scores, scores_of
from fgp_gpytorch.tables._units import check_units, warn_of_kinds
from fgp_gpytorch.tables._warp import Warp, likely_power
from fgp_gpytorch.tables.columns import Column, Gaussian, as_columns

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_T = TypeVar("_T")
_FEWEST_TO_VALIDATE = 5  # groups; fewer say too little, and the model stays at its linear start
_ANSWERS = ("variable", "category", "mean", "sd", "q05", "q50", "q95")
_VALUES_AT_ONCE = 2**25  # decoded values, or latents
_MATCHED = 16  # draws that have the moments of the normal distribution exactly
_DECISIVE = 5.0  # nats of evidence (Kass and Raftery 1995, "Bayes factors")
_ELEMENT_DROPOUT = (0.0, 0.5)  # of tables with several columns, of which a context may lack some


class TableModel:
    """Forecasts, imputation, embedding and new groups for a table whose rows are repeated measurements of groups.

    As in scikit-learn, `fit` returns the model, and what is learned ends in an underscore. All answers
    are in the table's own units. It is a thin layer over `FGPVAE`, which is `model.vae_`.

    `fit` starts the model as an exact multi-output Gaussian process: a level and a Matern 3/2 process for each channel,
    a mean over x, and linear networks. With up to 100 groups of up to 300 rows, each group may also scale a common
    curve. Then it trains nonlinear networks. Groups that are held out decide on the curve and on the networks.

    Args:
        y: Columns to model: names, which are `Gaussian` columns, or `Log`, `Binary`, `Categorical`, `Ordinal`, `Count`.
        x: Columns of auxiliary features: names of numbers or dates, `Periodic` or `Categorical`.
        group: The column of groups, or a list of them, outermost first, such as ["speaker", "utterance"].
        covariates: Columns whose effects all groups share: names of numbers or of categories. Each has a linear
            effect, or one for each category, on every channel, with a posterior over its weights. A category that was
            not in the training table, and a missing value, have the prior of the effect.
        kernel: A GPyTorch kernel of x, standardized, in place of the default; its batch shape is [] or [channels].
        channels: Latent channels. "auto" takes one for each element of y, if they are at most 16, else as many as
            principal components explain 99 % of the variance, at most 128.
        hidden: Widths of the residual networks. An empty list keeps the model linear.
        member_dropout: Of the second stage, see `GroupedVAE`.
        element_dropout: Of the second stage. "auto" is (0, 0.5) for several columns, of which a context may lack some.
        beta: Weight of the KL in the second stage.
        calibrate: Whether `fit` widens intervals that are too narrow for groups that it holds out in turn.

    Attributes:
        vae_: The fitted `FGPVAE`.
        columns_: The columns of y with what was learned of them.
        features_: The columns of x with what was learned of them.
        elbo_: ELBO of the training groups at the linear start, nats an observed element.
        moved_: How far the parameters moved from the linear start (0) to the end of the second stage (1).
        spread_: Factor of the standard deviations of latents and noise, at least 1.

    Raises:
        ArgumentError: If an argument has another type, or a name occurs twice.

    Examples:
        >>> df = pd.DataFrame({"boy": np.arange(60) // 6, "age": np.arange(60) % 6 / 5})
        >>> df["height"] = 140 + 8 * df.age + df.boy
        >>> model = TableModel(y="height", x="age", group="boy").fit(df)
        >>> forecast = model.forecast(df[df.age < 0.5], at={"age": [0.6, 1.0]})
        >>> list(forecast), len(forecast)
        (['boy', 'age', 'variable', 'mean', 'sd', 'q05', 'q50', 'q95'], 20)
    """

    def __init__(
        self,
        y: Any,
        x: Any,
        group: Hashable | Sequence[Hashable],
        covariates: Any = (),
        kernel: Kernel | None = None,
        channels: int | Literal["auto"] = "auto",
        hidden: Sequence[int] = (64, 64),
        calibrate: bool = True,
        member_dropout: float | tuple[float, float] = (0.0, 1.0),
        element_dropout: float | tuple[float, float] | Literal["auto"] = "auto",
        beta: float = 1.0,
    ) -> None:
        self.y, self.x, self.group = as_columns(y), as_features(x), group_names(group)
        self.covariates = as_covariates(covariates)
        check.instance(kernel, "kernel", (Kernel, type(None)), "Try gpytorch.kernels.MaternKernel(nu=1.5).")
        if channels != "auto":
            channels = check.count(channels, "channels", hint='Try channels="auto".')
        hint = "Try hidden=(64, 64), or hidden=() for a linear model."
        widths = check.instance(hidden, "hidden", (list, tuple), hint)
        self.kernel, self.channels = kernel, channels
        self.hidden = tuple(check.count(width, "hidden", hint=hint) for width in widths)
        self.calibrate = check.instance(calibrate, "calibrate", bool, "Try calibrate=True.")
        self.member_dropout = check_dropout(member_dropout)
        automatic = isinstance(element_dropout, str) and element_dropout == "auto"
        self.element_dropout = element_dropout if automatic else check_dropout(element_dropout, "element_dropout")
        self.beta = check.positive(beta, "beta", hint="Try 1.0, the ELBO.")
        names = [c.name for c in self.y] + self._keys
        taken = [name for name in names if name in _ANSWERS and name not in [c.name for c in self.y]]
        if taken:
            raise ArgumentError(
                f"expected columns of x and group that are not named as those of a forecast, {list(_ANSWERS)}, got "
                f"{taken[0]!r}. Try df.rename(columns={{{taken[0]!r}: '{taken[0]}_'}})."
            )
        twice = [name for name in names if names.count(name) > 1]
        if twice:
            raise ArgumentError(
                f"expected each column in one of y, x, group and covariates, got {twice[0]!r} in two. Try it in one of "
                "them."
            )

    def __repr__(self) -> str:
        y, x = [column.name for column in self.y], [feature.name for feature in self.x]
        return f"TableModel(y={y}, x={x}, group={self.group if len(self.group) > 1 else self.group[0]!r})"

    def options(self) -> dict[str, Any]:
        """The options of the constructor apart from the columns, by name."""
        names = ("kernel", "channels", "hidden", "calibrate", "member_dropout", "element_dropout", "beta")
        return {name: getattr(self, name) for name in names}

    def with_options(self, **options: Any) -> "TableModel":
        """A model of the same columns that is not fitted, with other options.

        Args:
            **options: Options of the constructor.

        Raises:
            ArgumentError: If an option is unknown, or has another type.
        """
        unknown = set(options) - set(self.options())
        if unknown:
            raise ArgumentError(
                f"options: expected some of {list(self.options())}, got {sorted(unknown)}. Try channels=2."
            )
        x = [feature.column for feature in self.x]
        names = [covariate.name for covariate in self.covariates]
        return TableModel(copy.deepcopy(self.y), x, self.group, names, **{**self.options(), **options})

    # training

    def fit(
        self,
        df: pd.DataFrame,
        validation: float = 0.1,
        seed: int = 0,
        max_steps: int = 500,
        progress: bool = False,
    ) -> Self:
        """Fit the model to a table.

        Args:
            df: Training groups, a row for each member. Values of y may be missing.
            validation: Fraction of the groups that decides how far training moves away from the linear start. With
                fewer than 5 such groups it stays there: they would decide by chance.
            seed: Of validation groups, training and networks.
            max_steps: Most steps of the second stage.
            progress: Whether to show a bar in the second stage. The linear start before it takes seconds to a minute.

        Returns:
            The model itself.

        Warns:
            UserWarning: If a group has several rows with equal x, most groups have one row, groups hardly differ, a
                value is far from all others, a column has counts with many zeros, or there are fewer than 6 groups.

        Raises:
            ArgumentError: If an argument has another type.
            DataError: If a column is absent, has another kind, or has one value only.
            GroupError: If a group has no label.
        """
        check.instance(df, "df", pd.DataFrame, "Try pd.DataFrame(df).")
        seed = check.count(seed, "seed", least=0)
        validation = check.positive(validation, "validation", zero=True, below=1, hint="Try 0.1, or 0 for none.")
        max_steps = check.count(max_steps, "max_steps", least=0)
        require(df, [c.name for c in self.y] + self._keys)
        kept = dict(vars(self))
        try:
            self._learn(df, validation, seed, max_steps, progress)
        except BaseException:  # a fit that fails, or that ctrl-C ends, leaves the model as it was
            vars(self).clear()
            vars(self).update(kept)
            raise
        return self

    def _learn(self, df: pd.DataFrame, validation: float, seed: int, max_steps: int, progress: bool) -> None:
        vars(self).pop("vae_", None)  # tables are checked against it if there is one
        self.columns_, self.features_ = copy.deepcopy(self.y), copy.deepcopy(self.x)
        self.covariates_ = copy.deepcopy(self.covariates)
        for covariate in self.covariates_:
            covariate.learn(df[covariate.name])
        for feature in self.features_:
            feature.learn(df[feature.name])
        for column in self.columns_:
            column.learn(df[column.name])
        with generators_restored(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "x: expected different features")  # said below, in words of the table
            warnings.filterwarnings("ignore", "prior: expected a lengthscale")  # other terms may explain the table
            warnings.filterwarnings("ignore", "channels: expected some that carry")
            torch.manual_seed(seed)
            self._choose_transforms(df)
            self._choose_scales(df)
            train = self._dataset(df).only_observed()
            warn_of_rows(df, self._rows_by, train.group_sizes)
            warn_of_kinds([c for c in self.columns_ if isinstance(c, Gaussian)], df)
            self._fit_stages(train, validation, seed, max_steps, progress)

    def _fit_stages(self, train: GroupedDataset, validation: float, seed: int, max_steps: int, progress: bool) -> None:
        vae, self.elbo_, found = self._start(train, seed)
        fitted = Fitted(vae, 0.0, 1.0)
        held_out = round(validation * len(train))
        if held_out >= _FEWEST_TO_VALIDATE and max_steps and self.hidden:
            several = _ELEMENT_DROPOUT if len(self._sizes) > 1 else 0.0
            vae.member_dropout = self.member_dropout
            vae.element_dropout = several if self.element_dropout == "auto" else self.element_dropout
            fitted = second_stage(
                vae, train, held_out, self.calibrate, max_steps, seed, progress,
                learning_rate=1e-3, objective=ELBO(self.beta),
            )  # fmt: skip
        elif self.calibrate:
            found = by_folds(vae, train, seed) if found is None else found
            fitted = fitted._replace(spread=found.spread)
        self.vae_, self.moved_, self.spread_ = fitted
        self.vae_.eval()
        warn_of_equal_groups(self.vae_, train, seed)
        if len(train) > 1:
            self.vae_.fit_groups(shortened(train, seed))

    def _start(self, train: GroupedDataset, seed: int) -> tuple[FGPVAE, float, Verdict | None]:
        """A linear model, its ELBO, and what held-out groups say of it, if they were asked.

        Groups scale a common curve if they are few, the evidence is for it, and it predicts held-out groups better.
        """
        plain = self._linear(train, curve=False)
        own = self.channels == "auto" and train.y_shape[0] <= MOST_CHANNELS
        numbers = any(feature.is_number for feature in self.features_)
        if self.kernel is not None or not own or not numbers or not may_scale_a_curve(train):
            return *plain, None
        curved = self._linear(train, curve=True)
        if curved[1] <= plain[1]:
            return *plain, None
        verdicts = [by_folds(vae, train, seed) for vae, _ in (plain, curved)]
        better = bool((verdicts[1].crps / verdicts[0].crps).nanmean() < 1)
        return (*curved, verdicts[1]) if better else (*plain, verdicts[0])

    def _linear(self, train: GroupedDataset, curve: bool) -> tuple[FGPVAE, float]:
        """A linear model: one channel for each element of y if they are few, else principal components."""
        size = train.y_shape[0]
        own = self.channels == "auto" and size <= MOST_CHANNELS
        vae = model_of(
            self.columns_, self.features_, train,
            num_channels=size if own else num_channels(train, self.channels),
            num_knots=num_knots(self.columns_, self.features_, self._first_level, train, curve),
            hidden=self.hidden, kernel=copy.deepcopy(self.kernel), covariates=self.covariates_, curve=curve,
        )  # fmt: skip
        return vae, vae.initialize(train, rotation="columns" if own else "components")

    def _choose_transforms(self, df: pd.DataFrame) -> None:
        """Take the power scale of a Gaussian column if its Gaussian process has the larger evidence for it."""
        candidates: list[tuple[Gaussian, np.ndarray, Warp]] = []
        for column in self.columns_:
            if isinstance(column, Gaussian) and column.transform == "auto":
                values = df[column.name].to_numpy(dtype=np.float64, na_value=np.nan)
                seen = values[~np.isnan(values)]
                power = likely_power(seen)
                if power != 1.0:
                    candidates.append((column, values, Warp.of(seen, power)))
        if not candidates:
            return
        both = [(values, warp) for column, values, other in candidates for warp in (column.warp, other)]
        numbers = np.stack([warp(values) for values, warp in both], -1)
        data = self._grouped(df, numbers, level_codes([df], self.group)[0])
        evidence = column_evidence(
            data.only_observed(), self.features_, self._first_level, MOST_KNOTS,
            curve=may_scale_a_curve(data),
        )  # fmt: skip
        for place, (values, warp) in enumerate(both):
            evidence[place] += float(warp.log_slope(values[~np.isnan(values)]).sum())
        for (column, _, warp), (plain, powered) in zip(candidates, evidence.reshape(-1, 2).tolist(), strict=True):
            if powered > plain:
                column.warp = warp

    def _choose_scales(self, df: pd.DataFrame) -> None:
        """Take the logarithm of a number of x if the columns' Gaussian processes have decisive evidence for it."""
        for feature in self.features_:
            values = df[feature.name]
            if self.kernel is not None or not feature.may_be_logarithmic(values):
                continue
            found = []
            for logarithmic in (False, True):
                feature.set_scale(values, logarithmic)
                data = self._dataset(df).only_observed()
                if len(data) > MANY_GROUPS:
                    return
                data = as_numbers(self.columns_, data)
                evidence = column_evidence(data, self.features_, self._first_level, MOST_KNOTS, may_scale_a_curve(data))
                found.append(float(evidence.sum()))
            feature.set_scale(values, logarithmic=found[1] > found[0] + _DECISIVE)

    # answers

    def forecast(
        self, df: pd.DataFrame, at: Mapping[Hashable, Any] | pd.DataFrame, num_draws: int = 256, seed: int = 0
    ) -> pd.DataFrame:
        """Predict y at new x, for each group of a context.

        Args:
            df: The context: rows of any groups, seen in training or not.
            at: Values of each x column, of which every group gets all combinations, or a table with the group and x
                columns, a row for each forecast. Without a covariate, it is that of the group's last row in `df`.
                Dates without a time zone, in a dictionary, are in that of the training table.
            num_draws: Draws of the latents. The noise of the likelihood is added exactly.
            seed: Of the draws.

        Returns:
            A row for each forecast and column of y: group, x and covariates, variable, mean, sd, q05, q50, q95 in the
            table's units. If a column has categories, a column "category" follows the variable, and a row for each
            category has its probability as mean. The rows of a column are in the order of `at`, group by group for
            a dictionary.

        Raises:
            ArgumentError: If an argument has another type, or `at` lacks a column.
            DataError: If the context is empty, or a value is impossible.
            GroupError: If a group of `at` has no row in the context.
        """
        df = self._checked(df)
        targets = self._targets(df, at)
        return self._tidy(df, targets, num_draws, seed)

    def impute(self, df: pd.DataFrame, spread: bool = False, num_draws: int = 256, seed: int = 0) -> pd.DataFrame:
        """Fill the gaps of y from the other values of the same row and the same group.

        Args:
            df: A table with missing values in columns of y.
            spread: False returns the table with its gaps filled: by means, expected counts (rounded in columns of
                integers) and the most probable categories. True returns a row for each gap with mean, sd and quantiles,
                with the index of its row in the table.
            num_draws: Draws of the latents.
            seed: Of the draws.

        Returns:
            A copy of the table with its rows, index and dtypes. Columns of y that it lacks are appended.

        Raises:
            ArgumentError: If an argument has another type.
            DataError: If the table is empty, or a value is impossible.
        """
        targets = self._checked(df)
        check.instance(spread, "spread", bool, "Try spread=True.")
        if spread:
            return self._tidy(targets, targets, num_draws, seed, only_gaps=True)
        gaps = [targets[column.name].isna().to_numpy() for column in self.columns_]

        def use(rows: np.ndarray, output: Tensor) -> list[pd.Series]:
            parts = zip(self._parts(output), gaps, strict=True)
            return [
                pd.Series(column.best(part, own[:, missing[rows]]), rows[missing[rows]])
                for (column, part, own), missing in parts
            ]

        found = self._in_parts(targets, targets, num_draws, seed, use)
        filled = targets.copy()
        for column, missing, parts in zip(self.columns_, gaps, zip(*found, strict=True), strict=True):
            if missing.any():
                values = pd.concat(parts).sort_index().to_numpy()
                filled[column.name] = fill_gaps(targets[column.name], missing, values)
        return filled

    def embed(
        self, df: pd.DataFrame, members: bool = False, points: int | None = None, progress: bool = False
    ) -> pd.DataFrame:
        """Latents of groups: the posterior mean of each channel, as an average or as a curve over x.

        Args:
            df: A table with the columns of the training table.
            members: Whether to return a row for each row of the table, with its index, in place of one for each group.
            points: None averages a channel over the members of a group. A number returns its values at so many places,
                evenly spaced over the group's own range of the first column of x, interpolated between members. Groups
                that differ in their course are further apart then.
            progress: Whether to show a progress bar.

        Returns:
            Columns z0, z1, ..., or z0_0, z0_1, ... for the places of channel 0. The index is the group, or that of the
            table.

        Raises:
            ArgumentError: If `df` is no DataFrame, both options are given, or the first column of x has no order.
            DataError: If the table is empty, or a value is impossible.
        """
        df = self._checked(df)
        check.instance(members, "members", bool, "Try members=True.")
        if points is not None:
            points = check.count(points, "points", least=2, hint="Try points=5.")
            if members or not self.features_[0].is_number:
                raise ArgumentError(
                    "points: expected one row a group and numbers or dates in the first column of x, got "
                    f"members={members} and {self.features_[0].kind} {self.features_[0].name!r}. Try points=None."
                )
        data = self._dataset(df)
        names = [f"z{channel}" for channel in range(self.vae_.prior.num_channels)]
        with evaluation(self.vae_, 0):
            means = [self.vae_.infer(batch).mean[batch.mask] for batch in data.batches(progress=progress)]
        rows = torch.cat(means).numpy(force=True)
        order = self._row_order(df)
        if members:
            placed = np.empty_like(rows)
            placed[order] = rows
            return pd.DataFrame(placed, index=df.index, columns=names)
        group = df[self.group[0]].iloc[order].reset_index(drop=True)
        codes, _ = pd.factorize(group)
        if points is None:
            found = pd.DataFrame(rows, columns=names).groupby(codes).mean()
        else:
            x = data.features().x[:, 0].numpy(force=True)
            curves = [_curves(x[codes == code], rows[codes == code], points) for code in range(codes[-1] + 1)]
            found = pd.DataFrame(curves, columns=[f"{name}_{place}" for name in names for place in range(points)])
        found.index = pd.Index(group[~group.duplicated()], name=self.group[0], tupleize_cols=False)
        return found

    def sample_groups(self, n: int, at: Mapping[Hashable, Any], seed: int = 0) -> pd.DataFrame:
        """Draw tables of new groups, with the noise of the likelihood.

        Args:
            n: Number of groups.
            at: Values of each x column, and of covariates; every group gets all combinations. A covariate without
                values is unknown, so its effect is 0.
            seed: Of the draws.

        Returns:
            A row for each member: group (0 to n - 1), x columns, given covariates, and y columns in the table's units.

        Raises:
            ArgumentError: If `at` lacks a column, or `n` is not a positive integer.
            DataError: If the training table had one group.
        """
        self._fitted()
        if self.vae_.group_distribution is None:
            raise DataError(
                "sample_groups: expected a model of at least two training groups, got one. Try more groups in fit."
            )
        n = check.count(n, "n")
        check.instance(at, "at", Mapping, "Try at={'year': range(2000, 2010)}.")
        grid = grid_of(at, self.features_, self.covariates)
        given = [c.name for c in self.covariates if c.name in grid.columns]
        for name in self.group:
            grid[name] = 0
        for covariate in self.covariates_:
            if covariate.name not in grid.columns:
                grid[covariate.name] = np.nan
        x = self._encoded_x(grid, level_codes([grid], self.group)[0], "at").unsqueeze(0)
        with torch.no_grad(), evaluation(self.vae_, check.count(seed, "seed", least=0)):
            parts = []
            most = max(1, _VALUES_AT_ONCE // (x.shape[1] * self._likelihood.num_outputs))
            for start in range(0, n, most):
                z = self.vae_.group_distribution.sample(self.vae_.prior, x, (min(most, n - start),))
                parts.append(self._likelihood.sample(self.vae_.decode(z, x, self._likelihood.y_shape))[:, 0])
            elements = torch.cat(parts).numpy(force=True)
        frames = []
        for group in range(n):
            frame = grid.copy()
            frame[self.group[0]] = group
            for column, own in zip(self.columns_, self._likelihood.y_slices, strict=True):
                frame[column.name] = column.values(elements[group][:, own])
            frames.append(frame)
        columns = [*self._rows_by, *given, *(c.name for c in self.columns_)]
        return pd.concat(frames, ignore_index=True)[columns]

    def score(
        self, df_context: pd.DataFrame, df_target: pd.DataFrame, num_draws: int = 999, seed: int = 0
    ) -> pd.DataFrame:
        """Compare forecasts with a table.

        Args:
            df_context: The context.
            df_target: Rows of its groups with the true values. Missing values are not scored. A warning says if the
                context has some of these values too.
            num_draws: Draws of the predictive distribution.
            seed: Of the draws.

        Returns:
            A row for each column of y: mse (units squared; of probabilities for categories), nll (nats a value, the
            density in the table's units), crps (units), coverage_90 (of the central 90 % interval) and n. Names have no
            crps and no coverage, and two values no coverage.

        Raises:
            ArgumentError, DataError, GroupError: As in `forecast`.
        """
        num_draws = check.count(num_draws, "num_draws", least=19, hint="An interval of 90 % needs so many. Try 999.")
        targets = self._checked(df_target, "df_target")
        encoded = [column.encode(targets[column.name]) for column in self.columns_]
        self._check_units(encoded)
        given = [
            None if c.labelled else targets[c.name].to_numpy(dtype=np.float64, na_value=np.nan) for c in self.columns_
        ]

        def use(rows: np.ndarray, output: Tensor) -> list[dict[str, float]]:
            found = []
            with generators_restored():
                torch.manual_seed(seed)
                for (column, part, own), whole, values in zip(self._parts(output), encoded, given, strict=True):
                    truth = whole[rows]
                    seen = ~np.isnan(truth).any(-1)
                    numbers = None if values is None else values[rows][seen]
                    found.append(scores_of(column, part, own[:, seen], truth[seen], numbers))
            return found

        context = self._checked(df_context)
        warn_of_overlap(context, targets, self._rows_by, [c.name for c in self.columns_])
        parts = self._in_parts(context, targets, num_draws, seed, use, argument="df_target")
        rows = [mean_scores(list(own)) for own in zip(*parts, strict=True)]
        return pd.DataFrame(rows, index=pd.Index([c.name for c in self.columns_], name="variable"))

    def draws(
        self, df: pd.DataFrame, at: Mapping[Hashable, Any] | pd.DataFrame, num_draws: int = 256, seed: int = 0
    ) -> tuple[pd.DataFrame, dict[Hashable, np.ndarray]]:
        """Draws of y at new x, coherent across the members of a group, with the noise of the likelihood.

        Args:
            df: The context.
            at: As in `forecast`.
            num_draws: S.
            seed: Of the draws.

        Returns:
            The group, x and covariate columns of P forecasts, and an array (S, P) for each column of y.

        Raises:
            ArgumentError, DataError, GroupError: As in `forecast`.
        """
        df = self._checked(df)
        targets = self._targets(df, at)

        def use(rows: np.ndarray, output: Tensor) -> tuple[np.ndarray, list[np.ndarray]]:
            return rows, [c.values(part.sample(own).numpy(force=True)) for c, part, own in self._parts(output)]

        rows, parts = zip(*self._in_parts(df, targets, num_draws, seed, use, jointly=True), strict=True)
        order = np.concatenate(rows).argsort()
        columns = zip(self.columns_, zip(*parts, strict=True), strict=True)
        return targets, {column.name: np.concatenate(own, -1)[:, order] for column, own in columns}

    def to_xarray(
        self, df: pd.DataFrame, at: Mapping[Hashable, Any] | pd.DataFrame, num_draws: int = 256, seed: int = 0
    ) -> Any:
        """`draws` as an `xarray.Dataset` with the dimensions draw and row. Group and x are coordinates of the rows.

        Args:
            df: The context.
            at: As in `forecast`.
            num_draws: Draws.
            seed: Of the draws.

        Raises:
            ImportError: If xarray is not installed.
            ArgumentError, DataError, GroupError: As in `forecast`.
        """
        xarray = check.package("xarray")
        keys, found = self.draws(df, at, num_draws, seed)
        coordinates = {str(name): ("row", keys[name].to_numpy()) for name in keys.columns}
        variables = {str(name): (("draw", "row"), values) for name, values in found.items()}
        return xarray.Dataset(variables, coordinates)

    def to_arviz(
        self, df: pd.DataFrame, at: Mapping[Hashable, Any] | pd.DataFrame, num_draws: int = 256, seed: int = 0
    ) -> Any:
        """`draws` as posterior predictive draws of ArviZ, with one chain.

        Args:
            df: The context.
            at: As in `forecast`.
            num_draws: Draws.
            seed: Of the draws.

        Raises:
            ImportError: If ArviZ is not installed.
            ArgumentError, DataError, GroupError: As in `forecast`.
        """
        arviz = check.package("arviz")
        data = self.to_xarray(df, at, num_draws, seed).expand_dims("chain")
        return arviz.InferenceData(posterior_predictive=data)

    def plot_forecast(
        self,
        df: pd.DataFrame,
        groups: Sequence[Any] | None = None,
        at: Mapping[Hashable, Any] | pd.DataFrame | None = None,
        column: Hashable | None = None,
        seed: int = 0,
    ) -> "Figure":
        """Plot the rows of some groups, the median and the 90 % interval of the model, over the first column of x.

        Args:
            df: The context.
            groups: Labels; None for the first six.
            at: Values of the x columns, as in `forecast`; None for 60 values over the range of training and context.
                Other x columns then have the value of the group's last row.
            column: The column of y; None for the first.
            seed: Of the draws.

        Returns:
            A figure with a panel for each group.

        Raises:
            ImportError: If Matplotlib is not installed.
            ArgumentError: If a column is not one of y.
            GroupError: If a group does not occur.
        """
        check.package("matplotlib")
        from fgp_gpytorch.tables._plot import forecast_figure  # it needs Matplotlib

        df = self._checked(df)
        names = {c.name: c for c in self.columns_}
        column = self.columns_[0].name if column is None else column
        if column not in names:
            raise ArgumentError(
                f"column: expected one of {list(names)}, got {column!r}. Try column={next(iter(names))!r}."
            )
        labels = list(pd.unique(df[self.group[0]]))
        known = set(labels)
        if isinstance(groups, str) or (groups is not None and not hasattr(groups, "__iter__")):
            groups = [groups]
        chosen = labels[:6] if groups is None else list(groups)
        unknown = [label for label in chosen if not isinstance(label, Hashable) or label not in known]
        if unknown or not chosen:
            raise GroupError(
                f"groups: expected labels of {self.group[0]!r} in df, got {unknown or 'none'}. Try "
                f"{[check.number(label) for label in labels[:2]]}."
            )
        some = df[df[self.group[0]].isin(chosen)]
        if isinstance(at, pd.DataFrame):
            require(at, self.group[:1], "at")
            at = at[at[self.group[0]].isin(chosen)]
        forecast = self.forecast(some, self._curve(some) if at is None else at, seed=seed)
        return forecast_figure(some, forecast, chosen, column, self.features_[0].name, self.group)

    def _curve(self, df: pd.DataFrame) -> pd.DataFrame:
        """60 values of the first x for each (inner) group. Other columns of x are those of its last row."""
        first = self.features_[0]
        own = first.encode(df[first.name])
        low, high = min(first.low, own.min()), max(first.high, own.max())
        values = pd.Series(first.levels) if first.levels else first.decode(np.linspace(low, high, 60))
        last = df.drop_duplicates(self.group, keep="last")
        keep = [*self.group, *(feature.name for feature in self.features_[1:])]
        return last[keep].merge(pd.DataFrame({first.name: values}), how="cross")

    def save(self, path: str | Path) -> None:
        """Write the model to a file: what was learned of the columns, and the `FGPVAE`. Reading it executes no code.

        Args:
            path: The file.

        Raises:
            ArgumentError: If the model was not fitted, or the path is no path.
            CheckpointError: If a part cannot be described, such as an own kernel, or the file cannot be written.
            MissingFileError: If the folder does not exist.
        """
        self._fitted()
        check.instance(path, "path", (str, os.PathLike), "Try 'model.pt'.")
        write_checkpoint({"table": json.dumps(pack_table(self)), "vae": pack_model(self.vae_)}, path)

    @classmethod
    def load(cls, path: str | Path) -> "TableModel":
        """Read a model that `save` wrote. It is on the CPU.

        Args:
            path: The file.

        Raises:
            ArgumentError: If the path is no path.
            MissingFileError: If there is no such file.
            CheckpointError: If it is no file of a `TableModel`, or damaged.
        """
        content = read_checkpoint(check.instance(path, "path", (str, os.PathLike), "Try 'model.pt'."))
        if not isinstance(content, dict) or "table" not in content:
            raise CheckpointError(f"{path}: expected a file of TableModel.save, got another. Try FGPVAE.load(path).")
        try:
            model = unpack_table(cls, json.loads(content["table"]))
        except (KeyError, TypeError, ValueError) as error:
            raise CheckpointError(
                f"{path}: expected a saved table, got a damaged one ({error}). Try a copy."
            ) from error
        model.vae_ = unpack_model(FGPVAE, content["vae"], path, {})
        return model

    # tables and tensors

    @property
    def _likelihood(self) -> ColumnLikelihood:
        likelihood = self.vae_.likelihood
        assert isinstance(likelihood, ColumnLikelihood)
        return likelihood

    def _fitted(self) -> None:
        if not hasattr(self, "vae_"):
            raise ArgumentError("expected a fitted model, got one that was not fitted. Try model.fit(df) first.")

    def _checked(self, df: Any, argument: str = "df") -> pd.DataFrame:
        """A table with the columns of the training table. Columns of y that it lacks are missing everywhere."""
        self._fitted()
        check.instance(df, argument, pd.DataFrame, f"Try pd.DataFrame({argument}).")
        require(df, self._rows_by, argument)
        unknown = [c.name for c in self.covariates if c.name not in df.columns]
        if unknown:
            raise DataError(
                f"{argument}: expected a covariate {unknown[0]!r}, got {list(df.columns)}. Try its name in this table, "
                f"or {argument}[{unknown[0]!r}] = np.nan if it is unknown."
            )
        absent = [c.name for c in self.columns_ if c.name not in df.columns]
        if len(absent) == len(self.columns_):
            raise DataError(
                f"{argument}: expected some of the columns {absent}, got none. Try the table with its values of y."
            )
        if df[[c.name for c in self.columns_ if c.name not in absent]].isna().all(axis=None):
            if argument != "df":
                raise DataError(f"{argument}: expected values of y, got missing ones only. Try rows with values.")
            check.warn(
                "df: expected values of y, got missing ones only. The answer is that of a group of which nothing is "
                "known. Try rows with values."
            )
        df = df.copy(deep=False)
        for column in self.columns_:
            if column.name in absent:
                df[column.name] = pd.Series(np.nan, df.index, object if column.labelled else np.float64)
        return df

    def _grouped(self, df: pd.DataFrame, y: np.ndarray, codes: np.ndarray, context: bool = False) -> GroupedDataset:
        seen = torch.from_numpy(~np.isnan(y))
        x = self._encoded_x(df, codes)
        values = torch.from_numpy(np.nan_to_num(y))
        mask = None if bool(seen.all()) else seen
        return GroupedDataset(values, x, df[self.group[0]], mask, allow_unobserved=context)

    def _dataset(self, df: pd.DataFrame, codes: np.ndarray | None = None) -> GroupedDataset:
        encoded = [column.encode(df[column.name]) for column in self.columns_]
        y = np.concatenate(encoded, -1)
        if hasattr(self, "vae_"):
            self._check_units(encoded)
        codes = level_codes([df], self.group)[0] if codes is None else codes
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "x: expected different features")
            return self._grouped(df, y, codes, context=hasattr(self, "vae_"))

    def _check_units(self, encoded: Sequence[np.ndarray]) -> None:
        pairs = zip(self.columns_, encoded, strict=True)
        check_units([(column, values) for column, values in pairs if isinstance(column, Gaussian)])

    @property
    def _sizes(self) -> list[int]:
        return [column.num_elements for column in self.columns_]

    @property
    def _first_level(self) -> int:
        """The column of x of the first code of inner groups, after features and covariates."""
        return len(self.features_) + 2 * len(self.covariates_)

    @property
    def _rows_by(self) -> list[Hashable]:
        """The columns that tell the rows apart: groups and x."""
        return [*self.group, *(feature.name for feature in self.x)]

    @property
    def _keys(self) -> list[Hashable]:
        """The columns of a forecast: groups, x and covariates."""
        return [*self._rows_by, *(c.name for c in self.covariates)]

    def _encoded_x(self, df: pd.DataFrame, codes: np.ndarray, argument: str = "df") -> Tensor:
        features = [feature.encode(df[feature.name], argument)[:, None] for feature in self.features_]
        features += [covariate.encode(df[covariate.name]) for covariate in self.covariates_]
        return torch.from_numpy(np.concatenate([*features, codes], -1))

    def _row_order(self, df: pd.DataFrame) -> np.ndarray:
        """The row of the table of each member, as `GroupedDataset` sorts them."""
        codes, _ = pd.factorize(df[self.group[0]], sort=True)
        return np.argsort(codes, kind="stable")

    def _targets(self, df: pd.DataFrame, at: Mapping[Hashable, Any] | pd.DataFrame) -> pd.DataFrame:
        return targets_of(df, at, self.group, self.features_, self.covariates)

    def _in_parts(
        self,
        df: pd.DataFrame,
        targets: pd.DataFrame,
        num_draws: int,
        seed: int,
        use: Callable[[np.ndarray, Tensor], _T],
        jointly: bool = False,
        argument: str = "at",
    ) -> list[_T]:
        """Decode draws at the targets, given a checked context, a few groups at a time, and use each part.

        Args:
            df: The context.
            targets: P rows.
            num_draws: S.
            seed: Of the draws.
            use: Called with the positions of some targets, (p,), and the decoder's output there, (S, p, num_outputs).
            jointly: Whether draws are coherent across the members of a group.
            argument: The name of the targets, for errors and warnings.

        Returns:
            What `use` returned for each part.
        """
        num_draws, seed = check.count(num_draws, "num_draws"), check.count(seed, "seed", least=0)
        codes, new = level_codes([df, targets], self.group)
        context = self._dataset(df, codes)
        _, labels = pd.factorize(df[self.group[0]], sort=True)
        groups = {label: place for place, label in enumerate(labels)}
        places = [groups.get(label, -1) for label in targets[self.group[0]]]
        if -1 in places:
            label = check.number(targets[self.group[0]].iloc[places.index(-1)])
            alike = next((own for own in map(check.number, labels) if str(own) == str(label)), None)
            hint = "rows of this group in df, or model.sample_groups(n, at=...) for new groups"
            if alike is not None:
                hint = f"{alike!r}, of type {type(alike).__name__}, as in df"
            raise GroupError(f"{argument}: expected groups with a row in the context, got {label!r}. Try {hint}.")
        x_new = self._encoded_x(targets, new, argument)
        self._warn_beyond(x_new, argument)
        owner = torch.tensor(places)
        order = owner.argsort(stable=True)
        used, sizes = owner[order].unique_consecutive(return_counts=True)
        rows, positions = x_new[order].split(sizes.tolist()), order.split(sizes.tolist())
        jointly = jointly or any(block.couples_channels for block in self.vae_.prior.blocks)
        values = num_draws * int(sizes.max()) * max(self._likelihood.num_outputs, self.vae_.prior.num_channels)
        values = max(values, int(context.group_sizes.max()) * context.y_shape.numel())
        step = max(1, _VALUES_AT_ONCE // values)
        found = []
        with torch.no_grad(), evaluation(self.vae_, seed):
            noise = shared_noise(num_draws, self.vae_.prior.num_channels)
            for start in range(0, len(used), step):
                some = rows[start : start + step]
                padded = torch.nn.utils.rnn.pad_sequence(list(some), batch_first=True)
                mask = torch.nn.utils.rnn.pad_sequence(
                    [torch.ones(len(row), dtype=torch.bool) for row in some], batch_first=True
                )
                padded = torch.where(mask.unsqueeze(-1), padded, padded[:, :1])
                prediction = self.vae_.predict(padded, context[used[start : start + step]])
                if jointly:
                    z = prediction.rsample((num_draws,))
                    z = prediction.mean + self.spread_ * (z - prediction.mean)
                else:
                    mean, variance = prediction.marginals
                    z = mean + self.spread_ * variance.sqrt() * noise.to(mean)
                output = self.vae_.decode(z, padded, self._likelihood.y_shape)[:, mask]
                found.append(use(torch.cat(positions[start : start + step]).numpy(), output))
        return found

    def _warn_beyond(self, x_new: Tensor, argument: str) -> None:
        """Warn of forecasts at x that training groups did not reach."""
        found = [feature.beyond(column) for feature, column in zip(self.features_, x_new.numpy().T, strict=False)]
        first = next((text for text in found if text is not None), None)
        if first is not None:
            check.warn(
                f"{argument}: {first}. There the mean over x stays as it is at the end of that range, and intervals do "
                "not know that the trend may go on. Try training groups that reach so far."
            )

    def _parts(self, output: Tensor) -> list[tuple[Column, Any, Tensor]]:
        """Each column, its part of the likelihood with the noise of `spread_`, and its outputs."""
        likelihood = self._likelihood
        found = []
        for column, part, own in zip(self.columns_, likelihood.parts, likelihood.output_slices, strict=True):
            if isinstance(part, GaussianElements):
                part = copy.deepcopy(part).requires_grad_(False)
                part.log_variance += 2 * math.log(self.spread_)
            found.append((column, part, output[..., own]))
        return found

    def _tidy(
        self, df: pd.DataFrame, targets: pd.DataFrame, num_draws: int, seed: int, only_gaps: bool = False
    ) -> pd.DataFrame:
        """A row for each forecast, or each gap of the targets, and column."""
        hint = "With fewer, answers depend on the draws. Try 256."
        num_draws = check.count(num_draws, "num_draws", least=_MATCHED, hint=hint)
        asked = [targets[c.name].isna().to_numpy() if only_gaps else np.full(len(targets), True) for c in self.columns_]
        answers: list[dict[Any, dict[str, np.ndarray]]] = [{} for _ in self.columns_]

        def use(rows: np.ndarray, output: Tensor) -> None:
            for (column, part, own), gaps, kept in zip(self._parts(output), asked, answers, strict=True):
                for category, answer in column.answers(part, own[:, gaps[rows]]).items():
                    for name, values in answer.items():
                        whole = kept.setdefault(category, {}).setdefault(name, np.full(len(targets), np.nan))
                        whole[rows[gaps[rows]]] = values

        self._in_parts(df, targets, num_draws, seed, use)
        keys = targets[self._keys] if only_gaps else targets[self._keys].reset_index(drop=True)
        categories = any(column.num_elements > 1 for column in self.columns_)
        frames = []
        for column, rows, kept in zip(self.columns_, asked, answers, strict=True):
            for category, answer in kept.items():
                frame = keys[rows].copy()
                frame["variable"] = column.name
                if category is not None or categories:
                    frame["category"] = category
                frames.append(frame.assign(**{name: values[rows] for name, values in answer.items()}))
        return pd.concat(frames, ignore_index=not only_gaps)


def shared_noise(num_draws: int, num_channels: int) -> Tensor:  # shape: (S, 1, 1, L)
    """Standard normal draws that all members share, so that equal beliefs give equal answers.

    Many draws have mean 0 and variance 1 exactly.
    """
    noise = torch.randn(num_draws, 1, 1, num_channels, dtype=torch.float64)
    if num_draws < _MATCHED:
        return noise
    noise = noise - noise.mean(0)
    return noise / noise.square().mean(0).sqrt()


def _curves(x: np.ndarray, z: np.ndarray, points: int) -> np.ndarray:  # shape: (P,), (P, L) -> (L * points,)
    """Values of each channel at evenly spaced places over the range of x."""
    order = np.argsort(x, kind="stable")
    at = np.linspace(x.min(), x.max(), points)
    return np.concatenate([np.interp(at, x[order], channel) for channel in z[order].T])
