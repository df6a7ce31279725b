"""What runs a bundle: numpy, Pillow, ONNX Runtime and llama.cpp, never PyTorch."""
