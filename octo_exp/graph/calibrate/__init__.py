from octo_exp.graph.calibrate.calibrate import quantize_network

__all__ = ["quantize_network"]
