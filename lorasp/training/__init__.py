"""One run: a model, a task, a method, a recipe and a seed; its adapter and its log."""

# The source that decides what a run ends at: workflow and checkpoints of other code are not used.
CODE = ("training", "adapters", "models", "metrics", "recompute")
