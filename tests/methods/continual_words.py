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
    "joint": ("method=joint",),
    "restart": ("method=joint", "method.restart=true"),
    "generative_replay": ("method=generative_replay", "method.hidden=[24]", "method.latent=6"),
    "distilled_replay": ("method=generative_replay", "method.hidden=[24]", "method.latent=6", "method.targets=soft"),
}


def small(method="ewc", view="permuted", *more):
    return (*METHODS[method], *VIEWS[view][:1], *SMALL, *VIEWS[view][1:], *more)
