"""The source network's view of the images: features, logits, attention, prototypes."""
