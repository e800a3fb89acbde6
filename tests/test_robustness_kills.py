"""Runs that are killed or asked to stop, at once and in the middle, end in the numbers of the run left alone."""
import json
import os
import re
import signal
import subprocess
import sys
import threading

import chaos as chaos_program
import pytest
import torch
from chaos import remains, same
from conftest import ROOT

import train
from dassl.engine import SimpleTrainer
from dassl.utils import StopRequest, Terminated, signals
from training import PromptTrainer

pytestmark = pytest.mark.robustness
ENDS = {signal.SIGINT: (KeyboardInterrupt, 130), signal.SIGTERM: (Terminated, 143)}
EPOCHS = ("OPTIM.MAX_EPOCH", 4)


@pytest.fixture
def run(arguments, clips):
    return lambda *args, **kwargs: train.main(arguments(*args, **kwargs), clips=clips)


def stop_at(monkeypatch, epoch, batch, number, method=PromptTrainer):
    """Send this process the signal in the middle of a training step."""
    step = method.training_step

    def training_step(self, *args):
        if (self.epoch, self.batch_idx) == (epoch, batch):
            os.kill(os.getpid(), number)
        return step(self, *args)

    monkeypatch.setattr(method, "training_step", training_step)


def whole(folder, results):
    """What must not depend on stops: everything in the last checkpoint that is learned or drawn, and the metrics."""
    state = torch.load(folder / "prompt_learner" / "model.pth.tar-4", weights_only=True)
    return [state[key] for key in ("state_dict", "optimizers", "schedules", "rng", "precision")], results["metrics"]


@pytest.mark.parametrize(("number", "method", "batch", "workers"), [
    (signal.SIGTERM, "CoOp", 0, 0), (signal.SIGTERM, "CoOp", 1, 2), (signal.SIGINT, "CoOp", 2, 0),
    (signal.SIGINT, "CoCoOp", 1, 0)])
def test_a_stop_keeps_every_batch(number, method, batch, workers, run, tmp_path, monkeypatch, tally, capsys):
    expected = whole(tmp_path / "whole", run(method, tmp_path / "whole", *EPOCHS))
    tally["kills"] += 1
    error, _ = ENDS[number]
    handlers = [signal.getsignal(each) for each in ENDS]
    words = (*EPOCHS, "DATALOADER.NUM_WORKERS", workers)
    with monkeypatch.context() as patch:
        stop_at(patch, 2, batch, number)
        with pytest.raises(error):
            run(method, tmp_path / "cut", *words)
    assert [signal.getsignal(each) for each in ENDS] == handlers
    stopped = torch.load(tmp_path / "cut" / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
    assert (stopped["epoch"], stopped["step"]) == (2, batch + 1)
    assert not (tmp_path / "cut" / "results.json").exists() and not (tmp_path / "cut" / ".lock").exists()
    name = signal.Signals(number).name
    assert f"Stopped by {name}: epoch 3, {batch + 1} batches done" in (tmp_path / "cut" / "log.txt").read_text()
    capsys.readouterr()
    found = whole(tmp_path / "cut", run(method, tmp_path / "cut", *words))
    printed = capsys.readouterr().out
    assert "epoch [2/4]" not in printed and f"epoch [3/4] batch [{batch + 1}/3]" not in printed
    assert same(found, expected)
    assert not (tmp_path / "cut" / "prompt_learner" / "model-interrupted.pth.tar").exists()
    tally["survived"] += 1


def test_a_stop_during_the_validation_of_an_epoch(run, tmp_path, monkeypatch, tally):
    words = (*EPOCHS, "TEST.FINAL_MODEL", "best_val")
    expected = whole(tmp_path / "whole", run("CoOp", tmp_path / "whole", *words))
    tally["kills"] += 1
    test = SimpleTrainer.test

    def interrupted(self, split=None):
        if split == "val" and self.epoch == 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return test(self, split)

    with monkeypatch.context() as patch:
        patch.setattr(SimpleTrainer, "test", interrupted)
        with pytest.raises(Terminated):
            run("CoOp", tmp_path / "cut", *words)
    stopped = torch.load(tmp_path / "cut" / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
    assert (stopped["epoch"], stopped["step"]) == (1, 3)
    assert same(whole(tmp_path / "cut", run("CoOp", tmp_path / "cut", *words)), expected)
    tally["survived"] += 1


def test_a_stop_during_the_last_evaluation_evaluates_again(run, tmp_path, monkeypatch, tally):
    expected = run("CoOp", tmp_path / "whole")
    tally["kills"] += 1
    with monkeypatch.context() as patch:
        patch.setattr(PromptTrainer, "model_inference", lambda self, images: os.kill(os.getpid(), signal.SIGINT)
                      or torch.zeros(len(images), self.num_classes))
        with pytest.raises(KeyboardInterrupt):
            run("CoOp", tmp_path / "cut")
    assert not (tmp_path / "cut" / "results.json").exists()
    assert run("CoOp", tmp_path / "cut")["metrics"] == expected["metrics"]
    tally["survived"] += 1


def test_a_damaged_interruption_falls_back_to_the_epoch(run, tmp_path, monkeypatch, capsys):
    expected = whole(tmp_path / "whole", run("CoOp", tmp_path / "whole", *EPOCHS))
    with monkeypatch.context() as patch:
        stop_at(patch, 2, 1, signal.SIGTERM)
        with pytest.raises(Terminated):
            run("CoOp", tmp_path / "cut", *EPOCHS)
    (tmp_path / "cut" / "prompt_learner" / "model-interrupted.pth.tar").write_bytes(b"torn")
    capsys.readouterr()
    assert same(whole(tmp_path / "cut", run("CoOp", tmp_path / "cut", *EPOCHS)), expected)
    printed = capsys.readouterr().out
    assert "Warning" in printed and "after epoch 2" in printed


def test_a_foreign_trainer_stops_and_goes_on(arguments, clips, tmp_path, monkeypatch, tally):
    """A TrainerX that knows nothing of stops: its whole state is kept at the batch."""
    plugin = ROOT / "tests" / "plugins" / "habits.v2.py"
    train.discover([str(plugin)])
    trainer = train.TRAINER_REGISTRY.get("OwnTest")

    def run(name):
        torch.manual_seed(0)
        return train.main(arguments("OwnTest", tmp_path / name, "--plugin", plugin, *EPOCHS), clips=clips)

    def weights(name):
        return torch.load(tmp_path / name / "net" / "model.pth.tar-4", weights_only=True)["state_dict"]

    expected = run("whole")
    tally["kills"] += 1
    step = trainer.forward_backward

    def forward_backward(self, batch):
        if (self.epoch, self.batch_idx) == (1, 1):
            os.kill(os.getpid(), signal.SIGTERM)
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer, "forward_backward", forward_backward)
        with pytest.raises(Terminated):
            run("cut")
    stopped = torch.load(tmp_path / "cut" / "net" / "model-interrupted.pth.tar", weights_only=True)
    assert (stopped["epoch"], stopped["step"]) == (1, 2)
    assert run("cut")["metrics"] == expected["metrics"]
    assert same(weights("cut"), weights("whole"))
    assert not (tmp_path / "cut" / "net" / "model-interrupted.pth.tar").exists()
    tally["survived"] += 1


def test_a_signal_that_is_delivered_twice_is_one(monkeypatch):
    """As scancel does: once itself, once through srun."""
    with StopRequest() as stop:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        monkeypatch.setattr(signals, "TWICE", 0)
        with pytest.raises(Terminated):
            os.kill(os.getpid(), signal.SIGTERM)


def test_a_signal_between_two_looks_is_not_lost(run, tmp_path, monkeypatch):
    """It comes while the ranks agree that none has come."""
    looks = []

    def all_reduce_max(number):
        looks.append(number)
        if len(looks) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return number

    monkeypatch.setattr("dassl.utils.signals.all_reduce_max", all_reduce_max)
    with pytest.raises(Terminated):
        run("CoOp", tmp_path, *EPOCHS)
    assert looks == [0, 0, signal.SIGTERM]


def test_a_signal_that_another_process_told_of_may_come_here_too():
    with StopRequest() as stop:
        stop.take(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)  # torchrun's, a moment later
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_a_second_signal_does_not_wait():
    with StopRequest() as stop:
        os.kill(os.getpid(), signal.SIGTERM)
        assert stop.number == signal.SIGTERM
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)


def test_runs_in_threads_leave_signals_alone(run, tmp_path):
    handlers = [signal.getsignal(each) for each in ENDS]
    outcome = []
    thread = threading.Thread(target=lambda: outcome.append(run("CoOp", tmp_path / "out")))
    thread.start()
    thread.join()
    assert outcome[0]["metrics"] and [signal.getsignal(each) for each in ENDS] == handlers


@pytest.mark.parametrize("number", [pytest.param(signal.SIGINT, marks=pytest.mark.slow), signal.SIGTERM])
def test_the_program_ends_with_the_signals_status(number, arguments, tmp_path, tally):
    """As a process of its own, two loader workers, the signal to the whole group as a terminal or a batch system sends
    it."""
    words = arguments("CoOp", tmp_path / "out", "DATALOADER.NUM_WORKERS", 2, "OPTIM.MAX_EPOCH", 500)
    tally["kills"] += 1
    program = subprocess.Popen([sys.executable, str(ROOT / "train.py"), *words], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)
    try:
        for line in program.stdout:
            if line.startswith("epoch [2/"):
                break
        os.killpg(program.pid, number)
        out, err = program.communicate(timeout=60)
    finally:
        program.kill()
    assert program.returncode == ENDS[number][1], err
    assert err == "interrupted; the same command goes on from the last checkpoint\n"
    epoch, step = map(int, re.search(r"epoch (\d+), (\d+) batches done", out).groups())
    state = torch.load(tmp_path / "out" / "prompt_learner" / "model-interrupted.pth.tar", weights_only=True)
    assert (state["epoch"], state["step"]) == (epoch - 1, step)
    tally["survived"] += 1


HELD_LOADER = """
import sys
sys.path.insert(0, sys.argv[1])
from torch.utils.data import DataLoader
from dassl.utils import leave_signals_to_the_parent
loader = DataLoader(range(20), num_workers=2, persistent_workers=True, worker_init_fn=leave_signals_to_the_parent)
batches = iter(loader)
print(next(batches).tolist())
held = [batches]
held.append(held)  # a cycle: at the exit the workers are still there
"""


def test_a_program_that_still_holds_a_loader_ends():
    done = subprocess.run([sys.executable, "-c", HELD_LOADER, str(ROOT)], capture_output=True, text=True, check=False,
                          timeout=90)
    assert (done.returncode, done.stdout) == (0, "[0]\n"), done.stderr


def chaos(tally, kills, stops, *words):
    """Run tests/chaos.py as a program and count what it counted."""
    argv = [sys.executable, ROOT / "tests" / "chaos.py", "--kills", kills, "--stops", stops, *words]
    done = subprocess.run([str(word) for word in argv], capture_output=True, text=True, check=False)
    tally["kills"] += kills + stops
    assert done.returncode == 0, done.stdout + done.stderr
    require_no_difference(done.stdout, kills, stops)
    tally["survived"] += kills + stops


def require_no_difference(printed, kills, stops):
    assert "looked at; 0 differences" in printed, printed
    found, stopped = re.search(r"(\d+) kills .* (\d+) stops", printed).groups()
    assert int(found) >= kills and int(stopped) >= stops


def test_a_few_kills(tally, shapes_root, capsys):
    """In this process, which has imported torch before."""
    tally["kills"] += 7
    words = ["--kills", "5", "--stops", "2", "--root", str(shapes_root), "--seed", "4", "--methods", "CoOp"]
    capsys.readouterr()
    assert chaos_program.main(words) == 0
    require_no_difference(capsys.readouterr().out, 5, 2)
    tally["survived"] += 7


@pytest.mark.slow
def test_a_hundred_kills(tally, shapes_root):
    chaos(tally, 100, 20, "--root", shapes_root)


def test_what_a_killed_writer_left_is_removed_and_nothing_else(run, tmp_path):
    torn = ["results.json.tmp7", "config.yaml.tmp12", "prompt_learner/model.pth.tar-1.tmp7",
            "prompt_learner/checkpoint.tmp7"]
    others = ["notes.tmp", "other/config.yaml.tmp7", "other/prompt_learner/model.pth.tar-1.tmp7"]
    for name in torn + others:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("half")
    run("CoOp", tmp_path)
    assert [name for name in torn + others if (tmp_path / name).exists()] == others


def test_a_kill_before_the_newest_checkpoint_is_noted(run, tmp_path):
    run("CoOp", tmp_path, *EPOCHS)
    (tmp_path / "results.json").unlink()
    (tmp_path / "prompt_learner" / "checkpoint").write_text("model.pth.tar-3\n")
    run("CoOp", tmp_path, *EPOCHS)
    assert (tmp_path / "prompt_learner" / "checkpoint").read_text() == "model.pth.tar-4\n"


def test_chaos_tells_a_difference(run, tmp_path):
    """What the chaos run compares with is not blind: another seed differs in everything that is learned."""
    for seed in (1, 2):
        run("CoOp", tmp_path / f"seed{seed}", *EPOCHS, seed=seed)
        (tmp_path / f"seed{seed}.journal").write_text("".join(f"loss 0 {n} {seed}\n" for n in range(3)))
    first, second = (remains(tmp_path / f"seed{seed}") for seed in (1, 2))
    assert {name for name in first if not same(first[name], second[name])} >= {"losses", "prompts"}
    assert same(first, remains(tmp_path / "seed1"))
    assert json.loads((tmp_path / "seed1" / "results.json").read_text())["seed"] == 1
