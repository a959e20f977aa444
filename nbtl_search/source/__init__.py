"""What the source network says of the images: features, logits, attention, prototypes."""
