# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # Images
#
# You have images of objects, each from several angles, and want the angles that are missing. This page trains the
# paper's model on handwritten threes. The digits ship with the package.

# %%
# %matplotlib inline
import math

import gpytorch
import torch

from fgp_gpytorch import FGPVAE, FactorizedGPPrior, GlobalChannels, LocalChannels, datasets, fit
from fgp_gpytorch.metrics import held_out_mse
from fgp_gpytorch.nets import ConvDecoder, ConvEncoder
from fgp_gpytorch.plots import image_rows, latent_paths, training_curves

data = datasets.rotated_mnist()
print(f"{len(data.train)} digits, {data.train.num_members} images, {len(data.angles)} angles")

# %% [markdown]
# `data.train` is a `GroupedDataset`. One digit is a group, its images are members, and the angle is `x`. Of each digit
# the model gets 11 of 15 angles. The angle 157.5 degrees never occurs.

# %%
digit = data.train[0]
print("y", digit.y.shape, "x", digit.x.shape, "mask", digit.mask.shape)
degrees = [f"{angle:.0f}" for angle in digit.x[0, :, 0].rad2deg().tolist()]
image_rows([("a training digit", digit.y[0])], columns=degrees)

# %% [markdown]
# **Your own images:** `GroupedDataset(images, angles, digit)` takes flat tensors in any order: images `(N, 1, H, W)`,
# features `(N,)` or `(N, D)`, and a label of the group for each image. Groups may have different sizes.
#
# ## The model
#
# A latent *channel* is one number per image. Local channels follow a Gaussian process over the angle. Global channels
# have one value per digit, for its style.

# %%
torch.manual_seed(0)
kernel = gpytorch.kernels.PeriodicKernel()
kernel.period_length = 2 * math.pi  # x is in radians
kernel.raw_period_length.requires_grad_(False)  # keep the period
prior = FactorizedGPPrior([LocalChannels(12, kernel), GlobalChannels(4)])
model = FGPVAE(ConvEncoder(16), ConvDecoder(16), prior, member_dropout=0.2)

# %% [markdown]
# `member_dropout=0.2` hides a fifth of the images from the posterior in each step. So training resembles the task: to
# predict an image that was not given.
#
# ## Training
#
# 28 epochs take about a minute. The paper trains 1000.

# %%
options = {"learning_rate": 1e-2, "lr_schedule": "cosine", "folder": None, "progress": False}
result = fit(model, data.train, epochs=28, **options)
training_curves(result.history)

# %% [markdown]
# ## A missing angle
#
# `data.test` asks for the angle that training never showed. `data.extrapolation` asks for it of 40 digits that training
# never showed either. Figures are errors per pixel; the mean image has 0.058 at this angle.

# %%
print(f"seen digits:   {held_out_mse(model, data.test):.4f}")
print(f"unseen digits: {held_out_mse(model, data.extrapolation):.4f}")

# %% [markdown]
# `generate` returns images at any angle, for digits of a context. Here are three unseen digits at all 16 angles.

# %%
context = data.extrapolation.context[[0, 1, 2]]
x_new = data.angles.expand(len(context.mask), -1).unsqueeze(-1)  # (G, Q*, D)
with torch.no_grad():
    images = model.generate(x_new, context=context)
truth = data.truth(data.extrapolation.labels[:3])
rows = []
for g in range(3):
    rows += [("true", truth[g]), ("generated", images[g])]
image_rows(rows, columns=[f"{angle:.0f}" for angle in data.angles.rad2deg().tolist()])

# %% [markdown]
# ## What the latents contain
#
# The line is the posterior mean of a channel over the angle, and the band two standard deviations. Dots are what the
# encoder says of each image.

# %%
latent_paths(model, data.extrapolation.context[0], data.angles, "radians")

# %% [markdown]
# ## New digits
#
# Without a context `generate` draws from the prior. `fit_groups` fits a distribution to the training digits' latents,
# and `sample_groups` draws from it. Such draws look more like the data.

# %%
model.fit_groups(data.train)
with torch.no_grad():
    invented = model.sample_groups(x_new)
image_rows([(f"invented {g}", invented[g]) for g in range(3)])

# %% [markdown]
# ## Next
#
# - Better digits in a few minutes: `python examples/rotated_mnist.py` trains correlated channels
#   ([CoregionalizedChannels](../models/coregionalized.md)).
# - One image as context: `member_dropout=(0, 1)` and a learned mean ([model](../model.md)).
# - Angles that are unknown for some images: [LatentAngleFGPVAE](../models/latent_angle.md).
# - Objectives, validation and resuming: [Training](../training.md).
# - Networks of your own: [Your own parts](../extending.md).
