"""The conditional variational autoencoder."""

from torch import Tensor, nn

from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.likelihoods import Likelihood
from fgp_gpytorch.models._batches import cast_for
from fgp_gpytorch.models.factorized_vae import FactorizedVAE
from fgp_gpytorch.prior import FactorizedGPPrior


class CVAE(FactorizedVAE):
    r"""A VAE whose encoder and decoder take the auxiliary features (Sohn et al. 2015; the paper's baseline).

        z_q ~ prior,   y_q ~ likelihood(decoder(z_q, features(x_q))),   pseudo-observations encoder(y_q, features(x_q))

    The choice of prior:

    - `IndependentChannels(L)` is the published baseline. Members share nothing: a new member depends on its x alone.
    - `GlobalChannels(L)` gives one code per group, pooled over the context. It conditions on the same data as the
      factorized GP prior, so it is the fair comparison.
    - `LocalChannels` next to global ones give a hybrid of CVAE and FGP-VAE.

    Args:
        encoder: Module from (*batch, *y_shape) and features (*batch, F) to a mean and a positive variance, each
            (*batch, L).
        decoder: Module from (*batch, L) and features (*batch, F) to (*batch, *y_shape).
        prior: The prior over the L channels.
        features: Module from x (*batch, D) to the features (*batch, F) of both networks, such as
            `nets.FourierFeatures` for an angle; None for x itself.
        likelihood, member_dropout, element_dropout: As in `GroupedVAE`.

    Raises:
        ArgumentError: If an argument has another type, or a dropout is out of range.
        ShapeError: In use, if the features have other leading dimensions than x.

    Examples:
        >>> encoder = MLPEncoder([5], 4, num_features=2)  # cosine and sine of an angle
        >>> decoder = MLPDecoder(4, [5], num_features=2)
        >>> model = CVAE(encoder, decoder, FactorizedGPPrior([GlobalChannels(4)]), features=FourierFeatures())
        >>> model.generate(torch.zeros(2, 6, 1)).shape  # two new groups of six members
        torch.Size([2, 6, 5])
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
        element_dropout: float | tuple[float, float] = 0.0,
    ) -> None:
        super().__init__(encoder, decoder, prior, likelihood, member_dropout, element_dropout)
        if features is not None and (not isinstance(features, nn.Module) or isinstance(features, Likelihood)):
            raise ArgumentError(
                f"features: expected a torch Module of x, got {type(features).__name__}. Try nets.FourierFeatures() "
                "for an angle, None for x itself. A likelihood goes to likelihood=..."
            )
        self.features = nn.Identity() if features is None else features

    def encode_members(self, y: Tensor, x: Tensor, observed: Tensor | None) -> tuple[Tensor, Tensor]:
        """Mean and variance (N, L) of members y (N, *y_shape) at x (N, D)."""
        return self.encoder(cast_for(self.encoder, y), self._features_of(x), **self.observed_for_encoder(observed))

    def decode_members(self, z: Tensor, x: Tensor) -> Tensor:
        """The likelihood's parameter at z (*s, G, Q, L) and x (G, Q, D)."""
        features = self._features_of(x)
        features = features.expand(*z.shape[:-1], features.shape[-1])
        return self.decoder(cast_for(self.decoder, z), features)

    def _features_of(self, x: Tensor) -> Tensor:
        features: Tensor = self.features(cast_for(self.features, x))
        if not isinstance(features, Tensor):
            raise ShapeError(
                f"features: expected a tensor of features, got {type(features).__name__}. "
                "Try a module that maps (*batch, D) to (*batch, F)."
            )
        if features.shape[:-1] != x.shape[:-1]:
            raise ShapeError(
                f"features: expected the leading dimensions of x {tuple(x.shape)}, got {tuple(features.shape)}. "
                "Try a module that maps (*batch, D) to (*batch, F)."
            )
        return cast_for(self.decoder, features)
