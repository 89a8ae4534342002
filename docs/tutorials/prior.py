# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # The prior alone, in your own VAE
#
# You have a VAE and a training loop, and want latents that are smooth over time. Keep both. The prior replaces
# `Normal(0, 1)`, and gives you a posterior, its KL and predictions. This page uses plain PyTorch on a table of
# countries that ships with the package.

# %%
# %matplotlib inline
import gpytorch
import torch
from matplotlib.figure import Figure
from torch import nn

from fgp_gpytorch import FactorizedGPPrior, GlobalChannels, GroupedDataset, LocalChannels, datasets

columns = ["life_expectancy", "fertility", "infant_mortality"]
table = datasets.gapminder().query("year <= 2015 and year % 5 == 0").dropna(subset=columns)
y = torch.tensor(table[columns].to_numpy(), dtype=torch.float32)
y = (y - y.mean(0)) / y.std(0)
decades = torch.tensor((table["year"].to_numpy() - 1990) / 10)  # about unit scale, as the kernel starts
data = GroupedDataset(y, decades, table["country"])
print(f"{len(data)} countries of {data.group_sizes.min()} to {data.group_sizes.max()} years")

# %% [markdown]
# `GroupedDataset` takes flat rows in any order. A batch is padded to its largest group, and `batch.mask` marks the
# members that exist.

# %%
is_new = torch.arange(len(data)) % 8 == 0  # countries to test on
batch, new = data[~is_new], data[is_new]
print("y", batch.y.shape, "x", batch.x.shape, "mask", batch.mask.shape)

# %% [markdown]
# ## The prior
#
# Three channels vary over time, each with a lengthscale of its own. Two channels have one value per country.

# %%
torch.manual_seed(0)
matern = gpytorch.kernels.MaternKernel(nu=1.5, batch_shape=torch.Size([3]))
prior = FactorizedGPPrior([LocalChannels(3, matern), GlobalChannels(2)])
encoder = nn.Sequential(nn.Linear(3, 32), nn.ELU(), nn.Linear(32, 2 * 5))  # mean and log variance of 5 channels
decoder = nn.Sequential(nn.Linear(5, 32), nn.ELU(), nn.Linear(32, 3))
log_noise = nn.Parameter(torch.tensor(-2.0))

# %% [markdown]
# ## The loop
#
# The encoder's output counts as a *pseudo-observation* N(mean, variance) of the latents. `prior.posterior` combines
# these with the Gaussian process, exactly. Four lines differ from an ordinary VAE.


# %%
def elbo(mask):
    mean, log_variance = encoder(batch.y).chunk(2, dim=-1)
    posterior = prior.posterior(batch.x, mean, log_variance.exp(), mask)  # instead of Normal(mean, sd)
    z = posterior.rsample(marginals=True).float()  # (G, Q, 5)
    log_density = torch.distributions.Normal(decoder(z), log_noise.exp()).log_prob(batch.y).sum(-1)
    return (log_density * batch.mask).sum() - posterior.kl.sum()  # nats, all countries


modules = nn.ModuleList([encoder, decoder, prior])
optimizer = torch.optim.Adam([*modules.parameters(), log_noise], lr=1e-2)
history = []
for _ in range(500):
    present = 5 * torch.rand(batch.num_groups, 1) - 2.5  # a year of each country, after which all is hidden
    loss = -elbo(batch.mask & (batch.x[..., 0] <= present)) / batch.mask.sum()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    history.append(-loss.item())

figure = Figure(figsize=(6, 2.5), layout="constrained")
axes = figure.subplots()
axes.plot(history)
axes.set(xlabel="step", ylabel="ELBO, nats a member")
figure

# %% [markdown]
# Kernel parameters are learned with the networks.

# %%
print("lengthscales, decades:", [round(value, 2) for value in matern.lengthscale.flatten().tolist()])

# %% [markdown]
# ## Forecast
#
# Take the countries that were not in training. Mask their years from 2000 on, and ask for these by `predict`. A masked
# member has no effect at all.

# %%
late = new.mask & (new.x[..., 0] >= 1.0)
early = new.mask & ~late
with torch.no_grad():
    mean, log_variance = encoder(new.y).chunk(2, dim=-1)
    posterior = prior.posterior(new.x, mean, log_variance.exp(), early)
    prediction = decoder(posterior.predict(new.x).mean.float())
    draws = decoder(posterior.rsample([200]).float())  # coherent paths over the years
index = (early * torch.arange(new.num_members)).argmax(-1)
last = new.y[torch.arange(new.num_groups), index].unsqueeze(1)
error = (prediction - new.y).square().mean(-1)[late].mean()
rule = (last - new.y).square().mean(-1)[late].mean()
print(f"mean squared error from 2000 on, training variances: {error:.3f}, of the last value {rule:.3f}")

# %%
figure = Figure(figsize=(9, 2.6), layout="constrained")
for axes, g in zip(figure.subplots(1, 3, sharey=True), (2, 9, 16), strict=True):
    there = new.mask[g]
    years = 1990 + 10 * new.x[g, there, 0]
    low, middle, high = draws[:, g, there, 0].quantile(torch.tensor([0.05, 0.5, 0.95]), dim=0)
    axes.fill_between(years, low, high, alpha=0.3)
    axes.plot(years, middle)
    for label, mask, color in (("given", early[g], "black"), ("asked", late[g], "tab:red")):
        axes.scatter(1990 + 10 * new.x[g, mask, 0], new.y[g, mask, 0], color=color, s=8, label=label)
    axes.set_title(str(data.labels[is_new][g]), fontsize=9)
axes.legend(fontsize=8)
figure

# %% [markdown]
# The band contains the uncertainty of the latents, without the observation noise.
#
# ## Next
#
# - The formulas behind `posterior`: [From the paper to the lines](../models/paper.md).
# - Other channels: [CoregionalizedChannels](../models/coregionalized.md), and [groups inside groups](../groups.md).
# - Groups of thousands of members: [Large groups](../groups.md#large-groups).
# - A model with its loop, validation and checkpoints: [Images](images.py).
