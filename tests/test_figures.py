"""How figures look: one colour per method everywhere, whole legends, methods in their order, no bars of no length."""
import itertools
import os

import matplotlib.colors
import numpy as np
import pytest
from conftest import ROOT
from matplotlib.collections import LineCollection, PolyCollection
from matplotlib.container import ErrorbarContainer
from matplotlib.patches import Patch
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

from datasets import shapes
from docs.draw_overview import overview
from protocols import PROTOCOL_REGISTRY, Cells, Place
from protocols.parts import base_new_figures, figures, style
from protocols.parts.marks import Mark
from protocols.parts.numbers import Number
from tools import plot, protocol, report
from tools.results import training_curves
from tools.results.run_folders import find_runs
from written_runs import base2new, share, write_run

DOMAINS = ("photo", "painting", "cartoon", "sketch")
LONG = "AMethodWithANameThatIsAsLongAsAWholeLineOfTextIs"
FOUR = ["MetaPrompt", "ZeroshotCLIP", "CoOp", LONG]  # in no other order than that they were asked for


def results(accuracy):
    return {"metrics": {"test": {"accuracy": float(accuracy)}}, "config": {}}


def cells_of(kind, methods, seeds=(1, 2, 3), spread=1.0):
    """Cells of a protocol, methods in their order; accuracies of seeds differ by `spread`."""
    places = {
        "base2new": [("base2new", name, part, 16) for name in ("dtd", "eurosat", "ucf101")
                     for part in ("train_base", "test_new")],
        "dg": [("dg", "pacs", domain, 1) for domain in DOMAINS],
        "sdg": [("sdg", "pacs", f"{one}/{other}", 1) for one, other in itertools.permutations(DOMAINS, 2)],
        "xd": [("xd", "imagenet", name, 16) for name in ("imagenet", "caltech101", "oxford_pets", "dtd", "imagenetv2")],
        "fewshot": [("fewshot", "dtd", "all", shots) for shots in (1, 2, 4)],
    }[kind]
    return Cells({Place(name, dataset, method, "c", part, shots, seed): results(60 + i + (shots or 0) + spread * seed)
                  for i, method in enumerate(methods) for name, dataset, part, shots in places for seed in seeds})


def made(kind, cells, look=None):
    """[the figure that `compare` draws] of a protocol, laid out as it is saved."""
    names = style.method_names(cells)
    with style.plt.rc_context(style.STYLE):
        found = [drawing.draw(look or style.looks(names))
                 for drawing in PROTOCOL_REGISTRY.get(kind)().comparison_drawings(cells)]
        for figure in found:
            figure.canvas.draw()
    return found


@pytest.fixture(autouse=True)
def closed():
    yield
    style.plt.close("all")


def colours_of(figure):
    """{label: colour} of a figure's legend."""
    [legend] = figure.legends
    return {text.get_text().replace("\n", ""): matplotlib.colors.to_hex(
        handle.get_facecolor() if isinstance(handle, Patch) else handle.get_color()).upper()
        for text, handle in zip(legend.get_texts(), legend.legend_handles)}


KINDS = ("base2new", "dg", "sdg", "xd", "fewshot")


# Those of these two are drawn by the same code as dg's.
SAME_BARS = [pytest.param(kind, marks=pytest.mark.slow) if kind in ("sdg", "xd") else kind for kind in KINDS]


@pytest.mark.parametrize("kind", SAME_BARS)
@pytest.mark.parametrize("methods", [pytest.param(1, marks=pytest.mark.slow), 4, 19], ids=str)
def test_a_comparisons_figure_is_whole(kind, methods, tmp_path):
    """The legend lies in the figure and beside the axes, names the methods in the order asked; axes keep their room."""
    names = {1: ["CoOp"], 4: FOUR, 19: [*reversed(style.own_methods()[1:]), LONG]}[methods]
    figure = made(kind, cells_of(kind, names))[0]
    [legend] = figure.legends
    assert [text.get_text().replace("\n", "") for text in legend.get_texts()] == names
    box, renderer = legend.get_window_extent(), figure.canvas.get_renderer()
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 <= figure.bbox.height
    for axes in figure.axes:
        whole = axes.get_tightbbox(renderer)
        assert box.y1 <= whole.y0 + 1, "the legend lies over the axes"
        assert -1 <= whole.x0 and whole.x1 <= figure.bbox.width + 1 and whole.y1 <= figure.bbox.height + 1
        assert axes.get_legend() is None and axes.get_window_extent().height > 0.2 * style.WIDTH * figure.dpi
    labels = {axes.get_ylabel() for axes in figure.axes}
    assert all("(%)" in label for label in labels) and figure.axes[0].get_title()


def test_bars_are_wide_enough_to_be_told_apart():
    """At a column's width, also where there are nineteen methods and thirteen datasets."""
    for methods, parts in ((4, 4), (19, 4), (19, 13)):
        cells = Cells({Place("dg", "d", f"M{i:02d}", "c", f"part{part:02d}", 1, 1): results(50)
                       for i in range(methods) for part in range(parts)})
        with style.plt.rc_context(style.STYLE):
            figure = figures.bars(cells, "")
            figure.canvas.draw()
        drawn = [patch.get_window_extent().width / figure.dpi for axes in figure.axes for patch in axes.patches]
        assert len(drawn) == methods * (parts + 1) and min(drawn) > 0.06  # inches
        shown = [label.get_text() for axes in figure.axes for label in axes.get_xticklabels()]
        assert shown == [*(f"part{part:02d}" for part in range(parts)), "average"]
        assert figure.get_figheight() < 9  # a page


def test_a_single_part_has_no_average():
    with style.plt.rc_context(style.STYLE):
        figure = figures.bars(cells_of("dg", FOUR).where(part="photo"), "")
    assert [label.get_text() for label in figure.axes[0].get_xticklabels()] == ["photo"]


@pytest.mark.parametrize(("seeds", "spread", "bars"), [((1,), 1.0, False), ((1, 2, 3), 0.0, False),
                                                       ((1, 2, 3), 0.003, False), ((1, 2, 3), 1.0, True)])
@pytest.mark.parametrize("kind", SAME_BARS)
def test_error_bars_are_of_seeds_that_differ(kind, seeds, spread, bars):
    """One seed has none, nor do seeds whose deviation is printed as 0.00: not a line, a cap or a band."""
    [axes, *_] = made(kind, cells_of(kind, FOUR, seeds, spread))[0].axes
    found = [part for container in axes.containers if isinstance(container, ErrorbarContainer)
             for part in (*container[1], *container[2])]
    bands = [part for part in axes.collections if isinstance(part, PolyCollection)]
    lines = [part for part in axes.collections if isinstance(part, LineCollection)]
    assert bool(found or bands) == bars and (kind == "base2new" or bool(lines or bands) == bars)


def test_each_method_of_the_project_has_one_look_for_good():
    own = style.own_methods()
    assert own[:4] == ["ZeroshotCLIP", "CoOp", "CoCoOp", "MetaPrompt"] and len(own) == len(set(own)) >= 19
    for beside in ([], ["Abc"], ["CoOp (lr01)", *(f"Plugin{i}" for i in range(30))]):
        looks = style.looks([*beside, "CoOp"])
        assert {name: looks[name] for name in own} == style.looks(own)
        for told_by in ("marker", "hatch", "line"):
            assert len({(look["color"], look[told_by]) for look in looks.values()}) == len(looks) == \
                len(own) + len(beside)


def test_another_methods_look_follows_from_its_name():
    """Whatever is beside it, unless that has the very same look; and it has no colour of those compared by default."""
    names = ["caf\udce9", *(f"Plugin{i}" for i in range(11))]  # the first is no UTF-8
    alone = {name: style.looks([name])[name] for name in names}
    assert len({look["color"] for look in alone.values()}) > 1
    usual = {look["color"] for name, look in style.looks([]).items() if name in style.COMPARED}
    assert not usual & {look["color"] for look in alone.values()}
    for name, other in itertools.combinations(names, 2):
        beside = style.looks([other, name, "TCP"])
        assert beside[min(name, other)] == alone[min(name, other)]
        if alone[name] != alone[other]:
            assert beside[name] == alone[name] and beside[other] == alone[other]
        assert beside[name]["color"] != beside[other]["color"]


def test_a_replaced_method_keeps_its_look(monkeypatch):
    from dassl.engine import TRAINER_REGISTRY

    before, kgcoop = style.looks([]), TRAINER_REGISTRY.get("KgCoOp")
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "KgCoOp", type("KgCoOp", (kgcoop,), {"__module__": "elsewhere"}))
    monkeypatch.setitem(TRAINER_REGISTRY.replaced, "KgCoOp", kgcoop)
    monkeypatch.setitem(TRAINER_REGISTRY._objects, "Alpha", type("Alpha", (kgcoop,), {"__module__": "elsewhere"}))
    assert style.looks([]) == before


def test_a_method_has_one_colour_in_all_kinds_of_figures(tmp_path):
    """Also in folders where others are beside it, and in the training curves."""
    expected = {name: look["color"] for name, look in style.looks([*FOUR, "TCP"]).items()}
    for kind in KINDS:
        for names in (FOUR, ["TCP", *FOUR[1:]]):
            shown = colours_of(made(kind, cells_of(kind, names))[0])
            assert shown == {name: expected[name] for name in names}, kind
    radar = base_new_figures.radar(cells_of("base2new", FOUR))
    assert colours_of(radar) == {name: expected[name] for name in FOUR}
    where = {}
    for place in cells_of("dg", ["TCP", "CoOp"], seeds=(1,)):
        where[place] = str(tmp_path / place.folder)
        writer = SummaryWriter(tmp_path / place.folder / "tensorboard")
        for step in range(4):
            writer.add_scalar("train/loss", 2 - step / 4, step)
        writer.close()
    figure = training_curves.training(cells_of("dg", ["TCP", "CoOp"], seeds=(1,)), where, "a title")
    assert colours_of(figure) == {name: expected[name] for name in ("TCP", "CoOp")}
    assert figure.axes[-1].get_xlabel() == "training step"


def test_methods_stand_in_figures_as_in_the_reports_rows(tmp_path, monkeypatch):
    for place in cells_of("dg", FOUR):
        write_run(tmp_path, place, share(60 + place.seed), train=str(place.seed), test=place.part[:2])
    rows = [row[0] for row in report.main([str(tmp_path), "--compare"])[0].rows]
    assert rows == sorted(FOUR)
    drawn, before = [], plot.draw
    monkeypatch.setattr(plot, "draw", lambda make, path: drawn.append(make()) or before(make, path))
    plot.main([str(tmp_path), "--only", "dg"])
    assert list(colours_of(drawn[0])) == rows


def test_methods_without_a_number_are_left_out():
    cells = cells_of("dg", FOUR)
    cells.update({place: {"metrics": {}} for place in cells if place.trainer == "CoOp"})
    assert list(colours_of(made("dg", cells)[0])) == [name for name in FOUR if name != "CoOp"]
    assert made("fewshot", cells_of("fewshot", FOUR)) != []
    for kind in ("dg", "sdg", "xd"):
        [drawing] = PROTOCOL_REGISTRY.get(kind)().comparison_drawings(
            Cells({place: {"metrics": {}} for place in cells_of(kind, FOUR)}))
        assert drawing.draw(style.looks(FOUR)) is None


def test_a_mark_stands_beside_the_name_and_is_explained():
    cells = cells_of("dg", FOUR)
    for place, run in cells.items():
        if place.trainer == "CoOp":
            run["overlap"] = {"test": 3, "of": 100}
    figure = made("dg", cells)[0]
    assert list(colours_of(figure)) == [f"{name}*" if name == "CoOp" else name for name in FOUR]
    assert style.MARKED["*"] in figure.axes[0].get_title()
    assert style.labelled("A", [Number(1.0, None, frozenset({Mark("!", "x", base2new("A"))}))]) == "A!"


def test_titles_and_files_say_shots_and_seeds(tmp_path):
    expected = {"base2new": ["dtd_shots_16", "eurosat_shots_16", "ucf101_shots_16"], "dg": ["pacs_shots_1"],
                "sdg": ["pacs_shots_1"], "xd": ["imagenet_shots_16"], "fewshot": ["dtd_shots_1_2_4"]}
    for kind, names in expected.items():
        cells = cells_of(kind, FOUR, seeds=(1, 2))
        drawings = list(PROTOCOL_REGISTRY.get(kind)().comparison_drawings(cells))
        assert [drawing.name for drawing in drawings] == names
        title = made(kind, cells)[0].axes[0].get_title().replace("\n", " ")
        assert "2 seeds" in title and ("1 shot per class" in title or "shots per class" in title), title
    one = made("dg", cells_of("dg", FOUR, seeds=(1,)))[0].axes[0].get_title().replace("\n", " ")
    assert "1 shot per class and domain, 1 seed" in one and "seeds" not in one


def test_runs_of_several_shots_have_a_figure_each_by_default():
    """A protocol that says nothing of its figures can still be compared at several shots."""
    cells = Cells({Place("dg", "pacs", name, "c", part, shots, 1): results(50 + shots)
                   for name in FOUR for part in DOMAINS for shots in (1, 4)})
    assert len(made("dg", cells)) == 2
    drawings = PROTOCOL_REGISTRY.get("dg")().comparison_drawings(cells)
    assert [drawing.name for drawing in drawings] == ["pacs_shots_1", "pacs_shots_4"]


def test_compare_draws_the_figure_of_its_protocol(shapes_root, tmp_path, capsys, monkeypatch):
    """Methods stand in it in the order asked. One picture per class and part is enough to draw a bar."""
    monkeypatch.setattr(shapes, "PART_SIZES", dict.fromkeys(shapes.DOMAINS, (1, 1, 1)))
    words = ["compare", "--protocol", "dg", "--dataset", "shapes", "--trainer", "ZeroshotCLIP", "CoOp", "--seeds", "1",
             "--shots", "1", "--root", str(shapes_root), "--output", str(tmp_path), "OPTIM.MAX_EPOCH", "1"]
    protocol.main(words)
    assert os.path.join(str(tmp_path), "dg", "shapes_shots_1.png") in capsys.readouterr().out
    svg = (tmp_path / "dg" / "shapes_shots_1.svg").read_text()
    assert svg.index(">ZeroshotCLIP<") < svg.index(">CoOp<") and "1 shot per class and domain, 1 seed" in svg
    found, _ = find_runs([str(tmp_path)])
    assert len(found) == 8


def test_the_overview_is_what_the_code_draws(tmp_path):
    overview(tmp_path / "again.png")
    sizes, pixels = [], []
    for path in (tmp_path / "again.png", ROOT / "docs" / "overview.png"):
        assert path.stat().st_size < 200_000
        with Image.open(path) as image:
            sizes.append(image.size)
            pixels.append(np.asarray(image.convert("RGB"), int))
    assert sizes[0] == sizes[1] and sizes[0][0] == 1600
    assert (pixels[0][:4] == 255).all() and (pixels[0][:, :4] == 255).all()  # white, also on a dark page
    assert np.abs(pixels[0] - pixels[1]).mean() < 2, "run: python -m docs.draw_overview"
