"""Does what was chosen fit together? Asked before any work, from declared needs and shapes alone."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace

from advml import registry
from advml.config import Bound
from advml.contracts import Needs, Spec
from advml.data.reduce import reduced_spec
from advml.errors import ConfigError


def check_fit(bound: Bound) -> None:
    """Raises ConfigError with one line for each pair that does not fit, naming both sides and what would."""
    needs: Needs = bound.method.cls.needs
    views = (needs.view,) if isinstance(needs.view, str) else needs.view
    looks_up = bound.view.cls.kind == "table" and "table" in views and len(views) > 1
    if looks_up:
        needs = replace(needs, model=False, spaces=())
    method, dataset, view, model = (
        f"{kind}={part.name}"
        for kind, part in zip(
            ("method", "dataset", "view", "model"), (bound.method, bound.dataset, bound.view, bound.model), strict=True
        )
    )
    mistakes = []
    if bound.run.precision not in needs.precisions:
        mistakes.append(
            f"precision={bound.run.precision}: {method} does not support it; use {' or '.join(needs.precisions)}"
        )
    if bound.model.name == "none" and needs.model:
        mistakes.append(f"{model}: {method} trains a network; choose a model (see: advml list models)")

    if bound.model.name != "none" and not needs.model:
        mistakes.append(f"{model}: {method} trains no network; use model=none")

    if bound.model.name != "none" and needs.spaces and getattr(bound.model.cls, "space", "") not in needs.spaces:
        fitting = " or ".join(f"model={name}" for name in needs.spaces)
        mistakes.append(f"{model}: is no space of architectures that {method} searches; use {fitting}")

    spec = _spec_of(bound)
    if views == ("none",):
        if bound.dataset.name != "none":
            mistakes.append(f"{dataset}: {method} uses no data; use dataset=none")
    elif bound.dataset.name == "none":
        mistakes.append(f"{dataset}: {method} needs data; choose a data set (see: advml list datasets)")
    elif bound.view.cls.kind not in views:
        fitting = " or ".join(name for kind in views for name in _views_of_kind(kind)) or "one that gives it"
        wanted = " or ".join(views)
        article = "an" if wanted[0] in "aeiou" else "a"
        mistakes.append(
            f"{view}: {method} reads {article} {wanted} view, not {bound.view.cls.kind}; use view={fitting}"
        )
    elif spec.drawn and not getattr(bound.view.cls, "undivided", False):
        mistakes.append(f"{dataset}: draws tasks, which {method} cannot read; use another data set")
    else:
        scenario = getattr(bound.view.settings, "scenario", None)
        if needs.scenarios and scenario not in needs.scenarios:
            wanted = " or ".join(needs.scenarios)
            mistakes.append(
                f"view.scenario={scenario}: {method} serves the scenario {wanted} only; use view.scenario={wanted}"
            )
        spec = bound.view.cls.view_spec(spec, bound.view.settings)
        if not isinstance(spec.target, needs.targets):
            wanted = " or ".join(target.__name__.lower() for target in needs.targets)
            found = type(spec.target).__name__.lower()
            mistakes.append(f"{dataset}: its target is {found}, but {method} learns {wanted} (advml list datasets)")
        asks_model = needs.model and bound.model.name != "none"
        if asks_model and spec.tokens and not getattr(bound.model.cls, "reads_tokens", False):
            names = ", ".join(spec.tokens)
            other = "late_fusion" if spec.streams else "char_lstm"
            mistakes.append(f"{model}: reads numbers, but {dataset} gives {names} as tokens; use model={other}")
        elif asks_model and (reason := bound.model.cls.check(spec, bound.model.settings)):
            shapes = ", ".join(f"{name} {list(shape)}" for name, shape in spec.inputs.items())
            mistakes.append(f"{model}: needs {reason}, but {dataset} gives {shapes}; try model=mlp or another data set")
    if mistakes:
        raise ConfigError(mistakes)


def learns_target(bound: Bound) -> bool:
    """Whether its method learns what its view asks for (classes, numbers, …). Raises ConfigError."""
    return isinstance(
        bound.view.cls.view_spec(_spec_of(bound), bound.view.settings).target, bound.method.cls.needs.targets
    )


def _spec_of(bound: Bound) -> Spec:
    return reduced_spec(bound.dataset.cls(bound.dataset.settings).spec(), bound.dataset.settings)


def _views_of_kind(kind: str) -> Iterator[str]:
    for name in registry.names("view"):
        with suppress(ConfigError):  # a broken plug-in has no part in this
            if registry.resolve("view", name).kind == kind:
                yield name
