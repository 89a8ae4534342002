"""Squared error at held-out members."""

from fgp_gpytorch import _checks as check
from fgp_gpytorch._modes import evaluation
from fgp_gpytorch.data import HeldOut, HeldOutBatch
from fgp_gpytorch.errors import ArgumentError
from fgp_gpytorch.metrics._evaluation import batches, checked_model
from fgp_gpytorch.models import ConditionedVAE, GroupedVAE


def held_out_mse(
    model: GroupedVAE | ConditionedVAE,
    held_out: HeldOut,
    sample: bool = False,
    batch_size: int | None = 64,
    num_samples: int = 1,
    progress: bool = False,
) -> float:
    """Mean squared error of generating held-out members from the others of their group. Lower is better.

    The measure of the paper's Table 1.

    Args:
        model: A trained model, or one conditioned on data. It is used in evaluation mode, then restored.
        held_out: The members to predict.
        sample: False decodes the posterior mean of z, True one draw of z, from the global random numbers.
        batch_size: The most groups at a time, fewer if they are large; None for as many as memory allows. A model that
            couples groups conditions on those of a batch together, so its error depends on the batch size a little.
        num_samples: With `sample=True`, the draws of z whose decoded observations are averaged before the error is
            taken. Many draws give the predictive mean E[y*], the best prediction under a squared error. It is far
            better than the decoded mean of z* if the posterior of z* is wide (a VAE at a new member).
        progress: Whether to show a progress bar.

    Returns:
        Units of y squared, averaged over groups, members and elements (for images: per pixel, ink 1, paper 0).

    Raises:
        ArgumentError: If `num_samples` is below 1, or above it without `sample=True`, or `held_out` is no `HeldOut`.

    Examples:
        >>> data = GroupedDataset(torch.rand(9, 2), torch.arange(9.0), group=[0, 0, 0, 1, 1, 1, 2, 2, 2])
        >>> held_out = HeldOut.last(data)
        >>> model = FGPVAE(MLPEncoder([2], 3), MLPDecoder(3, [2]), FactorizedGPPrior([GlobalChannels(3)]))
        >>> error = (model.generate(held_out.x_new, held_out.context) - held_out.y_new).square().mean()
        >>> math.isclose(held_out_mse(model, held_out), error, rel_tol=1e-5)
        True
    """
    hint = "Try held_out_mse(model, held_out, sample=True, num_samples=64)."
    checked_model(model)
    num_samples = check.count(num_samples, "num_samples", hint=hint)
    if num_samples > 1 and not sample:
        raise ArgumentError(f"num_samples: expected 1 for the decoded mean of z, got {num_samples}. {hint}")
    total, count = 0.0, 0
    with evaluation(model) as device:
        for batch in batches(model, held_out, batch_size, progress, device, num_samples):
            total += squared_error(model, batch, num_samples if sample else None)
            count += batch.num_elements
    return total / count


def squared_error(model: GroupedVAE | ConditionedVAE, batch: HeldOutBatch, num_samples: int | None) -> float:
    """Sum of the squared errors of a batch, of the mean of so many decoded draws, or of the decoded mean for None."""
    shape = None if num_samples is None else (num_samples,)
    generated = model.generate(batch.x_new, batch.context, sample_shape=shape)
    generated = generated if num_samples is None else generated.mean(0)
    return batch.masked((generated - batch.y_new).square()).double().sum().item()
