"""Transferability measures, one file each, as pure functions of features and labels."""
