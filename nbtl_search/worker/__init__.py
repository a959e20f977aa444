"""Where search and training meet: a supervisor that knows no torch, a trainer that knows no optuna."""
