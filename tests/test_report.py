"""Tables and figures of run folders, and the statistics that tell a difference from chance."""
import csv
import io
import json
import re
import xml.etree.ElementTree

import numpy as np
import pytest
from conftest import ROOT
from PIL import Image
from torch.utils.tensorboard import SummaryWriter

import train
from dassl.utils import InputError
from protocols import PROTOCOL_REGISTRY, Number, Place, Table, average
from protocols.parts import base_new_figures, figures, style
from protocols.parts.marks import Mark
from protocols.parts.tables import titled
from tools import plot, report
from tools.results import run_folders, training_curves
from tools.results.published import published, sources
from written_runs import base2new, share, write_run


def cells(text):
    return [re.split(r"\s{2,}", line.strip()) for line in text.splitlines()]


@pytest.fixture
def output(tmp_path):
    """Base to new on two datasets, two methods, two seeds; accuracies in percent as written below."""
    numbers = {("A", "dtd"): ((80, 60), (84, 64)), ("B", "dtd"): ((70, 70), (70, 74)),
               ("A", "eurosat"): ((90, 50), (90, 50)), ("B", "eurosat"): ((60, 40), (62, 40))}
    for (trainer, dataset), seeds in numbers.items():
        for seed, values in enumerate(seeds, start=1):
            for part, value in zip(("train_base", "test_new"), values):
                write_run(tmp_path, base2new(trainer, seed, part, dataset), share(value), train=str(seed),
                          test=part[1] + dataset[0])
    return tmp_path


def test_methods_by_datasets_with_averages(output, capsys):
    tables = report.main([str(output), "--compare"])
    titles = [table.title for table in tables]
    assert titles == ["base to new, base", "base to new, new", "base to new, H", "base to new, average of 2 datasets"]
    base, _, h, total = (cells(table.render()) for table in tables)
    assert base[0] == ["method", "dtd", "eurosat", "average"]
    assert base[2] == ["A", "82.00 +- 2.83", "90.00 +- 0.00", "86.00 +- 1.41"]
    assert base[3] == ["B", "70.00 +- 0.00", "61.00 +- 1.41", "65.50 +- 0.71"]
    assert total[0] == ["method", "base", "new", "H"]
    # H of the averaged accuracies, not the average of H
    assert total[2] == ["A", "86.00 +- 1.41", "56.00 +- 1.41", f"{2 * 86 * 56 / (86 + 56):.2f}"]
    assert h[2][1] == f"{2 * 82 * 62 / (82 + 62):.2f}"
    assert "backbone ViT-B/16, shots 16, seeds 1, 2" in capsys.readouterr().out


def test_a_number_that_does_not_exist_is_a_dash_and_leaves_its_average_out(output, tmp_path):
    for part in ("train_base", "test_new"):
        for seed in (1, 2):
            folder = output / base2new("B", seed, part, "eurosat").folder
            (folder / "results.json").unlink()
    write_run(output, base2new("C", 1, "train_base", "dtd"), share(50), train="1", test="rd")
    tables = report.main([str(output), "--compare"])
    new = {row[0]: row[1:] for row in cells(tables[1].render())[2:]}
    assert new["B"] == ["72.00 +- 2.83", "-", "-"] and new["C"] == ["-", "-", "-"]
    total = {row[0]: row[1:] for row in cells(tables[-1].render())[2:]}
    assert total["B"] == ["-", "-", "-"]
    assert "0.00" not in " ".join(new["C"] + total["C"])


def test_formats(output, capsys):
    report.main([str(output), "--format", "markdown", "--compare", "--dataset", "dtd"])
    markdown = capsys.readouterr().out
    assert re.search(r"^\| A +\| +\*\*82.00 ± 2.83\*\* \| +62.00 ± 2.83 \| +70.61 \|$", markdown, re.M)
    assert re.search(r"^\| B +\| +70.00 ± 0.00 \| +\*\*72.00 ± 2.83\*\* \| +\*\*70.99\*\* \|$", markdown, re.M)
    report.main([str(output), "--format", "latex", "--compare", "--dataset", "dtd"])
    latex = capsys.readouterr().out
    assert r"\textbf{82.00 $\pm$ 2.83}" in latex and r"\end{tabular}" in latex and "_" not in latex
    report.main([str(output), "--format", "csv", "--compare", "--dataset", "dtd"])
    lines = [line for line in capsys.readouterr().out.splitlines() if line and not line.startswith("#")]
    rows = list(csv.DictReader(io.StringIO("\n".join(lines))))
    assert float(rows[0]["base"]) == 82 and float(rows[0]["base std"]) == pytest.approx(8 ** 0.5, abs=1e-4)
    report.main([str(output), "--format", "text", "--compare", "--dataset", "dtd"])
    assert "**" not in capsys.readouterr().out


def test_latex_writes_out_its_own_characters():
    """In a cell, a header, a bold cell and the line of a mark; numbers and marks are LaTeX already."""
    written = {"&": r"\&", "%": r"\%", "$": r"\$", "#": r"\#", "_": r"\_", "{": r"\{", "}": r"\}",
               "\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}",
               "<": r"\textless{}", ">": r"\textgreater{}", "|": r"\textbar{}"}
    place = base2new("A_B")
    for character, escaped in written.items():
        word, expected = f"p {character} 0.0001", f"p {escaped} 0.0001"
        number = Number(81.5, 0.25, frozenset({Mark("*", word, place)}))
        lines = Table(word, [word, "H"], [[word, number], [word, Number(80.0)]], ("H",)).render("latex").splitlines()
        first, second = (next(line for line in lines if said in line).split(" & ", 1) for said in ("81.50", "80.00"))
        assert first[0].strip() == second[0].strip() == expected and first[1].count(r"$\pm$") == 1
        header = next(line for line in lines if line.strip().endswith(r"H \\"))
        assert header.strip().startswith(expected)
        assert expected in lines[-1] and r"A\_B" in lines[-1] and lines[-1].startswith(r"\par {\footnotesize $^{*}$ ")
    assert titled(Table("a\nb", ["x"], [["y"]]), "latex").startswith("% a b\n")


def test_equal_numbers_are_both_best(tmp_path, capsys):
    for trainer in "AB":
        write_run(tmp_path, base2new(trainer), share(50))
    report.main([str(tmp_path), "--format", "markdown", "--compare"])
    assert capsys.readouterr().out.count("**50.00**") == 2


@pytest.mark.parametrize(("changed", "parts"), [
    ({"backbone": "RN50"}, ["backbone", "ViT-B/16", "RN50", "--backbone"]),
    ({"shots": 4}, ["number of shots", "16", "4", "--shots"]),
    ({"test": "x"}, ["digest of the test images", "xxxxxx", "dtd"]),
    ({"train": "x"}, ["seed 1", "digest of the training images"]),
])
def test_runs_that_differ_are_refused(tmp_path, changed, parts, capsys):
    write_run(tmp_path, base2new("A"), share(50))
    other = write_run(tmp_path, base2new("B"), share(60), **changed)
    assert train.command_line(lambda: report.main([str(tmp_path)])) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ") and said.err.count("\n") == 1 and said.out == ""
    assert [part for part in [*parts, str(other)] if part not in said.err] == [], said.err


def test_runs_whose_answers_depend_on_the_test_batch_must_have_batches_of_one_size(tmp_path):
    for seed, size in ((1, 100), (2, 50)):
        folder = write_run(tmp_path, base2new("A", seed=seed), share(50), train=str(seed))
        results = json.loads((folder / "results.json").read_text())
        kinds = {"adapts": False, "stateful": False, "transductive": True, "views": 0, "batch_size": size}
        (folder / "results.json").write_text(json.dumps({**results, "test_time": kinds}))
    with pytest.raises(InputError, match="A: images per test batch, on which its answers depend: 100 in .*, 50 in "):
        report.main([str(tmp_path)])


def test_runs_of_other_shots_are_told_apart_by_a_flag(tmp_path):
    write_run(tmp_path, base2new("A"), share(50))
    write_run(tmp_path, base2new("A", shots=4), share(40), train="c")
    with pytest.raises(InputError, match="--shots"):
        report.main([str(tmp_path)])
    [table] = report.main([str(tmp_path), "--shots", "4"])
    assert cells(table.render())[2][1] == "40.00"


def test_what_is_no_run_is_told(tmp_path):
    with pytest.raises(InputError, match="no folder"):
        report.main([str(tmp_path / "nowhere")])
    with pytest.raises(InputError, match="no finished run"):
        report.main([str(tmp_path)])
    write_run(tmp_path, base2new("A"), share(50))
    with pytest.raises(InputError, match="there are: A"):
        report.main([str(tmp_path), "--trainer", "B"])
    write_run(tmp_path, base2new("C"), share(50))
    with pytest.raises(InputError, match="no runs of B"):
        report.main([str(tmp_path), "--compare", "A", "B"])


def test_other_protocols(tmp_path):
    for trainer in "AB":
        for seed in (1, 2):
            for part, value in (("sketch", 40), ("photo", 90)):
                write_run(tmp_path, Place("dg", "pacs", trainer, "c", part, 1, seed), share(value + seed),
                          train=part[0] + str(seed), test=part)
            for shots in (1, 2):
                write_run(tmp_path, Place("fewshot", "dtd", trainer, "c", "all", shots, seed), share(30 * shots),
                          train=f"{shots}{seed}")
            for part, value in (("imagenet", 70), ("dtd", 45), ("eurosat", 55), ("imagenet_a", 50)):
                write_run(tmp_path, Place("xd", "imagenet", trainer, "c", part, 16, seed), share(value),
                          train=part, test=part)
        write_run(tmp_path, Place("zeroshot", "dtd", trainer, "c", "all", None, 1), share(44))
    tables = {table.title: cells(table.render()) for table in report.main([str(tmp_path), "--compare"])}
    assert tables["pacs, each domain left out in turn"][2] == ["A", "91.50 +- 0.71", "41.50 +- 0.71", "66.50 +- 0.71"]
    assert tables["dtd, all classes, by shots"][0] == ["method", "1", "2"]
    xd = tables["trained on imagenet"]
    assert xd[0] == ["method", "imagenet", "dtd", "eurosat", "imagenet_a", "average", "average of variants"]
    assert xd[2][-2:] == ["50.00 +- 0.00", "50.00 +- 0.00"]
    assert tables["without training"][2] == ["A", "44.00", "44.00"]


@pytest.mark.parametrize("protocol", PROTOCOL_REGISTRY.registered_names())
def test_a_place_is_read_from_its_folder(protocol, tmp_path):
    fields = {"part": "test_new" if protocol == "base2new" else "art painting", "shots": 4}
    fields |= {"part": "art painting/photo"} if protocol == "sdg" else {}
    fields |= {"part": "all"} if protocol in ("fewshot", "zeroshot") else {}
    fields |= {"shots": None} if protocol == "zeroshot" else {}
    place = Place(protocol=protocol, dataset="d.1", trainer="T+", config="vit_b16", seed=12, **fields)
    assert Place.parse(tmp_path / place.folder) == place
    assert Place.parse(tmp_path / place.folder / "more") is None


def test_averages_over_seeds_that_differ_have_no_deviation():
    assert average([{1: 10.0, 2: 20.0}, {1: 30.0}]) == Number(22.5)
    assert average([{1: 10.0, 2: 20.0}, {1: 30.0, 2: 30.0}]) == Number(22.5, pytest.approx(12.5 ** 0.5))
    assert average([{1: 10.0}, {}]) == Number() and average([]) == Number()


# ---- published numbers ----
def entries():
    """[(protocol or other, trainer, numbers)] of all that is published, those of some shots each on their own."""
    return [(part, trainer, entry) for part, methods in published().items() for trainer, numbers in methods.items()
            for entry in ([numbers] if "source" in numbers else numbers.values())]


def values_of(entry):
    return {name: value for name, value in entry.items() if name not in ("source", "note")}


def test_published_numbers_have_dated_sources():
    known, used = sources(), {entry["source"] for _, _, entry in entries()}
    assert used == set(known)
    for key, source in known.items():
        assert set(source) == {"document", "table", "version", "read"} and re.fullmatch("[a-z0-9-]+", key)
        assert re.search(r"arXiv \d{4}\.\d{5}|(?i:readme) of [\w-]+/[\w-]+", source["document"]), key
        assert re.fullmatch(r"commit [0-9a-f]{7,8}|v\d+|version not known", source["version"]), key
        assert re.fullmatch(r"2026-\d\d(-\d\d)?", source["read"]), key
    for part, trainer, entry in entries():
        assert part in {*PROTOCOL_REGISTRY.registered_names(), "other"} and trainer in train.TRAINER_REGISTRY
        assert all(isinstance(value, float) and 0 < value < 100 for value in values_of(entry).values()), trainer


def test_published_h_is_that_of_the_averages():
    found = [(trainer, entry) for _, trainer, entry in entries() if "H" in entry]
    assert len(found) > 12
    for trainer, entry in found:
        harmonic = 2 * entry["base"] * entry["new"] / (entry["base"] + entry["new"])
        assert entry["H"] == pytest.approx(harmonic, abs=0.05) or entry.get("note"), trainer


def test_published_numbers_are_those_of_the_configs_that_ship():
    """What a config's comment expects is in published.yaml under its method, and what is compared is in a comment."""
    expected, configs = {}, ROOT / "configs" / "trainers"
    for path in configs.glob("*/*.yaml"):
        header = " ".join(line[1:].strip() for line in path.read_text().splitlines() if line.startswith("#"))
        _, word, text = header.partition("Expected")
        numbers = {float(number) for number in re.findall(r"(?<![\d.])\d\d\.\d{1,2}(?!\d)", text)}
        assert not numbers or "tools/results/published.yaml" in text, path
        expected.setdefault(path.parent.name, set()).update(numbers)
    stored = {trainer: set() for trainer in expected}
    for _, trainer, entry in entries():
        stored[trainer].update(values_of(entry).values())
    for trainer, numbers in expected.items():
        assert numbers <= stored[trainer], trainer
    for trainer, entry in published()["base2new"].items():
        assert set(values_of(entry).values()) <= expected[trainer], trainer


def test_the_page_of_results_prints_what_is_stored():
    text = (ROOT / "docs" / "RESULTS.md").read_text()
    rows = [[word.strip() for word in line.strip("|").split("|")] for line in text.splitlines() if line[:2] == "| "]
    for part, trainer, entry in entries():
        if part != "other":
            row = [f"{value:.{1 if part == 'dg' else 2}f}" for value in values_of(entry).values()]
            assert [found for found in rows if found[0].startswith(trainer) and found[1:-1] == row], (trainer, row)
            source = sources()[entry["source"]]
            assert [found for found in rows if found[-2:] == [source["version"], source["read"]]], trainer


def test_published_averages_stand_beside_measured_ones(tmp_path):
    for dataset, value in (("pacs", 90), ("vlcs", 80)):
        for part in ("x", "y"):
            write_run(tmp_path, Place("dg", dataset, "MetaPrompt", "c", part, 1, 1), share(value), test=part)
    table = report.main([str(tmp_path), "--published"])[-1]
    rows = {row[1]: [word.text() for word in row[3:5]] for row in table.rows}
    assert rows == {"pacs": ["90.00", "96.90"], "vlcs": ["80.00", "81.10"]}
    read = ("README of Vill-Lab/2024-TIP-MetaPrompt (Zhao et al., arXiv 2212.04196), Domain Generalization; commit "
            "ca996074, read 2026-11-26")
    assert table.render().splitlines()[-1] == f"[metaprompt-dg] {read}"
    assert table.render("csv").splitlines()[-1] == f"# [metaprompt-dg] {read}"


def test_an_average_of_fewer_datasets_is_not_compared(tmp_path):
    for part in ("train_base", "test_new"):
        write_run(tmp_path, base2new("CoOp", part=part), share(80))
    table = report.main([str(tmp_path), "--published"])[-1]
    assert [row[3].text() for row in table.rows] == ["-", "-", "-"]
    assert table.rows[0][1] == "1 of 11 datasets" and table.rows[0][4].text() == "82.69"


# ---- figures ----
def drawn(files):
    """Every file is a picture: PNGs of a column's width, SVGs that parse and hold their words as text."""
    for name in files:
        if name.endswith(".png"):
            with Image.open(name) as image:
                assert image.width == pytest.approx(3.3 * 300, abs=2), name
                assert np.asarray(image.convert("L")).std() > 5, name
        else:
            xml.etree.ElementTree.parse(name)
    return {re.sub(r".*/|\.(png|svg)$", "", name) for name in files}


def test_figures(output):
    for dataset in ("sun397", "ucf101"):
        for trainer in "AB":
            for part in ("train_base", "test_new"):
                for seed in (1, 2):
                    write_run(output, base2new(trainer, seed, part, dataset), share(60), train=str(seed), test="z")
    for trainer in "AB":
        for seed in (1, 2):
            for part in ("sketch", "photo"):
                write_run(output, Place("dg", "pacs", trainer, "c", part, 1, seed), share(60 + seed), train=str(seed))
            for shots in (1, 2, 4):
                folder = write_run(output, Place("fewshot", "dtd", trainer, "c", "all", shots, seed),
                                   share(50 + 5 * shots), train=f"{seed}{shots}")
                writer = SummaryWriter(folder / "tensorboard")
                for step in range(20):
                    writer.add_scalar("train/loss", 2 - step / 20, step)
                    writer.add_scalar("train/acc", 50 + step, step)
                    writer.add_scalar("train/lr", 0.1, step)
                writer.close()
    files = plot.main([str(output)])
    assert drawn(files) == {
        "base2new_dtd", "base2new_eurosat", "base2new_sun397", "base2new_ucf101", "base2new_average", "base2new_radar",
        "dg_pacs", "fewshot_dtd", "training_fewshot_dtd"}
    assert all(str(output / "figures") in name for name in files)
    svg = (output / "figures" / "dg_pacs.svg").read_text()
    assert all(word in svg for word in ("sketch", "photo", "average", "accuracy (%)"))
    assert drawn(plot.main([str(output), "--only", "radar", "--to", str(output / "else")])) == {"base2new_radar"}


def drawn_of(make, *args):
    """The matplotlib figure that a function of protocols/parts makes, with its labels laid out."""
    with style.plt.rc_context(style.STYLE):
        figure = make(*args)
        figure.canvas.draw()
    return figure


def test_one_seed_has_no_error_bars(output):
    """Neither points nor bars: a deviation that is not known is not a deviation of 0."""
    for seeds, points, bars in (((1,), 0, 0), ((1, 2), 1, 2)):
        chosen = run_folders.find_runs([str(output)])[0]
        chosen = type(chosen)({place: run for place, run in chosen.items() if place.seed in seeds})
        figure = drawn_of(base_new_figures.base_against_new, chosen.where(dataset="eurosat"), "")
        found = [line for container in figure.axes[0].containers for line in container.lines[2]]
        assert len(found) == points  # B's base accuracies are 60 and 62, the others are the same for both seeds
        figure = drawn_of(figures.bars, chosen.where(dataset="dtd"), "")
        assert sum(len(container.lines[2]) for container in figure.axes[0].containers
                   if isinstance(container, style.ErrorbarContainer)) == bars
        style.plt.close("all")


LONG = ["CoOp", "MetaPrompt", "AMethodWithANameThatIsAsLongAsAWholeLineOfText", *(f"Method{i:02d}" for i in range(16))]


@pytest.mark.parametrize("names", [LONG[:3], LONG[2:4], LONG], ids=len)
@pytest.mark.parametrize("make", [base_new_figures.base_against_new, base_new_figures.radar, figures.bars,
                                  figures.curves])
def test_legends_lie_within_the_figure(names, make, tmp_path):
    for name in names:
        for dataset in ("dtd", "eurosat", "sun397"):
            for part in ("train_base", "test_new"):
                write_run(tmp_path, base2new(name, 1, part, dataset), share(60), test=part[0])
        for shots in (1, 2):
            write_run(tmp_path, Place("fewshot", "dtd", name, "c", "all", shots, 1), share(50 + shots),
                      train=str(shots), test="z")
    protocol = "fewshot" if make is figures.curves else "base2new"
    chosen = run_folders.find_runs([str(tmp_path)])[0].where(protocol=protocol)
    if make is figures.bars:
        chosen = chosen.where(dataset="dtd")
    figure = drawn_of(make, chosen, *([] if make is base_new_figures.radar else ["a title"]))
    legends = [*figure.legends, *filter(None, (axes.get_legend() for axes in figure.axes))]
    [box] = [legend.get_window_extent() for legend in legends]
    assert 0 <= box.x0 and box.x1 <= figure.bbox.width and 0 <= box.y0 and box.y1 <= figure.bbox.height
    assert len(legends[0].get_texts()) == len(names)
    axes = figure.axes[0].get_window_extent()
    assert figure.legends == [] or box.y1 <= axes.y0 + 1
    room = 0.4 if len(figure.axes) == 1 else 0.25  # bars of many methods stand in several rows
    assert axes.height > room * style.WIDTH * figure.dpi  # many methods leave the axes their room
    style.plt.close("all")


def test_a_method_has_one_colour_whatever_else_is_drawn():
    alone, beside = style.looks(["CoOp"]), style.looks(["Zeta", "CoOp", "ZeroshotCLIP", "Alpha"])
    assert alone["CoOp"] == beside["CoOp"]
    looks = [tuple(look.items()) for look in style.looks(LONG).values()]
    assert len(set(looks)) == len(looks)
    assert len({(look["color"], look["hatch"]) for look in style.looks(LONG).values()}) == len(looks)  # bars
    assert len({(look["color"], look["line"]) for look in style.looks(LONG).values()}) == len(looks)  # lines


def test_a_method_has_one_colour_in_all_figures_of_a_folder(output):
    """B is in every figure, beside other methods in each."""
    for part in ("sketch", "photo"):
        for trainer in ("B", "AA", "Z"):
            write_run(output, Place("dg", "pacs", trainer, "c", part, 1, 1), share(60), train=part[0], test=part)
    used = {}
    for name in plot.main([str(output), "--only", "base2new", "dg"]):
        if name.endswith("svg"):
            used[name] = {colour for colour in style.COLOURS if colour.lower() in open(name).read().lower()}
    look = style.looks(["A", "B", "AA", "Z"])
    assert all((look["B"]["color"] in colours) for colours in used.values()) and len(used) == 4
    assert [look["A"]["color"] in colours for name, colours in used.items()] == ["dg" not in name for name in used]


def test_the_training_figure_of_each_target_is_named(tmp_path):
    for part in ("sketch", "art_painting"):
        folder = write_run(tmp_path, Place("dg", "pacs", "A", "c", part, 1, 1), share(60), train=part[0], test=part)
        writer = SummaryWriter(folder / "tensorboard")
        for step in range(3):
            writer.add_scalar("train/loss", 2 - step / 20, step)
        writer.close()
    files = plot.main([str(tmp_path), "--only", "training"])
    assert drawn(files) == {"training_dg_pacs_art_painting", "training_dg_pacs_sketch"}
    for name in files:
        if name.endswith("painting.svg"):
            assert "trained for the target art painting" in open(name).read()


def test_nothing_to_draw_is_told(tmp_path):
    write_run(tmp_path, base2new("A"), share(50))
    with pytest.raises(InputError, match="nothing to draw of radar"):
        plot.main([str(tmp_path), "--only", "radar"])


def test_scalars_of_a_run_that_was_cut_are_joined(tmp_path):
    for start, value in ((0, 1.0), (3, 2.0)):
        writer = SummaryWriter(tmp_path / "tensorboard")
        for step in range(start, start + 5):
            writer.add_scalar("train/loss", value, step)
        writer.close()
    steps, values = training_curves.scalars(str(tmp_path))["train/loss"]
    assert steps.tolist() == list(range(8)) and values[2] == 1 and values[7] == 2


def test_json_of_another_kind_is_refused(tmp_path):
    folder = write_run(tmp_path, base2new("A"), share(50))
    (folder / "results.json").write_text(json.dumps([1]))
    with pytest.raises(InputError, match="not a run's results"):
        report.main([str(tmp_path)])
