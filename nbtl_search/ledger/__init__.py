"""Ledger of trials: our tables beside Optuna's, and all that reads and writes them."""
