"""The linear encoder against a loop over members in NumPy, and the linear decoder."""

import numpy as np
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder

F64 = torch.float64


def make_encoder(size=5, channels=2, **options):
    encoder = LinearEncoder([size], channels, **options).double()
    encoder.offset.data = torch.randn(size, dtype=F64)
    encoder.log_variance.data = torch.randn(size, dtype=F64)
    return encoder


def one_by_one(encoder, y, observed):
    """Pseudo-observations of each member from the posterior of a factor model with its observed elements alone."""
    loadings, offset = encoder.loadings.detach().numpy(), encoder.offset.detach().numpy()
    noise = encoder.log_variance.detach().exp().numpy()
    means, variances = [], []
    for row, there in zip(y, observed, strict=True):
        w, d = loadings[there], np.diag(noise[there])
        covariance = w @ w.T + d  # of the observed elements, z ~ N(0, I)
        gain = w.T @ np.linalg.inv(covariance)
        posterior_mean = gain @ (row[there] - offset[there])
        posterior_variance = np.diag(np.eye(w.shape[1]) - gain @ w)
        precision = 1 / posterior_variance - 1  # of the pseudo-observation beside N(0, 1)
        means.append(posterior_mean / posterior_variance / precision)
        variances.append(1 / precision)
    return np.array(means), np.array(variances)


def test_pseudo_observations_are_those_of_a_loop_with_gaps():
    encoder = make_encoder()
    y = torch.randn(9, 5, dtype=F64)
    observed = torch.rand(9, 5) > 0.4
    observed[:, 0] = True
    mean, variance = encoder(torch.where(observed, y, 0.0), observed)
    expected = one_by_one(encoder, y.numpy(), observed.numpy())
    np.testing.assert_allclose(mean.detach(), expected[0], rtol=1e-8)
    np.testing.assert_allclose(variance.detach(), expected[1], rtol=1e-8)


def test_no_mask_means_that_everything_was_observed():
    encoder = make_encoder()
    y = torch.randn(4, 3, 5, dtype=F64)
    for one, other in zip(encoder(y), encoder(y, torch.ones_like(y, dtype=torch.bool)), strict=True):
        torch.testing.assert_close(one, other)
        assert one.shape == (4, 3, 2)


def test_value_of_a_gap_does_not_matter():
    encoder = make_encoder(hidden=(4,))
    torch.nn.init.normal_(encoder.residual[-1].weight)
    y, observed = torch.randn(6, 5, dtype=F64), torch.rand(6, 5) > 0.5
    first = encoder(torch.where(observed, y, 0.0), observed)
    second = encoder(torch.where(observed, y, 17.0), observed)
    torch.testing.assert_close(first, second)


def test_orthogonal_loadings_give_the_likelihood_of_each_channel():
    """sigma_j^2 = 1 / (w_j' D^-1 w_j), mu_j = sigma_j^2 w_j' D^-1 (y - offset)."""
    encoder = make_encoder(4, 2)
    noise = encoder.log_variance.detach().exp()
    basis = torch.linalg.qr(torch.randn(4, 2, dtype=F64)).Q * torch.tensor([2.0, 0.7])
    encoder.loadings.data = basis * noise.sqrt().unsqueeze(-1)
    y = torch.randn(6, 4, dtype=F64)
    mean, variance = encoder(y)
    precision = (encoder.loadings.square() / noise.unsqueeze(-1)).sum(0)
    torch.testing.assert_close(variance, (1 / precision).expand(6, 2))
    torch.testing.assert_close(mean, (y - encoder.offset) / noise @ encoder.loadings / precision)


def test_counts_enter_by_their_logarithm():
    encoder = make_encoder(3, 1, log_elements=[1])
    y = torch.tensor([[-0.5, 4.0, 2.0]], dtype=F64)
    torch.testing.assert_close(
        encoder.working_values(y), torch.tensor([[-0.5, np.log(5.0), 2.0]], dtype=F64), check_stride=False
    )


def test_residual_networks_start_at_zero_and_matter_afterwards():
    encoder, decoder = make_encoder(hidden=(6,)), LinearDecoder(2, [2, 3], (6,)).double()
    y, z = torch.randn(4, 5, dtype=F64), torch.randn(4, 2, dtype=F64)
    whole = encoder(y), decoder(z)
    kept = encoder.residual, decoder.residual
    encoder.residual = decoder.residual = None
    torch.testing.assert_close(whole, (encoder(y), decoder(z)))
    encoder.residual, decoder.residual = kept
    for network in kept:
        torch.nn.init.ones_(network[-1].bias)
    assert not torch.allclose(whole[0][0], encoder(y)[0])
    assert not torch.allclose(whole[1], decoder(z))


def test_decoder_is_an_affine_map_in_the_shape_of_y():
    decoder = LinearDecoder(2, [2, 3], ()).double()
    decoder.offset.data = torch.randn(6, dtype=F64)
    z = torch.randn(4, 7, 2, dtype=F64)
    expected = np.einsum("kl,gql->gqk", decoder.loadings.detach(), z) + decoder.offset.detach().numpy()
    np.testing.assert_allclose(decoder(z).detach(), expected.reshape(4, 7, 2, 3))


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="log_elements: expected positions below K = 3, got 3"):
        LinearEncoder([3], 1, log_elements=[3])
    with pytest.raises(ArgumentError, match="num_channels: expected an integer >= 1, got 0"):
        LinearEncoder([3], 0)
    with pytest.raises(ShapeError, match="expected"):
        LinearEncoder([3], 1)(torch.rand(2, 4))
    with pytest.raises(ShapeError, match="z: expected shape"):
        LinearDecoder(2, [3])(torch.rand(5, 3))
