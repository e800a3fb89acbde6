"""What a trainer makes of frozen image features that it is handed, for the statements that say that it takes them."""
import inspect

import pytest
import torch

from dassl.utils import isolated_rng

from .pictures import logits, rows

ROUNDING = 1e-3  # of the largest number of a tensor


def frozen_of(trainer, images):
    """Frozen features (B, E) of images, as the engine computes them; for several views a list."""
    if isinstance(images, list):
        return [frozen_of(trainer, view) for view in images]
    with torch.no_grad(), trainer.precision.autocast():
        return trainer.frozen_towers.encode_image(images)


def in_place_of_images(trainer, batch):
    return {**batch, "img": frozen_of(trainer, batch["img"])}


def beside_images(trainer, batch):
    views = frozen_of(trainer, batch["img"])
    return {**batch, "frozen": views[-1] if isinstance(views, list) else views}


def takes_frozen(trainer):
    """Whether the trainer's model takes frozen features beside images."""
    return "frozen" in inspect.signature(trainer.model.forward).parameters


def answers(trainer, batches, test_batch):
    """{name: tensor} of what the first steps of a trainer print and of their gradients, and of logits after them. Where
    it fails, the check does, in one line."""
    found, taken, apply = {}, [], trainer.apply_gradients

    def noting(gradients, *arguments, **keywords):
        taken.extend(gradient.detach().clone() for gradient in gradients)
        return apply(gradients, *arguments, **keywords)

    trainer.apply_gradients = noting
    try:
        if trainer.trains:
            trainer.set_model_mode("train")
            trainer.num_batches = len(batches) + 1
            for trainer.batch_idx, batch in enumerate(batches):
                with isolated_rng(trainer.batch_idx):
                    summary = trainer.forward_backward(batch)
                found |= {f"{name} of step {trainer.batch_idx + 1}": torch.tensor(float(number))
                          for name, number in summary.items()}
        found |= {f"gradient {number}": gradient for number, gradient in enumerate(taken)}
        return {**found, "logits": logits(trainer, test_batch)}
    except Exception as error:  # whatever it is, the method cannot take what it says it takes
        line = " ".join(str(error).split())[:300]
        pytest.fail(f"{type(trainer).__name__} fails with {type(error).__name__}: {line}", pytrace=False)
    finally:
        trainer.apply_gradients = apply


def apart(first, second):
    """The names under which two answers differ by more than rounding."""
    def alike(one, other):
        most = max(one.abs().max(), other.abs().max())
        return one.shape == other.shape and (one - other).abs().max() <= ROUNDING * most

    return [name for name in first if name not in second or not alike(first[name], second[name])]


def training_batches(subject):
    """Two batches of the plain run's training images, with the augmentation of its first epoch."""
    loader = subject.plain.trainer.train_loader_x
    numbers = range(2 * subject.batch)
    batch = loader.collate_fn([loader.dataset[(number % len(loader.dataset), 0, number)] for number in numbers])
    return [rows(batch, slice(start, start + subject.batch)) for start in (0, subject.batch)]
