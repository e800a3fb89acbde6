"""The command line of tools/protocol.py: the protocol, the flags that every one takes, those of its own."""
import operator
import sys

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError, world_size
from dassl.utils.registry import is_slip, nearest
from protocols import PROTOCOL_REGISTRY
from protocols.parts.cells import COMPARED
from protocols.parts.plan import config_names
from tools.running import slurm_settings
from tools.running.method_configs import take_variants

COMPARE = "compare", "a protocol (base2new) for several methods side by side"
DEFAULT = "base2new"  # what `compare` compares
ALL = "all"  # for --trainer: every method there is
PUBLISHED = ("ZeroshotCLIP", "MetaPrompt")  # compared with published averages by default


def shared_arguments(protocol, methods):
    """The flags that every protocol takes, a parser. protocol: whose defaults --help tells; methods: that of --trainer.
    """
    shared = train.ArgumentParser(add_help=False)
    several = f", several of them, or {ALL} (default {' '.join(methods)})" if methods else ""
    shared.add_argument("--trainer", nargs="*", help=f"the method{several}")
    shared.add_argument("--seeds", nargs="+", help=f"default {' '.join(map(str, protocol.seeds))}")
    shared.add_argument("--dataset", nargs="+", required=True,
                        help="names of configs in configs/datasets, or YAML files"
                             + ("" if protocol.several_datasets else "; one, to train on"))
    shared.add_argument("--cfg", nargs="+", metavar="CONFIG",
                        help="name of a config in configs/trainers/<trainer>, or the YAML file of the method it is "
                             "for; METHOD=CONFIG for each of several; default vit_b16; tiny for that CLIP, clip64 for "
                             "a CLIP file of 64-pixel images"
                             + (f"; <name>_{protocol.name} where the method has it" if protocol.own_config else ""))
    shared.add_argument("--variant", metavar="NAME KEY VALUE ...",  # for --help: take_variants has read them
                        help="the methods once more with these options, in rows of their own (repeatable); "
                             "METHOD:NAME for one method; options of every run go behind another flag")
    shared.add_argument("--root", default="data", help="folder that holds the datasets (default data)")
    shared.add_argument("--output", default="output", help="folder of all run folders (default output)")
    shared.add_argument("--shots", nargs="+",
                        help=f"images {protocol.per}; default {' '.join(map(str, protocol.shots)) or 'none'}")
    shared.add_argument("--backbone", default="", help="a CLIP by name or a weights file (default the config's)")
    add_plugin(shared)
    shared.add_argument("--jobs", type=int, default=1,
                        help="processes, each with a GPU of its own (default 1); on a CPU they share its threads")
    shared.add_argument("--verbose", action="store_true",
                        help="print what the runs print, which is also in each one's log.txt (default: a line per run)")
    shared.add_argument("--launcher", choices=("local", "slurm"), default="local",
                        help="local (default): make the runs here; slurm: submit them as one array job and return")
    shared.add_argument("--prepare", action="store_true",
                        help="before all else get the data and the CLIP that are not there, where they can be fetched")
    shared.add_argument("--keep-going", action="store_true",
                        help="make what can be made where other runs are known to fail; by default nothing is run then")
    instead = shared.add_mutually_exclusive_group()
    instead.add_argument("--preflight", action="store_true",
                         help="say whether data, backbone and methods fit, what the runs need, and about how long they "
                              "take; run nothing")
    instead.add_argument("--dry-run", action="store_true",
                         help="list the runs and whether each is done, and what they need; run nothing")
    instead.add_argument("--status", action="store_true",
                         help="say which runs are done, running, queued or failed, with the last log line; run nothing")
    instead.add_argument("--table", action="store_true", help="print the table of what is done; run nothing")
    slurm_settings.add_arguments(shared)
    train.add_options(shared, "config options for every run: KEY VALUE or KEY=VALUE ...")
    return shared


def add_plugin(parser):
    parser.add_argument("--plugin", action="append", default=[], metavar="FILE_OR_MODULE",
                        help="more methods, datasets or protocols (repeatable)")


def parse_arguments(argv):
    """The arguments of a command line, with `of`, the protocol object. The plugins that it names are loaded, which may
    bring the protocol."""
    argv, variants = take_variants(sys.argv[1:] if argv is None else argv)
    early = train.ArgumentParser(add_help=False, allow_abbrev=False)  # what the flags of a protocol depend on
    add_plugin(early)
    if argv[:1] == [COMPARE[0]]:
        early.add_argument("--protocol", default=DEFAULT)
    known, _ = early.parse_known_args(argv)
    train.discover(known.plugin)
    parser = train.ArgumentParser(description="Run a protocol over seeds and print its table.")
    commands = parser.add_subparsers(dest="protocol", required=True, metavar="PROTOCOL")
    kinds = {name: (protocol, protocol.words, protocol.methods) for name, protocol in PROTOCOL_REGISTRY.items()}
    compared = [name for name, protocol in PROTOCOL_REGISTRY.items() if not protocol.several_methods]
    asked = getattr(known, "protocol", DEFAULT)
    kinds[COMPARE[0]] = kinds[asked if asked in compared else DEFAULT][0], COMPARE[1], COMPARED
    require_known(argv[:1], kinds, known.plugin)
    if asked not in PROTOCOL_REGISTRY:
        require_known([asked], compared, known.plugin)
    parsers, own = {}, {}
    for name, (protocol, words, methods) in kinds.items():
        flags = train.ArgumentParser(add_help=False)
        protocol.add_arguments(flags)
        own[name] = [action.dest for action in flags._actions]
        parsers[name] = commands.add_parser(name, parents=[shared_arguments(protocol, methods), flags], help=words,
                                            description=words)
    parsers[COMPARE[0]].add_argument("--protocol", choices=compared, default=DEFAULT,
                                     help=f"which protocol (default {DEFAULT})")
    parsers[COMPARE[0]].add_argument("--published", action="store_true",
                                     help="afterwards print the tables with published averages beside the measured "
                                          f"ones (default methods: {' '.join(PUBLISHED)})")
    if not argv or argv[0] not in parsers:
        parser.parse_args(argv)  # prints help, or says what the protocols are
    args = train.parse_words(parsers[argv[0]], argv[1:], flag_of)
    if args.plugin != known.plugin:  # --plugin was written shorter
        train.discover(args.plugin)
    args.command, args.variant = argv[0], variants
    args.published = getattr(args, "published", False)
    args.own = {name: getattr(args, name) for name in own[argv[0]]}
    args.protocol = args.protocol if args.command == COMPARE[0] else args.command
    args.of = PROTOCOL_REGISTRY.get(args.protocol)(**args.own)
    return args


def flag_of(word):
    """The flag that a word without one belongs to: methods and datasets may stand anywhere on a command line. A slip of
    a name counts, too: it is then refused with the name that was meant. "" for other words."""
    names = {"--trainer": [ALL, *TRAINER_REGISTRY.registered_names()], "--dataset": config_names("datasets")}
    for same in (operator.eq, is_slip):
        for flag, known in names.items():
            if any(same(word.casefold(), name.casefold()) for name in known):
                return flag
    return "--dataset" if word.endswith((".yaml", ".yml")) else ""


def require_known(words, protocols, plugins):
    """Raise InputError for a word, if there is one, that stands where a protocol is named and is none."""
    for word in words:
        if word not in protocols and not word.startswith("-"):
            more = "" if plugins else "; --plugin FILE makes the protocol in a file of yours known"
            raise InputError(f"unknown protocol '{word}'{nearest(word, protocols)}; there are: {', '.join(protocols)}"
                             f"{more}")


def check_arguments(args):
    """Fill in what follows from the protocol. Raises InputError for what does not go together."""
    args.side_by_side = args.command == COMPARE[0] or args.of.several_methods
    named = [name for word in args.trainer or () for name in word.split()]
    default = (PUBLISHED if args.published else COMPARED) if args.command == COMPARE[0] else args.of.methods
    if ALL in map(str.casefold, named):
        named = sorted(TRAINER_REGISTRY.registered_names(), key=str.casefold)
    args.trainer = named or list(default)
    if not args.trainer or (not args.side_by_side and len(args.trainer) > 1):
        others = "" if args.side_by_side else f"; compare --protocol {args.command} takes several"
        raise InputError(f"{args.command} needs one --trainer{others}")
    args.seeds = numbers("--seeds", args.seeds or args.of.seeds, least=0)
    args.shots = numbers("--shots", args.shots or [], least=1)
    for what in ("trainer", "dataset", "seeds", "shots"):
        setattr(args, what, list(dict.fromkeys(getattr(args, what) or [])))
    if len(args.shots) > 1 and not args.of.several_shots:
        raise InputError(f"{args.protocol} takes one number of --shots, not {' '.join(map(str, args.shots))}")
    if args.jobs < 1:
        raise InputError(f"--jobs must be at least 1, not {args.jobs}")
    if args.launcher == "slurm" and world_size() > 1:
        raise InputError("--launcher slurm submits runs of one process each; leave RANKS and torchrun out")
    if args.launcher == "slurm" and args.jobs > 1:
        raise InputError("--jobs is for --launcher local; with slurm each task makes one run, --array-parallelism says "
                         "how many at once")
    if args.prepare and (args.dry_run or args.status or args.table):
        raise InputError("--prepare fetches data and weights; it goes with --preflight and with the runs themselves")
    flags = slurm_settings.given_flags(args)
    if flags and args.launcher != "slurm":
        raise InputError(f"{', '.join(flags)} {'needs' if len(flags) == 1 else 'need'} --launcher slurm")
    for trainer in args.trainer:
        TRAINER_REGISTRY.get(trainer)


def numbers(flag, words, least):
    """The whole numbers that a flag was given. Raises InputError for other words and for numbers below `least`."""
    try:
        found = [int(word) for word in words]
    except ValueError:
        raise InputError(f"{flag} are whole numbers, not {' '.join(words)}") from None
    if found and min(found) < least:
        raise InputError(f"{flag} are numbers from {least} on, not {min(found)}")
    return found
