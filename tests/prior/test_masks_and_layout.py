"""What must not matter: what stands at masked members, the order of groups, members and blocks, the batch layout."""

import gpytorch
import pytest
import torch
from prior_cases import CASES, Data, answers, assert_same, data_for, scale, with_lengthscale

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, LocalChannels


@pytest.fixture(params=sorted(CASES))
def case(request):
    return CASES[request.param]()


def _gradients(case, data: Data) -> dict[str, torch.Tensor]:
    """Gradients of a fixed mixture of all answers with respect to data and parameters."""
    leaves = {name: getattr(data, name).clone().requires_grad_() for name in ("x", "mean", "variance")}
    case.prior.requires_grad_(True)
    posterior = case.prior.posterior(leaves["x"], leaves["mean"], leaves["variance"], data.mask)
    observed = data.mask.unsqueeze(-1)
    got = answers(posterior, data.x_new)
    total = got["kl"].sum() + 0.3 * got["log_evidence"].sum()
    total = total + got["new mean"].sin().sum() + got["new variance"].sum()
    total = total + torch.where(observed, got["mean"].sin() + got["variance"], 0.0).sum()
    leaves |= dict(case.prior.named_parameters())
    gradients = torch.autograd.grad(total, list(leaves.values()), allow_unused=True)
    return {name: grad for name, grad in zip(leaves, gradients, strict=True) if grad is not None}


def test_masked_member_equals_deleted_member(case):
    data = data_for(case)
    posterior = case.prior.posterior(*data.observations)
    full = answers(posterior, data.x_new)
    for g in range(3):
        seen = data.mask[g]
        one = slice(g, g + 1)
        deleted = case.prior.posterior(data.x[one, seen], data.mean[one, seen], data.variance[one, seen])
        alone = answers(deleted, data.x_new[one])
        kept = {name: value[one] for name, value in full.items()}
        kept["mean"], kept["variance"] = kept["mean"][:, seen], kept["variance"][:, seen]
        assert_same(kept, alone)


def test_masked_member_gives_the_gradients_of_a_deleted_member(case):
    data = data_for(case, groups=1)
    seen = data.mask[0]
    assert not seen.all()
    full = _gradients(case, data)
    deleted = Data(data.x[:, seen], data.mean[:, seen], data.variance[:, seen], data.mask[:, seen], data.x_new)
    alone = _gradients(case, deleted)
    for name in ("x", "mean", "variance"):
        # GPyTorch subtracts the mean of x before it takes distances: rounding leaks through x, and only through x
        assert full[name][0, ~seen].abs().max() <= (1e-12 if name == "x" else 0), name
        full[name] = full[name][:, seen]
    assert_same(full, alone, rtol=1e-8)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -float("inf"), 0.0, -1.0, -999.0])
def test_junk_at_masked_members_is_harmless(case, junk):
    data = data_for(case)
    clean = answers(case.prior.posterior(*data.observations), data.x_new)
    clean_gradients = _gradients(case, data)
    for name in ("mean", "variance"):
        getattr(data, name)[~data.mask] = junk
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    assert_same(got, clean, rtol=0, atol=0)
    gradients = _gradients(case, data)
    assert all(g.isfinite().all() for g in gradients.values())
    assert_same(gradients, clean_gradients, rtol=0, atol=0)


@pytest.mark.parametrize("junk", [float("nan"), float("inf"), -999.0])
def test_junk_in_features_of_masked_members_is_harmless(case, junk):
    data = data_for(case)
    clean = answers(case.prior.posterior(*data.observations), data.x_new)
    clean_gradients = _gradients(case, data)
    data.x[~data.mask] = junk
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    for name in ("mean", "variance"):  # a masked member answers at its own x: only the observed are comparable
        assert got[name].isfinite().all()
        got[name], clean[name] = got[name][data.mask], clean[name][data.mask]
    assert_same(got, clean, rtol=1e-8)  # GPyTorch centres x before it takes distances: other rounding
    gradients = _gradients(case, data)
    assert all(g.isfinite().all() for g in gradients.values())
    assert_same(gradients, clean_gradients, rtol=1e-6, atol=1e-9)


def test_samples_are_finite_with_junk_at_masked_members(case):
    data = data_for(case)
    for name in ("x", "mean", "variance"):
        getattr(data, name)[~data.mask] = float("nan")
    data.mean.requires_grad_()
    posterior = case.prior.posterior(*data.observations)
    paths = posterior.rsample_paths(data.x_new, (3,))
    assert paths.members.isfinite().all()
    (paths.members.square().sum() + paths.new.square().sum() + posterior.rsample((), marginals=True).sum()).backward()
    assert data.mean.grad.isfinite().all()
    assert all(p.grad is None or p.grad.isfinite().all() for p in case.prior.parameters())


def test_permuting_groups_permutes_answers(case):
    data = data_for(case, groups=4)
    order = torch.tensor([2, 0, 3, 1])
    straight = answers(case.prior.posterior(*data.observations), data.x_new)
    shuffled = Data(*(t[order] for t in vars(data).values()))
    got = answers(case.prior.posterior(*shuffled.observations), shuffled.x_new)
    assert_same(got, {name: value[order] for name, value in straight.items()})


def test_permuting_members_permutes_answers(case):
    data = data_for(case)
    order = torch.tensor([3, 1, 0, 2])
    straight = answers(case.prior.posterior(*data.observations), data.x_new)
    shuffled = Data(*(t[:, order] for t in data.observations), data.x_new)
    got = answers(case.prior.posterior(*shuffled.observations), data.x_new)
    for name in ("mean", "variance"):
        straight[name] = straight[name][:, order]
    assert_same(got, straight)


def test_batched_equals_looped(case):
    data = data_for(case, batch=(2, 3), groups=2)
    posterior = case.prior.posterior(*data.observations)
    batched = answers(posterior, data.x_new)
    for i in range(2):
        for j in range(3):
            one = Data(*(t[i, j] for t in vars(data).values()))
            looped = answers(case.prior.posterior(*one.observations), one.x_new)
            assert_same({name: value[i, j] for name, value in batched.items()}, looped)
    assert posterior.rsample((5,)).shape == (5, 2, 3, 2, 4, case.channels)
    assert posterior.rsample_paths(data.x_new, (5,)).new.shape == (5, 2, 3, 2, 3, case.channels)
    assert case.prior.sample(data.x, (5,)).shape == (5, 2, 3, 2, 4, case.channels)


def test_gradients_are_the_same_batched_and_looped():
    case = CASES["ard"]()
    data = data_for(case, batch=(2,), groups=2)
    batched = _gradients(case, data)
    parts = [_gradients(case, Data(*(t[i] for t in vars(data).values()))) for i in range(2)]
    for name in ("x", "mean", "variance"):
        batched_part = torch.stack([part[name] for part in parts])
        torch.testing.assert_close(batched.pop(name), batched_part, rtol=1e-8, atol=1e-10)
    for name, value in batched.items():
        torch.testing.assert_close(value, sum(part[name] for part in parts), rtol=1e-8, atol=1e-10)


def test_ragged_groups_equal_groups_looped_at_their_own_sizes(case):
    sizes = [4, 1, 3, 2]
    data = data_for(case, groups=4, ragged=False)
    data.mask = torch.arange(4).expand(4, 4) < torch.tensor(sizes).unsqueeze(-1)
    got = answers(case.prior.posterior(*data.observations), data.x_new)
    for g, size in enumerate(sizes):
        one = slice(g, g + 1)
        parts = (data.x[one, :size], data.mean[one, :size], data.variance[one, :size])
        alone = answers(case.prior.posterior(*parts), data.x_new[one])
        kept = {name: value[one] for name, value in got.items()}
        kept["mean"], kept["variance"] = kept["mean"][:, :size], kept["variance"][:, :size]
        assert_same(kept, alone)


def test_all_true_mask_equals_no_mask(case):
    data = data_for(case, ragged=False)
    without = answers(case.prior.posterior(data.x, data.mean, data.variance), data.x_new)
    assert_same(answers(case.prior.posterior(*data.observations), data.x_new), without, rtol=0, atol=0)


def test_blocks_in_another_order_reorder_the_channels():
    case = CASES["many_blocks"]()  # channels 0 | 1 | 2 3 | 4 5
    data = data_for(case)
    blocks = list(case.prior.blocks)
    moved = FactorizedGPPrior([blocks[3], blocks[0], blocks[2], blocks[1]])
    channels = torch.tensor([4, 5, 0, 2, 3, 1])
    straight = answers(case.prior.posterior(*data.observations), data.x_new)
    got = answers(
        moved.posterior(data.x, data.mean[..., channels], data.variance[..., channels], data.mask), data.x_new
    )
    for name in ("mean", "variance", "new mean", "new variance"):
        straight[name] = straight[name][..., channels]
    assert_same(got, straight)
    assert (moved.num_channels, moved.num_local_channels, moved.num_global_channels) == (6, 3, 3)


def test_shared_kernel_equals_batched_kernel_with_equal_parameters():
    shared = scale(with_lengthscale(gpytorch.kernels.RBFKernel(), 0.8), 1.3)
    own = with_lengthscale(gpytorch.kernels.RBFKernel(batch_shape=torch.Size([3])), torch.full((3, 1, 1), 0.8))
    own = scale(own, [1.3] * 3, (3,))
    one, many = FactorizedGPPrior([LocalChannels(3, shared)]), FactorizedGPPrior([LocalChannels(3, own)])
    own.base_kernel.lengthscale = torch.full((3, 1, 1), 0.8, dtype=torch.float64)
    g = torch.Generator().manual_seed(4)
    x = torch.rand(2, 4, 1, generator=g).double()
    mean, variance = torch.randn(2, 4, 3, generator=g).double(), torch.rand(2, 4, 3, generator=g).double() + 0.1
    x_new = torch.rand(2, 5, 1, generator=g).double()
    assert_same(answers(one.posterior(x, mean, variance), x_new), answers(many.posterior(x, mean, variance), x_new))
    torch.testing.assert_close(one(x).covariance_matrix, many(x).covariance_matrix)
    torch.manual_seed(3)
    first = one.sample(x, (2,))
    torch.manual_seed(3)
    torch.testing.assert_close(first, many.sample(x, (2,)), rtol=1e-6, atol=1e-6)


def test_global_channels_equal_local_channels_with_a_constant_kernel():
    """The paper: a global channel is the local kernel with lengthscale -> infinity."""
    kernel = gpytorch.kernels.ConstantKernel().double()
    kernel.constant = torch.tensor(1.9, dtype=torch.float64)
    local = FactorizedGPPrior([LocalChannels(2, kernel)])
    flat = FactorizedGPPrior([GlobalChannels(2, variance=1.9)])
    g = torch.Generator().manual_seed(2)
    x, x_new = torch.rand(3, 4, 1, generator=g).double(), torch.rand(3, 2, 1, generator=g).double()
    mean, variance = torch.randn(3, 4, 2, generator=g).double(), torch.rand(3, 4, 2, generator=g).double() + 0.05
    mask = torch.tensor([[1, 1, 1, 1], [1, 0, 1, 1], [0, 0, 0, 0]]).bool()
    left = answers(local.posterior(x, mean, variance, mask), x_new)
    assert_same(left, answers(flat.posterior(x, mean, variance, mask), x_new))


def test_order_of_the_letters_channels_do_not_mix():
    """Each answer of channel l depends on the pseudo-observations of channel l alone."""
    case = CASES["many_blocks"]()
    data = data_for(case)
    before = case.prior.posterior(*data.observations)
    data.mean[..., 1] += 1.0
    after = case.prior.posterior(*data.observations)
    moved = (after.mean != before.mean).any(0).any(0)
    assert moved.tolist() == [False, True, False, False, False, False]
    assert ((after.kl_channels != before.kl_channels).any(0)).tolist() == moved.tolist()
