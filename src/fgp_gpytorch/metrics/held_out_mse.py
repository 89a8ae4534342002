"""Squared error at held-out members."""

from fgp_gpytorch.data.held_out import HeldOut
from fgp_gpytorch.errors import DataError
from fgp_gpytorch.metrics._evaluation import batches, evaluation
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


def held_out_mse(
    model: GroupedVAE | ConditionedVAE, held_out: HeldOut, sample: bool = False, batch_size: int = 64, num_samples: int = 1
) -> float:
    """Mean squared error of generating held-out members from the others of their group. Lower is better.

    The measure of the paper's Table 1.

    Args:
        model: A trained model, or what its `given` made; it is used in evaluation mode and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape), and `y_new_mask` if some
            was not observed.
        sample: False decodes the posterior mean of z, True one draw of z, from the global random numbers.
        batch_size: Groups at a time. A model that couples groups conditions on those of a batch together, so its error
            depends on it a little.
        num_samples: Draws of z whose decoded observations are averaged before the error is taken, with `sample=True`:
            many of them make the predictive mean E[y*], the best guess under a squared error. A model that knows little
            of z* (a VAE at a new member) is served by it far better than by decoding the mean of z*.

    Returns:
        Units of y squared, averaged over groups, members and elements (for images: per pixel, ink 1, paper 0).

    Raises:
        DataError: If `num_samples` is below 1, or above it without `sample=True`; if nothing of `y_new` was observed,
            or what was is not finite.
        ShapeError: If `x_new`, `y_new` or `y_new_mask` are not of the context's groups.
    """
    if not isinstance(num_samples, int) or num_samples < 1 or (num_samples > 1 and not sample):
        raise DataError(
            f"num_samples: expected an integer of at least 1, and 1 for the decoded mean of z, got {num_samples} with "
            f"sample={sample}. Try held_out_mse(model, held_out, sample=True, num_samples=64)."
        )
    total, count = 0.0, 0
    with evaluation(model) as device:
        for batch in batches(held_out, batch_size, device):
            shape = (num_samples,) if sample else None
            generated = model.generate(batch.x_new, batch.context, sample_shape=shape)
            generated = generated.mean(0) if sample else generated
            error = batch.masked((generated - batch.y_new).square())
            total, count = total + error.double().sum().item(), count + batch.num_elements
    return total / count
