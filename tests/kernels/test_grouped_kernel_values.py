"""The kernels' numbers: against NumPy loops, in any row order, batch and dtype."""

import gpytorch
import pytest
import torch
from gpytorch.kernels import MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from grouped_reference import DenseLocalKernel, grouped_rows, loop_matrix, loop_periodic, loop_rbf
from hypothesis import given, settings
from hypothesis import strategies as st

from fgp_gpytorch.errors import ArgumentError, DataError, GroupError, ShapeError
from fgp_gpytorch.kernels import GlobalKernel, GroupDeltaKernel, LocalKernel
from fgp_gpytorch.kernels._group_operators import GroupBlockLinearOperator

RAGGED = (4, 1, 7, 3, 6, 10)  # 6 and 7 share a stack: one of them is padded


def float64(value):
    return torch.tensor(value, dtype=torch.float64)


def rbf(lengthscale=(0.7, 1.9), **kwargs):
    kernel = RBFKernel(ard_num_dims=len(lengthscale), **kwargs).double()
    kernel.lengthscale = float64(lengthscale)
    return kernel


def scaled(kernel, amplitude):
    kernel = ScaleKernel(kernel).double()
    kernel.outputscale = float64(amplitude)
    return kernel


def assert_close(got, expected, tolerance=1e-12):
    torch.testing.assert_close(got, expected, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("shuffle", [False, True])
@pytest.mark.parametrize("sizes", [(5, 5, 5), RAGGED, (1,), (12,)])
class TestAgainstLoops:
    def test_local_kernel_is_the_delta_times_its_base(self, sizes, shuffle):
        x = grouped_rows(sizes, shuffle=shuffle)
        expected = loop_matrix(lambda w, v: 2.5 * loop_rbf((0.7, 1.9))(w, v), x)
        assert_close(LocalKernel(scaled(rbf(), 2.5))(x).to_dense(), expected)

    @pytest.mark.parametrize("kernel", [GroupDeltaKernel(), GlobalKernel()])
    def test_delta_and_global_kernel_are_one_within_a_group(self, kernel, sizes, shuffle):
        x = grouped_rows(sizes, shuffle=shuffle)
        assert_close(kernel(x).to_dense(), loop_matrix(lambda w, v: 1.0, x))

    def test_cross_covariance_pairs_rows_of_one_group_only(self, sizes, shuffle):
        x1 = grouped_rows(sizes, shuffle=shuffle)
        x2 = grouped_rows((2, 6, 1, 1, 1, 1, 1, 1, 3), seed=1)  # some groups of x1, some it does not have
        expected = loop_matrix(loop_rbf((0.7, 1.9)), x1, x2)
        cross = LocalKernel(rbf())(x1, x2)
        assert_close(cross.to_dense(), expected)
        assert_close(cross @ torch.eye(len(x2)).double(), expected)
        assert_close(cross.mT.to_dense(), expected.mT)

    def test_train_rows_followed_by_test_rows_stay_in_blocks(self, sizes, shuffle):
        x = torch.cat([grouped_rows(sizes, shuffle=shuffle), grouped_rows((3, 2), seed=1)])
        covariance = LocalKernel(rbf())(x).evaluate_kernel()
        assert isinstance(covariance, GroupBlockLinearOperator)
        assert_close(covariance.to_dense(), loop_matrix(loop_rbf((0.7, 1.9)), x))

    def test_diagonal_equals_diagonal_of_the_matrix(self, sizes, shuffle):
        x = grouped_rows(sizes, shuffle=shuffle)
        kernel = LocalKernel(gpytorch.kernels.LinearKernel().double())
        expected = kernel(x).to_dense().diagonal()
        assert_close(kernel(x, diag=True), expected)
        assert_close(kernel(x).diagonal(), expected)
        assert_close(kernel(x).evaluate_kernel().diagonal(), expected)


def test_diagonal_between_two_tables_is_zero_where_groups_differ():
    x1, x2 = grouped_rows(RAGGED), grouped_rows(RAGGED, seed=3, shuffle=True)
    expected = loop_matrix(loop_rbf((0.7, 1.9)), x1, x2).diagonal()
    assert_close(LocalKernel(rbf())(x1, x2, diag=True), expected)
    assert_close(GlobalKernel()(x1, x2, diag=True), loop_matrix(lambda w, v: 1.0, x1, x2).diagonal())


def test_base_active_dims_count_the_features_after_the_group_column():
    x = grouped_rows(RAGGED, num_features=3)
    kernel = LocalKernel(rbf((0.9,), active_dims=[2]))
    assert_close(kernel(x).to_dense(), loop_matrix(lambda w, v: loop_rbf((0.9,))(w[2:], v[2:]), x))


def test_own_active_dims_choose_columns_with_the_group_first():
    x = grouped_rows(RAGGED, num_features=3)
    moved = x[:, [2, 1, 0, 3]]
    kernel = LocalKernel(rbf((0.9,)), active_dims=(2, 3))
    assert_close(kernel(moved).to_dense(), LocalKernel(rbf((0.9,)))(x[:, [0, 3]]).to_dense())
    assert_close(GroupDeltaKernel(active_dims=(2,))(moved).to_dense(), GroupDeltaKernel()(x).to_dense())


def test_sums_and_products_of_base_kernels_are_kept():
    x = grouped_rows(RAGGED)
    periodic = PeriodicKernel(active_dims=[0]).double()
    periodic.period_length, periodic.lengthscale = float64(1.7), float64(0.6)

    def expected(w, v):
        return loop_periodic(1.7, 0.6)(w, v) * loop_rbf((0.7, 1.9))(w, v) + 0.3 * loop_rbf((1.1,))(w[1:], v[1:])

    base = periodic * rbf() + scaled(rbf((1.1,), active_dims=[1]), 0.3)
    assert_close(LocalKernel(base)(x).to_dense(), loop_matrix(expected, x))


def test_sums_scalings_and_products_of_grouped_kernels_stay_in_blocks():
    x = grouped_rows(RAGGED, shuffle=True)
    local, other = LocalKernel(rbf()), LocalKernel(rbf((2.0, 0.3)))
    k1, k2 = loop_rbf((0.7, 1.9)), loop_rbf((2.0, 0.3))
    cases = {
        "Local + Local": (local + other, lambda w, v: k1(w, v) + k2(w, v)),
        "Global + Local": (GlobalKernel() + local, lambda w, v: 1 + k1(w, v)),
        "Scale(Local)": (scaled(local, 3.0), lambda w, v: 3 * k1(w, v)),
        "Scale(Global) + Local": (scaled(GlobalKernel(), 3.0) + local, lambda w, v: 3 + k1(w, v)),
        "Local * Local": (local * other, lambda w, v: k1(w, v) * k2(w, v)),
        "Delta * RBF": (GroupDeltaKernel() * rbf(active_dims=[1, 2]), k1),
    }
    for name, (kernel, k) in cases.items():
        covariance = kernel(x).evaluate_kernel()
        assert isinstance(covariance, GroupBlockLinearOperator), name
        assert_close(covariance.to_dense(), loop_matrix(k, x))
        assert_close(kernel(x, x[:5]).to_dense(), loop_matrix(k, x, x[:5]))
        assert_close(kernel(x, diag=True), loop_matrix(k, x).diagonal())


def test_base_batch_shape_becomes_the_batch_of_the_covariance():
    x = grouped_rows(RAGGED, shuffle=True)
    base = RBFKernel(batch_shape=torch.Size([3])).double()
    base.lengthscale = float64([0.3, 1.0, 4.0]).view(3, 1, 1)
    kernel = LocalKernel(base)
    assert kernel.batch_shape == (3,)
    covariance = kernel(x)
    for j, scale in enumerate((0.3, 1.0, 4.0)):
        expected = loop_matrix(loop_rbf((scale, scale)), x)
        assert_close(covariance.to_dense()[j], expected)
        assert_close(covariance[j].to_dense(), expected)
        assert_close(kernel[j](x).to_dense(), expected)
        assert_close(kernel(x, x[:4]).to_dense()[j], expected[:, :4])
        assert_close(kernel(x, diag=True)[j], expected.diagonal())
        assert_close(kernel.expand_batch(2, 3)(x).to_dense()[1, j], expected)


def test_scale_kernel_batch_larger_than_its_base_stays_in_blocks():
    x = grouped_rows(RAGGED)
    kernel = ScaleKernel(GlobalKernel(), batch_shape=torch.Size([2])).double()
    kernel.outputscale = float64([0.5, 3.0])
    covariance = kernel(x).evaluate_kernel()
    assert isinstance(covariance, GroupBlockLinearOperator)
    delta = loop_matrix(lambda w, v: 1.0, x)
    assert_close(covariance.to_dense(), torch.stack([0.5 * delta, 3 * delta]))


def test_batches_of_rows_may_label_one_grouping_differently():
    x = torch.stack([grouped_rows(RAGGED, seed=i) for i in range(3)])
    x[1, :, 0] += 1
    x[2, :, 0] *= -2
    x = x[:, torch.randperm(31, generator=torch.Generator().manual_seed(0))]
    noise = torch.linspace(0.1, 2, 31).double()
    y = torch.randn(31, 2, generator=torch.Generator().manual_seed(0)).double()
    noisy = LocalKernel(rbf())(x).add_diagonal(noise)
    cross = LocalKernel(rbf())(x, x[:, 5:14])
    for i in range(3):
        expected = loop_matrix(loop_rbf((0.7, 1.9)), x[i]) + torch.diag(noise)
        assert_close(noisy.to_dense()[i], expected)
        assert_close(noisy[i].to_dense(), expected)
        assert_close(noisy[..., 3:8, 1:30].to_dense()[i], expected[3:8, 1:30])
        assert_close(noisy.solve(y)[i], torch.linalg.solve(expected, y), 1e-10)
        assert_close(noisy.logdet()[i], torch.logdet(expected), 1e-10)
        assert_close(cross.to_dense()[i], loop_matrix(loop_rbf((0.7, 1.9)), x[i], x[i, 5:14]))
        assert_close(cross @ y[:9], cross.to_dense() @ y[:9])
        assert_close(GlobalKernel()(x).to_dense()[i], loop_matrix(lambda w, v: 1.0, x[i]))


@pytest.mark.parametrize("kernel", [LocalKernel(rbf()), GlobalKernel()])
def test_batches_of_rows_that_are_grouped_differently_are_refused(kernel):
    words = r"same rows to form a group in every batch element, got element 2 grouped differently.*Try one call"
    for other in ((20, 11), (1,) * 31, (4, 1, 7, 3, 16)):  # other rows, groups split, groups merged
        x = torch.stack([grouped_rows(s, seed=i) for i, s in enumerate((RAGGED, RAGGED, other))])
        with pytest.raises(GroupError, match=words):
            kernel(x)
        with pytest.raises(GroupError, match=words):
            kernel(x, diag=True)
    x = torch.stack([grouped_rows(RAGGED, seed=i) for i in range(3)])
    x[2, :, 0] += 1
    with pytest.raises(GroupError, match=words):  # the same groups, but other columns face them
        kernel(x, x[0, :9])


def test_empty_batch_gives_an_empty_batch_of_covariances():
    x = grouped_rows(RAGGED).expand(0, -1, -1)
    for kernel in (LocalKernel(rbf()), GlobalKernel()):
        assert kernel(x).to_dense().shape == (0, 31, 31)


def test_global_kernel_batch_shape_can_be_indexed_and_expanded():
    x = grouped_rows(RAGGED)
    kernel = GlobalKernel(batch_shape=torch.Size([3]))
    assert kernel(x).shape == (3, 31, 31)
    assert kernel[1](x).shape == (31, 31)
    assert kernel.expand_batch(torch.Size([2, 3]))(x).shape == (2, 3, 31, 31)
    assert_close(kernel(x)[1].to_dense(), GlobalKernel()(x).to_dense())


@pytest.mark.filterwarnings("ignore:The last_dim_is_batch argument is deprecated")
def test_last_dim_is_batch_makes_every_feature_a_batch_element_of_the_same_groups():
    x = grouped_rows(RAGGED, num_features=3)
    kernel = LocalKernel(scaled(rbf((0.9,)), 2.0))
    covariance = kernel(x, last_dim_is_batch=True)
    assert covariance.shape == (3, 31, 31)
    for d in range(3):
        alone = kernel(x[:, [0, d + 1]])
        assert_close(covariance.to_dense()[d], alone.to_dense())
        assert_close(covariance[d].to_dense(), alone.to_dense())
        assert_close(kernel(x, diag=True, last_dim_is_batch=True)[d], alone.diagonal())
    labels = x[:, :1].repeat(1, 2)
    labels[:, 1] += 4
    both = GroupDeltaKernel()(labels, last_dim_is_batch=True).to_dense()
    assert_close(both, GroupDeltaKernel()(x).to_dense().expand(2, -1, -1))
    labels[:, 1] = 4
    with pytest.raises(GroupError, match="got element 1 grouped differently from element 0"):
        GroupDeltaKernel()(labels, last_dim_is_batch=True)


def test_base_with_several_outputs_for_each_input_keeps_its_interleaving():
    x = grouped_rows((3, 1, 2, 3), shuffle=True)
    base = gpytorch.kernels.RBFKernelGrad(ard_num_dims=2).double()
    kernel = LocalKernel(base)
    dense = base(x[:, 1:]).to_dense()
    mask = (x[:, :1] == x[:, 0]).double().repeat_interleave(3, 0).repeat_interleave(3, 1)
    assert kernel.num_outputs_per_input(x, x) == 3
    assert kernel(x).shape == (27, 27)
    assert_close(kernel(x).to_dense(), dense * mask)
    assert_close(kernel(x, diag=True), dense.diagonal())
    assert_close(kernel(x, x[:4]).to_dense(), (dense * mask)[:, :12])


def test_indexing_picks_the_entries_of_the_dense_matrix():
    x = grouped_rows(RAGGED, shuffle=True)
    lazy = LocalKernel(rbf())(x)
    dense = loop_matrix(loop_rbf((0.7, 1.9)), x)
    some = torch.tensor([30, 2, 2, 17])
    for covariance in (lazy, lazy.evaluate_kernel()):
        for i in range(0, 31, 6):
            for j in range(0, 31, 7):
                assert_close(covariance[..., i, j], dense[i, j])
        assert_close(covariance[4], dense[4])
        assert_close(covariance[..., 3:20:2, 5:].to_dense(), dense[3:20:2, 5:])
        assert_close(covariance[some, :].to_dense(), dense[some])
        assert_close(covariance[some, some.flip(0)], dense[some, some.flip(0)])
    principal = lazy.evaluate_kernel()[10:25, 10:25]
    noise = torch.ones(15).double()
    assert_close(principal.add_diagonal(noise).logdet(), torch.logdet(dense[10:25, 10:25] + torch.eye(15)))


def test_priors_and_constraints_of_the_base_are_found_by_module_nesting():
    prior = gpytorch.priors.GammaPrior(2.0, 3.0)
    constraint = gpytorch.constraints.Interval(0.1, 5.0)
    base = RBFKernel(lengthscale_prior=prior, lengthscale_constraint=constraint)
    kernel = ScaleKernel(LocalKernel(base), outputscale_prior=gpytorch.priors.GammaPrior(1.0, 1.0))
    assert {name for name, *_ in kernel.named_priors()} == {
        "outputscale_prior",
        "base_kernel.base_kernel.lengthscale_prior",
    }
    assert dict(kernel.named_constraints())["base_kernel.base_kernel.raw_lengthscale_constraint"] is constraint
    assert [name for name, _ in LocalKernel(base).named_parameters()] == ["base_kernel.raw_lengthscale"]


def test_float32_agrees_with_float64_to_rounding():
    x = grouped_rows(RAGGED, shuffle=True)
    y = torch.linspace(-1, 1, 31).double()
    exact = LocalKernel(rbf())(x).add_diagonal(torch.full((31,), 0.5).double())
    single = LocalKernel(rbf().float())(x.float()).add_diagonal(torch.full((31,), 0.5))
    assert single.dtype == torch.float32
    # K + 0.5 I has a condition number below 20: 20 * 31 * eps(float32) = 7e-5
    torch.testing.assert_close(single.to_dense().double(), exact.to_dense(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(single.solve(y.float()).double(), exact.solve(y), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_neighbouring_large_labels_are_different_groups(dtype):
    labels = torch.tensor([1e6, 1e6 + 1, 1e6, 1e6 + 2, -(1e6 + 1)], dtype=dtype).unsqueeze(-1)
    expected = torch.eye(5, dtype=dtype)
    expected[0, 2] = expected[2, 0] = 1
    assert_close(GlobalKernel()(labels).to_dense(), expected)


def test_integer_and_negative_zero_labels_are_read():
    assert GroupDeltaKernel()(torch.tensor([[3], [4], [3]])).to_dense().sum() == 5
    assert GroupDeltaKernel()(torch.tensor([[0.0], [-0.0]])).to_dense().sum() == 4


def test_unseen_label_is_a_new_group():
    x = grouped_rows(RAGGED)
    new = x[:4].clone()
    new[:, 0] = 999
    assert LocalKernel(rbf())(new, x).to_dense().count_nonzero() == 0
    assert_close(LocalKernel(rbf())(new, x) @ torch.ones(31).double(), torch.zeros(4).double())
    assert_close(LocalKernel(rbf())(new).to_dense(), LocalKernel(rbf())(x[:4]).to_dense())


@pytest.mark.parametrize("kernel", [LocalKernel(rbf((1.0,))), GlobalKernel(), GroupDeltaKernel()])
class TestErrors:
    def test_label_between_integers_is_refused_at_the_call(self, kernel):
        x = torch.tensor([[0.0, 1.0], [2.5, 1.0]]).double()
        with pytest.raises(GroupError, match=r"expected integers, got 2\.5 at index \(1,\), one of 1.*Try torch.cat"):
            kernel(x)

    @pytest.mark.parametrize("bad", [float("nan"), float("inf")])
    def test_label_that_is_not_finite_is_refused(self, kernel, bad):
        x = torch.tensor([[0.0, 1.0], [bad, 1.0]]).double()
        with pytest.raises(DataError, match=r"group label.*expected finite values, got 1.*Try"):
            kernel(x[:1], x)

    def test_label_beyond_the_integers_of_its_dtype_is_refused(self, kernel):
        x = torch.tensor([[2.0**24, 1.0]])
        with pytest.raises(GroupError, match=r"less than 16777216.*torch.float32 merges.*Try float64"):
            kernel(x)
        assert kernel(x.double()).to_dense().item() == 1

    def test_forward_checks_labels_too(self, kernel):
        x = torch.tensor([[0.5, 1.0]]).double()
        with pytest.raises(GroupError, match="expected integers"):
            kernel.forward(x, x)

    def test_table_without_columns_is_refused(self, kernel):
        with pytest.raises(ShapeError, match=r"expected shape \(\*batch, N, 1 \+ D\).*got \(3, 0\).*Try"):
            kernel(torch.zeros(3, 0).double())


def test_base_that_is_no_kernel_is_refused():
    with pytest.raises(ArgumentError, match=r"base_kernel: expected a Kernel, got int\. Try gpytorch.kernels"):
        LocalKernel(3)


def test_local_kernel_without_features_is_refused():
    with pytest.raises(ShapeError, match=r"at least one feature, got \(3, 1\).*Try.*GlobalKernel"):
        LocalKernel(rbf((1.0,)))(torch.zeros(3, 1).double())


@settings(deadline=None, max_examples=60)
@given(
    labels=st.lists(st.integers(-3, 3), min_size=1, max_size=25),
    data=st.data(),
)
def test_permuting_rows_permutes_the_matrix_and_its_solves(labels, data):
    order = torch.tensor(data.draw(st.permutations(range(len(labels)))))
    features = torch.linspace(-2, 2, 2 * len(labels)).double().sin().view(-1, 2)
    x = torch.cat([torch.tensor(labels).double().unsqueeze(-1), features], dim=-1)
    kernel = LocalKernel(rbf())
    dense = DenseLocalKernel(rbf())(x).to_dense()
    permuted = kernel(x[order])
    assert_close(permuted.to_dense(), dense[order][:, order])
    noise = 0.3 + features[:, 0].square()
    solved = permuted.add_diagonal(noise[order]).solve(features[order])
    assert_close(solved, torch.linalg.solve(dense + torch.diag(noise), features)[order], 1e-9)


ZOO = {
    "linear": lambda **kw: gpytorch.kernels.LinearKernel(**kw),
    "polynomial": lambda **kw: gpytorch.kernels.PolynomialKernel(2, **kw),
    "matern": lambda **kw: MaternKernel(nu=1.5, **kw),
    "rational quadratic": lambda **kw: gpytorch.kernels.RQKernel(**kw),
    "periodic": lambda **kw: PeriodicKernel(**kw),
    "cosine": lambda **kw: gpytorch.kernels.CosineKernel(**kw),
    "spectral mixture": lambda **kw: gpytorch.kernels.SpectralMixtureKernel(2, ard_num_dims=2, **kw),
    "piecewise polynomial": lambda **kw: gpytorch.kernels.PiecewisePolynomialKernel(**kw),
    "constant": lambda **kw: gpytorch.kernels.ConstantKernel(**kw),
    "scaled linear": lambda **kw: ScaleKernel(gpytorch.kernels.LinearKernel(**kw), **kw),
    "sum and product": lambda **kw: RBFKernel(**kw) * gpytorch.kernels.LinearKernel(**kw) + RBFKernel(**kw),
}


@pytest.mark.parametrize("batch", [(), (3,), (2, 1)])
@pytest.mark.parametrize("name", ZOO)
def test_any_gpytorch_kernel_serves_as_base(name, batch):
    generator = torch.Generator().manual_seed(0)
    base = ZOO[name](batch_shape=torch.Size(batch)).double()
    with torch.no_grad():
        for parameter in base.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator).double() * 0.3)
    x, other = grouped_rows(RAGGED, shuffle=True), grouped_rows((3, 2, 4, 1), seed=1)
    ours, dense = LocalKernel(base), DenseLocalKernel(base)
    for rows in ((x,), (x, other), (torch.stack([x, torch.cat([x[:, :1], x[:, 1:].flip(0)], -1), x + 1]),)):
        got = ours(*rows)
        assert got.shape == dense(*rows).shape
        assert_close(got.to_dense(), dense(*rows).to_dense(), 1e-7)  # sqrt of rounding at distance 0
    assert_close(ours(x, diag=True), dense(x).to_dense().diagonal(dim1=-2, dim2=-1), 1e-7)


def test_matern_within_a_group_equals_matern_alone():
    x = grouped_rows(RAGGED)
    base = MaternKernel(nu=2.5, ard_num_dims=2).double()
    dense = LocalKernel(base)(x).to_dense()
    for label in x[:, 0].unique():
        rows = (x[:, 0] == label).nonzero().squeeze(-1)
        assert_close(dense[rows][:, rows], base(x[rows, 1:]).to_dense(), 1e-7)  # sqrt of rounding at distance 0
