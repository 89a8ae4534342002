# ---
# jupyter:
#   jupytext:
#     text_representation:
#       extension: .py
#       format_name: percent
# ---
# %% [markdown]
# # A table of your own
#
# You have a table of repeated measurements, and want forecasts with honest intervals. This page takes ten minutes. It
# uses a table that ships with the package: health of 185 countries by year.

# %%
# %matplotlib inline
import pandas as pd

from fgp_gpytorch import TableModel, datasets

y = ["life_expectancy", "fertility", "infant_mortality"]
table = datasets.gapminder().query("year <= 2015 and year % 5 == 0")  # every fifth year: quick
table = table[["country", "continent", "year", *y]]
table.head()

# %% [markdown]
# A table needs three things:
#
# - a column that says which *group* a row belongs to, here `country`;
# - one or more columns `x` that are known for every row, here `year`;
# - the columns `y` to model. They may have gaps.
#
# Other columns are ignored. Those that may explain `y`, such as sex or treatment, go into `covariates=["sex"]`.
#
# **Your own table:** replace the lines above by `table = pd.read_csv("mine.csv")`, and the names below by yours. Dates
# are allowed in `x`: `pd.read_csv("mine.csv", parse_dates=["day"])`.
#
# ## Fit
#
# We keep every eighth country from the model. For the others, `fit` needs no settings.

# %%
new = table["country"].isin(table["country"].unique()[::8])
train = table[~new]
past = table[new & (table["year"] < 2000)]
future = table[new & (table["year"] >= 2000)]

model = TableModel(y=y, x=["year"], group="country")
model.fit(train, seed=0)

# %% [markdown]
# `fit` begins with an exact Gaussian process on the training groups. Then it trains networks, and moves towards them as
# far as this improves forecasts of held-out groups.

# %%
print(f"moved from the Gaussian process (0) to the networks (1): {model.moved_:.2f}")
print(f"factor by which intervals were widened: {model.spread_:.2f}")

# %% [markdown]
# Neither number is good or bad. Held-out groups have chosen the first one. The second one is 1 if intervals were wide
# enough for them.

# %% [markdown]
# ## Forecast
#
# The *context* contains some rows of the groups that you ask about. These countries were not in training. For groups
# of the training table, give their rows as the context in the same way. Ask only for x that the training table reaches:
# a trend does not continue beyond.

# %%
forecast = model.forecast(past, at={"year": [2000, 2005, 2010, 2015]})
forecast.head(6).round(2)

# %% [markdown]
# `mean`, `sd` and the quantiles are those of a new measurement, noise included, in the table's own units. The figure
# shows the first column of `y`: the median and the 90 % interval.

# %%
countries = past["country"].unique()[:6]
figure = model.plot_forecast(past, groups=countries, at={"year": range(1960, 2016, 5)})
for axes, country in zip(figure.axes, countries, strict=True):  # what happened
    rows = future[future["country"] == country]
    axes.scatter(rows["year"], rows["life_expectancy"], color="tab:red", s=12, zorder=3)
figure

# %% [markdown]
# ## Is it any good?
#
# `score` compares forecasts with what happened. Compare its `mse` with that of a simple rule before you trust a model.

# %%
score = model.score(past, future)
last = past.groupby("country")[y].last()
last = last.loc[future["country"]].set_axis(future.index)
score["mse_of_last_value"] = ((future[y] - last) ** 2).mean()
score.round(3)

# %% [markdown]
# | column | meaning | better |
# | --- | --- | --- |
# | `mse` | mean squared error, units squared | lower |
# | `nll` | negative log density of a value, nats | lower |
# | `crps` | distance of the forecast distribution to the value, units | lower |
# | `coverage_90` | share of values inside the 90 % interval | near 0.9 |
# | `n` | number of values | |
#
# Values of one group err together. So with few groups a coverage of 0.75 or 1 can be chance.
#
# ## Fill gaps
#
# `impute` fills missing values from the same row and from the same group. Here we delete every seventh fertility.

# %%
gaps = table[new].reset_index(drop=True)
gaps.loc[::7, "fertility"] = float("nan")
filled = model.impute(gaps)
true = table[new].reset_index(drop=True)["fertility"]
pd.DataFrame({"true": true, "filled": filled["fertility"]})[::7].head().round(2)

# %%
model.impute(gaps, spread=True).head().round(2)  # a row for each gap

# %% [markdown]
# ## Compare groups, invent groups
#
# `embed` returns the latents of each group: similar groups have similar numbers. `sample_groups` invents groups.

# %%
model.embed(past).head().round(2)

# %%
model.sample_groups(2, at={"year": [1960, 1980, 2000]}, seed=0).round(2)

# %% [markdown]
# ## Keep the model
#
# A file contains tensors and text, and no code.

# %%
import tempfile
from pathlib import Path

with tempfile.TemporaryDirectory() as folder:
    model.save(Path(folder) / "countries.pt")
    again = TableModel.load(Path(folder) / "countries.pt")
at = {"year": [2015]}
again.forecast(past, at).equals(model.forecast(past, at))

# %% [markdown]
# ## Next
#
# - Columns of other kinds, such as counts, categories and hours of the day: [Tables](../tables.md).
# - Groups inside groups, such as utterances of speakers: `group=["speaker", "utterance"]`, in
#   [Tables](../tables.md#columns).
# - What `fit` refuses, and what it warns of: [Tables](../tables.md#bad-tables).
# - What forecasts promise, and where other methods are better: [Home](../index.md#when-not-to-use-it).
