"""Whether a difference holds: the variance of seeds and images, its interval and p, and how often they are right."""
import csv
import gzip
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import scipy.stats
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm

import train
from benchmarks import holds
from benchmarks.holds import p_values, simulated
from dassl.utils import InputError
from protocols import Number, Place
from tools import report
from tools.results import significance
from tools.results.comparisons import comparisons
from tools.results.run_folders import find_runs
from tools.results.significance import Comparison, Variance, adjust, compare, variance_of
from written_runs import base2new, share, write_run


# ---- how often it is right ----
@pytest.fixture(scope="module")
def simulation():
    return holds.simulation(400)


def test_equal_methods_differ_in_at_most_five_of_a_hundred_comparisons(simulation):
    sizes = {setting: (equal < 0.05).mean() for setting, (equal, _) in simulation.items()}
    assert all(size <= 0.08 for size in sizes.values()), sizes  # 400 of each: 5 % and three standard deviations
    assert np.mean(list(sizes.values())) <= 0.05, sizes


def test_intervals_cover_the_true_difference(simulation):
    covered = {setting: (unequal >= 0.05).mean() for setting, (_, unequal) in simulation.items()}
    assert all(share >= 0.92 for share in covered.values()), covered
    assert np.mean(list(covered.values())) >= 0.95, covered


def test_small_p_values_are_as_rare_as_they_say(simulation):
    """What a correction for 18 pairs relies on. Satterthwaite's approximation has three times as many."""
    small = np.concatenate([equal for equal, _ in simulation.values()]) < 0.05 / 18
    assert small.mean() <= 1.5 * 0.05 / 18


def test_seeds_show_what_they_should(simulation):
    """With few seeds the test is careful, not blind: ten show a difference that three often do not."""
    rng = np.random.default_rng(1)
    found = [(p_values(simulated(rng, 200, seeds, 2.1, 10.0)) < 0.05).mean() for seeds in (3, 5, 10)]
    assert 0.4 < found[0] < found[1] < found[2] and found[2] > 0.99, found


# ---- its parts ----
def test_mean_squares_are_those_of_a_two_way_table():
    differences = np.random.default_rng(0).integers(-1, 2, (4, 7))
    table = pd.DataFrame([{"d": value, "seed": seed, "image": image} for (seed, image), value
                          in np.ndenumerate(differences)])
    squares = anova_lm(ols("d ~ C(seed) + C(image)", table).fit())["mean_sq"]
    found = variance_of([[differences]])
    assert [found.seeds, found.images, found.residual] == pytest.approx(list(squares / 28))
    assert (found.seeds_df, found.images_df) == pytest.approx((3, 6))
    assert found.total == max(found.seeds + found.images - found.residual, found.images)


def test_seeds_alone_give_their_t_test():
    """Where all images agree, only seeds vary: Student's test over their means."""
    differences = np.array([[1] * 9, [1] * 9, [0] * 9])
    found = compare("a", "b", [[differences]])
    known = scipy.stats.ttest_1samp(differences.mean(axis=1), 0)
    interval = known.confidence_interval()
    assert (found.p, found.low, found.high) == pytest.approx((known.pvalue, 100 * interval.low, 100 * interval.high))


def test_images_alone_give_their_t_test():
    """Where every seed says the same, as of methods that learn nothing, only images vary."""
    row = np.array([1, 0, 0, 1, -1, 0, 1, 1, 0, 0, 1])
    known = scipy.stats.ttest_1samp(row, 0)
    interval = known.confidence_interval()
    for found in (compare("a", "b", [[np.stack([row] * 3)]]), compare("a", "b", [[row[None]]], trained=False)):
        assert (found.p, found.low, found.high) == pytest.approx(
            (known.pvalue, 100 * interval.low, 100 * interval.high))
        assert found.seeds_needed() == np.inf  # more seeds would say the same


def test_seeds_that_agree_by_chance_do_not_hide_the_images():
    """Each seed gains one image of 20, another one each time: no spread over seeds, and still no certainty."""
    differences = np.zeros((3, 20), int)
    differences[[0, 1, 2], [3, 8, 11]] = 1
    found = compare("a", "b", [[differences]])
    assert found.difference == pytest.approx(5) and found.spread == pytest.approx(0, abs=1e-9)
    assert found.p == pytest.approx(scipy.stats.ttest_1samp(differences.mean(axis=0), 0).pvalue)


def test_test_sets_weigh_the_same_whatever_their_size():
    blocks = [[np.ones((3, 1000), int)], [np.zeros((3, 10), int)]]
    assert compare("a", "b", blocks).difference == 50


def test_rows_of_other_seeds_have_no_common_spread():
    blocks = [[np.ones((3, 10), int)], [np.zeros((3, 10), int)]]
    assert compare("a", "b", blocks).spread == 0 and compare("a", "b", blocks, aligned=False).spread is None


def test_trainings_of_their_own_add_their_variances():
    rng = np.random.default_rng(0)
    one, other = (rng.integers(-1, 2, (3, size)) for size in (40, 60))
    parts, both = [variance_of([[d]]) for d in (one, other)], variance_of([[one], [other]])
    for name in ("seeds", "images", "residual"):
        assert getattr(both, name) == pytest.approx(sum(getattr(part, name) for part in parts) / 4), name
    assert 2 < both.seeds_df <= 4


def test_one_training_on_several_test_sets_is_one_draw():
    """A seed that is a good one for every target does not average out over the targets."""
    rng = np.random.default_rng(0)
    sets = [rng.integers(0, 2, (3, 50)) + np.array([[0], [1], [-1]]) for _ in range(4)]
    together, apart = variance_of([sets]), variance_of([[d] for d in sets])
    assert together.seeds == pytest.approx(4 * apart.seeds, rel=0.3)
    assert together.seeds_df == pytest.approx(2) and apart.seeds_df == pytest.approx(8, rel=0.1)


def test_without_any_variance_the_images_that_differ_are_counted():
    everywhere, few = (compare("a", "b", [[np.ones((3, images), int)]]) for images in (50, 4))
    assert (everywhere.p, few.p) == (2.0 ** -49, 0.125) and everywhere.low is few.low is None
    assert compare("a", "b", [[np.ones((3, 5), int)], [np.zeros((3, 5000), int)]]).p == 2.0 ** -4
    assert compare("a", "b", [[np.zeros((3, 50), int)]]).p == 1
    assert compare("a", "b", [[np.ones((3, 1), int)]]).p is None


def test_p_and_interval_say_the_same():
    rng = np.random.default_rng(3)
    for differences in simulated(rng, 40, 3, 2.1, 6.0):
        found = compare("a", "b", [[differences]])
        assert (found.p < 0.05) == (found.low > 0 or found.high < 0)
        edge = found.variance.p_value((found.difference - found.low) / 100)
        assert edge == pytest.approx(0.05, abs=1e-4)


@pytest.mark.parametrize("p", [0.2, 1e-2, 1e-4, 1e-8])
def test_tails_are_those_of_t(p):
    assert Variance(1.0, 2, 0.0, np.inf, 0.0).half_width(p) == pytest.approx(scipy.stats.t.isf(p / 2, 2), rel=1e-3)


def test_seeds_needed_would_do():
    """As many seeds as are said to be needed show a true difference of that size in about 80 of 100 repetitions."""
    rng = np.random.default_rng(0)
    known = variance_of([[d] for d in simulated(rng, 300, 10, 3.6, 6.0)])  # 300 test sets: what is to be known of one
    for_one = Variance(*(300 * value if name in ("seeds", "images", "residual") else value / 300
                         for name, value in vars(known).items()))
    needed = Comparison("a", "b", 6.0, None, 300, 10, for_one).seeds_needed()
    shown = (p_values(simulated(rng, 300, needed, 3.6, 6.0)) < 0.05).mean()
    assert 0.7 <= shown <= 0.92, (needed, shown)


def test_more_pairs_and_smaller_differences_need_more_seeds():
    variance = Variance(0.0004, 2, 0.00005, 299, 0.00002)
    def needed(difference, pairs=1):
        return Comparison("a", "b", difference, None, 300, 3, variance, pairs=pairs).seeds_needed()

    assert 3 < needed(5.0) < needed(3.5) <= 100 and needed(5.0) < needed(5.0, pairs=18)
    assert needed(1.8) > significance.MOST_SEEDS and needed(0.5) == float("inf") and needed(0.0) is None


def test_holm():
    found = [Comparison("a", "b", 1, None, 10, 3, p=p) for p in (0.01, None, 0.04, 0.03)]
    assert [c.adjusted for c in adjust(found)] == [pytest.approx(0.03), None, pytest.approx(0.06), pytest.approx(0.06)]
    assert [c.holds for c in found] == [True, False, False, False]
    assert [c.pairs for c in found] == [3, 1, 3, 3]


def test_a_method_does_not_differ_from_itself(tmp_path):
    """Of 40 seeds any three and any other three, five or ten: as often as by chance."""
    rng = np.random.default_rng(0)
    hard = rng.random(200)
    for seed in range(40):
        right = hard + 0.3 * rng.random(200) < 0.7 + 0.1 * rng.standard_normal()
        write_run(tmp_path, base2new("A", seed), right, train=str(seed))
    table = holds.main(["--runs", str(tmp_path), "--splits", "200"])
    shares = {row[4]: float(row[-1]) for row in table.rows}
    assert set(shares) == {"3", "5", "10"} and max(shares.values()) <= 12


# ---- in a report ----
def rows_of(folder, *words):
    """{pair: {header: word}} of the last table, as it is printed."""
    [table] = report.main([str(folder), *words])[-1:]
    return {row[0]: dict(zip(table.headers, [word.text() if isinstance(word, Number) else word for word in row]))
            for row in table.rows}


def test_a_large_difference_holds_and_chance_does_not(tmp_path, capsys):
    rng = np.random.default_rng(0)
    for seed in (1, 2, 3):
        good, even, twin = rng.random(400) < 0.9, rng.random(400) < 0.6, rng.random(400) < 0.6
        for trainer, right in (("Good", good), ("Even", even), ("Twin", twin)):
            write_run(tmp_path, base2new(trainer, seed), right, train=str(seed))
    rows = rows_of(tmp_path)
    assert "fewer than three seeds nothing" in capsys.readouterr().out
    assert {frozenset(pair.split(" - ")) for pair in rows} == {
        frozenset(pair) for pair in (("Good", "Even"), ("Good", "Twin"), ("Even", "Twin"))}
    for pair, row in rows.items():
        assert row["holds"] == ("yes" if "Good" in pair else "no"), (pair, row)
        assert (row["images"], row["seeds"]) == ("400", "3")
    low, middle, high = (float(rows["Good - Even"][name].split()[0]) for name in ("95 % low", "difference", "high"))
    assert 10 < low < middle < high


def test_one_good_seed_of_three_does_not_hold(tmp_path):
    """-1.33, +9.00 and +0.67 points on 300 images: over images alone it would."""
    for seed, gain in zip((1, 2, 3), (-4, 27, 2)):
        for trainer, right in (("A", 200 + gain), ("B", 200)):
            write_run(tmp_path, base2new(trainer, seed), share(right, 300), train=str(seed))
    row = rows_of(tmp_path)["A - B"]
    assert row["difference"] == f"+2.78 +- {np.std([-4, 27, 2], ddof=1) / 3:.2f}"
    assert row["holds"] == "no" and float(row["p"]) > 0.4


def test_seeds_that_agree_hold(tmp_path):
    """+6.33, +6.33 and +8.33 points on 300 images."""
    for seed, gain in zip((1, 2, 3), (19, 19, 25)):
        for trainer, right in (("A", 250 + gain), ("B", 250)):
            write_run(tmp_path, base2new(trainer, seed), share(right, 300), train=str(seed))
    row = rows_of(tmp_path)["A - B"]
    assert row["difference"] == "+7.00 +- 1.15" and row["holds"] == "yes" and row["seeds needed"] == "-"


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_never_hold(seeds, tmp_path):
    for seed in range(seeds):
        for trainer, right in (("A", 290), ("B", 20)):
            write_run(tmp_path, base2new(trainer, seed), share(right, 300), train=str(seed))
    row = rows_of(tmp_path)["A - B"]
    assert row["difference"].startswith("+90.00") and row["holds"] == "too few seeds"
    assert {row[name] for name in ("95 % low", "high", "p", "p (Holm)", "seeds needed")} == {"-"}


def test_methods_that_draw_nothing_need_one_seed(tmp_path):
    for trainer, right in (("A", 290), ("B", 20)):
        write_run(tmp_path, Place("zeroshot", "dtd", trainer, "c", "all", None, 1), share(right, 300))
    assert rows_of(tmp_path)["A - B"]["holds"] == "yes"


def five_methods(folder):
    for i, trainer in enumerate("ABCDE"):
        for seed in (1, 2, 3):
            write_run(folder, base2new(trainer, seed), share(50 + i + seed % 2), train=str(seed))


def test_the_best_of_many_is_shown_and_every_pair_is_allowed_for(tmp_path):
    five_methods(tmp_path)
    rows = rows_of(tmp_path)
    assert list(rows) == ["E - D", "E - C", "E - B", "E - A"]
    assert all("p (Holm, 10 pairs)" in row for row in rows.values())
    alone = {pair: row["p"] for pair, row in rows_of(tmp_path, "--against", "E").items()}
    assert alone == {pair: row["p"] for pair, row in rows.items()}


def test_a_method_chosen_beforehand_makes_fewer_pairs(tmp_path):
    five_methods(tmp_path)
    rows = rows_of(tmp_path, "--against", "B")
    assert list(rows) == ["B - E", "B - D", "B - C", "B - A"] and "p (Holm, 4 pairs)" in rows["B - A"]
    assert list(rows_of(tmp_path, "--against", "B", "--compare", "A", "C")) == ["B - C", "B - A"]
    assert list(rows_of(tmp_path, "--compare", "A", "C")) == ["C - A"]


@pytest.mark.parametrize(("words", "said"), [
    (["--against", "F"], "--against: no runs of F here; there are: A, B, C, D, E"),
    (["--compare", "A", "F"], "--compare: no runs of F here; there are: A, B, C, D, E"),
    (["--compare", "A"], "a comparison needs two methods"),
    (["--compare", "A", "A"], "a comparison needs two methods"),
    (["--compare", "A", "--against", "A"], "a comparison needs two methods"),
    (["--against", "A", "--compare"], "leave one out"),
])
def test_a_comparison_that_cannot_be_made_is_refused(words, said, tmp_path, capsys):
    five_methods(tmp_path)
    assert train.command_line(lambda: report.main([str(tmp_path), *words])) == 2
    assert said in capsys.readouterr().err


def test_a_protocol_without_the_method_says_so(tmp_path, capsys):
    five_methods(tmp_path)
    for trainer in ("B", "Z"):
        write_run(tmp_path, Place("zeroshot", "dtd", trainer, "c", "all", None, 1), share(50))
    for seed in (1, 2, 3):
        write_run(tmp_path, base2new("B", seed, "test_new"), share(50), train=str(seed), test="c")
        write_run(tmp_path, base2new("C", seed, "test_new"), share(50), train=str(seed), test="c")
    tables = report.main([str(tmp_path), "--against", "A"])
    assert sum("does the difference hold" in table.title for table in tables) == 1
    said = capsys.readouterr().out
    assert "base to new, new classes: no comparison with A: a number is missing there" in said
    assert "without training: no comparison with A: a number is missing there" in said


def test_what_a_program_reads(tmp_path, capsys):
    five_methods(tmp_path)
    report.main([str(tmp_path), "--compare", "A", "B", "--format", "csv"])
    text = capsys.readouterr().out.split("does the difference hold?\n", 1)[1]
    [row] = csv.DictReader(line for line in text.splitlines() if line and not line.startswith("#"))
    assert float(row["difference"]) == 1 and float(row["difference std"]) == 0
    assert float(row["95 % low"]) < 1 < float(row["high"]) and 0 < float(row["p"]) < 1


def test_marks_stand_in_every_format(tmp_path, capsys):
    for trainer in "AB":
        for seed in (1, 2, 3):
            folder = write_run(tmp_path, base2new(trainer, seed), share(50 + seed), train=str(seed))
            results = json.loads((folder / "results.json").read_text())
            results["changed"] = {"INPUT.SIZE": [1, 2]} if trainer == "A" else {}
            (folder / "results.json").write_text(json.dumps(results))
    for form, mark in (("text", "+0.00 +- 0.00!"), ("latex", r"+0.00 $\pm$ 0.00$^{\dagger}$"), ("markdown", "0.00!")):
        report.main([str(tmp_path), "--format", form])
        assert mark in capsys.readouterr().out.split("does the difference hold", 1)[1], form


def test_only_seeds_that_both_have_are_paired(tmp_path):
    for trainer, seeds in (("A", (1, 2, 3, 4)), ("B", (2, 3, 4, 5))):
        for seed in seeds:
            write_run(tmp_path, base2new(trainer, seed), share(60 + seed), train=str(seed))
    row = rows_of(tmp_path)["B - A"]  # B has the higher mean, by a seed that A has not
    assert row["difference"] == "+0.00 +- 0.00" and row["seeds"] == "3 of both"


def test_seeds_are_counted_by_test_set(tmp_path):
    """Both have five seeds of one dataset and three of the other: nothing is left out."""
    for dataset, seeds in (("dtd", 5), ("eurosat", 3)):
        for trainer in "AB":
            for seed in range(seeds):
                write_run(tmp_path, base2new(trainer, seed, dataset=dataset), share(60 + seed), train=str(seed),
                          test=dataset[0])
    assert next(iter(rows_of(tmp_path).values()))["seeds"] == "3"


def test_domains_and_targets_share_their_seeds(tmp_path):
    """Of one training, or of trainings on the same images, a seed's luck is the same on all targets: it stays."""
    for protocol, fields in (("xd", {"dataset": "imagenet"}), ("dg", {"dataset": "pacs"}), ("base2new", {})):
        for trainer, gain in (("A", 6), ("B", 0)):
            for seed in (1, 2, 3):
                for target in ("dtd", "eurosat", "pets"):
                    place = base2new(trainer, seed, "test_new", target) if protocol == "base2new" else Place(
                        protocol, fields["dataset"], trainer, "c", target, 16, seed)
                    right = share(60 + gain * (1 + (seed - 2) / 2))
                    write_run(tmp_path / protocol, place, right, train=str(seed), test=target)
    found = {}
    for protocol in ("xd", "dg", "base2new"):
        cells, where = find_runs([str(tmp_path / protocol)])
        [table], _ = comparisons(cells, where)
        found[protocol] = dict(zip(table.headers, table.rows[0]))
    assert found["xd"]["p"] == found["dg"]["p"] and float(found["xd"]["p"]) > 5 * float(found["base2new"]["p"])
    assert {row["difference"].text() for row in found.values()} == {"+6.00 +- 3.00"}


def test_images_that_a_method_has_shuffled_are_paired_by_their_paths(tmp_path):
    tables = []
    for name in ("listed", "shuffled"):
        for seed in (1, 2, 3):
            write_run(tmp_path / name, base2new("A", seed), share(60 + seed))
            folder = Path(write_run(tmp_path / name, base2new("B", seed), share(40)))
            if name == "shuffled":
                file = folder / "predictions.csv.gz"
                header, *rows = gzip.decompress(file.read_bytes()).decode().splitlines(keepends=True)
                np.random.default_rng(seed).shuffle(rows)
                file.write_bytes(gzip.compress("".join([header, *rows]).encode()))
        cells, where = find_runs([str(tmp_path / name)])
        [table], _ = comparisons(cells, where)
        tables.append([repr(row) for row in table.rows])
    assert tables[0] and tables[0] == tables[1]


def test_predictions_for_other_images_are_not_paired(tmp_path):
    write_run(tmp_path, base2new("A"), share(50))
    write_run(tmp_path, base2new("B"), share(30, 60))
    with pytest.raises(InputError, match="same images"):
        report.main([str(tmp_path), "--compare", "A", "B"])


def test_shuffled_test_images_are_paired_by_their_paths(tmp_path):
    for name, rows in (("one", "a.png,0,0\nb.png,1,0\nc.png,1,1"), ("other", "c.png,1,0\na.png,0,0\nb.png,1,1")):
        (tmp_path / name).mkdir()
        text = "path,label,prediction,confidence\n" + "".join(f"{row},0.5\n" for row in rows.split("\n"))
        (tmp_path / name / "predictions.csv.gz").write_bytes(gzip.compress(text.encode()))
    found = significance.paired_differences([tmp_path / "one"], [tmp_path / "other"])
    assert found.tolist() == [[0, -1, 1]]


def test_tables_do_not_need_predictions(tmp_path, capsys):
    for trainer in "AB":
        write_run(tmp_path, base2new(trainer), share(50), predictions=False)
    report.main([str(tmp_path)])
    assert "Methods are not compared: no predictions.csv.gz" in capsys.readouterr().out
