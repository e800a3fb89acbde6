"""Names, values and answers that are more than text: bytes that are no UTF-8, escape sequences, line breaks, formulas,
markup. A run with them works whole, or is refused before it starts; nothing of them acts where it is printed."""
import csv
import io
import json
import os
import re
import shutil
import sys
import xml.etree.ElementTree

import drawn
import pytest
from conftest import ROOT
from fake_slurm import FakeSlurm
from tqdm import tqdm

import train
from dassl.data.overlap import ImageSet
from dassl.utils import setup_logger
from dassl.utils.text import EscapedStream, csv_text, escaped, printable
from datasets import files
from protocols import Number, Table
from protocols.parts.marks import Mark
from protocols.parts.tables import titled
from tools import plot, predict, protocol, report
from tools.results.run_folders import find_runs
from tools.results.significance import read_predictions
from tools.running import slurm_settings
from written_runs import base2new, share, write_run

LATIN = os.fsdecode(b"caf\xe9")  # as Python has a name whose bytes are no UTF-8
LINK = "\x1b]8;;http://x\x07here\x1b]8;;\x07"
HOSTILE = {"escape": "a\x1b[31mred", "link": LINK, "return": "good\rbad", "backspace": "bad\b\b\bgood", "bell": "a\x07",
           "clear": "\x1b[2J", "c1": "a\x9b31mred", "right_to_left": "a\u202egnp", "isolate": "a\u2066b\u2069",
           "mark": "a\u200fb", "separator": "a\u2028b", "delete": "a\x7f", "bytes": LATIN, "half": "a\ud800"}
ACTS = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069\ud800-\udfff]")

named = pytest.mark.parametrize("name", HOSTILE.values(), ids=HOSTILE)


@pytest.fixture(scope="module")
def picture(tmp_path_factory):
    path = tmp_path_factory.mktemp("picture") / "one.png"
    drawn.draw(path, "cat")
    return path


@pytest.fixture
def pictures(tmp_path, picture):
    """(names of files, names of classes) -> a folder of pictures of one's own."""

    def pictures(names=("a.png", "b.png", "c.png", "d.png"), classes=("cat", "dog"), folder="own"):
        for label, kind in enumerate(classes):
            (tmp_path / folder / kind).mkdir(parents=True)
            for number, name in enumerate(names):
                content = picture.read_bytes() + bytes([label, number])  # behind the picture: other files, though alike
                (tmp_path / folder / kind / name).write_bytes(content)
        return tmp_path / folder

    return pictures


@pytest.fixture
def run(arguments, clips, tmp_path):
    """(root, *words, method) -> what train.main returns for a folder of pictures; the run lies in tmp_path/out."""

    def run(root, *words, method="CoOp", output=tmp_path / "out"):
        return train.main(arguments(method, output, "OPTIM.MAX_EPOCH", "1", *words, dataset="image_folder", root=root),
                          clips=clips)

    return run


# ---- names of files ----
NAMES = {"latin": LATIN, "line": "a\nb", "return": "a\rb", "tab": "a\tb", "escape": "a\x1b[31mb",
         "direction": "a\u202eb", "c1": "a\x85b", "quotes": "a\",'b", "long": "x" * 250}


@pytest.mark.parametrize("name", NAMES.values(), ids=NAMES)
def test_a_file_may_have_any_name(name, pictures, run, tmp_path, capsys):
    root = pictures([f"{name}.png", f"{name[:240]}2.png", "c.png", f"{name[:240]}3.png"])
    (root / "cat" / f"{name[:240]}.txt").write_text("no picture")
    results = run(root)
    assert results == json.loads((tmp_path / "out" / "results.json").read_text()) == run(root)  # taken over
    record = json.loads((tmp_path / "out" / "split_drawn.json").read_text())
    kept = {path for part in ("train", "val", "test") for path, *_ in record[part]}
    assert kept == {os.path.relpath(path, root) for path in root.rglob("*.png")}
    assert set(read_predictions(tmp_path / "out")[0]) == {path for path, *_ in record["test"]}
    noted = ImageSet()
    assert noted.add_noted(tmp_path / "out") and {path for path, *_ in noted.noted} < kept
    log = (tmp_path / "out" / "log.txt").read_text()
    assert not ACTS.search(log) and not ACTS.search(capsys.readouterr().out)
    assert f"Left out, not an image that can be read: {printable(root / 'cat')}/{printable(name[:240])}.txt\n" in log


@pytest.mark.parametrize("name", [f"{LATIN}.png", "a\nerror: b.png", "a\x1b[31m.png", "ü.png", "a\u202eb.png"],
                         ids=ascii)
@pytest.mark.parametrize("form", ["--json", "--top=1"])
def test_a_file_of_any_name_is_predicted(name, form, pictures, run, tmp_path, capsys, clips, monkeypatch):
    monkeypatch.setattr("training.towers.load_clip", lambda path: clips[path])
    root = pictures([name, "b.png", "c.png", "d.png"])
    (root / "dog" / f"{name}.txt").write_text("no picture")
    (root / "dog" / f"x{name}").write_text("no picture")
    run(root)
    capsys.readouterr()
    assert train.command_line(lambda: predict.main(["--model-dir", str(tmp_path / "out"), str(root), form])) == 2
    told = capsys.readouterr()
    assert not ACTS.search(told.out + told.err) and told.err.count("\nerror: ") == 1
    if form == "--json":
        assert str(root / "cat" / name) in [entry["path"] for entry in json.loads(told.out)]
    else:
        assert printable(root / "cat" / name) in told.out and len(told.out.splitlines()) == 10


SPLITS = {"half": "\ud800.png", "null": "a\0b.png", "line": "a\nb.png", "long": "x" * 5000 + ".png",
          "folder": "\udce9/a.png", "escape": "\x1b[2J.png"}


@pytest.mark.parametrize("path", SPLITS.values(), ids=SPLITS)
def test_a_split_that_names_what_is_not_there_is_refused(path, drawn_root, arguments, clips, tmp_path, one_line):
    shutil.copytree(drawn_root / "caltech-101", tmp_path / "caltech-101")
    file = tmp_path / "caltech-101" / "split_zhou_Caltech101.json"
    split = json.loads(file.read_text())
    split["train"][0][0] = path
    file.write_text(json.dumps(split))
    line = one_line(lambda: train.main(arguments("CoOp", tmp_path / "out", root=tmp_path), clips=clips))
    assert "names 1 of 24 images that are not there" in line and not ACTS.search(line)


# ---- names of classes ----
def test_a_class_folder_that_is_not_text_is_refused(pictures, run, one_line):
    root = pictures(classes=("cat", "dog", LATIN))
    line = one_line(lambda: run(root))
    assert r"'caf\udce9', which is not text in UTF-8" in line and "rename the class" in line


@pytest.mark.parametrize("name", ["\ud800", "a\udce9", "\udfff b"], ids=ascii)
def test_a_class_of_a_split_that_is_not_text_is_refused(name, drawn_root, arguments, clips, tmp_path, one_line):
    shutil.copytree(drawn_root / "caltech-101", tmp_path / "caltech-101")
    file = tmp_path / "caltech-101" / "split_zhou_Caltech101.json"
    file.write_text(file.read_text().replace('"horse"]', json.dumps(name) + "]"))
    line = one_line(lambda: train.main(arguments("CoOp", tmp_path / "out", root=tmp_path), clips=clips))
    assert f"{ascii(name)}, which is not text in UTF-8" in line


def test_a_new_name_that_is_not_text_is_refused(pictures, run, tmp_path, one_line):
    (tmp_path / "names.json").write_text(r'{"cat": "a\ud800"}')
    line = one_line(lambda: run(pictures(), "DATASET.CLASSNAMES", tmp_path / "names.json"))
    assert r"the new name of 'cat' is 'a\ud800', which is not text" in line


def test_a_class_to_choose_that_is_not_text_is_refused(one_line):
    line = one_line(lambda: predict.given_classes([f"a,{LATIN}"], None))
    assert r"--classes: 'caf\udce9' is not text in UTF-8" in line


@pytest.mark.parametrize("name", ["a\n* accuracy: 99.99%", "a\n=> result", LINK, "a\tb", "a\u202eb", "a\x9b31mb",
                                  "<b>&", "$x^2$"], ids=ascii)
def test_a_class_of_any_text_trains_and_says_nothing_else(name, pictures, run, tmp_path, capsys):
    root = pictures(classes=("cat", "dog", name.replace("/", "")))
    results = run(root, "TEST.PER_CLASS_RESULT", "True")
    assert name.replace("/", "") in results["classes"]["name"]
    told = capsys.readouterr().out
    assert not ACTS.search(told) and told.count("\n* accuracy: ") == told.count("\n=> result\n") == 1
    assert f"  {printable(name.replace('/', ''))} " in told.partition("=> per-class result")[2]
    assert (tmp_path / "out" / "log.txt").read_text() == told


# ---- folders of runs, other paths ----
@pytest.mark.parametrize("folder", ["a\nb", "a\rb", "a\tb", "a\x1b[2J", "a\u202eb", LATIN, "a\x7f", "a\u2028b"],
                         ids=ascii)
@pytest.mark.parametrize("program", ["train", "protocol"])
def test_a_run_folder_that_cannot_be_printed_is_refused(program, folder, arguments, tmp_path, one_line):
    path = str(tmp_path / folder)
    words = {"train": lambda: train.main(arguments("CoOp", path)),
             "protocol": lambda: protocol.main(["base2new", "--trainer", "CoOp", "--dataset", "shapes", "--root",
                                                str(tmp_path), "--output", path])}
    line = one_line(words[program])
    assert "OUTPUT_DIR" in line and "control characters" in line and not os.path.exists(path)


@pytest.mark.parametrize("what", ["root", "backbone", "config", "plugin", "plugin's folder", "class names"])
@pytest.mark.parametrize("name", [LATIN, "a\nb", "a\x1b[31m b"], ids=ascii)
def test_other_paths_may_be_any(what, name, pictures, run, tmp_path, tiny_config, clip_file, capsys):
    places = {"root": "", "backbone": f"{name}.pt", "config": f"{name}.yaml", "plugin": f"{name}.py",
              "plugin's folder": f"{name}/mine.py", "class names": f"{name}.txt"}
    path, words = tmp_path / places[what], ()
    path.parent.mkdir(exist_ok=True)
    if what == "backbone":
        shutil.copy(clip_file, path)
        words = ("--backbone", path)
    elif what == "config":
        shutil.copy(tiny_config, path)
        words = ("--config-file", path)
    elif what.startswith("plugin"):
        path.write_text("")
        words = ("--plugin", path)
    elif what == "class names":
        path.write_text("cat = lion")
        words = ("DATASET.CLASSNAMES", path)
    root = pictures(folder=name if what == "root" else "own")
    assert train.command_line(lambda: run(root, *words, "VERBOSE", "True", "OPTIM.MAX_EPOCH", "1")) == 0
    assert train.command_line(lambda: run(root, *words, "VERBOSE", "True")) == 0  # is known again by its config.yaml
    told = capsys.readouterr()
    assert not ACTS.search(told.out + told.err) and "Finished before" in told.out


# ---- what is printed ----
@named
@pytest.mark.parametrize("stream", ["out", "err"])
def test_nothing_printed_acts_on_a_terminal(stream, name, capsys):
    assert train.command_line(lambda: print(f"the file {name}\tis ü", file=getattr(sys, f"std{stream}"))) == 0
    told = getattr(capsys.readouterr(), stream)
    assert told == f"the file {escaped(name)}\tis ü\n" and not ACTS.search(told) and "\\" in told


@named
def test_an_error_shows_what_it_names(name, one_line):
    line = one_line(lambda: train.parse_arguments(["--seed", name]))
    assert not ACTS.search(line) and "\\" in line


@named
def test_the_log_and_the_console_show_what_was_printed(name, tmp_path, capsys):
    former, logger = sys.stdout, setup_logger(str(tmp_path))  # as called in Python, without the program's own streams
    try:
        print(name)
    finally:
        logger.close()
    assert sys.stdout is former
    assert (tmp_path / "log.txt").read_text() == f"{escaped(name)}\n" == capsys.readouterr().out


@pytest.mark.parametrize("name", ["return", "escape", "link"])
def test_a_bar_of_progress_moves_the_cursor_and_a_name_in_it_does_not(name):
    terminal = io.StringIO()
    for _ in tqdm(range(2), desc=HOSTILE[name], file=EscapedStream(terminal, bars=True), ascii=True, mininterval=0):
        tqdm(range(2), file=EscapedStream(terminal, bars=True), position=1).close()
    shown = terminal.getvalue()
    assert shown.count("\r") > 1 and "\x1b[A" in shown and f"\r{escaped(HOSTILE[name])}: 100%|##" in shown


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r"])
def test_a_terminal_without_the_characters_ends_no_run(encoding, pictures, run, tmp_path, monkeypatch):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    root = pictures(classes=("chat", "Grüne Äpfel", "猫"))
    assert train.command_line(lambda: run(root, "TEST.PER_CLASS_RESULT", "True")) == 0
    assert r"\u732b" in written.getvalue().decode(encoding) and (tmp_path / "out" / "results.json").is_file()
    assert "Grüne Äpfel" in (tmp_path / "out" / "log.txt").read_text(encoding="utf-8")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("name", ["Äpfel", "a\x1b[2J\u202e", "a\x9b2J", LATIN, "猫"], ids=ascii)
def test_predictions_are_json_on_any_terminal(name, encoding, monkeypatch):
    def show():
        out = predict.JsonArray()
        out.begin()
        out.put(predict.Prediction(f"{name}.png", [(name, 0.5)]))
        out.close()

    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding, write_through=True))
    assert train.command_line(show) == 0
    [read] = json.loads(written.getvalue().decode(encoding))
    assert read == {"path": f"{name}.png", "top": [{"class": name, "probability": 0.5}]}


def test_a_left_out_file_is_one_line(capsys):
    files.report_left_out(["a\nFinish training.jpg"], "own")
    assert capsys.readouterr().out == "Left out, not an image that can be read: own/a\\nFinish training.jpg\n" \
                                      "1 file of own left out\n"


@pytest.mark.parametrize("word", ["a\rb", "a\r\nb", "a\nb", 'a"b', "a,b", "\r", "plain", LATIN], ids=ascii)
def test_a_list_as_csv_is_read_back(word):
    rows = [["path", "label"], [word, "1"], ["b.png", word]]
    assert list(csv.reader(io.StringIO(csv_text(rows), newline=""))) == rows


# ---- tables ----
MARKUP = {"pipe": "a|b", "code": "a`b`", "bold": "**a**", "emphasis": "_a_ *b*", "html": "<img src=x onerror=y>",
          "link": "[a](http://x)", "math": "$\\input{/etc/passwd}$", "line": "a\n| b | c |", "entity": "&lt;b",
          "macro": "\\write18{x}", "power": "a^b~c", "comment": "a%b", "group": "}{", "cell": "a & b \\\\",
          "hash": "#1", "optional": "[2pt]", "star": "*x"}


def table(word):
    number = Number(81.5, 0.25, frozenset({Mark("*", word, base2new(word, dataset=word))}))
    return Table(word, [word, "H"], [[word, number], ["other", Number(80.0)]], ("H",), sources=((word, word),))


@pytest.mark.parametrize("word", MARKUP.values(), ids=MARKUP)
def test_markup_in_a_markdown_table_is_text(word):
    lines = titled(table(word), "markdown").splitlines()
    rows = [line for line in lines if line.startswith("|")]
    assert len(rows) == 4 and {len(re.findall(r"(?<!\\)(?:\\\\)*\|", row)) for row in rows} == {3}
    [cell] = re.findall(r"^\| (.+?) +\| 81.50 ± 0.25", rows[2])
    plain = re.sub(r"\\(.)", r"\1", cell)
    assert plain == printable(word)
    for line in (cell, *(line for line in lines if not line.startswith("|"))):
        bare = re.sub(r"\\.", "", line)
        assert not re.search(r"[`<\[|$&]|(?<!\w)_(?=\S)", bare), line
        assert bare.count("*") == (4 if line == lines[0] else 0)


@pytest.mark.parametrize("word", [*MARKUP.values(), *HOSTILE.values()], ids=[*MARKUP, *HOSTILE])
def test_markup_in_a_latex_table_is_text(word):
    lines = titled(table(word), "latex").splitlines()
    assert lines[0].startswith("% ") and lines[1].startswith(r"\begin{tabular}")  # a comment is one line
    assert len(lines) == 11
    assert not any(ACTS.search(line) for line in lines)
    for line in lines[1:]:
        rest = re.sub(r"\\(?:textbackslash|textasciicircum|textasciitilde|textless|textgreater|textbar)\{\}|\\[&%$#_{}]"
                      r"|\$\^\{\*\}\$|\$\\pm\$|\\textbf|\\par|\\footnotesize|\\(?:begin|end)\{tabular\}|\{lr\}|\\hline|"
                      r"\\\\$", "", line)
        assert not re.search(r"[\\^~$%#_<>|]", rest), line
        assert rest.count("{") == rest.count("}") and rest.count("&") == ("&" in rest)
        assert not re.match(r"\s*[\[*]", line), line


@pytest.mark.parametrize("word", ["=1+1", "+cmd|' /C calc'!A0", "-2+3+cmd", "@SUM(A1)", "\t=1", "\r=1", "=\n1", "＝1+1",
                                  "-x", "+1+1", "a,=1+1", 'a",=1+1', "=HYPERLINK(\"http://x\")"], ids=ascii)
def test_no_cell_of_a_csv_table_is_a_formula(word):
    text = titled(table(word), "csv")
    rows = list(csv.reader(io.StringIO(text, newline="")))
    assert len(rows) == 6 and rows[2][0] in (printable(word), f"'{printable(word)}")
    for row in rows:
        for cell in row:
            assert not re.match(r"\s*[=+@＝\t\r-](?!$)(?!\d+(\.\d+)?$)", cell), cell


@pytest.mark.parametrize("word", ["-0.5", "+1.25", "-", "-1e-05", "12", "0.0001", "a-b", "1 of 2", "CoOp - MaPLe", ""])
def test_numbers_and_plain_words_of_a_csv_table_stay_as_they_are(word):
    assert Table("t", ["x"], [[word]]).render("csv").splitlines()[1:] == ([word] if word else ['""'])


@pytest.mark.parametrize("form", ["text", "markdown", "csv", "latex"])
@pytest.mark.parametrize("name", ["A\n# B", "=1+1", "$x$_", LATIN, "A\x1b[2J", "A|B"], ids=ascii)
def test_a_report_of_any_names_is_printed(name, form, tmp_path, capsys):
    for method, config in ((name, "vit_b16"), ("B", name)):
        for part in ("train_base", "test_new"):
            write_run(tmp_path, base2new(method, dataset=name, part=part, config=config), share(50))
    assert train.command_line(lambda: report.main([str(tmp_path), "--format", form])) == 0
    told = capsys.readouterr()
    assert not ACTS.search(told.out) and not told.err
    if form == "csv":
        assert not any(cell[:1] in "=+@" for row in csv.reader(io.StringIO(told.out)) for cell in row if cell)
    assert not any(line.startswith("# B") for line in told.out.splitlines())


@pytest.mark.parametrize("name", ["$\\frac{1$", "$x$", "_hidden", LATIN, "a\x1b[2Jb", "a\nb",
                                  "</text><script>"], ids=ascii)
def test_a_figure_shows_names_as_they_are(name, tmp_path):
    folder = name.replace("/", "")
    for method in (folder, "B"):
        for part in ("train_base", "test_new"):
            write_run(tmp_path / "runs", base2new(method, dataset="dtd", part=part), share(50))
    cells, where = find_runs([str(tmp_path / "runs")])
    made = plot.figures(cells, where, str(tmp_path / "figures"), ("base2new",))
    [svg] = [file for file in made if file.endswith(".svg")]
    drawn_text = "".join(xml.etree.ElementTree.parse(svg).getroot().itertext())
    assert "".join(printable(folder).split()) in "".join(drawn_text.split())


# ---- the batch script ----
def parameters(tmp_path, *words, file=None):
    parser = train.ArgumentParser()
    slurm_settings.add_arguments(parser)
    if file is not None:
        (tmp_path / "cluster.yaml").write_text(file)
        words = (*words, "--cluster", str(tmp_path / "cluster.yaml"))
    return slurm_settings.slurm_parameters(parser.parse_args(list(words)))


@pytest.mark.parametrize("key", ["partition", "account", "qos", "mem", "gpus", "time", "slurm"])
@pytest.mark.parametrize(("place", "value"), [
    *((place, value) for place in ("flag", "file") for value in ("big\ntouch x", "big\r", "big\x1b[2J", "big\u2028x")),
    ("flag", f"big{LATIN}")], ids=ascii)  # a YAML file is UTF-8
def test_a_word_for_sbatch_is_one_line(place, key, value, tmp_path, one_line):
    if place == "flag":
        words, file = (f"--{key}", f"comment={value}" if key == "slurm" else value), None
    else:
        words, file = (), f"{key}: " + (f"{{comment: {json.dumps(value)}}}" if key == "slurm" else json.dumps(value))
    line = one_line(lambda: parameters(tmp_path, *words, file=file))
    assert "batch script" in line and key in line


@pytest.mark.parametrize(("place", "key"), [
    *((place, key) for place in ("flag", "file") for key in ("x\ntouch", "X", "", "x y", "x;y")), ("file", "x=y")],
    ids=ascii)
def test_an_option_of_sbatch_has_a_name(place, key, tmp_path, one_line):
    words = ("--slurm", f"{key}=1") if place == "flag" else ()
    file = f"slurm: {{{json.dumps(key)}: a}}" if place == "file" else None
    assert "long option" in one_line(lambda: parameters(tmp_path, *words, file=file))


@pytest.mark.parametrize(("folder", "part"), [("a%jb", "a % in its path"), ("50%", "a % in its path"),
                                              ("a\\b", "a \\ in its path"), ("a\nb", "control characters"),
                                              (f"a{LATIN}", "control characters")], ids=ascii)
@pytest.mark.parametrize("where", ["output", "folder one is in"])
def test_the_folder_of_the_jobs_is_no_pattern(where, folder, part, tmp_path, monkeypatch, one_line):
    """sbatch would put the jobs' files where nobody looks for them, or run the rest of a line."""
    slurm = FakeSlurm(tmp_path / "slurm", monkeypatch)
    (tmp_path / folder).mkdir()
    if where != "output":
        monkeypatch.chdir(tmp_path / folder)
    words = ["base2new", "--trainer", "CoOp", "--dataset", "shapes", "--root", str(tmp_path), "--output",
             str(tmp_path / folder) if where == "output" else "out", "--launcher", "slurm"]
    assert part in one_line(lambda: protocol.main(words))
    assert not slurm.jobs() and not list(tmp_path.rglob("sweep"))


def test_the_name_of_a_job_is_one_line(tmp_path, monkeypatch, one_line):
    FakeSlurm(tmp_path / "slurm", monkeypatch)
    (tmp_path / "mine.py").write_text("from trainers.coop import CoOp\nfrom dassl.engine import TRAINER_REGISTRY\n"
                                      "TRAINER_REGISTRY.register()(type('A\\ntouch x', (CoOp,), {}))\n")
    words = ["base2new", "--trainer", "A\ntouch x", "--dataset", "shapes", "--root", str(tmp_path), "--output",
             str(tmp_path / "out"), "--launcher", "slurm", "--plugin", str(tmp_path / "mine.py"), "--cfg",
             str(ROOT / "configs/trainers/CoOp/vit_b16.yaml")]
    one_line(lambda: protocol.main(words))
    assert not list((tmp_path / "slurm").glob("*.sh"))
