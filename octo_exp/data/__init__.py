from octo_exp.data.datamodule import ImageDataModule

__all__ = ["ImageDataModule"]
