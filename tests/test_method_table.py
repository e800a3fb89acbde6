"""The table of methods says what docstrings, configs and measurements say."""
from types import SimpleNamespace

import pytest
from torch import nn

from dassl.engine import TRAINER_REGISTRY
from dassl.utils import InputError
from tools import method_table
from tools.results import config_budgets


def own_trainers():
    return {name: cls for name, cls in TRAINER_REGISTRY.items() if cls.__module__.startswith("trainers.")}


def test_every_method_names_its_paper_and_what_it_learns():
    for name, trainer in own_trainers().items():
        paper, learned = method_table.subject(trainer)
        if name in ("MMA", "RPO"):  # which have none on arXiv that is known here
            assert paper == {"MMA": "CVPR 2024", "RPO": "ICCV 2023"}[name]
        else:
            assert paper.startswith("[2") and "arxiv.org" in paper, name
        assert (learned == "nothing") is not (trainer.trains or trainer.adapts) and learned != "-", name


def test_parameters_grow_with_the_classes_where_they_belong_to_them(monkeypatch):
    """A weight vector of 8 and a bias for each class, and 5 numbers beside."""
    class Trainer:
        trains = True

        def __init__(self, num_classes):
            self.num_classes = num_classes
            self.trainables = [0] * num_classes

    monkeypatch.setattr(method_table, "count_num_param", lambda params: 5 + 9 * len(params))
    build = lambda method, config, key, which: Trainer(12 if which == "base" else 24)  # noqa: E731
    assert method_table.parameters(build, "Some") == "5 + 9 per class"


def test_the_table_goes_between_its_marks(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(method_table, "Builder", lambda args: None)
    monkeypatch.setattr(method_table, "deviations", dict)
    monkeypatch.setattr(method_table, "row", lambda build, method, parity, args: [method] + ["x"] * 7)
    monkeypatch.setattr(method_table, "config_budget_rows", lambda methods: [[method, "4,000"] for method in methods])
    page = tmp_path / "page.md"
    first, second = ("\nearlier\n".join(marks) for marks in (method_table.MARKS, method_table.BUDGET_MARKS))
    page.write_text(f"before\n{first}\nbetween\n{second}\nbehind\n")
    method_table.main(["--trainer", "CoOp", "KgCoOp", "--write", str(page)])
    text = page.read_text()
    assert text.startswith("before\n") and text.endswith("\nbehind\n") and "earlier" not in text
    assert "| KgCoOp | x |" in text and "| KgCoOp | x |" in capsys.readouterr().out
    assert text.index("| KgCoOp | x |") < text.index("between") < text.index("| CoOp | 4,000 |\n| KgCoOp | 4,000 |")
    page.write_text("no marks")
    with pytest.raises(InputError, match="two marks"):
        method_table.main(["--trainer", "CoOp", "--write", str(page)])
    assert page.read_text() == "no marks"


@pytest.fixture
def registry(monkeypatch):
    """Trainers that are their config, with towers of no blocks."""
    def trainer(cfg, clips):
        text, image = (SimpleNamespace(stack=SimpleNamespace(transformer=SimpleNamespace(resblocks=[]))) for _ in "ti")
        return SimpleNamespace(cfg=cfg, model=nn.Module(), towers=SimpleNamespace(text=text, image=image))

    for module in (method_table, config_budgets):
        monkeypatch.setattr(module, "TRAINER_REGISTRY", {"CoOp": trainer})


def test_a_folder_that_begins_as_a_flag_is_a_folder(registry, monkeypatch):
    """A run is made from data, not from words that are parsed again."""
    monkeypatch.setattr(method_table, "random_vit_b16", lambda: None)
    args = SimpleNamespace(root="-data", opts=["OPTIM.LR", "0.5"])
    cfg = method_table.Builder(args)("CoOp", "tiny", "DATASET.SUBSAMPLE_CLASSES", "base").cfg
    assert (cfg.DATASET.ROOT, cfg.DATASET.SUBSAMPLE_CLASSES, cfg.OPTIM.LR, cfg.SEED) == ("-data", "base", 0.5, 1)
    monkeypatch.setattr(config_budgets, "small_vit", lambda: None)
    cfg = config_budgets.ConfigBudgets("-pictures").trainer("CoOp", "-out").cfg
    assert (cfg.DATASET.ROOT, cfg.OUTPUT_DIR, cfg.INPUT.SIZE, cfg.USE_CUDA) == ("-pictures", "-out", (32, 32), False)


@pytest.mark.slow
def test_a_row_is_measured(tmp_path, capsys):
    method_table.main(["--trainer", "LinearProbe", "--repeats", "2", "--root", str(tmp_path)])
    cells = [cell.strip() for cell in capsys.readouterr().out.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == "LinearProbe" and cells[3] == "513 per class" and cells[4] == "no" and float(cells[7]) > 0
