"""Launchers of workers: on this machine, on Slurm, on Kubernetes."""
