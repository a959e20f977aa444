"""The ledger of trials: our tables beside Optuna's, and the life of a trial in them."""
