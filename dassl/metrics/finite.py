"""Refuses logits that are NaN or infinite: argmax would still name a class, and an accuracy would count it."""
import math

from dassl.utils.errors import NonFiniteError

NAMED = 3  # files that a message names


def require_finite(logits, files=(), what="logits"):
    """Raise NonFiniteError, naming the images, unless every logit is finite.

    Args:
        logits: (B, n_cls), or other numbers of B images.
        files: the B images' files; another number of them is not used, and an image is named by its place, from 1.
        what: the numbers' name.
    """
    logits = logits if logits.dim() else logits[None]
    finite = logits.isfinite()
    if finite.all():
        return
    rows = (~finite).reshape(len(logits), -1).any(dim=1).nonzero()[:, 0].tolist()
    names = [str(files[row]) if len(files) == len(logits) else f"image {row + 1} of the batch" for row in rows[:NAMED]]
    more = f" and {len(rows) - NAMED} more" if len(rows) > NAMED else ""
    raise NonFiniteError(f"the {what} of {len(rows)} of a batch of {len(logits)} images are not finite "
                         f"({logits[~finite][0].item()}): {', '.join(names)}{more}; use PREC bf16 or fp32, look at "
                         "these images, or train again if the checkpoint or the CLIP's weights are damaged")


def deciding(results):
    """The first of an evaluation's numbers, which is what is compared and reported.

    Args:
        results: {name: number}, as an evaluator's `evaluate` gives them.
    Raises:
        NonFiniteError: it is NaN or infinite.
    """
    name, value = next(iter(results.items()))
    try:
        finite = math.isfinite(value)
    except TypeError:  # a foreign evaluator may give other things than numbers
        finite = True
    if not finite:
        raise NonFiniteError(f"the evaluation gives {name} {value}, which is no result; mend the evaluator "
                             "(TEST.EVALUATOR) or what it is given")
    return value
