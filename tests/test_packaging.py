"""What is installed: the wheel of the libraries, the console command of a checkout, and a package of one's own on top.

The environments are fresh, but share this one's other packages: a `.pth` file names their folder. A checkout that is
installed here is not found there, as it hangs on a `.pth` file of its own, and such files are read of the environment's
own folders only.
"""
import ast
import email
import importlib.metadata
import json
import os
import re
import shutil
import site
import subprocess
import sys
import sysconfig
import venv
import zipfile
from pathlib import Path

import pytest
import yaml
from conftest import ROOT
from packaging.requirements import Requirement

import metaprompt

pytest.importorskip("pip")
LIBRARIES = ("dassl", "prompting", "training")
PLUGIN = ROOT / "tests" / "plugins" / "package"
STAND_IN = 'WHOSE = "of Hugging Face"\n'  # of another package of the name `datasets`
WHO = f"import datasets, {', '.join(LIBRARIES)}; print(datasets.WHOSE, *(m.__file__ for m in ({', '.join(LIBRARIES)})))"


class Environment:
    """A virtual environment in `folder`.

    Attributes:
        packages: the folder of what is installed.
    """

    def __init__(self, folder):
        self.folder = Path(folder)
        venv.create(folder, symlinks=True)
        [self.packages] = self.folder.glob("lib/python*/site-packages")
        shared = {sysconfig.get_path("purelib"), sysconfig.get_path("platlib"), *site.getsitepackages()}
        (self.packages / "shared.pth").write_text("".join(f"{path}\n" for path in sorted(shared)))
        (self.packages / "datasets").mkdir()
        (self.packages / "datasets" / "__init__.py").write_text(STAND_IN)

    def install(self, *words):
        """pip install, from what is here alone; a package of that name in the shared folder does not count."""
        self("python", "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
             "--ignore-installed", "--disable-pip-version-check", *words)

    def __call__(self, program, *words, check=True, **environment):
        """A finished program of the environment, called where nothing can be imported by chance."""
        inherited = {name: value for name, value in os.environ.items() if not name.startswith("PYTHON")}
        done = subprocess.run([self.folder / "bin" / program, *map(str, words)], cwd=self.folder, text=True,
                              capture_output=True, timeout=300, check=False,
                              env=inherited | {"OMP_NUM_THREADS": "1"} | environment)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done


@pytest.fixture(scope="module")
def checkout(tmp_path_factory):
    """A copy of the repository: what an installation writes into one stays out of this."""
    top = tmp_path_factory.mktemp("checkout") / "with space"
    return Path(shutil.copytree(ROOT, top, ignore=lambda folder, names: {
        name for name in names if name.startswith(".") or name.endswith((".egg-info", "__pycache__")) or (
            Path(folder) == ROOT and name in ("benchmarks", "build", "data", "dist", "docs", "output", "tests"))}))


@pytest.fixture(scope="module")
def wheel(checkout, tmp_path_factory):
    """The wheel, as `pip wheel . --no-deps` makes it."""
    folder = tmp_path_factory.mktemp("wheel")
    source = shutil.copytree(checkout, folder / "source")
    subprocess.run([sys.executable, "-m", "pip", "wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation",
                    "--disable-pip-version-check", "--wheel-dir", folder, source], check=True)
    [file] = folder.glob("*.whl")
    return file


@pytest.fixture(scope="module")
def metadata(wheel):
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        return email.message_from_bytes(archive.read(name))


@pytest.fixture(scope="module")
def plugin(tmp_path_factory):
    """The source of the plugin's package, free for pip to build in."""
    return shutil.copytree(PLUGIN, tmp_path_factory.mktemp("plugin") / "package",
                           ignore=shutil.ignore_patterns("__pycache__", "*.egg-info", "build"))


@pytest.fixture(scope="module")
def with_wheel(wheel, plugin, tmp_path_factory):
    """An environment with the wheel and the plugin."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "wheel")
    environment.install(wheel, plugin)
    return environment


@pytest.fixture(scope="module")
def with_checkout(checkout, plugin, tmp_path_factory):
    """An environment with `pip install -e .` of a checkout, and the plugin."""
    environment = Environment(tmp_path_factory.mktemp("environments") / "checkout")
    environment.install("--editable", checkout)
    environment.install(plugin)
    return environment


# ---- the wheel ----
def test_the_wheel_holds_the_libraries_and_nothing_else(wheel):
    with zipfile.ZipFile(wheel) as archive:
        held = {name for name in archive.namelist() if ".dist-info/" not in name}
        console = archive.read(f"metaprompt-{metaprompt.__version__}.dist-info/entry_points.txt").decode()
        licence = archive.read(f"metaprompt-{metaprompt.__version__}.dist-info/licenses/LICENSE").decode()
    assert held == {"metaprompt.py"} | {
        str(path.relative_to(ROOT)) for library in LIBRARIES for path in (ROOT / library).rglob("*")
        if path.is_file() and path.suffix != ".pyc"}
    assert {"prompting/assets/tiny_clip.safetensors", "prompting/py.typed"} <= held
    assert console.split("\n")[:2] == ["[console_scripts]", "metaprompt = metaprompt:main"]
    assert licence == (ROOT / "LICENSE").read_text() and licence.startswith("MIT License\n")


def test_requirements_are_those_of_the_package(metadata):
    """requirements.txt is everything: what the package needs, and each of its extras."""
    def parts(lines):
        found = [Requirement(line) for line in lines]
        return {(part.name.lower(), str(part.specifier)) for part in found if part.name != "metaprompt"}

    lines = [line.partition("#")[0].strip() for line in (ROOT / "requirements.txt").read_text().splitlines()]
    assert parts(filter(None, lines)) == parts(metadata.get_all("Requires-Dist"))
    everything = [Requirement(line) for line in metadata.get_all("Requires-Dist") if 'extra == "all"' in line]
    assert {"all", *everything[0].extras} == set(metadata.get_all("Provides-Extra"))


def test_what_the_libraries_import_is_required(metadata):
    """Every package that a library imports is one that is installed with it."""
    required = {plain(Requirement(line).name) for line in metadata.get_all("Requires-Dist") if "extra ==" not in line}
    distributions = importlib.metadata.packages_distributions()
    imported = {name.partition(".")[0] for library in LIBRARIES for file in (ROOT / library).rglob("*.py")
                for node in ast.walk(ast.parse(file.read_bytes())) for name in names_in(node)}
    foreign = imported - {*sys.stdlib_module_names, *LIBRARIES, "pydantic_core"}  # the last is a part of pydantic
    assert {"torch", "clip", "yaml"} <= foreign
    assert {name for name in foreign if not required & set(map(plain, distributions.get(name, [name])))} == set()


def plain(distribution):
    """The name of a distribution as registries compare it."""
    return re.sub(r"[-_.]+", "-", distribution).lower()


def names_in(node):
    """The modules that a line imports; none where it is another line, or names a neighbour."""
    if isinstance(node, ast.Import):
        return [alias.name for alias in node.names]
    return [node.module] if isinstance(node, ast.ImportFrom) and node.module and not node.level else []


@pytest.mark.parametrize("extra", ["data", "slurm"])
def test_what_an_extra_brings_is_asked_for_in_one_line(extra, metadata, one_line, monkeypatch, tmp_path):
    from tools.downloads.drive import download_from_drive
    from tools.running.cluster import require_slurm

    [name] = [Requirement(line).name for line in metadata.get_all("Requires-Dist") if f'extra == "{extra}"' in line]
    monkeypatch.setitem(sys.modules, name, None)  # as if it were not installed
    call = {"data": lambda: download_from_drive("id", str(tmp_path / "file.zip")), "slurm": require_slurm}[extra]
    assert f"needs {name}, which is not installed here: pip install {name}" in one_line(call)


def test_one_version(metadata):
    cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    sections = re.findall(r"^## \[(\d[^]]*)\]", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert [metadata["Version"], cited["version"], sections[0]] == [metaprompt.__version__] * 3


def test_with_the_wheel_datasets_is_somebody_elses(with_wheel):
    whose, *files = with_wheel("python", "-c", WHO).stdout.rstrip().split(f"{with_wheel.packages}/")
    assert whose == "of Hugging Face " and [file.strip() for file in files] == [
        f"{library}/__init__.py" for library in LIBRARIES]


@pytest.mark.slow  # so does CI's job for the wheel
def test_with_the_wheel_a_package_of_ones_own_trains(with_wheel, tmp_path):
    done = with_wheel("python", "-m", "class_offsets.alone", tmp_path)
    accuracies = json.loads(done.stdout.splitlines()[-1])
    assert accuracies["before"] < 60 and accuracies["after"] > 80
    assert (tmp_path / "run" / "prompt_learner" / "model.pth.tar-15").is_file()


def test_with_the_wheel_the_command_says_where_the_programs_are(with_wheel):
    done = with_wheel("metaprompt", "report", "output", check=False)
    assert done.returncode == 2 and done.stdout == ""
    assert re.fullmatch(r"error: only the libraries are installed .*`pip install -e \.` in its folder\n", done.stderr)
    assert with_wheel("metaprompt", "--version").stdout == f"metaprompt {metaprompt.__version__}\n"


# ---- a checkout ----
def test_with_a_checkout_datasets_is_somebody_elses(with_checkout, checkout):
    whose, *files = with_checkout("python", "-c", WHO).stdout.rstrip().split(f"{checkout}/")
    assert whose == "of Hugging Face " and [file.strip() for file in files] == [
        f"{library}/__init__.py" for library in LIBRARIES]


def run_words(checkout, shapes_root, output):
    return ["--root", shapes_root, "--trainer", "ClassOffsets", "--seed", 1, "--output-dir", output,
            "--dataset-config-file", checkout / "configs" / "datasets" / "shapes.yaml", "--config-file",
            checkout / "configs" / "trainers" / "CoOp" / "tiny.yaml", "DATASET.NUM_SHOTS", 4, "OPTIM.LR", 0.1,
            "TEST.SPLIT", "val"]


@pytest.mark.parametrize("program", ["console", pytest.param("train.py", marks=pytest.mark.slow)])
def test_with_a_checkout_the_method_is_found_and_trains(program, with_checkout, checkout, shapes_root, tmp_path):
    """And the dataset of the program is this project's, although another package of that name is installed."""
    start = ["metaprompt", "train"] if program == "console" else ["python", checkout / "train.py"]
    words = run_words(checkout, shapes_root, tmp_path / "run")
    done = with_checkout(*start, *words, "OPTIM.MAX_EPOCH", 5, "DATALOADER.NUM_WORKERS", 1)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trainer"] == "ClassOffsets" and results["dataset"] == "Shapes"
    losses = [float(loss) for loss in re.findall(r"^epoch .* loss \S+ \((\S+)\)", done.stdout, re.MULTILINE)]
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_with_a_checkout_the_command_makes_runs_side_by_side(with_checkout, checkout, shapes_root, tmp_path):
    with_checkout("metaprompt", "compare", "--trainer", "ZeroshotCLIP", "CoOp", "--dataset", "shapes", "--seeds", 1,
                  "--root", shapes_root, "--output", tmp_path, "--jobs", 2, "--shots", 1, "OPTIM.MAX_EPOCH", 1)
    assert len(list(tmp_path.rglob("results.json"))) == 4
    table = with_checkout("metaprompt", "report", tmp_path).stdout
    assert "CoOp" in table and "ZeroshotCLIP" in table


@pytest.mark.slow
def test_with_a_checkout_processes_of_torchrun_start_the_command(with_checkout, checkout, shapes_root, tmp_path):
    words = run_words(checkout, shapes_root, tmp_path / "run")
    with_checkout("python", "-c", "from torch.distributed.run import main; main()", "--standalone",
                  "--nproc-per-node", 2, "--no-python", with_checkout.folder / "bin" / "metaprompt", "train", *words,
                  "OPTIM.MAX_EPOCH", 1)
    results = json.loads((tmp_path / "run" / "results.json").read_text())
    assert results["trainer"] == "ClassOffsets" and results["processes"] == 2


@pytest.mark.slow
def test_with_a_checkout_started_loader_workers_find_the_project(with_checkout, checkout, shapes_root, tmp_path):
    """Workers that are not forked, as with Python 3.14, begin with the console command."""
    (with_checkout.packages / "start.pth").write_text(
        "import multiprocessing, os; 'START' in os.environ and multiprocessing.set_start_method(os.environ['START'])\n")
    words = run_words(checkout, shapes_root, tmp_path / "run")
    with_checkout("metaprompt", "train", *words, "OPTIM.MAX_EPOCH", 1, "DATALOADER.NUM_WORKERS", 1, START="spawn")
    assert (tmp_path / "run" / "results.json").is_file()
