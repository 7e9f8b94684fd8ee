"""Export of models to programs that run without this library: torch.export and ONNX."""
