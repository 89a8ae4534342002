"""200,000 rows in groups of 16 fit in 2 GB, whatever is done with them (dense: 320 GB a matrix)."""

import subprocess
import sys

import pytest

PROGRAM = """
import math, pathlib, resource, sys
import gpytorch, torch
from fgp_gpytorch.kernels import GlobalKernel, LocalKernel
from gpytorch.kernels import RBFKernel, ScaleKernel
from linear_operator.operators import DiagLinearOperator

case = sys.argv[1]
torch.manual_seed(0)
n = 200_000
if case == "ragged and shuffled":
    sizes = torch.randint(1, 32, (2 * n // 32 + 500,))
    labels = torch.arange(len(sizes)).repeat_interleave(sizes)[:n]
else:
    labels = torch.arange(n // 16).repeat_interleave(16)
x = torch.cat([labels.unsqueeze(-1), torch.randn(n, 1)], dim=-1).double()
if case == "ragged and shuffled":
    x = x[torch.randperm(n)]
y = torch.randn(n).double()
noise = torch.rand(n).double() + 0.1
kernel = LocalKernel(ScaleKernel(RBFKernel())).double() + GlobalKernel()
covariance = kernel(x)
product = covariance @ y
noisy = covariance + DiagLinearOperator(noise)
solution = noisy.solve(y)
residual = (noisy @ solution - y).abs().max()
assert residual < 1e-8, residual
quad, logdet = noisy.inv_quad_logdet(y.unsqueeze(-1), logdet=True)
(quad + logdet).backward()
assert all(p.grad.abs().max() > 1 for p in kernel.parameters())
with torch.no_grad():
    assert covariance.diagonal().shape == (n,)
    factor = noisy.cholesky()
    half = noisy.root_decomposition().root.mT @ solution
    torch.testing.assert_close(half @ half, quad)
    torch.testing.assert_close(2 * factor.diagonal().log().sum(), logdet)
    likelihood = gpytorch.likelihoods.FixedNoiseGaussianLikelihood(noise)
    prior = gpytorch.distributions.MultivariateNormal(torch.zeros(n).double(), kernel(x))
    assert prior.sample(torch.Size([2])).shape == (2, n)
    evidence = likelihood(prior).log_prob(y)
    torch.testing.assert_close(evidence, -0.5 * (quad + logdet + n * math.log(2 * math.pi)))

    class Model(gpytorch.models.ExactGP):
        def forward(self, x):
            return gpytorch.distributions.MultivariateNormal(torch.zeros(x.shape[-2]).double(), kernel(x))

    model = Model(x, y, likelihood).eval()
    posterior = model(x + torch.tensor([0.0, 0.1]))
    assert posterior.variance.max() < covariance.diagonal().max()
    assert posterior.sample().shape == (n,)
status = pathlib.Path("/proc/self/status")  # on Linux ru_maxrss also has the peak of the process that started this one
if status.exists():
    peak = next(int(line.split()[1]) / 2**20 for line in status.read_text().splitlines() if line.startswith("VmHWM"))
else:
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**30
print(peak)
"""


@pytest.mark.parametrize("case", ["equal", "ragged and shuffled"])
def test_two_hundred_thousand_rows_stay_below_two_gigabytes(case):
    run = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", PROGRAM, case],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert float(run.stdout) < 2.0  # GiB, peak resident memory of the whole process, imports included
