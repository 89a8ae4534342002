"""Pyro's own parameter store keeps a trained model, as it keeps a PyroModule."""

import copy
import gc
import io
import pickle
import subprocess
import sys
import textwrap

import pyro
import pytest
import torch
from pyro.infer import SVI, TraceMeanField_ELBO

from factories import make_data, make_model, same_state
from fgp_gpytorch import SVGPVAE
from fgp_gpytorch.errors import CheckpointError
from fgp_gpytorch.nets import MLPDecoder, MLPEncoder


def trained(model, steps=2):
    svi = SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO())
    for _ in range(steps):
        svi.step(make_data()[:])
    return model


def run(model):
    TraceMeanField_ELBO().loss(model.model, model.guide, make_data()[:])
    return model


def names():
    return {name.partition(".")[0] for name in pyro.get_param_store()}


def saved(path):
    pyro.get_param_store().save(path)
    pyro.clear_param_store()
    return path


def test_a_model_built_anew_gets_the_stored_parameters(tmp_path):
    model = trained(make_model())
    path = saved(tmp_path / "store.pt")
    again = make_model(seed=2)
    assert not same_state(again.state_dict(), model.state_dict())
    pyro.get_param_store().load(path)
    run(again)
    assert same_state(again.state_dict(), model.state_dict())
    assert names() == {"FGPVAE"}
    before = again.state_dict()["encoder.layers.0.weight"].clone()
    trained(again)  # SVI trains the parameters themselves
    assert not torch.equal(again.encoder.layers[0].weight, before)
    assert pyro.get_param_store()["FGPVAE.encoder.layers.0.weight"] is again.encoder.layers[0].weight


PROGRAM = """
    import sys
    import gpytorch, pyro, torch
    from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels
    from fgp_gpytorch.nets import MLPDecoder, MLPEncoder
    from pyro.infer import SVI, TraceMeanField_ELBO

    torch.manual_seed(int(sys.argv[2]))
    prior = FactorizedGPPrior([LocalChannels(2, gpytorch.kernels.RBFKernel()), GlobalChannels(1)])
    model = FGPVAE(MLPEncoder([3], 3), MLPDecoder(3, [3]), prior)
    batch = GroupedDataset(torch.randn(12, 3), torch.rand(12), torch.arange(3).repeat_interleave(4))[:]
    if sys.argv[2] == "0":
        SVI(model.model, model.guide, pyro.optim.Adam({"lr": 0.1}), TraceMeanField_ELBO()).step(batch)
        pyro.get_param_store().save(sys.argv[1])
    else:
        pyro.get_param_store().load(sys.argv[1])
        TraceMeanField_ELBO().loss(model.model, model.guide, batch)
    print(sum(float(p.double().abs().sum()) for p in model.parameters()))
"""


def test_another_process_gets_the_stored_parameters(tmp_path):
    arguments = [sys.executable, "-W", "ignore", "-c", textwrap.dedent(PROGRAM), str(tmp_path / "store.pt")]
    outputs = [
        subprocess.run([*arguments, seed], capture_output=True, text=True, timeout=300, check=True).stdout
        for seed in ("0", "1")
    ]
    assert outputs[0] == outputs[1]


def test_models_that_exist_together_have_names_of_their_own_and_come_back_in_order(tmp_path):
    first, second = trained(make_model()), trained(make_model(seed=2))
    assert names() == {"FGPVAE", "FGPVAE_1"}
    path = saved(tmp_path / "store.pt")
    pyro.get_param_store().load(path)
    again = make_model(seed=3), make_model(seed=4)
    with pytest.warns(UserWarning, match=r"several models of the class FGPVAE: FGPVAE, FGPVAE_1\. This model takes"):
        run(again[0])
    run(again[1])
    assert same_state(again[0].state_dict(), first.state_dict())
    assert same_state(again[1].state_dict(), second.state_dict())


def test_a_copy_does_not_share_parameters_with_its_original():
    model = trained(make_model())
    clone = copy.deepcopy(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    trained(clone)
    assert names() == {"FGPVAE", "FGPVAE_1"}
    assert same_state(model.state_dict(), before)
    assert not same_state(clone.state_dict(), before)


def test_a_new_model_does_not_inherit_from_one_that_is_gone():
    model = trained(make_model())
    del model
    gc.collect()
    fresh = make_model(seed=2)
    before = {name: tensor.clone() for name, tensor in fresh.state_dict().items()}
    run(fresh)
    assert same_state(fresh.state_dict(), before)
    assert names() == {"FGPVAE"}


def test_an_older_state_of_the_same_model_is_loaded(tmp_path):
    model = trained(make_model())
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    pyro.get_param_store().save(tmp_path / "store.pt")
    trained(model)
    assert not same_state(model.state_dict(), before)
    pyro.get_param_store().load(tmp_path / "store.pt")
    assert same_state(run(model).state_dict(), before)


def test_a_replaced_network_is_trained_and_its_old_entries_leave_the_store(tmp_path):
    model = trained(make_model())
    model.encoder = MLPEncoder((3,), 3, ())
    weight = model.encoder.layers[0].weight.detach().clone()
    run(model)
    assert torch.equal(model.encoder.layers[0].weight, weight)
    trained(model)
    assert not torch.equal(model.encoder.layers[0].weight, weight)
    kept = {name.partition(".")[2] for name in pyro.get_param_store()}
    assert kept == {name for name, p in model.named_parameters() if p.requires_grad}


def test_a_store_of_another_network_is_refused_in_words(tmp_path):
    trained(make_model())
    path = saved(tmp_path / "store.pt")
    for encoder in (MLPEncoder((3,), 3, (5,)), MLPEncoder((3,), 3, (8, 8))):
        pyro.clear_param_store()
        pyro.get_param_store().load(path)
        with pytest.raises(
            CheckpointError, match=r"the parameters of this FGPVAE, got .*encoder.*pyro.clear_param_store"
        ):
            run(make_model(encoder=encoder))


def test_a_store_without_some_trained_parameters_is_refused(tmp_path):
    model = make_model()
    model.decoder.requires_grad_(False)
    trained(model)
    path = saved(tmp_path / "store.pt")
    pyro.get_param_store().load(path)
    with pytest.raises(CheckpointError, match=r"got no decoder.*with the same parameters fixed"):
        run(make_model(seed=2))
    again = make_model(seed=1)
    again.decoder.requires_grad_(False)
    assert same_state(run(again).state_dict(), model.state_dict())


def test_parameters_in_another_memory_order_are_trained():
    model = make_model()
    weight = model.encoder.layers[0].weight
    weight.data = weight.data.t().contiguous().t()
    before = weight.detach().clone()
    assert not weight.is_contiguous()
    trained(model)
    assert not torch.equal(model.encoder.layers[0].weight, before)


@pytest.mark.parametrize("part", ["encoder", "decoder", "prior", "likelihood", None])
def test_parts_are_copied_and_pickled_after_a_step(part):
    model = trained(make_model())
    owner = model if part is None else getattr(model, part)
    buffer = io.BytesIO()
    torch.save(owner, buffer)
    buffer.seek(0)
    copies = [copy.deepcopy(owner), pickle.loads(pickle.dumps(owner)), torch.load(buffer, weights_only=False)]
    for again in copies:
        assert same_state(again.state_dict(), owner.state_dict())
    if part is None:
        for again in copies:
            trained(again)


def test_a_conditioned_copy_does_not_disturb_its_model():
    model, data = SVGPVAE(MLPEncoder([3], 2, (4,)), MLPDecoder(2, [3], (4,)), 2, 7, num_inducing=4), make_data()
    trained(model)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    run(model.condition_on(data).model)  # its parameters are fixed, so it registers none
    assert names() == {"SVGPVAE"}
    assert same_state(model.state_dict(), before)
    trained(model)
    assert not same_state(model.state_dict(), before)
    assert names() == {"SVGPVAE"}
