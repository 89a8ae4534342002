"""The FGP-VAE whose global channels are correlated between similar groups."""

from collections.abc import Sequence

import pyro
import pyro.distributions as dist
import torch
from torch import Tensor, nn

from fgp_gpytorch.coupled import CorrelatedPosterior, CorrelatedPrior
from fgp_gpytorch.data import GroupedBatch
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import features_of
from fgp_gpytorch.models.coupled_vae import CoupledVAE
from fgp_gpytorch.models.factorized_vae import standard_normal
from fgp_gpytorch.prior import ChannelBlock


class CorrelatedFGPVAE(CoupledVAE[CorrelatedPrior]):
    r"""An FGP-VAE whose global channels have a linear kernel over group vectors (`CorrelatedPrior`).

    Generative process, for P groups with group vectors D and members q with auxiliary features x_q:

        Z_p^local ~ FactorizedGPPrior(X_p),   z_p^global = D_p u,  u ~ N(0, I)
        y_q ~ likelihood(decoder(z_q))

    The posterior given the pseudo-observations is exact, as in `FGPVAE`. The global channels couple the groups, at a
    cost of O(N m^2). Group vectors are fixed after a PCA (`initialize_vectors`) or learned (GP-LVM, paper, Appendix C).
    `CoupledVAE` describes the group vectors and what each call conditions on.

    **Minibatches.** A step on G of the P groups counts every member P/G times, as in `SVGPVAE`. This estimate is
    biased: q(u) of a minibatch differs from q(u) of the data set. `fit(model, data, batch_size=len(data))` is exact,
    and takes one step an epoch. `infer` is always exact.

    Args:
        encoder, decoder, num_groups, num_factors, likelihood, normalize, representation: As in `CoupledVAE`.
        local: Blocks of local channels.
        num_global_channels: L - J. They come after the local ones.
        learn_vectors: Whether group vectors are learned. It has no effect with a representation.
        member_dropout, element_dropout: As in `GroupedVAE`.

    Raises:
        ArgumentError: If an argument has another type, a number is out of range, or `local` is empty.
        GroupError: If there are both a number of groups and a representation, or neither.

    Examples:
        >>> model = CorrelatedFGPVAE(ConvEncoder(16), ConvDecoder(16), [LocalChannels(8, kernel)], 8, len(data))
        >>> model.initialize_vectors(data)
        >>> fit(model, data)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        local: Sequence[ChannelBlock],
        num_global_channels: int,
        num_groups: int | None = None,
        num_factors: int = 8,
        learn_vectors: bool = True,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
        normalize: bool = True,
        representation: nn.Module | None = None,
    ) -> None:
        prior = CorrelatedPrior(local, num_global_channels)
        super().__init__(
            encoder,
            decoder,
            prior,
            num_groups,
            num_factors,
            normalize,
            representation,
            likelihood,
            member_dropout,
            element_dropout,
        )
        if self.group_vectors is not None:
            self.group_vectors.vectors.requires_grad_(learn_vectors)

    def draw_latents(self, batch: GroupedBatch, plate: pyro.plate) -> Tensor:
        """The sites "u_0", ... of the local blocks (as in `FGPVAE`) and "u_global". Returns z, (*s, G, Q, L).

        "u_global" holds the weights u of the global channels, which all groups share.
        """
        x, vectors = features_of(batch).to(self.prior.dtype), self.used_vectors(batch)
        with pyro.plate("global_channels", self.prior.num_global_channels, dim=-1):
            zero = vectors.new_zeros(vectors.shape[-1])
            u = pyro.sample("u_global", dist.Normal(zero, 1.0, validate_args=False).to_event(1))
        shared = (u @ vectors.mT).mT.unsqueeze(-2)  # shape: (*s, G, 1, L - J)
        parts = []
        with plate:
            for index, block in enumerate(self.prior.local.blocks):
                root = block.covariance_root(x)
                v = pyro.sample(f"u_{index}", standard_normal(block, root))
                parts.append((block.prior_mean(x) + (root @ v.unsqueeze(-1)).squeeze(-1)).mT)
        front = torch.broadcast_shapes(parts[0].shape[:-1], (*shared.shape[:-2], x.shape[-2]))
        return torch.cat([part.expand(*front, -1) for part in (*parts, shared)], dim=-1)

    def draw_posterior(self, batch: GroupedBatch, plate: pyro.plate) -> None:
        """The sites of the exact posterior. q(u) of a minibatch is an estimate."""
        posterior = self.training_posterior(batch)
        assert isinstance(posterior, CorrelatedPosterior)
        shared = posterior.shared
        with pyro.plate("global_channels", self.prior.num_global_channels, dim=-1):
            precision = shared.cholesky @ shared.cholesky.mT
            normal = dist.MultivariateNormal(shared.weights, precision_matrix=precision, validate_args=False)
            pyro.sample("u_global", normal)
        with plate:
            for index, distribution in enumerate(posterior.local.whitened_distributions()):
                pyro.sample(f"u_{index}", distribution)
