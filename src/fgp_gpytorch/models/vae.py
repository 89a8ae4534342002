"""The plain variational autoencoder."""

from torch import nn

from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.prior import FactorizedGPPrior, IndependentChannels


class VAE(FGPVAE):
    r"""A plain VAE (Kingma and Welling 2014): the model of the paper with K = I (paper, Section 3).

        z_q ~ N(0, I),   y_q ~ likelihood(decoder(z_q))

    Groups and auxiliary features play no part: of a new member of a known group it knows no more than of anything, so
    `generate` with a context decodes the prior's mean, or a draw of the prior.

    The encoder gives pseudo-observations (mu, sigma^2) here as everywhere in this package, so the posterior is
    N(mu / (1 + sigma^2), sigma^2 / (1 + sigma^2)): the usual family, without the variances above the prior's.

    Args:
        encoder: Module from (*batch, *y_shape) to a mean and a positive variance, each (*batch, L).
        decoder: Module from (*batch, L) to (*batch, *y_shape).
        num_channels: L.
        likelihood: p(y | z); None for a Gaussian with maximum-likelihood variance.

    Raises:
        ShapeError: If an argument is not a module of its kind, or `num_channels` is below 1.
    """

    def __init__(
        self, encoder: nn.Module, decoder: nn.Module, num_channels: int, likelihood: Likelihood | None = None
    ) -> None:
        prior = FactorizedGPPrior([IndependentChannels(num_channels)])
        super().__init__(encoder, decoder, prior, likelihood)
