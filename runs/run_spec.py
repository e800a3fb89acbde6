"""A run as data: what train.py is told, and what a plan of a protocol consists of."""
import os
from dataclasses import dataclass, fields, replace

from dassl.config.words import is_option
from dassl.utils.errors import InputError

ONCE_PER_WORD = ("plugins",)  # flags that are given once for each of their words


@dataclass(frozen=True)
class RunSpec:
    """One run: which method, on which data, with which weights and settings, and where it writes.

    A field that is empty (None for `load_epoch`, a negative `seed`) was not given. Command lines become RunSpecs once,
    at the edge (`runs.arguments.parse_arguments`); `argv` gives the words back, for a process on another machine.

    Attributes:
        trainer: the registered name of the method.
        dataset_config_file, config_file: YAML files of the dataset and of the method.
        output_dir: the run folder.
        root: the folder of the datasets (DATASET.ROOT).
        backbone: a CLIP by name, or a weights file (MODEL.BACKBONE.NAME).
        seed: of every draw.
        source_domains, target_domains, transforms: names.
        head: MODEL.HEAD.NAME.
        resume: the run folder to go on from, when it is not `output_dir`.
        eval_only: evaluate only; model_dir, load_epoch: the run folder whose prompts are loaded, and their epoch.
        no_train: build everything, neither train nor evaluate.
        skip_bad_images: leave unreadable images out (DATASET.SKIP_BAD_IMAGES).
        plugins: files or modules with more methods, datasets or protocols.
        options: config options, (KEY, VALUE, KEY, VALUE, ...).
        protocol: the name of the protocol whose plan the run is of, for its results.json.
        trained_on: the dataset's YAML file that the run of `model_dir` learns from, where it is another one.
        store_dir: the folder of the feature store where neither a config file nor an option says STORE.DIR.
    """

    trainer: str = ""
    dataset_config_file: str = ""
    config_file: str = ""
    output_dir: str = ""
    root: str = ""
    backbone: str = ""
    seed: int = -1
    source_domains: tuple[str, ...] = ()
    target_domains: tuple[str, ...] = ()
    transforms: tuple[str, ...] = ()
    head: str = ""
    resume: str = ""
    eval_only: bool = False
    model_dir: str = ""
    load_epoch: int | None = None
    no_train: bool = False
    skip_bad_images: bool = False
    plugins: tuple[str, ...] = ()
    options: tuple[str, ...] = ()
    protocol: str = ""
    trained_on: str = ""
    store_dir: str = ""

    def settings(self) -> dict[str, str]:
        """{KEY: VALUE} of the options; of a key that is given twice, the last one."""
        return dict(zip(self.options[::2], self.options[1::2]))

    def with_options(self, *options: str) -> "RunSpec":
        """The same run with more options."""
        return replace(self, options=(*self.options, *options))

    def argv(self) -> list[str]:
        """The words that train.py takes for this run.

        Raises:
            InputError: a word of a flag that takes several words would be taken for a flag or an option.
        """
        words: list[str] = []
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "options" or value == field.default:
                continue
            flag = f"--{field.name.replace('_', '-')}"
            if field.name in ONCE_PER_WORD:
                for word in value:
                    words += _flag(flag.removesuffix("s"), word)
            elif value is True:
                words.append(flag)
            elif isinstance(value, tuple):
                words += [flag, *(_in_a_list(word, flag) for word in value)]
            else:
                words += _flag(flag, str(value))
        for key, value in zip(self.options[::2], self.options[1::2]):
            words += [f"{key}={value}"] if value.startswith("-") else [key, value]
        return words

    def identity(self) -> dict[str, str]:
        """{"dataset", "config"}: the names of the config files, as tables call the dataset and the config."""
        return {"dataset": stem(self.dataset_config_file), "config": stem(self.config_file)}


def _flag(flag: str, word: str) -> list[str]:
    """The words of a flag that takes one word, which may begin with a dash."""
    return [f"{flag}={word}"] if word.startswith("-") else [flag, word]


def _in_a_list(word: str, flag: str) -> str:
    """A word of a flag that takes several. Raises InputError where it would end them."""
    if word.startswith("-") or is_option(word):
        raise InputError(f"{flag} cannot be given '{word}' on a command line, where it would be a flag or an option")
    return word


def stem(path: str) -> str:
    """A file's name without its folder and ending."""
    return os.path.splitext(os.path.basename(path))[0]
