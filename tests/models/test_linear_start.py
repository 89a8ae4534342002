"""The linear start against dense algebra: principal components, and the evidence of the multi-output GP."""

import math

import gpytorch
import numpy as np
import pytest
import scipy.stats
import torch

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GroupedDataset, LocalChannels
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.likelihoods import ColumnLikelihood, GaussianElements
from fgp_gpytorch.means import PiecewiseLinearMean
from fgp_gpytorch.models import linear_start
from fgp_gpytorch.models.linear_start import principal_components
from fgp_gpytorch.nets import LinearDecoder, LinearEncoder, MLPEncoder
from oracles import matern32

F64 = torch.float64


def make_data(num_elements, gaps=False, sizes=(4, 1, 6, 3)):
    group = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    x = 3 * torch.rand(len(group), 1, dtype=F64)
    factors = torch.cat([torch.sin(x), x / 2 + torch.randn(len(sizes), 1, dtype=F64)[group]], 1)
    y = factors @ torch.randn(2, num_elements, dtype=F64) + 0.3 * torch.randn(len(x), num_elements, dtype=F64)
    observed = torch.rand(y.shape) > 0.3 if gaps else None
    if gaps:
        observed[:, 0] = True
    return GroupedDataset(y, x, group, observed)


def make_linear(num_elements, channels):
    """Channels with different kernels and a mean that is not zero."""
    shape = torch.Size([channels])
    kernel = gpytorch.kernels.ScaleKernel(gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=shape), batch_shape=shape)
    mean = PiecewiseLinearMean([0.0, 1.0, 3.0], shape)
    prior = FactorizedGPPrior([LocalChannels(channels, kernel, mean)])
    model = FGPVAE(
        LinearEncoder([num_elements], channels, ()),
        LinearDecoder(channels, [num_elements], ()),
        prior,
        ColumnLikelihood([GaussianElements(num_elements)]),
    ).double()
    kernel.outputscale, kernel.base_kernel.lengthscale = 0.5 + torch.rand(shape), 0.5 + torch.rand(channels, 1, 1)
    mean.values.data = torch.randn(channels, 3, dtype=F64)
    return model


def dense_evidence(model, data):
    """log N(y | mean, covariance) over all observed numbers of each group, entry by entry."""
    block = model.prior.blocks[0]
    scales = block.kernel.outputscale.tolist()
    lengths = block.kernel.base_kernel.lengthscale.flatten().tolist()
    kernels = [matern32(length, scale) for length, scale in zip(lengths, scales, strict=True)]
    knots, values = block.mean_module.knots.numpy(), block.mean_module.values.detach().numpy()
    w, offset = model.decoder.loadings.detach().numpy(), model.decoder.offset.detach().numpy()
    noise = model.likelihood.constant_variance().detach().expand(len(offset)).numpy()
    rows = data.flat()
    seen = np.ones(rows.y.shape, bool) if data.members.y_mask is None else data.members.y_mask.numpy()
    total = 0.0
    for group in range(len(data)):
        numbers = [(q, k) for q in (rows.group == group).nonzero()[:, 0].tolist() for k in seen[q].nonzero()[0]]
        mean, covariance = [], np.zeros((len(numbers), len(numbers)))
        for i, (q, k) in enumerate(numbers):
            z = [np.interp(float(rows.x[q, 0]), knots, value) for value in values]
            mean.append(offset[k] + w[k] @ z)
            for j, (other, m) in enumerate(numbers):
                a, b = rows.x[q].tolist(), rows.x[other].tolist()
                covariance[i, j] = sum(w[k, c] * w[m, c] * kernel(a, b, math) for c, kernel in enumerate(kernels))
            covariance[i, i] += noise[k]
        own = [float(rows.y[q, k]) for q, k in numbers]
        total += scipy.stats.multivariate_normal(mean, covariance).logpdf(own)
    return total / seen.sum()


def test_elbo_of_a_linear_model_is_the_evidence_of_the_multi_output_gp():
    data, model = make_data(4), make_linear(4, 2)
    noise = torch.tensor([0.1, 0.4, 0.2, 0.9], dtype=F64)
    model.likelihood.initialize(data.flat().y, None, noise)
    basis = torch.linalg.qr(torch.randn(4, 2, dtype=F64)).Q * torch.tensor([1.5, 0.7])
    model.decoder.loadings.data = noise.sqrt().unsqueeze(-1) * basis  # D^-1/2 W has orthogonal columns
    model.decoder.offset.data = torch.randn(4, dtype=F64)
    assert model.refine(data, 0) == pytest.approx(dense_evidence(model, data), rel=1e-8)


def test_elbo_is_a_bound_if_the_loadings_are_not_orthogonal():
    data, model = make_data(4), make_linear(4, 2)
    model.likelihood.initialize(data.flat().y, None, torch.full((4,), 0.3, dtype=F64))
    model.decoder.loadings.data = torch.tensor([[1.0, 1.0], [1.0, 0.9], [0.2, 0.4], [0.0, 0.3]], dtype=F64)
    assert model.refine(data, 0) < dense_evidence(model, data) - 1e-4


def test_a_channel_for_each_column_is_exact_with_gaps():
    data, model = make_data(3, gaps=True), make_linear(3, 3)
    elbo = model.initialize(data, 0, rotation="columns")
    loadings = model.decoder.loadings.detach()
    assert torch.equal(loadings, torch.diag(loadings.diagonal()))
    assert elbo == pytest.approx(dense_evidence(model, data), abs=1e-6)  # an unobserved column has information 1e-6


def test_lbfgs_raises_the_bound():
    data, model = make_data(3), make_linear(3, 2)
    start = model.initialize(data, 0)
    end = model.initialize(data, 5)
    assert start < end <= dense_evidence(model, data) + 1e-9


def test_principal_components_of_complete_rows_are_those_of_the_svd():
    y = torch.randn(40, 5, dtype=F64) @ torch.randn(5, 5, dtype=F64) + 3
    loadings, offset, eigenvalues = principal_components(y, None, 3)
    centred = y.numpy() - y.numpy().mean(0)
    _, s, vt = np.linalg.svd(centred, full_matrices=False)
    np.testing.assert_allclose(offset, y.numpy().mean(0))
    np.testing.assert_allclose(eigenvalues, s**2 / 40, rtol=1e-8)
    expected = (vt[:3].T * s[:3]) / math.sqrt(40)
    signs = np.sign((expected * loadings.numpy()).sum(0))
    np.testing.assert_allclose(loadings, expected * signs, atol=1e-8)


def test_principal_components_with_gaps_are_those_of_the_complete_low_rank_matrix():
    scores, directions = torch.randn(300, 2, dtype=F64), torch.randn(2, 6, dtype=F64)
    y = scores @ directions + torch.arange(6.0, dtype=F64)
    observed = torch.rand(y.shape) > 0.15
    loadings, offset, _ = principal_components(torch.where(observed, y, 0.0), observed, 2)
    covariance = np.cov(y.numpy().T, bias=True)
    found = (loadings @ loadings.mT).numpy()
    assert np.abs(found - covariance).max() < 0.02 * np.abs(covariance).max()
    assert (offset - y.mean(0)).abs().max() < 0.05


def test_components_beyond_the_columns_are_zero():
    loadings, _, eigenvalues = principal_components(torch.randn(20, 2, dtype=F64), None, 4)
    assert loadings.shape == (2, 4)
    assert eigenvalues.shape == (2,)
    assert not loadings[:, 2:].any()


def test_wrong_arguments_are_refused():
    data, model = make_data(3), make_linear(3, 2)
    with pytest.raises(ArgumentError, match="data: expected a GroupedDataset"):
        model.initialize(None)
    with pytest.raises(ArgumentError, match="rotation: expected one of 'components', 'columns', got 'rows'"):
        model.initialize(data, 0, rotation="rows")
    with pytest.raises(ArgumentError, match="iterations: expected an integer >= 0"):
        model.refine(data, -1)
    model.encoder = MLPEncoder([3], 2, (4,))
    with pytest.raises(ArgumentError, match="expected a LinearEncoder and a LinearDecoder, got MLPEncoder"):
        model.initialize(data)


def test_an_element_that_is_constant_in_the_thinned_members_has_its_variance_as_noise(monkeypatch):
    monkeypatch.setattr(linear_start, "_MANY", 60)
    rows = make_data(3, sizes=(5,) * 20).flat()
    y = rows.y.clone()
    y[:, 2] = (rows.group == 8).double()
    data = GroupedDataset(y, rows.x, rows.group)
    assert not linear_start.thinned(data, 2, 60).y[..., 2].any()
    model = make_linear(3, 2)
    for start in (model.initialize, model.refine):
        start(data)
        assert model.likelihood.constant_variance()[2] > 0.5 * y[:, 2].var()
        assert model.likelihood.constant_variance()[0] < y[:, 0].var()


def test_a_data_set_on_disk_starts_as_in_memory(monkeypatch):
    data = make_data(5, sizes=(40, 3, 25, 8))
    lazy = LazyDataset.from_array(data.flat().y.numpy(), data.flat().x, data.flat().group)
    monkeypatch.setattr(linear_start, "_VALUES", 300)  # two groups at a time
    batch = data[[1, 3]]
    whole = linear_start.smallest_errors(data, batch)
    torch.testing.assert_close(linear_start.smallest_errors(lazy, batch), whole, rtol=1e-12, atol=0)
    y = data.flat().y
    torch.testing.assert_close(linear_start._whole_variance(lazy, batch), y.var(0, correction=0), rtol=1e-12, atol=0)
    models = [make_linear(5, 2), make_linear(5, 2)]
    models[1].load_state_dict(models[0].state_dict())
    first, second = (model.initialize(part, 3) for model, part in zip(models, (data, lazy), strict=True))
    assert first == pytest.approx(second, rel=1e-9)


def test_loadings_stay_components_of_all_members_if_lbfgs_sees_few(monkeypatch):
    """Few members and many channels would be fitted without an error: 64 channels once forecast ten times worse."""
    data = make_data(12, sizes=(5,) * 40)
    monkeypatch.setattr(linear_start, "_MANY", 160)  # 20 members of 8 channels
    start, model = make_linear(12, 8), make_linear(12, 8)
    model.load_state_dict(start.state_dict())
    start.initialize(data, 0)
    model.initialize(data, 5)
    torch.testing.assert_close(model.decoder.loadings, start.decoder.loadings)
    components = principal_components(data.members.y, None, 8)[0]
    torch.testing.assert_close(model.decoder.loadings, components)
    assert not torch.equal(model.likelihood.constant_variance(), start.likelihood.constant_variance())
    model.refine(data.subset([0, 1, 2, 3]), 5)  # it sees all of these
    assert not torch.allclose(model.decoder.loadings, components)
