"""TensorRT boards, and what runs an engine on them: numpy, TensorRT and cuda-python only."""
