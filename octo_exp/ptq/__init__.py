from octo_exp.ptq.quantize import quantize_network

__all__ = ["quantize_network"]
