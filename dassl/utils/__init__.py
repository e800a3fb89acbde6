"""What the rest of the engine stands on: errors, registries, logging, randomness, meters, checkpoints."""
from dassl.utils.checkpoint import (
    BEST,
    INTERRUPTED,
    MISFITS,
    checkpoint_name,
    does_not_fit,
    load_checkpoint,
    load_pretrained_weights,
    load_tensors,
    note_checkpoint,
    noted_checkpoint,
    refusing,
    remove_torn_files,
    save_checkpoint,
    write_atomically,
)
from dassl.utils.checkpoint_folder import (
    checkpoint_files,
    checkpoint_to_evaluate,
    checkpoints_newest_first,
    epochs_in,
    model_folders,
    names_newest_first,
    newest_checkpoint,
    newest_epoch,
    point_of,
    resume_from_checkpoint,
)
from dassl.utils.distributed import (
    all_gather,
    all_reduce_max,
    broadcast,
    first_to_tell,
    joined,
    local_world_size,
    lost_another,
    main_process_first,
    rank,
    rank_zero_within,
    require_own_gpu,
    share_of,
    world_size,
)
from dassl.utils.errors import InputError, NonFiniteError, last_line, surroundings
from dassl.utils.files import open_own, open_regular, require_own_folder
from dassl.utils.images import read_image
from dassl.utils.lock import LOCK_NAME, FolderLock, lives_here, lock_holder, slurm_job
from dassl.utils.logger import Logger, setup_logger
from dassl.utils.meters import AverageMeter, MetricMeter
from dassl.utils.plugins import import_package_modules, load_entry_points, load_plugin
from dassl.utils.processes import orphaned
from dassl.utils.quiet import quiet
from dassl.utils.random import (
    derive_seed,
    get_rng_state,
    isolated_rng,
    require_rng_state,
    seed_cpu_generators,
    set_random_seed,
    set_rng_state,
)
from dassl.utils.registry import Registry
from dassl.utils.signals import StopRequest, Terminated, leave_signals_to_the_parent, sigterm_raises
from dassl.utils.text import csv_text, escaped_streams, is_text, printable
from dassl.utils.tools import (
    check_availability,
    check_isfile,
    collect_env_info,
    count_num_param,
    listdir_nohidden,
    mkdir_if_missing,
    read_json,
    tolist_if_not,
    write_json,
)
from dassl.utils.traits import is_class_bound

__all__ = [
    "all_gather", "all_reduce_max", "AverageMeter", "BEST", "broadcast", "check_availability", "check_isfile",
    "checkpoint_files", "checkpoint_name", "checkpoint_to_evaluate", "checkpoints_newest_first", "collect_env_info",
    "count_num_param", "csv_text", "derive_seed", "does_not_fit", "epochs_in", "escaped_streams", "first_to_tell",
    "FolderLock", "get_rng_state", "import_package_modules", "InputError", "INTERRUPTED", "is_class_bound", "is_text",
    "isolated_rng", "joined", "last_line", "leave_signals_to_the_parent", "listdir_nohidden", "lives_here",
    "load_checkpoint", "load_entry_points", "load_plugin", "load_pretrained_weights", "load_tensors",
    "local_world_size", "lock_holder", "LOCK_NAME", "Logger", "lost_another", "main_process_first", "MetricMeter",
    "MISFITS", "mkdir_if_missing", "model_folders", "names_newest_first", "newest_checkpoint", "newest_epoch",
    "NonFiniteError", "note_checkpoint", "noted_checkpoint", "open_own", "open_regular", "orphaned", "point_of",
    "printable", "quiet", "rank", "rank_zero_within", "read_image", "read_json", "refusing", "Registry",
    "remove_torn_files", "require_own_folder", "require_own_gpu", "require_rng_state", "resume_from_checkpoint",
    "save_checkpoint", "seed_cpu_generators", "set_random_seed", "set_rng_state", "setup_logger", "share_of",
    "sigterm_raises", "slurm_job", "StopRequest", "surroundings", "Terminated", "tolist_if_not", "world_size",
    "write_atomically", "write_json",
]
