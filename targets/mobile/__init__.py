"""Boards for ONNX Runtime on CPUs of phones and small computers, and a sample that a bundle carries."""
