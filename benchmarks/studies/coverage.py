"""How often the intervals of each prior contain the truth, on data that are drawn from the prior itself.

The latents of every replicate are a draw of the prior at random x. The pseudo-observations are the latents plus
Gaussian noise of known variances, so they are exact: encoder and decoder play no part. Groups are ragged. Two members
of each group are predicted from its others.

- *Fixed*: the prior with the hyperparameters (loadings, vectors) that the data were drawn with.
- *Learned*: the maximum of the evidence times the hyperpriors, by L-BFGS, on the same groups. What is learned starts
  at other values. Only learned group vectors start at the truth, so that no other optimum is counted.
"""

import math
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from gpytorch.kernels import Kernel, MaternKernel, RBFKernel, ScaleKernel
from torch import Tensor, nn

from benchmarks.records import Key, Plan, Record
from benchmarks.study import Study
from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels
from fgp_gpytorch.coupled import CorrelatedPrior, GroupInputs, InducingPrior, ProductPrior, unit_length
from fgp_gpytorch.feature_maps import PeriodicFeatures, angle_kernel
from fgp_gpytorch.gaussian import low_rank_factor, row_products
from fgp_gpytorch.prior import LatentPrior, Posterior

CHANNELS, CONTEXT, HELD_OUT = 4, 6, 2  # a group has 2 to 6 observed members
QUANTILES = {"50": 0.6744897501960817, "90": 1.6448536269514722}
REPLICATES = {60: 20, 200: 10, 1000: 5}
ITERATIONS = 150
# what is learned
NOTHING, VARIANCE, LOADINGS, KERNEL = "nothing", "variance", "loadings", "kernel"
BOTH, LOADINGS_AND_KERNEL = "kernel and vectors", "loadings and kernel"


class Data(NamedTuple):
    """Groups with the truth at all members. The last `HELD_OUT` members are predicted."""

    x: Tensor  # (G, Q, 1)
    truth: Tensor  # (G, Q, L)
    mean: Tensor
    variance: Tensor
    mask: Tensor  # (G, Q), True where a member is observed


class Latents(nn.Module):
    """A prior, and the vectors of its groups if it couples groups."""

    def __init__(self, prior: LatentPrior, vectors: Tensor | None = None, learn_vectors: bool = False) -> None:
        super().__init__()
        self.prior = prior
        self.vectors = None if vectors is None else nn.Parameter(vectors.clone(), requires_grad=learn_vectors)

    @torch.no_grad()
    def draw(self, x: Tensor) -> Tensor:
        """The latents of one data set at x (G, Q, 1), (G, Q, L)."""
        prior = self.prior
        if isinstance(prior, FactorizedGPPrior):
            return prior.sample(x)
        assert self.vectors is not None
        vectors = unit_length(self.vectors)
        if isinstance(prior, CorrelatedPrior):
            shared = vectors @ torch.randn(vectors.shape[-1], prior.num_global_channels, dtype=x.dtype)
            return torch.cat([prior.local.sample(x), shared.unsqueeze(1).expand(*x.shape[:2], -1)], dim=-1)
        if isinstance(prior, ProductPrior):
            z = random_function(prior.root(vectors, x))
            return z + prior.noise.sqrt() * torch.randn_like(z)
        assert isinstance(prior, InducingPrior)  # the complete GP, which the inducing points approximate
        return random_function(row_products(vectors.unsqueeze(-2), PeriodicFeatures(prior.kernel)(x)))

    def posterior(self, data: Data) -> Posterior:
        """Of the observed members."""
        x, mean, variance, mask = (t[:, :CONTEXT] for t in (data.x, data.mean, data.variance, data.mask))
        if self.vectors is None:
            return self.prior.condition(x, mean, variance, mask)
        inputs = GroupInputs(unit_length(self.vectors), x, mean, variance, mask)
        if isinstance(self.prior, ProductPrior):
            return self.prior.condition(best_mean_field(self.prior, inputs), predict_unobserved=False)
        return self.prior.condition(inputs)

    def objective(self, data: Data) -> Tensor:
        """The ELBO of the pseudo-observations plus the log hyperprior. For an exact q the ELBO is the log evidence."""
        q = self.posterior(data)
        mean, variance = (t[:, :CONTEXT][data.mask[:, :CONTEXT]] for t in (data.mean, data.variance))
        q_mean, q_variance = (t[data.mask[:, :CONTEXT]] for t in (q.mean, q.variance))
        fit = -0.5 * ((mean - q_mean).square() + q_variance).div(variance).sum()
        return fit - q.kl.sum() + self.prior.log_hyperprior()


def random_function(root: Tensor) -> Tensor:
    """Phi u for one u ~ N(0, I) of each channel: (G, Q, M) to (G, Q, L)."""
    return root @ torch.randn(root.shape[-1], CHANNELS, dtype=root.dtype)


def best_mean_field(prior: ProductPrior, inputs: GroupInputs) -> GroupInputs:
    """The factorized q with the highest ELBO, which a perfect encoder of `GPVAE` returns.

    Its mean is that of the exact posterior given y, its precision 1 / s_i + [(K + alpha I)^-1]_ii.
    """
    mask, alpha = inputs.mask, prior.noise
    root = prior.root(inputs.vectors, inputs.x)[mask]  # shape: (N, M)
    y, s = inputs.mean[mask].mT, inputs.variance[mask].mT  # shape: (L, N)
    u = low_rank_factor(root, 1 / (alpha + s), y).weights
    mean = y - s / (alpha + s) * (y - u @ root.mT)
    gram = torch.eye(root.shape[-1], dtype=root.dtype) + root.mT @ root / alpha
    leverage = (root @ torch.cholesky_inverse(torch.linalg.cholesky(gram)) * root).sum(-1) / alpha
    variance = 1 / (1 / s + (1 - leverage) / alpha)
    new = (torch.ones_like(inputs.mean).masked_scatter(mask.unsqueeze(-1), t.mT) for t in (mean, variance))
    return inputs._replace(**dict(zip(("mean", "variance"), new, strict=True)))


# The priors. `learned` is what is learned, None for the truth. What is learned starts at another value.


def local(kernel: Callable[[], Kernel]) -> Callable[..., Latents]:
    def make(learned: str | None, vectors: Tensor) -> Latents:
        return Latents(FactorizedGPPrior([LocalChannels(CHANNELS, scaled(kernel(), learned))]))

    return make


def scaled(base: Kernel, learned: str | None) -> Kernel:
    base.lengthscale, kernel = 0.7 if learned else 1.5, ScaleKernel(base)
    kernel.outputscale = 1.0 if learned else 2.0
    return kernel


def global_channels(learned: str | None, vectors: Tensor) -> Latents:
    block = GlobalChannels(CHANNELS, variance=1.0 if learned else 2.0)
    block.raw_variance.requires_grad_(bool(learned))
    return Latents(FactorizedGPPrior([block]))


def independent(learned: str | None, vectors: Tensor) -> Latents:
    return Latents(FactorizedGPPrior([IndependentChannels(CHANNELS)]))


def coregionalized(channels: int, factors: int, harmonics: int) -> Callable[..., Latents]:
    def make(learned: str | None, vectors: Tensor) -> Latents:
        features = PeriodicFeatures(angle(learned, LOADINGS_AND_KERNEL), harmonics=harmonics)
        return Latents(FactorizedGPPrior([CoregionalizedChannels(channels, factors, features)]))

    return make


def angle(learned: str | None, *labels: str) -> Kernel:
    """The kernel of an angle, learned if `learned` is one of the labels."""
    kernel = angle_kernel()
    kernel.lengthscale = 2.0 if learned in labels else 1.0
    kernel.raw_lengthscale.requires_grad_(learned in labels)
    return kernel


def correlated(learned: str | None, vectors: Tensor) -> Latents:
    prior = CorrelatedPrior([LocalChannels(2, scaled(angle_kernel(), learned))], CHANNELS - 2)
    return Latents(prior, vectors, learned == BOTH)


def product(learned: str | None, vectors: Tensor) -> Latents:
    features = PeriodicFeatures(angle(learned, KERNEL, BOTH), harmonics=6)
    return Latents(ProductPrior(CHANNELS, features, noise=0.3 if learned else 0.1), vectors, learned == BOTH)


def inducing(learned: str | None, vectors: Tensor) -> Latents:
    prior = InducingPrior(CHANNELS, vectors.shape[-1], angle(learned, KERNEL, BOTH), num_inducing=48)
    steps = torch.arange(48, dtype=vectors.dtype)
    turns = 2 * math.pi * steps * (math.sqrt(5) - 1) / 2  # the golden ratio spreads them evenly
    directions = torch.stack([(math.pi * steps / 48).cos(), (math.pi * steps / 48).sin()], dim=-1)
    prior.set_inducing(directions, (turns % (2 * math.pi)).unsqueeze(-1))
    return Latents(prior, vectors, learned == BOTH)


PRIORS: dict[str, tuple[Callable[..., Latents], tuple[str, ...]]] = {
    "LocalChannels, RBF": (local(RBFKernel), (KERNEL,)),
    "LocalChannels, Matern 3/2": (local(lambda: MaternKernel(nu=1.5)), (KERNEL,)),
    "LocalChannels, periodic": (local(angle_kernel), (KERNEL,)),
    "GlobalChannels": (global_channels, (VARIANCE,)),
    "IndependentChannels": (independent, (NOTHING,)),
    "CoregionalizedChannels, J 4, R 4, M 9": (coregionalized(4, 4, 4), (LOADINGS, LOADINGS_AND_KERNEL)),
    "CoregionalizedChannels, J 4, R 8, M 9": (coregionalized(4, 8, 4), (LOADINGS_AND_KERNEL,)),
    "CoregionalizedChannels, J 8, R 4, M 9": (coregionalized(8, 4, 4), (LOADINGS_AND_KERNEL,)),
    "CoregionalizedChannels, J 4, R 4, M 25": (coregionalized(4, 4, 12), (LOADINGS, LOADINGS_AND_KERNEL)),
    "CorrelatedPrior": (correlated, (KERNEL, BOTH)),
    "InducingPrior": (inducing, (KERNEL, BOTH)),
    "ProductPrior": (product, (KERNEL, BOTH)),
}


def one_replicate(make: Callable[..., Latents], learned: str, groups: int, iterations: int) -> dict[str, Any]:
    """Draw a data set, and return the coverage with the truth and with what is learned."""
    vectors = torch.randn(groups, 2, dtype=torch.float64)
    truth = make(None, vectors)
    data = draw(truth, groups)
    found = {"fixed": coverage(truth, data)}
    if learned != NOTHING:
        model = make(learned, vectors)
        maximize(model, data, iterations)
        found["learned"] = coverage(model, data)
    return found


def draw(truth: Latents, groups: int) -> Data:
    """Latents at random x, and pseudo-observations with variances from 0.05 to 2 of 2 to 6 members."""
    x = 2 * math.pi * torch.rand(groups, CONTEXT + HELD_OUT, 1, dtype=torch.float64)
    z = truth.draw(x)
    variance = 0.05 * 40 ** torch.rand_like(z)
    mean = z + variance.sqrt() * torch.randn_like(z)
    mask = torch.arange(CONTEXT + HELD_OUT) < torch.randint(2, CONTEXT + 1, (groups, 1))
    return Data(x, z, mean, variance, mask)


def maximize(model: Latents, data: Data, iterations: int) -> None:
    """Fit the parameters that are learned."""
    learned = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.LBFGS(
        learned, max_iter=iterations, tolerance_change=1e-6, history_size=20, line_search_fn="strong_wolfe"
    )

    def loss() -> Tensor:
        optimizer.zero_grad()
        loss = -model.objective(data) / len(data.x)
        loss.backward()
        return loss

    optimizer.step(loss)
    with torch.no_grad():
        assert torch.isfinite(model.objective(data)), "L-BFGS left the finite numbers"


@torch.no_grad()
def coverage(model: Latents, data: Data) -> dict[str, float]:
    """The fraction of the held-out latents in the central intervals."""
    predicted = model.posterior(data).predict(data.x[:, CONTEXT:])
    z = (data.truth[:, CONTEXT:] - predicted.mean).abs() / predicted.variance.sqrt()
    return {level: float((z <= quantile).double().mean()) for level, quantile in QUANTILES.items()}


def keys(plan: Plan) -> list[Key]:
    """60 and 1,000 groups; 200 for loadings too, and in place of 1,000 for vectors.

    The quick form has 12 groups, and what is learned first of each prior.
    """
    sizes = {LOADINGS: (60, 200, 1000), LOADINGS_AND_KERNEL: (60, 200, 1000), BOTH: (60, 200)}
    return [
        {"prior": prior, "learned": learned, "groups": groups}
        for prior, (_, variants) in PRIORS.items()
        for learned in (variants[:1] if plan.quick else variants)
        for groups in ((12,) if plan.quick else sizes.get(learned, (60, 1000)))
    ]


def run(key: Key, plan: Plan) -> tuple[dict[str, Any], dict[str, Any]]:
    torch.set_num_threads(1)
    make = PRIORS[key["prior"]][0]
    replicates = 2 if plan.quick else plan.seeds or REPLICATES[key["groups"]]
    iterations, started, runs = 5 if plan.quick else ITERATIONS, time.perf_counter(), []
    for seed in range(replicates):
        torch.manual_seed(seed)
        runs.append(one_replicate(make, key["learned"], key["groups"], iterations))
    result = {way: {level: [r[way][level] for r in runs] for level in QUANTILES} for way in runs[0]}
    return {"replicates": replicates, "iterations": iterations}, result | {"seconds": time.perf_counter() - started}


def say(record: Record) -> str:
    means = [
        f"{way} {', '.join(f'{level} %: {sum(v) / len(v):.3f}' for level, v in record.result[way].items())}"
        for way in ("fixed", "learned")
        if way in record.result
    ]
    return f"{record.key['prior']}, {record.key['learned']}, {record.key['groups']} groups: {'; '.join(means)}"


STUDY = Study(
    "coverage",
    "Coverage of intervals",
    "Latents are drawn from each prior, and the pseudo-observations are latents plus noise of known variances. Two "
    "members of each group are predicted from its 2 to 6 others: how often do the central 50 % and 90 % intervals "
    "contain the truth?",
    keys, run, say,
)  # fmt: skip
