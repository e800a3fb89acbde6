"""What every trainer must do, whatever its method is. docs/CONFORMANCE.md says how to read a failure.

    pytest tests/conformance --trainer CoOp
    pytest tests/conformance --plugin my_method.py --opts OPTIM.LR 0.01
"""
import math

import pytest
import torch
from tape import as_on_a_gpu

from dassl.utils import InputError
from datasets import shapes
from prompting import PromptingError
from prompting.text import readable

from .features import answers, apart, beside_images, in_place_of_images, takes_frozen, training_batches
from .pictures import drawn, logits, split
from .states import differing, tensors_in
from .subject import EPOCHS

# A bfloat16 has 8 significant bits: one rounding is off by up to 0.4 %. Our trainers come out between 0.3 and 0.9 %.
AMP_TOLERANCE = 0.03  # of the standard deviation of the logits
# What is kept of an image may be another one after a rounding (which is more certain?), and all that follow are asked
# with it: a cache of features comes out at 3 %.
AMP_TOLERANCE_STATEFUL = 0.1
ROUNDING = 1e-3  # of float32 where sums are taken in another order; logits are of the order of 10


def listed(names):
    """Some names, for a failure's message."""
    return ", ".join(names[:5]) + (f", ... ({len(names)} in all)" if names[5:] else "")


def numbers_of(summaries):
    return [value for summary in summaries for value in summary.values()]


def test_the_loss_falls(subject):
    subject.need(subject.trains, "training-free")
    before, after = (subject.training_loss(run.trainer) for run in (subject.untrained, subject.plain))
    assert all(math.isfinite(number) for number in numbers_of(subject.plain.summaries))
    assert after < before, (f"cross-entropy on the training images was {before:.4f} before training, is {after:.4f} "
                            "after it")


def test_training_changes_what_the_method_says(subject):
    """Every tensor that wants a gradient, and no other of the method's module."""
    subject.need(subject.trains, "training-free")
    (start, wanted), end = subject.plain.start, subject.plain.before_test
    still = sorted(name for name in wanted if name in end and torch.equal(start[name].cpu(), end[name].cpu()))
    assert not still, f"training has not changed {listed(still)}, which want gradients: the method says it trains them"
    if subject.native:
        kept = [value for name, value in end.items() if name.startswith("extra_state") and torch.is_tensor(value)]
        moved = [name for name in differing({name: start[name] for name in start if name not in wanted},
                                            {name: end[name] for name in start if name not in wanted and name in end})
                 if not any(torch.equal(end[name].cpu(), tensor) for tensor in kept)]
        assert not moved, (f"training changed {listed(moved)}, which want no gradient and are not in extra_state: no "
                           "checkpoint has them")


def test_frozen_weights_stay_frozen(subject):
    run = subject.plain
    assert not run.changed, f"the run changed {listed(run.changed)}"
    assert not run.rebuilt, f"modules of the shared CLIP were replaced, parametrised or hooked: {listed(run.rebuilt)}"
    if run.clip is not None:
        thawed = [name for name, parameter in run.clip.named_parameters() if parameter.requires_grad]
        assert not thawed, f"tensors of the shared CLIP want gradients: {listed(thawed)}"
        assert not run.clip.training, "the shared CLIP was put into training mode"


def test_the_checkpoint_holds_only_what_is_trained(subject):
    subject.need(subject.native, "a Dassl trainer's checkpoint holds its whole registered models")
    subject.need(subject.trains, "training-free, writes no checkpoint")
    run = subject.plain
    state = torch.load(run.folder / "prompt_learner" / f"model.pth.tar-{len(run.epochs)}", weights_only=True)
    trained = {name.partition(".")[2]: run.before_test[name] for name in run.start[1]}
    assert not (wrong := differing(state["state_dict"], trained)), f"not what was trained: {listed(wrong)}"

    clip = [tensor for name, tensor in run.clip.state_dict().items() if name != "token_embedding.weight"]
    rest = dict(tensors_in({key: value for key, value in state.items() if key != "state_dict"}))
    for name, tensor in rest.items():
        copied = any(tensor.shape == t.shape and torch.equal(tensor.float(), t) for t in clip if t.numel() > 64)
        assert not copied, f"{name} of the checkpoint is a tensor of the CLIP"
    extra, limit = (sum(t.numel() for t in tensors) for tensors in
                    ((t for name, t in rest.items() if name.startswith("extra")), clip))
    share = subject.says("extra_state_share")
    assert extra <= share * limit, (f"extra_state holds {extra:,} numbers; the CLIP's towers have {limit:,}, and "
                                    f"extra_state_share allows {share:.0%} of them")


def test_the_checkpoint_gives_the_same_logits(subject):
    subject.need(subject.trains, "training-free, writes no checkpoint")
    files = sorted(subject.plain.folder.glob("*/model.pth.tar-*"))
    assert files, "no checkpoint was written"
    for file in files:
        torch.load(file, weights_only=True)
    first, second = (logits(run.trainer, subject.test_batch) for run in (subject.plain, subject.reloaded))
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
        values = logits(run.trainer, subject.test_batch)
        assert values.shape == (len(subject.test_numbers), len(names)) and values.isfinite().all()
        assert 0 <= run.results["metrics"]["test"]["accuracy"] <= 100


def test_the_same_seed_gives_the_same_result(subject):
    again = subject.run("again", stop_epoch=1, tests=False)
    if subject.trains:
        first, second = subject.plain.epochs[0], again.epochs[0]
        assert not (wrong := differing(first, second)), f"after one epoch these differ: {listed(wrong)}"
    else:
        first, second = (logits(run.trainer, drawn(run.trainer.test_loader, subject.test_numbers))
                         for run in (subject.plain, again))
        assert not (first != second).any(), "the logits differ"


def test_another_seed_gives_another_result(subject):
    drawn = subject.plain.files["train"] & {item.impath for item in subject.plain.trainer.dm.dataset.train_x}
    subject.need(subject.trains or drawn, "neither trains nor reads training images: nothing is random")
    other = subject.run("other", seed=2, stop_epoch=1, tests=False)
    if subject.trains:
        assert differing(subject.plain.epochs[0], other.epochs[0]), "seeds 1 and 2 gave the same tensors"
    else:
        first, second = (logits(run.trainer, subject.test_batch) for run in (subject.plain, other))
        assert not torch.equal(first, second), "seeds 1 and 2 gave the same logits"


def test_workers_change_nothing(subject):
    run = subject.go_on("workers", "DATALOADER.NUM_WORKERS", 2)
    for first, second in ((subject.resumed.trained, run.trained), (subject.resumed.answers, run.answers)):
        assert not (wrong := differing(first, second)), f"with two loader workers these differ: {listed(wrong)}"
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
    """A training batch that is not full and of an odd size."""
    subject.need(subject.trains, "training-free")
    odd = max(7, subject.min_batch | 1)
    batch = ["DATALOADER.TRAIN_X.BATCH_SIZE", max(24, subject.min_batch)]  # of 20 images
    run = subject.run("odd", options=["DATASET.NUM_SHOTS", 1, *batch], stop_epoch=2, cut=odd)
    assert len(run.summaries) == 2 and all(math.isfinite(number) for number in numbers_of(run.summaries))
    assert all(tensor.isfinite().all() for tensor in run.trained.values())


def test_amp_agrees_with_fp32(subject):
    precision = subject.precision("amp")
    subject.need(precision, "has no PREC of this project's")
    # The last epoch only: during the warm-up, a difference from the frozen CLIP that a loss is made of can be below
    # what half precision tells apart, and its gradient's direction be anything.
    run = subject.go_on("amp", *precision, epoch=EPOCHS - 1, tests=False)
    assert run.trainer.precision.name == "amp"
    assert all(p.dtype == torch.float32 for p in run.trainer.trainables), "what is trained must be float32"
    full, half = (logits(r.trainer, subject.test_batch) for r in (subject.resumed, run))
    off = ((half - full).square().mean().sqrt() / full.std()).item()
    most = AMP_TOLERANCE_STATEFUL if subject.says("stateful") else AMP_TOLERANCE
    assert off < most, (f"the logits in mixed precision are off by {off:.2%} of their standard deviation; at most "
                        f"{most:.0%} is rounding")


def test_steps_in_graphs_are_the_same_steps(subject):
    """On a recorder that stands in for a GPU's."""
    subject.need(subject.says_itself("static_step") and subject.says("static_step"), "does not say static_step")
    options = ["DATALOADER.TRAIN_X.BATCH_SIZE", max(4, subject.min_batch), "TRAIN.GRAPHS"]
    with as_on_a_gpu():
        without, captured = (subject.run(f"graphs_{said}", options=[*options, said], stop_epoch=2, tests=False)
                             for said in ("off", "auto"))
    refused = captured.trainer._graphs.refused
    assert not refused, f"says static_step, and its steps cannot be captured: {refused}"
    assert not (wrong := differing(without.trained, captured.trained)), f"with graphs these differ: {listed(wrong)}"


def test_evaluation_is_repeatable_and_without_gradients(subject):
    """Gradients are off unless the method `adapts`; the logits want none in any case."""
    run = subject.plain
    assert run.evaluations, "`test` evaluated no model"
    for gradients, training, tracked in run.evaluations:
        assert not training, f"in training mode while testing: {listed(training)}"
        assert not gradients or subject.says("adapts"), "gradients were on while testing, and the method does not adapt"
        assert not tracked, "the logits want gradients while testing"
    # Two batches: what the first one leaves behind may be seen in the next answer only.
    first, second = (logits(run.trainer, *split(subject.test_batch, (5, 4)), seed=seed) for seed in (1, 2))
    off = (first - second).abs().max().item()
    assert off == 0, (f"two evaluations differ by up to {off:.3g}; of what `predict` changes, only trained tensors, "
                      "buffers, `extra_state` and the optimizer of `build_test_optimizer` are put back")


def test_an_evaluation_leaves_all_as_it_was(subject):
    """Trained tensors, buffers, what wants gradients, extra_state, optimizers and the loss scale."""
    assert not subject.plain.moved, f"an evaluation changed {listed(subject.plain.moved)}"


def test_the_order_of_test_images_changes_nothing(subject):
    """Nothing of a test image reaches another one, in whatever order they come."""
    subject.need(not subject.says("stateful"), "stateful: what it learns of an image stays for those after it")
    loader, pieces = subject.plain.trainer.test_loader, (subject.test_numbers[:5], subject.test_numbers[5:9])
    first = logits(subject.plain.trainer, *(drawn(loader, piece) for piece in pieces))
    second = logits(subject.plain.trainer, *(drawn(loader, piece[::-1]) for piece in pieces[::-1])).flip(0)
    torch.testing.assert_close(second, first, rtol=ROUNDING, atol=ROUNDING, msg=lambda text: (
        f"the same test images in reverse order have other logits; the method is not `stateful`\n{text}"))


def test_the_test_batch_changes_nothing(subject):
    """The logits of an image do not depend on which images it is evaluated with, one that is alone included."""
    subject.need(not subject.says("transductive"), "transductive: the answer depends on the images of a test batch")
    batch = split(subject.test_batch, (9,))
    whole = logits(subject.plain.trainer, *batch)
    for sizes in ((8, 1), (1, 7, 1)):
        parts = logits(subject.plain.trainer, *split(subject.test_batch, sizes))
        torch.testing.assert_close(parts, whole, rtol=ROUNDING, atol=ROUNDING, msg=lambda text, sizes=sizes: (
            f"nine test images have other logits in batches of {sizes}; the method is not `transductive`\n{text}"))


def test_frozen_features_in_the_place_of_images_change_nothing(subject):
    """Losses, gradients and logits: with the features it has no picture to look at."""
    subject.need(subject.says_itself("frozen_images"), "does not say frozen_images")
    batches, found = training_batches(subject) if subject.trains else [], []
    for label, change in (("with_pictures", lambda trainer, batch: batch), ("with_features", in_place_of_images)):
        trainer = subject.fresh(label)
        found.append(answers(trainer, [change(trainer, batch) for batch in batches],
                             change(trainer, subject.test_batch)))
    assert not (wrong := apart(*found)), (
        f"with frozen features in the place of images these differ: {listed(wrong)}; the method does more with an "
        "image than towers.encode_image, so it must not say frozen_images")


def test_frozen_features_beside_images_are_used_and_left_as_they_are(subject):
    """Those that are given and those that are computed give the same numbers; others give others."""
    subject.need(subject.says("frozen_features") and subject.trains, "does not say frozen_features")
    batches, found = training_batches(subject), []
    for label in ("frozen_computed", "frozen_given", "frozen_of_others"):
        trainer = subject.fresh(label)
        given = [beside_images(trainer, batch) for batch in (*batches, subject.test_batch)]
        if label == "frozen_of_others":
            given = [{**batch, "frozen": batch["frozen"].roll(1, 0)} for batch in given]
        kept = [batch["frozen"].clone() for batch in given]
        *steps, test = [*batches, subject.test_batch] if label == "frozen_computed" else given
        found.append(answers(trainer, steps, test if takes_frozen(trainer) else subject.test_batch))
        assert all(torch.equal(batch["frozen"], before) for batch, before in zip(given, kept)), (
            "batch[\"frozen\"] was changed in place; change a copy (.clone())")
    computed, given, others = found
    assert not (wrong := apart(computed, given)), f"with features that are given these differ: {listed(wrong)}"
    assert apart(given, others), "the features of other images change nothing: the method does not need frozen_features"


def test_what_is_evaluated_is_what_the_method_says(subject):
    """The test's logits are those of the trained tensors, with `evaluated_weights` in the places of some of them."""
    subject.need(subject.native, "a Dassl trainer does not say what is evaluated")
    subject.need(subject.trains, "training-free")
    by_hand = subject.answers_by_hand()
    wrong = differing(by_hand, subject.plain.answers)
    assert not wrong, (f"the logits of {len(wrong)} of {len(by_hand)} test images are not those of the trained tensors "
                       "with `evaluated_weights` put in their places")
    others, own = subject.plain.trainer.evaluated_weights(), dict(subject.plain.trainer.model.named_parameters())
    assert not others or not all(torch.allclose(tensor, own[name]) for name, tensor in others.items()), (
        "`evaluated_weights` are the trained tensors themselves; what is to stay as it was must be a copy "
        "(.detach().clone()) from before the updates, which change a parameter in place")


def test_a_resumed_run_ends_the_same(subject):
    subject.need(subject.trains, "training-free")
    run = subject.resumed
    assert len(run.epochs) == len(subject.plain.epochs) - 1, "the run did not go on after its first epoch"
    for first, second in ((subject.plain.trained, run.trained), (subject.plain.answers, run.answers)):
        assert not (wrong := differing(first, second)), f"these differ from the undisturbed run's: {listed(wrong)}"
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
