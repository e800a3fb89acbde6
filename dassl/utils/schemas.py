"""The kinds of files that are read back, as pydantic's types: one for each kind. `dassl.utils.stored` checks by them.

A field that a former version did not write may be missing; one that is there must be what this version would write.
Fields that are not named here are not looked at: a later version may have more.
"""
import math
from typing import Annotated, Any

from pydantic import Field, JsonValue, StrictBool, StrictFloat, StrictInt, StrictStr, TypeAdapter
from typing_extensions import NotRequired, TypedDict

Count = Annotated[StrictInt, Field(ge=0, lt=2**63)]
Positive = Annotated[StrictInt, Field(ge=1, lt=2**63)]
Finite = Annotated[StrictFloat, Field(allow_inf_nan=False)]
Percent = Annotated[StrictFloat, Field(ge=0, le=100, allow_inf_nan=False)]
Names = list[str] | tuple[str, ...]
Digests = dict[str, str | None]


# ---- checkpoints ----
class PrecisionState(TypedDict, total=False):
    scale: Annotated[StrictFloat, Field(ge=1, le=2.0**100)]
    good_steps: Count
    scaled: StrictBool


class BackboneName(TypedDict):
    name: NotRequired[str | None]
    digest: NotRequired[str | None]


class MadeFor(TypedDict):
    backbone: BackboneName
    settings: dict[str, JsonValue]
    training: dict[str, JsonValue]
    data: Digests
    dataset: NotRequired[str]


class Checkpoint(TypedDict, total=False):
    """What `save_model` of TrainerBase and of PromptTrainer write, besides the tensors."""

    epoch: Count
    step: Count
    trainer: str
    classnames: Names
    optimizers: list[dict[str, Any]]  # whether they fit is asked where a run goes on from them
    schedules: list[dict[str, Any] | None]
    optimizer: dict[str, Any] | None
    scheduler: dict[str, Any] | None
    precision: PrecisionState
    ranks: Positive
    threads: Positive
    activation_bytes: Positive
    extra: dict[str, Any]
    evaluated: dict[str, Any]
    best_result: Annotated[StrictFloat, Field(lt=math.inf)]  # which NaN is not, either; -inf before the first
    best_epoch: Count
    budget: dict[str, Count | None] | None
    finished: bool
    val_result: Finite | None


# ---- run folders ----
class Classes(TypedDict):
    name: list[str]
    total: NotRequired[list[Count]]
    accuracy: NotRequired[list[Percent | None]]
    precision: NotRequired[list[Percent | None]]
    recall: NotRequired[list[Percent | None]]
    f1: NotRequired[list[Percent | None]]


class Evaluation(TypedDict, total=False):
    eval_only: bool
    load_epoch: StrictInt | None
    checkpoint: str | None


class Overlap(TypedDict, total=False):
    test: Count
    val: Count
    of: Count
    by_path: Count
    val_train: Count
    part: str


class Backbone(TypedDict):
    NAME: str


class Model(TypedDict):
    BACKBONE: Backbone


class Dataset(TypedDict, total=False):
    ROOT: str
    NUM_SHOTS: StrictInt | None


class Config(TypedDict):
    """The few settings that are read from a stored config by name."""

    MODEL: Model
    DATASET: NotRequired[Dataset]


class EvaluatedRun(TypedDict, total=False):
    """The run whose prompts another run evaluates."""

    dataset: str
    name: str
    part: str
    seed: StrictInt
    settings: str


class RunIdentity(EvaluatedRun, total=False):
    """Which run it is, whatever its folder."""

    config: str
    source_domains: list[str]
    target_domains: list[str]
    shots: StrictInt | None
    eval_only: bool
    model: EvaluatedRun | None


class Features(TypedDict):
    """Of how many pictures the frozen features came from the feature store, and were computed."""

    stored: Count
    computed: Count


class TestTime(TypedDict):
    """Of a method that learns of test images, or is shown several views of them."""

    adapts: bool
    stateful: bool
    transductive: bool
    views: Count
    batch_size: NotRequired[Positive]


class Results(TypedDict):
    config: Config
    metrics: dict[str, dict[str, Finite | None]]
    evaluation: NotRequired[Evaluation | None]
    trainer: NotRequired[str]
    dataset: NotRequired[str]
    seed: NotRequired[StrictInt]
    run: NotRequired[RunIdentity | None]
    seconds: NotRequired[Annotated[StrictFloat, Field(ge=0, allow_inf_nan=False)]]
    overlap: NotRequired[Overlap | None]
    changed: NotRequired[dict[str, Annotated[list[JsonValue], Field(min_length=2, max_length=2)]] | None]
    stopped: NotRequired[dict[str, Count] | None]
    class_bound: NotRequired[bool]
    classes: NotRequired[Classes | None]
    domains: NotRequired[dict[str, Percent | None] | None]
    confusion: NotRequired[list[list[Count]]]
    dataset_digest: NotRequired[Digests | None]
    untested_classes: NotRequired[list[str]]
    backbone: NotRequired[BackboneName | None]
    budget: NotRequired[dict[str, Count | None] | None]
    trained_parameters: NotRequired[Count]
    test_time: NotRequired[TestTime]
    features: NotRequired[Features]
    without_effect: NotRequired[list[str]]
    init_weights: NotRequired[str | None]
    skipped_images: NotRequired[dict[str, JsonValue] | None]


# ---- lists of images ----
class Split(TypedDict, total=False):
    """What a split or a kept draw says of itself; its entries are checked where they are read."""

    source: str


KINDS = {
    "checkpoint": Checkpoint,
    "made_for": MadeFor,  # in a checkpoint
    "results": Results,
    "config": dict[StrictStr, JsonValue],
    "split": Split,
    "sentences": dict[StrictStr, list[StrictStr]],
    "jobs": dict[StrictStr, Annotated[StrictStr, Field(pattern=r"^\w{1,64}$")]],  # run folder -> Slurm job
}
ADAPTERS: dict[str, TypeAdapter] = {kind: TypeAdapter(schema) for kind, schema in KINDS.items()}
