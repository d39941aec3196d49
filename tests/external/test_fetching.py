# SPDX-License-Identifier: Apache-2.0
"""Files fetched from servers that misbehave: afterwards the right file, or a sentence and nothing that would be trusted."""

from __future__ import annotations

import csv
import hashlib
import http.server
import multiprocessing
import os
import random
import re
import threading
from pathlib import Path

import pytest

from eldistill.errors import Problem
from eldistill.external import fetching, sources

CONTENT = random.Random(0).randbytes(400_000)
DIGEST = hashlib.sha256(CONTENT).hexdigest()
PAGE = b"<!DOCTYPE html><html><body>Sign in</body></html>" + b" " * 400_000


class Server(http.server.ThreadingHTTPServer):
    """A server of one file. behaviours: for each request in turn, changes of `Handler.answer`'s arguments."""

    daemon_threads = True

    def __init__(self, *behaviours: dict, content: bytes = CONTENT, **always):
        super().__init__(("127.0.0.1", 0), Handler)
        self.behaviours, self.always, self.content, self.asked = list(behaviours), always, content, []

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/thing.bin"

    def __enter__(self):
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True).start()
        return self

    def __exit__(self, *error):
        self.shutdown()
        self.server_close()


class Handler(http.server.BaseHTTPRequestHandler):
    def log_message(self, *words):
        pass

    def do_GET(self):
        server = self.server
        server.asked.append((self.headers.get("Range"), self.headers.get("If-Range")))
        behaviour = server.behaviours.pop(0) if server.behaviours else {}
        self.answer(**{"content": server.content, **server.always, **behaviour})

    def answer(self, content, ranges=True, cut=None, length=None, status=None, kind="application/octet-stream", shift=0, etag=None,
               extra=b"", headers=()):  # fmt: skip
        """cut: bytes after which the line breaks. length: what Content-Length claims, None the truth, 0 nothing.
        shift: by how much a part begins elsewhere than asked. extra: what is sent beyond the end."""
        self.close_connection = True
        if status:
            self.send_response(status)
            for name, value in headers:
                self.send_header(name, value)
            self.end_headers()
            return
        wanted, tag = self.headers.get("Range"), self.headers.get("If-Range")
        start = int(wanted.removeprefix("bytes=").removesuffix("-")) if wanted and ranges and tag in (None, etag) else 0
        if start >= len(content):
            self.send_error(416)
            return
        rest = content[start + shift :] + extra
        self.send_response(206 if start else 200)
        if start:
            self.send_header("Content-Range", f"bytes {start + shift}-{len(content) - 1}/{len(content)}")
        if length != 0:
            self.send_header("Content-Length", str(len(rest) if length is None else length))
        self.send_header("Content-Type", kind)
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        with_cut = rest if cut is None else rest[:cut]
        try:
            self.wfile.write(with_cut)
        except (BrokenPipeError, ConnectionResetError):
            pass


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """An empty project; no waiting between tries; what was waited is kept."""
    monkeypatch.chdir(tmp_path)
    for name in ("ELDISTILL_STORE", "ELDISTILL_MIRROR", "ELDISTILL_OFFLINE"):
        monkeypatch.delenv(name, raising=False)
    waited = []
    monkeypatch.setattr(fetching.time, "sleep", waited.append)
    return waited


def table(url: str, sha256: str = DIGEST, size: int | str = len(CONTENT), mirror: str = "") -> None:
    Path("data").mkdir(exist_ok=True)
    with open("data/sources.csv", "w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["name", "version", "url", "mirror", "sha256", "bytes", "licence"])
        writer.writerow(["thing", "1", url, mirror, sha256, size, "MIT"])


def store() -> list[str]:
    return sorted(path.name for path in Path("data/scratch/store").glob("[!.]*"))


def refused() -> str:
    with pytest.raises(Problem) as caught:
        fetching.fetch("thing")
    assert "\n" not in str(caught.value) and "thing" in str(caught.value)
    return str(caught.value)


GOOD = {
    "nothing wrong": [],
    "cut three times": [{"cut": 100_000}, {"cut": 1}, {"cut": 200_000}],
    "cut at once": [{"cut": 0}, {"cut": 0}],
    "cut by a server without ranges": [{"cut": 100_000, "ranges": False}, {"ranges": False}],
    "a length that is too long": [{"length": 500_000}],
    "no length": [{"length": 0, "cut": 1000}, {"length": 0}],
    "busy, then well": [{"status": 503}, {"status": 429}, {"status": 500}],
    "another part than was asked for": [{"cut": 1000}, {"shift": 7}],
    "more than there is": [{"extra": b"more"}],
}


@pytest.mark.parametrize("digest", [DIGEST, ""], ids=["known digest", "unknown digest"])
@pytest.mark.parametrize("kind", GOOD)
def test_the_right_file_or_a_sentence(kind, digest):
    """Whatever the server does first, the file is right, or there is a sentence, and the next call makes it right."""
    with Server(*[dict(each) for each in GOOD[kind]]) as server:
        table(server.url, digest)
        try:
            path = fetching.fetch("thing", say=lambda text: None)
        except Problem as problem:
            assert "\n" not in str(problem) and not [name for name in store() if not name.endswith((".part", ".json"))]
            path = fetching.fetch("thing", say=lambda text: None)
    assert path.read_bytes() == CONTENT and store() == [f"{DIGEST[:16]}-thing.bin"]


def test_a_file_is_fetched_once_and_continued_where_it_broke():
    """By ranges, if the server has them; a finished file is not asked for again."""
    for ranges in (True, False):
        with Server({"cut": 100_000}, {"cut": 50_000}, ranges=ranges) as server:
            table(server.url)
            path = fetching.fetch("thing", say=lambda text: None)
            assert path.read_bytes() == CONTENT and fetching.fetch("thing") == path
            second = "bytes=150000-" if ranges else "bytes=50000-"
            assert [each[0] for each in server.asked] == [None, "bytes=100000-", second]
        path.unlink()


@pytest.mark.parametrize("length", [1000, len(CONTENT)])
def test_what_a_killed_process_left_is_continued(length):
    """Also what is whole already; the digest decides."""
    with Server() as server:
        table(server.url)
        part = Path("data/scratch/store", f"{DIGEST[:16]}-thing.bin.part")
        part.parent.mkdir(parents=True)
        part.write_bytes(CONTENT[:length])
        assert fetching.fetch("thing").read_bytes() == CONTENT and not part.exists()
        assert [each[0] for each in server.asked] == (["bytes=1000-"] if length == 1000 else [])


def test_a_row_may_have_a_mirror():
    """It is asked first, and upstream stands in."""
    with Server() as server:
        table(server.url, mirror="http://127.0.0.1:9/thing.bin")
        fetching.fetch("thing", say=lambda text: None).unlink()
        table("http://127.0.0.1:9/thing.bin", mirror=server.url)
        assert fetching.fetch("thing").read_bytes() == CONTENT and len(server.asked) == 2


def test_where_files_lie(monkeypatch):
    """A folder of the user's, a store elsewhere; a name without a row."""
    table("http://127.0.0.1:9/thing.bin")
    with pytest.raises(Problem, match=r"own/thing\.bin is missing; expected thing of data/sources\.csv there"):
        fetching.fetch("thing", "own")
    with pytest.raises(Problem, match=r"other is not in data/sources\.csv; it has thing"):
        fetching.fetch("other")
    monkeypatch.setenv("ELDISTILL_STORE", "elsewhere")
    with Server() as server:
        table(server.url)
        assert fetching.fetch("thing").parent == Path("elsewhere") and not Path("data/scratch/store").exists()


BAD = {
    "a web page by its type": ({"kind": "text/html; charset=utf-8"}, "it answers with a web page"),
    "a web page by its look": ({"content": PAGE}, "sends .*|web page|has .* bytes"),
    "not found": ({"status": 404}, "HTTP 404"),
    "forbidden": ({"status": 403}, "HTTP 403"),
    "always cut": ({"cut": 0}, "the connection ended after 0 of 400,000 bytes"),
    "always busy": ({"status": 503}, "HTTP 503"),
    "wrong bytes": ({"content": CONTENT[::-1]}, "came with sha256 .*, expected "),
    "a shorter file": ({"content": CONTENT[:-1]}, "has 399,999 bytes, expected 400,000"),
    "a longer file": ({"content": CONTENT + b"x"}, "has 400,001 bytes, expected 400,000"),
    "an empty file": ({"content": b"", "status": 416}, "HTTP 416"),
}


@pytest.mark.parametrize("kind", BAD)
def test_what_cannot_be_had_is_one_sentence(kind, here):
    import re

    behaviour, sentence = BAD[kind]
    with Server(**behaviour) as server:
        table(server.url)
        assert re.search(sentence, refused())
        assert len(server.asked) == (6 if "always" in kind or "empty" in kind else 1), (
            "hopeless cases are not asked again"
        )
    assert store() == [] or set(store()) <= {f"{DIGEST[:16]}-thing.bin.part", f"{DIGEST[:16]}-thing.bin.part.json"}
    with Server() as server:
        table(server.url)
        assert fetching.fetch("thing").read_bytes() == CONTENT, "nothing of the failure is trusted"


def test_a_web_page_without_a_digest_is_not_trusted():
    """Neither by its type nor by its look, though nothing is known of the file."""
    for behaviour in ({"content": PAGE, "kind": "text/html"}, {"content": PAGE}, {"content": b"  \n<HTML>"}):
        with Server(**behaviour) as server:
            table(server.url, "", "")
            assert "web page" in refused()
    assert store() == [] and not fetching.LOCK.exists()


def test_trust_on_first_use(capsys):
    """The first digest is noted, said, and checked ever after; a file that changed is refused."""
    with Server() as server:
        table(server.url, "", "")
        path = fetching.fetch("thing")
        assert f"sha256 {DIGEST} is trusted from now on" in capsys.readouterr().out
        assert path.read_bytes() == CONTENT and sources.source_row("thing")["sha256"] == DIGEST
        assert fetching.fetch("thing") == path and len(server.asked) == 1
    assert fetching.LOCK.read_text().splitlines()[1].startswith(f"thing,{DIGEST},400000,20")
    path.unlink()
    with Server(content=CONTENT[::-1]) as server:
        table(server.url, "", "")
        assert "expected" in refused()
    path.write_bytes(CONTENT[:-1])
    assert "remove it and fetch it again" in refused()


def test_a_file_that_changes_while_it_is_fetched_is_begun_anew():
    """By its ETag: the second part would be of another file."""
    with Server({"content": CONTENT[::-1], "etag": '"old"', "cut": 100_000}, etag='"new"') as server:
        table(server.url, "", "")
        assert fetching.fetch("thing").read_bytes() == CONTENT
        assert server.asked == [(None, None), ("bytes=100000-", '"old"')]


def test_a_part_from_another_address_is_not_mixed_without_a_digest():
    with Server({"cut": 1000}, status=404) as first, Server(content=CONTENT[::-1]) as second:
        table(second.url, "", "", mirror=first.url)
        assert fetching.fetch("thing", say=lambda text: None).read_bytes() == CONTENT[::-1]
        assert second.asked == [(None, None)]


def test_a_part_without_a_strong_tag_is_begun_anew_if_no_digest_is_known():
    """Else two versions of a file could be joined and trusted; so could one that the server says has changed."""
    for first, second in (
        ({}, {}),
        ({"etag": 'W/"weak"'}, {"etag": 'W/"weak"'}),
        ({"etag": '"old"'}, {"etag": '"old"', "content": CONTENT + b"x"}),
    ):
        with Server({"content": CONTENT[::-1], "cut": 100_000, **first}, **second) as server:
            table(server.url, "", "")
            found = fetching.fetch("thing", say=lambda text: None).read_bytes()
            assert found in (CONTENT, CONTENT + b"x")
        fetching.LOCK.unlink()


def test_a_file_of_unknown_length_and_digest_is_not_trusted():
    with Server(length=0, cut=1000) as server:
        table(server.url, "", "")
        assert "does not say how long the file is" in refused()
    assert store() == [] and not fetching.LOCK.exists()


def test_what_is_no_gzip_file_is_no_digest():
    with Server(content=b'{"error": "no such file"}') as server:
        table(server.url.replace("thing.bin", "thing.gz"), "", "")
        assert "expected a gzip file" in refused()
    assert not fetching.LOCK.exists() and not [name for name in store() if name.endswith("thing.gz")]


def test_a_damaged_table_of_digests_is_not_believed():
    """A line that was cut counts for nothing; of two lines the first counts; the others stay."""
    with Server() as server:
        table(server.url, "", "")
        fetching.LOCK.write_text(
            f"name,sha256,bytes,noted\nother,{'1' * 64},5,2026-01-01\nother,{'2' * 64},5,2026-01-02\nthing,abcd12"
        )
        fetching.fetch("thing", say=lambda text: None)
    lines = fetching.LOCK.read_text().splitlines()
    assert (
        lines[1] == f"other,{'1' * 64},5,2026-01-01"
        and lines[2].startswith(f"thing,{DIGEST},400000,")
        and len(lines) == 3
    )


def _note(folder: str, name: str) -> None:
    os.chdir(folder)
    fetching._note({"name": name}, hashlib.sha256(name.encode()).hexdigest(), 5, lambda text: None)


def test_notes_of_many_processes_are_all_kept():
    context = multiprocessing.get_context("fork")
    Path("data").mkdir()
    names = [f"file{i}" for i in range(12)]
    workers = [context.Process(target=_note, args=(os.getcwd(), name)) for name in names]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert sorted(sources.noted_rows()) == sorted(names)


def test_waits_grow_and_the_server_may_ask_for_more(here):
    with Server({"status": 503}, {"status": 503}, {"status": 429, "headers": [("Retry-After", "17")]}) as server:
        table(server.url)
        fetching.fetch("thing", say=lambda text: None)
    assert 0.5 <= here[0] <= 1 and 1 <= here[1] <= 2 and here[2] == 17


def test_a_mirror_is_asked_first_and_can_be_a_folder(monkeypatch):
    Path("mirror").mkdir()
    Path("mirror/thing.bin").write_bytes(CONTENT)
    table("http://127.0.0.1:9/thing.bin")
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
    assert fetching.fetch("thing").read_bytes() == CONTENT
    for path in Path("data/scratch/store").glob("*"):
        path.unlink()
    Path("mirror/thing.bin").write_bytes(CONTENT[::-1])
    assert "expected" in refused() and store() == []
    with Server() as server:
        table("http://127.0.0.1:9/thing.bin")
        monkeypatch.setenv("ELDISTILL_MIRROR", server.url.removesuffix("thing.bin"))
        assert fetching.fetch("thing").read_bytes() == CONTENT
        assert len(server.asked) == 1


def test_a_wrong_file_on_a_mirror_does_not_stop_the_right_one_elsewhere(monkeypatch, capsys):
    """The mirror's bytes are not those of the table: the next address is asked; what is noted names where it came from."""
    Path("mirror").mkdir()
    Path("mirror/thing.bin").write_bytes(CONTENT[::-1])
    monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
    with Server() as server:
        table(server.url)
        assert fetching.fetch("thing").read_bytes() == CONTENT and len(server.asked) == 1
    assert "mirror/thing.bin: it came with sha256" in capsys.readouterr().out
    table("http://127.0.0.1:9/thing.bin", "", "")
    fetching.fetch("thing")
    assert re.search(
        r"sha256 \w{64} is trusted from now on.*; fetched from file://.*/mirror/thing\.bin", capsys.readouterr().out
    )


def test_a_part_that_made_a_mixture_gets_another_try():
    """What an earlier attempt left was of another file: with a known digest the whole is fetched once more."""
    with Server({"content": CONTENT[::-1], "cut": 100_000}, etag='"1"') as server:
        table(server.url)
        assert fetching.fetch("thing").read_bytes() == CONTENT
        assert [each[0] for each in server.asked] == [None, "bytes=100000-", None]


def test_without_locks_nothing_is_trusted_on_first_use(monkeypatch):
    """A file system that has none: a known digest is enough, an unknown one is refused before anything is asked."""

    def none(file, how):
        raise OSError("no locks available")

    monkeypatch.setattr(fetching.fcntl, "flock", none)
    with Server() as server:
        table(server.url, "", "")
        assert "on a file system without locks" in refused() and server.asked == []
        table(server.url)
        assert fetching.fetch("thing").read_bytes() == CONTENT


def test_offline_nobody_is_asked(monkeypatch):
    monkeypatch.setenv("ELDISTILL_OFFLINE", "1")
    with Server() as server:
        table(server.url)
        assert "ELDISTILL_OFFLINE is set" in refused() and "put the file into a folder" in refused()
        assert server.asked == []
        Path("mirror").mkdir()
        Path("mirror/thing.bin").write_bytes(CONTENT)
        monkeypatch.setenv("ELDISTILL_MIRROR", "mirror")
        assert fetching.fetch("thing").read_bytes() == CONTENT and server.asked == []


def test_a_full_disk_is_known_before(monkeypatch):
    usage = type("Usage", (), {"free": 1000})
    monkeypatch.setattr(fetching.shutil, "disk_usage", lambda path: usage)
    with Server() as server:
        table(server.url)
        with pytest.raises(Problem, match="0.0 GB left, the file needs 0.0; make room"):
            fetching.fetch("thing")


def _one(folder: str, queue) -> None:
    os.chdir(folder)
    queue.put(str(fetching.fetch("thing", say=lambda text: None)))


@pytest.mark.parametrize("digest", [DIGEST, ""], ids=["known digest", "unknown digest"])
def test_ten_processes_fetch_one_file_once(digest):
    context = multiprocessing.get_context("fork")
    with Server() as server:
        table(server.url, digest)
        queue = context.Queue()
        workers = [context.Process(target=_one, args=(os.getcwd(), queue)) for _ in range(10)]
        for worker in workers:
            worker.start()
        found = {queue.get(timeout=60) for _ in workers}
        for worker in workers:
            worker.join()
        assert len(server.asked) == 1 and len(found) == 1
    assert Path(found.pop()).read_bytes() == CONTENT
    assert not digest or not fetching.LOCK.exists()
    assert digest or len(fetching.LOCK.read_text().splitlines()) == 2


def test_a_process_that_is_killed_leaves_a_part_that_is_continued():
    context = multiprocessing.get_context("fork")
    with Server({"cut": 100_000, "length": len(CONTENT)}) as server:
        table(server.url)
        queue = context.Queue()
        worker = context.Process(target=_killed, args=(os.getcwd(),))
        worker.start()
        worker.join()
        assert worker.exitcode == -9 and store() == [
            f"{DIGEST[:16]}-thing.bin.part",
            f"{DIGEST[:16]}-thing.bin.part.json",
        ]
        assert fetching.fetch("thing").read_bytes() == CONTENT
        assert server.asked[1][0] == "bytes=100000-"
    del queue


def _killed(folder: str) -> None:
    os.chdir(folder)
    fetching.time.sleep = lambda seconds: os.kill(os.getpid(), 9)
    fetching.fetch("thing", say=lambda text: None)
