# SPDX-License-Identifier: Apache-2.0
"""Edges catch broadly: whatever a library raises at a file from outside is one sentence that names the file."""

from __future__ import annotations

import ast
import csv
import errno
import io
import re
import struct
import sys
import tomllib
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from eldistill import __main__ as program
from eldistill import errors, files, paths
from eldistill.data import containers, pictures
from eldistill.data.readers import folder
from eldistill.errors import NonFinite, Problem, Stopped
from eldistill.external import sources
from eldistill.plan import reading, yamltext
from tests import messages

PACKAGE = messages.ROOT / "src/eldistill"
RAISED = (
    ValueError("x"), TypeError("x"), KeyError("x"), IndexError("x"), AttributeError("x"), RuntimeError("x"), SyntaxError("x"), EOFError(),
    OverflowError("x"), ZeroDivisionError("x"), RecursionError("x"), NotImplementedError("x"), AssertionError(), OSError("x"),
    OSError(errno.EINVAL, "x"), struct.error("x"), zlib.error("x"), UnicodeDecodeError("utf-8", b"x", 0, 1, "x"), zipfile.BadZipFile("x"),
    csv.Error("x"), StopIteration(), BufferError("x"), Exception("x"), MemoryError(),
)  # fmt: skip


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """The current folder, a project in so far as it has a folder `data`."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data").mkdir()
    return tmp_path


def png(seed: int = 0) -> bytes:
    out = io.BytesIO()
    Image.fromarray(np.random.default_rng(seed).integers(0, 256, (8, 8, 3), np.uint8)).save(out, "PNG")
    return out.getvalue()


def section(path: Path) -> dict:
    return {"path": str(path), "resolution": None, "crop": "square"}


def raising(error: BaseException):
    def function(*_given, **_named):
        raise error

    return function


def by_name(error: BaseException) -> str:
    return f"{type(error).__name__} {error}"


# --- optional packages -----------------------------------------------------------------------------------


def imported() -> set[str]:
    """The first parts of the names of all modules that this package imports, but those of Python and of itself."""
    trees = [ast.parse(path.read_text(encoding="utf-8")) for path in PACKAGE.rglob("*.py")]
    nodes = [node for tree in trees for node in ast.walk(tree)]
    names = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    names |= {node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module}
    return {name.partition(".")[0] for name in names} - {"eldistill"} - sys.stdlib_module_names


def test_every_package_that_is_imported_is_needed_by_all_or_has_a_sentence():
    project = tomllib.loads((messages.ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    always = {re.match(r"[\w-]+", each)[0] for each in project["dependencies"]} - {"pyyaml"} | {"yaml"}
    assert imported() - always == set(errors.EXTRAS)
    for package, extra in errors.EXTRAS.values():
        assert any(re.match(rf"{package}\b", each) for each in project["optional-dependencies"][extra]), package


@pytest.mark.parametrize("module", errors.EXTRAS)
def test_an_optional_package_that_is_absent_is_named(project, capsys, monkeypatch, module):
    package, extra = errors.EXTRAS[module]
    error = ModuleNotFoundError(f"No module named {module!r}", name=f"{module}.inner")
    monkeypatch.setattr(program, "_run", raising(error))
    assert program.main(["data", "digits/images"]) == 2
    said = capsys.readouterr().err
    assert f"needs the package {package}, which is not installed" in said and said.endswith(
        f"pip install '.[{extra}]'\n"
    )
    with pytest.raises(Problem, match=f"needs the package {package}"), errors.edge("a.png", "delete it"):
        raise error  # the file is not to blame


def test_a_module_that_nobody_knows_is_a_defect(project, monkeypatch):
    monkeypatch.setattr(program, "_run", raising(ModuleNotFoundError("No module named 'x'", name="x")))
    with pytest.raises(ModuleNotFoundError):
        program.main(["data", "digits/images"])


# --- whatever is raised ----------------------------------------------------------------------------------


@pytest.mark.parametrize("error", RAISED, ids=by_name)
def test_a_picture_at_which_anything_is_raised_is_named(project, monkeypatch, error):
    (project / "some").mkdir()
    (project / "some/a.png").write_bytes(png())
    monkeypatch.setattr(Image, "open", raising(error))
    with pytest.raises(Problem, match=r"some: a\.png (is a damaged image|needs more memory)") as caught:
        folder.read(section(project / "some"))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("error", RAISED, ids=by_name)
def test_a_member_of_a_zip_at_which_anything_is_raised_is_named(project, monkeypatch, error):
    with zipfile.ZipFile(project / "some.zip", "w") as archive:
        archive.writestr("a.png", png())
    monkeypatch.setattr(zipfile.ZipFile, "open", raising(error))
    with pytest.raises(Problem, match=r"some\.zip") as caught:
        folder.read(section(project / "some.zip"))
    assert "a.png" in str(caught.value) or isinstance(error, MemoryError)


@pytest.mark.parametrize("error", RAISED, ids=by_name)
def test_a_zip_at_which_anything_is_raised_is_named(project, monkeypatch, error):
    with zipfile.ZipFile(project / "some.zip", "w") as archive:
        archive.writestr("a.png", png())
    monkeypatch.setattr(zipfile, "ZipFile", raising(error))
    with pytest.raises(Problem, match=r"some\.zip (is a damaged zip|needs more memory)"):
        folder.read(section(project / "some.zip"))


@pytest.mark.parametrize("error", [each for each in RAISED if not isinstance(each, OSError | MemoryError)], ids=by_name)
def test_a_settings_file_at_which_anything_is_raised_is_named(project, monkeypatch, error):
    (project / "params.yaml").write_text("a: 1\n", encoding="utf-8")
    monkeypatch.setattr(yamltext, "check_text", raising(error))
    with pytest.raises(Problem, match=r"params\.yaml is not understood"):
        reading.read_file(project / "params.yaml")


@pytest.mark.parametrize("error", RAISED, ids=by_name)
def test_a_table_at_which_anything_is_raised_is_named(project, monkeypatch, error):
    (project / "some.csv").write_text("a,b\n1,2\n", encoding="utf-8")
    monkeypatch.setattr(csv, "DictReader", raising(error))
    with pytest.raises(Problem, match=r"some\.csv (is damaged|needs more memory)"):
        files.read_rows(project / "some.csv")


def test_the_traceback_goes_to_the_log(project):
    with (
        pytest.raises(Problem, match=r"^x\.png is damaged \(deep inside\); make it again$"),
        errors.edge("x.png", "make it again"),
    ):
        raise ValueError("deep inside\nand more")
    log = Path(errors.TRACEBACKS).read_text(encoding="utf-8")
    assert "Traceback" in log and "test_edges.py" in log and "x.png" in log


def test_outside_of_a_project_no_log_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(Problem), errors.edge("x", "y"):
        raise ValueError
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("error", [Problem("x"), NonFinite("x"), Stopped("x"), OSError(errno.ENOSPC, "full"), OSError(errno.EIO, "gone"),
                                   FileNotFoundError("x"), KeyboardInterrupt()], ids=by_name)  # fmt: skip
def test_what_is_not_the_files_fault_passes(project, error):
    with pytest.raises(type(error)) as caught, errors.edge("x.png", "make it again"):
        raise error
    assert caught.value is error


# --- three sentences ---------------------------------------------------------------------------------------


def refused(path: Path, content: bytes) -> str:
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(content)
    with pytest.raises(Problem) as caught:
        folder.read(section(path.parent))
    return str(caught.value)


def test_denied_foreign_and_damaged_pictures_are_three_sentences(project, monkeypatch):
    assert "is empty" in refused(project / "some/a.png", b"")
    assert "is a web page" in refused(project / "some/a.png", b"<!doctype html>")
    foreign = [refused(project / "some/a.png", each) for each in (b"nothing", b"PK\x03\x04" + bytes(40))]
    assert all("is not an image, but something else" in each for each in foreign)
    assert "is a damaged image" in refused(project / "some/a.png", png()[:90])
    monkeypatch.setattr("eldistill.data.containers.open", raising(PermissionError(13, "no")), raising=False)
    with pytest.raises(Problem, match=r"a\.png may not be read by this user"):
        folder.read(section(project / "some"))


def test_a_zip_that_may_not_be_read_is_not_called_damaged(project, monkeypatch):
    (project / "some.zip").write_bytes(b"")
    monkeypatch.setattr(containers.os, "access", lambda path, how: False)
    with pytest.raises(Problem, match=r"some\.zip may not be read by this user"):
        folder.read(section(project / "some.zip"))


def handlers():
    """(file, line, names of exceptions, source of the body, names that handlers before it catch) of every `except`."""
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(text)):
            for place, each in enumerate(node.handlers if isinstance(node, ast.Try) else []):
                before = [ast.unparse(other.type) for other in node.handlers[:place] if other.type]
                body = "\n".join(ast.unparse(line) for line in each.body)
                yield path, each.lineno, ast.unparse(each.type) if each.type else "", body, " ".join(before)


def test_no_file_that_may_not_be_read_is_called_damaged():
    """PermissionError is an OSError: whoever calls that damage must have caught it before."""
    wrong = [
        f"{path.name}:{line}"
        for path, line, kinds, body, before in handlers()
        if re.search(r"\bOSError\b", kinds) and re.search("Problem|Refused", body) and re.search("damaged|is no |not a ", body)
        and "PermissionError" not in before
    ]  # fmt: skip
    assert wrong == []


# --- whose file it is -----------------------------------------------------------------------------------------


OURS = {"external/fetching.py", "data/dataset.py", "external/arrays.py"}  # the store of downloads, packs, pairs
READERS = sorted(
    [
        *PACKAGE.glob("data/**/*.py"),
        *PACKAGE.glob("external/*.py"),
        *PACKAGE.glob("teacher/*.py"),
        PACKAGE / "plan/reading.py",
    ]
)


@pytest.mark.parametrize("path", READERS, ids=lambda path: path.relative_to(PACKAGE).as_posix())
def test_nobody_is_told_to_delete_a_file_of_his_own(path):
    if path.relative_to(PACKAGE).as_posix() in OURS:
        return
    asked = re.compile(
        r"\b(delete|remove|erase)\b (it\b|them\b|the (file|link|folder|picture|image)|that (file|folder)|\{)"
    )
    texts = [text for _, kind, text in messages.texts(path) if kind == "error"]
    # `remove it` about a key of params.yaml is no file.
    assert [text for text in texts if asked.search(text)] == []


@pytest.mark.parametrize(
    ("name", "result"),
    [
        ("data/sets/a/images.safetensors", True), ("data/runs/a/b/c/0/log.csv", True), ("data/tables/x/main.csv", True),
        ("data/sources.csv", False), ("data/mine/teacher.safetensors", False), ("/elsewhere/data/sets/a.safetensors", False),
        ("../other/data/runs/a.safetensors", False), ("params.yaml", False), ("/tmp/x/data/scratch/state/a/state.safetensors", True),
    ],
)  # fmt: skip
def test_only_results_are_deleted(project, name, result):
    assert paths.is_result(name) is result
    assert ("delete" in files.make_again(name)) is result


def test_a_damaged_file_of_a_users_own_is_not_deleted(project):
    (project / "mine.json").write_text("{", encoding="utf-8")
    (project / "data/runs").mkdir()
    (project / "data/runs/x.json").write_text("[" * 100_000, encoding="utf-8")
    with pytest.raises(Problem, match=r"mine\.json is not JSON .*; restore it from a copy"):
        files.read_json("mine.json")
    with pytest.raises(Problem, match=r"x\.json is not JSON .*; delete it and run"):
        files.read_json("data/runs/x.json")


# --- tables that a spreadsheet saved ------------------------------------------------------------------------------


def test_a_spreadsheet_may_save_the_table_of_sources(project):
    table = Path("data/sources.csv")
    text = (messages.ROOT / "data/sources.csv").read_text(encoding="utf-8")
    name = text.splitlines()[1].split(",")[0]
    table.write_text(text, encoding="utf-8-sig")
    assert sources.source_row(name)["name"] == name
    for content, words in ((text.replace(",", ";").encode(), "semicolons"), (b"\xff\xfea", "is damaged"), (b"", "no column name"),
                           (b"a,b\n1,2\n", "no column name"), (text.encode() + b"a" + b",b" * 40, "more cells")):  # fmt: skip
        table.write_bytes(content)
        with pytest.raises(Problem, match=rf"data/sources\.csv .*({words}).*git checkout data/sources\.csv"):
            sources.source_row(name + "x")


# --- texts of others ------------------------------------------------------------------------------------------------

NASTY = "\x1b[2J\x1b]0;owned\x07\r\n\x9b31m\u202e\ud800"


def test_control_characters_never_reach_the_terminal():
    for text in (str(Problem(NASTY)), errors.one_line(NASTY), errors.quoted(NASTY), errors.brief(ValueError(NASTY))):
        assert text.isprintable() and "\\x1b" in text
    assert errors.printable(f"a\n\t{NASTY}").replace("\n", "").replace("\t", "").isprintable()


def test_names_of_files_with_escape_sequences_are_shown_as_such(project):
    sentence = refused(project / "some/\x1b[2Ja\nb.png", b"nothing")
    assert sentence.isprintable() and r"\x1b[2Ja\nb.png" in sentence


def test_a_users_text_is_quoted_up_to_100_letters():
    assert errors.quoted("x" * 1000) == "'" + "x" * 98 + "…" and errors.quoted([1, 2]) == "[1, 2]"
    assert len(errors.quoted({"a": "y" * 10_000})) == 100


def test_advice_to_switch_a_safeguard_off_is_left_out():
    torch = "Weights only load failed. In PyTorch 2.6, we changed the default value of the `weights_only` argument …"
    for text in (torch, "Cannot load file containing pickled data when allow_pickle=False"):
        assert errors.brief(ValueError(text)) == "ValueError"
    assert errors.brief(ValueError("one\ntwo")) == "one" and errors.brief(KeyError()) == "KeyError"


def test_no_sentence_holds_the_text_of_torch_or_numpy_as_it_is():
    """Where a file is loaded by them, what they raise is quoted by `brief` only."""
    wrong, loads = [], {"torch.load", "np.load", "safe_open"}
    for path in sorted(PACKAGE.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        calls = {ast.unparse(node.func) for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Call)}
        if calls & loads and re.search(r"\(\{error\}\)|str\(error\)[^)]*\[:\d+\]", text):
            wrong.append(path.name)
    assert wrong == []


def test_pictures_are_read_as_before(project):
    """The edge changes no picture."""
    with zipfile.ZipFile(project / "some.zip", "w") as archive:
        archive.writestr("a.png", png())
    with containers.open_container(project / "some.zip") as container:
        with pictures.open_picture(project / "some.zip", "a.png", container) as found:
            assert (pictures.read_pixels(found, pictures.Rules()) == np.asarray(Image.open(io.BytesIO(png())))).all()
