"""The prior of Casale et al. (2018): one Gaussian process over all members of all groups."""

import torch
from gpytorch.constraints import Positive
from gpytorch.distributions import MultitaskMultivariateNormal
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior, LowRankPrediction
from fgp_gpytorch.coupled.coupled_prior import CoupledPrior
from fgp_gpytorch.coupled.group_inputs import GroupInputs, checked_inputs
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.feature_maps import PeriodicFeatures, angle_kernel
from fgp_gpytorch.gaussian import MeanFieldFactor, RepeatedRows, mean_field_factor, row_products
from fgp_gpytorch.prior import KLTerms, Prediction, cached_by_grad_mode


class ProductPrior(CoupledPrior):
    r"""z^l ~ N(0, K + alpha I), K_ij = Sigma_{d_i d_j} k(w_i, w_j), the same in all L channels (paper, Section 2).

    Sigma = D D' has one vector per group (Casale et al. 2018). k is the kernel of the auxiliary features, k = S S'. So
    K = Phi Phi' with Phi(d, w) = D_d (x) S(w), M = m M_S columns. This prior does not factorize over groups.

    Args:
        num_channels: L.
        features: S: a module from x (*b, N, D) to features (*b, N, M_S) with `num_features` M_S, such as
            `PeriodicFeatures` or `NystromFeatures`. It becomes float64. None for the paper's periodic kernel of an
            angle in radians: r = 1 at the start and learned, the period of 2 pi fixed.
        noise: alpha at the start, the variance of each z_i that the kernel does not explain.
        learn_noise: Whether alpha is learned.

    Raises:
        ArgumentError: If a number is out of range, or `features` is not a feature map.
        ShapeError: If the kernel of the features has a batch shape.

    Examples:
        >>> prior = ProductPrior(1, features=LinearFeatures(), noise=0.5)
        >>> vectors = torch.tensor([[1.0, 0.0], [0.6, 0.8]])  # Sigma = D D' has 0.6 beside the diagonal
        >>> root = prior.root(vectors.double(), torch.tensor([[[1.0]], [[2.0]]])).flatten(0, 1)
        >>> root @ root.mT  # Sigma times the linear kernel of x = 1 and 2
        tensor([[1.0000, 1.2000],
                [1.2000, 4.0000]], dtype=torch.float64)
    """

    features: nn.Module
    raw_noise: nn.Parameter
    raw_noise_constraint: Positive

    def __init__(
        self, num_channels: int, features: nn.Module | None = None, noise: float = 0.1, learn_noise: bool = True
    ) -> None:
        super().__init__()
        self.num_channels, self.dtype = check.count(num_channels, "num_channels"), torch.float64
        noise = check.positive(noise, "noise", hint="Try 0.1.")
        features = PeriodicFeatures(angle_kernel()) if features is None else features
        if not isinstance(features, nn.Module) or not hasattr(features, "num_features"):
            raise ArgumentError(
                f"features: expected a module from x (*b, N, D) to features (*b, N, M) with num_features = M, got "
                f"{type(features).__name__}. Try PeriodicFeatures(kernel, period) for a periodic kernel, "
                "NystromFeatures(kernel, points) for any other."
            )
        batch_shape = getattr(getattr(features, "kernel", None), "batch_shape", ())
        if len(batch_shape):
            raise ShapeError(
                f"features: expected a kernel without batch shape, got {list(batch_shape)}: all channels share it. "
                "Try a kernel without batch_shape."
            )
        self.features = features
        self.register_parameter("raw_noise", nn.Parameter(torch.zeros(()), requires_grad=learn_noise))
        self.register_constraint("raw_noise", Positive())
        self.to(self.dtype)
        self.initialize(raw_noise=self.raw_noise_constraint.inverse_transform(torch.tensor(noise, dtype=self.dtype)))

    @property
    def noise(self) -> Tensor:
        """alpha, a scalar."""
        return self.raw_noise_constraint.transform(self.raw_noise)

    def root(self, vectors: Tensor, x: Tensor) -> Tensor:
        """Phi at members x (G, Q, D) of groups with vectors (G, m): (G, Q, M), column (i, j) being D_i S_j.

        Raises:
            ShapeError: If x does not fit the feature map.
        """
        return row_products(vectors.unsqueeze(-2), self.features(x.to(self.dtype)))

    def repeated_rows(self, vectors: Tensor, x: Tensor, mask: Tensor) -> RepeatedRows:
        """Phi at the observed members, each group vector and each distinct x once. Rows in the order of x[mask]."""
        values = x.to(self.dtype)[mask]
        if values.requires_grad:  # finding distinct values has no gradient
            distinct, index = values, torch.arange(len(values), device=values.device)
        else:
            distinct, index = values.unique(dim=0, return_inverse=True)
        return RepeatedRows(vectors, self.features(distinct), mask.nonzero()[:, 0], index)

    def condition(
        self, inputs: GroupInputs, scale: float = 1.0, predict_unobserved: bool = True
    ) -> "MeanFieldPosterior":
        """Take means and variances as the mean-field posterior.

        Args:
            inputs: The groups. Unobserved members get the GP's predictions.
            scale: Must be 1: the KL of a minibatch does not estimate the KL of all groups. See `expand_kl`.
            predict_unobserved: False leaves the values of `inputs` at unobserved members. Training masks these
                members, and the predictions cost O(L N M^2).

        Raises:
            ArgumentError: If `scale` is not 1.
        """
        if scale != 1:
            raise ArgumentError(
                f"scale: expected 1, got {scale!r}: the KL of a minibatch does not estimate the KL of all groups. Try "
                "the whole data set as one batch, or expand_kl(prior, inputs)."
            )
        return MeanFieldPosterior(self, checked_inputs(inputs), predict_unobserved)


class MeanFieldPosterior(CoupledPosterior):
    r"""q(Z) = prod_i N(z_i | mu_i, sigma_i^2): the pseudo-observations themselves, and the GP's predictions from them.

    The predictions are E and Var of z* under q(z) p(z* | z), alpha included. Made by `ProductPrior.condition`.

    Examples:
        >>> prior = ProductPrior(1, features=LinearFeatures())
        >>> x, mean, variance = torch.ones(2, 3, 1), torch.rand(2, 3, 1), torch.ones(2, 3, 1)
        >>> posterior = prior.condition(GroupInputs.of(torch.eye(2), x, mean, variance, None, prior.dtype))
        >>> torch.equal(posterior.mean, mean.double()), posterior.predict(torch.ones(2, 1, 1)).mean.shape
        (True, torch.Size([2, 1, 1]))
    """

    def __init__(self, prior: ProductPrior, inputs: GroupInputs, predict_unobserved: bool = True) -> None:
        super().__init__(inputs)
        self.prior, self.predict_unobserved = prior, predict_unobserved

    @property
    def at_members(self) -> "IndependentPrediction":  # pyright: ignore[reportIncompatibleVariableOverride]
        """mu and sigma^2, and the GP's prediction at members that were not observed."""
        inputs = self.inputs
        if not self.predict_unobserved or bool(inputs.mask.all()):
            return IndependentPrediction(inputs.mean, inputs.variance, self.x)
        prediction, observed = self.predict_checked(self.x), inputs.mask.unsqueeze(-1)
        mean = torch.where(observed, inputs.mean, prediction.mean)
        return IndependentPrediction(mean, torch.where(observed, inputs.variance, prediction.variance), self.x)

    @property
    def kl_channels(self) -> Tensor:
        """KL(q || N(0, K + alpha I)) of every channel over all observed members at once, nats, (L,)."""
        return self.factor.kl()

    @property
    def kl_terms(self) -> KLTerms:
        """The KL in equal shares for the groups, nats, (G,). No channel is global."""
        shares = (self.kl_channels.sum() / len(self.x)).expand(len(self.x))
        return KLTerms(shares, torch.zeros_like(shares))

    def at_observed(self) -> tuple[Tensor, Tensor]:
        """mu and sigma^2 of the observed members, each (L, N), in the order of `x[mask]`."""
        return self.inputs.mean[self.inputs.mask].mT, self.inputs.variance[self.inputs.mask].mT

    def predict_groups(self, inputs: GroupInputs, x_new: Tensor) -> LowRankPrediction:
        """The GP at x_new (G*, Q*, D) of some of its groups."""
        return LowRankPrediction(self.factor, self.prior.root(inputs.vectors, x_new), self.prior.noise, x_new)

    def join(self, other: CoupledPosterior) -> "MeanFieldPosterior":
        """The posterior of the groups of both together, those of `other` after these."""
        return MeanFieldPosterior(self.prior, self.inputs.cat(other.inputs), self.predict_unobserved)

    def distribution(self) -> MultitaskMultivariateNormal:
        """The distribution of z at `x`, all members independent: event shape (G Q, L)."""
        mean, variance = self.marginals
        return MultitaskMultivariateNormal(mean.flatten(0, 1), torch.diag_embed(variance.flatten()))

    @cached_by_grad_mode
    def factor(self) -> MeanFieldFactor:
        """The factorization of I + Phi' Phi / alpha."""
        rows = self.prior.repeated_rows(self.inputs.vectors, self.x, self.inputs.mask)
        return mean_field_factor(rows if rows.pays else rows.dense(), self.prior.noise, *self.at_observed())


class IndependentPrediction(Prediction):
    """Members that are independent of each other, with means and variances (G, Q, L).

    Examples:
        >>> prediction = IndependentPrediction(torch.zeros(2, 3, 4), torch.ones(2, 3, 4), x=torch.rand(2, 3, 1))
        >>> prediction.rsample([5]).shape
        torch.Size([5, 2, 3, 4])
    """

    def __init__(self, mean: Tensor, variance: Tensor, x: Tensor) -> None:
        self.x, self._marginals = x, (mean, variance)

    @property
    def marginals(self) -> tuple[Tensor, Tensor]:
        """Means and variances, each (G, Q, L)."""
        return self._marginals

    def rsample_jointly(self, sample_shape: torch.Size) -> Tensor:
        """Draw z, (*s, G, Q, L). Joint draws of independent members are draws of the marginals."""
        return self.rsample_marginals(sample_shape)
