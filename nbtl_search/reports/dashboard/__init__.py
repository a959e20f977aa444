"""The Optuna dashboard, served for reading on this machine, with our figures."""
