"""Small continual runs as words of a command: streams and methods by name."""

SMALL = (
    "dataset.limit=400", "view.tasks=3", "method.iterations=20", "method.block=8", "method.lr=0.01",
    "method.batch_size=16",
)  # fmt: skip
VIEWS = {
    "task": ("view=stream",),
    "class": ("view=stream_class",),
    "domain": ("view=stream", "view.scenario=domain", "view.tasks=2"),
    "permuted": ("view=stream_permuted",),
    "permuted task": ("view=stream_permuted", "view.scenario=task"),
    "rotated": ("view=stream_rotated",),
}
METHODS = {
    "finetune": ("method=finetune",),
    "ewc": ("method=ewc", "method.strength=10"),
    "separate": ("method=ewc", "method.strength=10", "method.anchor=separate"),
    "si": ("method=si", "method.strength=1"),
    "si total": ("method=si", "method.strength=1", "method.gradient=total"),
    "mas": ("method=mas", "method.strength=1"),
    "lwf": ("method=lwf",),
    "lwf by tasks": ("method=lwf", "method.weighting=by_tasks", "method.new_classes=zero"),
    "joint": ("method=joint",),
    "restart": ("method=joint", "method.restart=true"),
    "replay": ("method=replay", "method.capacity=40"),
    "balanced": ("method=replay", "method.capacity=40", "method.policy=balanced"),
    "agem": ("method=agem", "method.capacity=40"),
    "der": ("method=der", "method.capacity=40"),
    "der_pp": ("method=der_pp", "method.capacity=40"),
    "generative_replay": ("method=generative_replay", "method.hidden=[24]", "method.latent=6"),
    "distilled_replay": ("method=generative_replay", "method.hidden=[24]", "method.latent=6", "method.targets=soft"),
}
TOLD = {  # methods that must be told the task
    "packnet": ("method=packnet", "method.prune_fraction=0.5"),
    "progressive": ("method=progressive", "method.adapter=6"),
}


def small(method="ewc", view="permuted", *more):
    return (*(METHODS | TOLD)[method], *VIEWS[view][:1], *SMALL, *VIEWS[view][1:], *more)
