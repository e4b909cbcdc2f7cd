"""Models of and for other programs: NeMo and ONNX files. Calls runs and all below
them."""
