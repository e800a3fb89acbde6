"""The parts that a trainer holds (Checkpointer, Evaluation, Progress, StopRequest), and what a class says of itself."""
import contextlib
import os
import signal
from types import SimpleNamespace

import pytest
import torch

from dassl.engine import TrainerBase, TrainerX
from dassl.engine.checkpointer import Checkpointer, Contents
from dassl.engine.evaluation import Evaluation
from dassl.engine.former_hooks import require_no_former_hook
from dassl.engine.progress import Progress
from dassl.utils import (
    BEST,
    INTERRUPTED,
    InputError,
    NonFiniteError,
    StopRequest,
    Terminated,
    checkpoint_files,
    checkpoint_name,
    checkpoint_to_evaluate,
    is_class_bound,
    load_checkpoint,
    model_folders,
    names_newest_first,
    newest_checkpoint,
    newest_epoch,
    noted_checkpoint,
    save_checkpoint,
)
from training import PromptTrainer


# ---- Checkpointer ----
class Numbers(Contents):
    """A number for each folder; a checkpoint whose number is negative is damaged."""

    def __init__(self, **values):
        self.values, self.restored = values, []

    def folders(self):
        return list(self.values)

    def state(self, folder):
        return {"state_dict": {"x": torch.tensor(float(self.values[folder]))}}

    def require_fits(self, folder, path, state):
        if state["state_dict"]["x"] < 0:
            raise InputError(f"{path} is negative")

    def restore(self, directory, found):
        if any(state["state_dict"]["x"] == 13 for _, state in found):
            raise InputError(f"{directory} is of another training")
        self.restored = [(os.path.relpath(path, directory), state["state_dict"]["x"].item()) for path, state in found]

    def load(self, directory, epoch=None):
        return {"directory": [directory, epoch]}


def at(epoch, step=0):
    return lambda: {"epoch": epoch, "step": step}


@pytest.fixture
def folder(tmp_path):
    return str(tmp_path)


def saved(folder, contents, epoch, step=0, **words):
    name = INTERRUPTED if step else ""
    Checkpointer(contents).save(folder, at(epoch, step), model_name=name, **words)


def resumed(folder, contents):
    """[(file, number)] that a run goes on from."""
    found = Checkpointer(contents).resume(folder)
    assert (found is None) is (not contents.restored)
    return contents.restored


def test_the_newest_of_several_is_gone_on_from(folder):
    for epoch in (1, 2, 10):
        saved(folder, Numbers(a=epoch), epoch)
    assert resumed(folder, Numbers(a=0)) == [("a/model.pth.tar-10", 10)]
    assert Checkpointer(Numbers(a=0)).resume(folder)[1]["epoch"] == 10
    assert resumed(os.path.join(folder, "nowhere"), Numbers(a=0)) == [] == resumed(folder, Numbers())


def test_a_torn_one_is_passed_over(folder, capsys):
    for epoch in (1, 2, 3):
        saved(folder, Numbers(a=epoch if epoch < 3 else -3), epoch)
    path = os.path.join(folder, "a", checkpoint_name(2))
    with open(path, "rb") as file:
        content = file.read()
    with open(path, "wb") as file:
        file.write(content[:len(content) // 2])
    capsys.readouterr()
    assert resumed(folder, Numbers(a=0)) == [("a/model.pth.tar-1", 1)]
    assert capsys.readouterr().out.count("Warning: passed over a checkpoint: ") == 2
    os.remove(os.path.join(folder, "a", checkpoint_name(1)))
    with pytest.raises(InputError, match="no checkpoint in .* can be read, first: .*model.pth.tar-3 is negative"):
        Checkpointer(Numbers(a=0)).resume(folder)


def test_one_of_another_training_is_refused_and_not_passed_over(folder):
    saved(folder, Numbers(a=1), 1)
    saved(folder, Numbers(a=13), 2)
    with pytest.raises(InputError, match="is of another training"):
        Checkpointer(Numbers(a=0)).resume(folder)


@pytest.mark.parametrize(("epoch", "step", "expected"), [(2, 3, INTERRUPTED), (1, 9, checkpoint_name(2)),
                                                         (3, 1, INTERRUPTED)])
def test_an_interruption_counts_where_it_is_further_on(epoch, step, expected, folder):
    saved(folder, Numbers(a=1), 1)
    saved(folder, Numbers(a=2), 2)
    saved(folder, Numbers(a=5), epoch, step)
    assert resumed(folder, Numbers(a=0)) == [(f"a/{expected}", 5 if expected == INTERRUPTED else 2)]
    assert noted_checkpoint(os.path.join(folder, "a")) == checkpoint_name(2)


def test_models_go_on_from_a_point_that_all_have(folder):
    """A kill between two models' checkpoints, and one whose third is damaged."""
    for epoch, values in ((1, {"a": 1, "b": 11}), (2, {"a": 2, "b": 12}), (3, {"a": 3, "b": -3}), (4, {"a": 4})):
        saved(folder, Numbers(**values), epoch)
    assert resumed(folder, Numbers(a=0, b=0)) == [("a/model.pth.tar-2", 2), ("b/model.pth.tar-2", 12)]
    assert resumed(folder, Numbers(b=0, a=0)) == [("b/model.pth.tar-2", 12), ("a/model.pth.tar-2", 2)]
    assert Checkpointer(Numbers(a=0, c=0)).resume(folder) is None


def test_a_kill_between_a_checkpoint_and_its_note(folder):
    saved(folder, Numbers(a=1), 1)
    saved(folder, Numbers(a=2), 2)
    path = os.path.join(folder, "a")
    with open(os.path.join(path, "checkpoint"), "w", encoding="utf-8") as file:
        file.write(f"{checkpoint_name(1)}\n")
    checkpointer = Checkpointer(Numbers(a=0))
    checkpointer.note(folder, 7)  # there is no such checkpoint
    assert newest_checkpoint(path) == os.path.join(path, checkpoint_name(1))
    checkpointer.note(folder, 2)
    assert newest_checkpoint(path) == os.path.join(path, checkpoint_name(2))


def test_the_best_comes_along(folder, tmp_path):
    saved(folder, Numbers(a=7, b=8), 1, is_best=True)
    os.remove(tmp_path / "b" / BEST)
    other = str(tmp_path / "other")
    Checkpointer(Numbers(a=0, b=0)).take_best(other, folder)
    assert load_checkpoint(os.path.join(other, "a", BEST))["state_dict"]["x"] == 7
    assert not os.path.exists(os.path.join(other, "b"))


def test_interruptions_are_forgotten_and_rank_0_alone_writes(folder, monkeypatch):
    saved(folder, Numbers(a=1), 1, 2)
    path, checkpointer = os.path.join(folder, "a", INTERRUPTED), Checkpointer(Numbers(a=0))
    with monkeypatch.context() as patch:
        patch.setattr("dassl.engine.checkpointer.rank", lambda: 1)
        checkpointer.forget_interruption(folder)
        assert os.path.exists(path)
    for _ in range(2):
        checkpointer.forget_interruption(folder)
        assert not os.path.exists(path)


def test_names_of_data_parallel_are_stored_as_the_trainer_wants(tmp_path):
    for module_prefix, expected in ((True, "x"), (False, "module.x")):
        contents = Numbers(a=1)
        contents.module_prefix, contents.state = module_prefix, lambda folder: {"state_dict": {"module.x": 1}}
        saved(str(tmp_path), contents, 1)
        assert list(load_checkpoint(str(tmp_path / "a" / checkpoint_name(1)))["state_dict"]) == [expected]


class Loads(TrainerBase):
    def checkpoint_contents(self):
        return Numbers(a=1)


def test_what_is_evaluated_is_loaded_through_the_checkpointer(tmp_path):
    assert Checkpointer(Numbers(a=1)).load("folder", 3) == {"directory": ["folder", 3]}
    trainer = Loads()
    trainer.load_model(str(tmp_path), 2)
    assert trainer.changed == {"directory": [str(tmp_path), 2]}


def test_a_trainer_that_is_over_is_let_go():
    trainer = TrainerBase()
    contents = trainer.checkpointer.contents
    assert contents.trainer is trainer
    del trainer
    with pytest.raises(ReferenceError):
        contents.trainer  # noqa: B018


# ---- which checkpoints a folder holds ----
def test_which_checkpoint_is_evaluated(tmp_path):
    folder, path = str(tmp_path / "m"), str(tmp_path / "m" / "model.pth.tar-")
    assert newest_checkpoint(folder) is None is checkpoint_to_evaluate(folder)
    assert names_newest_first(folder) == [] == model_folders(str(tmp_path / "nowhere"))
    for epoch in (1, 3):
        save_checkpoint({"state_dict": {}, "epoch": epoch}, folder)
    assert checkpoint_to_evaluate(folder) == newest_checkpoint(folder) == f"{path}3"
    assert checkpoint_to_evaluate(folder, 1) == f"{path}1" and checkpoint_to_evaluate(folder, 2) == f"{path}2"
    assert newest_epoch(str(tmp_path)) == 3 and checkpoint_files(str(tmp_path)) == [f"{path}3"]
    assert checkpoint_files(str(tmp_path), 1) == [f"{path}1"] and checkpoint_files(str(tmp_path), 2) == []
    best = os.path.join(folder, BEST)
    assert checkpoint_to_evaluate(folder, best=True) == best
    save_checkpoint({"state_dict": {}, "epoch": 2}, folder, model_name=BEST)
    assert checkpoint_to_evaluate(folder) == best and checkpoint_to_evaluate(folder, 3) == f"{path}3"
    assert newest_epoch(str(tmp_path)) is None and checkpoint_files(str(tmp_path)) == [best]
    save_checkpoint({"state_dict": {}, "epoch": 3, "step": 1}, folder, model_name=INTERRUPTED)
    save_checkpoint({"state_dict": {}, "epoch": 4}, folder, model_name="mine")
    assert names_newest_first(folder) == [INTERRUPTED, "mine", checkpoint_name(3), checkpoint_name(1)]
    assert model_folders(str(tmp_path)) == [folder]


# ---- Evaluation ----
class Evaluator:
    """Keeps what it is given; the mean of the logits is its number."""

    def __init__(self):
        self.seen = []

    def process(self, mo, gt, impath=None):
        self.seen.append((mo, gt, impath))

    def evaluate(self):
        return {"mean": sum(mo.mean().item() for mo, *_ in self.seen) / len(self.seen), "count": len(self.seen)}


def loader(*batches):
    made = [{"img": torch.full((2, 3), float(value)), "label": torch.zeros(2), "domain": torch.ones(2),
             "impath": [f"{value}a.png", f"{value}b.png"]} for value in batches]
    found = SimpleNamespace(batch_sampler=None)
    return type("Loader", (), {"__iter__": lambda self: iter(made), "__len__": lambda self: len(made),
                               **vars(found)})()


def answer(batch):
    return batch["img"], batch["label"]


def test_a_pass_over_a_loader(capsys):
    evaluation, evaluator = Evaluation(), Evaluator()
    assert evaluation.over("val", loader(1, 3), evaluator, answer) == {"mean": 2, "count": 2}
    assert capsys.readouterr().out == "Evaluate on the *val* set\n"
    assert [files for *_, files in evaluator.seen] == [["1a.png", "1b.png"], ["3a.png", "3b.png"]]
    evaluation.over("test", loader(5), Evaluator(), answer)
    assert {part: found["mean"] for part, found in evaluation.results.items()} == {"val": 2, "test": 5}


def test_an_evaluator_gets_what_it_takes():
    seen = []

    class Plain(Evaluator):
        def process(self, mo, gt):
            seen.append(())
            super().process(mo, gt)

    class WithDomains(Evaluator):
        def process(self, mo, gt, domain=None, impath=None):
            seen.append(domain)
            super().process(mo, gt)

    for evaluator, domains in ((Plain(), True), (WithDomains(), False), (WithDomains(), True)):
        Evaluation().over("test", loader(1), evaluator, answer, domains)
    assert seen[:2] == [(), None] and seen[2].tolist() == [1, 1]


def test_numbers_that_are_not_finite_are_no_result():
    evaluation = Evaluation()
    with pytest.raises(NonFiniteError, match=r"2a.png, 2b.png"):
        evaluation.over("test", loader(1, 2), Evaluator(), lambda batch: (batch["img"] / (batch["img"] - 2), 0))
    odd = Evaluator()
    odd.evaluate = lambda: {"accuracy": float("nan")}
    with pytest.raises(NonFiniteError, match="the evaluation gives accuracy nan"):
        evaluation.over("test", loader(1), odd, answer)
    assert evaluation.results == {}


# ---- Progress ----
@pytest.mark.parametrize(("every", "shown"), [(0, [4]), (1, [1, 2, 3, 4]), (3, [3, 4]), (9, [4])])
def test_which_steps_have_a_line(every, shown, capsys):
    progress = Progress()
    progress.begin_epoch(1, 3, 4)
    for number in range(4):
        progress.batch_loaded()
        progress.step_made({"loss": float(number)})
        progress.show(number, 0.25, every)
        progress.step_over()
    lines = capsys.readouterr().out.splitlines()
    assert [int(line.split("batch [")[1].split("/")[0]) for line in lines] == shown
    assert lines[-1].startswith("epoch [2/3] batch [4/4] time 0.0") and "lr 2.5000e-01 eta 0:00:00" in lines[-1]
    assert "loss 3.0000 (1.5000)" in lines[-1]
    assert dict(progress.numbers()) == {"loss": 3.0}
    progress.begin_epoch(2, 3, 4)
    assert dict(progress.numbers()) == {}


def test_the_time_that_is_left(monkeypatch, capsys):
    clock = iter([0.0, 1.0, 10.0, 10.0])  # an epoch begins, its batch is there, its step is made, ...
    monkeypatch.setattr("dassl.engine.progress.time", SimpleNamespace(time=lambda: next(clock)))
    progress = Progress()
    progress.begin_epoch(0, 2, 5)
    progress.batch_loaded()
    progress.step_made({"loss": 1.0, "acc": torch.tensor([50.0])})
    progress.show(0, 1.0, 1)
    assert "time 10.000 (10.000) data 1.000 (1.000) loss 1.0000 (1.0000) acc 50.0000 (50.0000) lr 1.0000e+00 eta " \
        "0:01:22\n" in capsys.readouterr().out
    # 9 more of 9 s each, and a second before the other epoch's first batch


def test_what_comes_before_the_first_batch_of_an_epoch_counts_once_in_each(monkeypatch):
    """Such as features that are computed for the store."""
    # 60 s until the first batch; then steps of a second, a tenth of which reads
    clock = iter([0.0, 60.0, 60.9, 60.9, 61.0, 61.9, 61.9, 62.0, 62.9, 62.9])
    monkeypatch.setattr("dassl.engine.progress.time", SimpleNamespace(time=lambda: next(clock), monotonic=lambda: 0.0))
    progress, left = Progress(), []
    progress.begin_epoch(0, 3, 10)
    for done in range(3):
        progress.batch_loaded()
        progress.step_made({"loss": 1.0})
        progress.listener, progress._told = (lambda point: left.append(point.seconds_left)), -1.0
        progress.show(done, 1.0, 0)
        progress.step_over()
    assert left == pytest.approx([120 + 0.9 * 29, 120 + 1.9 / 2 * 28, 120 + 2.9 / 3 * 27])


def test_scalars_are_written_until_the_writer_is_closed(tmp_path, monkeypatch):
    progress = Progress()
    progress.scalar("nowhere", 1.0, 1)
    progress.open(str(tmp_path))
    writer = progress.writer
    progress.open(str(tmp_path / "other"))
    assert progress.writer is writer and not (tmp_path / "other").exists()
    progress.scalar("loss", 1.0, 1)
    progress.close()
    progress.close()
    assert progress.writer is None and len(list(tmp_path.glob("events*"))) == 1
    monkeypatch.setattr("dassl.engine.progress.rank", lambda: 1)
    progress.open(str(tmp_path))
    assert progress.writer is None


def test_a_folder_of_scalars_that_is_removed_is_told():
    def add_scalar(*arguments):
        raise FileNotFoundError

    progress = Progress()
    progress.writer = SimpleNamespace(add_scalar=add_scalar, log_dir="out/tensorboard")
    with pytest.raises(InputError, match="^out/tensorboard was removed while the run was writing to it"):
        progress.scalar("loss", 1.0, 1)


def test_dassls_name_of_the_writer_may_be_set():
    trainer, seen = TrainerBase(), []
    trainer._writer = SimpleNamespace(add_scalar=lambda *words: seen.append(words), close=lambda: seen.append("closed"))
    trainer.write_scalar("loss", 1.0, 2)
    trainer.close_writer()
    assert seen == [("loss", 1.0, 2), "closed"] and trainer._writer is None


# ---- StopRequest ----
def test_a_stop_is_asked_for_within_a_training_only(monkeypatch):
    stop, asked = StopRequest(), []
    monkeypatch.setattr("dassl.utils.signals.all_reduce_max", lambda number: asked.append(number) or max(asked[-1], 0))
    assert not stop.asked() and asked == []
    with stop:
        assert not stop.asked() and asked == [0]
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.asked() and stop.name == "SIGTERM"
    assert not stop.asked()
    with stop:  # another training
        assert stop.number is None


def test_a_stop_that_another_process_was_asked_for(monkeypatch):
    monkeypatch.setattr("dassl.utils.signals.all_reduce_max", lambda number: signal.SIGTERM)
    with StopRequest() as stop:
        assert stop.asked() and stop.number == signal.SIGTERM
        with pytest.raises(Terminated):
            stop.end()


def test_a_trainer_that_is_stopped_stores_its_point(tmp_path, capsys):
    trainer, stored = TrainerBase(), []
    trainer.output_dir, trainer.epoch = str(tmp_path), 2
    trainer.save_model = lambda *words, **more: stored.append((words, more))
    for done, over, told in ((0, False, "nothing is trained here"), (0, True, "the training is done"),
                             (3, False, "epoch 3, 3 batches done")):
        trainer.batches_done, trainer.went_through = done, over
        with contextlib.suppress(KeyboardInterrupt), trainer.stop:
            trainer.stop.take(signal.SIGINT)
            trainer.stop_if_asked()
            pytest.fail("it goes on")
        assert f"Stopped by SIGINT: {told}; the same command goes on" in capsys.readouterr().out
    assert stored == [((1, str(tmp_path)), {"model_name": INTERRUPTED})]


# ---- class_bound ----
def config(**node):
    return SimpleNamespace(TRAINER=SimpleNamespace(MINE=SimpleNamespace(**node)))


class ByMethod(PromptTrainer):
    @classmethod
    def class_bound(cls, cfg):
        return cfg.TRAINER.MINE.CSC


class ByAttribute(PromptTrainer):
    class_bound = True  # type: ignore[assignment]  # as method files of earlier releases say it


class ByProperty(PromptTrainer):
    """As method files of earlier releases say it."""

    @property
    def class_bound(self):
        return self.cfg.TRAINER.MINE.CSC


@pytest.mark.parametrize(("trainer", "csc", "expected"), [
    (PromptTrainer, True, False), (TrainerX, True, False), (ByMethod, True, True), (ByMethod, False, False),
    (ByAttribute, False, True), (ByProperty, True, True), (ByProperty, False, False)])
def test_whether_a_method_is_class_bound(trainer, csc, expected):
    cfg = config(CSC=csc)
    made = trainer.__new__(trainer)
    made.cfg = cfg
    assert is_class_bound(trainer, cfg) is is_class_bound(made, cfg) is expected


class ByNode(PromptTrainer):
    @property
    def class_bound(self):
        return self.node.CSC


class AsksMore(PromptTrainer):
    @property
    def class_bound(self):
        return super().class_bound or self.cfg.TRAINER.MINE.CSC


class AsksTheModel(PromptTrainer):
    @property
    def class_bound(self):
        return self.model.bound


def test_a_property_may_read_the_node():
    made, cfg = ByNode.__new__(ByNode), SimpleNamespace(TRAINER={"BYNODE": SimpleNamespace(CSC=True)})
    made.cfg = cfg
    assert is_class_bound(ByNode, cfg) is is_class_bound(made, cfg) is True


@pytest.mark.parametrize("trainer", [AsksMore, AsksTheModel])
def test_a_property_that_gives_no_answer_is_refused(trainer):
    made, cfg = trainer.__new__(trainer), config(CSC=False)
    made.cfg = cfg
    for asked in (trainer, made):
        with pytest.raises(InputError, match=rf"^{trainer.__name__}.class_bound is a property .*class_bound is a class "
                                             r"method now: def class_bound\(cls, cfg\)$"):
            is_class_bound(asked, cfg)


def test_a_class_is_asked_without_a_trainer():
    class Counted(ByProperty):
        def __new__(cls, *args, **kwargs):
            pytest.fail("a trainer is made")

    assert is_class_bound(Counted, config(CSC=True))


# ---- names of parts, registered models ----
def test_a_class_may_use_the_names_of_parts():
    class Own(TrainerBase):
        progress = "mine"

        def evaluation(self):
            return "mine"

    trainer = Own()
    trainer.budget = 3
    assert trainer.evaluation() == trainer.progress == "mine" and trainer.budget == 3
    assert isinstance(TrainerBase.evaluation.of(trainer), Evaluation)
    assert isinstance(TrainerBase.progress.of(trainer), Progress)
    assert TrainerBase.budget.of(trainer) is trainer._budget
    other = TrainerBase()
    assert other.budget is other._budget and other.stop is other._stop and other.evaluation is other._evaluation


def test_registered_models():
    trainer, model, optim = TrainerBase(), object(), object()
    trainer.register_model("net", model, optim)
    assert trainer.registered_model("net") == (model, optim, None)
    assert trainer.registered_model("net").optim is optim
    with pytest.raises(KeyError, match="no model"):
        trainer.registered_model("other")


@pytest.mark.parametrize(("base", "hook", "instead"), [
    (PromptTrainer, "to_device", "training.batches.to_device"), (PromptTrainer, "whole", "all_gather_batch"),
    (PromptTrainer, "require_honoured", "training.options"), (PromptTrainer, "prune_checkpoints", "checkpointer.prune"),
    (PromptTrainer, "forget_interruption", "checkpointer.forget_interruption"),
    (PromptTrainer, "check_images", "require_images"), (TrainerX, "check_validation", "require_validation")])
def test_a_hook_of_earlier_releases_is_refused(base, hook, instead):
    require_no_former_hook(base)
    with pytest.raises(InputError, match=f"^Mine defines {hook}, which the engine does not call any more: .*{instead}"):
        require_no_former_hook(type("Mine", (base,), {hook: lambda self: None}))
