"""Ranks as threads of one process: what they divide and put together is what one rank computes, and so are its first
and second derivatives. tests/test_ranks.py makes whole runs in processes."""
import contextlib
import threading

import pytest
import torch

import tiny_clip
from dassl.utils import distributed as module
from dassl.utils import share_of
from dassl.utils.distributed import Ranks
from harness import make_trainer
from prompting import ClassPrompts, PromptingError, Towers
from prompting.precision import Precision
from prompting.text import WORTH_DIVIDING, TextTower
from training import batches

NAMES = ["dog", "alarm clock", "Boeing 737-200", "a", "house"]


class Threads:
    """`torch.distributed` among the threads of this process, each of which is a rank."""

    def __init__(self, size):
        self.size, self.given, self.barrier = size, {}, threading.Barrier(size, timeout=60)
        self.local = threading.local()

    def exchange(self, value):
        """Every rank's value."""
        self.given[self.local.rank] = value
        self.barrier.wait()
        found = [self.given[rank] for rank in range(self.size)]
        self.barrier.wait()
        return found

    def all_gather(self, pieces, own):
        for piece, value in zip(pieces, self.exchange(own)):
            assert piece.dtype == value.dtype == torch.uint8 and piece.shape == value.shape
            piece.copy_(value)

    def all_reduce(self, tensor):
        total = sum(value.clone() for value in self.exchange(tensor.clone()))
        tensor.copy_(total)

    def run(self, work):
        """[what `work(rank)` gives on each rank]"""
        found, errors = [None] * self.size, []

        def thread(rank):
            self.local.rank = rank
            try:
                found[rank] = work(rank)
            except BaseException as error:
                errors.append(error)
                self.barrier.abort()

        threads = [threading.Thread(target=thread, args=(rank,)) for rank in range(self.size)]
        for one in threads:
            one.start()
        for one in threads:
            one.join()
        for error in sorted(errors, key=lambda error: isinstance(error, threading.BrokenBarrierError))[:1]:
            raise error
        return found


@pytest.fixture(params=[2, 4])
def group(request, monkeypatch):
    group = Threads(request.param)
    monkeypatch.setattr(module.distributed, "all_gather", group.all_gather)
    monkeypatch.setattr(module.distributed, "all_reduce", group.all_reduce)
    return group


def derivatives(rows, ranks):
    """What a loss of all rows gives: the rows, the loss, its gradient and that of the gradient's square."""
    weight = torch.linspace(-1, 1, 6, dtype=torch.float64).view(2, 3).requires_grad_()
    found = ranks.divide(len(rows), lambda part: (rows[part] @ weight).tanh())
    loss = (found.square() * torch.arange(1, len(rows) + 1)[:, None]).sum()
    first = torch.autograd.grad(loss, weight, create_graph=True)[0]
    first, = ranks.all_reduce_mean([first])
    second = torch.autograd.grad(first.square().sum(), weight)[0]
    second, = ranks.all_reduce_mean([second])
    return [tensor.detach() for tensor in (found, loss, first, second)]


@pytest.mark.parametrize("n", [1, 2, 4, 5])
def test_rows_and_two_derivatives_are_those_of_one_rank(group, n):
    """Some ranks have no rows, some fewer than others."""
    rows = torch.arange(2 * n, dtype=torch.float64).view(n, 2) / 7 - 0.3
    expected = derivatives(rows, Ranks())
    for found in group.run(lambda rank: derivatives(rows, Ranks(rank, group.size))):
        for one, other in zip(expected, found):
            torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-6)  # gradients are exchanged in float32


def test_rows_along_another_dimension_and_of_any_type(group):
    whole = torch.arange(30).view(2, 5, 3)
    for kind in (torch.float32, torch.float16, torch.bool, torch.int64):
        values = whole.to(kind)

        def divided(rank, values=values):
            ranks = Ranks(rank, group.size)
            own = values[:, ranks.share(5)]
            return ranks.all_gather(own, 5, dim=1), ranks.divide(5, lambda part: values[:, part], dim=1)

        for gathered, made in group.run(divided):
            assert torch.equal(gathered, values) and torch.equal(made, values) and made.dtype == kind


@pytest.mark.parametrize("n", [1, 2, 5, 6])
def test_a_rank_makes_its_share_and_no_more(group, n):
    """One that has none makes a row that is thrown away, to be part of the graph."""
    def made(rank):
        parts = []
        Ranks(rank, group.size).divide(n, lambda rows: parts.append(rows) or torch.ones(rows.stop - rows.start, 2))
        return parts

    for rank, parts in enumerate(group.run(made)):
        share = slice(rank * n // group.size, (rank + 1) * n // group.size)
        assert parts == [share if share.start < share.stop else slice(0, 1)]


def test_the_mean_is_over_the_ranks(group):
    tensors = [[torch.full((2, 2), float(rank)), torch.tensor([10.0 * rank])] for rank in range(group.size)]
    middle = (group.size - 1) / 2
    for one, other in group.run(lambda rank: Ranks(rank, group.size).all_reduce_mean(tensors[rank])):
        assert torch.equal(one, torch.full((2, 2), middle)) and torch.equal(other, torch.tensor([10 * middle]))
    assert Ranks(1, group.size).all_reduce_mean([]) == [] and Ranks().all_reduce_mean(tensors[0]) is tensors[0]
    assert Ranks().all_gather(tensors[0][0], 2) is tensors[0][0]


def test_without_sync_a_rank_works_alone():
    ranks = Ranks(1, 3)
    with contextlib.suppress(KeyError), ranks.no_sync():
        assert (ranks.rank, ranks.world_size) == (0, 1)
        raise KeyError
    assert (ranks.rank, ranks.world_size) == (1, 3)
    assert ranks.share(7) == slice(2, 4) and ranks.share(7, 2) == slice(4, 7) and Ranks().share(4) == slice(0, 4)


def test_a_run_without_a_group_is_one_rank(monkeypatch):
    assert vars(Ranks.of_this_run()) == {"rank": 0, "world_size": 1} == vars(Ranks())
    monkeypatch.setattr(module.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(module.distributed, "get_rank", lambda: 2)
    monkeypatch.setattr(module.distributed, "get_world_size", lambda: 5)
    assert vars(Ranks.of_this_run()) == {"rank": 2, "world_size": 5}
    monkeypatch.setattr(module.distributed, "is_available", lambda: False)
    assert vars(Ranks.of_this_run()) == {"rank": 0, "world_size": 1}


def test_shares_are_neighbours_and_cover_all():
    for size in range(1, 6):
        for n in range(1, 12):
            shares = [Ranks(rank, size).share(n) for rank in range(size)]
            assert shares == [share_of(n, rank, size) for rank in range(size)]  # the towers', and the loader's
            assert [row for share in shares for row in range(n)[share]] == list(range(n))
            assert max(s.stop - s.start for s in shares) - min(s.stop - s.start for s in shares) <= 1


def test_scaled_gradients_stay_as_large_as_those_of_one_process():
    """Inside the towers the gradients of all ranks are added up; half precision has no room for their sum."""
    class Four(Ranks):
        def all_reduce_mean(self, tensors):
            return tensors

    precision = Precision("fp32", torch.device("cpu"), Four(0, 4))
    precision.scale = 2.0 ** 16
    seen, x = [], torch.ones(3, requires_grad=True)
    inside = 2 * x
    inside.register_hook(lambda gradient: seen.append(gradient[0].item()))
    assert torch.equal(precision.gradients(inside.sum(), [x])[0], torch.full((3,), 2.0))
    assert seen == [2.0 ** 14]


# ---- the towers ----
FORMS = {  # name: (context, deep prompts of all classes, of each class's own, what the ranks divide the pass by)
    "shared": ((2, 128), None, None, "classes"), "deep": ((2, 128), (2, 128), None, "classes"),
    "per class": ((5, 1, 2, 128), None, None, "classes"),
    "deep per class": ((5, 1, 2, 128), None, (5, 2, 128), "classes"), "per image": ((6, 2, 128), None, None,
                                                                                            "groups"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_text_pass_is_that_of_one_rank(form, group, clip_model, monkeypatch):
    monkeypatch.setitem(WORTH_DIVIDING, "cpu", 1)
    shape, deep_shape, own_shape, by = FORMS[form]
    torch.manual_seed(0)
    ctx = torch.randn(shape) * 0.1
    deep = {1: torch.randn(deep_shape or own_shape) * 0.1} if deep_shape or own_shape else {}

    def encoded(ranks):
        text = Towers(clip_model, ranks=ranks).text
        learned = [ctx.clone().requires_grad_(), *(tensor.clone().requires_grad_() for tensor in deep.values())]
        prompts = ClassPrompts(text, NAMES, 2)(learned[0])
        lengths = [end - prompts.prefix.shape[1] + 1 for end in prompts.eot.tolist()]
        divided = text._divided_by(*prompts.prefix.shape[:2], lengths)
        run, passes = text._encode_share, []
        text._encode_share = lambda prompts, *more: passes.append(
            (len(prompts.prefix), prompts.suffix.shape[1])) or run(prompts, *more)
        features = text.encode(prompts, dict(zip(deep, learned[1:])))
        features = features.float()
        loss = (features * torch.linspace(-1, 1, features.shape[-1])).square().sum()
        return divided, passes, features.detach(), ranks.all_reduce_mean(list(torch.autograd.grad(loss, learned)))

    _, whole, features, gradients = encoded(Ranks())
    groups = len(ctx) if form == "per image" else 1
    assert whole == [(groups, len(NAMES))]
    found = group.run(lambda rank: encoded(Ranks(rank, group.size)))
    shares = [share_of(groups if by == "groups" else len(NAMES), rank, group.size) for rank in range(group.size)]
    sizes = [share.stop - share.start for share in shares]
    assert [passes for _, passes, *_ in found] == [
        [(size, len(NAMES)) if by == "groups" else (groups, size)] for size in sizes]
    for divided, _, found, own_gradients in found:
        assert divided == by
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients, own_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())


def test_a_text_pass_is_divided_where_the_longest_share_spares_enough(clip_model):
    text = Towers(clip_model, ranks=Ranks(0, 2)).text
    assert text._divided_by(1, 5, [4, 4, 4, 4]) is None  # 21 tokens; the halves have 5 + 8, which spares 8
    assert text._divided_by(1, 5, [8, 8, 8, 8]) == "classes"  # 16 of 37
    assert text._divided_by(1, 5, [8, 8, 8, 7]) is None  # 15.5
    assert text._divided_by(1, 1, [15, 15, 15]) is None  # two of three classes; half of them would spare 22.5
    assert text._divided_by(2, 5, [3, 3, 5]) == "groups"  # 16 of 32; by classes 2 * (11 / 3)
    assert text._divided_by(3, 1, [8, 8]) == "classes"  # 24 of 51; two of three groups would spare 17
    assert Towers(clip_model).text._divided_by(4, 5, [9] * 9) is None

    class Elsewhere(TextTower):
        device = torch.device("cuda")

    gpu = Elsewhere(clip_model, Ranks(0, 2))
    assert gpu._divided_by(1, 5, [8] * 511) is None and gpu._divided_by(1, 5, [8] * 512) == "classes"  # spares 2,048
    Elsewhere.device = torch.device("mps")
    assert gpu._divided_by(1, 5, [2, 2]) == "classes"


@pytest.mark.parametrize("images", [1, 5])
def test_an_image_pass_is_that_of_one_rank(images, group, clip_model):
    torch.manual_seed(0)
    pictures, prompts = torch.randn(images, 3, 32, 32), [torch.randn(2, 128), torch.randn(images, 2, 128)]

    def encoded(ranks):
        image = Towers(clip_model, ranks=ranks).image
        learned = [prompt.clone().requires_grad_() for prompt in prompts]
        features = image.encode(image.embed(pictures), learned)
        gradients = torch.autograd.grad(features.square().sum(), learned)
        return features.detach(), image.encode_unprompted(pictures).detach(), ranks.all_reduce_mean(list(gradients))

    features, plain, gradients = encoded(Ranks())
    for found, found_plain, own_gradients in group.run(lambda rank: encoded(Ranks(rank, group.size))):
        torch.testing.assert_close(found, features, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(found_plain, plain, rtol=1e-4, atol=1e-5)
        for one, other in zip(gradients, own_gradients, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4 * one.abs().max().item())


# ---- a batch ----
@pytest.mark.parametrize("images", [2, 7])
def test_every_rank_gets_the_batch_of_one_process(images, group, clip_model, monkeypatch):
    """A rank without a share (of 2 images in 4 processes) has read one that does not count."""
    monkeypatch.setattr(batches, "all_gather", group.exchange)
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 1}, batch=images)
    next(iter(trainer.train_loader_x.batch_sampler))  # a pass over the training images has begun
    data = tiny_clip.batch("threads", 0, images, 5)
    whole = {"img": [data["img"], data["img"] + 1], "label": data["label"],
             "impath": [f"{i}.png" for i in range(images)]}

    def batch(rank):
        ranks = Ranks(rank, group.size)
        own = ranks.share(images)
        if own.start == own.stop:
            own = slice(0, 1)
        read = {"img": [view[own] for view in whole["img"]], "label": whole["label"][own],
                "impath": whole["impath"][own]}
        return make_view(trainer, ranks).all_gather_batch(read)

    for found in group.run(batch):
        for one, other in zip(found["img"], whole["img"], strict=True):
            assert torch.equal(one, other)
        assert torch.equal(found["label"], whole["label"]) and found["impath"] == whole["impath"]
    assert trainer.all_gather_batch(whole) is whole


def make_view(trainer, ranks):
    """The trainer as it is on one of the ranks."""
    view = object.__new__(type(trainer))
    view.__dict__.update(trainer.__dict__, ranks=ranks)
    return view


def test_gradients_of_backward_are_the_mean_over_the_ranks(group, clip_model):
    trainer = make_trainer("CoOp", clip_model, NAMES, {"N_CTX": 1})
    ctx = trainer.trainables[0]

    def backward(rank):
        view = make_view(trainer, Ranks(rank, group.size))
        own, unused = ctx.detach().clone().requires_grad_(), torch.zeros(1, requires_grad=True)
        view.trainables = [own, unused]
        view.model_backward((own * (rank + 1)).sum())
        assert unused.grad is None
        return own.grad

    middle = (group.size + 1) / 2
    for gradient in group.run(backward):
        torch.testing.assert_close(gradient, torch.full_like(ctx, middle))


def test_too_many_deep_prompts_for_the_context_are_refused(towers):
    prompts = ClassPrompts(towers.text, NAMES, 2)(torch.zeros(2, 128))
    towers.text.encode(prompts, {1: torch.zeros(2, 128)})
    with pytest.raises(PromptingError, match="3 deep prompts of all classes need as many .* there are 2$"):
        towers.text.encode(prompts, {1: torch.zeros(3, 128)})
