"""Models that leave the house: written for timm and as ONNX, opened again, and put to use."""
