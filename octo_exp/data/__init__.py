from typing import TYPE_CHECKING

from octo_exp.data.datamodule import ImageDataModule
from octo_exp.data.protocol import DataModule

__all__ = ["DataModule", "ImageDataModule"]

if TYPE_CHECKING:

    def _is_one(datamodule: ImageDataModule) -> DataModule:
        return datamodule
