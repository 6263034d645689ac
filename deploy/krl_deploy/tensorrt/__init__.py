"""TensorRT engines: built from the typed ONNX files of a bundle, by TensorRT 10.3 to 11.x alike."""
