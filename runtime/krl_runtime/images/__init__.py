"""From encoded images to uint8 tensors: decoding, resizing, color, and folders of images."""
