"""The plain variational autoencoder."""

from torch import nn

from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models.factorized_vae import FactorizedVAE
from fgp_gpytorch.prior import FactorizedGPPrior, IndependentChannels


class VAE(FactorizedVAE):
    r"""A plain VAE (Kingma and Welling 2014): the model of the paper with K = I (paper, Section 3).

        z_q ~ N(0, I),   y_q ~ likelihood(decoder(z_q))

    Groups and auxiliary features have no effect. The posterior of a new member is the prior, in the context's groups
    too. So `generate` decodes the prior's mean or a draw of the prior.

    The encoder gives pseudo-observations (mu, sigma^2), as in all models of this package. So the posterior is
    N(mu / (1 + sigma^2), sigma^2 / (1 + sigma^2)): the usual family, without variances above the prior's.

    Args:
        encoder, decoder, likelihood, element_dropout: As in `GroupedVAE`.
        num_channels: L.

    Raises:
        ArgumentError: If an argument has another type, `num_channels` is below 1, or `element_dropout` out of range.

    Examples:
        >>> model = VAE(MLPEncoder([5], 4), MLPDecoder(4, [5]), num_channels=4).eval()
        >>> batch = GroupedBatch.from_tensors(y=torch.rand(2, 3, 5), x=torch.rand(2, 3, 1))
        >>> model.infer(batch).predict(torch.rand(2, 1, 1)).variance.unique()  # of new members: that of the prior
        tensor([1.], dtype=torch.float64)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        num_channels: int,
        likelihood: Likelihood | None = None,
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        prior = FactorizedGPPrior([IndependentChannels(num_channels)])
        super().__init__(encoder, decoder, prior, likelihood, element_dropout=element_dropout)
