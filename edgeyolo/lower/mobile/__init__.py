"""The mobile target: int8 and float16 forms of a float graph that ONNX Runtime's CPU kernels run well."""
