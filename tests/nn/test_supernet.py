"""The plain supernet against the paper's sums written down; what is derived, selected and spared."""

import pytest
import torch
from cell_cases import NETS, batch, image_spec, plain_supernet, supernet

from advml.errors import ConfigError
from advml.methods.nas.darts import gumbel_choice
from advml.models.genotype import GenotypeSettings, build_genotype
from advml.nn.cells.genotype import DARTS_OPERATIONS, Cell, Edge, Genotype
from advml.nn.cells.spaces import DartsCells, EnasMicro
from advml.nn.cells.supernet import SupernetSettings, derived, edges_of, shuffled
from advml.nn.embedding import averaged, own_statistics
from advml.nn.evaluation import evaluating
from advml.nn.replicas import Replicas, Vmapped

KINDS = ("normal", "reduce", "reduce")  # of three cells with two reductions


def logits_and_state(net):
    inputs, _ = batch()
    return net(inputs), {name: value.detach() for name, value in net.state_dict().items()}, inputs["image"]


def close(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("nodes", [1, 3])
def test_the_mixture_is_the_paper_s(nodes):
    net = supernet(nodes=nodes)
    logits, state, image = logits_and_state(net)
    mix = {kind: state[f"alphas.{kind}"].softmax(1) for kind in ("normal", "reduce")}
    close(logits, plain_supernet(image, state, mix, DARTS_OPERATIONS, nodes, KINDS))


@pytest.mark.parametrize("name", [name for name in DARTS_OPERATIONS if name != "none"])
def test_with_one_operation_it_is_the_plain_network_of_14_edges(name):
    net = supernet(nodes=4, operations=(name,))
    assert len(net.wiring) == 14
    logits, state, image = logits_and_state(net)
    ones = {kind: torch.ones(14, 1) for kind in ("normal", "reduce")}
    close(logits, plain_supernet(image, state, ones, (name,), 4, KINDS))


def test_initial_architecture_parameters_are_small_and_never_among_the_weights():
    torch.manual_seed(0)
    values = {**vars(supernet(partial=2).config)}
    net = NETS["darts_cells"](image_spec(), SupernetSettings(**values))
    assert {name: tuple(alpha.shape) for name, alpha in net.alphas.items()} == {"normal": (5, 8), "reduce": (5, 8)}
    assert 0.5e-3 < net.alphas["normal"].std() < 1.5e-3
    mine, others = ({id(p) for p in many} for many in (net.architecture(), net.weights()))
    assert len(mine) == 4  # α and β of both kinds
    assert not mine & others
    assert mine | others == {id(p) for p in net.parameters()}


@pytest.mark.parametrize("space", ["darts_cells", "enas_micro"])
@pytest.mark.parametrize("engine", ["plain", "fused"])
def test_one_architecture_in_the_supernet_is_its_own_network(space, engine):
    # One node: a genotype keeps both edges. Convolutions and skips, since pools have a norm in the supernet only.
    darts = ("sep_conv_3x3", "skip_connect", "dil_conv_3x3")
    names = darts if space == "darts_cells" else ("sep_conv_5x5", "skip_connect")
    net = supernet(space, nodes=1, operations=names, engine=engine)
    choices = DartsCells(1, names) if space == "darts_cells" else EnasMicro(1, names)
    genotype = choices.genotype(choices.sample(torch.Generator().manual_seed(3)))
    settings = GenotypeSettings(
        path=None, published=None, genotype=None, channels=4, cells=3, reductions=2, auxiliary=False, drop_path=0.0
    )
    alone = build_genotype(genotype, image_spec(), settings, seed=1).double()
    _, active = net.selection(genotype)
    given = dict(net.state_dict())
    for number, cell in enumerate(net.cells):
        rows = [(row, chosen[0]) for row, chosen in enumerate(active[cell.kind]) if chosen]
        if space == "darts_cells":  # the genotype lists the smaller source first, as do the rows
            assert [edge.source for edge in genotype.cells[cell.kind].nodes[0]] == sorted(row for row, _ in rows)
        for place, (row, chosen) in enumerate(rows):
            prefix = f"cells.{number}.edges.{row}.operations.{chosen}."
            for name in [name for name in given if name.startswith(prefix)]:
                given[f"cells.{number}.operations.{place}.{name.removeprefix(prefix)}"] = given[name]
    alone.load_state_dict({name: given.get(name, value) for name, value in alone.state_dict().items()})
    inputs, _ = batch()
    close(net(inputs, *net.selection(genotype)), alone(inputs))


@pytest.mark.parametrize("space", ["darts_cells", "enas_micro"])
def test_sparing_operations_changes_nothing_else(space):
    net = supernet(space, nodes=3, partial=2)
    genotype = net.derive()
    mix, active = net.selection(genotype)
    inputs, target = batch()
    touched = torch.autograd.grad(
        torch.nn.functional.cross_entropy(net(inputs, mix, active), target), net.weights(), allow_unused=True
    )
    assert torch.equal(net(inputs, mix), net(inputs, mix, active))
    used = sum(gradient is not None for gradient in touched)
    assert 0 < used < len(touched) / 2
    # The same numbers with nothing spared; an ENAS network then has no loose ends.
    if space == "darts_cells":
        full = supernet(space, nodes=3)
        mix, active = full.selection(genotype)
        every = {kind: tuple(tuple(range(8)) for _ in rows) for kind, rows in active.items()}
        close(full(inputs, mix, every), full(inputs, mix, active))


def test_only_the_loose_ends_of_an_enas_architecture_reach_the_output():
    net = supernet("enas_micro", nodes=3)
    half = (0, 1, 0, 1, 2, 0, 4, 0, 1, 1, 2, 3)  # nothing reads blocks 1 and 2
    genotype = EnasMicro(3).genotype(half + half)
    captured = []
    net.cells[0].register_forward_hook(lambda module, inputs, output: captured.append(output))
    inputs, _ = batch()
    net(inputs, *net.selection(genotype))
    nodes = captured[0].split(4, 1)
    assert [bool(node.any()) for node in nodes] == [False, True, True]


def test_of_a_mixture_of_enas_every_node_reaches_the_output_even_with_one_operation_an_edge():
    net = supernet("enas_micro", nodes=3)
    captured = []
    net.cells[0].register_forward_hook(lambda module, inputs, output: captured.append(output))
    inputs, _ = batch()
    chosen = {kind: gumbel_choice(alpha, torch.zeros_like(alpha), 1.0) for kind, alpha in net.alphas.items()}
    net(
        inputs, {kind: mix for kind, (mix, _) in chosen.items()}, {kind: active for kind, (_, active) in chosen.items()}
    )
    assert all(bool(node.any()) for node in captured[0].split(4, 1))


def hand_made(wiring, operations, strongest):
    """Weights in which `strongest` (row → operation, weight) stand out; all others 0.01, none 0.9."""
    mix = torch.full((len(wiring), len(operations)), 0.01)
    mix[:, 0] = 0.9
    for row, (name, weight) in strongest.items():
        mix[row, operations.index(name)] = weight
    return mix


def test_derivation_keeps_the_two_strongest_edges_and_never_none():
    wiring = edges_of("darts_cells", 3)
    rows = {
        0: ("sep_conv_3x3", 0.2), 1: ("max_pool_3x3", 0.3),
        2: ("skip_connect", 0.5), 3: ("dil_conv_5x5", 0.1), 4: ("sep_conv_5x5", 0.4),
        5: ("avg_pool_3x3", 0.2), 6: ("dil_conv_3x3", 0.3), 7: ("skip_connect", 0.3), 8: ("sep_conv_3x3", 0.1),
    }  # fmt: skip
    normal = hand_made(wiring, DARTS_OPERATIONS, rows)
    even = torch.full_like(normal, 0.125)
    genotype = derived("darts_cells", wiring, DARTS_OPERATIONS, {"normal": normal, "reduce": even})
    assert genotype.normal.nodes == (
        (Edge("max_pool_3x3", 1), Edge("sep_conv_3x3", 0)),
        (Edge("skip_connect", 0), Edge("sep_conv_5x5", 2)),
        (Edge("dil_conv_3x3", 1), Edge("skip_connect", 2)),
    )
    # Of equals the first: sources 0 and 1, the first operation after none.
    assert set(genotype.reduce.nodes) == {(Edge("max_pool_3x3", 0), Edge("max_pool_3x3", 1))}
    # The weights of edges count too (PC-DARTS).
    edges = torch.tensor([0.9, 0.1, 0.1, 0.8, 0.1, 0.7, 0.1, 0.1, 0.9])
    mix = {"normal": normal, "reduce": even, "normal edges": edges, "reduce edges": torch.ones(9)}
    weighted = derived("darts_cells", wiring, DARTS_OPERATIONS, mix).normal.nodes
    assert [[edge.source for edge in node] for node in weighted] == [[0, 1], [1, 0], [0, 3]]
    with pytest.raises(ConfigError, match="none alone"):
        derived("darts_cells", wiring, ("none",), {kind: torch.ones(9, 1) for kind in ("normal", "reduce")})


def test_derivation_from_alphas_and_both_halves_of_enas_blocks():
    net = supernet(nodes=1)
    with torch.no_grad():
        for kind, name in (("normal", "dil_conv_3x3"), ("reduce", "skip_connect")):
            net.alphas[kind].zero_()
            net.alphas[kind][:, DARTS_OPERATIONS.index(name)] = 2.0
            net.alphas[kind][:, 0] = 5.0
    assert net.derive() == Genotype(
        "darts_cells",
        Cell.of([("dil_conv_3x3", 0), ("dil_conv_3x3", 1)]),
        Cell.of([("skip_connect", 0), ("skip_connect", 1)]),
    )
    assert net.skips() == {"normal": 0, "reduce": 2}
    enas = supernet("enas_micro", nodes=1)
    with torch.no_grad():
        enas.alphas["normal"].zero_()
        enas.alphas["normal"][1, 4] = enas.alphas["normal"][3, 0] = 1.0  # both halves read state 1
    assert enas.derive().normal.nodes == ((Edge("skip_connect", 1), Edge("sep_conv_3x3", 1)),)


def test_partial_channels_pass_by_and_are_shuffled():
    maps = torch.arange(6).view(1, 6, 1, 1).float()
    assert shuffled(maps, 2).flatten().tolist() == [0, 3, 1, 4, 2, 5]
    net = supernet(nodes=1, cells=1, reductions=0, partial=2, operations=("none",))
    inputs, _ = batch()
    states = net.cells[0].preprocess(*[net.stem(inputs["image"])] * 2)
    beta = net.betas["normal"].softmax(0)
    expected = sum(
        weight * shuffled(torch.cat([torch.zeros_like(state[:, :2]), state[:, 2:]], 1), 2)
        for weight, state in zip(beta, states, strict=True)
    )
    close(net(inputs), net.head(expected.mean((2, 3))))


def test_the_auxiliary_skip_is_added_with_its_factor():
    with_skip = supernet(nodes=1, cells=1, reductions=0, auxiliary_skip=True)
    without = supernet(nodes=1, cells=1, reductions=0)
    without.load_state_dict(with_skip.state_dict(), strict=False)
    inputs, _ = batch()
    states = with_skip.cells[0].preprocess(*[with_skip.stem(inputs["image"])] * 2)
    for factor in (1.0, 0.25, 0.0):
        with_skip.skip_weight.fill_(factor)
        gain = with_skip.features(inputs) - without.features(inputs)
        close(gain, factor * sum(states).mean((2, 3)))


def test_the_factor_of_the_auxiliary_skip_is_saved_where_there_is_one():
    one, other = (supernet(nodes=1, cells=1, reductions=0, auxiliary_skip=True) for _ in range(2))
    one.skip_weight.fill_(0.25)
    other.load_state_dict(one.state_dict())
    assert float(other.skip_weight) == 0.25
    close(one.eval()(batch()[0]), other.eval()(batch()[0]))
    assert "skip_weight" not in supernet().state_dict()


def test_misfits_are_one_line_each():
    cls, good = NETS["darts_cells"], vars(supernet().config)
    ask = {
        "one image of at least 3×3": (cls, image_spec((2, 2, 9)), {}),
    }
    for said, (one, spec, changes) in ask.items():
        reason = one.check(spec, SupernetSettings(**{**good, **changes}))
        assert said in reason
        assert "\n" not in reason
        with pytest.raises(ConfigError, match=r"model=\w+: needs"):
            one(spec, SupernetSettings(**{**good, **changes}))
    for line, one, names in (
        (r"^model\.operations: darts_cells has no operation sep_conv_9x9; did you mean sep_conv_", cls, "sep_conv_9x9"),
        (
            r"^model\.operations: enas_micro has no operation none.*; there are sep_conv_3x3, ",
            NETS["enas_micro"],
            "none",
        ),
    ):
        with pytest.raises(ConfigError, match=line):
            one.check(image_spec(), SupernetSettings(**{**good, "operations": ("skip_connect", names)}))
    assert cls.check(image_spec((2, 3, 3)), SupernetSettings(**good)) is None
    with pytest.raises(ValueError, match="partial: 4 channels"):
        SupernetSettings(**{**good, "partial": 3})
    with pytest.raises(ConfigError, match="is not in this supernet"):
        supernet(operations=("skip_connect",)).selection(supernet().derive())


@pytest.mark.parametrize("space", ["darts_cells", "enas_micro"])
def test_who_makes_norms_stand_still_makes_them_so_in_the_fused_engine(space):
    """Evaluation by the statistics of a batch itself, and averages over batches: as the plain engine has them."""
    nets = [supernet(space, engine=engine) for engine in ("plain", "fused")]
    inputs, _ = batch()
    found = []
    for net in nets:
        before = {name: value.clone() for name, value in net.named_buffers()}
        with torch.no_grad(), evaluating(net), own_statistics(net):
            found.append(net(inputs))
        assert all(torch.equal(value, before[name]) for name, value in net.named_buffers())
        found.append(averaged(net, [inputs, {"image": 2 * inputs["image"]}])(inputs).detach())
    close(found[0], found[2])
    close(found[1], found[3])


@pytest.mark.parametrize("engine", ["plain", "fused"])
@pytest.mark.parametrize("copies", [Replicas, Vmapped])
def test_copies_of_it_may_be_trained_side_by_side(engine, copies):
    """For meta-learning: a supernet is a network like others, all operations mixed."""
    net = supernet(engine=engine)
    inputs, _ = batch()
    stacked = {name: torch.stack([value.detach()] * 2) for name, value in net.named_parameters()}
    twice = {"image": torch.stack([inputs["image"], 2 * inputs["image"]])}
    found = copies(net).outputs(stacked, twice)
    for row, scale in enumerate((1, 2)):
        close(found[row].detach(), supernet().train()({"image": scale * inputs["image"]}).detach())
