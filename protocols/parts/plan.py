"""What a protocol's plan is made of: datasets, runs, and the object that makes them."""
from __future__ import annotations

import os
import sys
from dataclasses import dataclass, field, fields
from typing import Any

from dassl.config import config_layers, get_cfg_default, merge_text
from dassl.config.per_dataset import require_no_entries
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, is_class_bound, require_own_folder
from dassl.utils.registry import nearest
from protocols.parts.place import Place
from runs.configs import Configs
from runs.run_spec import RunSpec, stem
from training.method import Method
from training.store.folder import NAME

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


@dataclass(frozen=True)
class Dataset:
    """A file of configs/datasets.

    Attributes:
        name: the file's, without its ending; run folders and tables call the dataset so.
        file: its path.
        registered: the dataset class.
        backbone: the CLIP it asks for, or "".
        root: its own DATASET.ROOT, which stands above a protocol's --root; or "".
    """

    name: str
    file: str
    registered: type
    backbone: str
    root: str = ""

    @classmethod
    def of(cls, name: str) -> Dataset:
        """The Dataset of a name in configs/datasets, or of a YAML file. Raises InputError where there is none."""
        file = config_file("datasets", name)
        config = get_cfg_default()
        layers = config_layers(file)
        require_no_entries(layers)
        for told, text in layers:
            merge_text(config, text, told)
        return cls(stem(file), file, DATASET_REGISTRY.get(config.DATASET.NAME), config.MODEL.BACKBONE.NAME,
                   config.DATASET.ROOT)

    @classmethod
    def all_of(cls, names: Any) -> list[Dataset]:
        """The Datasets of several names. Raises InputError for two files that would have the same run folders."""
        found = [cls.of(name) for name in names]
        for dataset in found:
            twin = next(other for other in found if other.name == dataset.name)
            if twin.file != dataset.file:
                raise InputError(f"{twin.file} and {dataset.file} would have the same run folders; rename one of them")
        return found

    def domains(self, root: str) -> list[str]:
        """Names of all domains below the data folder `root`, or its own; none for a dataset without domains."""
        listed = getattr(self.registered, "domain_names", None)
        return list(listed(self.root or root) if listed else getattr(self.registered, "domains", ()))


def config_path(folder: str, name: str) -> str:
    """Where a YAML file of configs/<folder> is, or would be."""
    return os.path.join(ROOT, "configs", folder, f"{name}.yaml")


def config_names(folder: str) -> list[str]:
    """The names of the YAML files of configs/<folder>; none where there is no such folder."""
    folder = os.path.dirname(config_path(folder, ""))
    return sorted(stem(f) for f in os.listdir(folder)) if os.path.isdir(folder) else []


def config_file(folder: str, name: str) -> str:
    """A YAML file by its name in configs/<folder>, or by its path. Raises InputError where there is none."""
    if name.endswith((".yaml", ".yml")):
        return name
    path = config_path(folder, name)
    if not os.path.isfile(path):
        known = config_names(folder)
        raise InputError(f"no config {path}{nearest(name, known)}; there are: {', '.join(known) or 'none'}; "
                         "or give a YAML file")
    return path


@dataclass(frozen=True)
class Run:
    """A run of a plan.

    Attributes:
        place: the cell of the tables that it fills.
        spec: what train.main is given.
        needs: the folder of the run whose prompts this one evaluates, or "".
        same: the folder of an earlier run of the plan that has this one's numbers, because the method reads no image
            that seed or shots choose; or "".
        configs: what the command has built so far, one object for all runs of a plan.
    """

    place: Place
    spec: RunSpec
    needs: str = ""
    same: str = ""
    configs: Configs = field(default_factory=Configs, compare=False, repr=False)

    @property
    def folder(self) -> str:
        """The run folder."""
        return self.spec.output_dir

    def check(self) -> Any:
        """The config of the run; nothing is run and no data are read.

        Raises:
            InputError: the config cannot give a number for a table, or a link below the output folder leads to the
                run folder."""
        require_own_folder(self.folder, below=self.folder.removesuffix(os.path.join(*self.place.folder.split("/"))))
        cfg = self.configs.of(self.spec)
        if cfg.TEST.NO_TEST or cfg.TEST.SPLIT != "test":
            raise InputError("a protocol's table needs test accuracies; leave out TEST.NO_TEST and TEST.SPLIT")
        return cfg


def class_bound(run: Run) -> bool:
    """Whether the method of a run belongs to its training classes with this config, and so cannot score new ones."""
    trainer = TRAINER_REGISTRY.get(run.place.trainer)
    says = next((vars(each)["class_bound"] for each in trainer.__mro__ if "class_bound" in vars(each)), False)
    if says is vars(Method)["class_bound"]:  # the method does not say anything of its own
        return False
    return is_class_bound(trainer, None if isinstance(says, bool) else run.check())


GIVEN = {"trainer", "dataset_config_file", "config_file", "output_dir", "root", "backbone", "seed", "plugins",
         "options", "protocol", "store_dir"}  # the fields of a RunSpec that RunMaker fills in


def _require_fields(protocol: str, more: dict[str, Any]) -> None:
    """Raise InputError that says where, unless RunSpec has these fields and RunMaker leaves them open."""
    known = {each.name for each in fields(RunSpec)} - GIVEN
    for name in more.keys() - known:
        frame = sys._getframe(1)
        while frame.f_code.co_filename == __file__ and frame.f_back:
            frame = frame.f_back
        raise InputError(f"{frame.f_code.co_filename}, line {frame.f_lineno}: protocol {protocol} gives a run the "
                         f"field '{name}'{nearest(name, known)}; there are: {', '.join(sorted(known))}")


@dataclass(frozen=True)
class RunMaker:
    """Makes the runs of one method on one dataset, with one number of shots and one seed. `Protocol.plan` is given one.

    Attributes:
        protocol, trainer, shots, seed: as in Place.
        dataset: the Dataset of --dataset.
        config: as in Place.
        config_file: the method's YAML file.
        root, output: the folders of the data and of all run folders.
        backbone: a CLIP by name or a weights file; "" leaves it to the configs.
        plugins: files or modules with more methods, datasets or protocols.
        options: config options of every run of this method, (KEY, VALUE, ...).
        configs: as in Run.
    """

    protocol: str
    trainer: str
    dataset: Dataset
    shots: int | None
    seed: int
    config: str
    config_file: str
    root: str
    output: str
    backbone: str = ""
    plugins: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    configs: Configs = field(default_factory=Configs, compare=False, repr=False)

    def run(self, part: str = "all", dataset: Dataset | None = None, options: tuple[str, ...] = (), needs: str = "",
            **more: Any) -> Run:
        """A run that trains on `dataset` (default: that of --dataset) and tests what it has learned.

        Args:
            part: what tells the run from the protocol's others (Place.part).
            options: config options, (KEY, VALUE, ...); those of the command line win over them.
            more: more fields of the run's RunSpec, such as source_domains=("photo",).
        Raises:
            InputError: a field that RunSpec does not have, or that is not the protocol's to choose.
        """
        _require_fields(self.protocol, more)
        place = Place(self.protocol, self.dataset.name, self.trainer, self.config, part, self.shots, self.seed)
        dataset = dataset or self.dataset
        shots = () if self.shots is None else ("DATASET.NUM_SHOTS", str(self.shots))
        spec = RunSpec(trainer=self.trainer, dataset_config_file=dataset.file, config_file=self.config_file,
                       output_dir=os.path.join(self.output, *place.folder.split("/")),
                       root=dataset.root or self.root, backbone=self.backbone, seed=self.seed, plugins=self.plugins,
                       options=(*shots, *options, *self.options), protocol=self.protocol,
                       store_dir=os.path.join(self.output, NAME), **more)
        return Run(place, spec, needs, configs=self.configs)

    def evaluation(self, trained: Run, part: str, dataset: Dataset | None = None, options: tuple[str, ...] = (),
                   **more: Any) -> Run:
        """A run that tests what the run `trained` has learned on other classes, domains or another dataset. Its config
        and backbone are those of the training. Arguments as of `run`."""
        if dataset and dataset.file != trained.spec.dataset_config_file:
            more = {"trained_on": trained.spec.dataset_config_file, **more}
        return self.run(part, dataset, options, trained.folder, eval_only=True, model_dir=trained.folder, **more)

    def domains(self, dataset: Dataset | None = None) -> list[str]:
        """The names of the domains of a dataset (default: that of --dataset); [] for one without domains."""
        return (dataset or self.dataset).domains(self.root)

    def all_domains(self, dataset: Dataset | None = None) -> dict[str, Any]:
        """The fields of a RunSpec that test a dataset on all its domains; its training part, which says the classes, is
        all of them, too."""
        names = tuple(self.domains(dataset))
        return {"source_domains": names, "target_domains": names} if names else {}

    def require_domains(self) -> list[str]:
        """The names of the domains of the dataset. Raises InputError for fewer than two."""
        names = self.domains()
        if len(names) < 2:
            raise InputError(f"{self.dataset.registered.__name__} has no domains; {self.protocol} needs a dataset such "
                             "as pacs")
        return names
