"""The sparse prior of the SVGP-VAE: inducing points over group vectors and features (Jazbec et al. 2021)."""

import gpytorch
import torch
from gpytorch.distributions import MultitaskMultivariateNormal
from gpytorch.kernels import Kernel
from torch import Tensor, nn

from fgp_gpytorch import _checks as check
from fgp_gpytorch.coupled.coupled_posterior import CoupledPosterior, LowRankPrediction
from fgp_gpytorch.coupled.coupled_prior import CoupledPrior
from fgp_gpytorch.coupled.group_inputs import GroupInputs, checked_inputs
from fgp_gpytorch.errors import NonFiniteError, ShapeError
from fgp_gpytorch.feature_maps import angle_kernel
from fgp_gpytorch.gaussian import (
    LowRankFactor,
    check_residual_variance,
    low_rank_factor,
    require_covariance,
    rounding_tolerance,
)
from fgp_gpytorch.kernels import kernel_matrix
from fgp_gpytorch.prior import KLTerms, multitask_normal

_JITTER = 1e-6  # variance of an inducing variable about the function, relative to the kernel's


class InducingPrior(CoupledPrior):
    r"""f^l ~ GP(0, k), k((d, w), (d', w')) = D_d . D_d' k(w, w'), with M inducing points (Titsias 2009).

    The inducing variables u ~ N(0, I) are whitened. With K_uu = L L' the features of a member are Phi = K_xu L^-T, and

        z = Phi u + sqrt(k_xx - || Phi ||^2) e,   e ~ N(0, 1)

    which is p(z | u) member by member. Every inducing point has a group vector and features x; both are learned. K_uu
    has a noise of 1e-6 of the kernel's variance, which keeps it regular. The ELBO is still a bound.

    Args:
        num_channels: L. All channels share the kernel and the inducing points.
        num_factors: m, the length of a group vector.
        kernel: Any GPyTorch kernel on the D features, without a batch shape. It becomes float64. None for the paper's
            kernel of an angle in radians.
        num_inducing: M.
        num_features: D, the auxiliary features of a member.

    Attributes:
        inducing_vectors: (M, m), in the space of `GroupInputs.vectors`.
        inducing_x: (M, D).

    Raises:
        ArgumentError: If a number is below 1, or `kernel` is not a kernel.
        ShapeError: If the kernel has a batch shape.

    Examples:
        >>> prior = InducingPrior(1, num_factors=1, num_inducing=2)
        >>> prior.set_inducing(vectors=torch.ones(2, 1), x=torch.tensor([[0.0], [math.pi]]))
        >>> root, residual = prior.root(torch.ones(1, 1).double(), torch.tensor([[[0.0], [1.0]]]).double())
        >>> root.shape, residual[0, :, 0].detach().round(decimals=3).abs()  # nothing is left at an inducing point
        (torch.Size([1, 2, 2]), tensor([0.0000, 0.5840], dtype=torch.float64))
    """

    kernel: Kernel
    inducing_vectors: nn.Parameter
    inducing_x: nn.Parameter

    def __init__(
        self,
        num_channels: int,
        num_factors: int,
        kernel: Kernel | None = None,
        num_inducing: int = 64,
        num_features: int = 1,
    ) -> None:
        super().__init__()
        self.num_channels, self.dtype = check.count(num_channels, "num_channels"), torch.float64
        shapes = check.count(num_factors, "num_factors"), check.count(num_features, "num_features")
        points = check.count(num_inducing, "num_inducing", hint="Try num_inducing=64.")
        kernel = angle_kernel() if kernel is None else kernel
        self.kernel = check.instance(kernel, "kernel", Kernel, "Try gpytorch.kernels.MaternKernel().")
        if tuple(kernel.batch_shape) != ():
            raise ShapeError(
                f"kernel: expected batch_shape [], got {list(kernel.batch_shape)}. Try one kernel for all."
            )
        self.inducing_vectors, self.inducing_x = (nn.Parameter(torch.randn(points, size)) for size in shapes)
        self.to(self.dtype)

    @torch.no_grad()
    def set_inducing(self, vectors: Tensor, x: Tensor) -> None:
        """Replace the inducing points.

        Args:
            vectors: (M, m).
            x: (M, D).

        Raises:
            ArgumentError: If one of them is not numeric.
            ShapeError: If a shape differs.
            DataError: If an entry is not finite.
        """
        for name, value, parameter in (("vectors", vectors, self.inducing_vectors), ("x", x, self.inducing_x)):
            value = check.as_reals(value, name, like=parameter)
            check.shape(value, name, tuple(parameter.shape), "One for each inducing point.")
            parameter.copy_(check.finite(value, name))

    def root(self, vectors: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
        """Phi and the residual variance k_xx - || Phi ||^2 >= 0 at members.

        Args:
            vectors: Group vectors, (G, m).
            x: Auxiliary features, (G, Q, D).

        Returns:
            (G, Q, M) and (G, Q, 1).

        Raises:
            ShapeError: If there are not `num_features` features.
            DataError: If the kernel has a negative eigenvalue beyond rounding, or is not symmetric.
            NonFiniteError: If the kernel is not finite, or rounding prevents its factorization.
        """
        rows, front = x.flatten(0, 1), x.shape[:2]
        check.shape(rows, "x", ("N", self.inducing_x.shape[-1]), "Try num_features= of the model for other data.")
        vectors = vectors.unsqueeze(1).expand(*front, -1).flatten(0, 1)
        points = self.inducing_vectors
        among = kernel_matrix(self.kernel, self.inducing_x) * (points @ points.mT)
        cross = kernel_matrix(self.kernel, rows, self.inducing_x) * (vectors @ points.mT)
        with gpytorch.settings.lazily_evaluate_kernels(False):
            diagonal = self.kernel(rows, diag=True)
        assert isinstance(diagonal, Tensor)
        own = diagonal * vectors.square().sum(-1)
        noise = (_JITTER * among.diagonal().mean()).clamp_min(torch.finfo(points.dtype).tiny)
        identity = torch.eye(len(points), dtype=points.dtype, device=points.device)
        noisy = among + noise * identity
        cholesky, failed = torch.linalg.cholesky_ex(noisy)
        root = torch.linalg.solve_triangular(cholesky, cross.mT, upper=False).mT
        residual = own - root.square().sum(-1)
        # one transfer for both checks; written so that NaN fails
        if not bool((residual >= -rounding_tolerance(own.dtype) * own.abs()).all() & (failed == 0)):
            require_covariance(among)
            if bool(failed):
                raise NonFiniteError(
                    f"kernel: expected inducing points whose covariance can be factorized, got one with variances up "
                    f"to {float(among.diagonal().amax()):.3g}. Try inducing points further apart, or scaled x.",
                    term="kernel",
                )
            check_residual_variance(residual, among, cross.mT, own)
        residual = residual.clamp_min(torch.finfo(own.dtype).tiny)
        return root.unflatten(0, front), residual.reshape(*front, 1)

    def condition(self, inputs: GroupInputs, scale: float = 1.0) -> "InducingPosterior":
        """q(u), exact for the pseudo-observations of these groups, each member counted `scale` times."""
        return InducingPosterior(self, checked_inputs(inputs), scale)


class InducingPosterior(CoupledPosterior):
    r"""q(z, u) = p(z | u) q(u), q(u) = N(B^-1 s Phi' R^2 mu, B^-1), B = I + s Phi' R^2 Phi (Jazbec et al. 2021).

    Attributes:
        factor: q(u), L channels of M variables.
        residual: The variance of z that u does not explain, (G, Q, 1).

    Examples:
        >>> prior = InducingPrior(4, num_factors=2, num_inducing=6)
        >>> x, mean, variance = torch.rand(2, 3, 1), torch.rand(2, 3, 4), torch.ones(2, 3, 4)
        >>> posterior = prior.condition(GroupInputs.of(torch.eye(2), x, mean, variance, None, prior.dtype))
        >>> posterior.mean.shape, posterior.factor.weights.shape, posterior.kl_channels.shape
        (torch.Size([2, 3, 4]), torch.Size([4, 6]), torch.Size([4]))
    """

    def __init__(self, prior: InducingPrior, inputs: GroupInputs, scale: float = 1.0) -> None:
        super().__init__(inputs, scale)
        self.prior = prior
        root, self.residual = prior.root(inputs.vectors, inputs.x)
        self.factor: LowRankFactor = low_rank_factor(root.flatten(0, 1), *inputs.targets(scale))
        self.at_members = LowRankPrediction(self.factor, root, self.residual, inputs.x)

    @property
    def kl_channels(self) -> Tensor:
        """KL(q(u) || p(u)) of every channel for the whole data set, nats, (L,)."""
        return self.factor.kl()

    @property
    def kl_terms(self) -> KLTerms:
        """The KL in equal shares for the groups of the data set, nats, (G,). No channel is global."""
        groups = len(self.x)
        shares = (self.kl_channels.sum() / (self.scale * groups)).expand(groups)
        return KLTerms(shares, torch.zeros_like(shares))

    def predict_groups(self, inputs: GroupInputs, x_new: Tensor) -> LowRankPrediction:
        """The posterior at x_new (G*, Q*, D) of some of its groups."""
        return LowRankPrediction(self.factor, *self.prior.root(inputs.vectors, x_new), x_new)

    def join(self, other: CoupledPosterior) -> "InducingPosterior":
        """The posterior of the groups of both together, those of `other` after these. Every member counts once."""
        return InducingPosterior(self.prior, self.inputs.cat(other.inputs))

    def distribution(self) -> MultitaskMultivariateNormal:
        """The joint distribution of z at `x`: event shape (G Q, L), group after group."""
        # shape: (L, N, N)
        covariances = self.factor.covariance(self.factor.root) + torch.diag_embed(self.residual.flatten())
        return multitask_normal(self.mean.flatten(0, 1), list(covariances))
