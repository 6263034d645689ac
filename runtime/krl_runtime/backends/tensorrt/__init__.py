"""TensorRT 10.3 to 11.x and TensorRT-RTX: engines of a bundle, loaded and run through NVIDIA's Python bindings."""
