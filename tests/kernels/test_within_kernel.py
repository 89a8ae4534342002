"""The kernel of inner groups against loops, and GPyTorch's demands on a kernel."""

import math

import gpytorch
import numpy as np
import pytest
import torch

import oracles
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.kernels import WithinKernel, seen_features
from fgp_gpytorch.saving import describe, rebuild

F64 = torch.float64
J = torch.Size([2])


def _matern(lengthscale=0.7, **options):
    kernel = gpytorch.kernels.MaternKernel(nu=1.5, **options).double()
    kernel.lengthscale = torch.as_tensor(lengthscale, dtype=F64)
    return kernel


def _rows(n, seed=0, features=1, at=None):
    """Rows of features and a code of 0 to 2, the code in column `at`."""
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(n, features + 1, generator=generator, dtype=F64)
    x[:, features if at is None else at] = torch.arange(n, dtype=F64) % 3
    return x


def _loops(k, left, right):
    return np.array([[float(k(a, b, math)) for b in right.tolist()] for a in left.tolist()])


@pytest.mark.parametrize("feature", [0, 1, 2, -1])
def test_values_equal_loops_wherever_the_code_stands(feature):
    left, right = _rows(7, 0, 2, feature % 3), _rows(5, 1, 2, feature % 3)
    base = gpytorch.kernels.RBFKernel(ard_num_dims=2).double()
    base.lengthscale = torch.tensor([0.6, 2.1], dtype=F64)
    kernel = WithinKernel(base, feature)
    wanted = oracles.within(oracles.rbf([0.6, 2.1]), feature % 3)
    np.testing.assert_allclose(kernel(left, right).to_dense().detach(), _loops(wanted, left, right), atol=1e-14)
    own = np.diag(_loops(wanted, left, left))
    np.testing.assert_allclose(kernel(left, diag=True).detach(), own, atol=1e-14)
    unequal = kernel(left[:5], right, diag=True).detach()
    np.testing.assert_allclose(unequal, np.diag(_loops(wanted, left[:5], right)), atol=1e-14)


def test_codes_that_almost_agree_are_different():
    x = torch.tensor([[0.0, 1.0], [0.0, 1.0 + 1e-12]], dtype=F64)
    assert WithinKernel(gpytorch.kernels.ConstantKernel().double(), 1)(x).to_dense()[0, 1] == 0


def test_hidden_columns_and_active_dims_do_not_reach_the_base():
    x = torch.cat([_rows(6), torch.randn(6, 1, dtype=F64)], dim=-1)  # time, code, something else
    wanted = WithinKernel(_matern(), 1)(x[:, :2]).to_dense()
    torch.testing.assert_close(WithinKernel(_matern(), 1, hidden=[2])(x).to_dense(), wanted)
    torch.testing.assert_close(WithinKernel(_matern(), -1, active_dims=(0, 1))(x).to_dense(), wanted)
    torch.testing.assert_close(WithinKernel(_matern(active_dims=[0]), 1)(x).to_dense(), wanted)


def test_batches_of_kernels_and_of_rows_equal_loops_over_them():
    kernel = WithinKernel(_matern(torch.tensor([[[0.4]], [[1.9]]]), batch_shape=J), 1)
    assert kernel.batch_shape == J
    x = torch.stack([_rows(4, seed) for seed in range(3)])  # shape: (3, N, D)
    whole = kernel(x.unsqueeze(-3)).to_dense()  # shape: (3, J, N, N)
    for i in range(3):
        for j, lengthscale in enumerate((0.4, 1.9)):
            wanted = WithinKernel(_matern(lengthscale), 1)(x[i]).to_dense()
            torch.testing.assert_close(whole[i, j], wanted)
            torch.testing.assert_close(kernel[j](x[i]).to_dense(), wanted)
    assert WithinKernel(_matern(), 1).expand_batch(J).batch_shape == J


def test_last_dim_is_batch_takes_every_feature_but_the_code():
    x, kernel = _rows(5, features=2, at=1), WithinKernel(_matern(), 1)
    with pytest.warns(DeprecationWarning, match="last_dim_is_batch"):
        whole = kernel(x, last_dim_is_batch=True).to_dense()
    with pytest.warns(DeprecationWarning, match="last_dim_is_batch"):
        diagonal = kernel(x, diag=True, last_dim_is_batch=True)
    assert whole.shape == (2, 5, 5)
    for index, feature in enumerate((0, 2)):
        wanted = kernel(x[:, [feature, 1]]).to_dense()
        torch.testing.assert_close(whole[index], wanted)
        torch.testing.assert_close(diagonal[index], wanted.diagonal())


def test_several_outputs_for_each_input_share_the_code():
    base = gpytorch.kernels.RBFKernelGrad().double()
    x, kernel = _rows(4), WithinKernel(base, 1)
    whole = kernel(x).to_dense()
    assert whole.shape == (8, 8)
    same = (x[:, 1, None] == x[:, 1]).repeat_interleave(2, 0).repeat_interleave(2, 1)
    torch.testing.assert_close(whole, torch.where(same, base(x[:, :1]).to_dense(), 0.0))


def test_gradients_reach_hyperparameters_and_features():
    kernel = WithinKernel(gpytorch.kernels.ScaleKernel(gpytorch.kernels.RBFKernel()).double(), 1)
    x = _rows(5).requires_grad_()

    def matrix(x, raw):
        return torch.func.functional_call(kernel, {"base_kernel.raw_outputscale": raw}, (x, x)).to_dense()

    with gpytorch.settings.lazily_evaluate_kernels(False):
        raw = kernel.base_kernel.raw_outputscale.detach().clone().requires_grad_()
        gradient_x, gradient_raw = torch.autograd.grad(matrix(x, raw).square().sum(), [x, raw])
    assert gradient_raw.item() > 0
    assert bool((gradient_x[:, 1] == 0).all())
    assert bool((gradient_x[:, 0] != 0).any())


def test_kernel_is_described_and_built_again():
    kernel = WithinKernel(_matern(), -1, hidden=[1], active_dims=(0, 1, 3))
    copy = rebuild(describe(kernel)).double()
    copy.load_state_dict(kernel.state_dict())
    x = torch.randn(5, 4, dtype=F64)
    x[:, 3] = torch.tensor([0.0, 0, 1, 1, 0])
    torch.testing.assert_close(copy(x).to_dense(), kernel(x).to_dense())


def test_seen_features_are_those_that_change_the_kernel():
    constant, matern = gpytorch.kernels.ConstantKernel(), gpytorch.kernels.MaternKernel
    scale = gpytorch.kernels.ScaleKernel
    cases = [
        (constant, []),
        (matern(), [0, 1, 2]),
        (matern(active_dims=[0]), [0]),
        (scale(matern(active_dims=[2])), [2]),
        (scale(constant), []),
        (WithinKernel(constant, 1), [1]),
        (WithinKernel(matern(), 1), [0, 1, 2]),
        (WithinKernel(matern(active_dims=[1]), 0), [0, 2]),
        (WithinKernel(matern(), 0, hidden=[1]), [0, 2]),
        (WithinKernel(matern(), 0, active_dims=(2, 1)), [1, 2]),
        (constant + matern(active_dims=[1]), [1]),
        (constant * WithinKernel(constant, -1), [2]),
    ]
    x = torch.randn(6, 3, dtype=F64).round()
    for kernel, seen in cases:
        assert seen_features(kernel, 3) == seen
        changed = torch.where(torch.tensor([d in seen for d in range(3)]), x, x + 5 * torch.rand_like(x))
        torch.testing.assert_close(kernel.double()(x).to_dense(), kernel(changed).to_dense())


def test_wrong_arguments_are_refused():
    matern = gpytorch.kernels.MaternKernel()
    with pytest.raises(ArgumentError, match="base_kernel: expected a"):
        WithinKernel("matern", 1)
    with pytest.raises(ArgumentError, match=r"feature: expected the number of a column of x, got 'utterance'\. Try 1"):
        WithinKernel(matern, "utterance")
    with pytest.raises(ShapeError, match=r"x: expected a column 1 .* got D = 1 features\. Try"):
        WithinKernel(matern, 1)(torch.zeros(3, 1)).to_dense()
