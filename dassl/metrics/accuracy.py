import torch

from dassl.metrics.finite import require_finite


def compute_accuracy(output, target, topk=(1,)):
    """Top-k accuracies in percent.

    Args:
        output: logits (B, n_cls), or a tuple whose first entry they are.
        target: labels (B,).
    Returns:
        list of scalar tensors of shape (1,), one a `k`.
    Raises:
        NonFiniteError: a logit is NaN or infinite, and would count as the highest.
    """
    if isinstance(output, (tuple, list)):
        output = output[0]
    require_finite(output)
    return accuracies(output, target, topk)


def accuracies(output, target, topk=(1,)):
    """`compute_accuracy` of logits (B, n_cls) that are known to be finite."""
    best = output.topk(min(max(topk), output.shape[1]), dim=1).indices
    correct = best.eq(target.view(-1, 1))
    return [100.0 * correct[:, :k].any(dim=1).to(torch.float32).mean().view(1) for k in topk]
