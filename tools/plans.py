"""What a protocol consists of, as an explicit list of runs.

A `Run` says where it writes (`folder`), what it is (`spec`) and which run must be finished before
(`needs`). Dry runs, execution on one or several processes, and tables all follow from this list. `Place` is what a
folder says of the run in it, so that the folders alone are enough to make the tables again.
"""
import functools
import os
import re
from dataclasses import dataclass, field, replace

from dassl.config import get_cfg_default, merge_file
from dassl.data.datasets import DATASET_REGISTRY
from dassl.engine import TRAINER_REGISTRY, learns
from dassl.engine.identity import plain
from dassl.engine.run_folder import flat
from dassl.utils import InputError, is_class_bound, require_own_folder
from dassl.utils.registry import nearest
from prompting import load_clip
from prompting.backbone import SHIPPED
from tools.method_configs import MARK, MethodConfigs, differ, is_file, read_variants, require_free
from training.configs import Configs
from training.run_spec import RunSpec, stem

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))

BASE2NEW_DATASETS = ("imagenet", "caltech101", "oxford_pets", "stanford_cars", "oxford_flowers", "food101",
                     "fgvc_aircraft", "sun397", "dtd", "eurosat", "ucf101")
IMAGENET_VARIANTS = ("imagenetv2", "imagenet_sketch", "imagenet_a", "imagenet_r")
XD_TARGETS = {"imagenet": (*BASE2NEW_DATASETS[1:], *IMAGENET_VARIANTS)}

SHOTS = {"base2new": (16,), "dg": (1,), "xd": (16,), "fewshot": (1, 2, 4, 8, 16)}
OWN_CONFIG = ("dg", "xd", "fewshot")  # protocols for which a method may have its own config, <name>_<protocol>.yaml

LAYOUTS = {
    "base2new": "base2new/{part}/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}",
    "dg": "dg/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}",
    "xd": "xd/{dataset}/shots_{shots}/{trainer}/{config}/{part}/seed{seed}",
    "fewshot": "fewshot/{dataset}/shots_{shots}/{trainer}/{config}/seed{seed}",
    "zeroshot": "zeroshot/{dataset}/{trainer}/{config}/seed{seed}",
}
FIELDS = {"shots": r"\d+", "seed": r"\d+"}  # what stands in a layout's field; in others anything but "/"


@functools.cache
def _pattern(layout):
    """What finds a layout's fields at the end of a path."""
    fields = re.sub(r"\\{(\w+)\\}", lambda field: f"(?P<{field[1]}>{FIELDS.get(field[1], '[^/]+')})", re.escape(layout))
    return re.compile(f"/{fields}$")


@dataclass(frozen=True)
class Place:
    """Which cell of which table a run is.

    dataset: its config's name; for xd that of the source. part: train_base or test_new (base2new), the target domain
    (dg), the tested dataset (xd), else "all". shots: None for zeroshot. config: name of the method's config, of a
    variant "<config>+<variant>".
    """

    protocol: str
    dataset: str
    trainer: str
    config: str
    part: str
    shots: int | None
    seed: int

    @property
    def folder(self):
        """The run's folder below the output folder."""
        return LAYOUTS[self.protocol].format(**vars(self))

    @property
    def variant(self):
        """The name of the variant (--variant), "" for the method as its config has it."""
        return self.config.partition(MARK)[2]

    @classmethod
    def parse(cls, folder):
        """The Place of a run folder by its path; None for one that lies elsewhere."""
        path = os.path.abspath(folder).replace(os.sep, "/")
        for protocol, layout in LAYOUTS.items():
            found = _pattern(layout).search(path)
            if found:
                words = {"part": "all", "shots": None} | found.groupdict()
                shots = words["shots"] and int(words["shots"])
                return cls(**words | {"protocol": protocol, "shots": shots, "seed": int(words["seed"])})
        return None


@dataclass(frozen=True)
class Run:
    """A run of a plan.

    spec: what train.main is given.
    needs: the folder of the run whose prompts this one evaluates, or "". same: the folder of an earlier run of the plan
    that has this one's numbers, because the method reads no image that seed or shots choose; or "". configs: what the
    command has built so far, one object for all runs of a plan.
    """

    place: Place
    spec: RunSpec
    needs: str = ""
    same: str = ""
    configs: Configs = field(default_factory=Configs, compare=False, repr=False)

    @property
    def folder(self):
        """The run folder."""
        return self.spec.output_dir

    def check(self):
        """Raise InputError for a config that cannot give a table, and for a folder that a link below the output folder
        leads to; nothing is run and no data are read."""
        require_own_folder(self.folder, below=self.folder.removesuffix(os.path.join(*self.place.folder.split("/"))))
        cfg = self.configs.of(self.spec)
        if cfg.TEST.NO_TEST or cfg.TEST.SPLIT != "test":
            raise InputError("a protocol's table needs test accuracies; leave out TEST.NO_TEST and TEST.SPLIT")
        return cfg


@dataclass(frozen=True)
class Dataset:
    """A file of configs/datasets. name: the file's; registered: the dataset class; backbone: the CLIP it asks for;
    root: its own DATASET.ROOT, which stands above a protocol's --root, that of all datasets."""

    name: str
    file: str
    registered: type
    backbone: str
    root: str = ""

    @classmethod
    def of(cls, name):
        file = config_file("datasets", name)
        config = get_cfg_default()
        merge_file(config, file)
        return cls(stem(file), file, DATASET_REGISTRY.get(config.DATASET.NAME), config.MODEL.BACKBONE.NAME,
                   config.DATASET.ROOT)

    def domains(self, root):
        """Names of all domains below the data folder `root`, or its own; none for a dataset without domains."""
        listed = getattr(self.registered, "domain_names", None)
        return list(listed(self.root or root) if listed else getattr(self.registered, "domains", ()))


def config_file(folder, name):
    """A YAML file by its name in configs/<folder>, or by its path."""
    if is_file(name):
        return name
    folder = os.path.join(ROOT, "configs", folder)
    path = os.path.join(folder, f"{name}.yaml")
    if not os.path.isfile(path):
        known = sorted(stem(f) for f in os.listdir(folder)) if os.path.isdir(folder) else []
        raise InputError(f"no config {path}{nearest(name, known)}; there are: {', '.join(known) or 'none'}; "
                         "or give a YAML file")
    return path


def reads_no_image(trainer):
    """Whether a trainer class declares, itself and not by what it inherits, that its numbers are a function of the
    class names, the backbone and the test images: neither seed nor shots change them."""
    return not learns(trainer) and vars(trainer).get("learns_from_images") is False


def class_bound(run):
    """Whether the method of a run belongs to its training classes with this config, and so cannot score new ones."""
    try:
        cfg = run.check()
    except InputError:  # told when all runs of the plan are checked
        return False
    return is_class_bound(TRAINER_REGISTRY.get(run.place.trainer), cfg)


class Planner:
    """Makes the runs of a protocol.

    Args:
        root, output: the folders of the data and of all run folders.
        seeds: list of numbers.
        cfg: the words of --cfg: names of configs in configs/trainers/<trainer>, a YAML file, METHOD=either; "" chooses
            by the backbone.
        backbone: a CLIP by name or a weights file; "" leaves it to the dataset's config, then the method's.
        plugins: files or modules with more methods or datasets.
        options: config options for every run, [KEY, VALUE, ...].
        variants: a list of [NAME or METHOD:NAME, KEY, VALUE, ...], more rows of the methods with other options.
    Attributes:
        clips: {backbone: loaded CLIP}, for the runs to share.
        notes: lines on what is run otherwise than it may seem, after `plan`.
    """

    def __init__(self, root="data", output="output", seeds=(1, 2, 3), cfg="", backbone="", plugins=(), options=(),
                 variants=()):
        self.root, self.output, self.seeds = root, output, list(seeds)
        self.cfg, self.plugins, self.options = MethodConfigs(cfg), list(plugins), list(options)
        self.variant_words, self.variants, self.notes = list(variants), {}, []
        self.backbone = os.path.abspath(backbone) if os.path.isfile(backbone) else backbone
        self.clips, self.configs = {}, Configs()

    def plan(self, protocol, trainers, datasets, shots=None, targets=None):
        """The runs of a protocol in the order to be made: a list of Run.

        Args:
            protocol: base2new, dg, xd, fewshot or zeroshot.
            trainers, datasets: names; an xd has one dataset, its source.
            shots: numbers of shots; default the protocol's.
            targets: datasets that an xd is tested on; default those of XD_TARGETS.
        Raises:
            InputError: something named does not exist, or does not fit the protocol.
        """
        require_free(self.options, "option")
        self.notes = self.cfg.require_for(trainers)
        datasets = self._datasets(datasets)
        make = getattr(self, f"_{protocol}")
        words = {"targets": self._targets(datasets, targets)} if protocol == "xd" else {}
        self.variants = {}

        def planned(trainer, variant=""):
            return [run for dataset in datasets for number in shots or SHOTS.get(protocol, (None,))
                    for seed in self.seeds for run in make(trainer, dataset, number, seed, variant, **words)]

        plain_runs, runs = {trainer: planned(trainer) for trainer in trainers}, []
        chosen = self._variants(plain_runs)
        for trainer in trainers:
            runs += plain_runs[trainer]
            for variant in chosen[trainer]:
                runs += planned(trainer, variant)
        return _with_same(runs)

    def _variants(self, runs):
        """{trainer: names of its variants}; sets `variants`, {(trainer, name): options}.

        runs: {trainer: its runs without a variant}. Raises InputError for a variant that changes nothing."""
        chosen = {trainer: [] for trainer in runs}
        known = {}  # trainer -> [(what it is called, its config)]
        for variant in read_variants(self.variant_words, list(runs)):
            for trainer in [variant.method] if variant.method else runs:
                run = runs[trainer][0]
                trains = learns(TRAINER_REGISTRY.get(trainer))
                before = known.setdefault(trainer, [("the method without a variant", _settings(run, ()))])
                try:
                    settings = _settings(run, variant.options)
                except InputError as error:
                    raise InputError(f"{variant.flag}: {error}") from None
                twin = next((name for name, other in before if not differ(other, settings, trains)), None)
                if twin and (variant.method or twin != before[0][0]):
                    raise InputError(f"{variant.flag}: for {trainer} it is the same as {twin}")
                if not twin:
                    before.append((variant.flag, settings))
                    self.variants[trainer, variant.name] = variant.options
                    chosen[trainer].append(variant.name)
            without = [trainer for trainer in runs if variant.name not in chosen[trainer]]
            if len(without) == len(runs):
                raise InputError(f"{variant.flag} changes nothing for {', '.join(runs)}")
            if without and not variant.method:
                self.notes.append(f"Note: {variant.flag} changes nothing for {', '.join(without)}, which stays one row")
        return chosen

    @staticmethod
    def _datasets(names):
        """The Datasets of names, whose run folders are told apart by their stems."""
        found = [Dataset.of(name) for name in names]
        for dataset in found:
            twin = next(other for other in found if other.name == dataset.name)
            if twin.file != dataset.file:
                raise InputError(f"{twin.file} and {dataset.file} would have the same run folders; rename one of them")
        return found

    # ---- the protocols ----
    def _base2new(self, trainer, dataset, shots, seed, variant):
        place = self._place("base2new", trainer, dataset, shots, seed, "train_base", variant)
        base = self._run(place, dataset, options=("DATASET.SUBSAMPLE_CLASSES", "base"))
        yield base
        if not class_bound(base):
            yield self._evaluation(replace(place, part="test_new"), dataset, base,
                                   options=("DATASET.SUBSAMPLE_CLASSES", "new"))

    def _dg(self, trainer, dataset, shots, seed, variant):
        domains = dataset.domains(self.root)
        if len(domains) < 2:
            raise InputError(f"{dataset.registered.__name__} has no domains; dg needs a dataset such as pacs")
        for target in domains:
            sources = [domain for domain in domains if domain != target]
            yield self._run(self._place("dg", trainer, dataset, shots, seed, target, variant), dataset,
                            source_domains=tuple(sources), target_domains=(target,))

    def _xd(self, trainer, source, shots, seed, variant, targets):
        place = self._place("xd", trainer, source, shots, seed, source.name, variant)
        trained = self._run(place, source)
        yield trained
        if not class_bound(trained):
            for target in targets:
                yield self._evaluation(replace(place, part=target.name), target, trained, **self._all_domains(target))

    def _fewshot(self, trainer, dataset, shots, seed, variant):
        yield self._run(self._place("fewshot", trainer, dataset, shots, seed, "all", variant), dataset)

    def _zeroshot(self, trainer, dataset, shots, seed, variant):
        run = self._run(self._place("zeroshot", trainer, dataset, shots, seed, "all", variant), dataset, eval_only=True,
                        **self._all_domains(dataset))
        registered = TRAINER_REGISTRY.get(trainer)
        if not learns(registered) and not class_bound(run):
            yield run
            return
        if hasattr(registered, "trains") or class_bound(run):
            raise InputError(f"{trainer} learns from the training images; zeroshot is for methods that do not, such as "
                             "ZeroshotCLIP")
        raise InputError(f"{trainer} has a training step, and zeroshot is for methods that use no training image; if "
                         "it uses none, say `trains = False` in its class")

    # ---- what they share ----
    def _all_domains(self, dataset):
        """The fields of a RunSpec that test a dataset on all its domains; its training part, which says the classes, is
        all of them, too."""
        names = tuple(dataset.domains(self.root))
        return {"source_domains": names, "target_domains": names} if names else {}

    @classmethod
    def _targets(cls, sources, targets):
        if len(sources) > 1:
            raise InputError(f"xd trains on one --dataset, not on {', '.join(source.name for source in sources)}")
        [source] = sources
        names = targets or XD_TARGETS.get(source.name)
        if not names:
            raise InputError(f"xd from {source.name}: give --targets (TARGETS for the scripts), datasets to test on")
        chosen = cls._datasets(dict.fromkeys(names))
        if source.name in {target.name for target in chosen}:
            raise InputError(f"xd from {source.name}: the source is tested anyway; leave it out of --targets")
        return chosen

    def _place(self, protocol, trainer, dataset, shots, seed, part, variant=""):
        TRAINER_REGISTRY.get(trainer)
        name, _ = self.method_config(protocol, trainer, dataset)
        name += f"{MARK}{variant}" if variant else ""
        return Place(protocol, dataset.name, trainer, name, part, shots, seed)

    def method_config(self, protocol, trainer, dataset):
        """(name, file) of the config a method runs with."""
        given = self.cfg.of(trainer)
        name = given or self._default_config(self.backbone or dataset.backbone)
        if protocol in OWN_CONFIG and not given:
            special = f"{name}_{protocol}"
            exists = os.path.isfile(os.path.join(ROOT, "configs", "trainers", trainer, f"{special}.yaml"))
            name = special if exists else name
        path = config_file(os.path.join("trainers", trainer), name)
        return stem(path), path

    def _default_config(self, backbone):
        if backbone in SHIPPED:
            return backbone
        if not os.path.isfile(backbone):  # a published name, or one that load_clip will refuse
            return "vit_b16"
        if backbone not in self.clips:
            self.clips[backbone] = load_clip(backbone)
        size = self.clips[backbone].visual.input_resolution
        return "vit_b16" if size == 224 else f"clip{size}"

    def _run(self, place, dataset, options=(), needs=None, **fields):
        """A Run. fields: what its RunSpec has besides."""
        # An xd's target is evaluated with the config and the backbone that its source was trained with.
        source = Dataset.of(needs.spec.dataset_config_file) if needs else dataset
        _, config = self.method_config(place.protocol, place.trainer, source)
        shots = () if place.shots is None else ("DATASET.NUM_SHOTS", str(place.shots))
        variant = self.variants.get((place.trainer, place.variant), ())
        spec = RunSpec(trainer=place.trainer, dataset_config_file=dataset.file, config_file=config,
                       output_dir=os.path.join(self.output, *place.folder.split("/")),
                       root=dataset.root or self.root, backbone=self.backbone or source.backbone, seed=place.seed,
                       plugins=tuple(self.plugins), options=(*shots, *options, *self.options, *variant), **fields)
        return Run(place, spec, needs.folder if needs else "", configs=self.configs)

    def _evaluation(self, place, dataset, trained, options=(), **fields):
        return self._run(place, dataset, options, trained, eval_only=True, model_dir=trained.folder, **fields)


def _settings(run, options):
    """The flat config of a run with more options, as two runs are compared by."""
    return flat(plain(replace(run, spec=run.spec.with_options(*options)).check()))


def _with_same(runs):
    """The runs of a plan; those of methods whose numbers neither seed nor shots change name the first of their kind as
    `same`."""
    first, found = {}, []
    for run in runs:
        if reads_no_image(TRAINER_REGISTRY.get(run.place.trainer)):
            kind = replace(run.place, shots=None if run.place.shots is None else 0, seed=0)
            run = replace(run, same=first.setdefault(kind, run.folder))
            run = replace(run, same="") if run.same == run.folder else run
        found.append(run)
    return found
