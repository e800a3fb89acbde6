"""Shared fixtures: the tiny CLIP of the golden records, a drawn toy dataset, real images where TEST_DATA names them."""
import contextlib
import fcntl
import multiprocessing
import os
import signal
import sys
from pathlib import Path

import pytest
import torch
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests" / "golden"))
sys.path.insert(0, str(ROOT))

import tiny_clip  # noqa: E402

# The models are tiny: a second thread costs more than it brings, far more where another program uses the cores.
torch.set_num_threads(1)
os.environ.setdefault("OMP_NUM_THREADS", "1")
# The same examples every time; `--hypothesis-profile=default` looks for new ones.
settings.register_profile("repeatable", derandomize=True)
settings.load_profile("repeatable")


def pytest_addoption(parser):
    """Options of tests/conformance; pytest knows them only from a conftest.py of the folder it starts in."""
    group = parser.getgroup("conformance of a trainer")
    group.addoption("--trainer", action="append", default=[], metavar="NAME", help="check this one (repeatable)")
    group.addoption("--plugin", action="append", default=[], metavar="FILE", help="file that registers it (repeatable)")
    group.addoption("--cfg", metavar="FILE", help="its config; default configs/trainers/NAME/tiny.yaml if there is one")
    group.addoption("--opts", action="append", nargs=2, default=[], metavar=("KEY", "VALUE"),
                    help="a config option (repeatable)")


# ---- what the robustness suite counts ----
TALLY = pytest.StashKey[dict]()
COUNTED = {  # folder of tests, each of which is one input -> what the summary says of them
    "truth": "inputs that contradict themselves tried, {} refused in one line or given the number that is right",
    "security": "hostile files and situations tried, {} refused in one line or made harmless",
}
# Reports reach the process that prints the summary, whoever ran the test.
TRIED: dict[str, set[str]] = {mark: set() for mark in COUNTED}
PASSED: dict[str, set[str]] = {mark: set() for mark in COUNTED}


def pytest_configure(config):
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in a shell's background; runs then ignore it, too
        signal.signal(signal.SIGINT, signal.default_int_handler)
    config.stash[TALLY] = {"inputs": set(), "refused": set(), "kills": 0, "survived": 0}


def pytest_runtest_logreport(report):
    for mark in COUNTED:
        if mark in report.keywords and report.when == "call" and not report.skipped:
            TRIED[mark].add(report.nodeid)
            if report.passed:
                PASSED[mark].add(report.nodeid)


@pytest.hookimpl(tryfirst=True)  # before the items are chosen by their marks
def pytest_collection_modifyitems(items):
    """What lies in a folder of COUNTED has its name as a mark."""
    for item in items:
        for mark in COUNTED:
            if ROOT / "tests" / mark in item.path.parents:
                item.add_marker(getattr(pytest.mark, mark))


def pytest_sessionfinish(session):
    if hasattr(session.config, "workeroutput"):  # one of several processes (pytest -n): what it counted is added up
        tally = session.config.stash[TALLY]
        session.config.workeroutput["tally"] = {key: sorted(value) if isinstance(value, set) else value
                                                for key, value in tally.items()}
    for child in multiprocessing.active_children():  # of loaders that tests have dropped; the exit would wait for them
        child.kill()


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node):
    tally = node.config.stash[TALLY]
    for key, value in getattr(node, "workeroutput", {}).get("tally", {}).items():
        tally[key] = tally[key] | set(value) if isinstance(value, list) else tally[key] + value


def pytest_terminal_summary(terminalreporter, config):
    tally = config.stash[TALLY]
    if tally["inputs"] or tally["kills"]:
        terminalreporter.section("robustness")
        terminalreporter.write_line(
            f"{len(tally['inputs'])} distinct bad inputs tried, {len(tally['refused'])} refused in one line with exit "
            f"status 2 and no results; {tally['survived']} of {tally['kills']} kills and stops survived with the same "
            "numbers")
    for mark, said in COUNTED.items():
        if TRIED[mark]:
            terminalreporter.section(mark)
            terminalreporter.write_line(f"{len(TRIED[mark])} distinct {said.format(len(PASSED[mark]))}")


@pytest.fixture(scope="session")
def tally(pytestconfig):
    """{"inputs", "refused": sets of names, "kills", "survived": numbers}, printed at the end."""
    return pytestconfig.stash[TALLY]


@pytest.fixture(scope="session")
def clip_file(tmp_path_factory):
    """The tiny CLIP as a weights file."""
    path = tmp_path_factory.mktemp("clip") / "tiny.pt"
    torch.save(tiny_clip.state_dict(), path)
    return str(path)


@pytest.fixture(scope="session")
def clip_model(clip_file):
    from prompting import load_clip

    return load_clip(clip_file)


@pytest.fixture(scope="session")
def towers(clip_model):
    from prompting import Towers

    return Towers(clip_model)


@pytest.fixture(scope="session", autouse=True)
def registries():
    """Everything this project registers."""
    import train

    train.discover()


@pytest.fixture(scope="session")
def real_data():
    """The folder of real images; the test is skipped without it."""
    folder = os.environ.get("TEST_DATA")
    if not folder:
        pytest.skip("TEST_DATA is not set")
    return Path(folder)


@pytest.fixture(scope="session")
def clips(clip_file, clip_model):
    """What `train.main` takes to load the tiny CLIP once."""
    return {clip_file: clip_model}


@pytest.fixture(scope="session")
def drawn_root(tmp_path_factory):
    """A DATASET.ROOT with drawn miniatures of Caltech101 and PACS."""
    import drawn

    root = tmp_path_factory.mktemp("data")
    drawn.write_caltech(root)
    drawn.write_pacs(root)
    return root


@pytest.fixture(scope="session")
def shapes_root(tmp_path_factory):
    """A data folder into which Shapes is drawn once, for all processes of `pytest -n`."""
    from datasets.shapes import write_shapes

    own = tmp_path_factory.getbasetemp()
    root = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "shapes_data"
    root.mkdir(exist_ok=True)
    with open(root / ".lock", "w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)  # the others wait, and find it there
        write_shapes(str(root / "shapes"))
    return root


@pytest.fixture(scope="session")
def tiny_config(tmp_path_factory):
    """A method config for the tiny CLIP: two epochs in batches of four."""
    import drawn

    path = tmp_path_factory.mktemp("config") / "tiny.yaml"
    path.write_text(drawn.CONFIG)
    return str(path)


@pytest.fixture
def arguments(drawn_root, tiny_config, clip_file):
    """(trainer, output, *words) -> the words of a run on the drawn Caltech101, or on the drawn PACS."""

    def build(trainer, output, *words, dataset="caltech101", root=drawn_root, seed=1, backbone=clip_file,
              config=tiny_config):
        return ["--root", str(root), "--seed", str(seed), "--trainer", trainer, "--backbone", str(backbone),
                "--dataset-config-file", str(ROOT / "configs" / "datasets" / f"{dataset}.yaml"),
                "--config-file", str(config), "--output-dir", str(output), *map(str, words)]

    return build


@pytest.fixture
def one_line(capsys, tmp_path):
    """Call what must be refused and return its line: exit status 2, nothing but one line on stderr that begins with
    "error: ", and (with `results=False`) no new results.json."""
    import train

    def one_line(function, results=False):
        before = set(tmp_path.rglob("results.json"))
        capsys.readouterr()
        status = train.command_line(function)
        told = capsys.readouterr().err
        lines = [line for line in told.splitlines() if line.startswith("error: ")]
        assert status == 2, told
        assert len(lines) == 1 and "Traceback" not in told, told
        assert results or set(tmp_path.rglob("results.json")) == before
        return lines[0]

    return one_line


@pytest.fixture(scope="session")
def copied_scripts(tmp_path_factory):
    """The folder of the scripts with a python that prints its words (scripted.py)."""
    from scripted import copy_of_scripts

    return copy_of_scripts(tmp_path_factory.mktemp("copy") / "home")


@pytest.fixture
def scripts(copied_scripts, monkeypatch, capsys):
    """(script, *words, cwd=, **variables) -> what the script prints and returns; Python's part is done in this process.
    """
    from scripted import Scripts

    return Scripts(copied_scripts, monkeypatch, capsys)


@contextlib.contextmanager
def registered_for_a_while():
    """What is registered within it, by a plugin or by itself, is forgotten after it."""
    import train
    from protocols import PROTOCOL_REGISTRY

    modules = set(sys.modules)
    kept = [(registry, dict(registry._objects), dict(registry.replaced))
            for registry in (*train.REGISTRIES, PROTOCOL_REGISTRY)]
    try:
        yield
    finally:
        for registry, objects, replaced in kept:
            registry._objects, registry.replaced = objects, replaced
        for name in set(sys.modules) - modules:
            if name.startswith("plugin_"):
                del sys.modules[name]


@pytest.fixture(autouse=True)
def own_registries():
    """No other test compares, lists or runs what a test registers."""
    with registered_for_a_while():
        yield


@pytest.fixture(scope="session")
def resnet_file(tmp_path_factory):
    """A tiny ResNet CLIP as a weights file."""
    from clip.model import CLIP
    from safetensors.torch import save_file

    torch.manual_seed(0)
    model = CLIP(embed_dim=64, image_resolution=32, vision_layers=(1, 1, 1, 1), vision_width=16,
                 vision_patch_size=None, context_length=77, vocab_size=49408, transformer_width=64, transformer_heads=1,
                 transformer_layers=2)
    path = tmp_path_factory.mktemp("resnet") / "tiny_resnet.safetensors"
    save_file({name: tensor.contiguous() for name, tensor in model.state_dict().items()}, path)
    return str(path)
