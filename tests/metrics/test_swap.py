"""Swapped latents against pairs decoded one by one."""

import pytest
import torch
from gpytorch.kernels import PeriodicKernel
from metric_cases import make_circle_held_out, make_circle_model, make_held_out, make_linear_model

from fgp_gpytorch import VAE, LocalChannels
from fgp_gpytorch.coupled import CorrelatedPrior, ProductPrior
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.metrics import held_out_mse, swap_errors
from fgp_gpytorch.metrics.swap import other_group
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


@pytest.mark.parametrize("groups", [2, 3, 7])
def test_every_group_gives_its_local_latents_to_another_one(groups):
    other = other_group(groups, seed=2)
    assert sorted(other.tolist()) == list(range(groups))
    assert not (other == torch.arange(groups)).any()


def test_errors_are_those_of_the_pairs_one_by_one():
    model, held_out = make_linear_model().train(), make_held_out()
    found = swap_errors(model, held_out, seed=2, batch_size=3)
    assert model.training
    model.eval()
    to_global, to_local = [], []
    for b, a in enumerate(other_group(4, seed=2).tolist()):
        for target, errors in ((b, to_global), (a, to_local)):
            x = held_out.x_new[[target]]
            local = model.infer(held_out.context[[a]]).predict(x).mean[..., :2]
            shared = model.infer(held_out.context[[b]]).predict(x).mean[..., 2:]
            errors.append((model.decoder(torch.cat([local, shared], -1)) - held_out.y_new[[target]]).square().mean())
    assert found.to_global == pytest.approx(torch.stack(to_global).mean().item())
    assert found.to_local == pytest.approx(torch.stack(to_local).mean().item())
    assert found.unswapped == pytest.approx(held_out_mse(model, held_out))


def test_local_latents_that_say_nothing_of_the_group_can_be_swapped():
    held_out = make_circle_held_out()
    found = swap_errors(make_circle_model(), held_out, seed=1)
    number = torch.linspace(-1, 1, 6)
    assert found.unswapped < 1e-3
    assert found.to_global == pytest.approx(found.unswapped, rel=1e-6)
    distance = (number - number[other_group(6, 1)]).square().mean() / 3  # one of three elements is another's
    assert found.to_local == pytest.approx(distance.item(), abs=1e-3)


def test_global_channels_are_those_of_the_blocks_or_the_last_ones_of_another_prior():
    assert make_linear_model().prior.is_global.tolist() == [False, False, True]
    other = CorrelatedPrior([LocalChannels(1, PeriodicKernel())], 3)
    assert other.is_global.tolist() == [False, True, True, True]
    assert ProductPrior(2).is_global.tolist() == [False, False]


def test_swap_says_what_is_wrong_with_its_arguments():
    vae = VAE(MLPEncoder([3], 2, (8,)), MLPDecoder(2, [3], (8,)), 2)
    with pytest.raises(DataError, match="expected local and global channels, got 0 global ones of 2"):
        swap_errors(vae, make_held_out())
    with pytest.raises(GroupError, match="at least two groups to mix, got 1"):
        swap_errors(make_linear_model(), make_held_out((3,)))
