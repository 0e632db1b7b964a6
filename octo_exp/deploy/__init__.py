from octo_exp.deploy.net import IntegerNet

__all__ = ["IntegerNet"]
