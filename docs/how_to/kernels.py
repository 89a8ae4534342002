# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Kernels and channels
#
# You choose how latents vary over x. This page draws from priors, so that you see what each choice says before any
# data. Every line is one group.

# %%
# %matplotlib inline
import torch
from gpytorch.kernels import ConstantKernel, LinearKernel, MaternKernel, PeriodicKernel, RBFKernel, ScaleKernel
from matplotlib.figure import Figure

from fgp_gpytorch import CoregionalizedChannels, FactorizedGPPrior, GlobalChannels, IndependentChannels, LocalChannels
from fgp_gpytorch.feature_maps import NystromFeatures
from fgp_gpytorch.means import PiecewiseLinearMean

x = torch.linspace(0, 10, 80, dtype=torch.float64).reshape(1, 80, 1).expand(5, -1, -1)  # five groups


def draw(named_blocks):
    """A panel for each block: draws of its first channel."""
    torch.manual_seed(0)
    figure = Figure(figsize=(9, 2.2), layout="constrained")
    panels = figure.subplots(1, len(named_blocks), sharey=True)
    for axes, (name, block) in zip(panels, named_blocks.items(), strict=True):
        with torch.no_grad():
            paths = FactorizedGPPrior([block]).sample(x)[..., 0]
        axes.plot(x[0, :, 0], paths.T, lw=1)
        axes.set_title(name, fontsize=9)
    return figure


def set_lengthscale(kernel, value):
    kernel.lengthscale = value
    return kernel


# %% [markdown]
# ## Kinds of channels
#
# - `LocalChannels` vary within a group.
# - `GlobalChannels` have one value per group.
# - `IndependentChannels` vary from member to member, without x: the latents of a plain VAE.

# %%
draw(
    {
        "LocalChannels": LocalChannels(1, set_lengthscale(MaternKernel(nu=1.5), 2.0)),
        "GlobalChannels": GlobalChannels(1),
        "IndependentChannels": IndependentChannels(1),
    }
)

# %% [markdown]
# Most data need both of the first two: what varies, and what makes a group this group. Start with as many channels as
# y has independent directions, and half of them global. The history of `fit` has the KL of each: a channel with a KL
# near zero is not used.
#
# ## How smooth
#
# | kernel | paths | for |
# | --- | --- | --- |
# | `MaternKernel(nu=0.5)` | rough | prices, noise that lasts |
# | `MaternKernel(nu=1.5)` | one derivative | most measurements: the default of `TableModel` |
# | `RBFKernel()` | infinitely smooth | physics; a single sharp bend misleads it |

# %%
draw(
    {
        "Matern 1/2": LocalChannels(1, set_lengthscale(MaternKernel(nu=0.5), 2.0)),
        "Matern 3/2": LocalChannels(1, set_lengthscale(MaternKernel(nu=1.5), 2.0)),
        "RBF": LocalChannels(1, set_lengthscale(RBFKernel(), 2.0)),
    }
)

# %% [markdown]
# ## How fast
#
# The lengthscale is in the unit of x. It is learned, from a start of 0.693. A start that is far from the spread of x
# may never move.

# %%
draw({f"lengthscale {value}": LocalChannels(1, set_lengthscale(MaternKernel(nu=1.5), value)) for value in (0.3, 2, 20)})

# %% [markdown]
# ## Cycles, trends, levels
#
# Kernels add and multiply. A sum of a level and a process is what `TableModel` takes.

# %%
periodic = PeriodicKernel()
periodic.period_length, periodic.lengthscale = 5.0, 1.0
slow = set_lengthscale(MaternKernel(nu=1.5), 20.0)
level = ConstantKernel()
level.constant = torch.tensor(4.0)
draw(
    {
        "periodic": LocalChannels(1, periodic),
        "periodic times slow": LocalChannels(1, periodic * slow),
        "linear": LocalChannels(1, ScaleKernel(LinearKernel())),
        "process plus level": LocalChannels(1, ScaleKernel(set_lengthscale(MaternKernel(nu=1.5), 2.0)) + level),
    }
)

# %% [markdown]
# ## What all groups share
#
# A mean over x contains what is common to all groups. `CoregionalizedChannels` learn how groups differ: with few
# factors, groups are combinations of a few curves.

# %%
points = torch.linspace(0, 10, 11, dtype=torch.float64)
trend = PiecewiseLinearMean(points, batch_shape=torch.Size([1]))
with torch.no_grad():
    for parameter in trend.parameters():
        parameter.copy_((points - 5).abs().expand_as(parameter))
smooth = NystromFeatures(set_lengthscale(RBFKernel(), 2.0), points)
draw(
    {
        "zero mean": LocalChannels(1, set_lengthscale(MaternKernel(nu=1.5), 2.0)),
        "learned mean": LocalChannels(1, set_lengthscale(MaternKernel(nu=1.5), 2.0), trend),
        "2 factors": CoregionalizedChannels(1, num_factors=2, features=smooth),
    }
)

# %% [markdown]
# ## One kernel, or one for each channel
#
# A kernel without batch shape is shared by all channels of a block. With `batch_shape=[J]` every channel learns its
# own lengthscale:

# %%
block = LocalChannels(3, MaternKernel(nu=1.5, batch_shape=torch.Size([3])))
block.kernel.lengthscale = torch.tensor([0.5, 2.0, 20.0]).reshape(3, 1, 1)
print(block.kernel.lengthscale.flatten().tolist())

# %% [markdown]
# ## Next
#
# - Groups of more than 128 members choose their inference by the kernel: [Large groups](../groups.md#large-groups).
# - Period and lengthscale conventions: [Sharp bits](../sharp_bits.md).
# - A kernel of your own is any GPyTorch kernel that keeps the batch dimensions of x:
#   [Your own parts](../extending.md#a-model-of-your-own).
