"""Operations of the library that `device_check` runs on the CPU and on another device.

Every case builds its parameters and inputs on the CPU from one seed, moves them to the device, and returns named
results. Random numbers are drawn on the CPU too (`SharedNoise`), so that two devices give the same results.
"""

import copy
import math
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import gpytorch
import pyro
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils.data import DataLoader

from benchmarks.systems import Summarize
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
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.feature_maps import LinearFeatures, NystromFeatures, PeriodicFeatures
from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE
from fgp_gpytorch.nets import (
    ConvDecoder,
    ConvEncoder,
    FourierFeatures,
    MLPDecoder,
    MLPEncoder,
    MLPFeatures,
    RepresentationNetwork,
)
from fgp_gpytorch.objectives import Objective
from fgp_gpytorch.prior import ChannelBlock, exact_gp

Results = dict[str, Any]
Case = Callable[[torch.device], Results]

SIZES = (3, 5, 2, 4, 6, 2, 4, 5)
CHANNELS = 4


class SharedNoise(TorchFunctionMode):
    """Draws random numbers on the CPU and moves them to the device that was asked for."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run a function of PyTorch, or its CPU form if it draws."""
        kwargs = dict(kwargs or {})
        if func is torch.randint:
            device = kwargs.pop("device", None)
            return func(*args, **kwargs).to(device or "cpu")
        if func in (torch.randn, torch.rand):  # in float64, so that two precisions have the same numbers
            device, dtype = kwargs.pop("device", None), kwargs.pop("dtype", None)
            drawn = func(*args, **kwargs, dtype=torch.float64)
            return drawn.to(device or "cpu", dtype or torch.get_default_dtype())
        if func in (torch.randn_like, torch.rand_like):
            draw = torch.randn if func is torch.randn_like else torch.rand
            return draw(args[0].shape, dtype=torch.float64).to(args[0].device, kwargs.get("dtype") or args[0].dtype)
        if func in (torch.normal, torch.bernoulli) and isinstance(args[0], Tensor):
            return func(*(value.cpu() if isinstance(value, Tensor) else value for value in args), **kwargs).to(
                args[0].device
            )
        if func in (Tensor.normal_, Tensor.uniform_):
            drawn = torch.empty(args[0].shape, dtype=args[0].dtype)
            return args[0].copy_(func(drawn, *args[1:], **kwargs))
        return func(*args, **kwargs)


def run(case: Case, device: torch.device) -> Results:
    """Run a case with its own seed and an empty Pyro parameter store. The global generators are restored."""
    with torch.random.fork_rng(), SharedNoise():
        torch.manual_seed(0)
        pyro.clear_param_store()
        try:
            return case(device)
        finally:
            pyro.clear_param_store()


# Priors.


def periodic(*batch_shape: int) -> PeriodicKernel:
    """The paper's kernel of an angle in radians."""
    kernel = PeriodicKernel(batch_shape=torch.Size(batch_shape))
    kernel.period_length, kernel.lengthscale = 2 * math.pi, 1.0
    kernel.raw_period_length.requires_grad_(False)
    return kernel


def local_blocks() -> list[ChannelBlock]:
    kernel = ScaleKernel(RBFKernel(batch_shape=torch.Size([2]), lengthscale_prior=gpytorch.priors.GammaPrior(3.0, 2.0)))
    kernel.outputscale = 1.7
    return [
        LocalChannels(2, kernel, gpytorch.means.ConstantMean(batch_shape=torch.Size([2]))),
        LocalChannels(1, periodic(), FourierMean(2)),
        LocalChannels(1, ScaleKernel(MaternKernel(1.5)) + gpytorch.kernels.ConstantKernel()),
    ]


def global_blocks() -> list[ChannelBlock]:
    block = GlobalChannels(3, torch.tensor([0.6, 1.0, 2.0]), gpytorch.means.ConstantMean())
    block.raw_variance.requires_grad_()
    return [block, GlobalChannels(1)]


def coregionalized_blocks() -> list[ChannelBlock]:
    points = torch.linspace(0, 6, 7, dtype=torch.float64)
    return [
        CoregionalizedChannels(2, 3, PeriodicFeatures(periodic()), FourierMean(2)),
        CoregionalizedChannels(2, 2, NystromFeatures(MaternKernel(2.5), points)),
    ]


def all_blocks() -> list[ChannelBlock]:
    return [*local_blocks()[1:], *global_blocks()[1:], *coregionalized_blocks()[:1], IndependentChannels(1)]


def state_space_blocks() -> list[ChannelBlock]:
    kernel = ScaleKernel(MaternKernel(1.5, batch_shape=torch.Size([2])), batch_shape=torch.Size([2]))
    kernel += gpytorch.kernels.ConstantKernel()
    return [LocalChannels(2, kernel, FourierMean(2), inference="state_space")]


def low_rank_blocks() -> list[ChannelBlock]:
    kernel = ScaleKernel(periodic()) + gpytorch.kernels.LinearKernel()
    return [LocalChannels(2, kernel, FourierMean(2), inference="low_rank")]


def inducing_blocks() -> list[ChannelBlock]:
    kernel, points = ScaleKernel(MaternKernel(2.5)), torch.linspace(0, 6, 5)
    return [LocalChannels(2, kernel, FourierMean(2), inference="inducing", inducing_points=points)]


def effects() -> list[torch.nn.Module]:
    """Effects that all groups share."""
    return [LinearFeatures(), NystromFeatures(RBFKernel(), torch.linspace(0, 6, 4))]


PRIORS: dict[str, Callable[[torch.dtype], FactorizedGPPrior]] = {
    "local": lambda dtype: FactorizedGPPrior(local_blocks(), dtype),
    "state space": lambda dtype: FactorizedGPPrior(state_space_blocks(), dtype),
    "low rank": lambda dtype: FactorizedGPPrior(low_rank_blocks(), dtype),
    "inducing points": lambda dtype: FactorizedGPPrior(inducing_blocks(), dtype),
    "global": lambda dtype: FactorizedGPPrior(global_blocks(), dtype),
    "coregionalized": lambda dtype: FactorizedGPPrior(coregionalized_blocks(), dtype),
    "independent": lambda dtype: FactorizedGPPrior([IndependentChannels(CHANNELS)], dtype),
    "shared effects": lambda dtype: FactorizedGPPrior([*local_blocks()[:1], GlobalChannels(1)], dtype, effects()),
    "all blocks": lambda dtype: FactorizedGPPrior(all_blocks(), dtype),
}


def pseudo_observations(groups: int, members: int, channels: int, ragged: bool = True) -> dict[str, Any]:
    """Features in [0, 2 pi), means, variances and a mask of ragged groups, on the CPU, float64."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.rand(*shape, generator=generator, dtype=torch.float64)

    sizes = torch.randint(1, members + 1, (groups,), generator=generator)
    return {
        "x": 2 * math.pi * draw(groups, members, 1),
        "mean": 4 * draw(groups, members, channels) - 2,
        "variance": 0.05 + draw(groups, members, channels),
        "mask": torch.arange(members) < sizes.unsqueeze(-1) if ragged else None,
        "x_new": 2 * math.pi * draw(groups, 3, 1),
    }


def prior_case(
    make: Callable[[torch.dtype], FactorizedGPPrior],
    device: torch.device,
    dtype: torch.dtype = torch.float64,
    groups: int = 7,
    members: int = 6,
    whole: bool = True,
) -> Results:
    """Every answer of a factorized prior and its posterior, and the gradients. `whole` adds joint covariances."""
    prior = make(dtype).to(device)
    values = pseudo_observations(groups, members, prior.num_channels)
    x, mask, x_new = (values[name].to(device) for name in ("x", "mask", "x_new"))
    mean, variance = (values[name].to(device).requires_grad_() for name in ("mean", "variance"))
    posterior = prior.posterior(x, mean, variance, mask)
    prediction = posterior.predict(x_new)
    paths = posterior.rsample_paths(x_new, [2])
    results: Results = {
        "mean": posterior.mean,
        "variance": posterior.variance,
        "kl": posterior.kl,
        "log evidence": posterior.log_evidence,
        "predicted mean": prediction.mean,
        "predicted variance": prediction.variance,
        "predicted draws": prediction.rsample([2]),
        "draws": posterior.rsample([2]),
        "draws of marginals": posterior.rsample([2], marginals=True),
        "paths": torch.cat(paths, dim=-2),
        "prior draws": prior.sample(x, [2]),
        "log hyperprior": prior.log_hyperprior().to(device),  # on the CPU if the prior has no parameters
    }
    results |= {f"kl {name}": value for name, value in posterior.kl_terms._asdict().items()}
    if whole:
        results["kl of channels"] = posterior.kl_channels.sum(-1)
        results["joint covariance"] = posterior.distribution().covariance_matrix
        results["prior covariance"] = prior(x).covariance_matrix
        results["whitened draws"] = torch.cat([q.rsample().flatten(1) for q in posterior.whitened_distributions()], 1)
        results["without mask"] = prior.posterior(x, mean, variance).mean
        for position, block in enumerate(prior.blocks):
            if block.couples_channels:
                continue
            kernel = block.kernel_on_rows()
            rows = torch.cat([torch.arange(len(x), device=device)[:, None, None].expand(*x.shape).to(x), x], -1)
            results[f"kernel {position}"] = kernel(rows.to(dtype).flatten(0, 1)).to_dense()
    named = {"mean": mean, "variance": variance} | {n: p for n, p in prior.named_parameters() if p.requires_grad}
    values_only = ("kl", "log evidence", "predicted mean", "predicted variance", "log hyperprior")
    for title, chosen in {"gradient": values_only, "gradient through draws": ("draws", "paths")}.items():
        total = torch.stack([results[name].square().sum() for name in chosen]).sum()
        gradients = torch.autograd.grad(total, list(named.values()), allow_unused=True, retain_graph=True)
        results |= {f"{title}: {n}": g for n, g in zip(named, gradients, strict=True) if g is not None}
    return {name: value.detach() for name, value in results.items()}


def kernels_case(device: torch.device) -> Results:
    """The grouped kernels on an unsorted table: products, solves, determinants, entries."""
    generator = torch.Generator().manual_seed(2)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    table = torch.stack([group.double(), torch.rand(len(group), generator=generator).double()], -1)
    table = table[torch.randperm(len(group), generator=generator)].to(device)
    new = table[::3] + torch.tensor([0.0, 0.1], dtype=torch.float64, device=device)
    results: Results = {}
    for kernel in (LocalKernel(ScaleKernel(RBFKernel())), GlobalKernel(), LocalKernel(RBFKernel()) + GlobalKernel()):
        kernel = kernel.double().to(device)
        name = type(kernel).__name__
        noisy = kernel(table).evaluate_kernel().add_diagonal(torch.full((len(table),), 0.1).to(table))
        results |= {
            f"{name} covariance": kernel(table).to_dense(),
            f"{name} diagonal": kernel(table, diag=True),
            f"{name} cross covariance": kernel(table, new).to_dense(),
            f"{name} entries": kernel(table)[3:7, ::2].to_dense(),
            f"{name} solve": noisy.solve(table),
            f"{name} log determinant": noisy.logdet(),
        }
    return {name: value.detach() for name, value in results.items()}


def exact_gp_case(device: torch.device) -> Results:
    """The bridge to GPyTorch's ExactGP."""
    block = FactorizedGPPrior([LocalChannels(2, ScaleKernel(RBFKernel()))]).to(device).blocks[0]
    values = pseudo_observations(5, 4, 2)
    x, mean, variance, mask, x_new = (values[n].to(device) for n in ("x", "mean", "variance", "mask", "x_new"))
    gp = exact_gp(block, x, mean, variance, mask)
    loss = gpytorch.mlls.ExactMarginalLogLikelihood(gp.likelihood, gp)(gp(gp.train_inputs[0][0]), gp.train_targets)
    loss.sum().backward()
    gradients = {f"gradient of {n}": p.grad for n, p in block.named_parameters() if p.grad is not None}
    gp.eval()
    answer = gp.multitask(x_new)
    return {"evidence": loss.detach(), "mean": answer.mean.detach(), "variance": answer.variance.detach(), **gradients}


# Models.


def make_data(y_shape: tuple[int, ...] = (5,), gaps: bool = False, unknown: bool = False) -> GroupedDataset:
    """Smooth curves over an angle, one shift per group, y in (0, 1), float64, on the CPU."""
    generator = torch.Generator().manual_seed(3)
    group = torch.repeat_interleave(torch.arange(len(SIZES)), torch.tensor(SIZES))
    x = 2 * math.pi * torch.rand(len(group), 1, generator=generator, dtype=torch.float64)
    shift = torch.randn(len(SIZES), generator=generator, dtype=torch.float64)[group]
    elements = math.prod(y_shape)
    y = torch.sin(x + torch.linspace(0, 3, elements, dtype=torch.float64)) + shift[:, None]
    y = torch.sigmoid(y + 0.1 * torch.randn(y.shape, generator=generator, dtype=torch.float64)).reshape(-1, *y_shape)
    y_mask = torch.rand(y.shape, generator=generator) > 0.25 if gaps else None
    x_mask = torch.rand(x.shape, generator=generator) > 0.4 if unknown else None
    return GroupedDataset(y, x, group, y_mask, x_mask)


def encoder(features: int = 0, takes_observed: bool = False) -> MLPEncoder:
    return MLPEncoder([5], CHANNELS, (16,), features, takes_observed)


def decoder(features: int = 0) -> MLPDecoder:
    return MLPDecoder(CHANNELS, [5], (16,), features)


def plain_prior() -> FactorizedGPPrior:
    return FactorizedGPPrior([LocalChannels(2, periodic(2)), GlobalChannels(2)])


def representation() -> RepresentationNetwork:
    return RepresentationNetwork(MLPFeatures([5], 8), MLPFeatures([8], 3), "attention")


def images_model() -> FGPVAE:
    return FGPVAE(ConvEncoder(CHANNELS), ConvDecoder(CHANNELS), plain_prior(), GaussianLikelihood("fixed", 0.02))


GROUPS = len(SIZES)
MODELS: dict[str, Callable[[], GroupedVAE]] = {
    "FGPVAE": lambda: FGPVAE(encoder(), decoder(), plain_prior(), member_dropout=0.3),
    "FGPVAE, gaps": lambda: FGPVAE(encoder(0, True), decoder(), plain_prior(), GaussianLikelihood("learned")),
    "FGPVAE, all blocks": lambda: FGPVAE(
        MLPEncoder([5], 6, (16,)), MLPDecoder(6, [5], (16,)), FactorizedGPPrior(all_blocks()),
        DiagonalGaussianLikelihood([5]), (0.0, 1.0),
    ),
    "FGPVAE, state space, shared effects": lambda: FGPVAE(
        encoder(), decoder(), FactorizedGPPrior([*state_space_blocks(), GlobalChannels(2)], effects=effects())
    ),
    "FGPVAE, Bernoulli": lambda: FGPVAE(encoder(), decoder(), plain_prior(), BernoulliLikelihood()),
    "FGPVAE, images": images_model,
    "VAE": lambda: VAE(encoder(), decoder(), CHANNELS),
    "CVAE": lambda: CVAE(encoder(2), decoder(2), FactorizedGPPrior([GlobalChannels(CHANNELS)]), FourierFeatures()),
    "LatentAngleFGPVAE": lambda: LatentAngleFGPVAE(encoder(), decoder(), plain_prior(), MLPFeatures([5], 2)),
    "GPVAE": lambda: GPVAE(encoder(), decoder(), CHANNELS, GROUPS, 3),
    "GPVAE, representation": lambda: GPVAE(encoder(), decoder(), CHANNELS, None, 3, representation=representation()),
    "SVGPVAE": lambda: SVGPVAE(encoder(), decoder(), CHANNELS, GROUPS, 3, num_inducing=6),
    "SVGPVAE, representation": lambda: SVGPVAE(
        encoder(), decoder(), CHANNELS, None, 3, num_inducing=6, representation=representation()
    ),
    "CorrelatedFGPVAE": lambda: CorrelatedFGPVAE(
        encoder(), decoder(), [LocalChannels(2, periodic())], 2, num_groups=GROUPS, num_factors=3
    ),
    "CorrelatedFGPVAE, representation": lambda: CorrelatedFGPVAE(
        encoder(), decoder(), [LocalChannels(2, periodic())], 2, num_factors=3, representation=representation()
    ),
}  # fmt: skip


def data_of(name: str) -> GroupedDataset:
    """The data that a model of `MODELS` takes."""
    return make_data((1, 28, 28) if "images" in name else (5,), "gaps" in name, name == "LatentAngleFGPVAE")


def start(model: GroupedVAE, data: GroupedDataset) -> None:
    """Start group vectors and inducing points from the data, as training does."""
    if isinstance(model, SVGPVAE) and model.representation is not None:
        model.initialize_inducing(data)
    elif model.prior.couples_groups and model.representation is None:
        model.initialize_vectors(data)


def model_case(name: str, device: torch.device) -> Results:
    """Losses, gradients, the Pyro pair, inference and generation of a model, in float64."""
    model, data = MODELS[name]().double(), data_of(name)
    start(model, data)  # on the CPU: two devices may give principal components of another sign
    model = model.to(device)
    batch = data[:].to(device)
    results: Results = {}
    objectives = [ELBO(num_particles=2)]
    if isinstance(model.likelihood, GaussianLikelihood) and not list(model.likelihood.parameters()):
        objectives.append(GECO(0.1))
    for objective in objectives:
        kind = type(objective).__name__
        model.train().zero_grad()
        reported = objective.report(objective.terms(model, model, batch))
        results |= {f"{kind} {n}": torch.stack([part.double() for part in pair]) for n, pair in reported.items()}
        results[f"{kind} loss"] = objective.loss_and_grads(model.model, model.guide, batch)
        results |= {
            f"{kind} gradient of {n}": p.grad.clone() for n, p in model.named_parameters() if p.grad is not None
        }
    terms = model.terms(batch)
    results |= {f"terms {n}": value.detach() for n, value in terms._asdict().items() if isinstance(value, Tensor)}
    model.eval()
    results["Pyro loss of draws"] = pyro.infer.Trace_ELBO().loss(model.model, model.guide, batch)
    with torch.no_grad():
        results["Pyro draw"] = model.model(batch, observe=False)
    results |= {f"infer: {n}": value for n, value in inference(model, batch).items()}
    if isinstance(model, LatentAngleFGPVAE):
        angles = model.infer_angles(batch)
        results |= {"angles": angles.mean, "log q of an angle": angles.log_prob(torch.ones_like(angles.mean))}
        results["drawn angles"] = angles.sample([2])
    if isinstance(model, GPVAE):
        model.summary = model.summarize(data, batch_size=3)
        results["summarized loss"] = ELBO().loss(model, model, data[:4].to(device))
        model.summary = None
    if model.prior.couples_groups:
        results |= conditioned(model, data, device)
    return {name: value.detach() if isinstance(value, Tensor) else value for name, value in results.items()}


@torch.no_grad()
def inference(model: GroupedVAE | ConditionedVAE, batch: GroupedBatch) -> Results:
    """Posterior, reconstructions and generated members of a batch."""
    x_new = torch.linspace(0.1, 6, 3, dtype=batch.x.dtype, device=batch.device).expand(batch.num_groups, -1)[..., None]
    results: Results = {
        "generated": model.generate(x_new, batch),
        "generated from draws": model.generate(x_new, batch, [2]),
        "predicted variance": model.predict(x_new, batch).variance,
    }
    if isinstance(model, ConditionedVAE):
        return results
    posterior = model.infer(batch)
    results |= {
        "mean": posterior.mean,
        "variance": posterior.variance,
        "kl": posterior.kl,
        "draws": posterior.rsample([2]),
        "joint covariance": posterior.distribution().covariance_matrix,
        "reconstructed": model.reconstruct(batch),
        "encoded": model.encode(model.prepare(batch)).mean,
    }
    if not model.prior.couples_groups:
        results["drawn new groups"] = model.generate(x_new)
    return results


def conditioned(model: Any, data: GroupedDataset, device: torch.device) -> Results:
    """A coupled model conditioned on its data, made on the device, and made on the CPU and moved."""
    batch = data[:].to(device)
    results = {f"conditioned: {n}": v for n, v in inference(model.condition_on(data, context="seen"), batch).items()}
    moved = copy.deepcopy(model).to("cpu").condition_on(data, context="seen").to(device)
    results |= {f"conditioned, then moved: {n}": v for n, v in inference(moved, batch).items()}
    if model.representation is not None:
        new = inference(model.condition_on(data.subset([0, 1, 2]), context="new"), data[3:].to(device))
        results |= {f"conditioned on other groups: {n}": v for n, v in new.items()}
    return results


def saving_case(device: torch.device) -> Results:
    """Files written on the device, read on the CPU and moved back."""
    results: Results = {}
    with tempfile.TemporaryDirectory() as folder:
        for name, make in MODELS.items():
            model, data = make().to(device), data_of(name)
            path = Path(folder) / "model.pt"
            model.save(path)
            loaded = type(model).load(path)
            state = model.state_dict()
            for key, value in loaded.state_dict().items():
                assert value.device.type == "cpu", f"{name}: load gave {key} on {value.device}"
                assert torch.equal(value, state[key].cpu()), f"{name}: {key} changed by saving"
            batch = data[:].to(device)
            results[name] = loaded.to(device).infer(batch).mean.detach()
            results[f"{name}, copied"] = copy.deepcopy(model).eval().infer(batch).mean.detach()
    return results


# Data, metrics, figures.


def data_case(device: torch.device) -> Results:
    """A data set whose tensors are on the device: batches, parts, splits."""
    on_cpu = make_data(gaps=True)
    y, x, group = on_cpu.flat()
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(4))
    y_mask = on_cpu.members.y_mask
    assert y_mask is not None
    device_rows = [value[order].to(device) for value in (y, x, group, y_mask)]
    data = GroupedDataset(*device_rows)
    parts = {
        "whole": data[:],
        "one": data[2],
        "listed": data[[3, 1]],
        "by a mask": data[torch.arange(len(data)) % 2 == 0],
        "subset": data.subset([4, 0])[:],
        "selected": data.select(data.features().x[:, 0] < 3)[:],
        "aligned": data.subset([1, 5]).align(data)[:],
        "lazy": LazyDataset(GroupedDataset(*device_rows[:3]), _made)[:],
        "lazy, in memory": LazyDataset(GroupedDataset(*device_rows[:3]), _made).in_memory()[:],
        "joined": GroupedBatch.cat([data[:3], data[3:]]),
        "moved": on_cpu[:].to(device, non_blocking=True),
        "from tensors": GroupedBatch.from_tensors(data[:].y, data[:].x, data[:].mask),
    }
    parts |= {f"loaded {i}": batch for i, batch in enumerate(DataLoader(data, batch_size=3))}
    for name, held_out in {
        "last": HeldOut.last(data), "after": HeldOut.after(data, 3.0), "random": HeldOut.random(data, 0.4),
        "groups": HeldOut.groups(data, [0, 3]),
    }.items():  # fmt: skip
        found = held_out[:]
        parts |= {f"context of {name}": found.context, f"aligned context of {name}": held_out.align(data)[:].context}
        parts[f"targets of {name}"] = GroupedBatch.from_tensors(found.y_new, found.x_new)
    fields = ("y", "x", "mask", "group_index")
    return {f"{name}: {field}": getattr(batch, field) for name, batch in parts.items() for field in fields}


def _made(batch: GroupedBatch) -> Tensor:
    return torch.cat([batch.y, batch.x.sin()], dim=-1)


def metrics_case(device: torch.device) -> Results:
    """Metrics of a model on the device, of data on the CPU and on the device, and of tensors there."""
    model, data = MODELS["FGPVAE"]().double().to(device).eval(), make_data()
    y, x, group = (value.to(device) for value in data.flat())
    results: Results = {}
    for place, chosen in {"CPU": data, "device": GroupedDataset(y, x, group)}.items():
        held_out = HeldOut.random(chosen, 1)
        found = {
            "error": metrics.held_out_mse(model, held_out),
            "error of draws": metrics.held_out_mse(model, held_out, sample=True, num_samples=3),
            "calibration of draws": metrics.held_out_calibration(model, held_out, num_samples=19),
            "error by size of context": metrics.mse_by_context_size(model, held_out, [1], num_subsets=2),
            "swapped": metrics.swap_errors(model, held_out),
            "disentanglement": metrics.disentanglement(model, chosen, 2 * math.pi),
            "disentanglement, alone": metrics.disentanglement(model, chosen, 2 * math.pi, alone=True),
            "means": metrics.latent_means(model, chosen).mean,
        }
        results |= {f"data on the {place}: {name}": value for name, value in found.items()}
    train = data.subset([0, 1, 2, 3, 4])
    coupled = MODELS["SVGPVAE, representation"]().double().to(device)
    results["error of a conditioned model"] = metrics.held_out_mse(
        coupled.condition_on(train), HeldOut.random(data.subset([5, 6, 7]), 1)
    )
    z = model.infer(data[:].to(device)).mean[data[:].mask.to(device)].detach()
    draws = torch.stack([z + i for i in range(-20, 20)])
    half = torch.arange(len(z), device=device) % 2 == 0
    both = torch.isin(group, group[half]) & ~half
    results |= {
        "ridge": metrics.ridge_r2(z, x.sin(), group),
        "centroids": metrics.centroid_accuracy(z[half], group[half], z[both], group[both]),
        "bins": metrics.discretize(z),
        "information": metrics.mutual_information(metrics.discretize(z), group),
        "gap": metrics.mutual_information_gap(z, group),
        "CRPS": metrics.crps_of_samples(draws, z),
        "interval": torch.stack(metrics.central_interval(draws, 0.9)),
        "log mean exp": metrics.log_mean_exp(draws),
    }
    paths = torch.stack([z[:3] + i for i in range(len(SIZES))])
    at = torch.arange(len(z), device=device) % 3
    results["paths"] = metrics.nearest_path_accuracy(paths, z, at, group)
    return {
        n: list(v) if isinstance(v, tuple) else list(v.values()) if isinstance(v, dict) else v
        for n, v in results.items()
    }


def plots_case(device: torch.device) -> Results:
    """Figures of tensors and models on the device."""
    model, data = MODELS["FGPVAE"]().double().to(device).eval(), make_data()
    images = torch.rand(3, 1, 4, 4).to(device)
    x = torch.linspace(0, 6, 20, dtype=torch.float64)
    plots.image_rows([("images", images), ("colours", images.expand(-1, 3, -1, -1))])
    for context in (data[[1]].to(device), data.subset([1])):
        for points in (x, x.to(device)):
            plots.latent_paths(model, context, points)
    return {}


# Training.


def trainer_options(device: torch.device) -> dict[str, Any]:
    """Lightning's options for a device."""
    return {"accelerator": "gpu" if device.type == "cuda" else device.type, "devices": 1, "progress": False}


def fit_case(
    device: torch.device,
    name: str = "FGPVAE",
    objective: Callable[[], Objective] = ELBO,
    validation: str | None = None,
    on_device: bool = False,
    summarized: bool = False,
    **options: Any,
) -> Results:
    """Two epochs of `fit`. The results are its history and the parameters."""
    model, data = MODELS[name](), data_of(name)
    y, x, group = data.flat()
    data = GroupedDataset(
        y.float(), x, group, data.members.y_mask, x.isfinite() if name == "LatentAngleFGPVAE" else None
    )
    if on_device:
        data = GroupedDataset(*(value.to(device) for value in data.flat()))
        model.to(device)
    before = next(model.parameters()).device
    start(model, data)
    held_out = HeldOut.random(data, 1) if validation == "members" else data if validation == "groups" else None
    if summarized:
        options["callbacks"] = [Summarize(data)]
    result = fit(
        model, data, objective=objective(), validation=held_out,
        **{"epochs": 2, "batch_size": 3, "seed": 0, "folder": None, **trainer_options(device), **options},
    )  # fmt: skip
    assert len(result.history) == 2, f"{len(result.history)} epochs in the history"
    after = next(model.parameters()).device
    assert after == before, f"fit moved the model from {before} to {after}"
    history = {f"history: {n}": torch.tensor(v.to_numpy()) for n, v in result.history.items() if n != "epoch"}
    return history | {f"trained {n}": p.detach() for n, p in model.named_parameters()}


def resume_case(device: torch.device) -> Results:
    """A run that is cut after one epoch and resumed, and the checkpoint read on the CPU."""
    with tempfile.TemporaryDirectory() as folder:
        fit_options: dict[str, Any] = {"folder": folder, "seed": 0, "batch_size": 3, **trainer_options(device)}
        data = make_data()
        data = GroupedDataset(data.flat().y.float(), *data.features())
        fit(MODELS["FGPVAE"](), data, objective=GECO(0.1), epochs=1, **fit_options)
        again, objective = MODELS["FGPVAE"](), GECO(0.1)
        result = fit(again, data, objective=objective, epochs=2, resume=True, **fit_options)
        loaded = FGPVAE.load(result.last_checkpoint)
        for key, value in loaded.state_dict().items():
            assert torch.equal(value, again.state_dict()[key].cpu()), f"{key} differs in the checkpoint"
    return {"mse": result.history["mse"].tolist(), "multiplier": objective.multiplier}


FITS: dict[str, Case] = {
    "fit": fit_case,
    "fit, GECO and held-out members": partial(fit_case, objective=partial(GECO, 0.1), validation="members"),
    "fit, cosine, clipping, held-out groups": partial(
        fit_case, validation="groups", lr_schedule="cosine", gradient_clip=1.0
    ),
    "fit, data on the device": partial(fit_case, on_device=True, validation="members"),
    "fit, gaps": partial(fit_case, name="FGPVAE, gaps"),
    "fit, LatentAngleFGPVAE": partial(fit_case, name="LatentAngleFGPVAE"),
    "fit, GPVAE": partial(fit_case, name="GPVAE", batch_size=GROUPS),
    "fit, GPVAE, minibatches": partial(fit_case, name="GPVAE", summarized=True),
    "fit, SVGPVAE": partial(fit_case, name="SVGPVAE", validation="groups"),
    "fit, CorrelatedFGPVAE, representation": partial(fit_case, name="CorrelatedFGPVAE, representation"),
    "fit, cut and resumed": resume_case,
}

OPERATIONS: dict[str, Case] = {
    **{f"prior, {name}": partial(prior_case, make) for name, make in PRIORS.items()},
    "kernels on tables": kernels_case,
    "exact_gp": exact_gp_case,
    **{f"model, {name}": partial(model_case, name) for name in MODELS},
    "save and load": saving_case,
    "data": data_case,
    "metrics": metrics_case,
    "plots": plots_case,
}
LONG = ("save and load",)  # the quick check leaves it out
