"""The conditional variational autoencoder."""

from torch import Tensor, nn

from fgp_gpytorch.errors import ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import cast_for
from fgp_gpytorch.models.fgp_vae import FGPVAE
from fgp_gpytorch.prior import FactorizedGPPrior


class CVAE(FGPVAE):
    r"""A VAE whose encoder and decoder are told the auxiliary features (Sohn et al. 2015; the paper's baseline).

        z_q ~ prior,   y_q ~ likelihood(decoder(z_q, features(x_q))),   pseudo-observations encoder(y_q, features(x_q))

    What it may know of a group is in its prior:

    - `IndependentChannels(L)`: the published baseline. Nothing is shared between the members of a group: a new member
      is drawn for its angle alone.
    - `GlobalChannels(L)`: one code for the group, pooled over the images of the context. It may look at as much as the
      factorized GP prior looks at, which makes it the fair comparison.
    - With `LocalChannels` among them it is a hybrid of the two models.

    Args:
        encoder: Module from (*batch, *y_shape) and features (*batch, F) to a mean and a positive variance, each
            (*batch, L).
        decoder: Module from (*batch, L) and features (*batch, F) to (*batch, *y_shape).
        prior: The prior over the L channels.
        features: Module from x (*batch, D) to the features (*batch, F) that both networks get, such as
            `nets.FourierFeatures` for an angle; None gives x itself.
        likelihood: p(y | z, x); None for a Gaussian with maximum-likelihood variance.
        member_dropout: As in `FGPVAE`.

    Raises:
        ShapeError: If an argument is not a module of its kind; later, if the features have not one row for each of x.
        DataError: If `member_dropout` is out of range.
    """

    features: nn.Module

    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        prior: FactorizedGPPrior,
        features: nn.Module | None = None,
        likelihood: Likelihood | None = None,
        member_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout)
        if features is not None and (not isinstance(features, nn.Module) or isinstance(features, Likelihood)):
            raise ShapeError(
                f"features: expected a torch Module of x, got {type(features).__name__}. Try nets.FourierFeatures() "
                "for an angle, None for x as it is; a likelihood by its name, likelihood=..."
            )
        self.features = nn.Identity() if features is None else features

    def _encode(self, y: Tensor, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        return self.encoder(cast_for(self.encoder, y), self._features_of(x), **self._told(observed))

    def _decode(self, z: Tensor, x: Tensor) -> Tensor:
        features = self._features_of(x)
        features = features.expand(*z.shape[:-1], features.shape[-1])
        return self.decoder(cast_for(self.decoder, z), features)

    def _features_of(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(cast_for(self.features, x))
        if features.shape[:-1] != x.shape[:-1]:
            raise ShapeError(
                f"features: expected one row for each row of x {tuple(x.shape)}, got {tuple(features.shape)}. "
                "Try a module that maps (*batch, D) to (*batch, F)."
            )
        return cast_for(self.decoder, features)
