"""Which trainers are checked, and one `Subject` for each, whose runs all checks share."""
import contextlib
import functools
from unittest import mock

import pytest

import train
from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from datasets import shapes

from .recorded import FilesOpened
from .subject import PART_SIZES, Subject

# One of each sort is checked with all other tests, and the rest with the slow ones: episodes, evaluated weights, a
# cache that is bound to its classes, nothing trained. Checks that make a run of their own are made with the first.
OF_EACH_SORT = ("MetaPrompt", "PromptSRC", "TipAdapterF", "ZeroshotCLIP")
RUN_OF_ITS_OWN = ("test_the_same_seed_gives_the_same_result", "test_another_seed_gives_another_result",
                  "test_workers_change_nothing", "test_the_smallest_batch", "test_an_odd_last_batch",
                  "test_amp_agrees_with_fp32", "test_steps_in_graphs_are_the_same_steps")


@functools.cache  # once: what a plugin registers is new only the first time
def names(config):
    """Those of --trainer; without, those that the --plugin files register; without these, the project's own."""
    option = config.getoption
    try:
        with contextlib.redirect_stdout(None):
            train.discover()
            before = dict(TRAINER_REGISTRY.items())
            train.discover(option("plugin"))
        for name in option("trainer"):
            TRAINER_REGISTRY.get(name)
    except InputError as error:
        raise pytest.UsageError(str(error)) from None
    known = dict(TRAINER_REGISTRY.items())
    if option("trainer"):
        return option("trainer")
    if option("plugin"):
        return [name for name, trainer in known.items() if before.get(name) is not trainer]
    return sorted(name for name, trainer in known.items() if trainer.__module__.startswith("trainers."))


def pytest_collection(session):
    names(session.config)  # a wrong name is said once and before anything is collected


def pytest_generate_tests(metafunc):
    if "subject" not in metafunc.fixturenames:
        return
    config = metafunc.config
    asked = (config.getoption("trainer") or config.getoption("plugin")
             or any("conformance" in str(argument) for argument in config.invocation_params.args))
    usual = OF_EACH_SORT[:1] if metafunc.function.__name__ in RUN_OF_ITS_OWN else OF_EACH_SORT
    metafunc.parametrize("subject", [
        name if asked or name in usual else pytest.param(name, marks=pytest.mark.slow)
        for name in names(config)], indirect=True, scope="session")


@pytest.fixture(scope="session")
def opened(tmp_path_factory):
    """A small Shapes, drawn, and the record of what is read of it."""
    root = tmp_path_factory.mktemp("data")
    with mock.patch.object(shapes, "PART_SIZES", PART_SIZES):
        shapes.write_shapes(root / "shapes")
    return FilesOpened(root)


@pytest.fixture(scope="session")
def subject(request, opened, tmp_path_factory):
    option = request.config.getoption
    options = [word for pair in option("opts") for word in pair]
    return Subject(request.param, option("plugin"), option("cfg"), options, opened.folder,
                   tmp_path_factory.mktemp(request.param), opened)
