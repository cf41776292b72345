"""Graph rewrites, one a file.

Their order in an export (``edgeyolo/export``):

- ``prepare.prepare``: fold_batchnorm, then simplify (unless refused), then merge_pad_pool;
- ``fpga.fixed_point_form``: pixel_input, then dyadic_leaky; what follows is quantisation;
- ``float_onnx.export_onnx``, where asked for: decode, then nms.
"""
