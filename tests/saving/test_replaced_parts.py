"""Parts and options that were replaced after construction: the model in use is the model that is saved."""

import copy
import functools
import random
import warnings

import lightning
import numpy as np
import pytest
import torch
from gpytorch import constraints, kernels, means, priors
from torch import nn

from factories import make_data, make_model, make_prior, same_state
from fgp_gpytorch import (
    CVAE,
    FGPVAE,
    GPVAE,
    SVGPVAE,
    VAE,
    BernoulliLikelihood,
    Configurable,
    CorrelatedFGPVAE,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    LatentAngleFGPVAE,
    LocalChannels,
    fit,
)
from fgp_gpytorch.coupled import InducingPrior, ProductPrior
from fgp_gpytorch.errors import ArgumentError, CheckpointError
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.nets import ConvDecoder, FourierFeatures, MLPDecoder, MLPEncoder, MLPFeatures, RepresentationNetwork


class Positive(GaussianLikelihood):
    """The same tensors as its parent, and other images."""

    def mean(self, output):
        return torch.relu(output)


def networks(num_features=0):
    return MLPEncoder([3], 3, (4,), num_features), MLPDecoder(3, [3], (4,), num_features)


def angle_model():
    return LatentAngleFGPVAE(*networks(), make_prior(), MLPFeatures([3], 2, (4,)))


def representation_model():
    network = RepresentationNetwork(MLPFeatures([3], 4, (4,)), MLPFeatures([4], 2, (4,)), "mean")
    return GPVAE(*networks(), 3, num_factors=2, representation=network)


def local():
    return [LocalChannels(2, kernels.RBFKernel())]


def changed(model, path, value):
    """The model, with one attribute set anew."""
    owner, _, name = path.rpartition(".")
    setattr(model.get_submodule(owner), name, value)
    return model


MODELS = {
    "likelihood with other tensors": lambda: changed(make_model(), "likelihood", BernoulliLikelihood()),
    "likelihood with the same tensors": lambda: changed(make_model(GaussianLikelihood()), "likelihood", Positive()),
    "likelihood left to its default": lambda: changed(VAE(*networks(), 3), "likelihood", Positive()),
    "mode of the likelihood": lambda: changed(make_model(GaussianLikelihood()), "likelihood.mode", "fixed"),
    "member dropout": lambda: changed(FGPVAE(*networks(), make_prior()), "member_dropout", (0.2, 0.9)),
    "encoder": lambda: changed(make_model(), "encoder", MLPEncoder([3], 3, (5, 2), activation="tanh")),
    "decoder": lambda: changed(make_model(), "decoder", MLPDecoder(3, [3], (7,))),
    "layers of the encoder": lambda: changed(make_model(), "encoder.layers", make_model(seed=4).encoder.layers),
    "prior": lambda: changed(make_model(), "prior", FactorizedGPPrior([GlobalChannels(3)], torch.float32)),
    "block": lambda: changed(make_model(), "prior.blocks.0", LocalChannels(2, kernels.MaternKernel(nu=0.5))),
    "kernel of a block": lambda: changed(make_model(), "prior.blocks.0.kernel", kernels.PeriodicKernel()),
    "kernel in a kernel": lambda: changed(
        make_model(), "prior.blocks.0.kernel.base_kernel", kernels.MaternKernel(nu=1.5, ard_num_dims=1)
    ),
    "option of a kernel": lambda: changed(
        changed(make_model(), "prior.blocks.0.kernel", kernels.MaternKernel(nu=1.5)), "prior.blocks.0.kernel.nu", 0.5
    ),
    "mean of a block": lambda: changed(make_model(), "prior.blocks.0.mean_module", means.LinearMean(1).double()),
    "constraint": lambda: constrained(make_model()),
    "hyperprior": lambda: with_hyperprior(make_model()),
    "features of a CVAE": lambda: changed(CVAE(*networks(2), make_prior()), "features", FourierFeatures(1, period=3.0)),
    "angle options": lambda: changed(changed(angle_model(), "period", 3.0), "supervision", 0.5),
    "angle encoder": lambda: changed(angle_model(), "angle_encoder", MLPFeatures([3], 2, (5,))),
    "normalize": lambda: changed(GPVAE(*networks(), 3, 7), "normalize", False),
    "prior of a GPVAE": lambda: changed(
        GPVAE(*networks(), 3, 7),
        "prior",
        ProductPrior(3, NystromFeatures(kernels.RBFKernel(), torch.linspace(0, 3, 5)), learn_noise=False),
    ),
    "features of a GPVAE": lambda: changed(
        GPVAE(*networks(), 3, 7), "prior.features", NystromFeatures(kernels.RBFKernel(), torch.linspace(0, 3, 5))
    ),
    "features' option": lambda: changed(GPVAE(*networks(), 3, 7), "prior.features.harmonics", 4),
    "representation": lambda: changed(
        representation_model(), "representation", RepresentationNetwork(MLPFeatures([3], 2), None, "attention")
    ),
    "aggregation": lambda: changed(representation_model(), "representation.aggregation", "sum"),
    "prior of an SVGPVAE": lambda: changed(
        SVGPVAE(*networks(), 3, 7), "prior", InducingPrior(3, 8, kernels.MaternKernel(nu=1.5), num_inducing=5)
    ),
    "kernel of an SVGPVAE": lambda: changed(SVGPVAE(*networks(), 3, 7), "prior.kernel", kernels.RBFKernel()),
    "local block of a CorrelatedFGPVAE": lambda: changed(
        CorrelatedFGPVAE(*networks(), local(), 1, 7), "prior.local.blocks.0.kernel", kernels.PeriodicKernel()
    ),
    "shared kernel": lambda: shared_kernel(),
    "tied weights": lambda: tied(make_model()),
    "buffer of the user": lambda: with_buffer(make_model()),
    "frozen and double": lambda: frozen(make_model()).double(),
    "fast convolutions": lambda: changed(
        FGPVAE(MLPEncoder([1, 8, 8], 3), ConvDecoder(3, (1, 8, 8), (2,)), make_prior()), "decoder.conv1.fast", False
    ),
    "compiled inside": lambda: changed(
        make_model(), "encoder.layers", torch.compile(make_model(seed=4).encoder.layers)
    ),
}


def constrained(model):
    kernel = model.prior.blocks[0].kernel.base_kernel
    kernel.register_constraint("raw_lengthscale", constraints.Interval(0.2, 4.0))
    return model


def with_hyperprior(model):
    model.prior.blocks[1].register_prior("variance_prior", priors.GammaPrior(2.0, 3.0), "variance")
    return model


def shared_kernel():
    kernel = kernels.RBFKernel()
    model = make_model()
    model.prior = FactorizedGPPrior([LocalChannels(1, kernel), LocalChannels(2, kernel)])
    return model


def tied(model):
    model.decoder.layers[0].bias = model.encoder.layers[0].bias
    return model


def with_buffer(model):
    model.register_buffer("y_mean", torch.tensor([0.1, 0.2, 0.3]))
    model.encoder.register_buffer("scale", torch.tensor(2.0))
    return model


def frozen(model):
    model.encoder.requires_grad_(False)
    return model


def loaded(model, path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(path)
        return type(model).load(path)


def structure(module):
    parts = {n: type(getattr(part, "_orig_mod", part)) for n, part in named(module)}
    options = {
        f"{n}.{key}": value
        for n, part in named(module)
        for key, value in vars(getattr(part, "_orig_mod", part)).items()
        if isinstance(value, bool | int | float | str | tuple) and key != "training"
    }
    owners = {}
    for name, parameter in module.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append((name.replace("_orig_mod.", ""), parameter.requires_grad))
    return parts, options, sorted(map(tuple, owners.values()))


def named(module):
    return [(n, part) for n, part in module.named_modules(remove_duplicate=False) if "_orig_mod" not in n]


def plain_state(model):
    return {name.replace("_orig_mod.", ""): tensor for name, tensor in model.state_dict().items()}


@pytest.mark.parametrize("name", MODELS)
def test_what_was_replaced_is_what_is_saved(name, tmp_path, monkeypatch):
    validation = torch.distributions.Distribution
    monkeypatch.setattr(validation, "_validate_args", validation._validate_args)  # torch.compile turns it off for good
    model = MODELS[name]().eval()
    again = loaded(model, tmp_path / "model.pt")
    assert same_state(again.state_dict(), plain_state(model))
    here, there = structure(model), structure(again)
    if name != "compiled inside":
        assert there == here
    first = {n: closure(owner) for n, owner, _, closure, _ in model.prior.named_priors()}
    second = {n: closure(owner) for n, owner, _, closure, _ in again.prior.named_priors()}
    assert first.keys() == second.keys()
    assert all(torch.equal(first[n], second[n]) for n in first)
    if isinstance(model, FGPVAE) and name != "fast convolutions" and "Bernoulli" not in repr(model):
        data = make_data(dtype=next(model.decoder.parameters()).dtype)
        assert torch.equal(again.reconstruct(data), model.reconstruct(data))


@pytest.mark.parametrize(
    "name", ["likelihood with other tensors", "kernel of a block", "member dropout", "frozen and double"]
)
def test_checkpoints_of_fit_hold_what_was_replaced(name, tmp_path):
    model, data = MODELS[name](), make_data(dtype=torch.float64 if "double" in name else torch.float32)
    if "likelihood" in name:
        rows = data.flat()
        data = type(data)(rows.y.sigmoid(), rows.x, rows.group)
    result = fit(model, data, epochs=1, folder=tmp_path, progress=False, accelerator="cpu")
    again = FGPVAE.load(result.last_checkpoint)
    assert structure(again) == structure(model)
    assert same_state(again.state_dict(), model.state_dict())


def test_a_resumed_run_names_the_part_that_differs(tmp_path):
    model, data = changed(make_model(GaussianLikelihood()), "likelihood", Positive()), make_data()
    fit(model, data, epochs=1, folder=tmp_path, progress=False, accelerator="cpu")
    with pytest.raises(CheckpointError, match="likelihood is another"):
        fit(
            make_model(GaussianLikelihood()),
            data,
            epochs=2,
            folder=tmp_path,
            progress=False,
            resume=True,
            accelerator="cpu",
        )


def test_a_change_during_training_is_in_the_next_checkpoint(tmp_path):
    class Unfreeze(lightning.Callback):
        def on_train_epoch_start(self, trainer, module):
            module.model.encoder.requires_grad_(trainer.current_epoch == 1)
            module.model.member_dropout = 0.25 * trainer.current_epoch

    model = make_model()
    result = fit(
        model, make_data(), epochs=2, folder=tmp_path, progress=False, accelerator="cpu", callbacks=[Unfreeze()]
    )
    again = FGPVAE.load(result.last_checkpoint)
    assert again.member_dropout == 0.25
    assert all(p.requires_grad for p in again.encoder.parameters())


@pytest.mark.parametrize(
    "layers",
    [
        lambda layers: nn.Sequential(layers[0], nn.ReLU(), layers[2]),  # the same tensors
        lambda layers: nn.Sequential(layers[0], nn.ELU(), nn.Linear(8, 4), nn.ELU(), nn.Linear(4, 6)),
    ],
)
def test_layers_that_cannot_be_described_are_warned_of_and_must_be_given(layers, tmp_path):
    model, path = make_model().eval(), tmp_path / "model.pt"
    model.encoder.layers = layers(model.encoder.layers)
    with pytest.warns(
        UserWarning, match=r"encoder: the description of a MLPEncoder .*layers .*loading will need encoder="
    ):
        model.save(path)
    with pytest.raises(CheckpointError, match=r"Try FGPVAE\.load\(path, encoder="):
        FGPVAE.load(path)
    assert torch.equal(
        FGPVAE.load(path, encoder=model.encoder).reconstruct(make_data()), model.reconstruct(make_data())
    )


def test_another_activation_inside_the_layers_is_noticed(tmp_path):
    model = make_model()
    model.encoder.layers[1] = nn.Tanh()
    with pytest.warns(UserWarning, match=r"encoder: .*layers\.1 is expected to be ELU, got Tanh.*encoder="):
        model.save(tmp_path / "model.pt")


class Activated(Configurable, nn.Module):
    """A network with a function as an attribute, and a count of its calls."""

    def __init__(self, width):
        super().__init__()
        self.layer, self.activation, self.calls = nn.Linear(3, width), torch.tanh, 0

    def forward(self, y):
        self.calls += 1
        mean, log_variance = self.activation(self.layer(y)).chunk(2, -1)
        return mean, log_variance.exp()


def test_another_function_as_an_attribute_is_noticed(tmp_path):
    model, path = make_model(encoder=Activated(6)), tmp_path / "model.pt"
    model.reconstruct(make_data())
    assert loaded(model, path).encoder.calls == model.encoder.calls == 1
    model.encoder.activation = torch.relu
    with pytest.warns(UserWarning, match=r"encoder: .*activation is expected to be .*tanh.*got .*relu"):
        model.save(path)


class Undescribed(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 6)

    def forward(self, y):
        mean, log_variance = self.layer(y).chunk(2, -1)
        return mean, log_variance.exp()


def test_a_described_part_in_the_place_of_an_undescribed_one_is_saved(tmp_path):
    model = changed(make_model(encoder=Undescribed()), "encoder", MLPEncoder([3], 3, (4,))).eval()
    assert torch.equal(loaded(model, tmp_path / "m.pt").reconstruct(make_data()), model.reconstruct(make_data()))


def test_every_part_can_be_given_at_loading(tmp_path):
    path = tmp_path / "model.pt"
    model = changed(make_model(), "likelihood", BernoulliLikelihood())
    model.save(path)
    given = {"encoder": model.encoder, "decoder": model.decoder, "prior": model.prior, "likelihood": model.likelihood}
    for name, part in given.items():
        assert getattr(FGPVAE.load(path, **{name: part}), name) is part
    model = GPVAE(*networks(), 3, 7)
    model.prior = ProductPrior(3, model.prior.features)
    model.prior.features.kernel = kernels.DistributionalInputKernel(lambda x1, x2: x1 - x2)
    with pytest.warns(UserWarning, match="prior: .*loading will need prior="):
        model.save(path)
    with pytest.raises(
        CheckpointError, match=r"the prior .* was saved without a description\. Try GPVAE\.load\(path, prior="
    ):
        GPVAE.load(path)
    assert GPVAE.load(path, prior=model.prior).prior is model.prior


def test_a_list_that_changes_after_the_constructor_changes_nothing(tmp_path):
    widths = [4]
    encoder = MLPEncoder([3], np.int64(3), widths)
    widths.append(5)
    model = make_model(encoder=encoder).eval()
    assert torch.equal(loaded(model, tmp_path / "m.pt").reconstruct(make_data()), model.reconstruct(make_data()))


class Careless(Configurable, nn.Module):
    """A network whose constructor moves every generator, prints no warning twice, and uses the default device."""

    def __init__(self):
        super().__init__()
        warnings.warn("made", UserWarning, stacklevel=2)
        np.random.rand(), random.random(), torch.rand(1)  # noqa: NPY002
        self.layer = nn.Linear(3, 6)

    def forward(self, y):
        mean, log_variance = self.layer(y).chunk(2, -1)
        return mean, log_variance.exp()


def test_saving_and_loading_move_no_generator_and_warn_of_nothing(tmp_path, capsys):
    with pytest.warns(UserWarning, match="made"):
        model = make_model(encoder=Careless())
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
    loaded(model, tmp_path / "model.pt")
    assert torch.equal(torch.get_rng_state(), states[0])
    assert (np.random.get_state()[1] == states[1]).all()  # noqa: NPY002
    assert random.getstate() == states[2]
    assert all(map(torch.equal, torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [], cuda))
    assert capsys.readouterr() == ("", "")


def test_a_wrong_path_is_named(tmp_path):
    with pytest.raises(ArgumentError, match=r"path: expected .*str.*, got None\. Try 'model\.pt'"):
        make_model().save(None)
    with pytest.raises(ArgumentError, match=r"path: expected .*str.*, got int"):
        FGPVAE.load(3)
    make_model().save(tmp_path / "model.pt")
    with pytest.raises(ArgumentError, match="prior: expected"):
        FGPVAE.load(tmp_path / "model.pt", prior=nn.Linear(1, 1))


class Scaled:
    def __init__(self, factor):
        self.factor = factor

    def __call__(self, y):
        return y * self.factor


def made_by_one_line(factor):
    return lambda y, factor=factor: y * factor


class Holder(Undescribed, Configurable):
    """A network with attributes of many kinds."""

    def __init__(self):
        super().__init__()
        self.scale, self.array, self.tensors, self.nothing = torch.tensor(1.0), np.ones(3), [torch.ones(1)], None
        self.words, self.slice, self.complex, self.table = {1, 2}, slice(0, 3), 1j, {1: 2.0}
        self.partial = functools.partial(torch.sum, dim=0)
        self.object, self.function, self._cache = Scaled(1.0), made_by_one_line(1.0), None


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("scale", torch.tensor(2.0)),
        ("array", 2 * np.ones(3)),
        ("tensors", [torch.zeros(1)]),
        ("nothing", torch.ones(2)),
        ("gap_value", torch.tensor(2.0)),
    ],
)
def test_a_tensor_or_array_as_an_attribute_is_saved(name, value, tmp_path):
    again = loaded(changed(make_model(encoder=Holder()), f"encoder.{name}", value), tmp_path / "model.pt")
    assert np.array_equal(np.asarray(getattr(again.encoder, name)), np.asarray(value))


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("words", {5}),
        ("slice", slice(0, 1)),
        ("complex", 2j),
        ("table", {1: 5.0}),
        ("partial", functools.partial(torch.sum, dim=1)),
        ("object", Scaled(7.0)),
        ("function", made_by_one_line(5.0)),
    ],
)
def test_another_value_of_any_kind_is_noticed(name, value, tmp_path):
    model, path = changed(make_model(encoder=Holder()), f"encoder.{name}", value), tmp_path / "model.pt"
    with pytest.warns(UserWarning, match=f"encoder: .*{name} is expected to be .*encoder="):
        model.save(path)
    with pytest.raises(CheckpointError, match=f"The reason: .*{name} is expected to be"):
        FGPVAE.load(path)


def test_a_cache_is_no_change(tmp_path):
    model = changed(make_model(encoder=Holder()), "encoder._cache", object())
    loaded(changed(model, "encoder._other", torch.ones(2)), tmp_path / "model.pt")


@pytest.mark.parametrize(
    "copied",
    [
        copy.deepcopy,
        lambda kernel: kernel.expand_batch(torch.Size([1])),
        lambda kernel: kernels.RBFKernel(batch_shape=torch.Size([2]))[0],
    ],
)
def test_a_copied_kernel_beside_another_is_saved(copied, tmp_path):
    kernel, model = kernels.RBFKernel(), make_model()
    model.prior = FactorizedGPPrior([LocalChannels(2, kernel), LocalChannels(1, copied(kernel))])
    assert same_state(loaded(model, tmp_path / "model.pt").state_dict(), model.state_dict())
