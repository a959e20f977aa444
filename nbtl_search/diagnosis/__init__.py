"""Diagnosis: how well pre-trained weights fit a dataset."""
