"""Names of methods, data sets, views and models, each a string "package.module:Class" resolved on first use.

Strings, not classes: listing what there is imports nothing. Other packages add names through the entry-point
groups `advml.methods`, `advml.datasets`, `advml.views` and `advml.models`, and folders of YAML through
`advml.configs`. A name with a colon is such a string itself (`name: my_module:MyMethod`), imported from PYTHONPATH or
the current folder: one file of one's own needs no package (see docs/extending.md).
"""

import importlib
import os
import sys
from functools import cache
from importlib.metadata import entry_points
from typing import Any, Literal

from advml.errors import ConfigError, did_you_mean

Kind = Literal["method", "dataset", "view", "model"]

BUILT_IN: dict[Kind, dict[str, str]] = {
    "method": {
        "supervised": "advml.methods.supervised:Supervised",
        "dp_sgd": "advml.methods.supervised:Supervised",
        "finetune": "advml.methods.continual.finetune:Finetune",
        "joint": "advml.methods.continual.joint:Joint",
        "ewc": "advml.methods.continual.ewc:ElasticWeightConsolidation",
        "si": "advml.methods.continual.si:SynapticIntelligence",
        "mas": "advml.methods.continual.mas:MemoryAwareSynapses",
        "lwf": "advml.methods.continual.lwf:LearningWithoutForgetting",
        "replay": "advml.methods.continual.replay:Replay",
        "agem": "advml.methods.continual.agem:AveragedGem",
        "der": "advml.methods.continual.der:DarkExperienceReplay",
        "der_pp": "advml.methods.continual.der:DarkExperienceReplay",
        "packnet": "advml.methods.continual.packnet:PackNet",
        "progressive": "advml.methods.continual.progressive:Progressive",
        "generative_replay": "advml.methods.continual.generative_replay:GenerativeReplay",
        "maml": "advml.methods.meta.maml:Maml",
        "fomaml": "advml.methods.meta.maml:Maml",
        "anil": "advml.methods.meta.maml:Maml",
        "metasgd": "advml.methods.meta.maml:Maml",
        "maml_pp": "advml.methods.meta.maml:Maml",
        "protonet": "advml.methods.meta.protonet:PrototypicalNetworks",
        "matching": "advml.methods.meta.matching:MatchingNetworks",
        "reptile": "advml.methods.meta.reptile:Reptile",
        "pretrain_finetune": "advml.methods.meta.pretrain_finetune:PretrainFinetune",
        "nearest_neighbour": "advml.methods.meta.nearest_neighbour:NearestNeighbour",
        "fedavg": "advml.methods.federated.fedavg:FedAvg",
        "dp_fedavg": "advml.methods.federated.fedavg:FedAvg",
        "fedbn": "advml.methods.federated.fedavg:FedAvg",
        "fedprox": "advml.methods.federated.fedprox:FedProx",
        "scaffold": "advml.methods.federated.scaffold:Scaffold",
        "fedopt": "advml.methods.federated.fedopt:FedOpt",
        "fedavgm": "advml.methods.federated.fedopt:FedOpt",
        "fedadam": "advml.methods.federated.fedopt:FedOpt",
        "fedyogi": "advml.methods.federated.fedopt:FedOpt",
        "ditto": "advml.methods.federated.ditto:Ditto",
        "fedavg_finetune": "advml.methods.federated.finetune:FedAvgFinetune",
        "local_only": "advml.methods.federated.local_only:LocalOnly",
        "centralised": "advml.methods.federated.centralised:Centralised",
        "vqe": "advml.methods.quantum.vqe:Vqe",
        "vqe_ising": "advml.methods.quantum.vqe:Vqe",
        "qaoa": "advml.methods.quantum.qaoa:Qaoa",
        "barren_plateau": "advml.methods.quantum.barren_plateau:BarrenPlateau",
        "qnn": "advml.methods.supervised:Rates",
        "qnn_rates": "advml.methods.supervised:Rates",
        "qnn_images": "advml.methods.supervised:Rates",
        "quantum_kernel": "advml.methods.quantum.quantum_kernel:QuantumKernel",
        "darts": "advml.methods.nas.darts:Darts",
        "enas": "advml.methods.nas.enas:Enas",
        "random_nas": "advml.methods.nas.searches:RandomArchitectures",
        "evolution": "advml.methods.nas.searches:RegularisedEvolution",
        "reinforce": "advml.methods.nas.searches:ReinforceSearch",
        "local_search": "advml.methods.nas.searches:HillClimbing",
        "bayes_opt": "advml.methods.nas.searches:BayesianOptimisation",
        "fusion": "advml.methods.multimodal.fusion:Fusion",
        "product_of_experts": "advml.methods.multimodal.product_of_experts:ProductOfExperts",
        "contrastive": "advml.methods.multimodal.contrastive:Contrastive",
    },
    "dataset": {
        "none": "advml.data.none:NoData",
        "digits": "advml.data.embedded:Digits",
        "iris": "advml.data.embedded:Iris",
        "wine": "advml.data.embedded:Wine",
        "breast_cancer": "advml.data.embedded:BreastCancer",
        "diabetes": "advml.data.embedded:Diabetes",
        "moons": "advml.data.embedded:Moons",
        "circles": "advml.data.embedded:Circles",
        "mnist": "advml.data.idx:Mnist",
        "fashion_mnist": "advml.data.idx:FashionMnist",
        "kmnist": "advml.data.idx:Kmnist",
        "cifar10": "advml.data.cifar:Cifar10",
        "omniglot": "advml.data.omniglot:Omniglot",
        "mini_imagenet": "advml.data.mini_imagenet:MiniImagenet",
        "series": "advml.data.series:Series",
        "sinusoid": "advml.data.families:Sinusoid",
        "harmonics": "advml.data.families:Harmonics",
        "linear_tasks": "advml.data.families:LinearTasks",
        "av_digits": "advml.data.av_digits:AvDigits",
        "fsdd": "advml.data.fsdd:Fsdd",
        "image_text": "advml.data.image_text:ImageText",
        "shapes_captions": "advml.data.shapes_captions:ShapesCaptions",
        "shakespeare": "advml.data.shakespeare:Shakespeare",
        "leaf": "advml.data.leaf:Leaf",
        "nasbench201_table": "advml.data.nasbench201:NasBench201Table",
    },
    "view": {
        "plain": "advml.data.plain:Plain",
        "stream": "advml.data.stream:Stream",
        "episodes": "advml.data.episodes:Episodes",
        "clients": "advml.data.clients:Clients",
        "modalities": "advml.data.modalities:Modalities",
        "table": "advml.data.nasbench201:Table",
    },
    "model": {
        "none": "advml.models.none:NoModel",
        "linear": "advml.models.mlp:Linear",
        "mlp": "advml.models.mlp:Mlp",
        "cnn": "advml.models.cnn:Cnn",
        "conv4": "advml.models.conv4:Conv4",
        "char_lstm": "advml.models.char_lstm:CharLstm",
        "quantum": "advml.models.quantum:Quantum",
        "mlp_equal": "advml.models.mlp_equal:MlpEqual",
        "quanvolution": "advml.models.quantum:Quanvolution",
        "darts_cells": "advml.models.supernets:DartsCellsNet",
        "enas_micro": "advml.models.supernets:EnasMicroNet",
        "genotype": "advml.models.genotype:GenotypeNet",
        "nasbench201": "advml.models.genotype:NasBench201Net",
        "late_fusion": "advml.models.late_fusion:LateFusion",
        "cross_attention": "advml.models.cross_attention:CrossAttention",
        "early_fusion": "advml.models.early_fusion:EarlyFusion",
        "bottleneck": "advml.models.bottleneck:Bottleneck",
        "vision_language": "advml.models.vision_language:VisionLanguage",
        "clip": "advml.models.clip:Clip",
        "additive_cross": "advml.models.additive_cross:AdditiveCross",
        "run": "advml.models.run:FromRun",
    },
}


@cache
def _table(kind: Kind) -> dict[str, str]:
    """Built-in names and those of installed plug-ins; a plug-in cannot replace a built-in name."""
    plugins = {point.name: point.value for point in entry_points(group=f"advml.{kind}s")}
    return plugins | BUILT_IN[kind]


def names(kind: Kind) -> list[str]:
    """All names of a kind, sorted."""
    return sorted(_table(kind))


def resolve(kind: Kind, name: str) -> Any:
    """The class behind a name. Raises ConfigError for an unknown name or one whose package does not import."""
    target = _table(kind).get(name)
    if target is None and ":" in name:
        target = name
        if os.getcwd() not in sys.path:
            sys.path.append(os.getcwd())
    if target is None:
        raise ConfigError(f"{kind}={name}: unknown {kind}{did_you_mean(name, names(kind))} (see: advml list {kind}s)")
    module, _, attribute = target.partition(":")
    try:
        return getattr(importlib.import_module(module), attribute)
    except Exception as error:  # code of others: whatever is wrong with it must not look like a fault of advml
        reason = (str(error).splitlines() or [""])[0]
        raise ConfigError(f"{kind}={name}: cannot load {target}: {type(error).__name__}: {reason}") from error
