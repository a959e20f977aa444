"""Worker, where search and training meet: a supervisor without torch, a trainer without optuna."""
