"""The factorized Gaussian-process variational autoencoder of the paper."""

from torch import nn

from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models.factorized_vae import FactorizedVAE
from fgp_gpytorch.prior import FactorizedGPPrior


class FGPVAE(FactorizedVAE):
    r"""A VAE whose latent channels have a factorized Gaussian-process prior over each group (paper, Section 3).

    Generative process, for each group p and its members q with auxiliary features x_q:

        Z_p ~ FactorizedGPPrior(X_p)            latent paths, one Gaussian process per channel
        y_q ~ likelihood(decoder(z_q))          independent over members

    The guide replaces the likelihood by the encoder's pseudo-observations and conditions exactly:

        q(Z_p | Y_p, X_p) ~ prod_q N(z_q | encoder(y_q)) p(Z_p | X_p)

    | symbol | meaning | where |
    | --- | --- | --- |
    | mu_phi, sigma_phi^2 | pseudo-observations | `encoder(y)`: mean and variance, (*batch, L) |
    | mu_psi | generative network | `decoder(z)`: the likelihood's parameter, (*batch, *y_shape) |
    | p_theta(Z given X) | prior | `prior`, a `FactorizedGPPrior` |
    | sigma_y^2 | observation variance | `likelihood.variance` |

    The arguments are those of `GroupedVAE`, with a `FactorizedGPPrior` as prior.

    Examples:
        >>> model = FGPVAE(ConvEncoder(16), ConvDecoder(16), prior)
        >>> fit(model, data.train, epochs=100)
        >>> images = model.generate(x_new, context=data.test.context)
    """

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: FactorizedGPPrior,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, element_dropout)
