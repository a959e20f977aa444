"""Dashboard: Optuna's, served for reading on this machine, with our figures."""
