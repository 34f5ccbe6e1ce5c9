"""Small runs of MAML in float64 on smooth networks, shared by its tests."""

SINE = ("dataset=sinusoid", "view=episodes_regression", "precision=float64", "method.tasks=4", "method.block=2",
        "method.iterations=6", "view.valid_tasks=4", "view.test_tasks=6")  # fmt: skip
DIGITS = ("dataset=digits", "view=episodes", "view.ways=3", "view.queries=4", "view.valid_classes=3",
          "view.test_classes=3", "precision=float64", "method.tasks=3", "method.block=2", "method.iterations=4",
          "view.valid_tasks=5", "view.test_tasks=7", "method.eval_steps=3", "method.inner_lr=0.4")  # fmt: skip
SMOOTH = ("model=mlp", "model.activation=tanh")
