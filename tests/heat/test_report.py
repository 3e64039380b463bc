"""The report: one page that holds all it shows, and takes names of files for text only."""

import re
from html.parser import HTMLParser

import msgspec
import numpy as np
import pytest

from krasis.errors import UsageError
from krasis.heat.evaluation import Domain, evaluate
from krasis.heat.report import Data, Subject, render, write
from krasis.heat.routing import Routing
from krasis.pack.manifest import Origin

HOSTILE = "</script><script>alert(1)</script><!--<script>/*DATA*//*SCRIPT*/&amp;\"'.txt"


def page_of(name):
    trace = [{3: np.array([[0, 1], [1, 2], [1, 3]]), 7: np.array([[1, 0], [1, 0], [0, 1]])}]
    routing = Routing(
        3, {3: np.array([1, 3, 1, 1]), 7: np.array([3, 3])}, {3: np.full(4, 0.75), 7: np.array([1.5, 1.5])}
    )
    domains = [Domain(name, routing, routing, trace), Domain("other.txt", routing, routing, trace)]
    evaluation = evaluate(domains, {3: 10, 7: 10}, (0.5,))
    subject = Subject("model", "ab" * 32, "krasis 1", (Origin(name, 5, "cd" * 32),))
    return domains, evaluation, subject


class Reader(HTMLParser):
    """Tags with their attributes, and the text inside each script."""

    def __init__(self, page):
        super().__init__()
        self.tags, self.scripts = [], []
        self.feed(page)
        self.close()

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag == "script":
            self.scripts.append("")

    def handle_data(self, data):
        if self.tags and self.tags[-1][0] == "script":
            self.scripts[-1] += data


def test_the_page_holds_what_it_shows():
    domains, evaluation, subject = page_of("code.txt")
    found, _ = Reader(render(domains, evaluation, subject)).scripts
    data = msgspec.json.decode(found, type=Data)
    assert (data.subject, data.evaluation, data.layers) == (subject, evaluation, [3, 7])
    assert [text.name for text in data.texts] == ["code.txt", "other.txt"]
    assert data.texts[0].profile == [[1, 3, 1, 1], [3, 3]]


def test_a_hostile_name_stays_a_name():
    tame, hostile = (Reader(render(*page_of(name))) for name in ("code.txt", HOSTILE))
    assert hostile.tags == tame.tags
    assert hostile.scripts[1] == tame.scripts[1]
    assert msgspec.json.decode(hostile.scripts[0], type=Data).texts[0].name == HOSTILE


def test_the_page_needs_nothing_else():
    page = render(*page_of("code.txt"))
    reader = Reader(page)
    assert not [attrs for _, attrs in reader.tags if attrs.keys() & {"src", "href"}]
    assert set(re.findall(r"https?://[^\s\"']+", page)) == {"http://www.w3.org/2000/svg"}
    assert not re.search(r"url\(|@import|fetch\(|innerHTML", page)
    policy = next(attrs for _, attrs in reader.tags if attrs.get("http-equiv") == "Content-Security-Policy")
    assert policy["content"].startswith("default-src 'none';")


def test_every_id_that_the_script_names_is_there():
    reader = Reader(render(*page_of("code.txt")))
    ids = [attrs["id"] for _, attrs in reader.tags if "id" in attrs]
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'\$\("([\w-]+)"\)', reader.scripts[1])) <= set(ids)


def test_a_report_is_written_whole(tmp_path):
    made = page_of("code.txt")
    write(tmp_path / "new" / "heat.html", *made)
    assert (tmp_path / "new" / "heat.html").read_text("utf-8") == render(*made)
    with pytest.raises(UsageError, match="can't write the report"):
        write(tmp_path / "new" / "heat.html" / "x.html", *made)
