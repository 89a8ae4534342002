"""Representation networks: loops over members, invariances, gradients, errors."""

import math

import pytest
import torch
from torch import nn

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.nets import ConvEncoder, ConvFeatures, MLPEncoder, MLPFeatures, RepresentationNetwork
from fgp_gpytorch.saving import describe, rebuild

AGGREGATIONS = ["sum", "mean", "attention"]


def make_network(aggregation, f=True):
    torch.manual_seed(3)
    network = RepresentationNetwork(MLPFeatures([3], 4, (8,)), MLPFeatures([4], 2) if f else None, aggregation)
    if aggregation == "attention":
        nn.init.normal_(network.query, std=3.0)
    return network.double()


def make_groups():
    y = torch.randn(5, 6, 3, dtype=torch.float64)
    mask = torch.rand(5, 6) < 0.6
    mask[:, 2] = True
    mask[1] = torch.arange(6) == 4  # a single member, not in front
    return y, mask


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_groups_are_the_loop_over_their_members(aggregation):
    network, (y, mask) = make_network(aggregation), make_groups()
    got = network(y, mask)
    assert got.shape == (5, 2)
    for g in range(5):
        members = [network.r(y[g, q]) for q in range(6) if mask[g, q]]
        if aggregation == "attention":
            scores = [math.exp(float((network.query @ each).detach()) / math.sqrt(4)) for each in members]
            weights = [score / sum(scores) for score in scores]
        else:
            weights = [1.0 if aggregation == "sum" else 1 / len(members)] * len(members)
        total = sum(weight * each for weight, each in zip(weights, members, strict=True))
        torch.testing.assert_close(got[g], network.f(total))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_padding_and_masked_members_and_order_do_not_matter(aggregation):
    network, (y, mask) = make_network(aggregation), make_groups()
    wanted = network(y, mask)
    garbage = torch.where(mask.unsqueeze(-1), y, torch.nan)
    padded = torch.cat([garbage, torch.full((5, 2, 3), torch.inf, dtype=y.dtype)], dim=1)
    padded_mask = torch.cat([mask, torch.zeros(5, 2, dtype=torch.bool)], dim=1)
    assert torch.equal(network(garbage, mask), wanted)
    torch.testing.assert_close(network(padded, padded_mask), wanted)
    order = torch.randperm(8)
    torch.testing.assert_close(network(padded[:, order], padded_mask[:, order]), wanted)
    torch.testing.assert_close(network(y, torch.ones_like(mask)), network(y))
    for g in range(5):
        torch.testing.assert_close(network(y[g, mask[g]].unsqueeze(0))[0], wanted[g])


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_one_member_suffices_and_none_gives_f_of_zero(aggregation):
    network, (y, mask) = make_network(aggregation), make_groups()
    torch.testing.assert_close(network(y, mask)[1], network.f(network.r(y[1, 4])))
    mask[3] = False
    y.requires_grad_()
    out = network(y, mask)
    torch.testing.assert_close(out[3], network.f(torch.zeros(4, dtype=y.dtype)))
    out.sum().backward()
    assert torch.isfinite(y.grad).all()
    assert not y.grad[~mask].any()


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_gradients_reach_every_parameter(aggregation):
    network, (y, mask) = make_network(aggregation), make_groups()
    (network(y, mask) * torch.randn(5, 2)).sum().backward()
    for name, parameter in network.named_parameters():
        assert parameter.grad.abs().max() > 0, name
    short = y[:2, :3].clone().requires_grad_()
    assert torch.autograd.gradcheck(lambda v: network(v, mask[:2, :3]), (short,))


def test_attention_starts_as_the_mean():
    r, (y, mask) = MLPFeatures([3], 4).double(), make_groups()
    networks = [RepresentationNetwork(r, None, aggregation).double() for aggregation in ("attention", "mean")]
    torch.testing.assert_close(networks[0](y, mask), networks[1](y, mask))


@pytest.mark.parametrize("aggregation", AGGREGATIONS)
def test_images_and_a_rebuilt_network(aggregation):
    network = RepresentationNetwork(ConvFeatures(5), None, aggregation)
    again = rebuild(describe(network))
    again.load_state_dict(network.state_dict())
    y, mask = torch.rand(2, 3, 1, 28, 28), torch.tensor([[True, True, False], [False, True, True]])
    assert network(y, mask).shape == (2, 5)
    assert torch.equal(network(y, mask), again(y, mask))


def test_mistakes_are_explained():
    y, mask = make_groups()
    with pytest.raises(ArgumentError, match=r"aggregation: expected one of .*, got 'max'. Try 'mean'"):
        RepresentationNetwork(nn.Identity(), None, "max")
    with pytest.raises(ArgumentError, match="r: expected a Module, got function"):
        RepresentationNetwork(lambda y: y)
    with pytest.raises(ArgumentError, match=r"width: expected an integer >= 1, got None\. .*length of r's .* Try"):
        RepresentationNetwork(nn.Identity(), None, "attention")
    with pytest.raises(ShapeError, match=r"r: expected shape \(\d+, 4\), got \(\d+, 3\)"):
        RepresentationNetwork(nn.Identity(), None, "attention", width=4).double()(y, mask)
    network = make_network("sum")
    with pytest.raises(ShapeError, match=r"mask: expected shape \(5, 6\), got \(5, 5\)"):
        network(y, mask[:, 1:])
    with pytest.raises(DataError, match=r"mask: expected torch.bool, got torch.float32"):
        network(y, mask.float())
    with pytest.raises(DataError, match=r"mask: expected an observed member in some group, got none.*width=16"):
        RepresentationNetwork(nn.Identity())(y, torch.zeros_like(mask))
    nobody = network(y, torch.zeros_like(mask))
    torch.testing.assert_close(nobody, network.f(torch.zeros(5, network.width).to(y)))
    with pytest.raises(ShapeError, match=r"r: expected shape \(30, width\), got \(30, 3, 1\)"):
        RepresentationNetwork(nn.Unflatten(-1, (3, 1)))(y)


@pytest.mark.parametrize(
    ("network", "y_shape"),
    [
        (MLPFeatures([3], 2), (3,)), (MLPEncoder([3], 2), (3,)), (MLPEncoder([3], 2, takes_observed=True), (3,)),
        (ConvFeatures(2), (1, 28, 28)), (ConvEncoder(2), (1, 28, 28)),
    ],
)  # fmt: skip
def test_networks_make_nothing_of_nothing(network, y_shape):
    made = network(torch.zeros(0, *y_shape))
    for part in made if isinstance(made, tuple) else (made,):
        assert part.shape == (0, 2)
