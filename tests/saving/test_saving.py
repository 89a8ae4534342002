"""Saved models: everything comes back, and nothing is executed."""

import copy
import math
import pickle
import pickletools
import subprocess
import sys
import warnings
import zipfile

import gpytorch
import pytest
import torch
from gpytorch import constraints, kernels, means, priors
from torch import nn

from factories import make_data, make_model, make_prior, same_state
from fgp_gpytorch import (
    FGPVAE,
    BernoulliLikelihood,
    Configurable,
    FactorizedGPPrior,
    GaussianLikelihood,
    GlobalChannels,
    GroupedDataset,
    LocalChannels,
    fit,
)
from fgp_gpytorch.errors import CheckpointError, MissingFileError
from fgp_gpytorch.means import FourierMean
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder, MLPDecoder, MLPEncoder
from fgp_gpytorch.saving import describe, rebuild

J = torch.Size([2])

KERNELS = {
    "scaled rbf with ard": lambda: kernels.ScaleKernel(kernels.RBFKernel(ard_num_dims=3)),
    "matern 1/2": lambda: kernels.MaternKernel(nu=0.5),
    "matern 3/2 on one feature": lambda: kernels.ScaleKernel(kernels.MaternKernel(nu=1.5, active_dims=[1])),
    "periodic, one per channel": lambda: kernels.PeriodicKernel(batch_shape=J),
    "scaled periodic with ard, one per channel": lambda: kernels.ScaleKernel(
        kernels.PeriodicKernel(ard_num_dims=3, batch_shape=J), batch_shape=J
    ),
    "product and sum": lambda: (
        kernels.RBFKernel(active_dims=[0]) * kernels.PeriodicKernel(active_dims=[2])
        + kernels.ScaleKernel(kernels.LinearKernel())
    ),
    "quasi-periodic with priors": lambda: kernels.ScaleKernel(
        kernels.PeriodicKernel(
            lengthscale_prior=priors.GammaPrior(3.0, 6.0), period_length_prior=priors.LogNormalPrior(0.2, 0.7)
        )
        * kernels.RBFKernel(lengthscale_prior=priors.NormalPrior(1.0, 0.5)),
        outputscale_prior=priors.HalfCauchyPrior(2.0),
    ),
    "constraints": lambda: kernels.ScaleKernel(
        kernels.RBFKernel(lengthscale_constraint=constraints.Interval(0.05, 3.0)),
        outputscale_constraint=constraints.GreaterThan(0.01),
    ),
    "less than": lambda: kernels.RBFKernel(lengthscale_constraint=constraints.LessThan(5.0)),
    "constraint with another transform": lambda: kernels.RBFKernel(
        lengthscale_constraint=constraints.Positive(transform=torch.exp, inv_transform=torch.log)
    ),
    "rational quadratic": lambda: kernels.RQKernel(),
    "piecewise polynomial": lambda: kernels.PiecewisePolynomialKernel(q=1),
    "polynomial": lambda: kernels.PolynomialKernel(power=3),
    "spectral mixture": lambda: kernels.SpectralMixtureKernel(num_mixtures=3, ard_num_dims=3),
    "cosine": lambda: kernels.CosineKernel(active_dims=(1,)),  # of two features it is no covariance
    "constant": lambda: kernels.ConstantKernel() + kernels.RBFKernel(),
}


class TaperedKernel(kernels.Kernel):
    """A user's own kernel: an RBF whose reach is a constructor argument."""

    has_lengthscale = True

    def __init__(self, reach, **kwargs):
        super().__init__(**kwargs)
        self.reach = reach

    def forward(self, x1, x2, diag=False, **params):
        distance = self.covar_dist(x1 / self.lengthscale, x2 / self.lengthscale, diag=diag)
        return torch.exp(-distance.square()) * torch.exp(-distance / self.reach)


KERNELS["the user's own"] = lambda: TaperedKernel(2.5, active_dims=[0, 1])


def randomize(module):
    """Move every parameter, inside its constraints, and fix every second one."""
    for index, parameter in enumerate(module.parameters()):
        with torch.no_grad():
            parameter.add_(0.3 * torch.rand_like(parameter))
        parameter.requires_grad_(index % 2 == 0)


def wrap(prior):
    L = prior.num_channels
    return FGPVAE(MLPEncoder((3,), L, (4,)), MLPDecoder(L, (3,), (4,)), prior)


def saved_and_loaded(model, path, **parts):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.save(path)
    return FGPVAE.load(path, **parts)


def assert_same_prior(first, second, num_features=3):
    x = torch.rand(2, 5, num_features, dtype=first.dtype)
    one, two = first(x), second(x)
    assert torch.equal(one.mean, two.mean)
    assert torch.equal(one.covariance_matrix, two.covariance_matrix)
    assert torch.equal(first.log_hyperprior(), second.log_hyperprior())
    flags = [{name: p.requires_grad for name, p in prior.named_parameters()} for prior in (first, second)]
    assert flags[0] == flags[1]
    assert len(set(flags[0].values())) > 1


@pytest.mark.parametrize("name", KERNELS)
def test_kernel_comes_back(name, tmp_path):
    prior = FactorizedGPPrior([LocalChannels(2, KERNELS[name]()), GlobalChannels(1)])
    randomize(prior)
    model = wrap(prior)
    if name == "constraint with another transform":
        with pytest.warns(UserWarning, match="prior: the description of a FactorizedGPPrior does not make the same"):
            model.save(tmp_path / "model.pt")
        loaded = FGPVAE.load(
            tmp_path / "model.pt", prior=FactorizedGPPrior([LocalChannels(2, KERNELS[name]()), GlobalChannels(1)])
        )
    else:
        loaded = saved_and_loaded(model, tmp_path / "model.pt")
    assert_same_prior(prior, loaded.prior)
    assert same_state(model.state_dict(), loaded.state_dict())


MEANS = {
    "linear": lambda: means.LinearMean(3),
    "linear without bias, one per channel": lambda: means.LinearMean(3, batch_shape=J, bias=False),
    "constant with prior": lambda: means.ConstantMean(constant_prior=priors.NormalPrior(0.0, 1.0)),
    "constant, one per channel": lambda: means.ConstantMean(batch_shape=J),
    "constant with constraint": lambda: means.ConstantMean(constant_constraint=constraints.Interval(-1.0, 2.0)),
    "zero": lambda: means.ZeroMean(),
}


@pytest.mark.parametrize("name", MEANS)
def test_mean_comes_back(name, tmp_path):
    prior = FactorizedGPPrior([LocalChannels(2, kernels.RBFKernel(), MEANS[name]()), GlobalChannels(1)])
    randomize(prior)
    assert_same_prior(prior, saved_and_loaded(wrap(prior), tmp_path / "model.pt").prior)


def test_global_channels_come_back_with_variances_prior_and_constraint(tmp_path):
    block = GlobalChannels(
        3,
        variance=torch.tensor([0.5, 1.0, 2.0]),
        mean=means.ConstantMean(batch_shape=torch.Size([3])),
        variance_prior=priors.GammaPrior(2.0, 1.0),
        variance_constraint=constraints.GreaterThan(1e-3),
    )
    prior = FactorizedGPPrior([block, LocalChannels(1, kernels.RBFKernel())], dtype=torch.float32)
    randomize(prior)
    loaded = saved_and_loaded(wrap(prior), tmp_path / "model.pt").prior
    assert loaded.dtype == torch.float32
    assert_same_prior(prior, loaded)


LIKELIHOODS = {
    "fixed": lambda: GaussianLikelihood("fixed", 0.123),
    "learned": lambda: GaussianLikelihood("learned", 0.4),
    "optimal": GaussianLikelihood,
    "bernoulli": BernoulliLikelihood,
}


@pytest.mark.parametrize("name", LIKELIHOODS)
def test_model_comes_back_whole_and_ready_for_use(name, tmp_path):
    model, data = make_model(LIKELIHOODS[name](), member_dropout=0.25, hyperprior=True), make_data()
    if name == "bernoulli":
        rows = data.flat()
        data = GroupedDataset(rows.y.sigmoid(), rows.x, rows.group)
    model.terms(data[:])  # moves the running variance
    model.eval()
    loaded = saved_and_loaded(model, tmp_path / "model.pt")
    assert not loaded.training
    assert loaded.member_dropout == 0.25
    assert type(loaded.likelihood) is type(model.likelihood)
    assert torch.equal(loaded.reconstruct(data), model.reconstruct(data))
    assert [p.requires_grad for p in loaded.parameters()] == [p.requires_grad for p in model.parameters()]
    torch.manual_seed(4)
    before = model.terms(data[:])
    torch.manual_seed(4)
    for mine, theirs in zip(loaded.terms(data[:]), before, strict=True):
        assert (mine is None and theirs is None) or torch.equal(torch.as_tensor(mine), torch.as_tensor(theirs))


def test_a_model_comes_back_where_only_the_package_was_imported(tmp_path):
    mean = FourierMean(2, batch_shape=torch.Size([2]))
    prior = FactorizedGPPrior([LocalChannels(2, kernels.PeriodicKernel(), mean), GlobalChannels(1)])
    FGPVAE(ConvEncoder(3), ConvDecoder(3), prior).save(tmp_path / "model.pt")
    program = f"from fgp_gpytorch import FGPVAE; print(FGPVAE.load({str(tmp_path / 'model.pt')!r}).prior.num_channels)"
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], capture_output=True, text=True, timeout=120, check=False
    )
    assert run.stdout.strip() == "3", run.stderr


def test_default_networks_come_back(tmp_path):
    model = FGPVAE(ConvEncoder(3), ConvDecoder(num_channels=3, fast=False), make_prior())
    loaded = saved_and_loaded(model, tmp_path / "model.pt")
    assert loaded.decoder.conv1.fast is False
    y = torch.rand(2, 1, 28, 28)
    assert torch.equal(loaded.encoder(y)[0], model.encoder(y)[0])


def test_networks_of_other_images_come_back(tmp_path):
    shape, widths = (3, 17, 20), (4, 6)
    model = FGPVAE(ConvEncoder(3, shape, widths), ConvDecoder(3, shape, widths[::-1]), make_prior())
    loaded = saved_and_loaded(model, tmp_path / "model.pt")
    y = torch.rand(2, *shape)
    assert torch.equal(loaded.decoder(loaded.encoder(y)[0]), model.decoder(model.encoder(y)[0]))


def test_double_networks_come_back_in_double(tmp_path):
    model, data = make_model().double().eval(), make_data(dtype=torch.float64)
    loaded = saved_and_loaded(model, tmp_path / "model.pt")
    assert torch.equal(loaded.reconstruct(data), model.reconstruct(data))


class Described(Configurable, nn.Module):
    """A user's own network, with every kind of argument."""

    def __init__(self, widths, *more, activation="tanh", scale=1.0, limit=math.inf, offset=None, **options):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(3, widths[0]), nn.Linear(widths[0], 6))
        self.settings = (tuple(widths), more, activation, scale, limit, options)
        self.register_buffer("offset", torch.zeros(6) if offset is None else offset)

    def forward(self, y):
        mean, log_variance = (self.layers(y) + self.offset).chunk(2, -1)
        return mean, log_variance.exp()


class More(Described):
    """Its subclass with its own arguments, which reach the parent's by another way."""

    def __init__(self, width):
        super().__init__([width], activation="relu")


def test_the_users_own_described_networks_come_back(tmp_path):
    encoder = Described((4, 2), 7, 8, scale=0.1, offset=torch.arange(6.0), extra=[1, None, True, "word"])
    loaded = saved_and_loaded(make_model(encoder=encoder), tmp_path / "model.pt").encoder
    assert type(loaded) is Described
    assert loaded.settings == ((4, 2), (7, 8), "tanh", 0.1, math.inf, {"extra": [1, None, True, "word"]})
    assert torch.equal(loaded.offset, encoder.offset)
    loaded = saved_and_loaded(make_model(encoder=More(5)), tmp_path / "more.pt").encoder
    assert type(loaded) is More
    assert loaded.settings[2] == "relu"


class Undescribed(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(3, width)

    def forward(self, y):
        mean, log_variance = self.layer(y).chunk(2, -1)
        return mean, log_variance.exp()


def test_an_undescribed_network_is_warned_of_and_must_be_given_again(tmp_path):
    model, path = make_model(encoder=Undescribed(6)).eval(), tmp_path / "model.pt"
    with pytest.warns(UserWarning, match=r"encoder: cannot describe a Undescribed.*loading will need encoder="):
        model.save(path)
    with pytest.raises(CheckpointError, match=r"the encoder \(.*Undescribed\) was saved without.*load\(path, encoder="):
        FGPVAE.load(path)
    loaded = FGPVAE.load(path, encoder=Undescribed(6))
    assert torch.equal(loaded.reconstruct(make_data()), model.reconstruct(make_data()))
    with pytest.raises(CheckpointError, match=r"(?s)its tensors do not fit the model .*encoder\.layer\.weight"):
        FGPVAE.load(path, encoder=Undescribed(8))


@pytest.mark.parametrize("options", [{}, {"encoder": "compiled"}])
def test_a_compiled_network_is_saved_as_the_network_itself(options, tmp_path, monkeypatch):
    validation = torch.distributions.Distribution
    monkeypatch.setattr(validation, "_validate_args", validation._validate_args)  # torch.compile turns it off for good
    model, path = make_model().eval(), tmp_path / "model.pt"
    before = model.reconstruct(make_data())
    model.encoder = torch.compile(model.encoder)
    model.encoder._orig_mod.layers[0].weight.requires_grad_(False)
    model.save(path)
    parts = {name: torch.compile(make_model(seed=2).encoder) for name in options}
    loaded = FGPVAE.load(path, **parts)
    assert type(loaded.encoder) is MLPEncoder
    assert torch.equal(loaded.reconstruct(make_data()), before)
    assert [n for n, p in loaded.encoder.named_parameters() if not p.requires_grad] == ["layers.0.weight"]


def test_a_network_changed_after_it_was_made_is_not_described_wrongly(tmp_path):
    encoder = MLPEncoder((3,), 3, (8,))
    encoder.layers = nn.Linear(3, 6)
    with pytest.warns(UserWarning, match="encoder: the description of a MLPEncoder does not make the same module"):
        make_model(encoder=encoder).save(tmp_path / "model.pt")


class Renames(kernels.Kernel):
    """Keeps its argument under another name, with nothing in its state to show it."""

    def __init__(self, power=2.0, **options):
        super().__init__(**options)
        self._q = power

    def forward(self, x1, x2, diag=False, **options):
        return torch.exp(-((x1 - x2.mT).abs() ** self._q))


def test_an_argument_changed_after_it_was_given_is_saved(tmp_path):
    model = make_model()
    model.member_dropout = 0.3
    model.save(tmp_path / "model.pt")
    assert FGPVAE.load(tmp_path / "model.pt").member_dropout == 0.3
    model.encoder.takes_observed = True
    assert saved_and_loaded(model, tmp_path / "model.pt").encoder.takes_observed is True


def test_a_users_kernel_that_hides_an_argument_is_not_described_wrongly(tmp_path):
    prior = FactorizedGPPrior([LocalChannels(2, Renames(1.2)), GlobalChannels(1)])
    model = FGPVAE(make_model().encoder, make_model().decoder, prior)
    with pytest.warns(
        UserWarning, match=r"prior: cannot describe a Renames: expected it to keep .* 'power'.*self.power"
    ):
        model.save(tmp_path / "model.pt")


def with_local_kernel(kernel):
    return FGPVAE(
        make_model().encoder, make_model().decoder, FactorizedGPPrior([LocalChannels(2, kernel), GlobalChannels(1)])
    )


def test_a_hyperprior_registered_afterwards_comes_back(tmp_path):
    kernel = kernels.RBFKernel()
    kernel.register_prior("lengthscale_prior", priors.GammaPrior(3.0, 1.0), "lengthscale")
    model = with_local_kernel(kernel)
    loaded = saved_and_loaded(model, tmp_path / "model.pt")
    assert loaded.prior.log_hyperprior().item() == model.prior.log_hyperprior().item() != 0


def test_a_hyperprior_on_another_quantity_is_not_described_wrongly(tmp_path):
    kernel = kernels.RBFKernel(lengthscale_prior=priors.NormalPrior(0.0, 1.0))
    kernel.register_prior("lengthscale_prior", priors.NormalPrior(0.0, 1.0), lambda m: m.lengthscale.log(), None)
    with pytest.warns(UserWarning, match="prior: the description of a FactorizedGPPrior does not make the same module"):
        with_local_kernel(kernel).save(tmp_path / "model.pt")


def test_a_kernel_that_cannot_be_read_back_is_warned_of(tmp_path):
    kernel = kernels.DistributionalInputKernel(lambda x1, x2: (x1.unsqueeze(-2) - x2.unsqueeze(-3)).norm(dim=-1))
    model, path = with_local_kernel(kernel), tmp_path / "model.pt"
    with pytest.warns(UserWarning, match="prior: cannot describe a function: its arguments cannot"):
        model.save(path)
    with pytest.raises(
        CheckpointError, match=r"the prior .* was saved without a description\. Try .*load\(path, prior="
    ):
        FGPVAE.load(path)
    assert same_state(FGPVAE.load(path, prior=copy.deepcopy(model.prior)).state_dict(), model.state_dict())


def test_a_copied_model_is_saved_like_its_original(tmp_path):
    model = make_model()
    clone = copy.deepcopy(model)
    loaded = saved_and_loaded(clone, tmp_path / "model.pt")
    assert same_state(loaded.state_dict(), model.state_dict())


def pickled_names(path):
    """All classes and functions that a torch file would look up when it is read."""
    names = set()
    with zipfile.ZipFile(path) as archive:
        (member,) = [name for name in archive.namelist() if name.endswith("data.pkl")]
        strings = []
        for operation, argument, _ in pickletools.genops(archive.read(member)):
            if operation.name == "GLOBAL":
                names.add(argument.replace(" ", "."))
            elif operation.name == "STACK_GLOBAL":
                names.add(".".join(strings[-2:]))
            elif isinstance(argument, str):
                strings.append(argument)
    return names


def test_files_hold_tensors_and_plain_data_alone(tmp_path):
    make_model(hyperprior=True).save(tmp_path / "model.pt")
    data = make_data()
    fit(
        make_model(), data, validation=data, epochs=2, folder=tmp_path / "run", progress=False, early_stopping=3,
        lr_schedule="cosine",
    )  # fmt: skip
    files = [tmp_path / "model.pt", tmp_path / "run" / "last.ckpt", tmp_path / "run" / "best.ckpt"]
    for path in files:
        torch.load(path, weights_only=True)
        assert {name.split(".")[0] for name in pickled_names(path)} <= {"torch", "collections"}, path


def test_a_training_checkpoint_is_a_model_too(tmp_path):
    model, data = make_model(), make_data()
    result = fit(model, data, epochs=2, folder=tmp_path, progress=False, seed=1)
    loaded = FGPVAE.load(result.last_checkpoint)
    assert same_state(loaded.state_dict(), model.state_dict())
    assert torch.equal(loaded.reconstruct(data), model.reconstruct(data))


def test_a_missing_file_or_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"no file .*nothing\.pt.*model\.save"):
        FGPVAE.load(tmp_path / "nothing.pt")
    with pytest.raises(MissingFileError, match=r"expected the folder .*nowhere to exist.*mkdir"):
        make_model().save(tmp_path / "nowhere" / "model.pt")


def test_other_files_are_refused(tmp_path):
    path = tmp_path / "text.pt"
    path.write_text("hello")
    with pytest.raises(CheckpointError, match=r"expected a checkpoint of fgp_gpytorch, got something else"):
        FGPVAE.load(path)
    path.write_bytes(b"")
    with pytest.raises(CheckpointError, match=r"got something else"):
        FGPVAE.load(path)
    torch.save({"weight": torch.ones(2)}, path)
    with pytest.raises(CheckpointError, match=r"expected a file of model\.save or of fit, got another content"):
        FGPVAE.load(path)
    torch.save(Undescribed(6), path)
    with pytest.raises(CheckpointError, match=r"got something else"):
        FGPVAE.load(path)


def test_half_a_file_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    make_model().save(path)
    path.write_bytes(path.read_bytes()[:-500])
    with pytest.raises(CheckpointError, match=r"got something else"):
        FGPVAE.load(path)


def test_a_file_of_another_class_is_refused(tmp_path):
    class Other(FGPVAE):
        pass

    path = tmp_path / "model.pt"
    make_model().save(path)
    with pytest.raises(CheckpointError, match=r"expected a .*Other, got a FGPVAE\. Try FGPVAE\.load"):
        Other.load(path)


def test_a_part_of_an_unknown_name_is_refused(tmp_path):
    path = tmp_path / "model.pt"
    make_model().save(path)
    with pytest.raises(CheckpointError, match=r"expected parts among .*got \['network'\]"):
        FGPVAE.load(path, network=nn.Linear(1, 1))


def test_a_description_cannot_reach_classes_outside_the_known_bases():
    for name in ("os:system", "subprocess:Popen", "torch.nn.modules.linear:Linear", "builtins:eval"):
        with pytest.raises(CheckpointError, match="of the saved model is not known"):
            rebuild({"class": name, "arguments": {}})
    with pytest.raises(CheckpointError, match="expected the name of a torch dtype, got 'load'"):
        rebuild({"dtype": "load"})
    assert gpytorch.kernels.RBFKernel is type(rebuild({"class": "gpytorch.kernels:RBFKernel"}))
    assert gpytorch.kernels.RBFKernel is type(rebuild({"class": "gpytorch.kernels.rbf_kernel:RBFKernel"}))


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (lambda: MLPEncoder([3], 2), "fgp_gpytorch.nets:MLPEncoder"),
        (make_prior, "fgp_gpytorch:FactorizedGPPrior"),
        (kernels.RBFKernel, "gpytorch.kernels:RBFKernel"),
        (lambda: More(2), f"{__name__}:More"),
    ],
)
def test_a_class_is_named_by_the_package_that_exports_it(value, name):
    assert describe(value())["class"] == name


def test_wrong_arguments_raise_the_constructors_own_error():
    with pytest.raises(TypeError, match=r"MLPEncoder.__init__\(\) got an unexpected keyword argument 'depth'"):
        MLPEncoder([3], 2, depth=3)
    with pytest.raises(TypeError, match=r"More.__init__\(\) missing 1 required positional argument: 'width'"):
        More()


def test_copies_and_pickles_keep_the_arguments():
    network = More(2)
    for again in (copy.copy(network), copy.deepcopy(network), pickle.loads(pickle.dumps(network))):
        assert again.constructor_arguments == {"width": 2}
        assert describe(again) == describe(network)
