"""From a third-party ONNX file to a bundle."""
