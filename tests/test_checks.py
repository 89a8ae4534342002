"""The checks at the public door: what passes, what is refused, and the words of the refusal."""

import re
from fractions import Fraction

import numpy as np
import pytest
import torch

from fgp_gpytorch import _checks as check
from fgp_gpytorch.errors import ArgumentError, DataError, FGPError, ShapeError

NAN, INF = float("nan"), float("inf")


def raises(error, words: str):
    """The whole message, not a part of it."""
    assert issubclass(error, FGPError)
    return pytest.raises(error, match=f"^{re.escape(words)}$")


# count


@pytest.mark.parametrize("value", [1, 7, np.int64(3), np.int32(3), np.uint8(3), np.array(3), torch.tensor(3)])
def test_count_returns_a_python_integer(value):
    got = check.count(value, "num_channels")
    assert type(got) is int
    assert got == value


@pytest.mark.parametrize("value", [True, np.bool_(True), 2.0, np.float64(2.0), "2", None, torch.tensor(2.0), [2]])
def test_count_refuses_what_is_no_integer(value):
    words = f"num_channels: expected an integer >= 1, got {value!r}. Try num_channels=1."
    with raises(ArgumentError, words):
        check.count(value, "num_channels")


@pytest.mark.parametrize(("value", "least"), [(0, 1), (-3, 0), (1, 2), (np.int64(4), 5)])
def test_count_has_a_least_value_and_a_hint(value, least):
    with raises(ArgumentError, f"epochs: expected an integer >= {least}, got {value!r}. Try epochs={least}."):
        check.count(value, "epochs", least)
    with raises(ArgumentError, f"epochs: expected an integer >= {least}, got {value!r}. Try 200."):
        check.count(value, "epochs", least, hint="Try 200.")
    assert check.count(least, "epochs", least) == least


# positive


@pytest.mark.parametrize("value", [1, 0.5, 1e-300, np.float32(0.5), np.float64(2), np.int64(3), Fraction(1, 2)])
def test_positive_returns_a_python_float(value):
    got = check.positive(value, "noise")
    assert type(got) is float
    assert got == float(value)


@pytest.mark.parametrize(
    "value", [0, 0.0, -1.0, NAN, INF, -INF, True, np.bool_(True), "1", None, torch.ones(1), torch.tensor(True), 1j]
)
def test_positive_refuses_zero_infinity_and_what_is_no_number(value):
    with raises(ArgumentError, f"noise: expected a positive finite number, got {value!r}. Try 0.1."):
        check.positive(value, "noise", hint="Try 0.1.")
    with raises(ArgumentError, f"noise: expected a positive finite number, got {value!r}. Try noise=1."):
        check.positive(value, "noise")


def test_positive_may_allow_zero_and_have_an_end():
    assert check.positive(0, "decay", zero=True) == 0.0
    assert check.positive(0.0, "decay", zero=True, below=1) == 0.0
    assert check.positive(0.99, "decay", below=1) == 0.99
    with raises(ArgumentError, "decay: expected a finite number >= 0, got -1. Try decay=1."):
        check.positive(-1, "decay", zero=True)
    for value in (1, 1.5, -0.1, NAN, False):
        with raises(ArgumentError, f"decay: expected a number in [0, 1), got {value!r}. Try 0.99."):
            check.positive(value, "decay", zero=True, below=1, hint="Try 0.99.")
    with raises(ArgumentError, "decay: expected a number in (0, 0.5), got 0. Try decay=0.25."):
        check.positive(0, "decay", below=0.5)


# choice


def test_choice_returns_one_of_the_options():
    assert check.choice("cosine", "lr_schedule", ("constant", "cosine")) == "cosine"
    assert check.choice(None, "context", (None, "new")) is None
    assert check.choice(torch.float32, "dtype", (torch.float64, torch.float32)) is torch.float32
    assert check.choice("b", "option", iter("abc")) == "b"


@pytest.mark.parametrize("value", ["Cosine", "", None, 1, True, np.array(["constant", "cosine"])])
def test_choice_refuses_others_and_lists_the_options(value):
    words = f"lr_schedule: expected one of 'constant', 'cosine', got {value!r}. "
    with raises(ArgumentError, words + "Try 'constant'."):
        check.choice(value, "lr_schedule", ("constant", "cosine"))
    with raises(ArgumentError, words + "The paper's is constant. Try 'constant'."):
        check.choice(value, "lr_schedule", ("constant", "cosine"), "The paper's is constant.")


def test_choice_of_one_is_not_the_choice_of_true():
    with raises(ArgumentError, "step: expected one of 1, 2, got True. Try 1."):
        check.choice(True, "step", (1, 2))


# instance


def test_instance_returns_the_object():
    module = torch.nn.Linear(1, 1)
    assert check.instance(module, "encoder", torch.nn.Module) is module
    assert check.instance(3, "value", (str, int)) == 3


def test_instance_names_both_classes():
    with raises(ArgumentError, "encoder: expected a Module, got int. Try MLPEncoder([5], 4)."):
        check.instance(3, "encoder", torch.nn.Module, "Try MLPEncoder([5], 4).")
    with raises(ArgumentError, "x: expected a Tensor or ndarray, got None. Try a Tensor or ndarray."):
        check.instance(None, "x", (torch.Tensor, np.ndarray))
    with raises(ArgumentError, "optimizer: expected an Optimizer, got type. Try an Optimizer."):
        check.instance(torch.optim.Adam, "optimizer", torch.optim.Optimizer)


# floating


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floating_returns_the_tensor(dtype):
    value = torch.ones(2, dtype=dtype)
    assert check.floating(value, "x") is value


@pytest.mark.parametrize("dtype", [torch.int64, torch.uint8, torch.bool, torch.complex64])
def test_floating_refuses_other_dtypes(dtype):
    words = f"x: expected a floating-point dtype, got {dtype}. "
    with raises(DataError, words + "Try x.double() or x.float()."):
        check.floating(torch.ones(2, dtype=dtype), "x")
    with raises(DataError, words + "Try y / 255."):
        check.floating(torch.ones(2, dtype=dtype), "x", "Try y / 255.")


@pytest.mark.parametrize(("value", "got"), [(np.ones(2), "ndarray"), ([1.0], "list"), (1.0, "float"), (None, "None")])
def test_floating_refuses_what_is_no_tensor(value, got):
    with raises(ArgumentError, f"x: expected a Tensor, got {got}. Try torch.as_tensor(x)."):
        check.floating(value, "x")


# shape


@pytest.mark.parametrize(
    "expected", [(2, 3, 4), ("G", 3, "L"), ("...", 4), ("...", "G", "Q", "L"), ("...",), [2, 3, 4]]
)
def test_shape_returns_a_tensor_that_fits(expected):
    value = torch.zeros(2, 3, 4)
    assert check.shape(value, "mean", expected) is value


@pytest.mark.parametrize(
    ("expected", "words"),
    [
        ((2, 3), "(2, 3)"),
        ((2, 3, 5), "(2, 3, 5)"),
        (("G", "Q"), "(G, Q)"),
        (("G", "Q", "D", "L"), "(G, Q, D, L)"),
        ((), "()"),
        (("...", 3), "(..., 3)"),
        (("...", "b", "G", "Q", "L"), "(..., b, G, Q, L)"),
    ],
)
def test_shape_refuses_another_and_broadcasts_nothing(expected, words):
    words = f"mean: expected shape {words}, got (2, 3, 4). "
    with raises(ShapeError, words + "They look ungrouped. Try mean of that shape."):
        check.shape(torch.zeros(2, 3, 4), "mean", expected, "They look ungrouped.")
    with raises(ShapeError, words + "Try mean of that shape."):
        check.shape(torch.zeros(2, 3, 4), "mean", expected)


def test_one_does_not_stand_for_any_size():
    with raises(ShapeError, "mask: expected shape (4, 3), got (1, 3). Try mask of that shape."):
        check.shape(torch.zeros(1, 3), "mask", (4, 3))


# mask


def test_mask_returns_a_boolean_tensor():
    value = torch.tensor([[True, False]])
    assert check.mask(value, "mask", (1, 2)) is value
    assert check.mask(value, "mask", ("G", "Q")) is value


@pytest.mark.parametrize("dtype", [torch.float32, torch.int64, torch.uint8])
def test_mask_of_numbers_is_refused(dtype):
    words = f"mask: expected torch.bool, got {dtype}. Try mask.bool(), where True = observed."
    with raises(DataError, words):
        check.mask(torch.ones(2, 3, dtype=dtype), "mask", (2, 3))


def test_mask_of_another_shape_or_kind_is_refused():
    words = "mask: expected shape (2, 3), got (3,). One boolean for each member. Try mask of that shape."
    with raises(ShapeError, words):
        check.mask(torch.ones(3, dtype=torch.bool), "mask", (2, 3), "One boolean for each member.")
    with raises(ArgumentError, "mask: expected a Tensor, got ndarray. Try torch.as_tensor(mask)."):
        check.mask(np.ones((2, 3), dtype=bool), "mask", (2, 3))


# finite


def test_finite_returns_the_tensor_and_leaves_integers_alone():
    for value in (torch.ones(2, 3), torch.ones(2, 3, dtype=torch.int64), torch.zeros(0)):
        assert check.finite(value, "y") is value


@pytest.mark.parametrize("junk", [NAN, INF, -INF])
def test_finite_counts_and_places_what_is_not(junk):
    value = torch.zeros(2, 3, 4)
    value[0, 2, 1] = value[1, 0, 3] = junk
    words = "y: expected finite values, got 2 NaN or infinite entries, the first at index (0, 2, 1). "
    with raises(
        DataError, words + "Try to drop or impute them. Missing entries belong in a mask (False = not observed)."
    ):
        check.finite(value, "y")
    with raises(DataError, words + "Try a smaller learning rate."):
        check.finite(value, "y", hint="Try a smaller learning rate.")


def test_finite_looks_only_where_it_is_asked_to():
    value, where = torch.zeros(2, 3, 4), torch.ones(2, 3, 1, dtype=torch.bool)
    value[0, 2, 1] = value[1, 0, 3] = NAN
    where[0, 2] = False
    with pytest.raises(DataError, match=r"got 1 NaN or infinite entries, the first at index \(1, 0, 3\)"):
        check.finite(value, "y", where)
    where[1, 0] = False
    assert check.finite(value, "y", where) is value


# device


def test_device_names_every_tensor_and_its_place():
    x = torch.zeros(2)
    check.device(x=x, mean=x)
    words = (
        "expected tensors on one device, got x on cpu, mean on meta, mask on cpu. "
        "Try batch.to(device) and prior.to(device)."
    )
    with raises(DataError, words):
        check.device(x=x, mean=x.to("meta"), mask=x)


# as_tensor


def test_as_tensor_converts_numbers_and_does_not_copy_a_tensor():
    value = torch.ones(2)
    assert check.as_tensor(value, "y") is value
    for other in ([1.0, 2.0], (1, 2), np.array([1.0, 2.0]), [np.float64(1.0), 2.0]):
        got = check.as_tensor(other, "y")
        assert torch.equal(got.double(), torch.tensor([1.0, 2.0]).double())
    assert check.as_tensor(3, "y").shape == ()


@pytest.mark.parametrize(
    ("value", "got"), [("text", "str"), (None, "None"), ([[1.0], [1.0, 2.0]], "list"), (np.array(["a"]), "ndarray")]
)
def test_as_tensor_refuses_what_has_no_numeric_value(value, got):
    with pytest.raises(
        ArgumentError, match=rf"^y: expected a tensor or an array of numbers, got {got} \(.+\)\. Try torch"
    ):
        check.as_tensor(value, "y")


# as_sample_shape


@pytest.mark.parametrize("value", [(), [], [3], (2, 5), torch.Size([4]), [np.int64(3), 2], [0], range(2, 4)])
def test_sample_shape_becomes_a_size(value):
    got = check.as_sample_shape(value)
    assert isinstance(got, torch.Size)
    assert tuple(got) == tuple(value)
    assert torch.zeros(got).shape == got


@pytest.mark.parametrize("value", [[True], [2.0], [-1], "20", [None], None, 2.5, torch.tensor([2]), np.int64(20)])
def test_sample_shape_of_anything_else_is_refused(value):
    words = f"sample_shape: expected a sequence of integers, got {value!r}. Try [20] for twenty draws."
    with raises(ArgumentError, words):
        check.as_sample_shape(value)


def test_sample_shape_of_a_number_shows_the_brackets():
    with raises(ArgumentError, "sample_shape: expected a sequence of integers, got 20. Try [20]."):
        check.as_sample_shape(20)
