"""The page of everything: sound HTML that loads nothing, the numbers of the CSV, nothing lost and nothing invented."""

import csv
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

from advml.report.formats import as_csv
from advml.report.gather import gather
from advml.report.markup import Html, figure, link, tag, text
from advml.report.page import page
from advml.report.shared import commands, environments, shared
from advml.report.tables import compare
from advml.runner.folder import RunFolder

HOSTILE = "</td></script><script>alert('x')</script>&\"'"
VOID = {"img", "meta"}


class Page(HTMLParser):
    """Fails at the first tag that is not closed where it should be; keeps what a test wants to know."""

    def __init__(self, html):
        super().__init__(convert_charrefs=True)
        self.open, self.tags, self.headings, self.tables, self.words, self.links = [], [], [], [], [], []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attributes):
        said = dict(attributes)
        assert len(said) == len(attributes), f"an attribute twice: {attributes}"
        self.tags.append((tag, said))
        if tag == "a":
            self.links.append(said["href"])
        if tag == "table":
            self.tables.append([])
        elif tag == "tr":
            self.tables[-1].append([])
        elif tag in ("td", "th"):
            self.tables[-1][-1].append("")
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if "style" in self.open:
            return
        self.words.append(data)
        if self.open and self.open[-1] in ("h1", "h2", "h3"):
            self.headings.append((self.open[-1], data))
        if {"td", "th"} & set(self.open):
            self.tables[-1][-1][-1] += data

    def all(self, name):
        return [said for tag, said in self.tags if tag == name]

    def table(self, first):
        """The rows of the table whose headings begin with these."""
        (found,) = [table for table in self.tables if table[0][: len(first)] == list(first)]
        return found


def made(*paths, metrics=(), against=None, base=None):
    return page(gather(paths), metrics, against, paths=paths, base=base or paths[0], command="advml report")


def environment(folder, **changes):
    said = {
        "advml": "0.1.0", "python": "3.11.7", "device": "cpu", "gpu": None, "threads": 2,
        "choices": {"model": "secret"}, "packages": {"torch": "2.13.0"}, "variables": {},
        "source": {"commit": "abc", "dirty": False},
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(said | changes))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two rates with three seeds each; one run failed, one was damaged, one repeated."""
    from fake_runs import make_run

    top = tmp_path_factory.mktemp("page") / "sweep=<1>"
    for lr, mean in ((0.1, 0.7), (0.2, 0.9)):
        for seed in range(3):
            point = {"phase": "x", "split": "valid"}
            records = [{"step": step, **point, "accuracy": mean + step / 100} for step in range(4)]
            of = top / f"lr {lr}, seed {seed}"
            make_run(of, seed=seed, accuracy=mean + 0.013 * seed**2, method__lr=lr, records=records)
            environment(of, threads=1 if (lr, seed) == (0.2, 1) else 2)
            (of / "command.txt").write_text(f"advml sweep 'method.note={HOSTILE}'\n")
    make_run(top / "older", seed=0, method__lr=0.1, time="2025-12-31")
    failed = make_run(top / "failed", seed=3, state="failed", method__lr=0.2)
    status = json.loads((failed / "status.json").read_text())
    (failed / "status.json").write_text(json.dumps(status | {"error": f"ValueError: {HOSTILE}"}))
    (make_run(top / "damaged") / "config.yaml").write_text("[")
    return top


@pytest.fixture(scope="module")
def html(folder):
    return made(folder)


@pytest.fixture(scope="module")
def read(html):
    return Page(html)


class TestSound:
    def test_nothing_leaves_the_page(self, html, read):
        assert "http:" not in html
        assert "https:" not in html
        assert "url(" not in html
        assert "@import" not in html
        assert {tag for tag, _ in read.tags}.isdisjoint({"script", "link", "iframe", "object", "embed", "base", "form"})
        assert all(image["src"].startswith("data:image/") for image in read.all("img"))
        assert not [said for _, said in read.tags if any(key.startswith("on") for key in said)]
        (policy,) = [said["content"] for said in read.all("meta") if said.get("http-equiv")]
        assert policy.startswith("default-src 'none';")

    def test_what_is_hostile_is_text(self, html, read):
        assert "<script" not in html
        assert "".join(read.words).count(HOSTILE) == 2  # once as a command, once as an error

    def test_headings_and_tables_can_be_heard(self, read):
        assert [level for level, _ in read.headings] == ["h1", *["h2"] * (len(read.headings) - 1)]
        assert len(read.all("caption")) == len(read.all("table")) == len(read.tables) >= 5
        assert all(cell.get("scope") in ("row", "col") for cell in read.all("th"))
        assert all(len(image["alt"]) > 20 for image in read.all("img"))
        assert read.all("html") == [{"lang": "en"}]

    def test_contents_lead_to_sections(self, read):
        names = [said["id"] for said in read.all("h2")]
        assert [target[1:] for target in read.links if target.startswith("#")] == names
        assert len(set(names)) == len(names)

    def test_equal_runs_give_equal_bytes(self, folder, html):
        assert made(folder) == html

    def test_rows_are_as_long_as_their_headings(self, read):
        for table in read.tables:
            assert {len(row) for row in table} == {len(table[0])}


class TestContent:
    def test_numbers_are_those_of_the_csv(self, folder, read):
        rows = list(csv.DictReader(io.StringIO(as_csv(compare(gather([folder]))))))
        shown = read.table(["#", "method.lr"])
        assert len(shown) == len(rows) + 1
        for row, cells in zip(rows, shown[1:], strict=True):
            said = dict(zip(shown[0], cells, strict=True))
            assert (said["#"], said["method.lr"]) == (row["row"], row["method.lr"])
            for name in ("valid/accuracy", "test/accuracy"):
                mean, half = re.match(r"([\d.]+) ± ([\d.]+)", said[name]).groups()
                assert float(mean) == pytest.approx(float(row[f"{name} mean"]), abs=0.0006)
                assert float(half) == pytest.approx(
                    float(row[f"{name} high"]) - float(row[f"{name} mean"]), abs=0.0006)  # fmt: skip
                assert ("★" in said[name]) == (row[f"{name} mark"] == "best")

    def test_differences_and_notes(self, folder, read):
        comparison = compare(gather([folder]))
        assert [row[1] for row in read.table(["metric", "rows"])[1:]] == ["1 minus 2"] * 2
        assert set(comparison.notes) <= set(read.words)

    def test_against(self, folder):
        found = Page(made(folder, metrics=["test/loss"], against="0.1")).table(["metric", "rows"])
        assert [row[:2] for row in found[1:]] == [["test/loss", "2 minus 1"]]

    def test_runs_without_a_result(self, read):
        states = {row[4].rpartition("/")[2]: row[:4] for row in read.table(["row", "seed", "state"])[1:]}
        assert states["failed"] == ["2", "3", "failed", f"ValueError: {HOSTILE}"]
        assert states["damaged"][:3] == ["–", "–", "damaged"]
        assert len(states) == 2

    def test_every_run_is_linked(self, folder, read):
        from urllib.parse import unquote

        linked = {folder / unquote(target) for target in read.links if not target.startswith("#")}
        assert linked == {path.parent for path in folder.glob("*/config.yaml")}
        assert all(":" not in target for target in read.links)

    def test_shared_settings_once_and_the_others_by_row(self, html, read):
        assert html.count("method.epochs=4") == 1
        own = read.table(["#", "configuration", "settings"])
        assert [row[2] for row in own[1:]] == ["method.lr=0.1", "method.lr=0.2"]

    def test_machines(self, read):
        different, common = (table for table in read.tables if table[0][:2] == ["what", "value"])
        assert ["packages.torch", "2.13.0"] in common
        assert different[1:] == [["threads", "2", "all others"], ["threads", "1", "row 2, seed 1"]]
        assert "secret" not in "".join(read.words)

    def test_work(self, read):
        head, first, *_ = read.table(["#", "configuration", "samples"])
        assert dict(zip(head, first, strict=True))["parameters"] == "650"
        assert dict(zip(head, first, strict=True))["FLOPs (est.)"] == "1.20e+04"

    def test_pictures_are_sharp_and_few(self, html, read):
        assert len(read.all("img")) >= 4
        assert all(image["src"].startswith("data:image/svg+xml;base64,") for image in read.all("img"))
        assert len(html) < 1_000_000


class TestOthers:
    def test_a_single_run_with_its_own_pictures(self, sweep):
        one = sweep("one", result={"summary": {"forward": 0.25}})
        (one / "figures").mkdir()
        (one / "figures/confusion_matrix.svg").write_text("<svg width='10pt'/>")
        (one / "figures/curve_loss.svg").write_text("<svg/>")
        found = Page(made(one))
        assert ("h1", "supervised on digits, seed 0") in found.headings
        assert ["forward", "0.25"] in found.table(["name", "value"])
        assert [image["alt"].partition(".")[0] for image in found.all("img")] == ["Confusion matrix"]
        assert "." in found.links  # the page lies in the run's own folder

    def test_a_study_shows_what_was_published(self, sweep):
        said = json.loads((Path(__file__).parents[2] / "docs/results/split_mnist.json").read_text())
        sweep("one")
        (sweep.path / "study.json").write_text(json.dumps(said))
        found = Page(made(sweep.path))
        (table,) = [table for table in found.tables if table[0][-1] == "reported"]
        assert [row[0] for row in table[1:]] == list(said["rows"])
        (sweep.path / "study.json").write_text('{"seeds": 3}')
        assert any(word.startswith("study.json cannot be read: ") for word in Page(made(sweep.path)).words)

    def test_the_page_may_lie_elsewhere(self, sweep, tmp_path):
        sweep("one")
        assert "../sweep/one" in Page(made(sweep.path, base=tmp_path / "pages")).links


class TestParts:
    def test_text_is_escaped_and_markup_is_not(self):
        assert text("<&\"'>") == "&lt;&amp;&quot;&#x27;&gt;"
        assert tag("p", "<", Html("<b>")) == "<p>&lt;<b></p>"
        assert tag("p", class_='a"b', title=None) == '<p class="a&quot;b"></p>'
        assert text("\udcff") == "?"

    @pytest.mark.parametrize("name", ["a:b", "a b", "a?b#c", "%41", "ä", "javascript:alert(1)", "\udcff"])
    def test_links_survive_every_name(self, name, tmp_path):
        import os
        from urllib.parse import unquote_to_bytes

        target = re.search('href="([^"]*)"', link(tmp_path / name, tmp_path))[1]
        assert unquote_to_bytes(target) == os.fsencode(name)
        assert not set(target) & set(':?# "<')

    def test_a_huge_svg_is_shown_as_png(self):
        huge = b"<svg>" + b" " * 500_000
        assert "image/png" in figure({"svg": huge, "png": b"x"}, "a", "b")
        assert "image/svg+xml" in figure({"svg": huge}, "a", "b")

    def test_shared(self):
        apart = shared([{"a": 1, "b": 2, "c": None}, {"a": 1.0, "b": 3}])
        assert apart.common == {"a": 1}
        assert apart.own == [{"b": 2, "c": None}, {"b": 3}]
        assert shared([]).common == {}

    def test_environments_of_runs_that_lost_theirs(self, sweep):
        one, two = RunFolder(sweep("one")), RunFolder(sweep("two", seed=1))
        environment(one.path, gpu="A <fast> one")
        found = environments({"first": one, "second": two})
        assert found.unknown == ["second"]
        assert found.common["gpu"] == "A <fast> one"
        assert found.different == {}

    def test_commands_are_counted(self, sweep):
        folders = [RunFolder(sweep(str(seed), seed=seed)) for seed in range(3)]
        for folder in folders[:2]:
            (folder / "command.txt").write_text("advml run\n")
        assert commands(folders) == {"advml run": 2}
