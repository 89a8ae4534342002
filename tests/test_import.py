"""What `import fgp_gpytorch` needs."""

import subprocess
import sys

import pytest

import fgp_gpytorch

LATER = ("lightning", "matplotlib", "scipy", "torchvision")
WITHOUT = f"""
import sys

class Absent:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] in {LATER}:
            raise ModuleNotFoundError(f"No module named {{name!r}}")

sys.meta_path.insert(0, Absent())
import torch
from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, GroupedDataset, nets
y, x, group = torch.randn(12, 2), torch.rand(12, 1), torch.arange(12) // 3
model = FGPVAE(nets.MLPEncoder((2,), 1), nets.MLPDecoder(1, (2,)), FactorizedGPPrior([GlobalChannels(1)]))
print(model.terms(GroupedDataset(y, x, group)).log_likelihood.isfinite().all().item())
"""


def run(program: str) -> subprocess.CompletedProcess:
    return subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)


def test_a_model_computes_its_loss_without_the_packages_that_only_some_functions_need():
    done = run(WITHOUT)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")


def test_import_is_silent_and_leaves_heavy_packages_for_later():
    done = run(f"import sys, fgp_gpytorch; print([name for name in {LATER} if name in sys.modules])")
    assert (done.returncode, done.stdout, done.stderr) == (0, "[]\n", "")


def test_names_that_are_imported_later_are_there():
    done = run(
        "import fgp_gpytorch\n"
        "for name in ('TableModel', 'fit', 'datasets', 'metrics', 'plots', 'tables', 'training'):\n"
        "    assert name in dir(fgp_gpytorch); getattr(fgp_gpytorch, name)"
    )
    assert done.returncode == 0, done.stderr


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="module 'fgp_gpytorch' has no attribute 'FGPVAEE'"):
        fgp_gpytorch.FGPVAEE  # noqa: B018
