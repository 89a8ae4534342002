import pytest
import torch

from factories import ConstantEncoder, make_data, make_model
from fgp_gpytorch import FGPVAE
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.models._member_dropout import drop_members


@pytest.mark.parametrize("fraction", [0.0, 0.2, 0.5, 0.99])
def test_the_fraction_of_every_group_is_exact_and_one_member_stays(fraction):
    sizes = torch.tensor([1, 2, 3, 5, 8, 11, 0])
    mask = torch.arange(11) < sizes[:, None]
    for _ in range(50):
        kept = drop_members(mask, fraction)
        assert not (kept & ~mask).any()
        for size, left in zip(sizes.tolist(), kept.sum(-1).tolist(), strict=True):
            assert left == (size - min(round(fraction * size), size - 1) if size else 0)


def test_members_anywhere_in_the_mask_are_dropped_with_equal_chances():
    mask = torch.tensor([[False, True, True, False, True, True]]).expand(8000, -1)
    share = drop_members(mask, 0.5).float().mean(0)
    # standard error sqrt(0.25 / 8000) = 0.0056
    torch.testing.assert_close(share, torch.tensor([0, 0.5, 0.5, 0, 0.5, 0.5]), rtol=0, atol=0.03)


def test_dropout_acts_in_training_mode_alone_and_on_q_alone():
    model, batch = make_model(member_dropout=0.5, encoder=ConstantEncoder()), make_data()[:]
    kept = model.training_posterior(batch).mask
    size = batch.mask.sum(-1)
    assert kept.sum(-1).tolist() == [int(n) - min(round(0.5 * int(n)), int(n) - 1) for n in size]
    terms = model.terms(batch)
    assert torch.equal(terms.num_members, size)
    assert torch.equal(terms.num_elements, 3.0 * size)
    assert model.encoder.rows == [int(size.sum())] * 2  # members that q leaves out are encoded, and reconstructed
    assert torch.equal(model.infer(batch).mask, batch.mask)  # who asks gets all that is known
    model.eval()
    assert torch.equal(model.training_posterior(batch).mask, batch.mask)


def test_posterior_without_a_member_is_that_of_the_smaller_group():
    model, data = make_model(member_dropout=0.4), make_data(sizes=(5, 5, 5))
    batch = data[:]
    dropped = model.training_posterior(batch)
    plain = model.eval().prior.posterior(batch.x, *encoded(model, batch), dropped.mask)
    torch.testing.assert_close(dropped.mean, plain.mean)
    torch.testing.assert_close(dropped.kl, plain.kl)
    assert (dropped.kl < model.infer(batch).kl).all()  # fewer observations, a coarser q


def encoded(model, batch):
    mean, variance = model.encoder(batch.y.flatten(0, 1))
    return mean.unflatten(0, batch.mask.shape), variance.unflatten(0, batch.mask.shape)


def test_loss_with_dropout_is_a_bound_too():
    """In expectation the ELBO of a coarser q is below the evidence: checked where the evidence is known exactly."""
    model, data = make_model(member_dropout=0.4, decoder=LinearDecoder()), make_data(sizes=(5, 5))
    batch = data[:].to(torch.float64)
    model.double()
    evidence = exact_log_evidence(model, batch)
    with torch.no_grad():
        elbos = [-loss(model, batch) for _ in range(20)]
    assert max(elbos) < evidence


class LinearDecoder(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.tensor([[1.0, 0.3, 0.0], [0.0, 1.0, -0.5], [0.4, 0.0, 1.0]]))

    def forward(self, z):
        return z @ self.weight


def loss(model, batch):
    terms = model.terms(batch, num_particles=4000)
    return (terms.kl_local + terms.kl_global - terms.log_likelihood).sum()


def exact_log_evidence(model, batch):
    """y is Gaussian where the decoder is linear: one dense covariance per group."""
    weight, prior, total = model.decoder.weight, model.prior(batch.x), 0.0
    covariance = prior.covariance_matrix.detach()  # (G, Q L, Q L), members outside, channels inside
    for g in range(batch.num_groups):
        transform = torch.kron(torch.eye(batch.num_members).double(), weight.T.contiguous())
        full = transform @ covariance[g] @ transform.T
        full = full + 0.5 * torch.eye(len(full)).double()
        mean = (prior.mean[g] @ weight).flatten()
        density = torch.distributions.MultivariateNormal(mean, full)
        total += density.log_prob(batch.y[g].flatten()).item()
    return total


def test_a_pair_gives_contexts_of_every_size_by_its_uniform_law():
    mask = torch.ones(40_000, 4, dtype=torch.bool)
    kept = drop_members(mask, (0.0, 1.0)).sum(-1)
    share = torch.bincount(kept, minlength=5) / len(kept)
    # round(4 u) dropped: 0 below u = 1/8, one to 3/8, two to 5/8, three from there, as one stays; standard error 0.0025
    torch.testing.assert_close(share, torch.tensor([0, 3 / 8, 1 / 4, 1 / 4, 1 / 8]), rtol=0, atol=0.012)
    narrow = drop_members(mask, (0.2, 0.6)).sum(-1)
    share = torch.bincount(narrow, minlength=5) / len(narrow)
    torch.testing.assert_close(share, torch.tensor([0, 0, 0.225 / 0.4, 0.175 / 0.4, 0]), rtol=0, atol=0.012)
    assert (drop_members(mask, (0.5, 0.5)).sum(-1) == 2).all()


def test_groups_of_a_batch_draw_their_fractions_apart_and_ragged_ones_keep_one():
    sizes = torch.tensor([1, 2, 3, 5, 8, 11, 0]).repeat(50)
    mask = torch.arange(11) < sizes[:, None]
    kept = drop_members(mask, (0.0, 1.0))
    assert not (kept & ~mask).any()
    assert (kept.sum(-1) >= sizes.clamp_max(1)).all()
    assert len(kept.sum(-1)[sizes == 11].unique()) > 5


def test_model_trains_and_is_saved_with_a_pair(tmp_path):
    model, data = make_model(member_dropout=(0.0, 1.0)), make_data(sizes=(6, 6, 6, 6))
    batch = data[:]
    seen = {int(n) for _ in range(30) for n in model.training_posterior(batch).mask.sum(-1)}
    assert seen == {1, 2, 3, 4, 5, 6}
    model.save(tmp_path / "model.pt")
    assert FGPVAE.load(tmp_path / "model.pt").member_dropout == (0.0, 1.0)


@pytest.mark.parametrize(
    "fraction", [-0.1, 1.0, 2.0, float("nan"), "0.2", None, (0.5, 0.2), (-0.1, 1), (0, 1.1), (0.1,)]
)
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(
        ArgumentError, match=r"member_dropout: expected a fraction in \[0, 1\), or a pair .*Try 0\.2, 0, or"
    ):
        make_model(member_dropout=fraction)
