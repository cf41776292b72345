"""Quantisation-aware training by self-distillation: the float net teaches its own integer form, without labels."""
