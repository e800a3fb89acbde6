"""The plan of a protocol: an explicit list of runs.

Dry runs, execution on one or several processes, and tables all follow from this list. Which runs a protocol makes is
said in its own file in protocols/; here stands which methods, datasets, configs and variants it makes them for.
"""
import os
from dataclasses import replace

from dassl.engine import TRAINER_REGISTRY, learns
from dassl.engine.identity import plain
from dassl.engine.run_folder import flat
from dassl.utils import InputError
from prompting import load_clip
from prompting.backbone import SHIPPED
from protocols import PROTOCOL_REGISTRY, Dataset, Place, Run, RunMaker
from protocols.parts.place import MARK
from protocols.parts.plan import ROOT, config_file, config_path
from runs.configs import Configs
from runs.run_spec import stem
from tools.running.method_configs import MethodConfigs, differ, read_variants, require_free

__all__ = ["ROOT", "Dataset", "Place", "Planner", "Run", "reads_no_image"]


def reads_no_image(trainer):
    """Whether a trainer class declares, itself and not by what it inherits, that its numbers are a function of the
    class names, the backbone and the test images: neither seed nor shots change them."""
    return not learns(trainer) and vars(trainer).get("learns_from_images") is False


class Planner:
    """Makes the runs of a protocol.

    Args:
        root, output: the folders of the data and of all run folders.
        seeds: list of numbers.
        cfg: the words of --cfg: names of configs in configs/trainers/<trainer>, a YAML file, METHOD=either; "" chooses
            by the backbone.
        backbone: a CLIP by name or a weights file; "" leaves it to the dataset's config, then the method's.
        plugins: files or modules with more methods, datasets or protocols.
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

    def plan(self, protocol, trainers, datasets, shots=None, **own):
        """The runs of a protocol, a list of Run, in the order of its tables; one comes after those that it needs.

        Args:
            protocol: its registered name.
            trainers, datasets: names.
            shots: numbers of shots; default the protocol's.
            own: the values of the protocol's own flags, such as `targets` of xd.
        Raises:
            InputError: something named does not exist, or does not fit the protocol.
        """
        protocol = PROTOCOL_REGISTRY.get(protocol)(**own)
        require_free(self.options, "option")
        self.notes = self.cfg.require_for(trainers)
        datasets = Dataset.all_of(datasets)
        if len(datasets) > 1 and not protocol.several_datasets:
            raise InputError(f"{protocol.name} trains on one --dataset, not on "
                             f"{', '.join(dataset.name for dataset in datasets)}")
        self.variants = {}

        def planned(trainer, variant=""):
            found = [run for dataset in datasets for number in shots or protocol.shots or (None,)
                     for seed in self.seeds
                     for run in protocol.plan(self._maker(protocol, trainer, dataset, number, seed, variant)) or ()]
            if not found:
                raise InputError(f"protocol {protocol.name}: its `plan` yields no run of {trainer}")
            return found

        plain_runs, runs = {trainer: planned(trainer) for trainer in trainers}, []
        chosen = self._variants(plain_runs)
        for trainer in trainers:
            runs += plain_runs[trainer]
            for variant in chosen[trainer]:
                runs += planned(trainer, variant)
        require_own_folders(runs, protocol)
        return _with_same(runs)

    def _variants(self, runs):
        """{trainer: names of its variants}; sets `variants`, {(trainer, name): options}.

        runs: {trainer: its runs without a variant}. Raises InputError for a variant that changes nothing."""
        chosen: dict[str, list[str]] = {trainer: [] for trainer in runs}
        known: dict[str, list[tuple]] = {}  # trainer -> [(what it is called, its config)]
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

    def _maker(self, protocol, trainer, dataset, shots, seed, variant):
        """What makes the runs of one method."""
        TRAINER_REGISTRY.get(trainer)
        name, file = self.method_config(protocol.name, trainer, dataset)
        name += f"{MARK}{variant}" if variant else ""
        options = (*self.options, *self.variants.get((trainer, variant), ()))
        return RunMaker(protocol.name, trainer, dataset, shots, seed, name, file, self.root, self.output,
                        self.backbone or dataset.backbone, tuple(self.plugins), options, self.configs)

    def method_config(self, protocol, trainer, dataset):
        """(name, file) of the config a method runs with."""
        given = self.cfg.of(trainer)
        folder = os.path.join("trainers", trainer)
        name = given or self._default_config(self.backbone or dataset.backbone, folder)
        if PROTOCOL_REGISTRY.get(protocol).own_config and not given:
            special = f"{name}_{protocol}"
            name = special if os.path.isfile(config_path(folder, special)) else name
        path = config_file(folder, name)
        return stem(path), path

    def _default_config(self, backbone, folder):
        if backbone in SHIPPED:
            return backbone
        if not os.path.isfile(backbone):  # a published name, or one that load_clip will refuse
            return "vit_b16"
        if backbone not in self.clips:
            self.clips[backbone] = load_clip(backbone)
        special = f"clip{self.clips[backbone].visual.input_resolution}"
        return special if os.path.isfile(config_path(folder, special)) else "vit_b16"


def require_own_folders(runs, protocol):
    """Raise InputError unless each run of a plan has a folder of its own, from which its Place is read back: else a
    run's number would stand for another one's."""
    said = f"protocol {protocol.name}: "
    first: dict[str, Run] = {}
    for run in runs:
        place, twin = run.place, first.setdefault(run.folder, run)
        if twin != run:
            differ = [field for field in vars(place) if getattr(place, field) != getattr(twin.place, field)]
            what = (f"name {{{differ[0]}}} in its layout '{protocol.layout}'" if differ else
                    "give each run of a training a part of its own")
            raise InputError(f"{said}two runs, of the parts '{twin.place.part}' and '{place.part}', would share the "
                             f"folder {run.folder}; {what}")
        shots = place.shots if "{shots}" in protocol.layout else None
        if Place.parse(os.path.join(os.sep, place.folder), protocol.name) != replace(place, shots=shots):
            raise InputError(f"{said}the part '{place.part}' cannot be read back from the folder {run.folder}; name "
                             f"{{part}} in its layout '{protocol.layout}', and give `part_pattern` for parts that hold "
                             f"'/' (it is '{protocol.part_pattern}')")


def _settings(run, options):
    """The flat config of a run with more options, as two runs are compared by."""
    return flat(plain(replace(run, spec=run.spec.with_options(*options)).check()))


def _with_same(runs):
    """The runs of a plan; those of methods whose numbers neither seed nor shots change name the first of their kind as
    `same`."""
    first: dict[Place, str] = {}
    found = []
    for run in runs:
        if reads_no_image(TRAINER_REGISTRY.get(run.place.trainer)):
            kind = replace(run.place, shots=None if run.place.shots is None else 0, seed=0)
            run = replace(run, same=first.setdefault(kind, run.folder))
            run = replace(run, same="") if run.same == run.folder else run
        found.append(run)
    return found
