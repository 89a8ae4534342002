"""What a person may pass by mistake, at every public entry: refused in three parts, or accepted for a stated reason.

A table names an entry, an argument and a call. Each wrong value of the argument is a case. `_refused` says what every
refusal has in common: an error of ours that names the argument, and says what was expected, what came, what to try.
"""

import functools
import math
import re
import warnings
from types import SimpleNamespace

import gpytorch
import numpy as np
import pandas as pd
import pyro
import pytest
import torch
from torch import nn

from factories import make_data, make_model, make_prior
from fgp_gpytorch import (
    CVAE,
    ELBO,
    FGPVAE,
    GECO,
    GPVAE,
    SVGPVAE,
    VAE,
    BernoulliLikelihood,
    CoregionalizedChannels,
    CorrelatedFGPVAE,
    DiagonalGaussianLikelihood,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedBatch,
    GroupedDataset,
    HeldOut,
    IndependentChannels,
    LatentAngleFGPVAE,
    LocalChannels,
    fit,
    metrics,
    plots,
)
from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled import CorrelatedPrior, GroupVectors, InducingPrior, ProductPrior, expand_kl
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.datasets import rotated_mnist
from fgp_gpytorch.errors import ArgumentError, DataError, FGPError, GroupError, NonFiniteError, ShapeError
from fgp_gpytorch.feature_maps import NystromFeatures, PeriodicFeatures
from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.nets import (
    MLP,
    ConvDecoder,
    ConvEncoder,
    ConvFeatures,
    FourierFeatures,
    MLPDecoder,
    MLPEncoder,
    MLPFeatures,
    RepresentationNetwork,
    UpsampleConv2d,
)
from fgp_gpytorch.prior import exact_gp

NAN, INF = math.nan, math.inf
NUMBERS = {"a word": "3", "a list": [3.0], "a boolean": True, "NaN": NAN}
NOT_COUNTS = {"zero": 0, "a negative number": -2, "a fraction": 2.5, **NUMBERS}
NOT_FROM_ZERO = {name: value for name, value in NOT_COUNTS.items() if name != "zero"}
NOT_POSITIVE = {"zero": 0.0, "a negative number": -1.0, "infinity": INF, **NUMBERS}
NOT_NUMERIC = {"None": None, "a word": "x", "a dict": {"a": 1}, "an object": object()}
NOT_MODULES = {"None": None, "a word": "net", "a class": nn.Identity, "a function": lambda y: y}
NOT_BATCHES = {"None": None, "a word": "train", "a tensor": torch.rand(3, 2, 3), "a list": [1, 2], "a dict": {}}
QUIET = {"epochs": 1, "folder": None, "progress": False, "accelerator": "cpu"}

CASES: list = []


def refuse(entry, name, call, values, error=FGPError, word=None):
    """Add a case for each value: `entry` refuses `name`, and the message contains `word` (the name itself if None)."""
    for what, value in values.items():
        wrong = functools.partial(call, value)
        CASES.append(pytest.param(wrong, error, name if word is None else word, id=f"{entry} refuses {name} of {what}"))


def _refused(call, error, word):
    with pytest.raises(Exception) as caught:  # noqa: PT011  # the class is asserted below, with the message
        call()
    message = str(caught.value)
    assert isinstance(caught.value, FGPError), f"{type(caught.value).__name__}: {message}"
    assert isinstance(caught.value, error), f"{type(caught.value).__name__}: {message}"
    for part in ("expected", "got", "try"):
        assert re.search(rf"\b{part}\b", message, re.IGNORECASE), f"no {part!r} in: {message}"
    assert word in message, f"no {word!r} in: {message}"


# what the calls below share


@functools.cache
def data():
    return make_data()  # 7 groups, 25 members, y (3,), D = 1


@functools.cache
def wide():
    """The same with two features."""
    rows = data().flat()
    return GroupedDataset(rows.y, torch.cat([rows.x, rows.x.square()], -1), rows.group)


@functools.cache
def context():
    return data()[[0, 1, 3]]


@functools.cache
def held_out():
    return HeldOut.last(data().subset([0, 1, 3]), 1)


def _stepped(model, batch):
    """After one training step, which fixes what the model was trained on."""
    model.train()
    ELBO().differentiable_loss(model, model, batch).backward()
    return model.eval()


def _networks(channels=3):
    return MLPEncoder([3], channels, (4,)), MLPDecoder(channels, [3], (4,))


@functools.cache
def trained():
    return _stepped(make_model(), data()[:])


@functools.cache
def coupled():
    prior = [LocalChannels(2, gpytorch.kernels.RBFKernel())]
    models = {
        "GPVAE": GPVAE(*_networks(), 3, num_groups=7, num_factors=2),
        "SVGPVAE": SVGPVAE(*_networks(), 3, num_groups=7, num_factors=2, num_inducing=4),
        "CorrelatedFGPVAE": CorrelatedFGPVAE(*_networks(), prior, 1, num_groups=7, num_factors=2),
    }
    return {name: _stepped(model, data()[:]) for name, model in models.items()}


@functools.cache
def amortized():
    network = RepresentationNetwork(MLPFeatures([3], 4), MLPFeatures([4], 2), "mean")
    return _stepped(SVGPVAE(*_networks(), 3, num_factors=2, num_inducing=4, representation=network), data()[:])


@functools.cache
def conditioned(kind="seen"):
    return amortized().condition_on(data(), context=kind)


@functools.cache
def others():
    """Models whose networks take more than y."""
    cvae = CVAE(MLPEncoder([3], 3, (4,), num_features=1), MLPDecoder(3, [3], (4,), num_features=1), make_prior())
    angle = LatentAngleFGPVAE(*_networks(), FactorizedGPPrior([GlobalChannels(3)]), MLPFeatures([3], 2))
    return {"CVAE": _stepped(cvae, data()[:]), "VAE": _stepped(VAE(*_networks(), 3), data()[:]), "angle": angle.eval()}


@functools.cache
def posterior():
    return trained().infer(context())


@functools.cache
def pseudo():
    x = torch.rand(2, 4, 1, dtype=torch.float64)
    return SimpleNamespace(x=x, mean=torch.randn(2, 4, 3), variance=torch.rand(2, 4, 3) + 0.1)


def rbf(**options):
    return gpytorch.kernels.RBFKernel(**options)


def frame(**columns):
    table = {"y": [1.0, 2.0, 3.0], "t": [0.0, 1.0, 2.0], "g": ["a", "a", "b"], **columns}
    return pd.DataFrame(table)


def tensor_cases(good, *, finite=True, floats=True):
    """Wrong variants of a tensor that is right."""
    cases = dict(NOT_NUMERIC)
    cases |= {"a missing dimension": good[0], "one group more": torch.cat([good, good[:1]])}
    cases |= {"one column more": torch.cat([good, good[..., :1]], -1), "complex numbers": good + 0j}
    cases |= {"another device": good.to("meta")}
    if floats:
        cases |= {"integers": good.long(), "booleans": good > 0}
    if finite:
        cases |= {"NaN": torch.full_like(good, NAN), "infinity": torch.full_like(good, INF)}
    return cases


# data


# fmt: off
Y, X, GROUP = torch.rand(4, 2), torch.arange(4.0), [0, 0, 1, 1]
MASK = torch.ones(4, 2, dtype=torch.bool)
refuse("GroupedDataset", "y", lambda y: GroupedDataset(y, X, GROUP), {
    **NOT_NUMERIC, "integers": (10 * Y).long(), "booleans": Y > 0, "complex numbers": Y + 0j, "NaN": Y * NAN,
    "infinity": Y / 0, "ragged lists": [[1.0], [1.0, 2.0], [1.0], [1.0]], "words": ["a", "b", "c", "d"],
    "one number": 3.0, "too few rows": Y[:3], "no rows": Y[:0], "no elements": Y[:, :0], "another device": Y.to("meta"),
})
DATES = np.array(["2020-01-01", "2020-01-02"] * 2, dtype="datetime64[D]")
refuse("GroupedDataset", "x", lambda x: GroupedDataset(Y, x, GROUP), {
    **NOT_NUMERIC, "complex numbers": X + 0j, "NaN": X * NAN, "infinity": X / 0, "words": ["a", "b", "c", "d"],
    "one number": 3.0, "too few rows": X[:3], "three dimensions": torch.zeros(4, 2, 2), "another device": X.to("meta"),
})
refuse("GroupedDataset", "x", lambda x: GroupedDataset(Y, x, GROUP), {
    "no features": torch.zeros(4, 0)}, DataError, "feature")
refuse("GroupedDataset", "x", lambda x: GroupedDataset(Y, x, GROUP), {
    "dates": DATES, "a column of dates": pd.Series(DATES), "time steps": DATES - DATES[0],
    "Python's dates": DATES.astype(object)}, FGPError, "86400")
refuse("GroupedDataset", "group", lambda group: GroupedDataset(Y, X, group), {
    "None": None, "one number": 3, "a word": "g", "fractions": [0.5, 1, 1, 2], "NaN": [NAN, 1, 1, 2],
    "complex numbers": [1j, 1, 1, 1], "two columns": torch.zeros(4, 2), "mixed labels": ["a", 1.5, "b", 2],
    "lists": [[1], [1], [2], [2]], "None among words": ["a", None, "b", "b"], "too few labels": [0, 0, 1],
})
refuse("GroupedDataset", "y_mask", lambda mask: GroupedDataset(Y, X, GROUP, mask), {
    "a word": "all", "a dict": {}, "integers": MASK.long(), "a missing dimension": MASK[:, 0],
    "its transpose": MASK.mT, "another device": MASK.to("meta"),
})
refuse("GroupedDataset", "x_mask", lambda mask: GroupedDataset(Y, X, GROUP, x_mask=mask), {
    "a word": "all", "integers": MASK.long()[:, 0], "another shape": MASK, "another device": MASK[:, 0].to("meta"),
})
refuse("from_dataframe", "df", lambda df: GroupedDataset.from_dataframe(df, y="y", x="t", group="g"), {
    "None": None, "a dict": {"y": [1.0], "t": [1.0], "g": [1]}, "a list": [[1.0, 2.0, 3.0]],
    "an array": np.ones((2, 3)), "another library's table": SimpleNamespace(columns=["y", "t", "g"]),
    "a Series": frame()["y"], "no rows": frame()[:0], "no columns": frame()[[]],
    "a column twice": pd.concat([frame(), frame()[["y"]]], axis=1),
})
LEVELS = pd.DataFrame(
    np.arange(18.0).reshape(6, 3), columns=pd.MultiIndex.from_tuples([("y", "a"), ("x", "t"), ("g", "id")])
)
refuse("from_dataframe of two levels", "y", lambda y: GroupedDataset.from_dataframe(LEVELS, y=y, x="x", group="g"), {
    "the first level": "y", "a list of it": ["y"], "a tuple that is no column": ("y", "b")})
refuse("from_dataframe of two levels", "group", lambda group: GroupedDataset.from_dataframe(
    LEVELS, y=[("y", "a")], x=[("x", "t")], group=group), {"the first level": "g"})
for argument, column in (("y", "y"), ("x", "t"), ("group", "g")):
    refuse("from_dataframe", argument, lambda value, argument=argument: GroupedDataset.from_dataframe(
        frame(), **{"y": "y", "x": "t", "group": "g", argument: value}), {
        "no name": None, "an absent column": "z", "a list of lists": [["y"]], "a dict of lists": [{}], "a number": 7,
        "a slice": slice(0, 1),
    }, FGPError, "")
    if argument != "group":
        refuse("from_dataframe", argument, lambda value, a=argument, c=column: GroupedDataset.from_dataframe(
            frame(**{c: value}), y="y", x="t", group="g"), {
            "words": ["a", "b", "c"], "dates": pd.to_datetime(["2020-01-01"] * 3), "complex numbers": [1j, 1, 1],
            "lists": [[1], [2], [3]], "categories": pd.Categorical(["a", "b", "a"]),
        }, FGPError, column)
refuse("from_dataframe", "x", lambda x: GroupedDataset.from_dataframe(frame(t=x), y="y", x="t", group="g"), {
    "NaN": [0.0, NAN, 1.0], "infinity": [0.0, INF, 1.0]})
refuse("from_dataframe", "group", lambda g: GroupedDataset.from_dataframe(frame(g=g), y="y", x="t", group="g"), {
    "NaN": [0.0, NAN, 1.0], "None": ["a", None, "b"]})
refuse("from_dataframe", "dtype", lambda d: GroupedDataset.from_dataframe(frame(), y="y", x="t", group="g", dtype=d), {
    "NumPy": np.float32, "a word": "float32", "integers": torch.int64, "booleans": torch.bool, "a type": float,
    "complex numbers": torch.complex64})

POSITIONS = {
    "None": None, "a word": "a", "a fraction": 1.5, "an object": object(), "a dict": {}, "a position beyond": 99,
    "a negative one beyond": -99, "no positions": [], "two dimensions": [[0, 1]], "fractions": [0.5],
    "a mask of another length": torch.ones(5, dtype=torch.bool), "words": ["a", "b"], "a boolean": True,
}
refuse("data[...]", "index", lambda index: data()[index], POSITIONS, GroupError)
refuse("subset", "groups", lambda groups: data().subset(groups), {**POSITIONS, "a repetition": [0, 0]}, GroupError, "")
refuse("held_out[...]", "index", lambda index: held_out()[index], POSITIONS, GroupError)
refuse("select", "members", lambda members: data().select(members), {
    **NOT_NUMERIC, "a Series": pd.Series([True] * 25), "integers": torch.arange(25), "too few": torch.ones(3) > 0,
    "nobody": torch.zeros(25) > 0, "positions": [0, 1], "another device": (torch.ones(25) > 0).to("meta"),
})
refuse("align", "reference", lambda other: data().align(other), {"None": None, "a batch": context(), "a list": [0]})
refuse("align", "data", lambda other: data().align(other), {"other labels": data().subset([0])}, GroupError)

Y3, X3, M3 = torch.rand(2, 3, 2), torch.rand(2, 3, 1), torch.ones(2, 3, dtype=torch.bool)
refuse("from_tensors", "y", lambda y: GroupedBatch.from_tensors(y, X3), {
    **{k: v for k, v in tensor_cases(Y3).items() if k != "one column more"}, "one dimension": Y3[0, 0]},
    FGPError, "")
refuse("from_tensors", "x", lambda x: GroupedBatch.from_tensors(Y3, x), {
    **NOT_NUMERIC, "one group more": torch.rand(3, 3, 1), "its transpose": torch.rand(3, 2, 1), "NaN": X3 * NAN,
    "a missing dimension": X3[0, :, 0], "complex numbers": X3 + 0j, "another device": X3.to("meta")})
refuse("from_tensors", "mask", lambda mask: GroupedBatch.from_tensors(Y3, X3, mask), {
    "a word": "all", "a dict": {}, "integers": M3.long(), "its transpose": M3.mT, "another device": M3.to("meta")})
refuse("from_tensors", "y_mask", lambda mask: GroupedBatch.from_tensors(Y3, X3, y_mask=mask), {
    "a word": "all", "integers": (Y3 > 0).long(), "another shape": M3, "another device": (Y3 > 0).to("meta")})
refuse("from_tensors", "x_mask", lambda mask: GroupedBatch.from_tensors(Y3, X3, x_mask=mask), {
    "a word": "all", "integers": (X3 > 0).long(), "another shape": Y3 > 0})
refuse("from_tensors", "group_index", lambda index: GroupedBatch.from_tensors(Y3, X3, group_index=index), {
    "a word": "a", "fractions": [0.0, 1.0], "booleans": [True, False], "positions beyond": [0, 9], "one": 0,
    "negative ones": [-1, 0], "too many": [0, 1, 2]})
for argument in ("num_dataset_groups", "num_dataset_members"):
    refuse("from_tensors", argument, lambda number, argument=argument: GroupedBatch.from_tensors(
        Y3, X3, **{argument: number}), NOT_COUNTS, ArgumentError)
BATCH = {"y": Y3, "x": X3, "mask": M3, "group_index": torch.arange(2), "y_mask": None}
for argument in ("y", "x", "mask", "group_index"):
    refuse("GroupedBatch", argument, lambda value, argument=argument: GroupedBatch(
        **{**BATCH, argument: value}, num_dataset_groups=2, num_dataset_members=6),
        {**NOT_NUMERIC, "no dimension": Y3[0, 0, 0], "an array": np.ones((5, 5))})
refuse("GroupedBatch.cat", "batches", GroupedBatch.cat, {
    "none": [], "None": None, "numbers": [1, 2], "one tensor": Y3, "two data sets": [context(), wide()[[0]]],
    "one batch without a list": context()})
refuse("batch.to", "dtype", lambda dtype: context().to(dtype), {
    "integers": torch.int64, "an unknown word": "nowhere", "NumPy": np.float32, "None": object()}, FGPError, "")

refuse("HeldOut", "context", lambda value: HeldOut(value, torch.rand(3, 1, 1), torch.rand(3, 1, 3)), {
    "None": None, "a batch": context(), "a tensor": Y3})
XN, YN = torch.rand(3, 2, 1), torch.rand(3, 2, 3)
refuse("HeldOut", "x_new", lambda value: HeldOut(data().subset([0, 1, 3]), value, YN), {
    k: v for k, v in tensor_cases(XN).items() if k not in ("integers", "booleans")}, FGPError, "x")
refuse("HeldOut", "y_new", lambda value: HeldOut(data().subset([0, 1, 3]), XN, value), tensor_cases(YN))
refuse("HeldOut", "y_new_mask", lambda value: HeldOut(data().subset([0, 1, 3]), XN, YN, value), {
    "a word": "all", "integers": torch.ones(3, 2, 3), "another shape": torch.ones(3, 4) > 0,
    "nothing": torch.zeros(3, 2) > 0, "another device": (YN > 0).to("meta")})
refuse("HeldOut.of", "context", lambda value: HeldOut.of(value, data()), {"None": None, "a batch": context()})
refuse("HeldOut.of", "targets", lambda value: HeldOut.of(data().subset([0]), value), {
    "None": None, "a batch": context(), "other groups": data()})
refuse("HeldOut.last", "k", lambda k: HeldOut.last(data().subset([0, 1]), k), {**NOT_COUNTS, "None": None})
refuse("HeldOut.last", "data", lambda k: HeldOut.last(data(), k), {"groups that are too small": 5}, GroupError)
refuse("HeldOut.after", "x", lambda x: HeldOut.after(data(), x), {
    "None": None, **NUMBERS, "infinity": INF, "a place before all": -5.0, "complex numbers": 1j})
refuse("HeldOut.random", "amount", lambda value: HeldOut.random(data().subset([0, 1]), value), {
    "zero": 0, "a negative number": -1, "a fraction above one": 1.5, "None": None, **NUMBERS})
refuse("HeldOut.random", "seed", lambda seed: HeldOut.random(data().subset([0, 1]), 1, seed), {
    **NOT_FROM_ZERO, "None": None})
refuse("HeldOut.groups", "context", lambda value: HeldOut.groups(data(), [0, 1], value), {
    "zero": 0, "a fraction above one": 1.5, "None": None, **NUMBERS})
for method in (HeldOut.last, HeldOut.random):
    refuse(f"HeldOut.{method.__name__}", "data", method, {"None": None, "a batch": context(), "a tensor": Y3})
refuse("LazyDataset", "stored", lambda value: LazyDataset(value, lambda batch: batch.y), {
    "None": None, "a batch": context(), "a tensor": Y3})
refuse("LazyDataset", "make", lambda make: LazyDataset(data(), make), {
    "None": None, "a word": "make", "a function to lists": lambda b: [1.0], "a function to None": lambda b: None,
    "a function to integers": lambda b: b.y.long(), "a function to one row": lambda b: b.y[0]})
refuse("in_memory", "batch_size", lambda size: LazyDataset(data(), lambda b: b.y).in_memory(size), NOT_COUNTS)
refuse("in_memory", "make", lambda v: LazyDataset(data(), lambda b: b.y * v).in_memory(), {"NaN": NAN}, DataError)


# prior, kernels, means, feature maps


for kind, rest in ((LocalChannels, (rbf(),)), (GlobalChannels, ()), (IndependentChannels, ())):
    refuse(kind.__name__, "num_channels", lambda n, kind=kind, rest=rest: kind(n, *rest), {**NOT_COUNTS, "None": None})
refuse("LocalChannels", "kernel", lambda kernel: LocalChannels(2, kernel), {**NOT_MODULES, "a mean": FourierMean()})
refuse("LocalChannels", "kernel", lambda n: LocalChannels(2, rbf(batch_shape=torch.Size([n]))), {
    "another batch shape": 3}, ShapeError)
refuse("LocalChannels", "mean", lambda mean: LocalChannels(2, rbf(), mean), {
    "a word": "zero", "a number": 0.5, "a class": gpytorch.means.ConstantMean})
refuse("GlobalChannels", "variance", lambda variance: GlobalChannels(2, variance), {
    "None": None, **NOT_POSITIVE, "a dict": {}, "three of them": [1.0, 2.0, 3.0], "complex numbers": 1j,
    "two dimensions": torch.ones(2, 2)})
refuse("GlobalChannels", "variance_prior", lambda p: GlobalChannels(2, variance_prior=p), {"a word": "gamma"})
refuse("GlobalChannels", "variance_constraint", lambda c: GlobalChannels(2, variance_constraint=c), {"a word": "> 0"})
refuse("GlobalChannels", "mean", lambda mean: GlobalChannels(2, mean=mean), {
    "a word": "zero", "a mean that depends on x": gpytorch.means.LinearMean(1)})
refuse("CoregionalizedChannels", "num_factors", lambda n: CoregionalizedChannels(2, n, PeriodicFeatures(rbf())), {
    **NOT_COUNTS, "None": None})
refuse("CoregionalizedChannels", "features", lambda value: CoregionalizedChannels(2, 2, value), {
    **NOT_MODULES, "a kernel": rbf()})
refuse("FactorizedGPPrior", "blocks", FactorizedGPPrior, {
    "None": None, "a word": "local", "a number": 3, "no blocks": [], "kernels": [rbf()], "a class": LocalChannels,
    "one block twice": [GlobalChannels(1)] * 2}, ArgumentError)
refuse("FactorizedGPPrior", "dtype", lambda dtype: FactorizedGPPrior([GlobalChannels(1)], dtype), {
    "None": None, "NumPy": np.float64, "a word": "float64", "float16": torch.float16, "integers": torch.int64})

GIVEN = pseudo()
for argument in ("x", "mean", "variance"):
    refuse("prior.posterior", argument, lambda value, argument=argument: make_prior().posterior(
        **{"x": GIVEN.x, "mean": GIVEN.mean, "variance": GIVEN.variance, argument: value}),
        {k: v for k, v in tensor_cases(getattr(GIVEN, argument)).items() if (argument, k) != ("x", "one column more")},
        FGPError, "")
refuse("prior.posterior", "variance", lambda value: make_prior().posterior(GIVEN.x, GIVEN.mean, value), {
    "zero": 0 * GIVEN.variance, "negative numbers": -GIVEN.variance, "another L": torch.ones(2, 4, 5)})
refuse("prior.posterior", "mask", lambda mask: make_prior().posterior(GIVEN.x, GIVEN.mean, GIVEN.variance, mask), {
    "a word": "all", "integers": torch.ones(2, 4), "its transpose": torch.ones(4, 2) > 0,
    "another device": (torch.ones(2, 4) > 0).to("meta")})
refuse("prior.sample", "x", lambda x: make_prior().sample(x), {
    **NOT_NUMERIC, "one dimension": torch.rand(3), "integers": torch.ones(2, 3, 1, dtype=torch.int64), "NaN": XN * NAN,
    "complex numbers": XN + 0j, "another device": XN.to("meta")})
refuse("prior(x)", "x", lambda x: make_prior()(x), {
    **NOT_NUMERIC, "one dimension": torch.rand(3), "NaN": XN * NAN, "complex numbers": XN + 0j,
    "another device": XN.to("meta")})
SHAPES = {"a number": 3, "a word": "3", "None": None, "a fraction": [2.5], "a negative number": [-1],
          "a boolean": [True], "an object": object()}
refuse("prior.sample", "sample_shape", lambda shape: make_prior().sample(XN, shape), SHAPES, ArgumentError)
refuse("posterior.rsample", "sample_shape", lambda shape: posterior().rsample(shape), SHAPES, ArgumentError)
refuse("exact_gp", "block", lambda block: exact_gp(block, GIVEN.x, GIVEN.mean, GIVEN.variance), {
    "None": None, "a prior": make_prior(), "a word": "local"})
for argument in ("x", "mean", "variance"):
    refuse("exact_gp", argument, lambda value, argument=argument: exact_gp(GlobalChannels(3), **{
        "x": GIVEN.x, "mean": GIVEN.mean, "variance": GIVEN.variance, argument: value}),
        {"None": None, "a word": "x", "integers": torch.ones(2, 4, 3, dtype=torch.int64),
         "one dimension": torch.rand(2), "NaN": GIVEN.mean * NAN if argument != "x" else GIVEN.x * NAN}, FGPError, "")
refuse("exact_gp", "mask", lambda mask: exact_gp(GlobalChannels(3), GIVEN.x, GIVEN.mean, GIVEN.variance, mask), {
    "a word": "all", "integers": torch.ones(2, 4), "nobody": torch.zeros(2, 4) > 0})
refuse("LocalKernel", "base_kernel", LocalKernel, NOT_MODULES, ArgumentError)
refuse("LocalKernel", "x", lambda x: LocalKernel(rbf())(x).to_dense(), {"a label without features": torch.zeros(3, 1)})
for kernel in (LocalKernel(rbf()), GlobalKernel()):
    refuse(type(kernel).__name__, "group label", lambda x, kernel=kernel: kernel(x).to_dense(), {
        "a fraction": torch.tensor([[0.5, 1.0]]), "NaN": torch.tensor([[NAN, 1.0]]),
        "a number that float32 rounds": torch.tensor([[2.0**25, 1.0]])})
refuse("FourierMean", "harmonics", FourierMean, {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("FourierMean", "period", lambda period: FourierMean(1, period), {**NOT_POSITIVE, "None": None}, ArgumentError)
refuse("FourierMean", "batch_shape", lambda shape: FourierMean(1, batch_shape=shape), {
    "a number": 3, "a word": "3", "None": None, "a fraction": [2.5]}, ArgumentError)
refuse("FourierMean", "feature", lambda feature: FourierMean(1, feature=feature), NOT_FROM_ZERO, ArgumentError)
refuse("FourierMean", "x", FourierMean(1, feature=2), {"two features": torch.rand(5, 2)}, FGPError, "feature")
refuse("PeriodicFeatures", "kernel", PeriodicFeatures, NOT_MODULES, ArgumentError)
refuse("PeriodicFeatures", "period", lambda p: PeriodicFeatures(rbf(), p), {**NOT_POSITIVE, "None": None})
refuse("PeriodicFeatures", "harmonics", lambda n: PeriodicFeatures(rbf(), 1.0, n), {**NOT_COUNTS, "None": None})
refuse("PeriodicFeatures", "kernel", lambda k: PeriodicFeatures(k)(torch.rand(5, 1)), {"another period": rbf()})
refuse("PeriodicFeatures", "x", lambda x: PeriodicFeatures(rbf())(x), {
    "two features": torch.rand(5, 2), "a word": "x", "None": None}, FGPError)
refuse("NystromFeatures", "kernel", lambda kernel: NystromFeatures(kernel, [0.0, 1.0]), NOT_MODULES, ArgumentError)
refuse("NystromFeatures", "points", lambda points: NystromFeatures(rbf(), points), {
    **NOT_NUMERIC, "NaN": [NAN, 1.0], "no points": torch.zeros(0, 1), "a point twice": [1.0, 1.0],
    "three dimensions": torch.rand(2, 2, 2), "complex numbers": [1j, 2j]})
refuse("NystromFeatures", "x", lambda x: NystromFeatures(rbf(), [0.0, 1.0])(x), {
    "two features": torch.rand(5, 2), "a word": "x", "None": None})


# priors that couple groups


for argument in ("num_groups", "num_factors"):
    refuse("GroupVectors", argument, lambda n, argument=argument: GroupVectors(**{"num_groups": 3, argument: n}), {
        **NOT_COUNTS, "None": None}, ArgumentError)
refuse("set_vectors", "vectors", lambda value: GroupVectors(3, 2).set_vectors(value), {
    **NOT_NUMERIC, "its transpose": torch.rand(2, 3), "NaN": torch.full((3, 2), NAN)})
refuse("GroupVectors", "group_index", lambda value: GroupVectors(3, 2)(value), {
    **NOT_NUMERIC, "fractions": torch.tensor([0.5]), "a position beyond": torch.tensor([3])})
for argument in ("num_channels", "num_factors", "num_inducing", "num_features"):
    refuse("InducingPrior", argument, lambda n, argument=argument: InducingPrior(
        **{"num_channels": 2, "num_factors": 2, argument: n}), {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("InducingPrior", "kernel", lambda kernel: InducingPrior(2, 2, kernel), {
    "a word": "rbf", "a class": gpytorch.kernels.RBFKernel, "a batch shape": rbf(batch_shape=torch.Size([2]))})
for argument, at in (("vectors", 0), ("x", 1)):
    refuse("set_inducing", argument, lambda value, at=at: InducingPrior(2, 2, num_inducing=3).set_inducing(
        *[value if at == i else torch.rand(3, 2 - i) for i in (0, 1)]), {
        **NOT_NUMERIC, "too few": torch.rand(2, 2 - at), "NaN": torch.full((3, 2 - at), NAN)})
refuse("ProductPrior", "num_channels", ProductPrior, {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("ProductPrior", "noise", lambda noise: ProductPrior(2, noise=noise), {**NOT_POSITIVE, "None": None})
refuse("ProductPrior", "features", lambda value: ProductPrior(2, value), {
    "a word": "x", "a kernel": rbf(), "a class": PeriodicFeatures,
    "a batch shape": PeriodicFeatures(rbf(batch_shape=torch.Size([2])))})
refuse("CorrelatedPrior", "local", lambda local: CorrelatedPrior(local, 1), {
    "None": None, "a word": "x", "no blocks": [], "kernels": [rbf()], "global channels alone": [GlobalChannels(2)]},
    ArgumentError)
refuse("CorrelatedPrior", "num_global_channels", lambda n: CorrelatedPrior([LocalChannels(1, rbf())], n), {
    **NOT_COUNTS, "None": None}, ArgumentError)
for kind in (InducingPrior(3, 2), ProductPrior(3)):
    refuse(f"{type(kind).__name__}.condition", "inputs", lambda value, prior=kind: prior.condition(value), NOT_BATCHES)
refuse("expand_kl", "prior", lambda prior: expand_kl(prior, None), {"None": None, "another prior": make_prior()})
refuse("CoupledPosterior.predict", "groups", lambda value: coupled()["GPVAE"].infer(data()).predict(
    torch.rand(2, 2, 1), value), {
    "a word": "a", "a dict": {}, "a fraction": torch.tensor(0.5), "a position beyond": torch.tensor([0, 99]),
    "an object": object()})


# likelihoods, objectives, networks


refuse("GaussianLikelihood", "mode", GaussianLikelihood, {"None": None, "a word": "max", "a number": 1, "a list": []})
refuse("GaussianLikelihood", "variance", lambda v: GaussianLikelihood("fixed", v), {**NOT_POSITIVE, "None": None})
refuse("DiagonalGaussianLikelihood", "y_shape", DiagonalGaussianLikelihood, {
    "None": None, "a number": 3, "a word": "3", "a fraction": [2.5], "a boolean": [True], "zero": [0]}, ArgumentError)
refuse("DiagonalGaussianLikelihood", "variance", lambda v: DiagonalGaussianLikelihood([2], v), {
    **NOT_POSITIVE, "None": None})
refuse("DiagonalGaussianLikelihood", "y_shape", lambda n: make_model(DiagonalGaussianLikelihood([n])).terms(
    context()), {"another data set": 2}, ShapeError)
refuse("BernoulliLikelihood", "y", lambda y: make_model(BernoulliLikelihood()).terms(y), {
    "counts": GroupedDataset(Y.repeat(1, 2)[:, :3] * 10, X, GROUP)}, DataError)
refuse("ELBO", "beta", ELBO, {k: v for k, v in NOT_POSITIVE.items() if k != "zero"}, ArgumentError)
refuse("ELBO", "num_particles", lambda n: ELBO(1.0, n), {**NOT_COUNTS, "None": None}, ArgumentError)
for argument in ("kappa", "rate", "initial_multiplier", "minimum_multiplier", "maximum_multiplier"):
    refuse("GECO", argument, lambda v, argument=argument: GECO(**{"kappa": 0.1, argument: v}), {
        "a negative number": -1.0, "infinity": INF, **NUMBERS}, ArgumentError)
refuse("GECO", "decay", lambda decay: GECO(0.1, decay=decay), {"one": 1.0, "a word": "0.9", "a boolean": False})
refuse("GECO", "minimum_multiplier", lambda least: GECO(0.1, minimum_multiplier=least), {"more than the start": 9.0})
for kind in (ELBO(), GECO(0.1)):
    refuse(f"{type(kind).__name__}.loss", "model", lambda model, kind=kind: kind.loss(model, model, context()), {
        "None": None, "a module": nn.Identity(), "a word": "model"})
    refuse(f"{type(kind).__name__}.loss", "batch", lambda batch, kind=kind: kind.loss(
        trained(), trained(), batch), NOT_BATCHES)
for argument in ("num_inputs", "num_outputs"):
    refuse("MLP", argument, lambda n, argument=argument: MLP(**{"num_inputs": 2, "num_outputs": 2, argument: n}), {
        **NOT_COUNTS, "None": None}, ArgumentError)
HIDDEN = {"None": None, "a number": 3, "a word": "64", "zero": [0], "a fraction": [2.5], "a boolean": [True]}
refuse("MLP", "hidden", lambda hidden: MLP(2, 2, hidden), HIDDEN, ArgumentError)
refuse("MLP", "activation", lambda word: MLP(2, 2, (), word), {"None": None, "a module": nn.ELU(), "a word": "swish"})
refuse("MLP", "input", lambda x: MLP(2, 2)(x), {"another width": torch.rand(3, 5), "None": None, "a list": [1.0]})
for kind, arguments in ((MLPEncoder, ([3], 2)), (MLPDecoder, (2, [3]))):
    shape_at = arguments.index([3])
    for at, name, values in ((shape_at, "y_shape", HIDDEN),
                             (1 - shape_at, "num_channels", {**NOT_COUNTS, "None": None})):
        refuse(kind.__name__, name, lambda value, at=at, kind=kind, arguments=arguments: kind(
            *[value if i == at else other for i, other in enumerate(arguments)]), values, ArgumentError)
    refuse(kind.__name__, "num_features", lambda n, kind=kind, arguments=arguments: kind(
        *arguments, num_features=n), {**NOT_FROM_ZERO, "None": None}, ArgumentError)
refuse("MLPEncoder", "y", MLPEncoder([3], 2), {"another shape": torch.rand(4, 5), "None": None, "a list": [1.0, 2, 3]})
refuse("MLPDecoder", "z", MLPDecoder(2, [3]), {"another L": torch.rand(4, 5), "None": None, "a list": [1.0, 2.0]})
refuse("MLPFeatures", "width", lambda width: MLPFeatures([3], width), {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("ConvEncoder", "num_channels", ConvEncoder, {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("ConvDecoder", "num_channels", ConvDecoder, {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("ConvFeatures", "width", ConvFeatures, {**NOT_COUNTS, "None": None}, ArgumentError)
for kind in (ConvEncoder, ConvDecoder):
    refuse(kind.__name__, "shape", lambda shape, kind=kind: kind(2, shape), {
        "None": None, "two sizes": (28, 28), "a word": "28", "zero": (1, 0, 28), "a number": 28}, ArgumentError)
    refuse(kind.__name__, "widths", lambda widths, kind=kind: kind(2, (1, 28, 28), widths), HIDDEN, ArgumentError)
refuse("ConvEncoder", "shape", lambda n: ConvEncoder(2, (1, n, n)), {"too few pixels": 7}, ArgumentError)
refuse("ConvEncoder", "y", ConvEncoder(2), {"another size": torch.rand(2, 1, 14, 14), "None": None})
refuse("ConvDecoder", "z", ConvDecoder(2), {"another L": torch.rand(2, 5), "None": None})
refuse("FourierFeatures", "harmonics", FourierFeatures, {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("FourierFeatures", "period", lambda p: FourierFeatures(1, p), {**NOT_POSITIVE, "None": None}, ArgumentError)
refuse("FourierFeatures", "x", FourierFeatures(), {"None": None, "a list": [1.0]})
refuse("RepresentationNetwork", "r", RepresentationNetwork, NOT_MODULES, ArgumentError)
refuse("RepresentationNetwork", "f", lambda f: RepresentationNetwork(MLPFeatures([3], 2), f), {
    "a word": "net", "a class": nn.Identity, "a number": 2}, ArgumentError)
refuse("RepresentationNetwork", "aggregation", lambda word: RepresentationNetwork(MLPFeatures([3], 2), None, word), {
    "None": None, "a word": "max", "a function": torch.sum}, ArgumentError)
refuse("RepresentationNetwork", "width", lambda n: RepresentationNetwork(nn.Identity(), width=n), NOT_COUNTS)
refuse("RepresentationNetwork", "mask", lambda mask: RepresentationNetwork(MLPFeatures([2], 2))(Y3, mask), {
    "a word": "all", "integers": M3.long(), "its transpose": M3.mT})
refuse("RepresentationNetwork", "y", RepresentationNetwork(MLPFeatures([2], 2)), {"None": None, "a list": [1.0]})
for argument in ("in_channels", "out_channels"):
    refuse("UpsampleConv2d", argument, lambda n, argument=argument: UpsampleConv2d(
        **{"in_channels": 2, "out_channels": 2, argument: n}), {**NOT_COUNTS, "None": None}, ArgumentError)
refuse("UpsampleConv2d", "padding", lambda padding: UpsampleConv2d(2, 2, padding), {
    "None": None, "two": 2, "a word": "same", "three of them": (1, 1, 1)}, ArgumentError)


# models


MODELS = {
    "FGPVAE": lambda **o: FGPVAE(**{"encoder": _networks()[0], "decoder": _networks()[1], "prior": make_prior(), **o}),
    "VAE": lambda **o: VAE(**{"encoder": _networks()[0], "decoder": _networks()[1], "num_channels": 3, **o}),
    "CVAE": lambda **o: CVAE(**{"encoder": _networks()[0], "decoder": _networks()[1], "prior": make_prior(), **o}),
    "GPVAE": lambda **o: GPVAE(
        **{"encoder": _networks()[0], "decoder": _networks()[1], "num_channels": 3, "num_groups": 7, **o}
    ),
    "SVGPVAE": lambda **o: SVGPVAE(
        **{"encoder": _networks()[0], "decoder": _networks()[1], "num_channels": 3, "num_groups": 7, **o}
    ),
    "CorrelatedFGPVAE": lambda **o: CorrelatedFGPVAE(**{
        "encoder": _networks()[0], "decoder": _networks()[1], "local": [LocalChannels(2, rbf())],
        "num_global_channels": 1, "num_groups": 7, **o}),
    "LatentAngleFGPVAE": lambda **o: LatentAngleFGPVAE(**{
        "encoder": _networks()[0], "decoder": _networks()[1], "prior": make_prior(),
        "angle_encoder": MLPFeatures([3], 2), **o}),
}


def of_model(kind, argument, values, error=ArgumentError):
    refuse(kind, argument, lambda value: MODELS[kind](**{argument: value}), values, error)


for each in MODELS:
    of_model(each, "encoder", NOT_MODULES)
    of_model(each, "decoder", NOT_MODULES)
    of_model(each, "likelihood", {"a word": "gaussian", "a class": GaussianLikelihood, "a network": nn.Identity()})
for each in ("FGPVAE", "CVAE", "LatentAngleFGPVAE"):
    of_model(each, "prior", {"None": None, "a list": [GlobalChannels(1)], "a block": GlobalChannels(1)})
for each in ("FGPVAE", "CorrelatedFGPVAE"):
    of_model(each, "member_dropout", {
        "one": 1.0, "a negative number": -0.1, "None": None, "three of them": (0, 0.5, 1), "a falling pair": (0.5, 0.1),
        "a pair above one": (0, 2), **NUMBERS})
for each in ("FGPVAE", "VAE", "CVAE", "CorrelatedFGPVAE", "LatentAngleFGPVAE"):
    of_model(each, "element_dropout", {
        "one": 1.0, "a negative number": -0.1, "None": None, "a falling pair": (0.5, 0.1), "a pair above one": (0, 2),
        "a fraction for an encoder without a mask": 0.2, **NUMBERS})
for each in ("VAE", "GPVAE", "SVGPVAE"):
    of_model(each, "num_channels", {**NOT_COUNTS, "None": None})
for each in ("GPVAE", "SVGPVAE", "CorrelatedFGPVAE"):
    of_model(each, "num_groups", {**NOT_COUNTS, "None": None}, FGPError)
    of_model(each, "num_factors", {**NOT_COUNTS, "None": None})
    of_model(each, "representation", {"a word": "net", "a number": 3, "a network beside num_groups": nn.Identity()},
             FGPError)
of_model("CVAE", "features", {"a word": "x", "a class": FourierFeatures, "a likelihood": GaussianLikelihood()})
of_model("GPVAE", "view_features", {"a word": "x", "a kernel": rbf(), "a class": PeriodicFeatures})
of_model("GPVAE", "noise", {**NOT_POSITIVE, "None": None})
of_model("SVGPVAE", "view_kernel", {"a word": "x", "a class": gpytorch.kernels.RBFKernel, "a number": 1.0})
of_model("SVGPVAE", "view_kernel", {"a batch shape": rbf(batch_shape=torch.Size([2]))}, ShapeError)
of_model("SVGPVAE", "num_inducing", {**NOT_COUNTS, "None": None})
of_model("SVGPVAE", "num_features", {**NOT_COUNTS, "None": None})
of_model("CorrelatedFGPVAE", "local", {
    "None": None, "a word": "x", "no blocks": [], "kernels": [rbf()], "global channels alone": [GlobalChannels(2)]})
of_model("CorrelatedFGPVAE", "num_global_channels", {**NOT_COUNTS, "None": None})
of_model("LatentAngleFGPVAE", "angle_encoder", NOT_MODULES)
of_model("LatentAngleFGPVAE", "feature", {**NOT_FROM_ZERO, "None": None})
of_model("LatentAngleFGPVAE", "period", {**NOT_POSITIVE, "None": None})
of_model("LatentAngleFGPVAE", "supervision", {"a negative number": -1.0, "infinity": INF, **NUMBERS})

CALLS = {
    "FGPVAE": lambda: trained(), "CVAE": lambda: others()["CVAE"], "VAE": lambda: others()["VAE"],
    "GPVAE": lambda: coupled()["GPVAE"], "SVGPVAE": lambda: coupled()["SVGPVAE"],
    "CorrelatedFGPVAE": lambda: coupled()["CorrelatedFGPVAE"], "LatentAngleFGPVAE": lambda: others()["angle"],
}
for each, model in CALLS.items():
    for method in ("infer", "terms", "encode", "reconstruct", "guide", "model"):
        few = NOT_BATCHES if each == "FGPVAE" else {"None": None, "a tensor": Y3}
        refuse(f"{each}.{method}", "batch", lambda batch, model=model, method=method: getattr(model(), method)(batch),
               few, ArgumentError)
    for method in ("infer", "terms", "reconstruct"):
        refuse(f"{each}.{method}", "batch", lambda batch, model=model, method=method: getattr(model(), method)(batch), {
            "another device": data()[:].to("meta")}, DataError)
    if each != "LatentAngleFGPVAE":
        for method in ("infer", "terms", "reconstruct", "guide"):
            refuse(f"{each}.{method}", "x", lambda batch, model=model, method=method: getattr(model(), method)(batch), {
                "another D than in training": wide()[:]}, ShapeError)
NEW = torch.rand(3, 2, 1)
BOTH = {"ConditionedVAE": conditioned, "ConditionedVAE of new groups": lambda: conditioned("new")}
for each, model in {**CALLS, **BOTH}.items():
    where = (lambda: data()) if each in ("GPVAE", "SVGPVAE", "CorrelatedFGPVAE") else context
    new = torch.rand(7, 2, 1) if each in ("GPVAE", "SVGPVAE", "CorrelatedFGPVAE") else NEW
    if each == "ConditionedVAE":
        where = lambda: data()[[0, 1, 3]]  # noqa: E731
    wrong = {k: v for k, v in tensor_cases(new).items() if k != "a missing dimension"}  # (Q*, D) is for all groups
    wrong = wrong if each in ("FGPVAE", "SVGPVAE", "ConditionedVAE of new groups") else {
        "a word": "x", "one column more": torch.cat([new, new], -1), "another device": new.to("meta"), "NaN": new * NAN}
    for method in ("predict", "generate"):
        if method == "generate":
            wrong = {k: v for k, v in wrong.items() if k != "None"}
        refuse(f"{each}.{method}", "x_new", lambda x, model=model, method=method, where=where: getattr(
            model(), method)(x, where()), wrong, FGPError)
        refuse(f"{each}.{method}", "context", lambda value, model=model, method=method, new=new: getattr(
            model(), method)(new, value), {k: v for k, v in NOT_BATCHES.items() if (method, k) != ("generate", "None")},
            ArgumentError)
    refuse(f"{each}.generate", "sample_shape", lambda shape, model=model, new=new, where=where: model().generate(
        new, where(), shape), {k: v for k, v in SHAPES.items() if k != "None"}, ArgumentError)
refuse("FGPVAE.generate of new groups", "x_new", lambda x: trained().generate(x), {
    **NOT_NUMERIC, "a missing dimension": NEW[0], "another D than in training": torch.rand(3, 2, 2), "NaN": NEW * NAN,
    "complex numbers": NEW + 0j, "another device": NEW.to("meta")})
refuse("FGPVAE.predict", "context", lambda c: trained().predict(torch.rand(7, 1, 2), c), {
    "another D than in training": wide()}, ShapeError, "x")
for each in ("GPVAE", "SVGPVAE", "CorrelatedFGPVAE"):
    refuse(f"{each}.generate", "context", lambda c, each=each: coupled()[each].generate(torch.rand(7, 1, 1), c), {
        "None": None}, GroupError)
    refuse(f"{each}.infer", "batch", lambda c, each=each: coupled()[each].infer(c), {
        "another data set": make_data(sizes=(3, 2))}, GroupError)
    refuse(f"{each}.condition_on", "dataset", lambda d, each=each: coupled()[each].condition_on(d), NOT_BATCHES)
    refuse(f"{each}.condition_on", "context", lambda w, each=each: coupled()[each].condition_on(data(), w), {
        "a word": "old", "a number": 1, "a boolean": True, "new groups without a representation": "new"})
    refuse(f"{each}.initialize_vectors", "dataset", lambda d, each=each: coupled()[each].initialize_vectors(d), {
        **NOT_BATCHES, "some of the groups": data().subset([0, 1])}, FGPError, "")
refuse("ConditionedVAE.predict", "context", lambda c: conditioned().predict(torch.rand(2, 1, 1), c), {
    "groups of another data set": make_data(sizes=(3, 2))}, GroupError)
refuse("SVGPVAE.initialize_inducing", "dataset", lambda d: coupled()["SVGPVAE"].initialize_inducing(d), NOT_BATCHES)
refuse("GPVAE.summarize", "dataset", lambda d: coupled()["GPVAE"].summarize(d), NOT_BATCHES)
refuse("GPVAE.summarize", "batch_size", lambda n: coupled()["GPVAE"].summarize(data(), n), NOT_COUNTS)
refuse("GPVAE.terms", "batch", lambda b: coupled()["GPVAE"].terms(b), {"some of the groups": context()}, GroupError)
refuse("FGPVAE.terms", "num_particles", lambda n: trained().terms(context(), n), {
    **NOT_COUNTS, "None": None}, ArgumentError)
Z = torch.rand(3, 2, 3)
refuse("FGPVAE.decode", "z", lambda z: trained().decode(z, NEW), {**NOT_NUMERIC, "another L": torch.rand(3, 2, 5)})
refuse("CVAE.decode", "x", lambda x: others()["CVAE"].decode(Z, x), {**NOT_NUMERIC, "another D": torch.rand(3, 2, 2)},
       FGPError, "")
refuse("LatentAngleFGPVAE.infer_angles", "batch", lambda b: others()["angle"].infer_angles(b), NOT_BATCHES)
refuse("AnglePosterior.sample", "sample_shape", lambda s: others()["angle"].infer_angles(data()).sample(s), SHAPES)
refuse("AnglePosterior.log_prob", "angle", lambda a: others()["angle"].infer_angles(data()).log_prob(a), NOT_NUMERIC)


class Returning(nn.Module):
    """A network that returns something else."""

    def __init__(self, result):
        super().__init__()
        self.result = result

    def forward(self, value, *rest):
        return self.result(value)


PAIRS = {"a pair": lambda v: (v, v), "None": lambda v: None, "a list": lambda v: [v], "a number": lambda v: 3.0,
         "another shape": lambda v: v[..., :2], "a scalar": lambda v: v.sum()}
for method in ("terms", "reconstruct", "model"):
    refuse(f"FGPVAE.{method}", "decoder", lambda f, method=method: getattr(
        make_model(decoder=Returning(f)), method)(context()), PAIRS, ShapeError)
ONE = {"one tensor": lambda v: v, "None": lambda v: None, "a list of two": lambda v: [v, v.exp()],
       "three tensors": lambda v: (v, v, v), "a pair of numbers": lambda v: (1.0, 2.0),
       "another L": lambda v: (v[:, :2], v[:, :2].exp())}
for method in ("terms", "infer", "guide"):
    refuse(f"FGPVAE.{method}", "encoder", lambda f, method=method: getattr(
        make_model(encoder=Returning(f)), method)(context()), ONE, ShapeError)
refuse("FGPVAE.infer", "encoder", lambda f: make_model(encoder=Returning(f)).infer(context()), {
    "a negative variance": lambda v: (v, -v.exp())}, DataError)
refuse("CVAE.terms", "features", lambda f: CVAE(*_networks(), make_prior(), features=Returning(f)).terms(context()), {
    "a pair": lambda v: (v, v), "None": lambda v: None, "one number": lambda v: v.sum()})
REPRESENTED = {"None": lambda v: None, "a pair": lambda v: (v, v), "another m": lambda v: torch.rand(len(v), 5),
               "one vector": lambda v: torch.rand(2)}
refuse("SVGPVAE.infer", "representation", lambda f: SVGPVAE(
    *_networks(), 3, num_factors=2, representation=Returning(f)).infer(context()), REPRESENTED, ShapeError)
refuse("LatentAngleFGPVAE.infer", "angle_encoder", lambda f: LatentAngleFGPVAE(
    *_networks(), make_prior(), Returning(f)).infer(context()), {
    "None": lambda v: None, "a pair": lambda v: (v, v), "three columns": lambda v: v}, ShapeError)


# posteriors


refuse("posterior.predict", "x_new", lambda x: posterior().predict(x), tensor_cases(NEW))
refuse("posterior.rsample_paths", "x_new", lambda x: posterior().rsample_paths(x), tensor_cases(NEW))
refuse("CoupledPosterior.predict", "x_new", lambda x: coupled()["SVGPVAE"].infer(data()).predict(x), tensor_cases(
    torch.rand(7, 2, 1)))


# metrics, plots


ABOUT = {
    "held_out_mse": metrics.held_out_mse, "held_out_calibration": metrics.held_out_calibration,
    "swap_errors": metrics.swap_errors,
    "mse_by_context_size": lambda model, held, **o: metrics.mse_by_context_size(model, held, (1,), **o),
}
for name, metric in ABOUT.items():
    refuse(name, "model", lambda model, metric=metric: metric(model, held_out()), {
        "None": None, "a network": nn.Identity(), "a word": "model", "a class": FGPVAE})
    refuse(name, "held_out", lambda held, metric=metric: metric(trained(), held), {
        "None": None, "a data set": data(), "a batch": context(), "a word": "test"}, ArgumentError)
    refuse(name, "batch_size", lambda n, metric=metric: metric(trained(), held_out(), batch_size=n), NOT_COUNTS)
for name in ("held_out_calibration", "swap_errors", "mse_by_context_size"):
    refuse(name, "seed", lambda n, metric=ABOUT[name]: metric(trained(), held_out(), seed=n), NOT_FROM_ZERO)
refuse("held_out_mse", "num_samples", lambda n: metrics.held_out_mse(trained(), held_out(), True, num_samples=n), {
    **NOT_COUNTS, "None": None}, ArgumentError)
refuse("held_out_calibration", "num_samples", lambda n: metrics.held_out_calibration(trained(), held_out(), n), {
    **NOT_COUNTS, "None": None, "too few": 5}, ArgumentError)
refuse("mse_by_context_size", "sizes", lambda s: metrics.mse_by_context_size(trained(), held_out(), s), {
    "None": None, "a word": "all", "no sizes": [], "zero": [0], "a fraction": [1.5], "too many": [99], "words": ["a"],
    "a boolean": [True]}, FGPError)
refuse("mse_by_context_size", "num_subsets", lambda n: metrics.mse_by_context_size(
    trained(), held_out(), (1,), num_subsets=n), NOT_COUNTS)
refuse("mse_by_context_size", "model", lambda m: metrics.mse_by_context_size(m, held_out(), (1,)), {
    "one that does not read its context": conditioned()})
refuse("swap_errors", "model", lambda model: metrics.swap_errors(model, held_out()), {
    "channels of one kind": others()["VAE"]}, DataError)
BIG = make_data(sizes=(4, 4, 4, 4))
refuse("latent_means", "model", lambda m: metrics.latent_means(m, data()), {
    "None": None, "a network": nn.Identity(), "one conditioned on data": conditioned()}, ArgumentError)
refuse("disentanglement", "model", lambda m: metrics.disentanglement(m, BIG, None), {
    "None": None, "a network": nn.Identity(), "one conditioned on data": conditioned()}, ArgumentError)
for name, metric in (("latent_means", metrics.latent_means),
                     ("disentanglement", lambda m, d: metrics.disentanglement(m, d, None))):
    refuse(name, "data", lambda d, metric=metric: metric(trained(), d), NOT_BATCHES, ArgumentError)
refuse("latent_means", "batch_size", lambda n: metrics.latent_means(trained(), data(), False, n), NOT_COUNTS)
refuse("disentanglement", "period", lambda p: metrics.disentanglement(trained(), BIG, p), NOT_POSITIVE, ArgumentError)
refuse("disentanglement", "feature", lambda f: metrics.disentanglement(trained(), BIG, None, f), {
    "one beyond": 1, "a negative number": -1, "a word": "x", "None": None, "a boolean": False}, ArgumentError)
refuse("disentanglement", "num_bins", lambda n: metrics.disentanglement(trained(), BIG, None, num_bins=n), NOT_COUNTS)
refuse("disentanglement", "seed", lambda n: metrics.disentanglement(trained(), BIG, None, seed=n), NOT_FROM_ZERO)
refuse("disentanglement", "data", lambda d: metrics.disentanglement(trained(), d, None), {
    "a group of one member": data(), "one group": BIG.subset([0])}, GroupError)
V, F, I = torch.rand(8, 2), torch.rand(8, 1), torch.arange(8) % 2  # noqa: E741
refuse("discretize", "values", metrics.discretize, {**NOT_NUMERIC, "one dimension": V[:, 0], "NaN": V * NAN,
       "no rows": V[:0], "complex numbers": V + 0j})
refuse("discretize", "num_bins", lambda n: metrics.discretize(V, n), {**NOT_COUNTS, "one": 1}, ArgumentError)
refuse("mutual_information", "first", lambda a: metrics.mutual_information(a, I), {
    **NOT_NUMERIC, "fractions": V, "one dimension": I, "too few rows": I[:3, None], "negative numbers": -I[:, None]})
refuse("mutual_information", "second", lambda b: metrics.mutual_information(I[:, None], b), {
    **NOT_NUMERIC, "fractions": V[:, 0], "negative numbers": -I})
refuse("mutual_information_gap", "latents", lambda v: metrics.mutual_information_gap(v, I), {
    **NOT_NUMERIC, "one channel": F, "one dimension": V[:, 0], "NaN": V * NAN})
refuse("mutual_information_gap", "factor", lambda f: metrics.mutual_information_gap(V, f), {
    **NOT_NUMERIC, "a constant": 0 * I, "fractions": V[:, 0], "too few": I[:3], "negative numbers": -I}, FGPError, "")
for argument in ("features", "targets", "group"):
    refuse("ridge_r2", argument, lambda value, argument=argument: metrics.ridge_r2(
        **{"features": V, "targets": F, "group": I, argument: value}), {
        **NOT_NUMERIC, "too few rows": V[:3], "one number": torch.tensor(1.0), "NaN": V * NAN if argument != "group"
        else torch.rand(8)}, FGPError, "")
refuse("ridge_r2", "num_folds", lambda n: metrics.ridge_r2(V, F, I, n), {**NOT_COUNTS, "one": 1}, ArgumentError)
refuse("ridge_r2", "penalty", lambda v: metrics.ridge_r2(V, F, I, penalty=v), {"a negative number": -1.0, **NUMBERS})
refuse("ridge_r2", "seed", lambda n: metrics.ridge_r2(V, F, I, seed=n), NOT_FROM_ZERO, ArgumentError)
refuse("ridge_r2", "group", lambda g: metrics.ridge_r2(V, F, g), {"one group": 0 * I}, GroupError)
refuse("ridge_r2", "targets", lambda t: metrics.ridge_r2(V, t, I), {"a constant": 0 * F}, DataError)
for argument in ("features", "group", "test_features", "test_group"):
    refuse("centroid_accuracy", argument, lambda value, argument=argument: metrics.centroid_accuracy(
        **{"features": V, "group": I, "test_features": V, "test_group": I, argument: value}), {
        **NOT_NUMERIC, "too few rows": V[:3], "NaN": V * NAN if "features" in argument else torch.full((8,), NAN)},
        FGPError, "")
refuse("centroid_accuracy", "shrinkage", lambda v: metrics.centroid_accuracy(V, I, V, I, v), {
    "a negative number": -1.0, **NUMBERS})
refuse("centroid_accuracy", "test_group", lambda g: metrics.centroid_accuracy(V, I, V, g), {"other groups": I + 5})
PATHS = torch.rand(2, 3, 2)
for argument in ("paths", "features", "at", "group"):
    refuse("nearest_path_accuracy", argument, lambda value, argument=argument: metrics.nearest_path_accuracy(
        **{"paths": PATHS, "features": V, "at": I, "group": I, argument: value}), {
        **NOT_NUMERIC, "one dimension": torch.rand(8), "too few rows": V[:3]}, FGPError, "")
refuse("nearest_path_accuracy", "group", lambda g: metrics.nearest_path_accuracy(PATHS, V, I, g), {
    "a position beyond": I + 7, "a negative number": I - 1}, GroupError)
refuse("log_mean_exp", "log_prob", metrics.log_mean_exp, {**NOT_NUMERIC, "no draws": torch.zeros(0, 3)})
refuse("crps_of_samples", "samples", lambda s: metrics.crps_of_samples(s, torch.rand(3)), {
    **NOT_NUMERIC, "one draw": torch.rand(1, 3), "another shape": torch.rand(5, 4)})
refuse("crps_of_samples", "y", lambda y: metrics.crps_of_samples(torch.rand(5, 3), y), {
    **NOT_NUMERIC, "another shape": torch.rand(4)}, FGPError, "")
refuse("central_interval", "samples", lambda s: metrics.central_interval(s, 0.5), {
    **NOT_NUMERIC, "too few draws": torch.rand(2, 3)})
refuse("central_interval", "level", lambda level: metrics.central_interval(torch.rand(50), level), {
    "zero": 0.0, "one": 1.0, "percent": 90, "None": None, **NUMBERS}, ArgumentError)

IMAGES = torch.rand(2, 4, 4)
refuse("image_rows", "rows", plots.image_rows, {
    "None": None, "a word": "abc", "no rows": [], "a tensor": IMAGES, "images without labels": [IMAGES],
    "no images": [("a", IMAGES[:0])], "one image": [("a", IMAGES[0])], "words": [("a", "b")], "numbers": [1, 2],
    "five channels": [("a", torch.rand(2, 5, 4, 4))], "complex numbers": [("a", IMAGES + 0j)]})
refuse("image_rows", "columns", lambda columns: plots.image_rows([("a", IMAGES)], columns), {
    "too few": ["a"], "a number": 2}, FGPError)
refuse("image_rows", "title", lambda title: plots.image_rows([("a", IMAGES)], None, title), {"a list": ["a"]})
refuse("image_rows", "marked", lambda m: plots.image_rows([("a", IMAGES)], marked=m), {
    "None": None, "a number": 3, "one pair without a list": (0, 1)}, FGPError)
refuse("latent_paths", "model", lambda model: plots.latent_paths(model, data()[0], X), {
    "None": None, "a network": nn.Identity(), "a word": "model", "one conditioned on data": conditioned()})
refuse("latent_paths", "context", lambda c: plots.latent_paths(trained(), c, X), {
    **NOT_BATCHES, "two groups": data()[[0, 1]]})
refuse("latent_paths", "x", lambda x: plots.latent_paths(trained(), data()[0], x), {
    **NOT_NUMERIC, "no values": X[:0], "NaN": X * NAN, "infinity": X / 0, "complex numbers": X + 0j})
refuse("latent_paths", "x", lambda m: plots.latent_paths(m, wide()[0], X), {"one feature of two": make_model()})
HISTORY = pd.DataFrame({"epoch": [0], "mse": [1.0], "kl_local": [1.0], "kl_global": [1.0], "multiplier": [1.0]})
refuse("training_curves", "histories", plots.training_curves, {
    "None": None, "a word": "log", "no tables": [], "dicts": [{"epoch": [0]}],
    "other columns": pd.DataFrame({"a": [1]})})
refuse("training_curves", "kappa", lambda kappa: plots.training_curves(HISTORY, kappa), {
    "a word": "x", "NaN": NAN, "a list": [1.0], "zero": 0.0})


# training, data sets, saving


refuse("fit", "model", lambda model: fit(model, data(), **QUIET), {
    "None": None, "a network": nn.Identity(), "a word": "model", "a class": FGPVAE, "a data set": data()})
refuse("fit", "train", lambda train: fit(make_model(), train, **QUIET), {**NOT_BATCHES, "a batch": context()})
refuse("fit", "validation", lambda v: fit(make_model(), data(), validation=v, **QUIET), {
    "a word": "test", "a batch": context(), "one": 1, "a negative number": -0.1, "NaN": math.nan, "a boolean": True})
refuse("fit", "objective", lambda o: fit(make_model(), data(), objective=o, **QUIET), {
    "a word": "elbo", "a class": ELBO, "a number": 1.0})
for argument in ("epochs", "batch_size", "checkpoint_every"):
    refuse("fit", argument, lambda v, argument=argument: fit(make_model(), data(), **{**QUIET, argument: v}), {
        **NOT_COUNTS, **({} if argument == "batch_size" else {"None": None})}, ArgumentError)
refuse("fit", "learning_rate", lambda v: fit(make_model(), data(), learning_rate=v, **QUIET), {
    **NOT_POSITIVE, "None": None}, ArgumentError)
refuse("fit", "gradient_clip", lambda v: fit(make_model(), data(), gradient_clip=v, **QUIET), NOT_POSITIVE)
refuse("fit", "seed", lambda v: fit(make_model(), data(), seed=v, **QUIET), NOT_FROM_ZERO, ArgumentError)
refuse("fit", "num_workers", lambda v: fit(make_model(), data(), num_workers=v, **QUIET), NOT_FROM_ZERO, ArgumentError)
refuse("fit", "early_stopping", lambda v: fit(make_model(), data(), validation=data(), early_stopping=v, **QUIET),
       NOT_COUNTS, ArgumentError)
refuse("fit", "optimizer", lambda v: fit(make_model(), data(), optimizer=v, **QUIET), {
    "a word": "adam", "an optimizer": torch.optim.SGD([torch.zeros(1, requires_grad=True)]), "a number": 1e-3})
refuse("fit", "lr_schedule", lambda v: fit(make_model(), data(), lr_schedule=v, **QUIET), {
    "a word": "linear", "a number": 0.1, "a boolean": True})
refuse("fit", "train", lambda train: fit(_stepped(make_model(), data()[:]), train, **QUIET), {
    "another D than in training": wide()}, ShapeError, "x")
refuse("fit", "train", lambda train: fit(make_model(), train, **QUIET), {
    "another y_shape": make_data(y_shape=(2,))}, ShapeError, "y")
refuse("fit", "validation", lambda v: fit(make_model(), data(), validation=v, **QUIET), {
    "another D than in training": wide(), "another y_shape": make_data(y_shape=(2,))}, ShapeError, "")
refuse("rotated_mnist", "digits", rotated_mnist, {
    "None": None, "a word": "three", "ten": 10, "a negative number": -1, "no digits": [], "a digit twice": [3, 3],
    "a fraction": 2.5, "a boolean": True, "lists of two lengths": [[1], [1, 2]]}, ArgumentError)
refuse("rotated_mnist", "views", lambda views: rotated_mnist(views=views), {
    "None": None, "zero": 0, "sixteen": 16, "a word": "all", "a boolean": True, "a fraction": 2.5}, ArgumentError)
refuse("rotated_mnist", "seed", lambda seed: rotated_mnist(seed=seed), {**NOT_FROM_ZERO, "None": None}, ArgumentError)
refuse("rotated_mnist", "source", lambda source: rotated_mnist(source=source), {
    "None": None, "a word": "web", "torchvision without root": "torchvision"}, ArgumentError)


# fmt: on


@pytest.mark.parametrize(("call", "error", "word"), CASES)
def test_wrong_input_is_refused_in_three_parts(call, error, word):
    _refused(call, error, word)


def test_there_are_more_cases_than_the_issue_tried():
    assert len(CASES) + len(ACCEPTED) >= 281
    ids = [case.id for case in CASES]
    assert len(set(ids)) == len(ids), [i for i in ids if ids.count(i) > 1]


# accepted, each for a reason


# fmt: off

INTEGER, SINGLE = (np.int64, np.array, torch.tensor), (np.float32, np.array, torch.tensor)
EACH = {"NumPy's scalar": 0, "an array without dimensions": 1, "a tensor without dimensions": 2}
ACCEPTED = []


def accept(what, because, call):
    ACCEPTED.append(pytest.param(call, id=f"{what} is accepted because {because}"))


def numbers(entry, call, kinds, value):
    for what, at in EACH.items():
        accept(f"{entry} of {what}", "it is a number", functools.partial(lambda c, k: c(k(value)), call, kinds[at]))


def counts(entry, call, value=2):
    numbers(entry, call, INTEGER, value)


def reals(entry, call, value=0.5):
    numbers(entry, call, SINGLE, value)


counts("LocalChannels(num_channels)", lambda n: LocalChannels(n, rbf()))
counts("GlobalChannels(num_channels)", GlobalChannels)
reals("GlobalChannels(variance)", lambda v: GlobalChannels(2, v))
counts("CoregionalizedChannels(num_factors)", lambda n: CoregionalizedChannels(2, n, NystromFeatures(rbf(), [0.0])))
counts("FourierMean(harmonics)", FourierMean)
reals("FourierMean(period)", lambda p: FourierMean(1, p)(torch.rand(3, 1)))
counts("PeriodicFeatures(harmonics)", lambda n: PeriodicFeatures(rbf(), 1.0, n))
counts("MLP(num_inputs)", lambda n: MLP(n, n, [n]))
counts("MLPEncoder(num_channels)", lambda n: MLPEncoder([n], n, [n], num_features=n))
counts("MLPDecoder(num_channels)", lambda n: MLPDecoder(n, [n], [n], num_features=n))
counts("MLPFeatures(width)", lambda n: MLPFeatures([n], n))
counts("ConvEncoder(num_channels)", lambda n: ConvEncoder(n, num_features=n))
counts("ConvDecoder(num_channels)", lambda n: ConvDecoder(n, num_features=n))
counts("ConvFeatures(width)", ConvFeatures)
counts("UpsampleConv2d(in_channels)", lambda n: UpsampleConv2d(n, n))
counts("GroupVectors(num_groups)", lambda n: GroupVectors(n, n))
counts("InducingPrior(num_inducing)", lambda n: InducingPrior(n, n, None, n, n))
counts("SVGPVAE(num_groups)", lambda n: MODELS["SVGPVAE"](num_groups=n, num_factors=n, num_inducing=n))
counts("GPVAE(num_groups)", lambda n: MODELS["GPVAE"](num_groups=n, num_factors=n))
reals("GPVAE(noise)", lambda v: MODELS["GPVAE"](noise=v))
reals("FGPVAE(member_dropout)", lambda v: _stepped(MODELS["FGPVAE"](member_dropout=v), context()))
reals("LatentAngleFGPVAE(period)", lambda v: MODELS["LatentAngleFGPVAE"](period=v))
reals("GaussianLikelihood(variance)", lambda v: [GaussianLikelihood(m, v) for m in ("fixed", "learned", "optimal")])
reals("DiagonalGaussianLikelihood(variance)", lambda v: DiagonalGaussianLikelihood([2], v))
reals("ELBO(beta)", lambda v: ELBO(v).differentiable_loss(trained(), trained(), context()))
counts("ELBO(num_particles)", lambda n: ELBO(1.0, n).differentiable_loss(trained(), trained(), context()))
reals("GECO(kappa)", lambda v: GECO(v, v, v, v, v, v).differentiable_loss(trained(), trained(), context()))
counts("data[...]", lambda n: data()[n])
counts("HeldOut.last(k)", lambda n: HeldOut.last(data().subset([0, 1]), n))
reals("HeldOut.after(x)", lambda v: HeldOut.after(data(), v), 1.5)
reals("HeldOut.random(amount)", lambda v: HeldOut.random(data().subset([0, 1]), v))
counts("HeldOut.random(seed)", lambda n: HeldOut.random(data().subset([0, 1]), 1, n))
counts("HeldOut.groups(context)", lambda n: HeldOut.groups(data().subset([0, 1]), [0, 1], n))
counts("in_memory(batch_size)", lambda n: LazyDataset(data(), lambda b: b.y).in_memory(n))
counts("from_tensors(num_dataset_groups)", lambda n: GroupedBatch.from_tensors(Y3, X3, num_dataset_groups=n))
counts("terms(num_particles)", lambda n: trained().terms(context(), n))
counts("generate(sample_shape)", lambda n: trained().generate(NEW, context(), [n]))
counts("prior.sample(sample_shape)", lambda n: make_prior().sample(NEW, (n,)))
counts("held_out_mse(batch_size)", lambda n: metrics.held_out_mse(trained(), held_out(), True, n, n))
counts("held_out_calibration(num_samples)", lambda n: metrics.held_out_calibration(trained(), held_out(), n, n, n), 19)
counts("swap_errors(seed)", lambda n: metrics.swap_errors(trained(), held_out(), n, n))
counts("mse_by_context_size(sizes)", lambda n: metrics.mse_by_context_size(
    trained(), HeldOut.last(BIG), n, n, n, n))
counts("latent_means(batch_size)", lambda n: metrics.latent_means(trained(), data(), False, n))
counts("disentanglement(num_bins)", lambda n: metrics.disentanglement(trained(), BIG, None, 0, False, n, n, n))
reals("disentanglement(period)", lambda v: metrics.disentanglement(trained(), BIG, v))
counts("discretize(num_bins)", lambda n: metrics.discretize(V, n))
counts("ridge_r2(num_folds)", lambda n: metrics.ridge_r2(V, F, I, n, seed=n))
reals("ridge_r2(penalty)", lambda v: metrics.ridge_r2(V, F, I, penalty=v))
reals("central_interval(level)", lambda v: metrics.central_interval(torch.rand(50), v))
counts("GPVAE.summarize(batch_size)", lambda n: coupled()["GPVAE"].summarize(data(), n))
counts("fit(epochs)", lambda n: fit(make_model(), data().subset([0, 1]), **{**QUIET, "epochs": n, "seed": n}), 1)
reals("fit(learning_rate)", lambda v: fit(make_model(), data().subset([0]), learning_rate=v, gradient_clip=v, **QUIET))
counts("rotated_mnist(views)", lambda n: _checked_options(n))
accept("float16 as y", "it is a floating dtype, which is kept", lambda: GroupedDataset(Y.half(), X, GROUP))
accept("a list as y", "it holds floats", lambda: GroupedDataset(Y.tolist(), X.tolist(), GROUP))
accept("integers as x", "float64 holds them exactly", lambda: GroupedDataset(Y, X.long(), GROUP))
accept("booleans as x", "they are the numbers 0 and 1", lambda: GroupedDataset(Y, [True, False, True, False], GROUP))
accept("one group", "a data set may have one", lambda: GroupedDataset(Y, X, [0] * 4)[:])
accept("a name without a list", "it is one column", lambda: GroupedDataset.from_dataframe(frame(), "y", "t", "g"))
accept("a tuple that is a column", "it is a name of two levels", lambda: GroupedDataset.from_dataframe(
    LEVELS, y=("y", "a"), x=("x", "t"), group=("g", "id")))
accept("a list of such tuples", "it lists columns", lambda: GroupedDataset.from_dataframe(
    LEVELS, y=[("y", "a")], x=[("x", "t")], group=("g", "id")))
accept("a tuple of names", "it is a sequence of columns", lambda: GroupedDataset.from_dataframe(
    frame(z=[1.0, 2.0, 4.0]), y=("y", "z"), x=("t",), group="g"))
accept("no new members with a context", "a loop may have none", lambda: trained().generate(NEW[:, :0], context()))
accept("no new members of new groups", "a loop may have none", lambda: trained().generate(NEW[:, :0]))
accept("float16 as x_new", "the prior's dtype holds it exactly", lambda: trained().generate(NEW.half(), context()))
accept("a data set as batch", "it is one batch of all groups", lambda: trained().infer(data()))


# fmt: on


def _checked_options(views):
    """`rotated_mnist` up to its checks: the source comes after them."""
    with pytest.raises(ArgumentError, match="source"):
        rotated_mnist(digits=np.int64(3), views=views, seed=views, source="web")


@pytest.mark.parametrize("call", ACCEPTED)
def test_unusual_input_is_accepted(call):
    call()


def _read_only(tensor):
    array = tensor.numpy().copy()
    array.setflags(write=False)
    return array


LIKE_TENSORS = {"lists": torch.Tensor.tolist, "NumPy arrays": torch.Tensor.numpy, "read-only arrays": _read_only}
XNEW = torch.tensor([[[0.5], [1.0]], [[1.5], [2.0]], [[0.25], [0.75]]], dtype=torch.float64)
ENTRIES = {
    "FGPVAE.generate": lambda x: trained().generate(x, context()),
    "FGPVAE.generate of new groups": lambda x: trained().generate(x),
    "FGPVAE.predict": lambda x: trained().predict(x, context()).mean,
    "CVAE.generate": lambda x: others()["CVAE"].generate(x, context()),
    "CVAE.generate of new groups": lambda x: others()["CVAE"].generate(x),
    "SVGPVAE.generate": lambda x: amortized().generate(x, context()),
    "ConditionedVAE.generate": lambda x: conditioned().generate(x, context()),
    "ConditionedVAE.predict": lambda x: conditioned("new").predict(x, context()).mean,
    "posterior.predict": lambda x: posterior().predict(x).mean,
    "posterior.rsample_paths": lambda x: posterior().rsample_paths(x).new,
    "CoupledPosterior.predict": lambda x: coupled()["GPVAE"].infer(data()).predict(x, torch.tensor([0, 1, 3])).mean,
    "prior.sample": lambda x: make_prior().sample(x),
    "prior": lambda x: make_prior()(x).mean,
    "HeldOut": lambda x: HeldOut(data().subset([0, 1, 3]), x, YN).x_new,
    "decode": lambda x: others()["CVAE"].decode(Z, x),
}


@pytest.mark.parametrize("like", LIKE_TENSORS)
@pytest.mark.parametrize("entry", ENTRIES)
def test_new_features_may_be_lists_and_arrays(entry, like):
    torch.manual_seed(1)
    expected = ENTRIES[entry](XNEW)
    torch.manual_seed(1)
    got = ENTRIES[entry](LIKE_TENSORS[like](XNEW))
    torch.testing.assert_close(got, expected, rtol=0, atol=1e-6)


def test_groups_to_predict_may_be_a_list():
    coupled_posterior, x = coupled()["GPVAE"].infer(data()), XNEW[:2]
    expected = coupled_posterior.predict(x, torch.tensor([0, 3])).mean
    assert torch.equal(coupled_posterior.predict(x, [0, 3]).mean, expected)
    assert torch.equal(coupled_posterior.predict(x, np.array([0, 3])).mean, expected)


def test_figures_and_metrics_take_lists_and_arrays():
    assert len(plots.latent_paths(trained(), data()[0], [0.0, 1.0, 2.0]).axes) == 3
    assert plots.image_rows([("a", IMAGES.numpy()), ("b", IMAGES.tolist())]).axes
    assert metrics.ridge_r2(V.numpy(), F.numpy(), I.numpy()) == metrics.ridge_r2(V, F, I)
    args = V, I, V, I
    assert metrics.centroid_accuracy(*(a.numpy() for a in args)) == metrics.centroid_accuracy(*args)
    args = PATHS, V, I, I
    assert metrics.nearest_path_accuracy(*(a.tolist() for a in args)) == metrics.nearest_path_accuracy(*args)
    args = torch.rand(5, 3), torch.rand(3)
    torch.testing.assert_close(
        metrics.crps_of_samples(*(a.numpy() for a in args)), metrics.crps_of_samples(*args), rtol=0, atol=0
    )
    assert torch.equal(metrics.discretize(V.numpy(), 5), metrics.discretize(V, 5))
    assert metrics.mutual_information_gap(V.numpy(), I.numpy()) == metrics.mutual_information_gap(V, I)


# what was accepted and silently wrong


@pytest.mark.parametrize("kind", ["FGPVAE", "GPVAE", "CorrelatedFGPVAE"])
def test_number_of_features_is_remembered_and_saved(kind, tmp_path):
    model = CALLS[kind]()
    assert model.num_features == 1
    model.save(tmp_path / "model.pt")
    again = type(model).load(tmp_path / "model.pt")
    assert again.num_features == 1
    for call in (again.infer, again.reconstruct, lambda batch: again.generate(torch.rand(7, 1, 2), batch)):
        with pytest.raises(ShapeError, match=r"expected D = 1 auxiliary features, .* trained on, got 2"):
            call(wide())
    again.num_features = None
    assert again.infer(data()).mean.shape == (7, 6, 3)


def test_an_untrained_model_takes_any_number_of_features():
    model = make_model()
    assert model.num_features is None
    assert "_num_features" not in model.state_dict()
    assert model.eval().infer(wide()).mean.shape == model.infer(data()).mean.shape


def test_a_step_of_resumed_training_keeps_the_number_of_features(tmp_path):
    options = {**QUIET, "folder": tmp_path, "seed": 0}
    fit(make_model(), data(), **options)
    model = make_model()
    fit(model, data(), **{**options, "epochs": 2}, resume=True)
    assert model.num_features == 1


def test_repeated_features_in_a_group_are_warned_of_once_and_not_between_groups():
    words = r"x: expected different features in each group, got 1 .* group b at x = \[0\.5\]\. Try .*average"
    with pytest.warns(UserWarning, match=words) as caught:
        repeated = GroupedDataset(Y, [0.5, 0.25, 0.5, 0.5], ["a", "a", "b", "b"])
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert len(repeated[:].y) == 2  # no further warning
    GroupedDataset(Y, [0.5, 0.25, 0.5, 0.25], ["a", "a", "b", "b"])  # the same places of two groups
    GroupedDataset(Y, torch.zeros(4), GROUP)  # a model without features
    GroupedDataset(Y, [0.0, 1.0, 2.0, 2.0], GROUP, x_mask=[True, True, False, False])  # unknown features


def test_repeated_rows_of_a_table_are_warned_of():
    table = frame(t=[1.0, 1.0, 2.0])
    with pytest.warns(UserWarning, match=r"group a at x = \[1\.0\]\. Try df\.drop_duplicates"):
        GroupedDataset.from_dataframe(table, y="y", x="t", group="g")


def test_values_that_are_not_finite_end_alike_with_and_without_a_representation():
    batch = data()[:]
    batch.y[0, 0, 0] = NAN
    network = RepresentationNetwork(MLPFeatures([3], 4), MLPFeatures([4], 2), "mean")
    represented = SVGPVAE(*_networks(), 3, num_factors=2, num_inducing=4, representation=network)
    with pytest.raises(NonFiniteError, match="representation: expected finite group vectors"):
        represented.terms(batch)
    for model in (make_model(), represented):
        with pytest.raises(DataError, match=r"batch\.y: expected finite values"):
            model.infer(batch)
    lazy = LazyDataset(data(), lambda b: torch.where(b.group_index.view(-1, 1, 1) == 2, NAN, b.y))
    for model in (make_model(), represented):
        with pytest.raises(NonFiniteError, match=r"in the batch of groups"):
            fit(model, lazy, **QUIET)


def _has_density(site):
    return site["type"] == "sample" and type(site["fn"]).__name__ != "_Subsample"


@pytest.mark.parametrize("kind", ["FGPVAE", "CVAE", "VAE", "SVGPVAE", "CorrelatedFGPVAE", "GPVAE"])
def test_every_log_density_of_a_program_has_one_dtype(kind):
    model, batch = CALLS[kind](), data()[:]
    guide = pyro.poutine.trace(model.guide).get_trace(batch)
    program = pyro.poutine.trace(pyro.poutine.replay(model.model, guide)).get_trace(batch)
    for trace in (guide, program):
        trace.compute_log_prob()
        assert {site["log_prob"].dtype for site in trace.nodes.values() if _has_density(site)} == {torch.float64}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Pyro advises Trace_ELBO for programs without enumeration
        loss = pyro.infer.TraceEnum_ELBO(max_plate_nesting=1).loss(model.model, model.guide, batch)
    assert math.isfinite(loss)


def test_a_context_is_checked_once(monkeypatch):
    conditioned("new")
    looked, finite = [], check.finite
    monkeypatch.setattr(check, "finite", lambda v, name, *a, **o: looked.append(name) or finite(v, name, *a, **o))
    conditioned("new").predict(XNEW, context())
    assert sum(name.endswith(".y") for name in looked) == 1
