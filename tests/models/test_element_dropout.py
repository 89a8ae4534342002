import pyro
import pytest
import torch
from test_member_dropout import LinearDecoder, exact_log_evidence, loss

from factories import BlindDecoder, make_data, make_prior
from fgp_gpytorch import CVAE, FGPVAE, VAE, GaussianLikelihood, GroupedBatch
from fgp_gpytorch._shards import Shard, sharing
from fgp_gpytorch.errors import ArgumentError, ShapeError
from fgp_gpytorch.models._element_dropout import block_numbers, drop_elements
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


class Recording(MLPEncoder):
    """Keeps what it was given."""

    def forward(self, y, features=None, observed=None):
        self.seen = y, observed
        return super().forward(y, features, observed)


class InBlocks(GaussianLikelihood):
    """A likelihood whose last two elements belong together."""

    element_blocks = torch.tensor([4, 7, 7])


def make(element_dropout=0.4, member_dropout=0.0, y_shape=(3,), decoder=None, likelihood=None, encoder=None):
    with torch.random.fork_rng():
        torch.manual_seed(1)
        encoder = MLPEncoder(y_shape, 3, (8,), takes_observed=True) if encoder is None else encoder
        decoder = MLPDecoder(3, y_shape, (8,)) if decoder is None else decoder
    likelihood = GaussianLikelihood("fixed", 0.5) if likelihood is None else likelihood
    return FGPVAE(encoder, decoder, make_prior(), likelihood, member_dropout, element_dropout)


def shown_counts(observed, fraction):
    return [int(n) - min(round(fraction * int(n)), int(n) - 1) if n else 0 for n in observed.flatten(1).sum(-1)]


@pytest.mark.parametrize("fraction", [0.0, 0.3, 0.99])
@pytest.mark.parametrize("y_shape", [(), (3,), (2, 3)])
@pytest.mark.parametrize("gaps", [False, True])
def test_the_fraction_of_every_group_is_exact_and_one_element_stays(fraction, y_shape, gaps):
    batch = make_data(y_shape=y_shape or (1,), element_mask=gaps)[:]
    observed = batch.observed.reshape(*batch.mask.shape, *y_shape).clone()
    observed[2] = False  # a group without an observation
    for _ in range(20):
        shown = drop_elements(observed, fraction)
        assert shown.shape == observed.shape
        assert not (shown & ~observed).any()
        assert shown.flatten(1).sum(-1).tolist() == shown_counts(observed, fraction)


def test_elements_anywhere_are_hidden_with_equal_chances():
    observed = torch.tensor([[[True, False], [True, True], [False, False], [True, True]]]).expand(8000, -1, -1)
    share = drop_elements(observed, 0.4).float().mean(0)
    # two of five are hidden; standard error sqrt(0.24 / 8000) = 0.0055
    torch.testing.assert_close(share, 0.6 * observed[0].float(), rtol=0, atol=0.03)


def test_a_pair_draws_a_fraction_for_each_group():
    kept = drop_elements(torch.ones(40_000, 2, 2, dtype=torch.bool), (0.0, 1.0)).flatten(1).sum(-1)
    share = torch.bincount(kept, minlength=5) / len(kept)
    # as for members: round(4 u) hidden, and one stays; standard error 0.0025
    torch.testing.assert_close(share, torch.tensor([0, 3 / 8, 1 / 4, 1 / 4, 1 / 8]), rtol=0, atol=0.012)


@pytest.mark.parametrize("blocks", [torch.tensor([3, 0, 0, 0, 9, 9]), [slice(1, 4), slice(4, 6)]])
def test_elements_of_a_block_are_hidden_together(blocks):
    observed = torch.ones(6000, 3, 6, dtype=torch.bool)
    observed[:, 1, 1:4] = False
    shown = drop_elements(observed, 0.5, blocks)
    for block in (slice(1, 4), slice(4, 6)):
        part = shown[:, :, block]
        assert torch.equal(part.any(-1), part.all(-1))
    one_each = shown[:, :, [0, 1, 4]]
    assert (one_each.flatten(1).sum(-1) == 4).all()  # 8 blocks are observed, and half of them hidden
    expected = 0.5 * observed[0, :, [0, 1, 4]].float()
    torch.testing.assert_close(one_each.float().mean(0), expected, rtol=0, atol=0.04)  # standard error 0.0065


@pytest.mark.parametrize("blocks", [torch.tensor([0, 1]), [slice(0, 4)], [slice(3, 5)]])
def test_blocks_that_do_not_fit_are_refused(blocks):
    with pytest.raises(
        ShapeError, match=r"element_blocks: expected one number for each of 3 elements.* got .*Try None"
    ):
        block_numbers(blocks, 3, torch.device("cpu"))


def test_processes_draw_for_the_whole_minibatch():
    observed = make_data((3, 5, 2, 4), element_mask=True)[:].observed
    for fraction in (0.4, (0.0, 1.0)):
        torch.manual_seed(7)
        whole = drop_elements(observed, fraction, InBlocks.element_blocks)
        for rank, groups in enumerate((slice(0, 3), slice(3, 4))):
            members = int(observed[groups].flatten(2).any(-1).sum(-1).max())
            torch.manual_seed(7)
            with sharing(Shard((3, 1), rank, observed.shape[1])):
                own = drop_elements(observed[groups, :members], fraction, InBlocks.element_blocks)
            assert torch.equal(own, whole[groups, :members])


@pytest.mark.parametrize("gaps", [False, True])
def test_the_encoder_gets_the_shown_elements_and_the_loss_all(gaps):
    encoder = Recording((3,), 3, (8,), takes_observed=True)
    model, batch = make(encoder=encoder, decoder=BlindDecoder()), make_data(element_mask=gaps)[:]
    terms = model.terms(batch)
    y, observed = encoder.seen
    assert observed.sum() == sum(shown_counts(batch.observed, 0.4))
    assert (y[~observed] == 0).all()
    assert torch.equal(terms.num_elements, batch.observed.flatten(1).sum(-1).float())
    assert torch.equal(terms.num_members, batch.observed.any(-1).sum(-1))
    plain = model.eval().terms(batch)
    torch.testing.assert_close(terms.log_likelihood, plain.log_likelihood)
    torch.testing.assert_close(terms.squared_error, plain.squared_error)
    assert encoder.seen[1] is None or encoder.seen[1].sum() == batch.observed.sum()  # evaluation mode hides nothing


def test_q_is_that_of_a_batch_without_the_hidden_elements():
    model, batch = make(0.7), make_data(element_mask=True)[:]
    shown = model.shown(batch)
    q = model.training_posterior(batch, model.encode(shown))
    garbage = torch.where(shown.observed, batch.y, 1e3)
    other = GroupedBatch.from_tensors(garbage, batch.x, batch.mask, y_mask=shown.observed)
    plain = model.eval().infer(other)
    there = shown.observed.any(-1)
    assert not bool(there[batch.mask].all()), "no member lost all of its elements: the test would see less"
    assert torch.equal(q.mask, there)
    torch.testing.assert_close(q.mean[batch.mask], plain.mean[batch.mask])
    torch.testing.assert_close(q.kl, plain.kl)


def test_member_dropout_comes_after_it():
    model, batch = make(0.5, member_dropout=0.5), make_data((6, 6, 6))[:]
    for _ in range(20):
        torch.manual_seed(3)
        left = model.shown(batch).observed.any(-1).sum(-1)
        torch.manual_seed(3)
        kept = model.training_posterior(batch).mask.sum(-1)
        assert kept.tolist() == [int(n) - min(round(0.5 * int(n)), int(n) - 1) for n in left]


def test_the_guide_draws_from_the_same_q_as_the_loss():
    model, batch = make(), make_data()[:]
    torch.manual_seed(5)
    q = model.training_posterior(batch)
    torch.manual_seed(5)
    trace = pyro.poutine.trace(model.guide).get_trace(batch)
    for index, expected in enumerate(q.whitened_distributions()):
        torch.testing.assert_close(trace.nodes[f"u_{index}"]["fn"].mean, expected.mean)
    torch.manual_seed(6)
    other = model.training_posterior(batch)
    assert not torch.allclose(other.mean, q.mean)
    assert model.model(batch).shape == batch.y.shape


def test_loss_with_element_dropout_is_a_bound_too():
    """In expectation the ELBO of a coarser q is below the evidence: checked where the evidence is known exactly."""
    model, data = make(decoder=LinearDecoder()), make_data(sizes=(5, 5))
    batch = data[:].to(torch.float64)
    model.double()
    evidence = exact_log_evidence(model, batch)
    with torch.no_grad():
        elbos = [-loss(model, batch) for _ in range(20)]
    assert max(elbos) < evidence


def test_blocks_of_the_likelihood_are_used():
    model, batch = make(0.5, likelihood=InBlocks("fixed", 0.5)), make_data()[:]
    shown = model.shown(batch).observed
    assert torch.equal(shown[..., 1], shown[..., 2])
    assert not torch.equal(shown[..., 0], shown[..., 1])


@pytest.mark.parametrize("dropout", [0.4, (0.0, 1.0)])
def test_it_is_saved_with_the_model(dropout, tmp_path):
    model = make(dropout)
    model.save(tmp_path / "model.pt")
    assert FGPVAE.load(tmp_path / "model.pt").element_dropout == dropout


def test_other_models_take_it():
    batch = make_data(element_mask=True)[:]
    encoder = Recording((3,), 3, (8,), num_features=1, takes_observed=True)
    cvae = CVAE(encoder, MLPDecoder(3, [3], num_features=1), make_prior(), element_dropout=0.5)
    cvae.terms(batch)
    assert encoder.seen[1].sum() == sum(shown_counts(batch.observed, 0.5))
    encoder = Recording((3,), 3, (8,), takes_observed=True)
    VAE(encoder, MLPDecoder(3, [3]), 3, element_dropout=0.5).terms(batch)
    assert encoder.seen[1].sum() == sum(shown_counts(batch.observed, 0.5))


def test_an_encoder_without_a_mask_is_refused():
    with pytest.raises(
        ArgumentError, match=r"element_dropout: expected an encoder .*got MLPEncoder.*takes_observed=True"
    ):
        make(encoder=MLPEncoder([3], 3))
    assert make(0.0, encoder=MLPEncoder([3], 3)).element_dropout == 0


@pytest.mark.parametrize("fraction", [-0.1, 1.0, "0.2", None, (0.5, 0.2), (0, 1.1)])
def test_a_fraction_that_leaves_nothing_is_refused(fraction):
    with pytest.raises(ArgumentError, match=r"element_dropout: expected a fraction in \[0, 1\), or a pair"):
        make(fraction)
