"""Image classifiers of Hugging Face's transformers, as networks whose output is the logits."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from octo_exp.base.errors import ConfigError, UserError


class HuggingFaceClassifier(nn.Module):
    """Any AutoModelForImageClassification; [N, C, S, S] -> [N, classes].

    Args:
        name: id on the hub or a folder, with trained weights; a head of other classes starts anew.
        revision: of the hub's repository.
        config: {model_type: ..., and its settings}: a network of that kind with fresh weights.
        in_channels: of the images; with `config` alone, for trained weights have their own.
        num_classes: outputs of the head.
        image_size: side S of the images in pixels.

    Raises:
        ConfigError: neither or both of name and config; settings that make no image classifier.
        UserError: transformers is not installed, or the trained weights cannot be had.

    """

    def __init__(
        self,
        *,
        name: str | None,
        revision: str,
        config: Mapping[str, Any] | None,
        in_channels: int,
        num_classes: int,
        image_size: int,
    ) -> None:
        super().__init__()
        try:
            import transformers
        except ImportError as error:
            raise UserError("model=hf needs transformers: pip install -e '.[hf]'") from error
        if (name is None) == (config is None):
            raise ConfigError("model=hf: give one of hf.name=<id or folder> and hf.config={model_type: ...}")
        auto = transformers.AutoModelForImageClassification
        try:
            if name is None:
                settings = {"image_size": image_size, "num_channels": in_channels, **dict(config or {})}
                kind = str(settings.pop("model_type", None))
                own = transformers.AutoConfig.for_model(kind, num_labels=num_classes, **settings)
                self.net = auto.from_config(own)
            else:
                self.net = auto.from_pretrained(
                    name, revision=revision, num_labels=num_classes, ignore_mismatched_sizes=True
                )
        except (OSError, ValueError, TypeError, AttributeError) as error:
            raise _refusal(name, error) from error
        if name is not None and getattr(self.net.config, "num_channels", in_channels) != in_channels:
            raise ConfigError(f"hf.name={name} takes {self.net.config.num_channels} channels; set data.channels to it")

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.net(pixel_values=x).logits
        return logits


def _refusal(name: str | None, error: Exception) -> UserError:
    reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
    if name is None:
        return ConfigError(f"hf.config makes no image classifier: {reason}")
    if isinstance(error, OSError):
        return UserError(
            f"hf.name={name} cannot be had: {reason} Connect to the network, give a folder that holds it, or start "
            "anew with hf.config="
        )
    return ConfigError(f"hf.name={name} is no image classifier: {reason}")
