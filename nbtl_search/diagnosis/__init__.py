"""How well pre-trained weights fit a dataset, measured."""
