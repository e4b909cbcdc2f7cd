"""Models from and for other programs: NeMo and ONNX files. Imports runs and the folders
below it."""
