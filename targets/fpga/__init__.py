"""FPGA board profiles."""
