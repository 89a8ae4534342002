"""Feature maps of covariates: categories, lines, some columns, products, missing values."""

import gpytorch
import pytest
import torch

from fgp_gpytorch.errors import ArgumentError, DataError, ShapeError
from fgp_gpytorch.feature_maps import (
    CategoricalFeatures,
    LinearFeatures,
    NystromFeatures,
    ProductFeatures,
    SelectedFeatures,
)
from fgp_gpytorch.saving import describe, rebuild

F64 = torch.float64
X = torch.tensor([[0.0, 0, 5], [1.0, 1, 5], [2.0, 0, 5], [2.0, -1, 5], [0.0, 7, 5]], dtype=F64)  # time, category, noise


def _gram(features, x=X):
    phi = features(x)
    assert phi.shape == (len(x), features.num_features)
    return phi @ phi.mT


def _time():
    return SelectedFeatures(NystromFeatures(gpytorch.kernels.RBFKernel().double(), X[:3, 0]), [0])


def test_categories_are_equal_to_themselves_and_unseen_ones_to_no_known_one():
    category = SelectedFeatures(CategoricalFeatures(2), [1])
    known = X[:3, 1]
    torch.testing.assert_close(_gram(category)[:3, :3], (known[:, None] == known).double())
    assert bool((_gram(category)[:3, 3:] == 0).all())
    assert _gram(category).diagonal().tolist() == [1.0] * 5
    assert category(X.expand(2, 4, 5, 3)).shape == (2, 4, 5, 3)


def test_products_have_the_product_of_the_kernels():
    category = SelectedFeatures(CategoricalFeatures(2), [-2])
    line = SelectedFeatures(LinearFeatures(2), [0, 2])
    torch.testing.assert_close(_gram(line), X[:, [0, 2]] @ X[:, [0, 2]].mT)
    product = ProductFeatures([_time(), category, line])
    torch.testing.assert_close(_gram(product), _gram(_time()) * _gram(category) * _gram(line))


def test_missing_covariates_have_a_weight_of_their_own_and_the_prior_variance():
    x = torch.cat([X, torch.tensor([[1.0], [1], [1], [0], [0]], dtype=F64)], dim=-1)
    optional = SelectedFeatures(_time().features, [0], known=3)
    gram = _gram(optional, x)
    torch.testing.assert_close(gram[:3, :3], _gram(_time())[:3, :3])
    assert bool((gram[:3, 3:] == 0).all())
    assert gram.diagonal().tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert gram[3, 4] == 1
    changed = x.clone()
    changed[3:, 0] = 17.0
    torch.testing.assert_close(optional(changed), optional(x))


def test_maps_are_described_and_built_again():
    maps = ProductFeatures([_time(), SelectedFeatures(CategoricalFeatures(2), [1], known=2)])
    copy = rebuild(describe(maps)).double()
    copy.load_state_dict(maps.state_dict())
    torch.testing.assert_close(copy(X), maps(X))


def test_gradients_reach_the_kernel_of_a_product():
    product = ProductFeatures([_time(), SelectedFeatures(CategoricalFeatures(2), [1])])
    product(X).square().sum().backward()
    (raw,) = product.parameters()
    assert raw.grad is not None


def test_wrong_arguments_are_refused():
    with pytest.raises(ArgumentError, match="num_categories: expected an integer >= 1, got 0"):
        CategoricalFeatures(0)
    with pytest.raises(DataError, match=r"x: expected codes of categories, 0 to 1 or another integer .* got 0.5"):
        CategoricalFeatures(2)(torch.tensor([[0.5]]))
    with pytest.raises(ShapeError, match=r"x: expected shape \(\.\.\., N, 1\), got \(5, 3\)"):
        CategoricalFeatures(2)(X)
    with pytest.raises(ShapeError, match=r"x: expected shape \(\.\.\., N, 1\), got \(5, 3\)"):
        LinearFeatures()(X)
    with pytest.raises(ShapeError, match=r"x: expected a column 4, got D = 3 features"):
        SelectedFeatures(LinearFeatures(), [4])(X)
    with pytest.raises(ArgumentError, match=r"columns: expected numbers of columns of x, got 'sex'\. Try \[0\]"):
        SelectedFeatures(LinearFeatures(), ["sex"])
    with pytest.raises(ArgumentError, match="features: expected a feature map, got RBFKernel"):
        SelectedFeatures(gpytorch.kernels.RBFKernel(), [0])
    with pytest.raises(ArgumentError, match="maps: expected two feature maps or more"):
        ProductFeatures([LinearFeatures()])
