"""Squared error at held-out members."""

from fgp_gpytorch.metrics._evaluation import HeldOut, batches, evaluation
from fgp_gpytorch.models import FGPVAE


def held_out_mse(model: FGPVAE, held_out: HeldOut, sample: bool = False, batch_size: int = 64) -> float:
    """Mean squared error of generating held-out members from the others of their group. Lower is better.

    The measure of the paper's Table 1.

    Args:
        model: A trained model; it is used in evaluation mode and left in the mode it was in.
        held_out: Groups with `context`, `x_new` (G, Q*, D) and `y_new` (G, Q*, *y_shape).
        sample: False decodes the posterior mean of z, True one draw of z, from the global random numbers.
        batch_size: Groups at a time.

    Returns:
        Units of y squared, averaged over groups, members and elements (for images: per pixel, ink 1, paper 0).

    Raises:
        ShapeError: If `x_new` or `y_new` are not of the context's groups.
    """
    total, count = 0.0, 0
    with evaluation(model) as device:
        for context, x_new, y_new in batches(held_out, batch_size, device):
            generated = model.generate(x_new, context, sample_shape=() if sample else None)
            error = (generated - y_new).square()
            total, count = total + error.double().sum().item(), count + error.numel()
    return total / count
