"""What is known before the first run: one list of all that stands in the way, what the runs need; nothing written."""
import re
import shutil
from pathlib import Path

import drawn
import pytest
import torch
import yaml
from fake_slurm import FakeSlurm
from packed import zipped
from safetensors.torch import save_file
from test_prepare_data import server, source  # noqa: F401

import train
from dassl.utils import InputError
from harness import make_trainer
from prompting.image_size import image_size
from prompting.published import PUBLISHED
from prompting.weights import SHIPPED, published_urls
from tools import protocol
from tools.downloads.sources import SOURCES, File
from tools.running import dry_run, estimates, preflight, prepare, timing
from tools.running.trials import Trials
from trainers.coop import CoOp

ROOT = Path(__file__).resolve().parents[1]


def state_of_vit(resolution, patch):
    from clip.model import CLIP

    torch.manual_seed(0)
    return CLIP(embed_dim=64, image_resolution=resolution, vision_layers=2, vision_width=64, vision_patch_size=patch,
                context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1,
                transformer_layers=2).state_dict()


@pytest.fixture(scope="module")
def large_file(tmp_path_factory):
    """A CLIP of random weights that takes images of 336 pixels."""
    path = tmp_path_factory.mktemp("large") / "large.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in state_of_vit(336, 112).items()}, path)
    return str(path)


@pytest.fixture
def words(drawn_root, tiny_config, clip_file, tmp_path):
    def words(name, *more, dataset=("caltech101",), root=drawn_root, backbone=clip_file, config=("--cfg", tiny_config),
              options=()):
        return [name, *more, "--dataset", *dataset, *config, "--root", str(root), "--output", str(tmp_path / "out"),
                "--shots", "1", "--backbone", str(backbone), "OPTIM.MAX_EPOCH", "1", *options]

    return words


@pytest.fixture
def refused(words, capsys, tmp_path, monkeypatch):
    """(as `words`) -> (list, last line) of a command that must run nothing and write nothing."""
    def refused(*args, **kwargs):
        monkeypatch.setattr(train, "run", None)  # a run would not be refused, but break
        capsys.readouterr()
        assert train.command_line(lambda: protocol.main(words(*args, **kwargs))) == 2
        said = capsys.readouterr()
        assert said.err.count("\n") == 1 and said.err.startswith("error: "), said.err
        assert not (tmp_path / "out").exists()
        return [line for line in said.out.splitlines() if line.startswith("  - ")], said.err

    return refused


# ---- what stands in the way ----
def test_eleven_datasets_that_are_not_there_are_one_list(tmp_path, scripts):
    done = scripts("reproduce_table.sh", "base2new", cwd=tmp_path, SEEDS="1 2 3")
    assert done.returncode == 2 and not list(tmp_path.iterdir())
    lines = (done.stdout + done.stderr).splitlines()
    assert len(lines) < 30, done.stdout
    assert lines[0] == "132 of 132 runs cannot be made:"
    assert [re.search(r"metaprompt data (\w+)", line)[1] for line in lines[1:12]] == [
        "imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101", "fgvc_aircraft",
        "sun397", "dtd", "eurosat", "ucf101"]
    assert all(line.endswith("(12 runs)") for line in lines[1:12])
    assert done.stderr == ("error: nothing was run: 11 problems, see the list above; --prepare (PREPARE=1) gets what "
                           "can be fetched\n")


def test_one_cause_is_one_line_with_the_runs_it_hits(refused):
    listed, error = refused("base2new", "--trainer", "CoOp", "--seeds", "1", "2", backbone="ViT-B/17")
    assert listed == [] and "(nothing was run: 4 of 4 runs cannot be made)" in error
    assert "backbone 'ViT-B/17' is neither a file nor" in error and "did you mean 'ViT-B/16'" in error


def test_all_causes_are_in_one_list(refused, resnet_file, tmp_path):
    """Of data, of a method and the backbone, of settings; what hits a run twice is told twice."""
    listed, error = refused("compare", "--trainer", "CoOp", "VPT", "--seeds", "1", dataset=("caltech101", "dtd"),
                            backbone=resnet_file, options=("OPTIM.NAME", "sgdd"))
    told = sorted(re.search(r"(dtd|ResNet|sgdd).*(\(\d+ runs\))$", line).groups() for line in listed)
    assert told == [("ResNet", "(4 runs)"), ("dtd", "(4 runs)"), ("sgdd", "(4 runs)")] and "3 problems" in error
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("options", "told"), [
    (("INPUT.SIZE", "(224,224)"), "the backbone"), (("OPTIM.LR_SCHEDULER", "cosinus"), "cosinus"),
    (("TRAINER.COOP.N_CTX", "0"), "N_CTX"), (("TRAINER.COOP.N_CTX", "90"), "77"), (("OPTIM.RATE", "1"), "unknown key")])
def test_what_a_trainer_refuses_is_known_before(refused, options, told):
    _, error = refused("fewshot", "--trainer", "CoOp", "--seeds", "1", "2", options=options)
    assert told in error and "2 of 2 runs" in error


def test_batches_that_the_images_do_not_suffice_for(refused, words, shapes_root, capsys):
    """One shot of 40 classes in each of three source domains, for a batch of 50 of each."""
    by_domain = ("DATALOADER.TRAIN_X.SAMPLER", "SeqDomainSampler", "DATALOADER.TRAIN_X.BATCH_SIZE")
    where = {"dataset": ("shapes",), "root": shapes_root}
    listed, error = refused("dg", "--trainer", "CoOp", "--seeds", "1", **where, options=(*by_domain, "150"))
    assert listed == [] and "4 of 4 runs" in error and "one has 40; make the batch" in error
    enough = words("dg", "--trainer", "CoOp", "--seeds", "1", **where, options=(*by_domain, "120"))
    protocol.main([*enough, "--preflight"])
    assert "4 runs, 0 done" in capsys.readouterr().out


def test_a_file_that_is_no_clip(refused, tmp_path):
    torch.save({"a": torch.zeros(2)}, tmp_path / "other.pt")
    _, error = refused("fewshot", "--trainer", "CoOp", "--seeds", "1", backbone=tmp_path / "other.pt")
    assert "is not a CLIP state dict" in error and "1 of 1 runs" in error


def test_what_a_trainer_in_dassls_style_calls_its_backbone_is_its_affair(words):
    plugin = str(ROOT / "tests" / "plugins" / "habits.v2.py")
    said = protocol.main(words("fewshot", "--trainer", "Guess", "--seeds", "1", "--plugin", plugin, "--preflight",
                               backbone="resnet18"))
    assert said.startswith("1 run, 0 done\n")


def test_a_trainer_that_wants_all_classes_is_given_them(words, monkeypatch):
    """Its own rule, such as a text for each class, may not hold for a few of them."""
    build, seen = CoOp.build_model, []

    def wants_four(self, towers, classnames):
        seen.append(len(classnames))
        if len(classnames) < 4:
            raise InputError("four classes are needed")
        return build(self, towers, classnames)

    monkeypatch.setattr(CoOp, "build_model", wants_four)
    said = protocol.main(words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--dry-run"))
    assert said.startswith("to do") and seen[0] == 3 < seen[1]


@pytest.mark.parametrize("below", ["", "deeper/out"])
def test_an_output_that_is_a_file(words, tmp_path, below, capsys):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "file").touch()
    given = [*words("fewshot", "--trainer", "CoOp", "--seeds", "1"), "--output", str(tmp_path / "out" / "file" / below)]
    assert train.command_line(lambda: protocol.main(given)) == 2
    error = capsys.readouterr().err
    assert f"{tmp_path / 'out' / 'file'} is no folder" in error and "1 of 1 runs cannot be made" in error


def test_a_disk_without_room(refused, monkeypatch):
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    _, error = refused("base2new", "--trainer", "CoOp", "--seeds", "1")
    assert "no room in" in error and "1 kB are free" in error


def test_an_output_that_cannot_be_written_to(refused, monkeypatch):
    monkeypatch.setattr(estimates.os, "access", lambda path, mode: False)
    assert "cannot write to" in refused("base2new", "--trainer", "CoOp", "--seeds", "1")[1]


def test_weights_that_are_to_be_downloaded_need_room(words, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(estimates, "CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(estimates, "at_hand", lambda name: False)
    config = ROOT / "configs" / "trainers" / "CoOp" / "vit_b16.yaml"
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--preflight", backbone="ViT-L/14@336px",
                 config=("--cfg", str(config)))
    told = protocol.main(argv)
    assert "ViT-L/14@336px (about 891 MB) will be downloaded" in told and "not measured: ViT-L/14@336px" in told
    usage = shutil.disk_usage("/")
    monkeypatch.setattr(estimates.shutil, "disk_usage", lambda path: usage._replace(free=10**9))
    with pytest.raises(InputError, match="1 of 1 runs would be refused"):
        protocol.main(argv)
    assert "1.78 GB for the weights of the CLIP" in capsys.readouterr().out


# ---- what is made all the same ----
def test_what_is_done_does_not_count(words, drawn_root, tmp_path, capsys):
    """Its data are gone: it is taken over all the same, and another seed is refused."""
    shutil.copytree(drawn_root, tmp_path / "data")
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", root=tmp_path / "data")
    table = protocol.main(argv)
    shutil.rmtree(tmp_path / "data" / "caltech-101")
    assert protocol.main(argv) == table
    argv.insert(argv.index("1"), "2")
    with pytest.raises(InputError, match=r"no dataset folder.*\(nothing was run: 1 of 2 runs cannot be made"):
        protocol.main(argv)


def test_the_others_are_made_with_keep_going(words, tmp_path, capsys):
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--keep-going", dataset=("dtd", "caltech101"))
    assert train.command_line(lambda: protocol.main(argv)) == 2
    said = capsys.readouterr()
    assert "1 of 2 runs cannot be made:\n  - no dataset folder at" in said.out
    assert said.err.startswith("error: 1 of 2 runs failed: no dataset folder at")
    assert [path.parts[-6] for path in (tmp_path / "out").rglob("results.json")] == ["caltech101"]
    assert not (tmp_path / "out" / "fewshot" / "dtd").exists()
    argv.remove("--keep-going")
    with pytest.raises(InputError, match="--keep-going"):
        protocol.main(argv)


def test_a_bug_is_told_by_the_run(words, monkeypatch):
    """Not by what looks at it before."""
    def broken(self, cfg):
        raise KeyError("a bug")

    monkeypatch.setattr(preflight.DATASET_REGISTRY.get("Caltech101"), "__init__", broken)
    with pytest.raises(KeyError, match="a bug"):
        protocol.main(words("fewshot", "--trainer", "CoOp", "--seeds", "1"))


# ---- what the runs need ----
def test_a_preflight_tells_what_the_runs_need_and_writes_nothing(words, tmp_path, capsys):
    before = sorted(map(str, tmp_path.rglob("*")))
    told = protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", "2", "--preflight"))
    assert told.startswith("4 runs, 0 done\ndisk:    about ")
    assert re.search(r"^time:    about \d+ s one after another, less with what the feature store has; from a step and "
                     r"a batch of an evaluation, timed 1 time on \d+ CPU threads?$", told, re.M), told
    assert capsys.readouterr().out == told + "\n" and sorted(map(str, tmp_path.rglob("*"))) == before


def test_a_dry_run_tells_it_behind_its_list(words):
    told = protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", "--dry-run"))
    lines = told.splitlines()
    assert [line[:5] for line in lines] == ["to do", "to do", "2 run", "disk:"]


def test_the_room_that_is_told_is_about_what_the_runs_leave(words, tmp_path, capsys):
    argv = words("fewshot", "--trainer", "CoOp", "MetaPrompt", "--seeds", "1", options=("OPTIM.MAX_EPOCH", "3"))
    argv[0:1] = ["compare", "--protocol", "fewshot"]
    told = protocol.main([*argv, "--dry-run"])
    protocol.main(argv)
    left = sum(path.stat().st_size for path in (tmp_path / "out").rglob("*")
               if path.is_file() and "features" not in path.parts)  # which are told apart
    number = float(re.search(r"about (\d+) kB to write", told)[1]) * 1000
    assert 0.5 < number / left < 2


def test_the_time_follows_from_a_step(words, monkeypatch):
    monkeypatch.setattr(timing, "time_run", lambda run, clips: timing.Timed(1.0, 100.0, 10.0, 5))
    told = protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", "--preflight", "--jobs", "2"))
    # 3 classes with 1 shot in batches of 4: one step; two halves of 9 test images
    assert "about 2 min one after another; 2 at a time: 69 s at best" in told


def test_what_cannot_be_timed_says_why(words, monkeypatch):
    def broken(run, clips):
        raise InputError("needs a cup of tea")

    monkeypatch.setattr(timing, "time_run", broken)
    assert "time:    not measured: needs a cup of tea" in protocol.main(
        words("fewshot", "--trainer", "CoOp", "--seeds", "1", "--preflight"))


def test_the_array_of_a_dry_run(words, tmp_path, monkeypatch):
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    told = protocol.main(words("base2new", "--trainer", "CoOp", "--seeds", "1", "2", "3", "--launcher", "slurm",
                               "--gpus", "0", "--cpus", "2", "--time", "1:30", "--mem", "8G", "--partition", "big",
                               "--array-parallelism", "2", "--slurm", "constraint=a100", "--dry-run"))
    assert told.splitlines()[-2:] == [
        "Slurm:   one array job base2new-CoOp of 3 tasks, 2 runs in each one after another, at most 2 tasks at once",
        "         each task: partition big, time 1:30, gpus 0, cpus 2, mem 8G, requeue, constraint a100 "
        "(not submitted)"]
    assert not slurm.jobs() and not (tmp_path / "out").exists()


# ---- --prepare ----
def test_prepare_gets_what_is_missing(server, source, words, tmp_path, capsys):  # noqa: F811
    drawn.write_pacs(tmp_path / "made")
    made = tmp_path / "made"
    server.files["pacs.zip"] = zipped({str(path.relative_to(made)): path.read_bytes()
                                       for path in made.rglob("*") if path.is_file()})
    source("pacs", File(f"{server.url}/pacs.zip", {"pacs/images": "pacs/images", "pacs/splits": "pacs/splits"}),
           expected={"classes": 4, "art_painting": 20, "cartoon": 20, "photo": 20, "sketch": 20})
    argv = words("dg", "--trainer", "CoOp", "--seeds", "1", "--prepare", "--preflight", dataset=("pacs",),
                 root=tmp_path / "data")
    assert "4 runs, 0 done" in protocol.main(argv) and (tmp_path / "data" / "pacs" / "images").is_dir()
    server.log.clear()
    protocol.main(argv)
    assert server.log == []


def test_what_cannot_be_fetched_is_told_with_its_steps(source, refused, tmp_path):  # noqa: F811
    source("stanford_cars", by_hand=SOURCES["stanford_cars"].by_hand)
    _, error = refused("base2new", "--trainer", "CoOp", "--seeds", "1", "--prepare", dataset=("stanford_cars",),
                       root=tmp_path / "data")
    assert "no dataset folder at" in error and "by hand: Stanford Cars: the server of its images is gone" in error


def test_weights_that_cannot_be_fetched_are_a_problem(refused, monkeypatch):
    def gone(name, cache):
        raise preflight_error("cannot download the CLIP weights")

    from prompting import PromptingError as preflight_error

    monkeypatch.setattr(prepare, "read_weights", gone)
    monkeypatch.setattr(prepare, "missing_weights", lambda runs: ["ViT-B/16"])
    _, error = refused("fewshot", "--trainer", "CoOp", "--seeds", "1", "--prepare", backbone="ViT-B/16",
                       options=("INPUT.SIZE", "(224,224)"))
    assert "cannot download the CLIP weights" in error


def test_prepare_is_not_for_a_look(words):
    with pytest.raises(InputError, match="--prepare fetches"):
        protocol.main(words("fewshot", "--trainer", "CoOp", "--prepare", "--dry-run"))


# ---- the size of the images ----
def test_a_clip_of_336_pixels_just_runs(words, large_file, tmp_path):
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1", backbone=large_file, config=(),
                 options=("DATALOADER.NUM_WORKERS", "0"))
    protocol.main(argv)
    [stored] = (tmp_path / "out").rglob("config.yaml")
    assert yaml.safe_load(stored.read_text())["INPUT"]["SIZE"] == [336, 336] and "/vit_b16/" in str(stored)
    assert "1 run, 1 done" in protocol.main([*argv, "--dry-run"])


def size_of(*words):
    return train.build_config(train.parse_arguments(["--trainer", "CoOp", "--output-dir", "out", *words])).INPUT.SIZE


def test_the_size_is_the_backbones_unless_something_says_otherwise(clip_file, large_file, resnet_file, tmp_path):
    config = ("--config-file", str(ROOT / "configs" / "trainers" / "CoOp" / "vit_b16.yaml"))
    sizes = {"ViT-B/16": 224, "ViT-L/14@336px": 336, "RN50x4": 288, "RN50x16": 384, "RN50x64": 448, "tiny": 64,
             clip_file: 32, large_file: 336, resnet_file: 32}
    assert {name: size_of(*config, "--backbone", name) for name in sizes} == {
        name: (size, size) for name, size in sizes.items()}
    assert size_of(*config, "--backbone", "RN50x4", "INPUT.SIZE", "(96,96)") == (96, 96)
    own = tmp_path / "own.yaml"
    own.write_text(f"BASE: {config[1]}\nINPUT: {{SIZE: [48, 48]}}\n")
    assert size_of("--config-file", str(own), "--backbone", "RN50x4") == (48, 48)
    own.write_text(f"BASE: [{config[1]}, {ROOT / 'configs' / 'inputs' / 'clip64.yaml'}]\n")
    assert size_of("--config-file", str(own), "--backbone", "RN50x4") == (64, 64)
    assert size_of(*config, "--backbone", str(tmp_path / "gone.pt")) == (224, 224)  # which is told when it is loaded


def test_no_shipped_config_of_a_method_names_a_size():
    for path in (ROOT / "configs" / "trainers").rglob("*.yaml"):
        words = ("--config-file", str(path), "--trainer", path.parent.name, "--backbone", "RN50x4")
        assert size_of(*words, "DATASET.NUM_SHOTS", "1") == (288, 288)


def test_sizes_are_read_from_any_file(tmp_path):
    assert list(PUBLISHED) == list(published_urls()) and all(image_size(name) for name in (*PUBLISHED, *SHIPPED))
    state = state_of_vit(48, 16)
    torch.save(state, tmp_path / "new.pt")
    torch.save({"state_dict": state}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert image_size(str(tmp_path / "new.pt")) == image_size(str(tmp_path / "old.pt")) == 48
    (tmp_path / "torn.pt").write_bytes(b"torn")
    (tmp_path / "torn.safetensors").write_bytes(b"torn")
    assert image_size(str(tmp_path / "torn.pt")) is image_size(str(tmp_path / "torn.safetensors")) is None
    torch.save(state_of_vit(64, 16), tmp_path / "new.pt")
    assert image_size(str(tmp_path / "new.pt")) == 64


# ---- methods ----
@pytest.mark.parametrize(("method", "numbers"), [("CoOp", 2048), ("MaPLe", 3555072), ("VPT", 73728),
                                                 ("LinearProbe", 51300)])
def test_a_stand_in_says_how_large_checkpoints_will_be(method, numbers):
    """As trained with ViT-B/16, which is not here; SGD keeps a second number for each."""
    cfg = train.build_config(train.parse_arguments([
        "--trainer", method, "--seed", "1", "--output-dir", "out", "--config-file",
        str(ROOT / "configs" / "trainers" / method / "vit_b16.yaml")]))
    trials = Trials({})
    found = trials.of(cfg, ["a class", "another class", "the third one"], 100)
    assert found.problem == "" and found.numbers in (2 * numbers, 3 * numbers)
    assert not trials.clips  # what stands in is never computed with


@pytest.mark.parametrize(("method", "copies"), [("FineTune", 3), ("WiSEFT", 4), ("CLIPood", 5)])
def test_what_an_evaluation_takes_counts_in_the_size_of_a_checkpoint(method, copies, clips, clip_model):
    """AdamW's two numbers beside each weight; WiSE-FT's mixture; CLIPood's average, for itself and for others."""
    cfg = make_trainer(method, clip_model, ["cat", "dog"], settings={"OPTIM.NAME": "adamw"}).cfg.clone()
    cfg.defrost()
    cfg.MODEL.BACKBONE.NAME = next(iter(clips))
    tower = sum(p.numel() for p in clip_model.visual.parameters()) + (0 if method == "CLIPood" else 2 * 65)
    assert Trials(clips).of(cfg, ["cat", "dog"], 2).numbers == copies * tower


def test_the_look_of_a_start_is_silent(words, capsys):
    argv = words("fewshot", "--trainer", "CoOp", "--seeds", "1")
    args = protocol.parse_arguments(argv)
    protocol.check_arguments(args)
    runs = protocol.Planner(args.root, args.output, args.seeds, args.cfg, args.backbone, (), args.opts).plan(
        "fewshot", args.trainer, args.dataset, args.shots)
    assert dry_run.require_ready(runs, args, {}) == {}
    said = capsys.readouterr()
    assert said.err == "" and re.fullmatch(r"1 run, 0 done; about \d+ kB to write and up to 4.1 GB of features in \S+, "
                                          r"\S+ GB free\n", said.out)
