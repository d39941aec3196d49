# SPDX-License-Identifier: Apache-2.0
"""Settings files that are wrong: each is one sentence with the file, the place and what to type; none costs memory or time."""

from __future__ import annotations

import copy
import os
import random
import re
import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from eldistill.errors import Problem
from eldistill.plan import params, reading, yamltext
from tests import conftest
from tests.conftest import ROOT

OWN = reading.FILES[-1]
TEXT = (ROOT / OWN).read_text(encoding="utf-8")
MINE = "threads: 1           # CPU"


def replaced(old: str, new: str) -> bytes:
    assert old in TEXT
    return TEXT.replace(old, new, 1).encode()


def below(line: str) -> bytes:
    """params.yaml with a line put at its end."""
    return f"{TEXT}{line}\n".encode()


def doubling(levels: int) -> bytes:
    """Aliases of aliases: ten times as many values with every level, in a few hundred bytes."""
    rows = ["a0: &a0 [1, 1, 1, 1, 1, 1, 1, 1, 1, 1]"]
    rows += [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels)]
    return "\n".join(rows).encode()


# {what is wrong: (content of params.yaml, words of the sentence)}
BAD: dict[str, tuple[bytes, list[str]]] = {
    # encodings
    "empty": (b"", ["params.yaml is empty", "git checkout"]),
    "only a comment": (b"# nothing\n", ["params.yaml is empty"]),
    "UTF-16 with a mark": (TEXT.encode("utf-16"), ["is not UTF-8 but UTF-16", "save it as UTF-8"]),
    "UTF-16 without a mark": (TEXT.encode("utf-16-le"), ["is not UTF-8"]),
    "a comment in cp1252": (TEXT.encode() + b"# gro\xdfe Bilder\n", ["is not UTF-8: line", "0xdf"]),
    "a picture": (b"\x89PNG\r\n\x1a\n" + bytes(100), ["is not UTF-8"]),
    "an escape sequence": (below("x: \x1b[2J"), ["control character U+001B"]),
    "a zero byte": (below("x: a\0b"), ["control character U+0000"]),
    "larger than any settings": (b"# " + b"x" * 1_100_000, ["more than 1,000,000 bytes"]),
    # blanks and syntax
    "no-break blanks": (replaced("    heldout: 360", "\u00a0\u00a0\u00a0 heldout: 360"), ["line 14", "U+00A0", "ordinary blank"]),
    "a blank of no width": (replaced("threads: 1", "threads: 1\u200b"), ["U+200B"]),
    "a tab": (replaced("    heldout: 360", "\theldout: 360"), ["line 14 is indented with a tab"]),
    "a bracket that stays open": (below("x: [1, 2"), ["is not YAML near line", "bracket"]),
    "a quote that stays open": (below("x: 'abc"), ["is not YAML near line", "quote"]),
    "two colons": (below("x: y: z"), ["is not YAML near line"]),
    "two documents": (below("---\nx: 1"), ["second document"]),
    "a list": (b"- 1\n- 2\n", ["holds a list; expected sections"]),
    "a text": (b"nothing\n", ["holds one value; expected sections"]),
    "an unknown directive": (b"%YAML 9.0\n---\n" + TEXT.encode(), ["is not YAML"]),
    # names
    "a section twice": (below("data:\n  mine: {like: digits}"), ["data occurs twice, in line 11 and in line"]),
    "a key twice": (below("tables:\n  baseline: none\n  baseline: none"), ["occurs twice"]),
    "a number as a name": (replaced("  digits-long:  ", "  2024:  "), ["data has the name 2024", 'in quotes: "2024"']),
    "a date as a name": (replaced("  digits-long:  ", "  2024-01-31:  "), ["reads as a date", 'in quotes: "2024-01-31"']),
    "a truth as a name": (replaced("  digits-long:  ", "  no:  "), ["reads as true or false", 'in quotes: "no"']),
    "nothing as a name": (replaced("  digits-long:  ", "  ~:  "), ["reads as nothing", "in quotes"]),
    "no name": (below("x:\n  ? \n  : 1"), ["has no name before a colon"]),
    "a list as a name": (below("? [a, b]\n: 1"), ["where a name is expected"]),
    "braces of a template": (below("x: {{ root }}"), ["where a name is expected", "braces"]),
    "a long name": (below(f"? {'k' * 3000}\n: 1"), ["3,000 letters", "at most 100"]),
    "a name that a terminal obeys": (replaced("  digits:  ", '  "di\\e[31mg":  '), ["di\\x1b[31mg"]),
    # values
    "a decimal comma": (replaced("std: 0.3756", "std: 0,3756"), ["0,3756", "with a point: 0.3756"]),
    "a decimal comma on a line": (replaced("threads: 1 ", "max_gpu_hours: 1,5\nthreads: 1 "), [
        "max_gpu_hours is '1,5'", "with a point, 1.5",
    ]),
    "a number as a text": (replaced("suite: demo", "suite: 2024"), ["suite is 2024", 'in quotes, "2024"']),
    "a word for true": (replaced("suite: demo", "suite: yes"), ["suite is True", "in quotes"]),
    "a number that is too long": (replaced("threads: 1 ", f"threads: {'9' * 5000} "), ["5,000 digits"]),
    "an infinite number": (replaced("lr: 2.0e-3", "lr: 1e999"), ["teacher.digits.optimiser.lr is inf"]),
    "no number": (replaced("lr: 2.0e-3", "lr: .nan"), ["teacher.digits.optimiser.lr is nan"]),
    "a text as long as a book": (replaced("threads: 1 ", f"threads: {'x' * 50_000} "), ["threads is 'xxx", "…"]),
    "a misspelt key": (replaced("threads: 1 ", "thraeds: 1 "), ["thraeds is not a known key", "did you mean threads? Expected one of"]),
    "an unknown name": (replaced("suite: demo", "suite: dem"), ["suite is 'dem'; did you mean demo? Expected one of demo"]),
    # aliases and tags
    "an alias of nothing": (below("x: *y"), ["*y", "no line above has &y"]),
    "an alias of itself": (below("x: &y [*y]"), ["contains itself by *y"]),
    "aliases that explode": (doubling(12), ["number of values above 100,000", "alias"]),
    "many values": (below("x: [" + "1, " * 100_001 + "1]"), ["number of values above 100,000"]),
    "lists in lists": (b"x: " + b"[" * 100_000, ["more than 40 levels deep"]),
    "aliases in aliases": (
        ("a0: &a0 [1]\n" + "".join(f"a{i}: &a{i} [*a{i - 1}]\n" for i in range(1, 60))).encode(), ["40 levels deep"],
    ),
    "an object of Python": (below("x: !!python/object/apply:os.system [true]"), ["has the tag", "remove it"]),
    "a number by a tag": (below("x: !!int abc"), ["not of its tag !!int"]),
    "a time by a tag": (below("x: !!timestamp soon"), ["has the tag 'timestamp'"]),
    "a set": (below("x: !!set {a}"), ["has the tag 'set'"]),
    "a value merged as a mapping": (below("x:\n  <<: 1"), ["is not YAML"]),
    "a program for Snakemake": (below("__use_yte__: true"), ["__use_yte__"]),
}  # fmt: skip


@pytest.fixture
def project(tmp_path) -> Path:
    """The files of this project in another folder."""
    for name in (*reading.FILES, str(params.SCHEMA), "data/sources.csv"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    return tmp_path


def refused(path: Path) -> str:
    """The sentence about a project that cannot be loaded; it took little time and memory."""
    begun, held = time.process_time(), highest()
    with pytest.raises(Problem) as caught:
        params.load_params(path)
    assert time.process_time() - begun < 10 and highest() - held < 128e6
    return str(caught.value)


def highest() -> int:
    """The largest memory that this process has ever held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def quotes(text: str) -> list[str]:
    return re.findall(r"'([^']*)'", text)


def test_there_are_at_least_48():
    assert len(BAD) >= 48


@pytest.mark.parametrize("case", BAD)
def test_a_bad_settings_file_is_one_sentence(project, case):
    content, words = BAD[case]
    (project / OWN).write_bytes(content)
    text = refused(project / OWN)
    assert OWN in text and all(word in text for word in words), text
    assert text.isprintable() and "Traceback" not in text and all(len(each) <= 100 for each in quotes(text)), text


@pytest.mark.parametrize("kind", ["missing", "a folder", "a pipe", "denied"])
def test_what_is_no_readable_file_is_one_sentence(project, kind, monkeypatch):
    """A pipe would be waited for, for ever; it is not opened."""
    path = project / OWN
    path.unlink()
    if kind == "a folder":
        path.mkdir()
    elif kind == "a pipe":
        os.mkfifo(path)
    elif kind == "denied":
        path.write_text(TEXT, encoding="utf-8")

        def no(*_given, **_named):
            raise PermissionError(13, "Permission denied", str(path))

        monkeypatch.setattr("builtins.open", no)
    sentence = {"missing": "is missing; run", "denied": "may not be read by this user"}.get(kind, "is not a file")
    with pytest.raises(Problem, match=sentence):
        reading.read_file(path)


# --- what is right ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("written", "value"),
    [
        ("1e-5", 1e-5), ("1E5", 1e5), ("1.0e-5", 1e-5), ("-.5e3", -500.0), ("1e-06", 1e-6), ("5.", 5.0), ("+12", 12), ("010", 10),
        ("0x1F", 31), ("0o17", 15), ("1_000_000", 1_000_000), ("1:30", "1:30"), ("2024-01-31", "2024-01-31"), ("yes", True),
        ("null", None), ("~", None), ("", None), ("'1e-5'", "1e-5"), (".inf", float("inf")), ("e5", "e5"), ("1e", "1e"),
    ],
)  # fmt: skip
def test_values_are_those_of_yaml_1_2(written, value):
    found = reading.read_yaml(f"x: {written}\n")["x"]
    assert found == value and type(found) is type(value)


@pytest.mark.parametrize("written", ["1e-5", "1e-05", "1.0e-5", "0.00001"])
def test_a_small_rate_is_one_however_it_is_written(project, written):
    """By hand, or by `dvc exp run -S`, which writes 1e-05."""
    (project / OWN).write_bytes(replaced("lr: 2.0e-3", f"lr: {written}"))
    assert params.load_params(project / OWN).section("teacher", "digits")["optimiser"]["lr"] == 1e-5


@pytest.mark.parametrize("name", [*reading.FILES, str(params.SCHEMA), "dvc.yaml"])
def test_the_files_of_this_project_mean_what_other_readers_read(name):
    """Equal values of equal types, so that no recipe changes by the reader."""
    text = (ROOT / name).read_text(encoding="utf-8")
    assert repr(reading.read_yaml(text)) == repr(yaml.load(text, yaml.CSafeLoader))


@pytest.mark.parametrize("how", ["a mark", "CRLF"])
def test_what_editors_of_windows_save_is_read(project, how):
    content = b"\xef\xbb\xbf" + TEXT.encode() if how == "a mark" else TEXT.replace("\n", "\r\n").encode()
    (project / OWN).write_bytes(content)
    assert params.load_params(project / OWN).values == params.load_params(ROOT / OWN).values


def test_the_key_in_a_sentence_is_the_whole_one(project):
    (project / OWN).write_bytes(replaced("generator: {lr: 5.0e-4", "generator: {lr: fast"))
    assert "distil.methods.di.per_data.digits.generator.lr is 'fast'" in refused(project / OWN)


# --- before Snakemake -------------------------------------------------------------------------------------


def test_the_snakefile_reads_settings_with_this_reader_first():
    text = (ROOT / "Snakefile").read_text(encoding="utf-8")
    assert text.index('include: "workflow/rules/settings.smk"') < text.index("\nconfigfile:")


def test_every_file_that_snakemake_merges_is_checked(project):
    other = project / "mine.yaml"
    for content, words in (
        ("suite: demo\nsuite: smoke\n", "suite occurs twice"),
        ("__use_yte__: true\n", "__use_yte__"),
    ):
        other.write_text(content, encoding="utf-8")
        with pytest.raises(Problem, match=f"mine.yaml: {words}"):
            reading.check_before_snakemake(project, [other])
    other.write_text("suite: smoke\n", encoding="utf-8")
    reading.check_before_snakemake(project, [other])
    (project / OWN).write_bytes(BAD["a program for Snakemake"][0])
    with pytest.raises(Problem, match="run the file as a program; write values"):
        reading.check_before_snakemake(project)


@pytest.mark.parametrize("name", [*reading.FILES, "mine.yaml"])
@pytest.mark.parametrize(
    ("content", "words"), [("", "is empty"), ("- 1\n", "holds a list"), ("a\n", "holds one value")]
)
def test_a_file_without_sections_is_named_before_snakemake_reads_it(project, name, content, words):
    """Snakemake's own sentence names neither the file nor what to do."""
    (project / name).parent.mkdir(parents=True, exist_ok=True)
    (project / name).write_text(content, encoding="utf-8")
    with pytest.raises(Problem, match=f"{Path(name).name} {words}; expected sections"):
        reading.check_before_snakemake(project, [project / name] if name == "mine.yaml" else ())


def test_a_template_of_a_file_that_snakemake_has_read_already_is_said_to_have_run(project):
    """Snakemake reads the files of --configfile before the first line of the Snakefile."""
    (project / "mine.yaml").write_text("__use_yte__: true\nsuite: demo\n", encoding="utf-8")
    with pytest.raises(Problem, match="mine.yaml: __use_yte__ made Snakemake run the file .* look at what it did"):
        reading.check_before_snakemake(project, [project / "mine.yaml"])


def test_a_number_as_snakemake_reads_it_is_no_other_number():
    """Snakemake reads 1e-5 as a text; neither the files' own nor the same number of --configfile is refused for it."""
    found = {OWN: {"suite": "demo", "teacher": {"a": {"lr": 1e-5, "batch": 4}}}}
    reading.refuse_config({"suite": "smoke", "teacher": {"a": {"lr": "1e-5"}}}, found)
    with pytest.raises(Problem, match="gives teacher.a.lr as '1e-4', and params.yaml has 1e-05"):
        reading.refuse_config({"teacher": {"a": {"lr": "1e-4"}}}, found)


# --- by chance --------------------------------------------------------------------------------------------

PIECES = [
    b"[", b"]", b"{", b"}", b":", b": ", b"- ", b"\n", b"\n  ", b"\t", b"&a ", b"*a", b"<<: *a", b"!!", b"!!set ", b"!x ", b"'", b'"',
    b"|\n", b">-\n", b"---\n", b"...\n", b"%", b"# ", b"? ", b"@", b"`", b"\\", b"\0", b"\x1b[2J", b"\xff", b"\xc2\xa0",
    b"\xef\xbb\xbf", b"\xed\xa0\x80", b"1e999", b"0x", b"1e-5", b"2024-01-31", b"yes", b"~", b"=", b".nan", b",", b"9" * 50, b"\r",
    b"\xc2\x85", b"\xe2\x80\xa8",
]  # fmt: skip


def mutated(draw: random.Random, content: bytes) -> bytes:
    """The content with one to eight changes: pieces of YAML put in, parts left out, doubled or exchanged, bytes flipped."""
    for _ in range(draw.randint(1, 8)):
        at, end = sorted(draw.randrange(len(content) + 1) for _ in range(2))
        end = min(end, at + draw.choice([1, 3, 30, 300]))
        part, rest = content[at:end], content[end:]
        way = draw.randrange(6)
        put = (
            draw.choice(PIECES),
            draw.choice(PIECES) * draw.choice([2, 50, 3000]),
            b"",
            part * 3,
            rest[:40] + part,
            bytes([draw.randrange(256)]),
        )
        content = content[:at] + put[way] + (rest if way != 0 else part + rest)
    return content


def outcome(content: bytes, path: Path) -> str:
    path.write_bytes(content)
    begun = time.process_time()
    try:
        reading.merge_files({OWN: reading.read_file(path)})
        result = "read"
    except Problem as problem:
        assert str(problem).isprintable() and len(str(problem)) < 1000, str(problem)
        result = "refused"
    assert time.process_time() - begun < 5, "too slow"
    return result


@pytest.mark.parametrize("seed", range(20))
def test_whatever_is_in_a_settings_file_it_is_read_or_refused(tmp_path, seed):
    """Never another exception, never much time or memory."""
    draw = random.Random(seed)
    short = "\n".join(TEXT.splitlines()[draw.randrange(60) :][: draw.choice([5, 40])]).encode()
    held = highest()
    bases = [short, b"a: 1\n", TEXT.encode()[:3000]]
    found = {outcome(mutated(draw, draw.choice(bases)), tmp_path / OWN) for _ in range(25)}
    assert found <= {"read", "refused"} and highest() - held < 128e6


def test_a_whole_project_with_a_strange_value_anywhere_is_loaded_or_refused(project):
    """A value of another type in the place of any one: the checks of the schema, and those behind it, meet it."""
    draw, values = random.Random(0), conftest.shipped()
    strange = [None, True, -1, 10**39, 1e308, "", "\x1b[2J", [], {}, [[]], {"a": []}, ["x"], "2024-01-31"]

    def put(place):
        key = draw.choice(list(place) if isinstance(place, dict) else range(len(place)))
        if isinstance(place[key], dict | list) and place[key] and draw.random() < 0.8:
            put(place[key])
        else:
            place[key] = draw.choice(strange)

    for _ in range(60):
        changed = copy.deepcopy(values)
        put(changed)
        try:
            params.from_values(changed, ROOT)
        except Problem as problem:
            assert str(problem).isprintable(), str(problem)


def test_a_deep_text_cannot_end_the_interpreter():
    """libyaml's composer calls itself for every level, until the stack is full; a bounded check comes before it."""
    code = "from eldistill.plan import reading\ntry: reading.read_yaml('[' * 10**6)\nexcept Exception as e: print(type(e).__name__)"
    own = os.environ | {"PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=own)
    assert (done.returncode, done.stdout.strip()) == (0, "Problem"), done.stderr[-300:]


def test_the_limits_are_far_above_what_this_project_needs():
    for name in reading.FILES:
        check = yamltext._Check((ROOT / name).read_text(encoding="utf-8"))
        check.document()
        assert check.nodes * 20 < yamltext.MAX_NODES and (ROOT / name).stat().st_size * 10 < yamltext.MAX_BYTES
