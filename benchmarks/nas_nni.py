"""NNI's search of DARTS' cells beside ours: NNI 3.0's own space, strategy and step, with our weights; for nas.py --nni.

How NNI's supernet differs from ours by default, and what `SPACE` and `adapt` change in ours so that both are the same
function of the same numbers:
- the norms have a learned scale and shift: model.affine=true;
- pools have no norm after them: ours are replaced by nothing;
- `none` is not among the seven operations, but every edge has an eighth architecture parameter, whose operation gives
  zeros. It stands last, and so does ours.
Stem, places of the reductions, preprocessing, wiring and the head agree. NNI's norms do not count their batches.

A step is one call of `training_step` of NNI's DartsLightningModule, around its ClassificationModule with SGD as in
nas.py: the gradient of everything for the architecture's Adam, then again for the weights, clipped. The trainer is
Lightning's, connected to the module and its optimizers, but its loop over batches, with progress, checkpoints and
callbacks, does not run, and what the module logs is dropped. Both are in NNI's favour. Second order it has none.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from advml.nn.cells.supernet import MixedEdge, Supernet

warnings.filterwarnings("ignore", module="nni|pytorch_lightning|lightning_utilities")  # of their age, not of the search
warnings.filterwarnings("ignore", "pkg_resources is deprecated")

try:
    import pytorch_lightning as lightning
    from nni.nas.evaluator.pytorch import ClassificationModule
    from nni.nas.hub.pytorch import DARTS as Space
    from nni.nas.strategy import DARTS as Strategy
    from pytorch_lightning.trainer.states import TrainerFn
except ImportError as problem:
    raise SystemExit(f"--nni: {problem}; install NNI with: pip install 'advml[bench-nas]'") from None

logging.getLogger("pytorch_lightning").setLevel(logging.ERROR)  # which devices it sees

OPERATIONS = (*Space.DARTS_OPS, "none")
SPACE = ("model.affine=true", f"model.operations=[{','.join(OPERATIONS)}]")
"""NNI's space in the settings of ours; see `adapt` too."""


def adapt(network: Supernet) -> None:
    """Take the norms after pools away."""
    for edge in network.modules():
        if isinstance(edge, MixedEdge):
            edge.norms = nn.ModuleList(nn.Identity() for _ in edge.norms)


class Evaluator(ClassificationModule):  # type: ignore[misc]
    """NNI's, with SGD that has momentum: its own passes a rate and a decay only."""

    def __init__(self, lr: float, momentum: float, decay: float) -> None:
        super().__init__(learning_rate=lr, weight_decay=decay, num_classes=10)
        self.momentum = momentum

    def configure_optimizers(self) -> torch.optim.Optimizer:
        rate, decay = self.hparams.learning_rate, self.hparams.weight_decay
        return torch.optim.SGD(self.parameters(), rate, self.momentum, weight_decay=decay)


class Search:
    """NNI's supernet with the weights and architecture of `ours`, an adapted network of the same size, and its step."""

    def __init__(
        self, ours: Supernet, *, lr: float, momentum: float, decay: float, clip: float, dtype: torch.dtype
    ) -> None:
        strategy = Strategy(gradient_clip_val=clip)
        space = strategy.mutate_model(Space(width=ours.config.channels, num_cells=len(ours.cells), dataset="cifar"))
        evaluator = Evaluator(lr, momentum, decay)
        evaluator.set_model(space)
        self.module = strategy.configure_oneshot_module(evaluator).to(dtype).train()
        self.module.log = self.module.log_dict = lambda *arguments, **named: None
        theirs = {id(mine): its for mine, its in _pairs(ours, space)}
        self.alphas = {f"alphas.{kind}": _alphas(ours, space, kind) for kind in ours.alphas}
        state = ours.state_dict(keep_vars=True)
        self.named = {name: theirs[id(mine)] for name, mine in state.items() if name not in self.alphas}
        self.weights = [theirs[id(mine)] for mine in ours.weights()]
        assert len(self.weights) + sum(map(len, self.alphas.values())) == len(list(space.parameters()))
        self._load(ours)
        self._connect()
        self.steps = 0

    def _load(self, ours: Supernet) -> None:
        with torch.no_grad():
            for name, mine in ours.state_dict().items():
                if name in self.alphas:
                    for row, its in zip(mine, self.alphas[name], strict=True):
                        its.copy_(row)
                else:
                    self.named[name].copy_(mine)

    def _connect(self) -> None:
        """What Trainer.fit does before its loop, as far as a step needs it."""
        quiet: dict[str, Any] = dict.fromkeys(
            ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False
        )
        trainer = lightning.Trainer(accelerator="cpu", devices=1, **quiet)
        trainer.strategy.connect(self.module)
        self.module.trainer = trainer
        trainer.state.fn = TrainerFn.FITTING
        self.module.setup("fit")
        trainer.strategy.setup_optimizers(trainer)
        self.module.architecture_optimizers().optimizer.register_step_pre_hook(self._keep)

    def _keep(self, *_: object) -> None:
        """The architecture's gradients, before the step of the weights adds its own to them."""
        self.found = [torch.stack([_grad(row) for row in rows]) for rows in self.alphas.values()]

    def step(self, train: tuple[Tensor, Tensor], valid: tuple[Tensor, Tensor]) -> tuple[list[Tensor], list[Tensor]]:
        """One of the architecture, one of the weights; their gradients, in the order of ours."""
        self.module.training_step({"train": train, "val": valid}, self.steps)
        self.steps += 1
        return self.found, [_grad(weight) for weight in self.weights]

    def state(self) -> dict[str, Tensor]:
        """By the names of our network; without the norms' counters of batches, which NNI does not move."""
        rows = {name: torch.stack(list(alphas)).detach() for name, alphas in self.alphas.items()}
        rest = {name: its.detach() for name, its in self.named.items() if not name.endswith("num_batches_tracked")}
        return rows | rest


def _grad(parameter: Tensor) -> Tensor:
    return torch.zeros_like(parameter) if parameter.grad is None else parameter.grad


def _cells(space: nn.Module) -> list[Any]:
    return [cell for stage in space.stages for cell in stage.blocks]  # type: ignore[union-attr]


def _alphas(ours: Supernet, space: nn.Module, kind: str) -> Sequence[nn.Parameter]:
    """NNI's architecture parameters of a kind of cell, in the order of our rows. Cells of a kind share them."""
    cell = next(cell for cell, mine in zip(_cells(space), ours.cells, strict=True) if mine.kind == kind)
    return [cell._arch_alpha[f"{cell.label}/{2 + node}_{source}"] for node, source in ours.wiring]


def _pairs(ours: Supernet, space: Any) -> Iterator[tuple[Tensor, Tensor]]:
    """(ours, theirs) of every weight and running average."""
    modules: list[tuple[nn.Module, nn.Module]] = [(ours.stem, space.stem), (ours.head, space.classifier)]
    for mine, its in zip(ours.cells, _cells(space), strict=True):
        modules += zip(mine.preprocess, (its.preprocessor.pre0, its.preprocessor.pre1), strict=True)
        for (node, source), edge in zip(ours.wiring, mine.edges, strict=True):
            operations = zip(OPERATIONS, edge.operations, strict=True)
            modules += [(one, its.ops[node][source][name]) for name, one in operations if name != "none"]
    for one, other in modules:
        tensors = (module.state_dict(keep_vars=True).values() for module in (one, other))
        for left, right in zip(*tensors, strict=True):
            assert left.shape == right.shape, (one, other)
            yield left, right
