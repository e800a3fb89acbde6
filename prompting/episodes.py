"""Meta-learning over parts of a batch: which batches can be split, how they are split, and the meta-gradient.

MetaPrompt (Zhao et al., arXiv 2212.04196, section III-C): a prompt is updated on all parts of a batch but one, and its
loss is then measured on the part held out.
"""
from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from prompting.errors import PromptingError

MAX_REDRAWS = 1000


def splittable_order(order: Sequence[int], groups: Sequence[int], batch_size: int, rng: random.Random,
                     what: str = "domains") -> list[int]:
    """Repair the order of an epoch so that every batch has images of at least two groups.

    As few images as possible change places, so that the order is otherwise the one that other methods see.

    Args:
        order: the shuffled indices of all N images.
        groups: the group (domain or class) of each image, by index.
        batch_size: images per batch; the images after the last full batch are not used, unless N is less than a batch.
        rng: `random.Random`.
        what: the groups' name, for the message.
    Returns:
        a permutation of `order`.
    Raises:
        PromptingError: the data makes such an order impossible.
    """
    order = list(order)
    size = min(batch_size, len(order))
    batches = len(order) // size if size else 0
    count = max(Counter(groups[i] for i in order).values(), default=0)
    if size < 2 or len(order) - count < batches:
        raise PromptingError(
            f"no order of the {len(order)} training images gives each batch of {batch_size} at least two {what}: "
            + ("a batch needs two images; raise DATALOADER.TRAIN_X.BATCH_SIZE" if size < 2 else
               f"only {len(order) - count} of them are not of the most frequent one, and there are {batches} batches; "
               "use larger batches or more balanced data"))
    members = [list(range(b * size, (b + 1) * size)) for b in range(batches)]
    tail = list(range(batches * size, len(order)))

    def kinds(places: Sequence[int]) -> Counter[int]:
        return Counter(groups[order[p]] for p in places)

    for places in members:
        (group, number), *others = kinds(places).items()
        if others:
            continue
        # Places outside this batch whose image is of another group and can be spared by its own batch.
        spare = [p for p in tail if groups[order[p]] != group]
        for batch in members:
            counts = kinds(batch)
            if size - counts[group] < 2 or batch is places:
                continue
            spare.extend(p for p in batch if groups[order[p]] != group)
        there, here = rng.choice(spare), rng.choice(places)
        order[here], order[there] = order[there], order[here]
    return order


def halve_classes(labels: Sequence[int], n_cls: int, rng: random.Random) -> list[int]:
    """Shuffle the classes until both halves have images of the batch.

    Args:
        labels: the batch's labels, a list.
        n_cls: number of classes, at least 4; the first half has ceil(n_cls / 2).
        rng: `random.Random`.
    Returns:
        the shuffled classes, a list.
    Raises:
        PromptingError: all images are of one class.
    """
    present = set(labels)
    if len(present) < 2:
        raise PromptingError("a batch whose images are all of one class cannot be split by classes; "
                             "set DATALOADER.TRAIN_X.SAMPLER to MetaEpisodeSampler")
    half = (n_cls + 1) // 2
    for _ in range(MAX_REDRAWS):
        order = rng.sample(range(n_cls), n_cls)
        if present & set(order[:half]) and present & set(order[half:]):
            return order
    raise AssertionError("two classes stayed in one half over a thousand draws")


def parts_of_domains(domains: Sequence[int], most: int) -> dict[str, Tensor]:
    """A batch of B images split by their domains.

    Args:
        domains: the domain of each image, a list.
        most: how many domains there may be: so many parts are made, the last of them without images if need be.
    Returns:
        {"part": the number of each image's part (B,), "counts": images of each part (P,), "shares": what each image
        counts for in the mean of each part (P, B)}.
    Raises:
        PromptingError: all images are of one domain.
    """
    present = sorted(set(domains))
    if len(present) < 2:
        raise PromptingError("a batch whose images are all of one domain cannot be split by domains; "
                             "set DATALOADER.TRAIN_X.SAMPLER to MetaEpisodeSampler")
    part = torch.tensor([present.index(domain) for domain in domains])
    return {"part": part, **_weights(part, max(most, len(present)))}


def parts_of_halves(labels: Tensor, order: Sequence[int]) -> dict[str, Tensor]:
    """A batch of B images split by the halves of the classes.

    Args:
        labels: the class of each image (B,), on the CPU.
        order: all classes, the ceil(n_cls / 2) of the first half first.
    Returns:
        {"classes": the order (n_cls,), "targets": the place of each image's class in its half, and 0 in the other one
        (2, B), "counts" and "shares": as of `parts_of_domains`, with P = 2}.
    """
    classes = torch.tensor(order)
    first, place = (len(classes) + 1) // 2, classes.argsort()[labels]
    part = (place >= first).long()
    targets = torch.stack([torch.where(part == 0, place, 0), torch.where(part == 1, place - first, 0)])
    return {"classes": classes, "targets": targets, **_weights(part, 2)}


def _weights(part: Tensor, number: int) -> dict[str, Tensor]:
    """"counts" and "shares" of images whose parts have the numbers `part` (B,), below `number`."""
    own = (part == torch.arange(number)[:, None]).float()
    counts = own.sum(dim=1)
    return {"counts": counts, "shares": own / counts.clamp(min=1)[:, None]}


def plain_gradient(loss: Tensor, tensor: Tensor, create_graph: bool = False,
                   retain_graph: bool | None = None) -> Tensor:
    """d loss / d tensor."""
    return torch.autograd.grad(loss, tensor, create_graph=create_graph, retain_graph=retain_graph)[0]


def meta_gradient(phi: Tensor, losses: Callable[[Tensor], Tensor], counts: Tensor, lr: float | Tensor,
                  order: int = 1, gradient: Callable[..., Tensor] = plain_gradient) -> tuple[Tensor, Tensor]:
    """The meta-gradient: the sum over the parts of the gradient on each part after an inner step on the other parts.

    For each part i: phi_i = phi - lr * grad CE_rest(phi), where CE_rest is the mean over the images of the other parts;
    g_i = grad CE_i(phi_i), with respect to phi_i (order 1) or to phi through the inner step (order 2). All inner
    gradients are taken at the same phi, so the gradient of each part is computed once, and those of the other parts are
    averaged, weighted by their numbers of images. A part without images counts for nothing.

    Args:
        phi: the prompt, a leaf tensor.
        losses: prompts of P parts, (P, ...), each shaped as phi -> the mean cross-entropy of the images of each part
            with its own prompt, (P,); 0 for a part without images.
        counts: number of images of each part, (P,); at least two parts have some.
        lr: rate of the inner step.
        order: 1 or 2; for 2 the losses must be twice differentiable (`blocks.differentiable_attention`).
        gradient: how to differentiate, `plain_gradient`'s signature.
    Returns:
        (sum_i g_i, CE_i(phi_i)): the first shaped as phi, the second (P,), detached.
    """
    second = order == 2
    others = counts.expand(len(counts), -1) * (1 - torch.eye(len(counts), device=phi.device))
    weights = others / others.sum(dim=1, keepdim=True)  # (P, P), of each part for each one that is held out
    # Each part has a copy of phi, so the gradient of the sum of all losses has that of each.
    copies = phi.expand(len(counts), *phi.shape)
    if not second:
        copies = copies.detach().clone().requires_grad_()
    inner = gradient(losses(copies).sum(), copies, create_graph=second)
    steps = (weights[:, :, None] * inner.reshape(len(counts), -1)).sum(dim=1).view_as(copies)
    moved = copies - lr * steps
    if not second:
        moved = moved.detach().requires_grad_()
    held_out = losses(moved)
    total = gradient(held_out.sum(), phi if second else moved)
    return (total if second else total.sum(dim=0)).detach(), held_out.detach()
