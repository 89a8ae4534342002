"""What every test runs under: one thread, a fixed seed, and nobody's global settings changed."""

from collections.abc import Iterator

import gpytorch
import pyro
import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def one_thread() -> Iterator[None]:
    """Tests share their machine; one thread also makes sums of floats repeatable."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def _global_settings() -> dict[str, object]:
    settings = {
        "torch default dtype": torch.get_default_dtype(),
        "torch default device": torch.get_default_device(),
        "torch number of threads": torch.get_num_threads(),
        "torch grad mode": torch.is_grad_enabled(),
        "torch inference mode": torch.is_inference_mode_enabled(),
        "torch anomaly detection": torch.is_anomaly_enabled(),
        "torch deterministic algorithms": torch.are_deterministic_algorithms_enabled(),
        "torch.distributions validation": torch.distributions.Distribution._validate_args,
        "gpytorch lazily_evaluate_kernels": gpytorch.settings.lazily_evaluate_kernels.on(),
        "gpytorch debug": gpytorch.settings.debug.on(),
    }
    return settings | {f"pyro {name}": value for name, value in pyro.settings.get().items()}


@pytest.fixture(autouse=True)
def unchanged_globals(one_thread: None) -> Iterator[None]:
    """Fail a test that leaves a global setting changed; give each its own seed and an empty Pyro parameter store."""
    torch.manual_seed(0)
    pyro.clear_param_store()
    before = _global_settings()
    yield
    after = _global_settings()
    pyro.clear_param_store()
    torch.set_default_dtype(before["torch default dtype"])  # one sinner must not fail all that come after
    torch.set_grad_enabled(before["torch grad mode"])
    torch.set_num_threads(before["torch number of threads"])
    torch.distributions.Distribution._validate_args = before["torch.distributions validation"]
    pyro.settings.set(**{name[5:]: value for name, value in before.items() if name.startswith("pyro ")})
    changed = {name: (value, after[name]) for name, value in before.items() if after[name] != value}
    assert not changed, f"the test left global settings changed, (before, after): {changed}"
