"""Turns runs and third-party ONNX files into bundles, types them for FP16 and INT8, and builds engines from them."""
