# SPDX-License-Identifier: Apache-2.0
"""README.md and docs/ say what is so: their results, numbers, links and lists."""

from __future__ import annotations

import functools
import hashlib
import importlib.util
import json
import re
import subprocess
from pathlib import Path

import pytest
import yaml

from eldistill.plan import params, schema
from tests import check, conftest
from tests.conftest import ROOT

PAGES = {
    str(path.relative_to(ROOT)): path.read_text(encoding="utf-8")
    for path in (ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")))
}
TEXT = PAGES["README.md"]
PARAMS = conftest.shipped()
NUMBERS = {
    0: "none",
    1: "one",
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    12: "twelve",
    13: "thirteen",
    14: "fourteen",
    15: "fifteen",
    16: "sixteen",
}
with_pages = pytest.mark.parametrize("name", PAGES)


def load(name: str):
    """A file of docs/ as a module."""
    spec = importlib.util.spec_from_file_location(f"docs_{name}", ROOT / f"docs/{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


renew = load("renew")


@functools.cache
def committed(name: str) -> str:
    """A file as git has it: after `make demo` the tables here are of this machine, whose CPU rounds as it does."""
    done = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    return done.stdout if done.returncode == 0 else (ROOT / name).read_text(encoding="utf-8")


@functools.cache
def tracked() -> set[str]:
    """The files that git has, or without git all that are here."""
    done = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, encoding="utf-8")
    here = (str(path.relative_to(ROOT)) for path in ROOT.rglob("*"))
    return set(done.stdout.split("\0") if done.returncode == 0 else here)


def table_rows(text: str) -> list[list[str]]:
    """The cells of all Markdown table rows."""
    return [
        [cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line.startswith("| ")
    ]


def body(text: str) -> list[list[str]]:
    """The rows of a page's table below its heading."""
    return [row for row in table_rows(text) if not re.fullmatch("-+:?", row[0] or "-")][1:]


# --- results ----------------------------------------------------------------------------------------------


@with_pages
def test_quoted_results_are_those_of_the_files_in_git(name):
    """`python docs/renew.py` changes nothing."""
    assert renew.renewed(PAGES[name], committed) == PAGES[name], "type: python docs/renew.py"


def test_the_demo_table_is_the_committed_one():
    """Each row of the README's demo table is made of cells of the same row of data/tables/demo/main.md, in order."""
    made = {row[0]: row for row in table_rows(committed("data/tables/demo/main.md"))}
    section = TEXT.split("<!-- results: demo-small -->")[1].split("<!-- end -->")[0]
    rows = [row for row in table_rows(section) if row[0] in made]
    assert {"di/none", "di/el", "di/pixel-mmd"} <= {row[0] for row in rows}
    for row in rows:
        rest = iter(made[row[0]])
        assert all(cell in rest for cell in row), row[0]


def test_every_quoted_part_has_a_reader():
    """Each part that docs/renew.py makes stands in a page, and each mark in a page is closed and made."""
    marks = [name for text in PAGES.values() for name in re.findall(r"<!-- results: ([\w-]+) -->", text)]
    assert sorted(marks) == sorted(renew.MADE)
    closed = [found[1] for text in PAGES.values() for found in renew.MARK.findall(text)]
    assert sorted(closed) == sorted(marks)
    assert "".join(PAGES.values()).count("<!-- end -->") == len(marks)


HEAD = (
    "part,method,supplement,of_run,reported,pairs,never,early,bound,ratio_iterations,fewer_iterations,fewer_iterations_low,"
    "fewer_iterations_high,p,factor,diverged_runs\n"
)


def speed_tables(first: str, p: str = "0.5") -> dict[str, str]:
    """Two tables of the kind speed, whose row on DMD with EL at half of the run is `first`."""
    rows = [f"time,{method},{name},{percent},2,5,0,0,,0.9,10,5,15,{p},,"
            for method in ("dmd", "di") for name in ("el", "pixel-mmd") for percent in (50, 100)]  # fmt: skip
    rows[0] = first
    rows += [f"rate,{method},{name},,,,,,,,,,,,{factor},{int(name == 'none' and factor == 4)}"
             for method in ("dmd", "di") for name in ("none", "el", "pixel-mmd") for factor in (1, 4)]  # fmt: skip
    text = HEAD + "\n".join(rows) + "\n"
    tables = {f"data/tables/{suite}/{name}.csv": text if suite == "speed" else HEAD
              for suite in renew.SUITES_OF_TIMES for name in ("speed", "speed-control")}  # fmt: skip
    head = "data,supplement,pairs,percent,low,high,p_holm\n"
    tables["data/tables/ablation/el-against-none.csv"] = f'{head}"digits, 3 teachers",el,10,-29.3,-37.1,-21.5,0.001\n'
    tables["data/tables/ablation/central.csv"] = f'{head}"digits, 3 teachers",el,10,{CONTROL}\n'
    tables["data/tables/ablation/central.runs.csv"] = kid_runs(0.2, 0.1)
    return tables | colour_tables()


COLOUR_HEAD = "data,method,supplement,space,pairs,margin,difference,low,high,percent,p_holm,p_equivalent_holm,fd_mean\n"
EL_LOWER = "a,dmd,el,efficientnet-lite0-96,4,100,-50,-70,-30,-5,0.01,0.2,900\na,dmd,el,judge-a,4,0.5,3,1,5,60,,,9\n"


def colour_tables(rows: str = EL_LOWER) -> dict[str, str]:
    """The studies of the suite colour. rows: DMD with EL against none and against the control, here 5 % lower than both."""
    head = "method,supplement,pairs,difference,low,high,percent,fd_mean\n"
    more = {
        "relatives": "dmd,fd,2,-30,-60,-10,-3,900\ndmd,drift,2,10,-60,80,1,900\n",
        "batch": "dmd-b16,el,1,-200,,,-20,900\ndmd-b16,none,1,-180,,,-18,900\n",
    }
    runs = {
        "avatars-32/teacher": {"metrics": {"fd5k_efficientnet-lite0-96_heldout": 388.2}},
        "avatars-32/real": {},
        "avatars-32/dmd/el/300": {},
    }
    kept = "\n".join(json.dumps({"run": run, "results": results}) for run, results in runs.items())
    return {
        **dict.fromkeys(("data/tables/colour/colour.csv", "data/tables/colour/colour-none.csv"), COLOUR_HEAD + rows),
        **{f"data/tables/colour/colour-{name}.csv": head + each for name, each in more.items()},
        "data/tables/colour/kept.jsonl": kept,
    }


def kid_runs(el: float, control: float) -> str:
    """Runs of two teachers and three seeds, whose KID with EL and with the control is about this."""
    rows = [
        f"{data},{name},{seed},{value + 0.001 * seed * (name == 'el')}"
        for data in ("digits", "digits-t1") for name, value in (("none", 0.3), ("el", el), ("pixel-mmd", control)) for seed in range(3)
    ]  # fmt: skip
    return "data,supplement,seed,kid5k_judge-a_heldout\n" + "\n".join(rows) + "\n"


CONTROL = "-5.8,-10.3,-1.3,0.018"


@pytest.mark.parametrize(("row", "words"), [
    ("0,0,,0.57,43.2,30.1,54.4", "43 % fewer [30, 54] | 10 % fewer [5, 15]"),
    ("0,0,,0.57,43.2,-0.2,54.4", "43 % fewer [0, 54] | 10 % fewer [5, 15]"),
    ("0,0,,1.5,-50,-90,-20", "50 % more [20, 90]"),
    ("2,0,at least,0.8,20,,", "at most 20 % fewer (never reached in 2 of 5 seeds)"),
    ("0,1,at most,0.4,60,,", "at least 60 % fewer (reached at the first snapshot in 1 of 5 seeds)"),
    ("0,0,,,,,", "a number that the snapshots do not tell"),
])  # fmt: skip
def test_the_finding_follows_the_numbers_wherever_they_go(row, words):
    """Sooner, later, a bound without an interval, or nothing that could be measured."""
    tables = speed_tables(f"time,dmd,el,50,2,5,{row},0.5,,")
    text = " ".join(renew.finding(tables.__getitem__).split())
    assert f"| DMD, at half of its run | {words} |" in text or f"| DMD, at half of its run | {words} | 10 %" in text
    assert "differ clearly in none of" in text and re.search(r"Of 8 comparisons of .* none has p < 0\.05", text)
    assert (
        "EL is 29 % lower [22, 37] than without and 5.8 % lower [1.3, 10.3] than with the control (p = 0.018 after Holm's correction)"
        in text
    )
    rates = "4 with EL, 4 with the control and 1 without, for DMD and Diff-Instruct."
    assert renew.rates_that_train(tables.__getitem__).endswith(rates)


def test_the_finding_says_when_networks_differ_from_pixels():
    for ratio, words in (("1.2", "EL sooner in 3"), ("0.8", "EL sooner")):
        tables = speed_tables(f"time,dmd,el,50,2,5,0,0,,{ratio},-20,-30,-10,0.001,,", "0.001")
        said = renew.networks_against_pixels(tables.__getitem__)
        assert said == f"Over 2 methods EL and the control differ clearly in 4 of 4 of them ({words})."


@pytest.mark.parametrize(("numbers", "words"), [
    ((12, 3, 21, 0.02), "12 % higher [3, 21] than with the control"),
    ((-4, -9, 1, 0.1), "not distinguishable from that with the control (between -9.0 and +1.0 %)"),
    ((-4, -7, -1, 0.08), "not distinguishable from that with the control (between -7.0 and -1.0 %)"),
])  # fmt: skip
def test_the_end_is_called_lower_only_where_it_is_clear(numbers, words):
    """After Holm's correction, whatever the single interval says."""
    row = dict(zip(("percent", "low", "high", "p_holm"), map(str, numbers), strict=True))
    assert renew.against(row, "with the control") == words


def test_savings_are_called_clear_only_after_the_correction():
    """A single interval that excludes zero is not enough; a time without a test is never clear."""
    tables = speed_tables("time,dmd,el,50,2,5,0,0,,0.5,50,40,60,,,")
    said = (
        "Of 8 comparisons of [such times](data/tables/speed/speed.md) none has p < 0.05 after Holm's correction. 1 have no test "
        "and count with p = 1."
    )
    assert said == renew.clear_savings(tables.__getitem__)
    tables = speed_tables("time,dmd,el,50,2,5,0,0,,0.5,50,40,60,0.001,,")
    assert renew.clear_savings(tables.__getitem__).endswith(
        " 1 has p < 0.05 after Holm's correction (DMD with EL, at 50 % of its run)."
    )


def test_a_comparison_without_a_test_counts_in_the_correction():
    """Which comparisons have no test depends on the outcome, so that the family may not depend on it."""
    names = [f"data/tables/{suite}/speed.csv" for suite in renew.SUITES_OF_TIMES]

    def clear(others: str) -> list[bool]:
        rows = "".join(f"time,dmd,el,{percent},2,5,0,0,,0.5,50,40,60,{others},,\n" for percent in range(9))
        text = HEAD + "time,dmd,el,50,2,5,0,0,,0.5,50,40,60,0.006,,\n" + rows
        tables = dict.fromkeys(names, HEAD) | {names[0]: text}
        return [renew.is_clear(row) for row in renew.tests_of_times(tables.__getitem__, "speed")]

    assert clear("") == clear("0.9") == [False] * 10


def test_a_baseline_that_diverged_is_marked():
    """A time to the value of a run that lost its images is none that a supplement saves."""
    head = "part,method,supplement,seeds,of_run,reported,pairs,never,early,bound,ratio_iterations,fewer_iterations," \
           "fewer_iterations_low,fewer_iterations_high,diverged_runs,fd_mean,fd_sd,factor\n"  # fmt: skip
    rows = "".join(
        f"time,{method},none,5,,1,,,,,,,,,{diverged},9,1,\ntime,{method},el,5,50,1,5,0,0,,0.9,10,5,15,0,2,1,\n"
        for method, diverged in (("a", 3), ("b", 0))
    )
    tables = {f"data/tables/{suite}/speed.csv": head for suite in renew.SUITES_OF_TIMES}
    said = renew.speed_arms((tables | {"data/tables/speed/speed.csv": head + rows}).__getitem__)
    assert "| a/el | 1 | none | 10 % fewer [5, 15] † |" in said and "| b/el | 1 | none | 10 % fewer [5, 15] |" in said
    assert "(3 of 5 runs of a/none)" in said


ALARMED = """| method/supplement | fd judge-a held-out |
| --- | ---: |
| teacher (Heun) | 1 |
| di/none | 2 |
| di/el | 2 |
| dmd/none | 2 |

- di/none: fd5k_judge-a_heldout is lower than none by 1 [0, 2] (p = 0.1).
"""


@pytest.mark.parametrize(("lines", "words"), [
    ("", "For none of 3 arms"),
    ("- di/el: recall 0.10, real images 0.90: kinds that are missing; copied 0.31: copies of train images.\n"
     "- dmd/none: recall 0.20, its teacher 0.90: kinds that are missing.\n",
     "For 2 of 3 arms the list below the table raises an alarm, because a metric is far from that of the teacher or of real images: "
     "`recall` in 2 (kinds that are missing); `copied` in 1 (copies of train images)."),
])  # fmt: skip
def test_every_alarm_is_quoted_with_its_cause(lines, words):
    assert words in renew.alarms({"data/tables/bench/main.md": ALARMED + lines}.__getitem__)


@pytest.mark.parametrize(("row", "judge", "words"), [
    ("-50,-70,-30,-5,0.01,0.2", "3,1,5,60", ("5.0 % lower [3.0, 7.0] than with the control;",
                                             "60 % higher [20, 100] than with the control")),
    ("-20,-60,20,-2,0.4,0.01", "-3,-5,-1,-60", ("equivalent within ±10 % to that with the control (2.0 % lower [-2.0, 6.0])",
                                                "60 % lower [20, 100] than with the control")),
    ("20,-60,100,2,0.4,0.2", "3,1,5,60", ("undecided against that with the control (2.0 % higher [-6.0, 10.0])",)),
])  # fmt: skip
def test_the_finding_in_colour_follows_its_tables(row, judge, words):
    """A difference or none, equivalence shown or not, and what the features say that chose no rates."""
    rows = f"a,dmd,el,efficientnet-lite0-96,4,100,{row},900\na,dmd,el,judge-a,4,0.5,{judge},,,9\n"
    said = renew.colour_finding(colour_tables(rows).__getitem__)
    assert (
        all(each in said for each in words)
        and "DMD, 4 seeds, one teacher" in said
        and "; 1 of 500 planned runs;" in said
    )
    assert (
        "it is 3.0 % lower [1.0, 6.0] with the Fréchet distance as the loss and 1.0 % higher [-6.0, 8.0] with the"
        in said
    )
    assert (
        "Batches of 16 end 20 % lower with EL, and 18 % lower without, than batches of 256 without EL (1 seed," in said
    )
    assert "they have 900 to 900 and the teacher 388" in said


def test_differences_of_the_bench_are_called_clear_only_after_the_correction():
    """The p that the page corrects decides, for none and for the control, and the direction is said."""
    line = "- {}/el: fd5k_judge-a_heldout is {} (p = 0.001, Holm over 13: {}, n = 3, lower in 3 of 3)."
    text = "\n".join((
        line.format("a", "lower than none by 0.5 [0.4, 0.6]", "0.04"), line.format("b", "lower than none by 0.5 [0.4, 0.6]", "0.06"),
        line.format("a", "not distinguishable from pixel-mmd: difference 1 [-1, 3]", "1.00"),
        line.format("b", "higher than pixel-mmd by 0.5 [0.4, 0.6]", "0.01"),
    ))  # fmt: skip
    assert renew.clear_after_holm(text, ["a", "b"], "none") == ["`a`, EL lower"]
    assert renew.clear_after_holm(text, ["a", "b"], "pixel-mmd") == ["`b`, EL higher"]
    assert renew.after_holm(text, ["a"]) == (
        "After Holm's correction the difference to `none` is clear for `a`, EL lower, and no difference to the control is clear."
    )


@pytest.mark.parametrize(("el", "control", "words"), [
    (0.2, 0.1, "says the opposite of EL and the control: 0.300 without, 0.201 with EL, 0.100 with the control"),
    (0.1, 0.2, "agrees: "), (0.1, 0.1005, "does not distinguish EL from the control"),
])  # fmt: skip
def test_a_second_metric_is_quoted_beside_the_first_whatever_it_says(el, control, words):
    """The finding ranks by the Fréchet distance; KID of the same runs stands beside it."""
    assert words in renew.kid_against_pixels(
        {"data/tables/ablation/central.runs.csv": kid_runs(el, control)}.__getitem__
    )


def test_a_clear_difference_is_quoted_with_its_direction():
    """Where EL is clearly worse, the page says so, as it does where EL is clearly better."""
    line = "- {}/el: fd5k_judge-a_heldout is {} [{}, {}] (p = 0.01)."
    text = "\n".join((
        line.format("a", "lower than none by 1", 0.5, 1.5), line.format("b", "higher than none by 1", 0.5, 1.5),
        line.format("c", "not distinguishable from none: difference 1", -1, 3),
    ))  # fmt: skip
    assert (
        renew.excludes_zero(text, ["a", "b", "c"], "none") == "excludes zero for `a` (EL lower) and for `b` (EL higher)"
    )
    assert renew.excludes_zero(text, ["c"], "none") == "includes zero for all"


def test_no_comparison_of_the_demo_is_left_out():
    """Of the distances: those of a page that are clear, and those that are not."""
    page = "\n".join(
        f"- dmd/el: fd5k_judge-a_heldout is {words}" for words in ("lower than pixel-mmd by 1", "higher than none by 1")
    )
    assert (
        renew.demo_sentences({"data/tables/demo/main.md": f"# x\n{page}\n- dmd/el: kid 1\n"}.__getitem__) == f"{page}\n"
    )


def test_what_an_interval_allows_to_say():
    assert [renew.verdict(*ends) for ends in (("-2", "-1"), ("1", "2"), ("-1", "1"), ("-1", "0"))] == [
        "lower", "higher", "not distinguishable", "not distinguishable",
    ]  # fmt: skip


@pytest.mark.parametrize("arm", ["el", "pixel-mmd"])
@pytest.mark.parametrize("metric", ["fd5k_judge-a_heldout", "fd5k_judge-b_heldout", "fd5k_pixels_heldout"])
def test_paired_differences_are_those_of_the_tables(arm, metric):
    """docs/renew.py computes from the runs what main.md prints, with more digits."""
    printed = renew.comparison(committed("data/tables/demo/main.md"), f"di/{arm}", metric, "none")
    made = renew.paired(committed, "demo", metric, f"di/{arm}", "di/none")
    for mine, theirs in zip(made, printed, strict=True):
        unit = 10.0 ** -len(theirs.partition(".")[2])
        assert abs(float(mine) - float(theirs)) <= 0.5 * unit + 6e-4 * abs(float(mine))


def test_a_gain_stands_beside_what_limits_it():
    """Wherever a gain is read: how the demo's length was chosen, the weak teacher, and the sampling error."""
    page = " ".join(PAGES["docs/limits.md"].split())
    assert "after a first run with the better teacher had shown no difference on held-out images" in page
    for name in ("README.md", "docs/results.md"):
        text = " ".join(PAGES[name].split())
        assert "after a run with a better teacher had shown no difference on held-out images" in text
        assert "a weak teacher" in text and "standard error" in text


# Numbers in sentences that are no results of ours, each with the reason why it may stand there.
ALLOWED = {
    r"0\.7\b": "EL's weight, params.yaml",
    r"x = 0\.5 |below 0\.5": "sigma_data in the codec; the bound of a warning",
    r"\b1\.2\b": "limit of a teacher's check, its default; SiD's alpha",
    r"1,797": "digits that scikit-learn ships",
    r"\b5,000|\b2,000|\b1,000|\b50,000|\b10,000": "numbers of images that a metric's name or its definition says",
    r"BY-NC-SA 4\.0|CC BY 4\.0|CC0 1\.0|2\.0\b|3\.1[123]|18\.3": "licences and versions of Python and Node.js",
    r"36,000|2,400": "faces that data/avatars/draw.mjs draws",
    r"\b10 %": "the margin of equivalence, params.yaml",
    r"95 %": "level of the intervals",
}
# Pages whose numbers have tests of their own: test_docs.py follows gpu-day, dvc, cluster, paper; test_pictures.py follows images.
ELSEWHERE = ("docs/gpu-day.md", "docs/images.md", "docs/dvc.md", "docs/cluster.md", "docs/paper.md")


def sentences(text: str) -> str:
    """A page without quoted results, code, links and comments."""
    text = renew.MARK.sub("", text)
    text = re.sub(r"```.*?```|^    .*?$", "", text, flags=re.S | re.M) if "```" in text else text
    return re.sub(r"`[^`]*`|\[[\d.]+\]\([^)]*\)|\]\([^)]*\)|<[^>]*>|arXiv \S+", "", text)


@pytest.mark.parametrize("name", [name for name in PAGES if name not in ELSEWHERE])
def test_no_result_stands_outside_of_the_quoted_parts(name):
    """A number with decimals, thousands or per cent is quoted by docs/renew.py, or is no result and says why."""
    text = sentences(PAGES[name])
    for reason in ALLOWED:
        text = re.sub(reason, "", text)
    assert not re.findall(r"[^\n]*(?<![\w.])(?:\d+\.\d+|\d{1,3},\d{3}|\d+ %)[^\n]*", text)


def test_the_tables_are_those_of_the_lock():
    """data/tables/demo in git is, to the bit, what dvc.lock says that the stage `tables` left: nobody has touched it since."""
    out = yaml.safe_load(committed("dvc.lock"))["stages"]["tables"]["outs"][0]
    listed = subprocess.run(
        ["git", "ls-tree", "-r", "--name-only", "HEAD", out["path"]], cwd=ROOT, capture_output=True, text=True
    )
    entries = []
    for name in sorted(listed.stdout.split()):
        content = subprocess.run(["git", "show", f"HEAD:{name}"], cwd=ROOT, capture_output=True).stdout
        entries.append({"md5": hashlib.md5(content).hexdigest(), "relpath": name.removeprefix(f"{out['path']}/")})
    assert out["path"] == "data/tables/demo" and len(entries) == out["nfiles"] > 10
    assert hashlib.md5(json.dumps(entries, sort_keys=True).encode()).hexdigest() + ".dir" == out["md5"]


def test_the_time_of_the_demo_is_what_was_measured():
    """`5 to 8 minutes`: the shortest and the longest of the runs of today's demo that benchmarks/README.md lists."""
    found = re.search(r"snapshots, took ([\d, ]+ and \d+) s on", committed("benchmarks/README.md"))
    seconds = [int(number) for number in re.findall(r"\d+", found[1])]
    times = f"{min(seconds) / 60:.0f} to {max(seconds) / 60:.0f} minutes on two CPU cores"
    assert times in TEXT and times == "5 to 8 minutes on two CPU cores"


# --- studies ----------------------------------------------------------------------------------------------


def test_the_sentences_of_studies_are_the_committed_ones():
    """What a page quotes of a study stands in that study's page; none quotes a study whose page git has not."""
    text = "\n".join(PAGES.values())
    blocks = re.findall(r"<!-- study: ([\w-]+) -->\n\n((?:- .*\n)+)", text)
    for name, quoted in blocks:
        assert f"data/tables/ablation/{name}.md" in tracked(), (
            f"{name} has no page in git; run `make ablation STUDY={name}`"
        )
        page = committed(f"data/tables/ablation/{name}.md")
        assert all(f"\n{sentence}\n" in page for sentence in quoted.splitlines()), name
    assert text.count("<!-- study:") == len(blocks)
    # A sentence of a study is known by its form: it cannot stand outside of such a block, or in it under another name.
    inside = [sentence for _, quoted in blocks for sentence in quoted.splitlines()]
    form = r"^- .*(?:\d pairs|[0-9]+ never\)|\(\d+ runs[,)]|images a batch|runs ended no better).*$"
    assert set(re.findall(form, text, re.M)) <= set(inside)


def test_the_studies_that_are_said_to_be_open_are():
    """Those without a page in git are named, and no other. tests/test_avatars.py does this for the suite `colour`."""
    page = PAGES["docs/embedding-loss.md"]
    grids = [grid for suite, grids in PARAMS["suites"].items() if suite != "colour" for grid in grids]
    asked = {name for grid in grids for name in grid.get("studies", ())}
    made = {
        Path(name).stem
        for name in tracked()
        if re.fullmatch(r"data/tables/(ablation|speed|speed-others|speed-recent)/[\w-]+\.md", name)
    } - {"main"}
    named = re.search(r"Without a table in git: (.*?)\.\n", page, re.S)
    said = set(re.findall(r"`([\w-]+)`", named[1])) if named else set()
    assert named or f"All {NUMBERS[len(asked)]} studies have a table in git" in page
    assert said == set(asked) - made and made <= set(asked)
    assert ("| no table in git | unverified |" in TEXT) == (not made)
    verb = "has" if len(said) == 1 else "have"
    assert (f"; {NUMBERS[len(said)]} {verb} no table | " in TEXT) == bool(made and said)


# --- the README's form ------------------------------------------------------------------------------------


def test_the_readme_is_short_and_opens_with_what_a_reader_wants():
    """At most 220 lines; the first 30 hold a picture, the finding with its interval, and two commands."""
    lines = TEXT.splitlines()
    first = "\n".join(lines[:30])
    assert len(lines) <= 220
    assert first.count("<img ") == 1 and "95 % interval" in first and "make demo" in first and "make test" in first


def test_the_status_table_says_what_git_shows():
    """Nothing is called verified on a GPU before benchmarks/gpu/ holds a result; then the table must be written anew."""
    rows = body(TEXT.split("## Status")[1].split("\n## ")[0])
    results = [name for name in tracked() if re.fullmatch(r"benchmarks/gpu/.*\.json", name)]
    assert len(rows) > 8 and all(len(row) == 3 for row in rows)
    unverified = [row for row in rows if re.search(r"unverified|not real|nobody", row[2])]
    assert results or unverified == rows


def test_the_annotated_tree_is_the_tree():
    """Every folder and file of the README's tree exists, and every package of src/eldistill stands in it."""
    tree = TEXT.split("## How it is built")[1].split("```")[1]
    inside = [line for line in tree.splitlines() if line.startswith("  ")]
    named = [name for line in inside for name in re.findall(r"[a-z_]+(?:/|\.py)", line.split("   ")[0] or line)]
    packages = {path.parent.name for path in (ROOT / "src/eldistill").glob("*/__init__.py")}
    assert {name.rstrip("/") for name in named if name.endswith("/")} == packages
    outside = [
        name for line in tree.splitlines() if line and line[0] != " " for name in re.split(r"   +", line)[0].split()
    ]
    assert not [name for name in outside if not (ROOT / name.rstrip(",")).exists()]


def test_the_methods_of_the_readme_are_those_of_params():
    """Every file of methods/ is in the README's table, and every name there is a section of params.yaml."""
    rows = body(TEXT.split("## The methods")[1].split("\n## ")[0])
    names = [name for row in rows for name in re.findall(r"`([\w-]+)`", row[0])]
    files = {file for row in rows for file in re.findall(r"`(\w+)\.py`", row[2])}
    there = {path.stem for path in (ROOT / "src/eldistill/methods").glob("*.py")} - {"__init__"}
    assert files == there and set(names) <= set(PARAMS["distil"]["methods"])


# --- links and names --------------------------------------------------------------------------------------


def anchors(text: str) -> set[str]:
    """The anchors that GitHub and the site make of headings."""
    headings = re.findall(r"^#+ (.+)$", re.sub(r"```.*?```", "", text, flags=re.S), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}


@with_pages
def test_links_lead_somewhere(name):
    """Every relative link and picture of a page is a file in git, and its anchor a heading there."""
    here = (ROOT / name).parent
    links = re.findall(r"(?:\]\(|src=\")(?!https?://)([^)\"\s#]*)(?:#([^)\"\s]+))?[)\"]", PAGES[name])
    for file, anchor in links:
        path = (here / file).resolve() if file else ROOT / name
        place = str(path.relative_to(ROOT))
        assert path.is_file() and (place in tracked() or not place.startswith("data/")), f"{file} is not there"
        assert not anchor or anchor in anchors(path.read_text(encoding="utf-8")), f"{file} has no heading {anchor}"


def test_every_page_is_linked_from_the_readme_and_the_site():
    site = (ROOT / "docs/index.rst").read_text(encoding="utf-8")
    pages = [name for name in PAGES if name.startswith("docs/")]
    assert not [name for name in pages if f"({name})" not in TEXT]
    assert not [name for name in pages if f"\n   {Path(name).stem}\n" not in site]


@pytest.mark.parametrize("name", [name for name in PAGES if name.startswith("docs/")])
def test_a_page_says_first_what_it_is_for(name):
    """A heading, and then a sentence about the page."""
    heading, blank, first, *_ = PAGES[name].splitlines()
    assert heading.startswith("# ") and not blank and first.startswith("This page ")


@pytest.mark.parametrize("promise", check.PROMISES)
def test_make_check_finds_the_test_of_a_promise(promise):
    file, _, name = check.PROMISES[promise].partition("::")
    assert (
        f"def {name}(" in (ROOT / "tests" / file).read_text(encoding="utf-8")
        if name
        else (ROOT / "tests" / file).exists()
    )


@pytest.mark.parametrize("name", ["README.md", "docs/your-images.md"])
def test_the_example_of_own_data_is_valid(name):
    """The YAML of "Your own images", merged into params.yaml, passes the check; README and docs show the same."""
    example = yaml.safe_load(re.search(r"```yaml\n(data:.*?)```", PAGES[name], re.S).group(1))
    values = schema.merge_mappings(PARAMS, example)
    assert [str(run) for run in params.from_values(values, ROOT).runs("mine")][0] == "mine/di/none/0"


def test_the_example_of_rates_is_valid():
    """The last YAML of the section on learning rates, merged with that of the data: each arm at four factors, and at its own."""
    page = PAGES["docs/your-images.md"]
    data = yaml.safe_load(re.search(r"```yaml\n(data:.*?)```", page, re.S)[1])
    suites = yaml.safe_load(re.findall(r"```yaml\n(suites:\n  mine-rates:.*?)```", page, re.S)[-1])
    values = schema.merge_mappings(schema.merge_mappings(PARAMS, data), suites)
    values["distil"]["methods"]["di"]["per_data"]["mine"]["rates"] = {"none": 1, "el": 2, "pixel-mmd": 2}
    made = params.from_values(values, ROOT)
    runs = [str(run) for run in made.runs("mine-rates")]
    assert len(runs) == 4 * 3 * 2 + 3 * 5 and "mine/di-r4/el/100" in runs and "mine/di/el/4" in runs
    assert "speed" in made.studies("mine-rates")
    assert set(made.values["tables"]["tuning"]) >= {100, 101} and not {0, 1, 2, 3, 4} & set(
        made.values["tables"]["tuning"]
    )


@pytest.mark.parametrize("word", ["machine", "registry"])
def test_no_path_of_a_machine_is_named(word):
    """Nothing in the project names a folder or an index of the machine that it was written on."""
    bad = {"machine": r"(?<![\w./-])/(work|root|home)/\w", "registry": r"pypi\.org|--index-url|--extra-index-url"}[word]
    names = [
        p for p in ROOT.rglob("*")
        if p.suffix in (".md", ".rst", ".py", ".smk", ".yaml", ".yml", ".toml", ".lock", ".cff")
    ]  # fmt: skip
    ours = [p for p in names if not {".venv", ".git", "scratch", ".snakemake", ".dvc"} & set(p.relative_to(ROOT).parts)]
    assert len(ours) > 50
    found = [
        str(p) for p in ours if p != Path(__file__) and re.search(bad, p.read_text(encoding="utf-8", errors="replace"))
    ]
    assert not found
