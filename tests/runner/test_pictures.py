"""Artifacts on disk and their pictures: data beside each, equal bytes for equal data."""

import hashlib
import re
import subprocess
import sys
import xml.etree.ElementTree as ElementTree
from functools import cache

import pytest
from PIL import Image

from advml.artifacts import Curve, Heatmap, Histogram, Json, Table
from advml.contracts import Objective
from advml.runner import artifacts, figures
from advml.runner.folder import RunFolder

MATRIX = Heatmap([[0.98, None, 0.1], [0.52, 0.97, 0.15], [0.41, 0.63, 0.96]], ["after 1", "after 2", "after 3"],
                 ["task 1", "task 2", "task 3"], "trained up to", "tested on", "Accuracy", "accuracy")  # fmt: skip
CURVE = Curve([0, 1, 2, 3], {"train": [None, 2.0, 1.0, 0.5], "valid": [2.5, None, 1.25, 0.75]}, "step", "loss")
BARS = Histogram([0.0, 0.25, 0.5, 0.75, 1.0], {"shared": [0, 0, 1, 2], "own $x$": [0, 0, 3, 0]}, "accuracy", "clients",
                 "T")  # fmt: skip
PICTURES = {"heatmap": MATRIX, "curve": CURVE, "bars": BARS}


@cache
def drawn(name):
    return figures.draw(PICTURES[name])


def written(svg):
    """The texts in a picture."""
    return re.findall(r"<!-- (.*?) -->", svg.decode())


def pixels(data, tmp_path):
    (tmp_path / "picture.png").write_bytes(data)
    with Image.open(tmp_path / "picture.png") as image:
        return image.convert("RGB")


@pytest.mark.parametrize("name", PICTURES)
class TestFormats:
    def test_png_and_svg(self, name, tmp_path):
        assert set(drawn(name)) == {"png", "svg"}
        image = pixels(drawn(name)["png"], tmp_path)
        assert min(image.size) > 300
        assert len(image.getcolors(10**6)) > 20
        assert ElementTree.fromstring(drawn(name)["svg"]).tag.endswith("svg")

    def test_equal_data_give_equal_bytes(self, name):
        assert figures.draw(PICTURES[name]) == drawn(name)

    def test_no_date_and_no_random_name_inside(self, name):
        svg = drawn(name)["svg"].decode()
        assert not re.search(r"\b20\d\d-\d\d-\d\d", svg)
        assert "dc:date" not in svg


def test_points_have_nothing_between_them():
    lines = {"true": list(range(40)), "support": [1.0, *[None] * 38, 2.0]}
    first, second = figures._curve(Curve(range(40), lines, "x", "y", points=("support",))).axes[0].lines
    assert (first.get_linestyle(), first.get_marker()) == ("-", "None")
    assert (second.get_linestyle(), second.get_marker()) == ("None", "s")


def test_equal_bytes_in_another_process(tmp_path):
    program = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from test_pictures import CURVE, MATRIX\n"
        "from advml.runner import figures\n"
        "import hashlib\n"
        "print([hashlib.sha256(data).hexdigest() for p in (MATRIX, CURVE) for data in figures.draw(p).values()])"
    )
    here = __file__.rpartition("/")[0]
    ended = subprocess.run([sys.executable, "-c", program, here], capture_output=True, text=True, check=True)
    ours = [hashlib.sha256(data).hexdigest() for name in ("heatmap", "curve") for data in drawn(name).values()]
    assert ended.stdout.strip() == str(ours)


class TestHeatmap:
    def test_says_what_it_shows(self):
        texts = written(drawn("heatmap")["svg"])
        for text in ("task 1", "after 3", "tested on", "trained up to", "Accuracy", "0.980", "0.410"):
            assert text in texts, text
        assert texts.count("–") == 1  # undefined is no number

    def test_large_ones_have_no_numbers_in_them(self):
        names = [str(number) for number in range(30)]
        assert "0.123" not in written(figures.draw(Heatmap([[0.123] * 30] * 30, names, names))["svg"])

    def test_tall_ones_fit_a_page_and_name_some_rows(self):
        names = [f"client {row}" for row in range(100)]
        tall = Heatmap([[float(row)] * 10 for row in range(100)], names, list("abcdefghij"))
        assert max(figures.heatmap_size(tall)) < 10
        texts = written(figures.draw(tall)["svg"])
        assert [text for text in texts if text.startswith("client")] == names[::3]

    @pytest.mark.parametrize("values", [[[None, None]], [[0.5, 0.5]], [[-1e9, 1e-9]]])
    def test_odd_ones(self, values):
        assert figures.draw(Heatmap(values, ["a"], ["b", "c"]))["png"]

    def test_can_be_read_in_grey(self, tmp_path):
        """Dark for low, light for high: brightness rises with the value."""
        image = pixels(figures.draw(Heatmap([[0.0, 0.5, 1.0]], ["r"], ["a", "b", "c"]))["png"], tmp_path).convert("L")
        # The cells lie side by side in the middle of the picture; sample well away from the written numbers.
        width, height = image.size
        row = [image.getpixel((x, round(height * 0.2))) for x in range(width)]
        parts = [row[round(width * left) : round(width * (left + 0.08))] for left in (0.22, 0.42, 0.62)]
        cells = [max(set(part), key=part.count) for part in parts]
        assert cells == sorted(cells)
        assert len(set(cells)) == 3


class TestHistogram:
    def test_bars_are_as_high_as_there_are_clients(self):
        panels = figures._histogram(BARS).axes
        heights = [[bar.get_height() for bar in axes.patches] for axes in panels]
        assert heights == [[0, 0, 1, 2], [0, 0, 3, 0]]
        assert [(bar.get_x(), bar.get_width()) for bar in panels[0].patches][2] == (0.5, 0.25)
        assert panels[0].get_xlim() == panels[1].get_xlim() == (0.25, 1.0)
        assert panels[0].get_ylim() == panels[1].get_ylim()
        assert {"shared", "own $x$", "accuracy", "clients", "T"} <= set(written(drawn("bars")["svg"]))

    def test_the_numbers_beside_it(self, tmp_path):
        artifacts.write(RunFolder(tmp_path), {"bars": BARS}, draw=False)
        first, *bins = artifacts.read_csv(tmp_path / "artifacts/bars.csv")
        assert first == ["accuracy from", "to", "shared", "own $x$"]
        assert bins[2] == ["0.5", "0.75", "1", "3"]

    def test_nobody_is_anywhere(self):
        assert figures.draw(Histogram([0.0, 0.5, 1.0], {"shared": [0, 0]}, "accuracy", "clients"))["png"]


class TestCurve:
    def test_lines_differ_in_more_than_colour(self):
        lines = {str(number): [0.0, number, 2.0] for number in range(8)}
        svg = figures.draw(Curve([0, 1, 2], lines, "step", "value"))["svg"].decode()
        assert svg.count("stroke-dasharray") >= 4
        assert len(set(figures.COLOURS)) == 7

    def test_says_what_it_shows(self):
        assert {"train", "valid", "step", "loss"} <= set(written(drawn("curve")["svg"]))

    def test_many_names_stand_beside_the_axes(self, tmp_path):
        lines = {f"line {number}": [0.0, float(number)] for number in range(8)}
        few = Curve([0, 1], dict(list(lines.items())[:5]), "step", "loss")
        curves = few, Curve([0, 1], lines, "step", "loss")
        widths = [pixels(figures.draw(one)["png"], tmp_path).width for one in curves]
        assert widths[1] > 1.2 * widths[0]

    def test_there_is_no_half_client(self):
        texts = written(figures.draw(Curve([0, 1], {"clients": [0.0, 2.0]}, "round", "clients"))["svg"])
        assert {"0", "1", "2"} <= set(texts)
        assert not [text for text in texts if re.fullmatch(r"\d\.\d+", text)]

    def test_a_line_without_a_point(self):
        assert figures.draw(Curve([0, 1], {"a": [None, None], "b": [1.0, None]}, "x", "y"))["png"]


class TestFiles:
    @pytest.fixture
    def folder(self, tmp_path):
        return RunFolder.create(tmp_path, "method", "dataset")

    def test_data_and_pictures(self, folder):
        made = {"matrix": MATRIX, "loss": CURVE, "table": Table(["n", "x"], [["a", 1.5]]), "facts": Json([1])}
        artifacts.write(folder, made, draw=True)
        assert {path.name for path in (folder / "artifacts").iterdir()} == {
            "matrix.csv", "loss.csv", "table.csv", "facts.json"
        }  # fmt: skip
        assert {path.name for path in (folder / "figures").iterdir()} == {
            "matrix.png", "matrix.svg", "loss.png", "loss.svg"
        }  # fmt: skip
        assert artifacts.read_csv(folder / "artifacts/matrix.csv") == [
            ["trained up to \\ tested on", "task 1", "task 2", "task 3"],
            ["after 1", "0.98", "", "0.1"], ["after 2", "0.52", "0.97", "0.15"], ["after 3", "0.41", "0.63", "0.96"],
        ]  # fmt: skip
        assert artifacts.read_csv(folder / "artifacts/loss.csv") == [
            ["step", "train", "valid"], ["0", "", "2.5"], ["1", "2.0", ""], ["2", "1.0", "1.25"], ["3", "0.5", "0.75"]
        ]  # fmt: skip

    def test_without_pictures(self, folder):
        artifacts.write(folder, {"matrix": MATRIX}, draw=False)
        assert (folder / "artifacts/matrix.csv").exists()
        assert not (folder / "figures").exists()

    def test_nothing(self, folder):
        artifacts.write(folder, {}, draw=True)
        assert not (folder / "artifacts").exists()


class TestLearningCurves:
    OBJECTIVE = Objective("accuracy", "valid", "max")

    def test_loss_and_objective_over_steps(self):
        records = [
            {"step": 0, "split": "valid", "loss": 3.0, "accuracy": 0.1},
            {"step": 1, "split": "train", "loss": 2.0},
            {"step": 2, "split": "train", "loss": 1.0},
            {"step": 2, "split": "valid", "loss": 1.5, "accuracy": 0.6},
            {"step": 2, "split": "test", "loss": 9.0, "accuracy": 0.9},
            {"step": 3, "split": "valid", "loss": None, "accuracy": 0.7},
        ]
        curves = artifacts.learning_curves(records, self.OBJECTIVE)
        assert curves["curve_loss"].x == [0, 1, 2]
        assert curves["curve_loss"].lines == {"valid": [3.0, None, 1.5], "train": [None, 2.0, 1.0]}
        assert curves["curve_accuracy"].lines == {"valid": [0.1, 0.6, 0.7]}

    def test_none_of_two_points(self):
        records = [{"step": step, "split": "train", "loss": 1.0} for step in (1, 2)]
        assert artifacts.learning_curves(records, self.OBJECTIVE) == {}


def test_no_two_of_many_lines_look_alike():
    lines = {f"line {number}": [number, number] for number in range(20)}
    axes = figures._curve(Curve([0, 1], lines, "x", "y")).axes[0]
    assert len({(line.get_color(), line.get_marker()) for line in axes.lines}) == 20
