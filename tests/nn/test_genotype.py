"""Genotypes as data: what is written comes back, what is wrong is one line."""

import json

import pytest

from advml.errors import ConfigError
from advml.nn.cells.genotype import PUBLISHED, SPACES, Cell, Edge, Genotype, published, read_genotype
from advml.nn.cells.nasbench201 import from_string
from advml.nn.cells.spaces import NasBench201


def edited(**changes):
    return PUBLISHED["DARTS_V2"].to_dict() | changes


def with_cell(**changes):
    plain = PUBLISHED["DARTS_V2"].to_dict()
    plain["cells"]["normal"] |= changes
    return plain


@pytest.mark.parametrize("name", sorted(PUBLISHED))
def test_published_genotypes_come_back_from_json_and_are_hashable(name):
    genotype = published(name)
    assert Genotype.from_dict(json.loads(json.dumps(genotype.to_dict()))) == genotype
    assert len({genotype, Genotype.from_dict(genotype.to_dict())}) == 1
    for cell in genotype.cells.values():
        assert [len(node) for node in cell.nodes] == [2] * 4
        assert cell.concat == (2, 3, 4, 5)
        assert all(len({edge.source for edge in node}) == 2 for node in cell.nodes)
        assert {edge.operation for node in cell.nodes for edge in node} <= set(SPACES["darts_cells"]) - {"none"}


def test_what_the_file_says():
    assert PUBLISHED["DARTS_V2"].to_dict()["cells"]["reduce"] == {
        "inputs": 2,
        "nodes": [
            [["max_pool_3x3", 0], ["max_pool_3x3", 1]],
            [["skip_connect", 2], ["max_pool_3x3", 1]],
            [["max_pool_3x3", 0], ["skip_connect", 2]],
            [["skip_connect", 2], ["max_pool_3x3", 1]],
        ],
        "concat": [2, 3, 4, 5],
    }
    assert [PUBLISHED["DARTS_V2"].cells[kind].count("skip_connect") for kind in ("normal", "reduce")] == [2, 3]


@pytest.mark.parametrize(
    ("plain", "said"),
    [
        ([], "is no genotype"),
        ({"space": "darts_cells"}, "is no genotype"),
        (edited(version=2), "version 2, but this advml reads version 1"),
        (edited(space="darts_cell"), "unknown space 'darts_cell'; did you mean darts_cells?"),
        (edited(space="nasbench201"), "cells must be normal"),
        (edited(cells={"normal": {}}), "cells must be normal and reduce"),
        (with_cell(nodes=[[["sep_conv_9x9", 0]]]), "unknown operation 'sep_conv_9x9' in darts_cells; did you mean"),
        (with_cell(nodes=[[["skip_connect", 2]]]), "node 0 reads state 2, which is not before it"),
        (with_cell(nodes=[[["skip_connect", True]]]), "reads state True"),
        (with_cell(nodes=[[["skip_connect"]]]), "needs inputs, nodes"),
        (with_cell(nodes=[]), "needs edges into every node"),
        (with_cell(concat=[6]), "output of states that exist"),
        (with_cell(inputs=1), "has 1 inputs, not those of darts_cells"),
        (with_cell(inputs=2.0), "has 2.0 inputs"),
        (with_cell(concat=[0, 2, 3, 4, 5]), "its output must be nodes, each once, not the states [0, 2, 3, 4, 5]"),
        (with_cell(concat=[2, 2]), "each once"),
    ],
)
def test_what_is_wrong_is_one_line(plain, said):
    with pytest.raises(ConfigError) as caught:
        Genotype.from_dict(plain, "found.json")
    assert str(caught.value).startswith("found.json: ")
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_cannot_be_read(tmp_path):
    (tmp_path / "broken.json").write_text("{")
    for name, said in (("broken.json", "is no JSON file"), ("absent.json", "cannot be read (No such file")):
        with pytest.raises(ConfigError, match=r"\.json: ") as caught:
            read_genotype(tmp_path / name)
        assert said in str(caught.value)
    (tmp_path / "good.json").write_text(json.dumps(PUBLISHED["DARTS_V1"].to_dict()))
    assert read_genotype(tmp_path / "good.json") == PUBLISHED["DARTS_V1"]
    with pytest.raises(ConfigError, match=r"did you mean PC_DARTS\?"):
        published("PCDARTS")


def test_a_cell_of_nas_bench_201():
    code = from_string("|nor_conv_3x3~0|+|none~0|avg_pool_3x3~1|+|skip_connect~0|nor_conv_1x1~1|skip_connect~2|")
    genotype = NasBench201().genotype(code)
    assert genotype.normal == Cell(
        (
            (Edge("nor_conv_3x3", 0),),
            (Edge("none", 0), Edge("avg_pool_3x3", 1)),
            (Edge("skip_connect", 0), Edge("nor_conv_1x1", 1), Edge("skip_connect", 2)),
        ),
        (3,),
        inputs=1,
    )
    assert Genotype.from_dict(genotype.to_dict()) == genotype
    for key, value in (("concat", [2, 3]), ("nodes", genotype.to_dict()["cells"]["normal"]["nodes"][:2])):
        plain = genotype.to_dict()
        plain["cells"]["normal"][key] = value
        plain["cells"]["normal"]["concat"] = (
            [min(3, len(plain["cells"]["normal"]["nodes"]))] if key == "nodes" else value
        )
        with pytest.raises(ConfigError, match="must have three nodes that each read all states before"):
            Genotype.from_dict(plain)
    for text, said in (
        ("|nor_conv_7x7~0|+|none~0|none~1|+|none~0|none~1|none~2|", "unknown operation nor_conv_7x7"),
        ("|none~0|+|none~0|none~1|", "is no NAS-Bench-201 cell"),
        ("|none~0|+|none~0|none~1|+|none~0|none~2|none~1|", "is no NAS-Bench-201 cell"),
    ):
        with pytest.raises(ConfigError, match=said):
            from_string(text)
