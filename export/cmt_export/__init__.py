"""Checkpoint -> PyTorch model -> ONNX -> engine -> release.

Importing this package loads no framework; torch, OpenVINO, ONNX Runtime and TensorRT load where they are used.
"""
