"""What a protocol shows while its runs are made: a line per run, live lines in a terminal; the rest is in the logs."""
import io
import json
import os
import re
import subprocess
import sys
import textwrap
from types import SimpleNamespace

import pytest
import terminal
from conftest import ROOT
from hypothesis import given
from hypothesis import strategies as st
from rich.console import Console as Terminal

import train
from dassl.engine import TRAINER_REGISTRY, TrainerX
from dassl.engine.progress import Point, Progress
from dassl.utils import InputError
from dassl.utils.text import EscapedStream
from protocols import Place, Run
from protocols.parts.numbers import Number
from protocols.parts.tables import Table
from runs.listener import NoticedLines, Noticing
from runs.run_spec import RunSpec
from tools import protocol
from tools.running import live
from tools.running.console import Console, Lines
from tools.running.execution import execute
from tools.running.in_width import in_width
from tools.running.plans import Planner
from tools.running.time_left import Estimate, Left, duration, waiting

PLUGIN = """
    import sys
    import torch
    from dassl.engine import TRAINER_REGISTRY
    from prompting.model import Prompt, PromptedCLIP
    from training import PromptTrainer

    class Moved(PromptedCLIP):
        def __init__(self, towers, classnames):
            super().__init__(towers)
            self.text = towers.frozen_text(classnames, ["{}"])
            self.move = Prompt(torch.zeros(towers.embed_dim))

        def encode_classes(self):
            return self.text + self.move.ctx

    @TRAINER_REGISTRY.register()
    class Warns(PromptTrainer):
        def build_model(self, towers, classnames):
            return Moved(towers, classnames)

        def training_step(self, batch):
            if self.epoch == 0 and self.batch_idx == 0:
                print(f"Warning: [bold]{self.cfg.SEED} of 9 things[/bold] are odd\\x1b[2J")
                print("said to the log")
                print("told aside", file=sys.stderr)
            return super().training_step(batch)
"""


@pytest.fixture
def words(drawn_root, tiny_config, clip_file, tmp_path, monkeypatch, clip_model):
    monkeypatch.setattr("training.towers.load_clip", lambda name: clip_model)

    def words(*more, dataset="caltech101", seeds=("1",), output="out"):
        return [*more, "--dataset", dataset, "--cfg", tiny_config, "--root", str(drawn_root), "--output",
                str(tmp_path / output), "--shots", "2", "--backbone", clip_file, "--seeds", *seeds, "OPTIM.MAX_EPOCH=2"]

    return words


@pytest.fixture
def said(words, capsys):
    """What a command prints: its lines on stdout before the tables, and all of stderr."""
    def said(*more, **kwargs):
        capsys.readouterr()
        protocol.main(words(*more, **kwargs))
        told = capsys.readouterr()
        lines = told.out.split("\n\n")[0].splitlines()
        # The second is the preflight's.
        others = re.compile(r"Note: without effect|\d+ runs?, \d+ done|Backbone .* wrong numbers [(]")
        return [line for line in lines if not others.match(line)], told.err

    return said


@pytest.fixture
def plugin(tmp_path):
    path = tmp_path / "warns.py"
    path.write_text(textwrap.dedent(PLUGIN))
    return str(path)


def planned(words):
    args = protocol.parse_arguments(words)
    protocol.check_arguments(args)
    planner = Planner(args.root, args.output, args.seeds, args.cfg, args.backbone, args.plugin, args.opts)
    return planner.plan(args.protocol, args.trainer, args.dataset, args.shots)


def a_run(method="CoOp", dataset="shapes", seed=1, part="all", evaluation=False, needs="", same=""):
    place = Place("base2new", dataset, method, "tiny", part, 16, seed)
    spec = RunSpec(trainer=method, output_dir=f"/nowhere/{method}/{dataset}/{part}/{seed}", seed=seed,
                   eval_only=evaluation, dataset_config_file=f"{dataset}.yaml")
    return Run(place, spec, needs, same)


def results(accuracy=50.0):
    return {"metrics": {"test": {"accuracy": accuracy}}}


# ---- lines ----
def test_a_line_per_run_and_the_rest_in_its_log(said, tmp_path):
    lines, err = said("base2new", "--trainer", "CoOp", seeds=("1", "2"))
    assert err == "" and len(lines) == 4
    stored = {(part, seed): tmp_path / "out/base2new" / folder / f"caltech101/shots_2/CoOp/tiny/seed{seed}"
              for part, folder in (("base", "train_base"), ("new", "test_new")) for seed in (1, 2)}
    for number, line in enumerate(lines, start=1):
        found = re.fullmatch(rf"run {number} of 4  CoOp  caltech101  seed ([12])  (base|new ) +([\d.]+) %  +\d+ s"
                             r"(; (at least |about )?\d+ s left|; time left not known)?", line)
        folder = stored[found[2].strip(), int(found[1])]
        assert f"{json.loads((folder / 'results.json').read_text())['metrics']['test']['accuracy']:.1f}" == found[3]
    for (part, _), folder in stored.items():
        log = (folder / "log.txt").read_text()
        assert log.startswith("** CoOp on Caltech101") and log.count("=> result\n") == 1
        assert ("epoch [2/2]" in log and "Finish training" in log) == (part == "base")


def test_verbose_brings_it_back(said, tmp_path):
    lines, _ = said("base2new", "--trainer", "CoOp", "--verbose")
    assert [line[:10] for line in lines if line.startswith("run ")] == ["run 1 of 2", "run 2 of 2"]
    logs = [path.read_text() for path in (tmp_path / "out").rglob("log.txt")]
    assert len(logs) == 2 and all(log.strip() in "\n".join(lines) for log in logs)
    assert lines.count("=> result") == 2


def test_runs_that_were_done_before_are_one_line(said):
    said("base2new", "--trainer", "CoOp", seeds=("1", "2"))
    assert said("base2new", "--trainer", "CoOp", seeds=("1", "2"))[0] == ["runs 1 to 4 of 4  done before"]
    lines, _ = said("base2new", "--trainer", "CoOp", seeds=("1", "3", "2"))
    assert lines[0] == "runs 1 to 2 of 6  done before" and lines[-1] == "runs 5 to 6 of 6  done before"
    assert [line[:10] for line in lines[1:3]] == ["run 3 of 6", "run 4 of 6"]
    [line] = said("fewshot", "--trainer", "CoOp")[0]
    assert not line.endswith("done before")
    [line] = said("fewshot", "--trainer", "CoOp")[0]
    assert re.fullmatch(r"run 1 of 1  CoOp  caltech101  seed 1 +[\d.]+ %  done before", line)


def test_runs_that_have_the_numbers_of_others_are_one_line(said):
    lines, _ = said("base2new", "--trainer", "ZeroshotCLIP", seeds=("1", "2", "3"))
    assert lines[-1] == "runs 3 to 6 of 6  have the numbers of another run" and len(lines) == 3
    lines, _ = said("base2new", "--trainer", "ZeroshotCLIP", seeds=("1", "2", "3", "4"))
    assert lines == ["runs 1 to 6 of 8  done before", "runs 7 to 8 of 8  have the numbers of another run"]


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_what_a_user_must_see_is_shown_once(jobs, said, plugin):
    lines, err = said("base2new", "--trainer", "Warns", "--plugin", plugin, "--jobs", jobs, seeds=("1", "2"))
    warnings = [line for line in lines if "odd" in line]
    assert len(warnings) == 1
    assert re.fullmatch(r"Warning: \[bold\][12] of 9 things\[/bold\] are odd\\x1b\[2J \(Warns caltech101 seed [12] "
                        r"base\)", warnings[0])
    assert lines[-1] == "Notes and warnings of these kinds that are not shown: 1, see the runs' log.txt"
    assert not any("said to the log" in line for line in lines)
    assert err.count("told aside") == (2 if jobs == "1" else 0)
    assert sum(line.startswith("run ") for line in lines) == 4


def test_failures_are_told_with_what_depends_on_them(words, capsys, monkeypatch):
    run = train.run

    def fails(spec, *more):
        if spec.seed < 3 and not spec.eval_only:
            raise InputError(f"no luck with\x1b[2J seed {spec.seed}")
        return run(spec, *more)

    monkeypatch.setattr(train, "run", fails)
    assert train.command_line(lambda: protocol.main(words("base2new", "--trainer", "CoOp", seeds=("1", "2", "3")))) == 2
    told = capsys.readouterr()
    first, second, last = told.err.splitlines()
    assert first.startswith(r"run 1 of 6  CoOp  caltech101  seed 1  base  failed: no luck with\x1b[2J seed 1 (")
    assert first.endswith("/seed1); 1 run that needs it is not made")
    assert second.startswith("run 3 of 6  CoOp  caltech101  seed 2  base  failed: ")
    assert last.startswith("error: 2 of 6 runs failed, 2 depend on them: ")
    assert [line[:10] for line in told.out.splitlines() if line.startswith("run")] == ["run 5 of 6", "run 6 of 6"]


def test_runs_that_are_refused_before_are_not_counted(said, words, capsys):
    said("base2new", "--trainer", "CoOp", seeds=("1",))
    again = [*words("base2new", "--keep-going", "--trainer", "CoOp", seeds=("1", "2")), "OPTIM.LR", "0.3"]
    assert train.command_line(lambda: protocol.main(again)) == 2
    told = capsys.readouterr()
    assert [line[:10] for line in told.out.splitlines() if line.startswith("run ")] == ["run 1 of 2", "run 2 of 2"]
    assert "OPTIM.LR" in told.err


def test_a_reason_that_was_told_is_referred_to(capsys):
    runs = [a_run(seed=seed) for seed in (1, 2, 3)]
    with Lines(runs) as console:
        for run in runs:
            console.begins(run)
            console.failed(run, "no such folder")
    assert [line.split("failed: ")[1].split(" (")[0] for line in capsys.readouterr().err.splitlines()] == [
        "no such folder", "as run 1 did", "as run 1 did"]


def test_a_run_among_one_class_is_told(capsys):
    runs = [a_run(part="train_base"), a_run(part="test_new", needs=a_run(part="train_base").folder)]
    with Lines(runs) as console:
        console.begins(runs[0])
        console.left_out(runs[0], "cat\x1b[2J")
    [line] = capsys.readouterr().out.splitlines()
    assert r"not made: its test images have one class, 'cat\x1b[2J'; 1 run that needs it is not made either" in line


def test_two_jobs_tell_how_far_they_are(words, capsys):
    """Points of each process reach the parent, and each run has one line."""
    class Noting(Lines):
        points: list = []

        def reached(self, run, point):
            self.points.append((run.folder, point))
            super().reached(run, point)

    runs = planned([*words("base2new", "--trainer", "CoOp", seeds=("1", "2")), "OPTIM.MAX_EPOCH=25"])
    outcome = execute(runs, {}, 2, Noting(runs, 2))
    assert len(outcome.results) == 4
    lines = [line for line in capsys.readouterr().out.splitlines() if not line.startswith("Backbone ")]
    assert [line[:10] for line in lines] == [f"run {number} of 4" for number in (1, 2, 3, 4)]
    trained = [run.folder for run in runs if not run.needs]
    for folder in trained:
        points = [point for name, point in Noting.points if name == folder]
        assert points[0] == Point("", 1, 25) and any(point.part == "test" for point in points)
    assert any(point.loss is not None for _, point in Noting.points)


def test_a_task_of_a_cluster_logs_what_its_runs_print(words, clips, capsys):
    runs = planned(words("base2new", "--trainer", "CoOp"))
    execute(runs, dict(clips))
    assert capsys.readouterr().out.count("=> result") == 2
    execute(runs, dict(clips))
    assert capsys.readouterr().out == "".join(f"Finished before: {run.folder}\n" for run in runs)
    Console().failed(runs[0], "why")
    assert capsys.readouterr().err == f"failed: {runs[0].folder}: why\n"


def test_a_line_is_shown_for_each_method_and_dataset(capsys):
    runs = [a_run(), a_run(seed=2), a_run("MetaPrompt"), a_run(dataset="dtd")]
    with Lines(runs) as console:
        for run in runs:
            console.noticed(run, "Note: odd")
    assert [line.split("(")[1] for line in capsys.readouterr().out.splitlines()] == [
        "CoOp shapes seed 1 all)", "MetaPrompt shapes seed 1 all)", "CoOp dtd seed 1 all)"]


# ---- how far a run is ----
def test_a_trainer_with_a_loop_of_its_own_tells_its_epochs(arguments, clips, tmp_path):
    @TRAINER_REGISTRY.register()
    class OwnLoop(TrainerX):
        def build_model(self):
            from torch import nn

            self.model = nn.Sequential(nn.Flatten(), nn.Linear(3 * 32 * 32, self.num_classes))
            self.register_model("net", self.model)

        def run_epoch(self):
            self.num_batches = len(self.train_loader_x)

        def forward_backward(self, batch):
            raise AssertionError

    points, lines = [], []
    listener = Noticing(points.append, lines.append)
    train.main([*arguments("OwnLoop", tmp_path / "out"), "OPTIM.MAX_EPOCH", "3"], clips=clips, listener=listener)
    assert points[0] == Point("", 1, 3) and points[-1].part == "test" and listener.made
    train.main(arguments("OwnLoop", tmp_path / "out", "OPTIM.MAX_EPOCH", "3"), clips=clips, listener=listener)
    assert not listener.made


def test_progress_tells_epoch_loss_and_time_now_and_then(monkeypatch):
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("dassl.engine.progress.time", SimpleNamespace(time=lambda: clock.now,
                                                                      monotonic=lambda: clock.now))
    points = []
    progress = Progress()
    progress.listener = points.append
    for epoch in range(2):
        progress.enter_epoch(epoch, 2)
        progress.begin_epoch(epoch, 2, 10)
        for batch in range(10):
            progress.batch_loaded()
            clock.now += 0.1
            progress.step_made({"acc": 1.0, "loss_x": float(batch)})
            progress.show(batch, 0.1, 100)
            progress.step_over()
    progress.evaluated("test", 0, 4)
    assert points[0] == Point("", 1, 2) and points[-1] == Point("test", 0, 0, 0, 4)
    assert 6 <= len(points) <= 10  # of 20 steps in 2 s
    assert points[1][:5] == ("", 1, 2, 3, 10) and points[1].loss == 1.0
    assert points[1].seconds_left == pytest.approx(1.7)
    assert all(later.seconds_left < earlier.seconds_left for earlier, later in zip(points[1:], points[2:-1]))


def test_a_step_without_a_loss_has_none():
    points = []
    progress = Progress()
    progress.listener = points.append
    progress.begin_epoch(0, 1, 1)
    progress.step_made({"acc": 1.0})
    progress.show(0, 0.1, 0)
    assert [point.loss for point in points] == [None]


# ---- the time left ----
def test_nothing_is_said_before_something_is_known():
    estimate, runs = Estimate(), [a_run(seed=seed) for seed in (1, 2, 3)]
    assert estimate.left(runs, {}) is None
    estimate.made(runs[0], 30.0)
    assert str(estimate.left(runs[1:], {})) == "60 s left"
    assert estimate.left(runs[2:], {runs[1]: (10.0, None)}) == Left(50.0)
    assert estimate.left(runs[2:], {runs[1]: (10.0, 5.0)}) == Left(35.0)
    estimate.made(a_run(part="short"), 0.2)
    assert estimate.left([a_run(part="short", seed=2)], {}) == Left(1.0)  # the least that is told of runs to be made
    assert estimate.left([], {runs[1]: (99.0, None)}) is None  # it lasts longer than the other: nothing to go by


def test_the_time_is_that_of_runs_of_the_same_kind():
    """Short evaluations say nothing of trainings, and one method nothing of another."""
    estimate = Estimate()
    estimate.made(a_run(part="train_base"), 100.0)
    estimate.made(a_run(part="test_new", evaluation=True), 2.0)
    assert estimate.left([a_run(seed=2, part="train_base"), a_run(seed=2, part="test_new", evaluation=True)], {}) == \
        Left(102.0)
    assert estimate.left([a_run("MetaPrompt", part="train_base")], {}) is None
    assert estimate.left([a_run(seed=2, part="train_base"), a_run("MetaPrompt")], {}) == Left(100.0, least=True)
    assert estimate.left([a_run(dataset="dtd", part="train_base")], {}) == Left(100.0, rough=True)
    assert estimate.left([a_run("MetaPrompt", evaluation=True)], {}) == Left(2.0, rough=True)
    assert str(Left(100.0, rough=True)) == "about 100 s left" and str(Left(300.0, least=True)) == "at least 5 min left"


def test_a_run_that_is_made_tells_of_its_kind():
    running = {a_run("MetaPrompt"): (30.0, 70.0)}
    assert Estimate().left([a_run("MetaPrompt", seed=2)], running) == Left(170.0)


def test_several_at_a_time():
    estimate, runs = Estimate(2), [a_run(seed=seed) for seed in range(6)]
    estimate.made(runs[0], 10.0)
    assert estimate.left(runs[1:], {}) == Left(30.0)
    assert estimate.left(runs[3:], {runs[1]: (0.0, None), runs[2]: (5.0, None)}) == Left(25.0)
    assert estimate.left(runs[1:2], {runs[2]: (0.0, 40.0)}) == Left(40.0)


def test_runs_that_are_filled_in_take_no_time():
    estimate = Estimate()
    estimate.made(a_run("ZeroshotCLIP"), 10.0)
    assert estimate.left([a_run("ZeroshotCLIP", seed=2, same="/other")], {}) is None


def test_runs_that_need_what_failed_are_not_waited_for():
    first = a_run(part="train_base")
    runs = [first, a_run(part="test_new", needs=first.folder), a_run(seed=2)]
    assert list(waiting(runs, {first.folder}, {first.folder})) == [runs[2]]
    assert list(waiting(runs, {first.folder}, set())) == runs[1:]


def test_what_was_done_before_does_not_count(tmp_path, monkeypatch, capsys):
    runs = [a_run(seed=seed) for seed in (1, 2, 3, 4)]
    monkeypatch.setattr("os.path.exists", lambda path: "/3/" in path)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("tools.running.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    with Lines(runs) as console:
        console.taken_over(runs[0], results(), "")
        console.begins(runs[1])
        clock.now = 20.0
        console.made(runs[1], results(93.14))
    assert capsys.readouterr().out.splitlines() == [
        "run 1 of 4  CoOp  shapes  seed 1  all   50.0 %  done before",
        "run 2 of 4  CoOp  shapes  seed 2  all   93.1 %    20 s; 20 s left"]


def test_a_run_that_goes_on_says_nothing_of_whole_ones(tmp_path, monkeypatch, capsys):
    """The last epoch of a run takes a moment; the next run takes its full time."""
    runs = [a_run(seed=seed) for seed in (1, 2)]
    folder = tmp_path / "[1]"
    monkeypatch.setattr(Run, "folder", property(lambda run: str(folder) if run is runs[0] else run.spec.output_dir))
    (folder / "prompt_learner").mkdir(parents=True)
    (folder / "prompt_learner" / "model-interrupted.pth.tar").touch()
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr("tools.running.console.time", SimpleNamespace(monotonic=lambda: clock.now))
    with Lines(runs) as console:
        console.begins(runs[0])
        clock.now = 3.0
        console.reached(runs[0], Point("", 50, 50, 1, 2, 0.5, 2.0))
        assert console.left() == Left(2.0, least=True)
        console.made(runs[0], results())
        assert console.left() is None
    assert capsys.readouterr().out == "run 1 of 2  CoOp  shapes  seed 1  all   50.0 %     3 s; time left not known\n"


@pytest.mark.parametrize("line", ["Warning: odd", "WARNING: odd", "** Note: odd", "/x: numbers do not compare with",
                                  "Backbone /x is not one of OpenAI's: other heads give wrong numbers"])
def test_what_must_be_seen_is_noticed(line):
    seen = []
    print(f"epoch [1/2]\nNotes on the run\nwarnings: 0\n{line}", file=NoticedLines(seen.append))
    assert seen == [line]


@pytest.mark.parametrize("jobs", ["1", pytest.param("2", marks=pytest.mark.slow)])
def test_what_is_listed_between_runs_is_not_shown(jobs, said):
    """To find that the numbers of another seed count, its data are listed; what is said of them is the log's."""
    lines, _ = said("base2new", "--trainer", "ZeroshotCLIP", "--jobs", jobs, seeds=("1", "2"), output=jobs)
    assert len(lines) >= 3 and all(re.match("run", line) for line in lines), lines


@given(st.floats(0, 1e7))
def test_durations_are_words(seconds):
    number, unit = re.match(r"(\d+) (s|min|h|d)", duration(seconds)).groups()
    size = {"s": 1, "min": 60, "h": 3600, "d": 86400}[unit]
    assert abs(int(number) * size - seconds) <= size and len(duration(seconds)) <= 11


# ---- in a terminal ----
@pytest.mark.parametrize("environment", [{}, pytest.param({"NO_COLOR": "1"}, marks=pytest.mark.slow)],
                         ids=["", "no colour"])
def test_live_lines_come_and_go(environment, words, tmp_path, plugin):
    def command():
        return train.command_line(lambda: protocol.main([
            *words("compare", "--trainer", "CoOp", "Warns", "--plugin", plugin), "OPTIM.MAX_EPOCH=40",
            "STORE.USE=False"]))  # with frozen features a step is too short to be seen

    written, status = terminal.in_terminal(command, environment=environment)
    assert status == 0, written
    assert re.search(r"CoOp +caltech101  seed 1  base  epoch +\d+/40  loss \d\.\d\d\d  \d+ s left", written)
    assert re.search(r"[012] of 4 runs", written)
    assert bool(re.search(r"\x1b\[(?:\d+;)*3\d", written)) == (not environment)  # the bar's colours
    lines, shown = terminal.screen(written)
    assert shown
    lines = [line for line in lines if line]
    assert [line[:10] for line in lines if line.startswith("run")] == [f"run {n} of 4" for n in (1, 2, 3, 4)]
    assert "told aside" in lines and not any("epoch" in line or "of 4 runs" in line for line in lines)
    warning = next(line for line in lines if line.startswith("Warning"))
    assert r"[bold]1 of 9 things[/bold] are odd\x1b[2J" in warning
    assert [line.split()[0].strip("-") for line in lines[-5:]] == ["method", "", "CoOp", "Warns", "Figure:"]
    log = next((tmp_path / "out/base2new/train_base").rglob("CoOp/tiny/seed1/log.txt")).read_text()
    assert log.count("epoch [") == log.count("\nepoch [") == 40


def test_a_terminal_that_cannot_move_its_cursor_has_plain_lines(words):
    written, status = terminal.in_terminal(lambda: train.command_line(
        lambda: protocol.main(words("base2new", "--trainer", "ZeroshotCLIP"))), environment={"TERM": "dumb"})
    assert status == 0 and "\x1b" not in written
    assert re.findall("^run . of 2", written, re.M) == ["run 1 of 2", "run 2 of 2"]


def test_an_interruption_leaves_a_clean_terminal(words, monkeypatch):
    run, made = train.run, []

    def interrupted(*args):
        if made:
            raise KeyboardInterrupt
        made.append(1)
        return run(*args)

    monkeypatch.setattr(train, "run", interrupted)
    written, status = terminal.in_terminal(lambda: train.command_line(
        lambda: protocol.main(words("base2new", "--trainer", "CoOp"))))
    lines, shown = terminal.screen(written)
    lines = [line for line in lines if line and not line.startswith(("Backbone ", "2 runs, "))]
    assert status == 130 and shown and lines[0].startswith("run 1 of 2")
    assert lines[1] == "1 of 2 runs are done" and lines[-1].startswith("interrupted; ")


class Screen(io.StringIO):
    """A terminal that keeps what is written."""

    encoding = "ascii"

    def isatty(self):
        return True


def live_lines(runs, jobs=1, width=100, height=20):
    shown = Screen()
    found = Terminal(file=shown, force_terminal=True, width=width, height=height, markup=False, highlight=False)
    return live.LiveLines(runs, jobs, found), shown


HOSTILE = "[red]x\x1b[2J\x1b]8;;http://a\x07é"


def test_names_do_nothing_to_a_terminal():
    runs = [a_run("CoOp", HOSTILE)]
    console, shown = live_lines(runs)
    with console:
        console.begins(runs[0])
        console.reached(runs[0], Point("", 3, 10, 1, 2, 0.5, 61.0))
        console._live.refresh()
        print(HOSTILE)
        print(HOSTILE, file=sys.stderr)
        console.noticed(runs[0], f"Warning: {HOSTILE}")
        console.made(runs[0], results())
    written = shown.getvalue()
    assert "[red]x" in written and "\x1b[2J" not in written and "\x1b]8" not in written and "\x07" not in written
    assert r"[red]x\x1b[2J\x1b]8;;http://a\x07" in written and "epoch  3/10  loss 0.500  61 s left" in written
    assert all(ord(character) < 128 for line in written.splitlines() if line.startswith("Warning")
               for character in line)


def test_lines_are_cut_to_the_width_and_the_height():
    runs = [a_run(seed=seed, dataset="d" * 80) for seed in range(9)]
    console, shown = live_lines(runs, 9, width=50, height=8)
    with console:
        for run in runs:
            console.begins(run)
        console._live.refresh()
    last = shown.getvalue().split("of 9 runs")[-2].splitlines()
    lines = [re.sub(r"\x1b\[[\d;?]*[A-Za-z]|\r", "", line) for line in last]
    assert all(len(line) <= 50 - len("^C^C") for line in lines) and "and 4 more" in [line.rstrip() for line in lines]


def test_a_forked_process_does_not_wait_for_the_terminal():
    """A loader's worker is forked in any moment, also while the live lines are being drawn."""
    console, _ = live_lines([a_run()])
    with console, console._terminal._lock:
        pid = os.fork()
        if pid == 0:
            print("from a worker", file=sys.stdout, flush=True)
            os._exit(7)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 7


def test_what_is_said_of_the_backbone_is_said_once(capsys):
    runs = [a_run(), a_run("MetaPrompt"), a_run(dataset="dtd")]
    with Lines(runs) as console:
        for run in runs:
            console.noticed(run, "Backbone /x is not one of OpenAI's: other heads give wrong numbers")
    assert capsys.readouterr().out.count("\n") == 1


def test_half_a_line_is_printed_in_the_end():
    console, shown = live_lines([a_run()])
    with console:
        print("no end of line", end="")
    assert "no end of line" in shown.getvalue() and sys.stdout is not console


def test_an_encoding_that_lacks_a_character_ends_nothing(monkeypatch):
    """A line that is cut ends with one character of three dots, bars are drawn, and Latin-1 has neither."""
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "40")

    class Latin(io.TextIOWrapper):
        def isatty(self):
            return True

    kept = io.BytesIO()
    found = live.terminal_of(Latin(kept, encoding="latin-1", write_through=True))
    runs = [a_run(dataset=f"\u043a\u043e\u0442{'d' * 80}")]
    with live.LiveLines(runs, 1, found) as console:
        console.begins(runs[0])
        console._live.refresh()
        console.noticed(runs[0], "Warning: \u043a\u043e\u0442")
        console.made(runs[0], results())
    written = kept.getvalue().decode("latin-1")
    assert "CoOp  ???ddd" in written and r"Warning: \u043a\u043e\u0442" in written and "run 1 of 1" in written


@pytest.mark.parametrize(("name", "is_one"), [("xterm", True), ("dumb", False), ("unknown", False)])
def test_which_streams_are_terminals(name, is_one, monkeypatch):
    monkeypatch.setenv("TERM", name)
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert (live.terminal_of(EscapedStream(Screen())) is not None) == is_one
    assert live.terminal_of(io.StringIO()) is None and live.terminal_of(None) is None
    assert live.width_of(io.StringIO()) is None


# ---- tables in the terminal's width ----
TABLE = Table("t", ["method", *(f"a_dataset_{number}" for number in range(12)), "seconds per seed"],
              [[f"Method{'x' * 40} (variant)", *(Number(50.0 + number) for number in range(13))],
               ["CoOp", *(Number(70.0, 1.5) for _ in range(13))]])


def test_a_table_with_room_is_as_it_was():
    assert in_width(TABLE, None) == in_width(TABLE, 1000) == TABLE.render()


@pytest.mark.parametrize("width", [40, 60, 80, 120, 160])
def test_a_table_without_room_keeps_every_number(width):
    text = in_width(TABLE, width)
    assert max(map(len, text.splitlines())) <= width
    rows = [line.split() for line in text.splitlines()]
    assert sum(row.count("+-") for row in rows) == 13
    assert {f"{50 + number}.00" for number in range(13)} <= {word for row in rows for word in row}
    assert all(f"a_dataset_{number}" in text for number in range(12))
    assert all(word in text for word in ("seconds", "per"))


# ---- the demo ----
def test_the_demo_is_two_comparisons(tmp_path, shapes_root, scripts):
    done = subprocess.run(["make", "-n", "--no-print-directory", "demo"], capture_output=True, text=True, check=True,
                          cwd=ROOT)
    assert done.stdout.splitlines()[-1] == "bash scripts/demo.sh"
    done = scripts("demo.sh", cwd=tmp_path, DRY_RUN="1", DATA=str(shapes_root))
    listed = [line.split()[-1] for line in done.stdout.splitlines() if line.startswith("to do")]
    assert len(listed) == 24 and all("/seed1" in line for line in listed)
    assert sum("/dg/" in line for line in listed) == 16


@pytest.mark.slow
def test_the_demo_prints_less_than_sixty_lines(tmp_path, shapes_root):
    done = subprocess.run(["bash", str(ROOT / "scripts" / "demo.sh"), "OPTIM.MAX_EPOCH=2"], capture_output=True,
                          text=True, check=True, cwd=tmp_path, env={**os.environ, "DATA": str(shapes_root)})
    lines = done.stdout.splitlines()
    assert len(lines) < 60 and done.stderr == ""
    assert sum(line.startswith("run ") for line in lines) == 24
    assert sum(line.startswith("method ") for line in lines) == sum(line.startswith("Figure: ") for line in lines) == 2
