"""A shallow language model that has learned -> a deep one that knows the same, at once."""

from __future__ import annotations

from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

Model = TypeVar("Model", bound=PreTrainedModel)


def grow(shallow: Model, deep: Model) -> Model:
    """`deep` made to compute what `shallow` does: each layer is followed by copies whose outputs start at zero.

    Copies look where their source looks, so attention means something in every layer from the start.
    """
    shallow_layers, deep_layers = shallow.model.language_model.layers, deep.model.language_model.layers
    sources = [index * len(shallow_layers) // len(deep_layers) for index in range(len(deep_layers))]
    kept = {key: value for key, value in shallow.state_dict().items() if ".language_model.layers." not in key}
    deep.load_state_dict(kept, strict=False)
    for index, (source, layer) in enumerate(zip(sources, deep_layers, strict=True)):
        layer.load_state_dict(shallow_layers[source].state_dict())
        if index and sources[index - 1] == source:
            nn.init.zeros_(layer.self_attn.o_proj.weight)
            nn.init.zeros_(layer.mlp.down_proj.weight)
    return deep
