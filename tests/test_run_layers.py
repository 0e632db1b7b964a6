"""What a run's results tell of a stranger's layers."""

import logging

import torch
from torch import nn

from octo_exp.models.simplecnn import SimpleCNN
from tests.run_helpers import SMALL, go


class Past(SimpleCNN):
    """Reads the weights of a layer past it, as attention does, and has a layer without a quantised form."""

    def __init__(self, **settings: object) -> None:
        super().__init__(**settings)
        self.past, self.line = nn.Linear(10, 10), nn.Conv1d(1, 1, 3, padding=1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits = super().forward(x) @ self.past.weight
        return self.line(logits.unsqueeze(1)).squeeze(1)


def test_results_name_layers_that_were_not_quantised_and_why(tmp_path, caplog):
    target = f"model._target_={__name__}.Past"
    with caplog.at_level(logging.INFO, "octo_exp"):
        results = go(tmp_path, *SMALL, "quant=int8", "quant.skip=[first]", target, "trust=[tests]", "~callbacks.cost")
    assert results["quantized_layers"] == ["classifier.0", "classifier.2"]
    assert results["float_layers"] == {
        "features.0": "quant.skip: first",
        "line": "Conv1d has no quantised form",
        "past": "its forward never ran: the net reads its weights past it, or does not use it",
    }
    lines = [record.getMessage() for record in caplog.records]
    assert sum("layers that stay float:" in line and "line (Conv1d" in line for line in lines) == 1
    assert sum("layer past is not quantised" in line for line in lines) == 1
    assert sum("int8 products: " in line and results["int8_products"] in line for line in lines) == 1
