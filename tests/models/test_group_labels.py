"""Models that know a group by a parameter are never asked for another data set's groups unnoticed."""

import numpy as np
import pandas as pd
import pytest
import torch
from test_correlated_fgp_vae import make_correlated
from test_gp_vae import make_gp_vae
from test_svgp_vae import make_svgp_vae

from factories import SIZES, make_data
from fgp_gpytorch import GaussianLikelihood, GroupedBatch, GroupedDataset, fit
from fgp_gpytorch.data import LazyDataset
from fgp_gpytorch.errors import DataError, GroupError
from fgp_gpytorch.models import GPVAE, SVGPVAE, CorrelatedFGPVAE

MAKE = {CorrelatedFGPVAE: make_correlated, GPVAE: make_gp_vae, SVGPVAE: make_svgp_vae}


def relabelled(data, label):
    rows = data.flat()
    return GroupedDataset(rows.y, rows.x, [label(int(g)) for g in rows.group])


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("start", ["trained", "from a PCA"])
def test_as_many_groups_under_other_labels_are_refused(kind, start, tmp_path):
    model, data = MAKE[kind](likelihood=GaussianLikelihood()), make_data()
    if start == "trained":
        fit(model, data, epochs=1, batch_size=len(data), seed=0, folder=None, progress=False)
    else:
        model.initialize_vectors(data)
    x_new = torch.zeros(len(SIZES), 1, 1)
    same, others = relabelled(data, int), relabelled(data, lambda g: g + 1)
    strings = relabelled(data, str)
    assert torch.equal(model.generate(x_new, same), model.generate(x_new, data))
    model.save(tmp_path / "model.pt")
    for asked in (model, model.condition_on(data), kind.load(tmp_path / "model.pt")):
        for unknown in (others, strings):
            with pytest.raises(GroupError, match=r"groups with other labels.*rows.align\(train\)"):
                asked.generate(x_new, unknown)
    some = same.subset([2, 4]).align(data)
    assert model.condition_on(data).generate(x_new[:2], some).shape == (2, 1, 3)
    plain = data[:]
    by_hand = GroupedBatch.from_tensors(plain.y, plain.x, plain.mask)  # nobody knows its labels
    assert torch.equal(model.generate(x_new, by_hand), model.generate(x_new, data))


def test_a_new_start_on_other_data_forgets_the_old_groups():
    model, data = make_correlated(), make_data()
    others = relabelled(data, lambda g: g + 1)
    model.initialize_vectors(data)
    model.initialize_vectors(others)
    model.infer(others)
    with pytest.raises(GroupError, match="other labels"):
        model.infer(data)


def test_a_look_before_training_binds_a_model_to_nothing():
    model, data = make_correlated(), make_data()
    model.infer(data)
    with torch.no_grad():
        model.terms(data[:])
    model.terms(relabelled(data, str)[:])
    with pytest.raises(GroupError, match="other labels"):
        model.terms(data[:])


def test_a_failed_start_forgets_nothing_and_forgetting_is_asked_for():
    model, data = make_correlated(), make_data()
    others = relabelled(data, str)
    model.initialize_vectors(data)
    with pytest.raises(GroupError):
        model.initialize_vectors(data.subset([0, 1]))
    with pytest.raises(GroupError, match=r"model\.forget_groups\(\)"):
        model.infer(others)
    vectors = model.group_vectors.vectors.clone()
    model.forget_groups()
    model.terms(others[:])
    assert torch.equal(model.group_vectors.vectors, vectors)
    with pytest.raises(GroupError, match="other labels"):
        model.infer(data)


def test_averages_of_weights_average_no_labels():
    model, data = make_correlated(), make_data()
    model.initialize_vectors(data)
    averaged = torch.optim.swa_utils.AveragedModel(model, use_buffers=True)
    for _ in range(3):
        averaged.update_parameters(model)
    averaged.module.infer(data)
    with pytest.raises(GroupError, match="other labels"):
        averaged.module.infer(relabelled(data, str))


def test_labels_are_equal_whatever_made_the_column():
    y, x = torch.rand(3, 2), torch.arange(3.0)
    names = np.array(["a", "b", "c"])

    def digest(labels):
        return GroupedDataset(y, x, labels).labels_digest

    assert digest(["a", "b", "c"]) == digest([names[i] for i in range(3)]) == digest(pd.Categorical(names))
    assert digest([0, 1, 2]) == digest(np.arange(3, dtype=np.int32)) == digest(pd.Series([0, 1, 2], dtype="Int64"))
    assert digest(list(zip([0, 1, 2], "abc", strict=True))) == digest(list(zip(np.arange(3), names, strict=True)))
    assert digest([0, 1, 2]) != digest(["0", "1", "2"])

    class Opaque:
        def __init__(self, n):
            self.n = n

        def __lt__(self, other):
            return self.n < other.n

    assert digest([Opaque(0), Opaque(1), Opaque(2)]) is None


def test_batches_of_other_labels_are_not_merged():
    data = make_data()
    with pytest.raises(DataError, match="two with other labels"):
        GroupedBatch.cat([data[[0]], relabelled(data, str)[[1]]])


def test_files_from_before_labels_were_kept_are_read():
    model = make_correlated()
    state = model.state_dict()
    assert "_labels_digest" not in state
    other = make_correlated(seed=2)
    other.initialize_vectors(make_data())
    other.load_state_dict(state)
    other.infer(relabelled(make_data(), str))
    assert torch.equal(other.group_vectors.vectors, model.group_vectors.vectors)


def test_batches_of_one_data_set_carry_one_number_of_its_labels():
    data = make_data()
    lazy = LazyDataset(data, lambda batch: batch.y)
    digests = {data[[0]].labels_digest, data[:].to(torch.float64).labels_digest, lazy[[1, 2]].labels_digest}
    merged, aligned = GroupedBatch.cat([data[[0]], data[[3]]]), data.subset([1]).align(data)[:]
    digests |= {merged.labels_digest, aligned.labels_digest}
    assert len(digests) == 1
    assert data.subset([1, 0])[:].labels_digest not in digests
    assert relabelled(data, str)[:].labels_digest not in digests


@pytest.mark.parametrize("kind", MAKE)
def test_a_prior_that_was_converted_says_so_and_converted_networks_work(kind):
    model, data = MAKE[kind](likelihood=GaussianLikelihood()), make_data()
    model.encoder.float()
    model.infer(data)
    model.prior.float()
    for use in (model.infer, lambda batch: model.terms(batch[:])):
        with pytest.raises(DataError, match=r"prior: expected its parameters in torch.float64, .* got torch.float32"):
            use(data)
