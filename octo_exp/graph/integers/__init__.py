from octo_exp.graph.integers.integer_net import IntegerNet

__all__ = ["IntegerNet"]
