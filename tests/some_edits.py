"""Random edits of tiny models, and their weights as lists."""

import tiny_models
import torch

from tl_edit import Edit, EditRequest, LowRank, host

REQUEST = EditRequest("{} is in", "The Eiffel Tower", "Rome", "Paris")


def random_deltas(model, layers=(1,), seed=0, scale=0.3, rank=1) -> dict[int, LowRank]:
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return scale * torch.randn(shape, generator=generator, dtype=torch.float64)

    shapes = {layer: host.w_out(model, layer).shape for layer in layers}
    return {layer: LowRank(random(shape[0], rank), random(rank, shape[1])) for layer, shape in shapes.items()}


def make_edit(model, layers=(1,), seed=0, scale=0.3, rank=1) -> Edit:
    deltas = random_deltas(model, layers, seed, scale, rank)
    return Edit.of(model, deltas, method="test", requests=(REQUEST,), prepend_bos=True, seed=seed)


def weights(model) -> list[torch.Tensor]:
    return [host.w_out(model, layer).clone() for layer in range(host.n_layers(model))]


def same(first: list[torch.Tensor], second: list[torch.Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def logits(model) -> torch.Tensor:
    with torch.no_grad():
        return model(model.to_tokens("The Eiffel Tower is in")).double()


def both_interfaces(family="gpt2", **kwargs):
    """The same weights behind each interface there is."""
    return [tiny_models.build(family, interface, **kwargs) for interface in tiny_models.interfaces()]
