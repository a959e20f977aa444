"""Exports: final models written for timm and as ONNX, opened again, and put to use."""
