"""Every kind of picture network among federated clients: side by side under vmap as one client after another."""

import pytest
import torch

SMALL = ("method=fedavg", "view.clients=3", "method.fraction=1.0", "method.rounds=1", "method.epochs=1",
         "method.batch_size=7", "dataset=digits", "dataset.limit=60", "precision=float64")  # fmt: skip
NETWORKS = {
    "cnn": "model=cnn model.norm=none",
    "cnn batch norm": "model=cnn model.norm=batch",
    "cnn group norm": "model=cnn model.norm=group",
    "conv4 layer norm": "model=conv4 model.blocks=2 model.norm=layer",
    "conv4 group norm, strides": "model=conv4_stride model.blocks=2 model.norm=group model.channels=6 model.groups=2",
    "supernet": "model=darts_cells model.cells=2 model.channels=4 model.nodes=2",
    "supernet edge by edge": "model=darts_cells model.cells=2 model.channels=4 model.nodes=2 model.engine=plain",
    "blocks": "model=enas_micro model.cells=2 model.channels=4 model.nodes=2",
    "genotype": "model=genotype model.cells=2 model.channels=4",
    "cell of the table": "model=nasbench201 model.cells=1 model.channels=4",
}


SLOW = {"supernet edge by edge", "blocks"}
EVERY = [
    pytest.param(words, id=name, marks=pytest.mark.slow if name in SLOW else ()) for name, words in NETWORKS.items()
]


@pytest.mark.parametrize("words", EVERY)
def test_side_by_side_as_one_after_another(play, words):
    runs = [play(*SMALL, *words.split(), f"method.engine={engine}").go() for engine in ("loop", "vmap")]
    one, other = (run.weights() for run in runs)
    assert one.keys() == other.keys()
    for name, value in one.items():
        assert torch.allclose(value.double(), other[name].double(), rtol=1e-8, atol=1e-10), name
