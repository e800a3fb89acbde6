"""What every trainer must do, whatever its method is. docs/CONFORMANCE.md says how to read a failure.

    pytest tests/conformance --trainer CoOp
    pytest tests/conformance --plugin my_method.py --opts OPTIM.LR 0.01
"""
import math

import pytest
import torch

from dassl.utils import InputError
from datasets import shapes
from prompting import PromptingError
from prompting.text import readable

from .subject import logits, tensors_in

# A bfloat16 has 8 significant bits: one rounding is off by up to 0.4 %. Our trainers come out between 0.3 and 0.9 %.
AMP_TOLERANCE = 0.03  # of the standard deviation of the logits
ROUNDING = 1e-3  # of float32 where sums are taken in another order; logits are of the order of 10
EXTRA_SHARE = 0.05  # of the CLIP without its vocabulary: what a checkpoint may hold besides what is trained


def same(first, second):
    """Bitwise the same tensors under the same names."""
    return set(first) == set(second) and all(torch.equal(first[name], second[name]) for name in first)


def differing(first, second):
    """Names of the tensors that differ, for a failure's message."""
    return sorted(name for name in {*first, *second} if name not in first or name not in second
                  or not torch.equal(first[name], second[name]))


def numbers_of(summaries):
    return [value for summary in summaries for value in summary.values()]


def test_the_loss_falls(subject):
    subject.need(subject.trains, "training-free")
    before, after = (subject.training_loss(run.trainer) for run in (subject.untrained, subject.plain))
    assert all(math.isfinite(number) for number in numbers_of(subject.plain.summaries))
    assert after < before, (f"cross-entropy on the training images was {before:.4f} before training, is {after:.4f} "
                            "after it")


def test_frozen_weights_stay_frozen(subject):
    changed, clip = subject.plain.changed, subject.plain.clip
    assert not changed, f"training changed {', '.join(changed[:5])}"
    if clip is not None:
        thawed = [name for name, parameter in clip.named_parameters() if parameter.requires_grad]
        assert not thawed, f"tensors of the shared CLIP want gradients: {', '.join(thawed[:5])}"
        assert not clip.training, "the shared CLIP was put into training mode"


def test_the_checkpoint_holds_only_what_is_trained(subject):
    subject.need(subject.native, "a Dassl trainer's checkpoint holds its whole registered models")
    subject.need(subject.trains, "training-free, writes no checkpoint")
    run = subject.plain
    state = torch.load(run.folder / "prompt_learner" / f"model.pth.tar-{len(run.epochs)}", weights_only=True)
    trained = {name: p.detach() for name, p in run.trainer.model.named_parameters() if p.requires_grad}
    assert not (wrong := differing(state["state_dict"], trained)), f"not what was trained: {', '.join(wrong[:5])}"

    clip = [tensor for name, tensor in run.clip.state_dict().items() if name != "token_embedding.weight"]
    rest = dict(tensors_in({key: value for key, value in state.items() if key != "state_dict"}))
    for name, tensor in rest.items():
        copied = any(tensor.shape == t.shape and torch.equal(tensor.float(), t) for t in clip if t.numel() > 64)
        assert not copied, f"{name} of the checkpoint is a tensor of the CLIP"
    extra, limit = (sum(t.numel() for t in tensors) for tensors in
                    ((t for name, t in rest.items() if name.startswith("extra")), clip))
    assert extra <= EXTRA_SHARE * limit, f"extra_state holds {extra:,} numbers; the CLIP's towers have {limit:,}"


def test_the_checkpoint_gives_the_same_logits(subject):
    subject.need(subject.trains, "training-free, writes no checkpoint")
    files = sorted(subject.plain.folder.glob("*/model.pth.tar-*"))
    assert files, "no checkpoint was written"
    for file in files:
        torch.load(file, weights_only=True)
    first, second = (logits(run.trainer, subject.test_images) for run in (subject.plain, subject.reloaded))
    assert torch.equal(first, second), f"the logits differ by up to {(first - second).abs().max():.3g}"


def test_new_classes(subject):
    subject.need(subject.trains or not subject.class_bound, "training-free and class-bound: nothing is carried over")

    def evaluate(classes):
        from_base = ["--model-dir", subject.plain.folder] if subject.trains else []
        return subject.run(classes, "--eval-only", *from_base, options=["DATASET.SUBSAMPLE_CLASSES", classes])

    if subject.class_bound:
        with pytest.raises((InputError, PromptingError)) as refusal:
            evaluate("new")
        assert "\n" not in str(refusal.value), "the refusal must be one line"
        return
    # As many new classes as base classes, and twice as many: tensors that belong to classes would fit the former.
    for classes, names in (("new", shapes.CLASSNAMES[20:]), ("all", shapes.CLASSNAMES)):
        run = evaluate(classes)
        assert run.trainer.dm.dataset.classnames == list(names)
        values = logits(run.trainer, subject.test_images)
        assert values.shape == (len(subject.test_images), len(names)) and values.isfinite().all()
        assert 0 <= run.results["metrics"]["test"]["accuracy"] <= 100


def test_the_same_seed_gives_the_same_result(subject):
    again = subject.run("again", stop_epoch=1)
    if subject.trains:
        first, second = subject.plain.epochs[0], again.epochs[0]
        assert same(first, second), f"after one epoch these differ: {', '.join(differing(first, second)[:5])}"
    else:
        first, second = (logits(run.trainer, subject.test_images) for run in (subject.plain, again))
        assert torch.equal(first, second), "the logits differ"


def test_another_seed_gives_another_result(subject):
    drawn = subject.plain.files["train"] & {item.impath for item in subject.plain.trainer.dm.dataset.train_x}
    subject.need(subject.trains or drawn, "neither trains nor reads training images: nothing is random")
    other = subject.run("other", seed=2, stop_epoch=1)
    if subject.trains:
        assert not same(subject.plain.epochs[0], other.epochs[0]), "seeds 1 and 2 gave the same tensors"
    else:
        first, second = (logits(run.trainer, subject.test_images) for run in (subject.plain, other))
        assert not torch.equal(first, second), "seeds 1 and 2 gave the same logits"


def test_workers_change_nothing(subject):
    run = subject.go_on("workers", "DATALOADER.NUM_WORKERS", 2)
    first, second = subject.resumed.trained, run.trained
    assert same(first, second), f"with two loader workers these differ: {', '.join(differing(first, second)[:5])}"
    assert run.results["metrics"] == subject.resumed.results["metrics"]


def test_the_smallest_batch(subject):
    """Batches of one image, or of `min_batch`; fewer are refused."""
    subject.need(subject.trains, "training-free")
    size = subject.min_batch
    options = ["DATASET.NUM_SHOTS", 1, "DATALOADER.TRAIN_X.BATCH_SIZE"]
    run = subject.run("smallest", options=[*options, size], stop_step=3)
    assert len(run.summaries) == 3 and all(math.isfinite(number) for number in numbers_of(run.summaries))
    assert all(tensor.isfinite().all() for tensor in run.trained.values())
    if size > 1:
        with pytest.raises(InputError, match=f"at least {size}") as refusal:
            subject.run("too_small", options=[*options, size - 1])
        assert "\n" not in str(refusal.value), "the refusal must be one line"


def test_an_odd_last_batch(subject):
    """A training batch that is not full and of an odd size; a test batch of one image after full ones."""
    if subject.trains:
        odd = max(7, subject.min_batch | 1)
        batch = ["DATALOADER.TRAIN_X.BATCH_SIZE", max(24, subject.min_batch)]  # of 20 images
        run = subject.run("odd", options=["DATASET.NUM_SHOTS", 1, *batch], stop_epoch=2, cut=odd)
        assert len(run.summaries) == 2 and all(math.isfinite(number) for number in numbers_of(run.summaries))
        assert all(tensor.isfinite().all() for tensor in run.trained.values())
    images = subject.test_images[:9]
    whole = logits(subject.plain.trainer, images)
    for pieces in ((8, 1), (1, 7, 1)):
        parts = torch.cat([logits(subject.plain.trainer, part) for part in images.split(pieces)])
        torch.testing.assert_close(parts, whole, rtol=ROUNDING, atol=ROUNDING)


def test_amp_agrees_with_fp32(subject):
    precision = subject.precision("amp")
    subject.need(precision, "has no PREC of this project's")
    # From an epoch after the warm-up on: before, a difference from the frozen CLIP that a loss is made of can be below
    # what half precision tells apart, and its gradient's direction be anything.
    run = subject.go_on("amp", *precision, epoch=2)
    assert run.trainer.precision.name == "amp"
    assert all(p.dtype == torch.float32 for p in run.trainer.trainables), "what is trained must be float32"
    full, half = (logits(r.trainer, subject.test_images) for r in (subject.resumed, run))
    off = ((half - full).square().mean().sqrt() / full.std()).item()
    assert off < AMP_TOLERANCE, f"the logits in mixed precision are off by {off:.1%} of their standard deviation"


def test_evaluation_is_repeatable_and_without_gradients(subject):
    run = subject.plain
    assert run.evaluations, "`test` evaluated no model"
    for gradients, training, tracked in run.evaluations:
        assert not training, f"in training mode while testing: {', '.join(training[:5])}"
        assert not gradients, "gradients were on while testing"
        assert not tracked, "the logits want gradients while testing"
    first, second = (logits(run.trainer, subject.test_images, seed) for seed in (1, 2))
    assert torch.equal(first, second), f"two evaluations differ by up to {(first - second).abs().max():.3g}"


def test_a_resumed_run_ends_the_same(subject):
    subject.need(subject.trains, "training-free")
    run = subject.resumed
    assert len(run.epochs) == len(subject.plain.epochs) - 1, "the run did not go on after its first epoch"
    first, second = subject.plain.trained, run.trained
    assert same(first, second), f"these differ from the undisturbed run's: {', '.join(differing(first, second)[:5])}"
    assert run.results["metrics"] == subject.plain.results["metrics"]


def test_training_sees_its_own_images_and_classes_only(subject):
    run = subject.plain
    dataset = run.trainer.dm.dataset
    allowed = {item.impath for part in (dataset.train_x, dataset.val) for item in part}
    strange = sorted((run.files["train"] | run.files["val"]) - allowed)
    assert not strange, f"training read {len(strange)} images that are not its own, first {strange[0]}"
    base, new = (list(shapes.CLASSNAMES[part]) for part in (slice(20), slice(20, None)))
    assert all(names == base for names in run.classnames), "build_model was given other classes than the run's"
    told = [name for name in new if any(readable(name) in text for text in run.texts)]
    assert not told, f"training encoded the names of new classes: {', '.join(told[:3])}"
