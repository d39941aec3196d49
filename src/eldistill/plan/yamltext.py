# SPDX-License-Identifier: Apache-2.0
"""Checks the text of a settings file before a value is made of it: encoding, size, nesting, aliases, tags, names.

YAML itself allows what no settings need, and what its readers answer with a crash, or with all memory: thousands of levels,
aliases of aliases that stand for billions of values, objects of Python. Every text passes here first, event by event; events
come one at a time, however deep the text is.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import yaml

from eldistill.errors import Problem, denied, quoted

MAX_BYTES = 1_000_000  # of a file; params.yaml of this project has 14,000
MAX_NODES = (
    100_000  # names and values, aliases counted as often as they are used; params.yaml of this project has 2,000
)
MAX_DEPTH = 40  # mappings and lists inside one another
MAX_DIGITS = 40  # of a whole number
MAX_NAME = 100  # letters
TAG = "tag:yaml.org,2002:"
TAGS = {f"{TAG}{name}" for name in ("null", "bool", "int", "float", "str", "seq", "map")}
# Numbers as YAML 1.2 reads them, which DVC does too: 1e-5 is one. Digits may be grouped by _, as DVC's reader also accepts.
WHOLE = re.compile(r"[-+]?[0-9]+(?:_[0-9]+)*|0o[0-7]+|0x[0-9a-fA-F]+")
NUMBER = re.compile(
    r"[-+]?(?:\.[0-9]+|[0-9]+(?:_[0-9]+)*(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?|[-+]?\.(?:inf|Inf|INF)|\.(?:nan|NaN|NAN)"
)
TRUTH = re.compile("yes|Yes|YES|no|No|NO|true|True|TRUE|false|False|FALSE|on|On|ON|off|Off|OFF")
NOTHING = re.compile("~|null|Null|NULL|")
DATE = re.compile(r"\d{4}-\d{1,2}-\d{1,2}(?:[Tt ].*)?")
NOT_TEXT = {"a number": NUMBER, "a whole number": WHOLE, "true or false": TRUTH, "nothing": NOTHING, "a date": DATE}
# Blanks that look like a blank, or like nothing, and are letters to YAML: a web page has them.
ODD_BLANK = re.compile("[\u00a0\u1680\u2000-\u200b\u202f\u205f\u2060\u3000\ufeff]")
CONTROL = re.compile("[\\x00-\\x08\\x0b\\x0c\\x0e-\\x1f\\x7f-\\x84\\x86-\\x9f\\ud800-\\udfff\\ufffe\\uffff]")
MARGIN = re.compile("[\\s\u200b\u2060\ufeff]*")
BASE = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml's saves each step a quarter of a second


# --- the file -------------------------------------------------------------------------------------------


def read_text(path: Path) -> str:
    """The text of a settings file. Raises Problem if it is missing, no file, too large, may not be read or is not UTF-8."""
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            raise Problem(f"{path} is not a file; expected a text file with settings")
        with open(path, "rb") as file:
            content = file.read(MAX_BYTES + 1)
    except FileNotFoundError:
        raise Problem(f"{path} is missing; run this command in the folder that holds {path.name}") from None
    except PermissionError:
        raise denied(path) from None
    if len(content) > MAX_BYTES:
        raise Problem(f"{path} has more than {MAX_BYTES:,} bytes; expected settings, which are shorter")
    return _decoded(path, content)


def _decoded(path: Path, content: bytes) -> str:
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:200]:
        raise Problem(f"{path} is not UTF-8 but UTF-16, or no text; save it as UTF-8 in your editor")
    try:
        return content.decode("utf-8-sig")  # with or without the mark that editors of Windows put first
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise Problem(
            f"{path} is not UTF-8: line {line} holds the byte 0x{content[error.start]:02x}; save it as UTF-8 in your editor"
        ) from None


# --- the text, event by event ---------------------------------------------------------------------------


def check_text(text: str) -> None:
    """Raise Problem at the first place of a YAML text that settings may not have. Raises yaml.YAMLError if it is no YAML."""
    if control := CONTROL.search(text):
        line = text.count("\n", 0, control.start()) + 1
        raise Problem(f"line {line} holds the control character U+{ord(control[0]):04X}; expected text: remove it")
    _Check(text).document()


class _Check:
    def __init__(self, text: str):
        self.events: Iterator[Any] = iter(yaml.parse(text, Loader=BASE))
        self.nodes = 0
        self.anchors: dict[
            str, tuple[int, int] | None
        ] = {}  # (number of values, levels) of each; None while it is open

    def document(self) -> None:
        started = False
        for event in self.events:
            if isinstance(event, yaml.DocumentStartEvent) and started:
                _refuse(
                    event, "", "begins a second document (`---`); expected one: remove that line, or move what follows"
                )
            started |= isinstance(event, yaml.DocumentStartEvent)
            if isinstance(event, yaml.NodeEvent):
                self.node(event, "", 1)

    def node(self, event: Any, place: str, depth: int) -> tuple[int, int]:
        """Check a value with all that is in it; returns (number of values, levels) of it."""
        if depth > MAX_DEPTH:
            _refuse(
                event, place[:40] + "…", f"lies more than {MAX_DEPTH} levels deep; expected settings, which are flatter"
            )
        if isinstance(event, yaml.AliasEvent):
            return self.alias(event, place, depth)
        if event.anchor:
            self.anchors[event.anchor] = None
        if event.tag and event.tag != "!" and event.tag not in TAGS:
            _refuse(
                event,
                place,
                f"has the tag {quoted(event.tag.removeprefix(TAG))}; expected a value without a tag: remove it",
            )
        self.count(event, 1)
        if isinstance(event, yaml.ScalarEvent):
            _check_scalar(event, place)
            size = (1, 0)
        else:
            inside = (
                self.pairs(event, place, depth)
                if isinstance(event, yaml.MappingStartEvent)
                else self.items(place, depth)
            )
            size = (1 + sum(number for number, _ in inside), 1 + max((levels for _, levels in inside), default=0))
        if event.anchor:
            self.anchors[event.anchor] = size
        return size

    def count(self, event: Any, number: int) -> None:
        self.nodes += number
        if self.nodes > MAX_NODES:
            _refuse(
                event, "", f"brings the number of values above {MAX_NODES:,}, each alias (*name) counted with all it stands for; "
                "expected settings, which are fewer",
            )  # fmt: skip

    def alias(self, event: Any, place: str, depth: int) -> tuple[int, int]:
        size = self.anchors.get(event.anchor, (0, 0))
        if size is None:
            _refuse(event, place, f"contains itself by *{event.anchor}; write the values out")
        if event.anchor not in self.anchors:
            _refuse(
                event,
                place,
                f"refers to *{quoted(event.anchor)[1:-1]}, but no line above has &{quoted(event.anchor)[1:-1]}",
            )
        self.count(event, size[0])
        if depth + size[1] > MAX_DEPTH:
            _refuse(event, place, f"is more than {MAX_DEPTH} levels deep; expected settings, which are flatter")
        return size

    def items(self, place: str, depth: int) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while not isinstance(event := next(self.events), yaml.SequenceEndEvent):
            found.append(self.node(event, f"{place}[{len(found)}]", depth + 1))
        return found

    def pairs(self, mapping: Any, place: str, depth: int) -> list[tuple[int, int]]:
        found, last = [], None
        while not isinstance(key := next(self.events), yaml.MappingEndEvent):
            if not isinstance(key, yaml.ScalarEvent):
                _refuse(
                    key,
                    place,
                    "has a list, a mapping or an alias where a name is expected (braces in a text need quotes)",
                )
            if len(key.value) > MAX_NAME:
                _refuse(key, place, f"has a name of {len(key.value):,} letters; expected at most {MAX_NAME}")
            name = f"{place}.{key.value}" if place else key.value
            self.node(key, place, depth)
            value = next(self.events)
            _check_name(key, value, last, place)
            found.append(self.node(value, name, depth + 1))
            last = value
        return found


def _check_scalar(event: Any, place: str) -> None:
    plain = event.style in (None, "")
    if plain and (odd := ODD_BLANK.search(event.value)):
        _refuse(event, "", _odd(odd))
    if "\0" in event.value:  # written as an escape; no name of a file can have it
        _refuse(event, place, r"holds a zero byte (\0); remove it")
    kind = (event.tag or "").removeprefix(TAG)
    if kind not in ("", "!", "str") and not _fits(kind, event.value):
        _refuse(event, place, f"is {quoted(event.value)}, which is not of its tag !!{kind}; remove the tag")
    digits = plain and not event.tag and WHOLE.fullmatch(event.value) and len(event.value)
    if digits and digits > MAX_DIGITS:
        _refuse(event, place, f"is a whole number of {digits:,} digits; expected at most {MAX_DIGITS}")


def _fits(kind: str, text: str) -> bool:
    rules = {"int": WHOLE, "float": NUMBER, "bool": TRUTH, "null": NOTHING}
    return kind in rules and bool(rules[kind].fullmatch(text)) and len(text) <= MAX_DIGITS


def _check_name(key: Any, value: Any, before: Any, place: str) -> None:
    # Names must be texts: a folder and a suite are called by them, and other readers of YAML read others for 2024-01-01 and 010.
    if key.style not in (None, "") or key.tag:
        return
    kind = next((kind for kind, rule in NOT_TEXT.items() if rule.fullmatch(key.value)), None)
    if kind == "a number" and isinstance(before, yaml.ScalarEvent) and isinstance(value, yaml.ScalarEvent):
        if not value.value and WHOLE.fullmatch(before.value):
            _refuse(
                key,
                place,
                f"has {before.value},{key.value[:40]}; a number is written with a point: {before.value}.{key.value[:40]}",
            )
    if kind == "nothing" and not key.value:
        _refuse(key, place, "has no name before a colon")
    if kind:
        _refuse(
            key,
            place,
            f'has the name {key.value[:40]}, which YAML reads as {kind}; put it in quotes: "{key.value[:40]}"',
        )


def _odd(found: re.Match[str]) -> str:
    return (
        f"has a blank that is none to YAML (U+{ord(found[0]):04X}, as web pages have); replace it by an ordinary blank"
    )


def _refuse(event: Any, place: str, text: str) -> NoReturn:
    raise Problem(f"line {event.start_mark.line + 1}{f': {place}' if place else ''} {text}")


def odd_indentation(text: str) -> str | None:
    """A phrase about the first line that is not indented by ordinary blanks; None if there is none."""
    for number, line in enumerate(text.splitlines(), 1):
        margin = MARGIN.match(line)[0]  # type: ignore[index]  # it matches nothing, too
        if odd := ODD_BLANK.search(margin):
            return f"line {number} {_odd(odd)}"
        if "\t" in margin:
            return f"line {number} is indented with a tab; replace each tab by blanks"
    return None


# --- values ---------------------------------------------------------------------------------------------


class Loader(BASE):  # type: ignore[misc, valid-type]
    """PyYAML's safe loader with the numbers of YAML 1.2, and dates as texts. It is given texts that `check_text` has passed."""

    yaml_implicit_resolvers: dict = {}
    yaml_constructors = dict(BASE.yaml_constructors)


def _whole(loader: Any, node: yaml.ScalarNode) -> int:
    text = loader.construct_scalar(node).replace("_", "")
    return int(text, {"0o": 8, "0x": 16}.get(text[:2].lower(), 10))


def _number(loader: Any, node: yaml.ScalarNode) -> float:
    return float(loader.construct_scalar(node).replace("_", "").lower().replace(".inf", "inf").replace(".nan", "nan"))


for _name, _rule, _first in (
    ("bool", TRUTH, "yYnNtTfFoO"), ("int", WHOLE, "-+0123456789"), ("float", NUMBER, "-+0123456789."),
    ("null", NOTHING, ["~", "n", "N", ""]), ("merge", re.compile("<<"), "<"),
):  # fmt: skip
    Loader.add_implicit_resolver(TAG + _name, re.compile(f"(?:{_rule.pattern})$"), list(_first))
Loader.add_constructor(TAG + "int", _whole)
Loader.add_constructor(TAG + "float", _number)
