"""The conformance suite finds what it is there for: each broken trainer fails the check meant for it."""
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch
from conformance.conftest import names

import train

ROOT = Path(__file__).resolve().parents[1]
BROKEN = ROOT / "tests" / "conformance" / "broken"
HEALTHY = ROOT / "tests" / "conformance" / "healthy"
KINDS = ROOT / "tests" / "plugins" / "kinds"
NOTHING_ELSE = "test_training_changes_what_the_method_says"
IN_PLACE = "test_frozen_features_in_the_place_of_images_change_nothing"
BESIDE = "test_frozen_features_beside_images_are_used_and_left_as_they_are"
IN_GRAPHS = "test_steps_in_graphs_are_the_same_steps"
FAILS = {
    "Healthy": [],
    "ScalesTheTower": ["test_frozen_weights_stay_frozen"],
    "RewiresTheTower": ["test_frozen_weights_stay_frozen"],
    "ListensInTheTower": ["test_frozen_weights_stay_frozen"],
    "OptimizesAPart": [NOTHING_ELSE],
    "PutsItBack": [NOTHING_ELSE],
    "DecaysWhatIsFrozen": [NOTHING_ELSE],
    "LeaksNewImages": ["test_training_sees_its_own_images_and_classes_only"],
    "LeaksNewNames": ["test_training_sees_its_own_images_and_classes_only"],
    "IgnoresTheSeed": ["test_the_same_seed_gives_the_same_result"],
    "KnowsOneSeed": ["test_another_seed_gives_another_result"],
    "SavesTheCLIP": ["test_the_checkpoint_holds_only_what_is_trained"],
    "SavesTheCLIPInHalf": ["test_the_checkpoint_holds_only_what_is_trained"],
    # Each evaluation draws other noise, and that of a module in training each batch: no logits are those of another.
    "DropsOutInEvaluation": ["test_evaluation_is_repeatable_and_without_gradients",
                             "test_the_order_of_test_images_changes_nothing", "test_the_test_batch_changes_nothing",
                             "test_what_is_evaluated_is_what_the_method_says"],
    "DropsOutWithoutAsking": ["test_evaluation_is_repeatable_and_without_gradients",
                              "test_what_is_evaluated_is_what_the_method_says"],
    "ClimbsItsLoss": ["test_the_loss_falls"],
    "ForgetsItsCalibration": ["test_the_checkpoint_gives_the_same_logits"],
    "DoesNotSayItIsClassBound": ["test_new_classes"],
    "LooksAtTheWholeBatch": ["test_the_test_batch_changes_nothing"],
    "ForgetsItsMomentum": ["test_a_resumed_run_ends_the_same"],
    "FeelsItsWorkers": ["test_workers_change_nothing"],
    "SqueezesItsBatch": ["test_the_smallest_batch"],
    "RoundsItsPrompt": ["test_amp_agrees_with_fp32"],
    "LeaksBetweenImages": ["test_the_order_of_test_images_changes_nothing"],
    "KeepsItsOwnOptimizer": ["test_evaluation_is_repeatable_and_without_gradients"],
    "AsksForGradients": ["test_evaluation_is_repeatable_and_without_gradients"],
    "HandsOnItsGraph": ["test_evaluation_is_repeatable_and_without_gradients"],
    "CountsItsTestImages": ["test_an_evaluation_leaves_all_as_it_was"],
    "LeavesItsAverageIn": ["test_the_checkpoint_gives_the_same_logits", "test_an_evaluation_leaves_all_as_it_was",
                           "test_what_is_evaluated_is_what_the_method_says"],
    "EvaluatesWhatItDoesNotSay": ["test_what_is_evaluated_is_what_the_method_says"],
    "KeepsNoCopy": ["test_what_is_evaluated_is_what_the_method_says"],
    "ForgetsItsAverage": ["test_the_checkpoint_gives_the_same_logits"],
    "LearnsItsImages": [IN_PLACE],
    "LooksAtItsPictures": [IN_PLACE],
    "ScalesFrozenFeaturesInPlace": [BESIDE],
    "HasNoUseForFrozenFeatures": [BESIDE],
    "CountsItsBatches": [IN_GRAPHS],
    "CountsItsEpochs": [IN_GRAPHS],
    "ReadsItsLoss": [IN_GRAPHS],
}
SKIPS = {  # of what a trainer says of itself
    "KeepsItsOwnOptimizer": ["test_the_order_of_test_images_changes_nothing", "test_the_test_batch_changes_nothing"],
}
STATED = {IN_PLACE, BESIDE, IN_GRAPHS}  # checks of what few trainers say
SAYS = {"Healthy": [IN_PLACE], **{name: failing for name, failing in FAILS.items() if STATED & {*failing}}}


def skipped_of(trainer, others):
    """The names of skipped checks: others, and those of what the trainer does not say."""
    return sorted([*others, *(name for name in STATED if name not in SAYS.get(trainer, ()))])


# The run itself is stopped: every check fails and says why.
STOPS = {
    "TrainsTheTower": "TrainsTheTower changes visual.ln_post.weight of the CLIP that all runs share; with "
                      "trains_towers = True",
    "EncodesItsImagesItself": "EncodesItsImagesItself does not run: pictures (B, 3, H, W) are needed, and frozen "
                              "features",
    "GetsNoGradient": "GetsNoGradient: no gradient reaches unused.ctx in the first step",
}
# One method of each kind passes; what its statements leave out is skipped.
UNTRAINED = ["test_the_loss_falls", NOTHING_ELSE, "test_the_checkpoint_holds_only_what_is_trained",
             "test_the_checkpoint_gives_the_same_logits", "test_another_seed_gives_another_result",
             "test_the_smallest_batch", "test_an_odd_last_batch", "test_what_is_evaluated_is_what_the_method_says",
             "test_a_resumed_run_ends_the_same"]
PASSES = {
    "LoRAParametrized": [], "LoRAWrapped": [], "LayerNormTuning": [], "FineTunedAverage": [], "PatchAttention": [],
    "EntropyOverViews": UNTRAINED,
    "BatchPrototypes": [*UNTRAINED, "test_the_test_batch_changes_nothing"],
    "FeatureCache": [*UNTRAINED, "test_the_order_of_test_images_changes_nothing"],
}
LEARNS_ALONG = {"LearnsAlongTheWay": ["test_the_order_of_test_images_changes_nothing"]}
CHECKS = 22


SUITE = "tests/conformance"


def first_of_each_check():
    """The first trainer of FAILS for each check. The others fail it in other ways; they are looked at with the slow
    tests, in all checks."""
    found, failed = {}, set()
    for name, failing in FAILS.items():
        if not failing or set(failing) - failed:
            found[name] = failing
            failed |= {*failing}
    return found


FIRST = first_of_each_check()


def pytest_on(tmp_path, *words, checks=(SUITE,)):
    folder = tmp_path / "runs"
    done = subprocess.run([sys.executable, "-m", "pytest", *checks, "-q", "-p", "no:cacheprovider",
                           "--basetemp", folder, *map(str, words)], cwd=ROOT, capture_output=True, text=True,
                          timeout=1800, check=False)
    shutil.rmtree(folder, ignore_errors=True)  # a whole CLIP in every checkpoint takes room
    return done


def check(tmp_path, *words, checks=(SUITE,)):
    """Run the suite, or some of its checks, as a user does; {trainer: {check: (outcome, message)}}."""
    report = tmp_path / "report.xml"
    done = pytest_on(tmp_path, "--junitxml", report, *words, checks=checks)
    assert report.is_file(), done.stdout + done.stderr
    outcomes = {}
    for case in ElementTree.parse(report).iter("testcase"):
        name, trainer = case.get("name").rstrip("]").split("[")
        found = {element.tag: element.get("message") for element in case
                 if element.tag in ("failure", "error", "skipped")}
        outcome = {"skipped": "skipped"}.get(*found, "failed") if found else "passed"
        outcomes.setdefault(trainer, {})[name] = outcome, "".join(map(str, found.values()))
    return outcomes


def with_outcome(found, wanted):
    return [name for name, (outcome, _) in found.items() if outcome == wanted]


def plugin_words(files):
    return [word for file in files for word in ("--plugin", file)]


def registered(files):
    """The names of the trainers that some files register."""
    return re.findall(r"register\(\)\nclass (\w+)", "".join(file.read_text() for file in files))


def shared(files, tmp_path_factory, chosen=None):
    """The outcomes of all trainers in some files, or of some checks of some of them, {trainer: [check]}; two processes
    share them."""
    files = sorted(files, key=lambda file: (-file.read_text().count("TRAINER_REGISTRY.register"), file.name))

    def outcomes_of(share):
        checks = [SUITE] if chosen is None else [f"{SUITE}/test_trainer.py::{name}[{trainer}]"
                                                 for trainer in registered(share) for name in chosen.get(trainer, ())]
        return check(tmp_path_factory.mktemp("shared"), *plugin_words(share), checks=checks)

    with ThreadPoolExecutor(2) as pool:
        found = pool.map(outcomes_of, (files[::4] + files[3::4], files[1::4] + files[2::4]))
        return {name: outcome for outcomes in found for name, outcome in outcomes.items()}


def every_check():
    text = (ROOT / SUITE / "test_trainer.py").read_text()
    return re.findall(r"^def (test_\w+)\(subject\)", text, re.MULTILINE)


@pytest.fixture(scope="module")
def meant(tmp_path_factory):
    """The outcomes of the checks that are meant to fail; all of a healthy trainer."""
    few = {**{name: failing or every_check() for name, failing in FIRST.items()}, **dict.fromkeys(
        STOPS, every_check()[:2]), **dict.fromkeys(LEARNS_ALONG, ["test_an_evaluation_leaves_all_as_it_was"])}
    return shared([*BROKEN.glob("*.py"), *HEALTHY.glob("*.py")], tmp_path_factory, few)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Those of all checks, which takes three times as long."""
    return shared([*BROKEN.glob("*.py"), *HEALTHY.glob("*.py")], tmp_path_factory)


@pytest.fixture(scope="module")
def outcomes_of_kinds(tmp_path_factory):
    return shared(KINDS.glob("*.py"), tmp_path_factory)


def test_every_trainer_is_known(meant):
    assert {*registered([*BROKEN.glob("*.py"), *HEALTHY.glob("*.py")])} == {*FAILS, *STOPS, *LEARNS_ALONG}
    assert set(meant) == {*FIRST, *STOPS, *LEARNS_ALONG}
    assert {check for failing in FIRST.values() for check in failing} == {
        check for failing in FAILS.values() for check in failing}
    assert len(every_check()) == CHECKS


@pytest.mark.parametrize("trainer", FIRST)
def test_a_broken_trainer_fails_the_check_meant_for_it(meant, trainer):
    assert with_outcome(meant[trainer], "failed") == FAILS[trainer]
    skipped = skipped_of(trainer, ())
    assert len(with_outcome(meant[trainer], "passed")) == (0 if FAILS[trainer] else CHECKS - len(skipped))


@pytest.mark.parametrize("trainer", STOPS)
def test_a_run_that_is_stopped_says_why(meant, trainer):
    for outcome, message in meant[trainer].values():
        assert outcome == "failed" and STOPS[trainer] in message.splitlines()[0]


@pytest.mark.slow
@pytest.mark.parametrize("trainer", FAILS)
def test_a_broken_trainer_fails_no_other_check(outcomes, trainer):
    assert len(outcomes[trainer]) == CHECKS
    assert with_outcome(outcomes[trainer], "failed") == FAILS[trainer]
    assert sorted(with_outcome(outcomes[trainer], "skipped")) == skipped_of(trainer, SKIPS.get(trainer, []))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", STOPS)
def test_a_run_that_is_stopped_says_why_in_every_check(outcomes, trainer):
    assert len(outcomes[trainer]) == CHECKS
    for outcome, message in outcomes[trainer].values():
        assert outcome == "failed" and STOPS[trainer] in message.splitlines()[0]


def require_passed(found, skipped):
    assert len(found) == CHECKS
    assert not with_outcome(found, "failed")
    assert sorted(with_outcome(found, "skipped")) == sorted(skipped)


@pytest.mark.slow
@pytest.mark.parametrize("trainer", LEARNS_ALONG)
def test_a_stateful_method_passes(outcomes, trainer):
    require_passed(outcomes[trainer], skipped_of(trainer, LEARNS_ALONG[trainer]))


@pytest.mark.slow
@pytest.mark.parametrize("trainer", PASSES)
def test_each_kind_of_method_passes(outcomes_of_kinds, trainer):
    assert set(outcomes_of_kinds) == set(PASSES)
    require_passed(outcomes_of_kinds[trainer], skipped_of(trainer, PASSES[trainer]))


@pytest.mark.slow
def test_a_foreign_trainer_is_checked_for_what_applies(tmp_path):
    found = check(tmp_path, "--trainer", "CoOp", "--plugin", ROOT / "tests" / "plugins" / "coop_style.py",
                  "--opts", "TRAINER.COOP.INIT.STD", "0.02", "--opts", "OPTIM.LR", "0.02")["CoOp"]
    assert len(found) == CHECKS and not with_outcome(found, "failed")
    assert sorted(with_outcome(found, "skipped")) == skipped_of("CoOp", [
        "test_the_checkpoint_holds_only_what_is_trained", "test_amp_agrees_with_fp32",
        "test_what_is_evaluated_is_what_the_method_says"])


@pytest.mark.parametrize(("given", "message"), [
    ({"trainer": ["CoOpp"]}, "unknown trainer 'CoOpp' (did you mean 'CoOp'?)"),
    ({"plugin": ["nowhere.py"]}, "--plugin nowhere.py: no such file")])
def test_a_wrong_name_is_an_error_of_usage(given, message):
    class Config:
        @staticmethod
        def getoption(name):
            return given.get(name, [])

    with pytest.raises(pytest.UsageError) as error:
        names(Config)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


@pytest.mark.slow  # which pytest tells in one line
@pytest.mark.parametrize(("words", "message"), [
    (("--trainer", "CoOpp"), "ERROR: unknown trainer 'CoOpp' (did you mean 'CoOp'?)"),
    (("--plugin", "nowhere.py"), "ERROR: --plugin nowhere.py: no such file"),
])
def test_a_wrong_name_gives_one_line(tmp_path, words, message):
    done = pytest_on(tmp_path, *words)
    assert done.returncode == pytest.ExitCode.USAGE_ERROR
    assert message in done.stderr and "Traceback" not in done.stdout + done.stderr


def test_a_run_that_loads_its_clip_trains_like_one_that_is_handed_it(arguments, tmp_path):
    """Loading draws numbers; dropout while training must not feel it."""
    clips = {}
    for name in ("loads", "is_handed"):
        train.main(arguments("Healthy", tmp_path / name, "--plugin", BROKEN / "healthy.py"), clips=clips)
    first, second = (torch.load(tmp_path / name / "prompt_learner" / "model.pth.tar-2", weights_only=True)
                     for name in ("loads", "is_handed"))
    assert torch.equal(first["state_dict"]["shift.ctx"], second["state_dict"]["shift.ctx"])
