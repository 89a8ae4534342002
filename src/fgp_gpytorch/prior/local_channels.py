"""Channels that vary within a group."""

import functools
from typing import Any, Literal, get_args

import torch
from gpytorch.kernels import Kernel
from gpytorch.means import Mean
from torch import Tensor

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import transforms_active
from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import checked_points, kernel_features
from fgp_gpytorch.gaussian import (
    DenseFactor,
    DenseMarginals,
    MarkovTerm,
    PooledMembers,
    dense_factor,
    dense_marginals,
    features_at_points,
    pool_repeated,
    precise_limit,
    symmetric_square_root,
)
from fgp_gpytorch.kernels import LocalKernel, kernel_matrix, markov_terms, seen_features
from fgp_gpytorch.prior.block_posterior import BlockPosterior, BlockPrior
from fgp_gpytorch.prior.caching import cached_by_grad_mode
from fgp_gpytorch.prior.channel_block import ChannelBlock
from fgp_gpytorch.prior.low_rank_posterior import InducingBlockPosterior, LowRankBlockPosterior, root_of_rest
from fgp_gpytorch.prior.split_posterior import SplitBlockPosterior, parts_of
from fgp_gpytorch.prior.state_space_posterior import StateSpaceBlockPosterior, state_space_prior_draws

Inference = Literal["auto", "dense", "state_space", "low_rank", "inducing"]

_DENSE_MEMBERS = 128  # up to here the dense algebra is faster
_WIDE, _WIDEST = 1e3, 1e6  # lengthscales: GPyTorch's distances have 10 digits, and 4
_JITTER = 1e-8  # of the mean variance of inducing points
_MOST_BYTES = 2**32  # of the covariance matrices of a batch; the dense algebra holds about six times as much


class LocalChannels(ChannelBlock):
    r"""Channels that vary within a group: k1(x_i, x_j) = delta(d_i, d_j) k(w_i, w_j) (paper, Section 3).

    Inference costs, for a group of Q members:

    | `inference` | kernel | cost |
    | --- | --- | --- |
    | "dense" | any | O(Q^3) |
    | "state_space" | `MaternKernel` (nu = 1/2, 3/2, 5/2), `ConstantKernel`, on one feature | O(Q) |
    | "low_rank" | `LinearKernel`, `PolynomialKernel`, `PeriodicKernel` (on one feature), `ConstantKernel` | O(Q M^2) |
    | "inducing" | any, through M inducing points that all groups share | O(Q M^2) |

    Sums of these kernels, scaled or not, have the same inference; "low_rank" takes products too. The first three are
    exact: a periodic kernel has as many harmonics as rounding can tell, up to 64. "inducing" is a lower
    bound of the ELBO (Titsias 2009), exact if the points are the members. "auto" takes the cheapest exact one in groups
    of more than 128 members, and "dense" in others.

    Args:
        num_channels: J.
        kernel: Any GPyTorch kernel on the D features. All channels share a kernel of `batch_shape` []. A kernel of
            `batch_shape` [J] has hyperparameters of its own for each channel. The paper's kernel with scale r is
            `PeriodicKernel()` with `period_length = 2 pi` and `lengthscale = r ** 2`: GPyTorch divides by the
            lengthscale, the paper by its square. `kernels.WithinKernel` makes channels of inner groups.
        mean: A GPyTorch mean with `batch_shape` [] or [J]; None for zero.
        inference: See above.
        inducing_points: X_u of "inducing", (M, D) or (M,), such as some distinct rows of `data.flat().x`. They are
            learned. `block.inducing_points.requires_grad_(False)` keeps them.

    Raises:
        ArgumentError: If `kernel` is not a kernel, `num_channels` is below 1, `inference` is another word, or
            `inducing_points` and `inference` do not belong together.
        ShapeError: If the batch shape of the kernel or the mean is neither [] nor [J].
        DataError: If an inducing point is not finite or occurs twice. In use, if the kernel does not have the
            inference, or its dense matrices take more than 4 GiB.

    Examples:
        >>> kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([8])))
        >>> block = LocalChannels(8, kernel)  # a lengthscale for each channel
        >>> block.covariance(torch.rand(2, 5, 1), torch.rand(2, 3, 1)).shape
        torch.Size([2, 8, 5, 3])
    """

    def __init__(
        self,
        num_channels: int,
        kernel: Kernel,
        mean: Mean | None = None,
        inference: Inference = "auto",
        inducing_points: Any = None,
    ) -> None:
        super().__init__(num_channels, mean)
        check.instance(kernel, "kernel", Kernel, "Try LocalChannels(8, gpytorch.kernels.PeriodicKernel()).")
        self.check_batch_shape(kernel.batch_shape, f"kernel {type(kernel).__name__}")
        self.kernel = kernel
        check.choice(inference, "inference", get_args(Inference), 'Try "auto".')
        self.inference = inference
        if (inference == "inducing") != (inducing_points is not None):
            raise ArgumentError(
                f"inducing_points: expected points with inference='inducing' and with no other, got inference="
                f"{inference!r} and {'none' if inducing_points is None else 'some'}. Try inference='inducing', "
                "inducing_points=torch.linspace(0, 1, 20)."
            )
        self.inducing_points = None
        if inducing_points is not None:
            points = checked_points(inducing_points, "inducing_points")
            self.constructor_arguments["inducing_points"] = points  # a tensor can be saved
            self.inducing_points = torch.nn.Parameter(points.clone())

    def covariance(self, x1: Tensor, x2: Tensor) -> Tensor:
        """Base kernel within each group: (*b, G, J or 1, Q1, Q2).

        Raises:
            ShapeError: If the kernel does not take D features.
            DataError: If the matrices take more than 4 GiB.
        """
        matrices = max(1, self.kernel.batch_shape.numel()) * x1.shape[:-2].numel()
        size = matrices * x1.shape[-2] * x2.shape[-2] * x1.element_size()
        if size > _MOST_BYTES:
            raise DataError(
                f"x: expected groups whose covariance matrices take at most {_MOST_BYTES / 2**30:g} GiB, got "
                f"{matrices} of {x1.shape[-2]} x {x2.shape[-2]} members with {size / 2**30:.3g} GiB. Try a sum of "
                "MaternKernel and ConstantKernel on one feature (state space, O(Q)), a linear or periodic kernel "
                "(low rank), inference='inducing' with inducing_points=, CoregionalizedChannels, or smaller groups."
            )
        if x1.shape[-1] == 1 and not transforms_active(x1, x2):
            _require_exact_distances(self.kernel, x1, x2)
        return _evaluate(self.kernel, x1.unsqueeze(-3), x2.unsqueeze(-3))

    def covariance_root(self, x: Tensor) -> Tensor:
        """Phi with Phi Phi' = K(x, x), (*b, G, J or 1, Q, N).

        It has the M features of a kernel that is used by them. Inducing points have M features, and a root of what they
        leave. Otherwise it is the symmetric root, N = Q.

        Raises:
            ShapeError: If the kernel does not take D features.
            DataError: If the covariance has a negative eigenvalue beyond rounding.
        """
        if self.inference == "inducing":
            root = self._inducing_features(x)
            return torch.cat([root, root_of_rest(self.covariance(x, x), root)], dim=-1)
        return self._features(x) if self._has_features(x) else symmetric_square_root(self.covariance(x, x))

    def condition(self, x: Tensor, mean: Tensor, precision: Tensor) -> BlockPosterior:
        """GP regression per group and channel (paper, Appendix B).

        Raises:
            DataError: If the kernel does not have the inference, or its dense matrices are too large.
        """
        residual = self.residual(mean, x)
        if self.inference != "inducing" and not transforms_active(x, mean, precision):
            parts = parts_of(x, precision, lambda: self._chain(x) is None and not self._has_features(x))
            if parts:
                return SplitBlockPosterior(self, x, precision, residual, parts, self._condition)
        return self._condition(x, precision, residual)

    def _condition(self, x: Tensor, precision: Tensor, residual: Tensor) -> BlockPosterior:
        if self.inference == "inducing":
            variance = functools.partial(_variance, self)
            return InducingBlockPosterior(self, x, precision, residual, self._inducing_features, variance)
        chain = self._chain(x, residual, precision)
        if chain is not None:
            return StateSpaceBlockPosterior(self, x, precision, residual, *chain)
        if self._has_features(x, residual, precision):
            return LowRankBlockPosterior(self, x, precision, residual, self._features)
        seen = x[..., seen_features(self.kernel, x.shape[-1])]
        return DenseBlockPosterior(self, x, precision, residual, seen)

    def sample(self, x: Tensor, sample_shape: torch.Size) -> Tensor:
        """Draw paths of new groups at x (*b, G, Q, D): (*s, *b, G, J, Q)."""
        chain = self._chain(x) if x.shape[-2] else None
        if chain is not None:
            return self.add_mean(state_space_prior_draws(*chain, x, self.num_channels, sample_shape), x)
        if not self._has_features(x):
            return super().sample(x, sample_shape)
        root = self._features(x)
        shape = (*sample_shape, *x.shape[:-2], self.num_channels, root.shape[-1], 1)
        return self.add_mean((root @ torch.randn(shape, dtype=x.dtype, device=x.device)).squeeze(-1), x)

    def kernel_on_rows(self) -> Kernel:
        """`LocalKernel` of the block's kernel."""
        return LocalKernel(self.kernel)

    def _may_be(self, inference: Inference, x: Tensor, *others: Tensor) -> bool:
        plain = not transforms_active(x, *others)
        if self.inference == "state_space" and not plain:
            raise DataError(
                "inference: expected no transform of torch.func and no forward-mode derivative with 'state_space', got "
                "one. Try inference='dense'."
            )
        many = x.shape[-2] > _DENSE_MEMBERS and plain
        return self.inference == inference or (self.inference == "auto" and many)

    def _chain(self, x: Tensor, *others: Tensor) -> tuple[list[MarkovTerm], int] | None:
        """Terms and column of the state space, if it is to be used for groups at x (*b, G, Q, D)."""
        if not self._may_be("state_space", x, *others) and not self._has_gaps(x, *others):
            return None
        found = markov_terms(self.kernel, x.shape[-1])
        if found is None and self.inference == "state_space":
            raise self._other_kernel("MaternKernel on one feature, or a sum of it with others and ConstantKernel,")
        return found

    def _has_gaps(self, x: Tensor, *others: Tensor) -> bool:
        """Whether "auto" prefers the state space for groups of any size: the dense distances would lose digits."""
        free = self.inference == "auto" and not transforms_active(x, *others)
        return free and _spans(x, _shortest_lengthscale(self.kernel), _WIDE)

    def _has_features(self, x: Tensor, *others: Tensor) -> bool:
        """Whether the features of the kernel are to be used for groups at x (*b, G, Q, D)."""
        if not self._may_be("low_rank", x, *others):
            return False
        found = kernel_features(self.kernel, x[..., :1, :].unsqueeze(-3))
        if self.inference == "low_rank" and found is None:
            raise self._other_kernel(
                "sums and products of LinearKernel, PolynomialKernel (whole powers), PeriodicKernel (one feature, 64 "
                "harmonics)"
            )
        return found is not None and (self.inference == "low_rank" or 2 * found.shape[-1] <= x.shape[-2])

    def _other_kernel(self, expected: str) -> DataError:
        name = type(self.kernel).__name__
        return DataError(
            f"kernel: expected {expected} for inference={self.inference!r}, got {name}. Try inference='auto'."
        )

    def _features(self, x: Tensor) -> Tensor:
        """Phi of a kernel with features, (*b, G, J or 1, Q, M)."""
        found = kernel_features(self.kernel, x.unsqueeze(-3))
        assert found is not None
        return found.expand(*x.shape[:-2], *found.shape[-3:])

    def _inducing_features(self, x: Tensor) -> Tensor:
        """k(x, X_u) L^-T with L L' = k(X_u, X_u), (*b, G, J or 1, Q, M)."""
        assert self.inducing_points is not None
        points = check.shape(
            self.inducing_points, "inducing_points", ("M", x.shape[-1]), "One column for each feature of x."
        ).to(x.dtype)
        among = self.covariance(points.unsqueeze(0), points.unsqueeze(0)).squeeze(0)
        # the points come first: GPyTorch centres on its first argument
        cross = self.covariance(points.expand(*x.shape[:-2], *points.shape), x)
        return features_at_points(among, cross, "inducing_points", max(_JITTER, 10 * torch.finfo(x.dtype).eps))


class DenseBlockPosterior(BlockPosterior):
    """Posterior of `LocalChannels`: exact GP regression in every group and channel.

    Attributes:
        covariance: K, (*b, G, J or 1, Q, Q).
        seen: The columns of x that the kernel depends on, (*b, G, 1, Q, D'). Members of equal ones observe one value.
    """

    def __init__(self, block: BlockPrior, x: Tensor, precision: Tensor, residual: Tensor, seen: Tensor) -> None:
        super().__init__(block, x, precision, residual)
        self.covariance, self.seen = block.covariance(x, x), seen.unsqueeze(-3)

    @cached_by_grad_mode
    def pooled(self) -> PooledMembers | None:
        """The observations, those of equal x pooled; None if no x repeats, or no such member is precise."""
        k = self.covariance.diagonal(dim1=-2, dim2=-1)
        if not bool((self.precision * k > precise_limit(k.dtype)).any()):
            return None
        return pool_repeated(self.covariance, self.precision, self.residual, self.seen)

    @cached_by_grad_mode
    def members(self) -> DenseMarginals:
        """Marginals and KL at the members."""
        return dense_marginals(self.covariance, self.precision, self.residual, self.seen)

    @cached_by_grad_mode
    def factor(self) -> DenseFactor:
        """The factorization for predictions and the evidence."""
        return dense_factor(self.covariance, self.precision, self.residual, self.pooled)

    @property
    def observations(self) -> tuple[Tensor, Tensor]:
        """Precisions and residuals, those of precise members of equal x pooled, each (*b, G, J, Q)."""
        return super().observations if self.pooled is None else (self.pooled.precision, self.pooled.residual)

    def marginals(self) -> tuple[Tensor, Tensor]:
        """Mean and variance at the members, each (*b, G, J, Q)."""
        mean, variance, _ = self.members
        return self.block.add_mean(mean, self.x), variance

    def predict(self, x_new: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and variance at x_new (*b, G, Q*, D), each (*b, G, J, Q*)."""
        cross = self.block.covariance(self.x, x_new)
        mean = self.block.add_mean(self.factor.predict_mean(cross), x_new)
        return mean, self.factor.predict_variance(cross, _variance(self.block, x_new))

    def kl(self) -> Tensor:
        """KL(q || p), nats, (*b, G, J)."""
        return self.members.kl

    def log_evidence(self) -> Tensor:
        """log Z, nats, (*b, G, J)."""
        return self.factor.log_evidence()


@torch.no_grad()
def _shortest_lengthscale(kernel: Kernel) -> Tensor | None:
    """The shortest lengthscale in units of x, None if there is none: that of a periodic kernel has no units."""
    found = [
        part.lengthscale.amin()
        for part in kernel.modules()
        if isinstance(part, Kernel) and part.has_lengthscale and not hasattr(part, "period_length")
    ]
    return torch.stack(found).amin() if found else None


def _spans(x: Tensor, lengthscale: Tensor | None, number: float) -> bool:
    """Whether a feature of a group at x (*b, Q, D) spans more than so many lengthscales."""
    return lengthscale is not None and x.numel() > 0 and bool((x.amax(-2) - x.amin(-2)).amax() > number * lengthscale)


@torch.no_grad()
def _require_exact_distances(kernel: Kernel, x1: Tensor, x2: Tensor) -> None:
    """Require that GPyTorch's distances of one feature keep their digits in float64.

    GPyTorch computes them by a matrix product. Rounding then is that of the square of the range of x. It matters if the
    range is far larger than lengthscale and spacing, as in bursts of measurements that are days apart.

    Raises:
        DataError: If a squared distance loses more than a ten-thousandth of the larger of both, squared.
    """
    # GPyTorch centres each group if both are the same
    own = x1 if x1 is x2 else torch.cat([x1.flatten(), x2.flatten()]).unsqueeze(-1)
    shortest = _shortest_lengthscale(kernel)
    if shortest is None or own.dtype != torch.float64 or not _spans(own, shortest, _WIDEST):
        return
    width, steps = (own.amax(-2) - own.amin(-2)).amax(), own.sort(-2).values.diff(dim=-2)
    larger = torch.maximum(shortest.to(own), steps[steps > 0].amin())
    if bool(torch.finfo(own.dtype).eps * width**2 > 1e-4 * larger**2):
        raise DataError(
            f"x: expected a range of at most {_WIDEST:g} lengthscales, got {width.item():g} and a lengthscale of "
            f"{shortest.item():g}: distances would be rounding errors. Try MaternKernel on one feature (state space), "
            "groups without such gaps, or a longer lengthscale."
        )


def _variance(block: BlockPrior, x: Tensor) -> Tensor:
    """k(x, x) at x (*b, G, Q, D), (*b, G, J or 1, Q)."""
    # only the diagonal: every member is its own group of one
    alone = block.covariance(x.unsqueeze(-2), x.unsqueeze(-2))  # shape: (*b, G, Q, J or 1, 1, 1)
    return alone.squeeze(-1).squeeze(-1).mT


def _evaluate(kernel: Kernel, x1: Tensor, x2: Tensor) -> Tensor:
    """The kernel's matrix. Its errors become a `ShapeError`."""
    try:
        covariance = kernel_matrix(kernel, x1, x2)
    except (RuntimeError, IndexError) as error:
        if isinstance(error, torch.cuda.OutOfMemoryError):
            raise
        features = x1.shape[-1]
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected to evaluate x with D = {features} features, got an error "
            f"({error}). Try ard_num_dims={features}, or active_dims below {features}."
        ) from error
    members = x1.shape[-2], x2.shape[-2]
    if covariance.shape[-2:] != members:
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected one row for each member, {members}, got "
            f"{tuple(covariance.shape[-2:])}. Try a kernel of one output (no gradients, no tasks)."
        )
    front = torch.broadcast_shapes(x1.shape[:-3], x2.shape[:-3])
    if covariance.shape[:-3] != front:  # for instance the first group's matrix for all groups
        raise ShapeError(
            f"kernel {type(kernel).__name__}: expected a matrix for each group, {(*front, 'J or 1')}, got "
            f"{tuple(covariance.shape[:-2])}. Try a forward that keeps the leading dimensions of x1 and x2."
        )
    return covariance
