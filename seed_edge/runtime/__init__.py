"""Runs bundles with numpy, Pillow, ONNX Runtime and llama.cpp, without PyTorch."""
