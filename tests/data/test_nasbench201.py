"""The table of NAS-Bench-201: a made one for every fault, the real one for the facts."""

import gzip
from itertools import product

import pytest
import torch

from advml.compose import compose
from advml.config import bind
from advml.data.nasbench201 import FILE, FOLDER, NasBench201Table, NasBench201TableSettings, Table, TableSettings
from advml.data.source import Whole
from advml.errors import AdvmlError, ConfigError
from advml.nn.cells.nasbench201 import from_number, from_string, number, to_string, unique_string
from advml.runner.run import load_view

HEADER = "arch_str,cifar10_test_200ep,cifar10_val_12ep"


def lines():
    """A line for every cell, in an order that nothing relies on: test = number / 200, validation = that + 1."""
    for code in reversed(list(product(range(5), repeat=6))):
        yield f"{to_string(code)},{number(code) / 200},{number(code) / 200 + 1}"


@pytest.fixture(scope="module")
def made():
    return [HEADER, *lines()]


@pytest.fixture
def written(tmp_path):
    def write(content):
        path = tmp_path / FOLDER / FILE
        path.parent.mkdir()
        path.write_bytes(content if isinstance(content, bytes) else gzip.compress("\n".join(content).encode(), 1))
        return tmp_path

    return write


def table(task="cifar10"):
    return NasBench201Table(NasBench201TableSettings(task=task, split_seed=None))


def test_accuracies_come_in_the_order_of_the_codes(made, written, make_source):
    source, notes = make_source(written(made))
    loaded = table().load(source)
    view = Table.of(Whole(loaded, table().spec(), None), TableSettings(), None)
    expected = torch.arange(15_625, dtype=torch.float64) / 200
    torch.testing.assert_close(loaded.score, expected)
    torch.testing.assert_close(loaded.signal, expected + 1)
    codes = [view.space.sample(torch.Generator().manual_seed(seed)) for seed in range(5)]
    assert loaded.score[view.numbers(codes)].tolist() == [number(code) / 200 for code in codes]
    for code in codes:
        assert from_number(int(loaded.same[number(code)])) == view.space.canonical(code)
    assert view.to(torch.device("cpu"), torch.float32).accuracies.score.dtype == torch.float64
    assert view.describe()["unique"] == 6466
    assert notes == []


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"no gzip", "is damaged or no table"),
        (lambda made: made[:-1], "has 15,624 lines for 15,624 cells, not 15,625"),
        (lambda made: [*made[:-1], made[1]], "has 15,625 lines for 15,624 cells"),
        (lambda made: ["arch,x,y", *made[1:]], "is damaged or no table"),
        (lambda made: [made[0].replace("val", "valid"), *made[1:]], "has no column cifar10_val_12ep of numbers"),
        (lambda made: [*made[:-1], made[-1].rpartition(",")[0] + ",nan"], "are no percentages"),
        (lambda made: [*made[:-1], made[-1].replace("none", "nothing")], "is damaged or no table"),
    ],
)
def test_damaged_tables_are_one_line(made, written, make_source, content, said):
    source, _ = make_source(written(content(made) if callable(content) else content))
    with pytest.raises(AdvmlError) as caught:
        table().load(source)
    assert said in str(caught.value)
    assert str(caught.value).startswith("nasbench201_table: ")
    assert "\n" not in str(caught.value)


def test_an_absent_table_says_what_to_do(tmp_path, make_source):
    with pytest.raises(AdvmlError, match="is not there; put it there"):
        table().load(make_source(tmp_path)[0])


def test_only_tables_are_shown_as_tables(made, written):
    data_dir = written(made)
    bound = bind(compose(["dataset=nasbench201_table", "view=table", "model=none", f"data_dir={data_dir}"])[0])
    assert load_view(bound, print).kind == "table"
    other = bind(compose(["dataset=digits", "view=table"])[0])
    with pytest.raises(ConfigError, match="use dataset=nasbench201_table"):
        load_view(other, print)


@pytest.mark.real_data
def test_the_published_optima(real_data, make_source):
    source, _ = make_source(real_data(FOLDER).parent)
    best = {"cifar10": (94.37, 94.37), "cifar100": (73.51, 72.28), "imagenet16": (47.31, 46.48)}
    for task, (optimum, trusted) in best.items():
        loaded = table(task).load(source)
        assert round(loaded.score.max().item(), 2) == optimum
        assert round(loaded.score[loaded.signal.argmax()].item(), 2) == trusted


@pytest.mark.real_data
def test_the_benchmark_s_own_names_of_equal_cells(real_data):
    text = gzip.decompress((real_data(FOLDER) / FILE).read_bytes()).decode().splitlines()
    rows = [line.split(",")[1:3] for line in text[1:]]
    assert [unique_string(from_string(cell)) for cell, _ in rows] == [unique for _, unique in rows]
