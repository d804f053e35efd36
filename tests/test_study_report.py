"""The page of a study says what the study found: no difference without its verdict, nothing missing as a number."""

import csv
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import wandb
from studies import CRPS, REFERENCE, SCORES, SETTINGS, SYSTEMS, made
from test_report import Page

from sample.record import Written, log_once, log_to_wandb
from sample.study import figures, tables
from sample.study.report import write
from sample.study.words import markdown

DASH = tables.MISSING


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    found = tmp_path_factory.mktemp("study") / "fair"
    assert write(found, made()) == found / "report.html"
    return found


@pytest.fixture(scope="module")
def text(folder):
    return (folder / "report.html").read_text()


@pytest.fixture(scope="module")
def page(text):
    return Page(text)


def cell(study, table, setting, system):
    """A cell of a table by setting and system."""
    label = next(each[3] for each in SETTINGS if each[0] == setting)
    (row,) = (cells for name, cells in table.rows if name == label and cells)
    return row[table.heads.index(SYSTEMS[system])]


def test_the_page_stands_alone(text, page):
    without = re.sub(r'src="data:image/png;base64,[^"]*"', "", text)
    assert "//" not in without, "no address outside the page"
    assert "src=" not in without and "<script" not in text
    assert page.images and all(image["alt"] and image["src"].startswith("data:image/png") for image in page.images)


def test_every_sentence_is_there(page):
    study = made()
    said = [study["title"], study["question"], study["rerun"]]
    said += [each[part] for each in study["findings"] for part in ("claim", "evidence")]
    said += [study["config"], '"score_sha256": "0d1e<2>"', '"commit": "abc1"', "coarse-4/score"]
    said += [setting["note"] for setting in study["settings"]]
    for sentence in said:
        assert sentence in page.text, sentence
    for words in ("✓ holds", "✗ does not hold", "? cannot be told"):
        assert page.text.count(words) == 1


def test_it_says_how_often_a_system_is_better_worse_or_neither(page):
    """0.52 to 0.55, 0.97 to 0.95 and 1.11 to 1.04, known to 3 %; two settings are not shared."""
    sentence = "in 3 settings: better in 1, worse in 1, not to be told apart in 1."
    assert f"By CRPS, {SYSTEMS['alone']} beside {SYSTEMS[REFERENCE]}, {sentence}" in page.text


@pytest.mark.parametrize(
    ("better", "own", "rival", "significant", "kind"),
    [
        ("low", -0.4, 0.6, True, "better"),
        ("low", 1.6, 0.6, True, "worse"),
        ("low", -0.4, 0.6, False, "open"),
        ("one", 0.9, 0.6, True, "better"),
        ("one", 0.9, 0.88, True, "better"),  # intervals overlap, but the dates are the same and both lie below 1
        ("one", 1.12, 1.1, True, "worse"),
        ("one", 1.01, 0.6, True, "better"),  # on both sides of 1, but nearer whatever it is
        ("one", 0.6, 1.01, True, "worse"),
        ("one", 1.5, 0.6, True, "other"),  # 0.5 above and 0.4 below
        ("one", 0.945, 1.056, True, "other"),
        ("one", 1.056, 0.945, True, "other"),
        ("zero", -0.3, 0.6, True, "better"),
        ("zero", -0.7, -0.6, True, "worse"),
        ("zero", -0.02, 0.05, True, "other"),
        ("", 1.6, 0.6, True, "other"),
    ],
)
def test_a_verdict_knows_which_value_is_best_and_by_how_much_each_is_known(better, own, rival, significant, kind):
    """Each value is known to 0.12."""
    study, gap = made(), own - rival
    study["scores"]["crps"] = SCORES["crps"] | {"better": better}
    for system, value in (("score", own), (REFERENCE, rival)):
        of = {"value": value, "interval": [value - 0.06, value + 0.06]}
        study["results"]["coarse-4"][system]["crps"]["mean"] = of
    difference = {"value": gap, "interval": [gap - 2, gap + 2], "significant": significant}
    study["differences"]["coarse-4"]["score"]["crps"]["mean"] = difference
    assert tables.verdict(study, "coarse-4", "score", "crps") == kind
    assert cell(study, tables.differences(study, "crps"), "coarse-4", "score").verdict == kind


def test_a_difference_looks_unlike_one_that_is_none(tmp_path):
    """The same number, once shown to be one and once not: another sign and another colour."""
    drawn = []
    for significant in (True, False):
        study = made()
        study["differences"]["coarse-8"]["alone"]["crps"]["mean"]["significant"] = significant
        text = write(tmp_path, study).read_text()
        drawn.append(re.findall(r'<span class="(\w+)">(.) \+0.020</span>', text))
    assert drawn == [[("worse", "▼")], [("open", "○")]]


def test_every_difference_of_the_page_has_its_sign_and_every_sign_its_words(text, page):
    chips = re.findall(r'<td><span class="(better|worse|other|open)">(.)? ?([+-][\d.]+)</span>', text)
    study = made()
    shared = [setting for setting in CRPS if REFERENCE in study["results"][setting]]
    in_scorecard = 3 * len(shared) * 5
    in_tables = sum(
        len(study["differences"][setting][name]) for setting in shared for name in SYSTEMS if name != REFERENCE
    )
    assert len(chips) == in_scorecard + in_tables
    signs = {"better": "▲", "worse": "▼", "other": "◆", "open": "○"}
    assert all(sign == signs[kind] for kind, sign, _ in chips)
    assert {kind for kind, _, _ in chips} == set(signs)
    for words in ("better than", "worse than", "neither better nor worse", "no difference shown"):
        assert words in page.text
    assert not [row for row in page.rows for each in row if re.match(r"[+-]\d", each)], "a difference without a sign"


def test_the_scorecard_is_in_per_cent_of_the_reference():
    study, found = made(), tables.scorecard(made())
    first = next(number for number, (name, _) in enumerate(found.rows) if name == SYSTEMS["score"])
    assert found.heads == ["mean", "50 hPa", "200 hPa", "500 hPa", "850 hPa"]
    name, cells = found.rows[first + 2]
    assert name == study["settings"][1]["label"]
    assert cells[0].text == f"{100 * (0.81 - 0.95) / 0.95:+.0f}" == "-15"


def test_what_is_missing_is_no_number(page):
    study = made()
    for setting, system in (("noise-2", "score"), ("coarse-16", REFERENCE)):
        assert cell(study, tables.results(study, "crps"), setting, system).text == DASH
    for setting in ("noise-2", "coarse-16"):
        assert cell(study, tables.differences(study, "crps"), setting, "score").text == DASH
    assert cell(study, tables.cost(study), "noise-2", "score").text == DASH
    rows = [row for row in page.rows if row[0] == "one point in 4, noise of 2 std"]
    assert len(rows) == 3 + 2 * len(SCORES) + 1 and all(set(row[1:]) == {DASH} for row in rows)
    assert f"{DASH} not run" in page.text


def test_what_was_made_before_the_cases_is_told_with_its_cost(page):
    assert ["train, paper_score, TPO", "21.0 min", "10.5 min"] in page.rows
    assert "| train, paper_score, TPO | 21.0 min | 10.5 min |" in markdown(made())
    assert "Before all cases" not in markdown(made() | {"preparation": {}})


def test_without_an_interval_nobody_is_nearer_to_the_best_value():
    study = made()
    study["scores"]["crps"] = SCORES["crps"] | {"better": "one"}
    study["differences"]["coarse-4"]["score"]["crps"]["mean"]["significant"] = True
    del study["results"]["coarse-4"]["score"]["crps"]["mean"]["interval"]
    assert tables.verdict(study, "coarse-4", "score", "crps") == "other"


@pytest.mark.parametrize("absent", [[REFERENCE], ["score", "alone"], list(SYSTEMS)], ids=["reference", "others", "all"])
def test_a_system_without_any_result_is_a_column_of_dashes(absent, tmp_path):
    study = made()
    for part in ("results", "differences", "cost", "cases"):
        for systems in study[part].values():
            for system in absent:
                systems.pop(system, None)
    study["differences"] = {} if REFERENCE in absent else study["differences"]
    study["members"] = {name: 16 for name in study["members"] if name not in absent}
    assert markdown(study).count("share no setting that has run") == (3 if REFERENCE in absent else 2)
    page = Page(write(tmp_path, study).read_text())
    for system in absent:
        assert SYSTEMS[system] in page.text
        for setting, *_ in SETTINGS:
            assert all(cell(study, tables.results(study, s), setting, system).text == DASH for s in SCORES)
    with (tmp_path / "results.csv").open(newline="") as file:
        assert not {row["system"] for row in csv.DictReader(file) if row["value"]} & set(absent)


def test_words_and_tables_need_no_plotting_library():
    """`study --dry-run` runs where none is installed."""
    block = "import sys; sys.modules['matplotlib'] = None; import sample.study.words, sample.study.tables"
    subprocess.run([sys.executable, "-c", block], check=True, cwd=Path(__file__).parents[1])


@pytest.mark.parametrize("value", [None, float("nan")])
def test_a_value_that_is_no_number_is_missing(value):
    study = made()
    study["results"]["coarse-4"]["score"]["crps"]["mean"] = {"value": value}
    assert cell(study, tables.results(study, "crps"), "coarse-4", "score").text == DASH


def test_the_best_of_a_row_is_bold():
    study = made()
    for score, best in (("crps", "score"), ("spread_skill", REFERENCE)):  # 1.05, 1.046, 1.04
        found = tables.results(study, score)
        assert [name for name in SYSTEMS if cell(study, found, "coarse-4", name).best] == [best]
    assert not any(each.best for _, cells in tables.results(study, "spread").rows for each in cells)


def test_the_autoencoder_is_a_number_and_no_rival():
    """It has seen the truth: that it is better than the reference is no news."""
    study = made()
    study["systems"]["autoencoder"] = {"label": "autoencoder"}
    for part in ("results", "differences"):
        for found in study[part].values():
            found["autoencoder"] = found["score"]
    assert "autoencoder" in tables.results(study, "crps").heads
    assert "autoencoder" not in tables.differences(study, "crps").heads
    assert "autoencoder" not in [name for name, _ in tables.scorecard(study).rows]
    assert "autoencoder" not in markdown(study).split("### Findings")[0]


def test_an_interval_stands_below_its_value_and_none_where_there_is_none():
    study = made()
    found = cell(study, tables.results(study, "crps"), "coarse-8", "score")
    assert (found.text, found.under) == ("0.81", f"{0.97 * 0.81:.2f} to {1.03 * 0.81:.2f}")
    del study["results"]["coarse-8"]["score"]["crps"]["mean"]["interval"]
    assert cell(study, tables.results(study, "crps"), "coarse-8", "score").under == ""


def test_published_values_stand_beside_ours():
    study = made()  # W1 is 0.012 + 0.01 CRPS
    rows = dict(tables.published(study, "w1").rows)
    cells = rows[f"block means of 4 x 4 cells, {SYSTEMS['score']}"]
    assert [(each.text, each.under) for each in cells] == [("0.017", "0.016 to 0.018"), ("0.014", "0.012 to 0.020")]
    del study["results"]["coarse-8"]["score"]
    (_, (ours, *_)) = tables.published(study, "w1").rows[-1]
    assert ours.text == DASH


def test_one_published_run_has_no_range_to_lie_in(tmp_path):
    study = made()
    study["published"]["coarse-8"]["score"]["w1"]["mean"] = {"value": 0.03}
    name, (_, theirs) = tables.published(study, "w1").rows[1]
    assert name.startswith("block means of 8 x 8") and (theirs.text, theirs.under) == ("0.030", "one run")
    write(tmp_path, study)
    with (tmp_path / "results.csv").open(newline="") as file:
        (row,) = (row for row in csv.DictReader(file) if row["setting"] == "coarse-8" and row["published"])
    assert (row["published"], row["published_lowest"], row["published_highest"]) == ("0.03", "", "")


def with_replaced():
    """Blocks of 12 cells are asked for too, and those of 16 stand in their place."""
    study = made()
    (sixteen,) = (setting for setting in study["settings"] if setting["name"] == "coarse-16")
    sixteen |= {"value": 15.0, "asked": 15, "factor": 16, "at": 16.0, "note": "", "label": "16 x 16 cells (15 asked)"}
    twelve = sixteen | {"name": "coarse-12", "value": 12.0, "asked": 12, "same_as": "coarse-16"}
    study["settings"].insert(2, twelve | {"label": "16 x 16 cells (12 asked)"})
    for part in ("results", "differences", "cost"):
        study[part]["coarse-12"] = study[part].get("coarse-16", {})
    study["published"]["coarse-12"] = {"score": {"w1": {"mean": {"value": 0.03, "lowest": 0.02, "highest": 0.04}}}}
    return study


def test_settings_that_the_grid_makes_one_count_once(tmp_path):
    study = with_replaced()
    assert markdown(study).split("### Findings")[0] == markdown(made()).split("### Findings")[0]
    study["cost"] |= {name: {"score": 3600.0} for name in ("coarse-12", "coarse-16")}
    once = made()
    once["cost"]["coarse-16"] = {"score": 3600.0}
    first = [re.search('<div class="cards">.*', write(tmp_path, each).read_text())[0] for each in (study, once)]
    assert first[0] == first[1]


def test_a_curve_has_its_point_at_the_factor_in_use():
    figure = figures.curves(with_replaced(), "cells a block", "w1")
    drawn = lines(figure)
    assert list(drawn[SYSTEMS["score"]].get_xdata()) == [4, 8, 16]
    assert list(drawn[f"{SYSTEMS['score']}, published"].get_xdata()) == [4, 8, 12], "theirs at the factor of theirs"
    assert figure.axes[0].get_xlabel() == "cells a block (16 in place of 12, 15)"
    assert list(figure.axes[0].get_xticks()) == [4, 8, 16]


def lines(figure):
    return {line.get_label(): line for line in figure.axes[0].get_lines() if not line.get_label().startswith("_")}


def test_a_curve_has_a_gap_where_a_case_is_missing_and_open_markers_for_what_was_published():
    drawn = lines(figures.curves(made(), "cells a block", "w1"))
    assert list(drawn) == [*SYSTEMS.values(), f"{SYSTEMS['score']}, published"]
    ours, theirs = drawn[SYSTEMS["score"]], drawn[f"{SYSTEMS['score']}, published"]
    assert list(theirs.get_xdata()) == [4, 8] and list(theirs.get_ydata()) == [0.014, 0.03]
    assert theirs.get_markerfacecolor() == "white" and theirs.get_color() == ours.get_color()
    known = [value == value for value in drawn[SYSTEMS[REFERENCE]].get_ydata()]
    assert known == [True, True, False]
    figure = figures.curves(made(), "cells a block", "w1")
    assert figure.axes[0].get_ylim()[1] > 0.034, "the range of the published runs is inside"


def test_a_baseline_far_behind_leaves_the_axis_and_the_legend_says_so():
    study = made()
    for setting in study["results"].values():
        setting["interpolation"]["crps"]["mean"]["value"] = 20.0
    figure = figures.curves(study, "cells a block", "crps")
    largest = max(s[name]["crps"]["mean"]["value"] for s in study["results"].values() for name in SYSTEMS
                  if name != "interpolation" and name in s)  # fmt: skip
    assert largest < figure.axes[0].get_ylim()[1] < 3
    assert f"{SYSTEMS['interpolation']}, off the scale" in lines(figure) and SYSTEMS["score"] in lines(figure)


def test_an_axis_has_room_for_the_best_value_and_for_what_was_published():
    study = made()
    for setting in study["results"].values():
        for system in setting.values():
            if "spread_skill" in system:
                system["spread_skill"]["mean"]["value"] = 0.5
    assert figures.curves(study, "cells a block", "spread_skill").axes[0].get_ylim()[1] > 1
    for at in ("coarse-4", "coarse-8"):
        study["published"][at]["score"]["w1"]["mean"]["highest"] = 0.5
    assert figures.curves(study, "cells a block", "w1").axes[0].get_ylim()[1] > 0.5


def test_a_long_legend_takes_nothing_from_the_curves():
    study = made()
    heights = []
    for n in (0, 12):
        for number in range(n):
            name = f"more{number}"
            study["systems"][name] = {"label": f"another system with a long name, {number}"}
            for setting in study["results"].values():
                setting[name] = setting["score"]
        figure = figures.curves(study, "cells a block", "crps")
        figure.draw_without_rendering()
        heights.append(figure.axes[0].get_window_extent().height)
    assert heights[1] > 0.9 * heights[0]


def test_sixteen_systems_have_sixteen_styles():
    study = made()
    one = study["systems"]["score"]
    study["systems"] = {REFERENCE: one} | {f"s{n}": one for n in range(16)}
    styles = [figures._style(study, name) for name in study["systems"]]
    assert len({(marker, dashes) for _, marker, dashes in styles}) == 17


def test_systems_are_told_apart_without_colour():
    drawn = lines(figures.curves(made(), "cells a block", "crps")).values()
    assert len({(line.get_marker(), line.get_linestyle()) for line in drawn}) == len(SYSTEMS)


def test_a_group_of_which_one_setting_has_run_is_no_curve():
    assert figures.groups(made()) == ["cells a block", "noise (std)"]
    assert figures.curves(made(), "noise (std)", "crps") is None


def test_the_files_beside_it_hold_the_same_numbers(folder):
    assert json.loads((folder / "results.json").read_text()) == json.loads(json.dumps(made()))
    with (folder / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    study = made()
    n = sum(len(levels) for by in study["results"].values() for scores in by.values() for levels in scores.values())
    assert len(rows) == n
    for row in rows:
        found = study["results"][row["setting"]][row["system"]][row["score"]][row["level_hpa"]]
        assert [float(row["value"]), float(row["low"]), float(row["high"])] == [found["value"], *found["interval"]]
        difference = study["differences"][row["setting"]].get(row["system"], {}).get(row["score"], {})
        expected = str(difference[row["level_hpa"]]["significant"]) if difference else ""
        assert row["significant"] == expected
    assert [row["published"] for row in rows if row["published"]] == ["0.014", "0.03"]


def test_figures_are_files_of_both_kinds(folder):
    names = {path.stem for path in (folder / "figures").iterdir()}
    assert names == {f"curve-cells-a-block-{score.replace('_', '-')}" for score in SCORES} | {
        f"profile-{setting}" for setting in ("coarse-4", "coarse-16", "noise-1")
    }
    for name in names:
        assert (folder / "figures" / f"{name}.png").read_bytes().startswith(b"\x89PNG")
        assert "<svg" in (folder / "figures" / f"{name}.svg").read_text()


def test_writing_again_changes_nothing_and_leaves_nothing_of_before(folder, text):
    before = {path.name: path.read_bytes() for path in (folder / "figures").iterdir()}
    (folder / "figures" / "profile-coarse-99.png").touch()
    write(folder, made())
    assert (folder / "report.html").read_text() == text
    assert {path.name: path.read_bytes() for path in (folder / "figures").iterdir()} == before


def test_a_case_is_reached_from_the_page(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    study = made()
    target = tmp_path / study["cases"]["coarse-4"]["score"]
    target.parent.mkdir(parents=True)
    target.write_text("the case")
    page = write(tmp_path / "runs" / "fair", study)
    (link,) = re.findall(r'<a href="([^"]*)">its page</a>', page.read_text())
    assert (page.parent / link).read_text() == "the case"


def test_markdown_has_the_tables_with_their_signs():
    text = markdown(made())
    blocks = [block.splitlines() for block in text.split("\n\n") if block.startswith("|")]
    assert len(blocks) == 1 + 2 * len(SCORES) + 1 + 2
    for block in blocks:
        assert len({line.count("|") for line in block}) == 1, "every row has as many cells"
    assert "| block means of 8 x 8 cells | **0.81** (0.79 to 0.83) | 0.97 (0.94 to 1.00) |" in text
    assert "○ +0.020 (-0.009 to +0.048)" in text and "▲ -0.140 (-0.168 to -0.111)" in text
    assert not re.search(r"\| [+-]\d", text.split("### CRPS")[1]), "a difference without a sign"
    assert f"| one point in 4, noise of 2 std | {DASH} | {DASH} | {DASH} | {DASH} |" in text
    assert "| Other modalities help at 4 x 4 | cannot be told |" in text


def test_markdown_says_what_chance_alone_would_mark_and_what_a_single_field_is_given():
    """Three rivals in the three settings in which the reference has run."""
    text = markdown(made())
    assert "If there were none, about 1 of 9 would be marked by chance." in text.split("### CRPS")[1].split("###")[0]
    assert text.count("CRPS is the mean absolute error") == 1


def test_markdown_has_what_was_published_and_what_was_replaced():
    text = markdown(made())
    ours = f"| block means of 4 x 4 cells, {SYSTEMS['score']} | 0.017 (0.016 to 0.018) "
    assert f"{ours}| 0.014 (0.012 to 0.020) |" in text.split("### Beside what was published")[1]
    assert "* block means of 16 x 16 cells: the grid has no 15 x 15 blocks." in text
    study = made()
    study["published"] = {}
    assert "published" not in markdown(study)


def test_results_are_those_of_the_studies_and_not_of_their_trials(tmp_path):
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs/results.md").write_text("as it was")

    def made(*names):
        for name in names:
            (tmp_path / f"runs/studies/{name}").mkdir(parents=True)
            (tmp_path / f"runs/studies/{name}/results.md").write_text(f"## {name}\n")
        command = ["make", "-f", str(Path(__file__).parents[1] / "Makefile"), "results"]
        found = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
        return found.returncode == 0, found.stderr, (tmp_path / "docs/results.md").read_text()

    went, said, text = made("fair-quick")
    assert not went and text == "as it was" and "no study was run here" in said
    went, _, text = made("paper", "fair")
    assert went and text.startswith("# Results") and text.endswith("## fair\n## paper\n")
    assert [path.name for path in (tmp_path / "docs").iterdir()] == ["results.md"]


def test_names_are_text_not_html(tmp_path):
    study = made()
    study["title"], study["systems"]["score"]["label"] = "a < b & c", "<b>bold</b> | model"
    text = write(tmp_path, study).read_text()
    assert "<b>bold</b> | model" not in text and "a &lt; b &amp; c" in text
    assert "<b>bold</b> \\| model" in markdown(study)


def written(folder):
    return Written("study", "made up", folder, "report.html", "results.csv", "results.json", "figures")


def test_the_record_is_one_artifact_of_page_tables_and_figures(folder, monkeypatch):
    logged = []
    original = wandb.Run.log_artifact
    monkeypatch.setattr(wandb.Run, "log_artifact", lambda run, made: (logged.append(made), original(run, made))[1])
    log_to_wandb(written(folder), {"title": "made up"}, "offline", "studies")
    (artifact,) = (each for each in logged if each.type == "study")  # a table to look at is another
    names = set(artifact.manifest.entries)
    assert {"report.html", "results.csv", "results.json"} < names
    assert {name for name in names if name.startswith("figures/")} == {
        f"figures/{path.name}" for path in (folder / "figures").iterdir()
    }
    assert list((folder / "wandb").glob("offline-run-*/*.wandb"))


def test_a_disabled_record_leaves_nothing(tmp_path):
    log_once(written(tmp_path), {}, "disabled", "studies")
    assert not list(tmp_path.iterdir())


def test_the_same_results_are_logged_once(tmp_path, monkeypatch):
    """Whichever of the programs that share the folder comes last."""
    logged = []
    monkeypatch.setattr("sample.record.log_to_wandb", lambda *given: logged.append(given))
    for results in ("{}", "{}", '{"more": 1}'):
        (tmp_path / "results.json").write_text(results)
        log_once(written(tmp_path), {}, "offline", "studies")
    assert len(logged) == 2
