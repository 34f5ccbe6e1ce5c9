"""The supernet of the DARTS paper written down plainly, from a state dict: what the modules are compared with."""

import torch
import torch.nn.functional as F

from advml.contracts import Classes, Spec
from advml.models.supernets import DartsCellsNet, EnasMicroNet
from advml.nn.cells.genotype import SPACES
from advml.nn.cells.supernet import SupernetSettings

NETS = {"darts_cells": DartsCellsNet, "enas_micro": EnasMicroNet}


def image_spec(shape=(2, 8, 8), classes=3):
    return Spec({"image": shape}, Classes(classes))


def supernet(space="darts_cells", shape=(2, 8, 8), seed=0, **changes):
    """A small supernet in float64 with architecture parameters far from zero."""
    values = {
        "channels": 4, "cells": 3, "nodes": 2, "reductions": 2, "operations": SPACES[space], "partial": 1,
        "auxiliary_skip": False, "affine": False, "engine": "plain",
    } | changes  # fmt: skip
    torch.manual_seed(seed)
    net = NETS[space](image_spec(shape), SupernetSettings(**values)).double()
    with torch.no_grad():
        for parameter in net.architecture():
            parameter.copy_(torch.randn_like(parameter))
        if values["affine"]:
            for parameter in net.weights():
                if parameter.dim() == 1:
                    parameter.add_(0.3 * torch.randn_like(parameter))
    return net


def batch(shape=(2, 8, 8), examples=6, classes=3):
    generator = torch.Generator().manual_seed(9)
    images = torch.randn(examples, *shape, generator=generator, dtype=torch.float64)
    return {"image": images}, torch.randint(classes, (examples,), generator=generator)


def normed(x):
    return F.batch_norm(x, None, None, training=True)


def plain_operation(name, x, state, prefix, stride):
    """One operation on one edge; weights are found below `prefix` of a state dict."""

    def weight(key):
        return state[f"{prefix}.{key}.weight"]

    def separable(x, depth, point, stride, dilation=1):
        filters = weight(depth)
        padding = dilation * (filters.shape[-1] // 2)
        x = F.conv2d(F.relu(x), filters, None, stride, padding, dilation, groups=x.shape[1])
        return normed(F.conv2d(x, weight(point)))

    if name == "none":
        return torch.zeros_like(x[:, :, ::stride, ::stride])
    if name == "max_pool_3x3":
        return normed(F.max_pool2d(x, 3, stride, 1))
    if name == "avg_pool_3x3":
        ones = F.avg_pool2d(torch.ones_like(x), 3, stride, 1)  # the share of a window that is inside the image
        return normed(F.avg_pool2d(x, 3, stride, 1) / ones)
    if name == "skip_connect":
        return x if stride == 1 else reduced(x, state, prefix)
    if name.startswith("dil"):
        return separable(x, "1", "2", stride, dilation=2)
    return separable(separable(x, "1", "2", stride), "5", "6", 1)


def reduced(x, state, prefix):
    x = F.relu(x)
    even = F.conv2d(x[:, :, ::2, ::2], state[f"{prefix}.even.weight"])
    return normed(torch.cat([even, F.conv2d(x[:, :, 1::2, 1::2], state[f"{prefix}.odd.weight"])], 1))


def plain_supernet(image, state, mix, operations, nodes, kinds):
    """Logits of the DARTS supernet on images with even sides. `kinds`: of each cell; `mix`: kind → [E, O]."""

    def fitted(x, prefix):
        if f"{prefix}.even.weight" in state:
            return reduced(x, state, prefix)
        return normed(F.conv2d(F.relu(x), state[f"{prefix}.1.weight"]))

    stem = F.conv2d(image, state["stem.0.weight"], padding=1)
    older = newer = normed(stem) * state["stem.1.weight"].view(-1, 1, 1) + state["stem.1.bias"].view(-1, 1, 1)
    for number, kind in enumerate(kinds):
        states = [fitted(x, f"cells.{number}.preprocess.{place}") for place, x in enumerate((older, newer))]
        edge = 0
        for node in range(nodes):
            total = 0
            for source in range(2 + node):
                stride = 2 if kind == "reduce" and source < 2 else 1
                for place, name in enumerate(operations):
                    prefix = f"cells.{number}.edges.{edge}.operations.{place}"
                    term = plain_operation(name, states[source], state, prefix, stride)
                    total = total + mix[kind][edge, place] * term
                edge += 1
            states.append(total)
        older, newer = newer, torch.cat(states[2:], 1)
    return F.linear(newer.mean((2, 3)), state["head.weight"], state["head.bias"])
