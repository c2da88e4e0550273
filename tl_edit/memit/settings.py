"""Settings of MEMIT and its relatives, and those that were published."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

from tl_edit import host
from tl_edit.host import Model
from tl_edit.prefixes import MEMIT_STARTS
from tl_edit.values import ValueSearch


@dataclass(frozen=True, kw_only=True)
class SpreadSettings(ValueSearch):
    """What all of them share: where the change is spread over layers, and the texts before the prompts."""

    clamp_norm_factor: float = 0.75
    """Greatest ``|delta| / |v0|`` (programs: 0.75 for GPT-2 and GPT-J)."""
    layers: Sequence[int] = ()
    """The layers to edit, counted from 0; the value is sought at the last of them, the change spread over all."""
    prefix_starts: Sequence[str] = MEMIT_STARTS
    """Words that generated prefixes begin with (program: these five)."""
    prefix_length: int = 10
    """Length of generated prefixes in tokens, the start counted (program: 10)."""
    n_prefixes: int = 5
    """Generated prefixes (program: 5, one for each start); 0 for the bare prompt alone."""
    seed: int = 0
    """Seed of the generated prefixes (the program has none)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        name = type(self).__name__
        for field in ("n_prefixes", "seed", "prefix_length"):
            value = getattr(self, field)
            if type(value) is not int or value < 0:
                raise ValueError(
                    f"{name}: {field} is {value!r}; expected an integer of 0 or more; leave it out for the default."
                )
        object.__setattr__(self, "layers", as_layers(name, self.layers))
        starts = cast(object, self.prefix_starts)
        words = tuple(cast(Sequence[object], starts)) if isinstance(starts, Sequence) else (None,)
        if isinstance(starts, str) or not words or not all(isinstance(word, str) and word for word in words):
            raise ValueError(
                f"{name}: prefix_starts is {starts!r}; expected words; the published ones are {MEMIT_STARTS}."
            )
        if self.prefix_length < 2 and self.n_prefixes:
            raise ValueError(
                f"{name}: prefix_length is {self.prefix_length}; expected 2 tokens or more, the start counted; the "
                "published length is 10; for no prefixes at all write n_prefixes=0."
            )
        object.__setattr__(self, "prefix_starts", words)

    def check_positive(self, *names: str, least: float = math.ulp(0.0)) -> None:
        """Refuse fields that are not finite numbers of at least ``least``.

        Raises:
            ValueError: naming the field.
        """
        for name in names:
            value = getattr(self, name)
            wrong = not isinstance(value, float | int) or isinstance(value, bool)
            if wrong or not least <= value < math.inf:
                raise ValueError(
                    f"{type(self).__name__}: {name} is {value!r}; expected a finite number "
                    f"{'above 0' if least else 'of 0 or more'}; see {type(self).__name__}.for_model for published ones."
                )


@dataclass(frozen=True, kw_only=True)
class MEMITConfig(SpreadSettings):
    """Settings of MEMIT; `for_model` knows the published ones. One of weight and share must be given."""

    mom2_update_weight: float | None = None
    """How many typical keys weigh as much as one request (lambda; programs: 15000 and 20000)."""
    share: float | None = None
    """Instead of the weight: the part of the residual that an edit with a typical key moves in one layer. The published
    weights mean 0.24 for GPT-2 XL and 0.52 for GPT-J; a weight does not carry over to models of another width, a share
    does (our algebra; not in the paper)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        if (self.mom2_update_weight is None) == (self.share is None):
            raise ValueError(
                f"MEMITConfig: mom2_update_weight is {self.mom2_update_weight!r} and share is {self.share!r}; expected "
                "exactly one of them; write e.g. MEMITConfig(share=0.5), the other being None."
            )
        self.check_positive("share" if self.mom2_update_weight is None else "mom2_update_weight")
        if self.share is not None and self.share >= 1:
            raise ValueError(
                f"MEMITConfig: share is {self.share!r}; expected a part between 0 and 1, both excluded; the published "
                "settings mean 0.24 to 0.52; all of it at once is emmet_edit."
            )

    def weight_for(self, d_mlp: int) -> float:
        """The weight in a layer of this width: a typical key has ``k^T C^-1 k = d_mlp``."""
        if self.share is None:
            return float(cast(float, self.mom2_update_weight))
        return d_mlp * (1 - self.share) / self.share

    @classmethod
    def for_model(cls, model: Model) -> "MEMITConfig":
        """The published settings for this model: the MEMIT program's, PMET's copy (NeoX), EasyEdit's (the others).

        Raises:
            ValueError: If none are published for it.
        """
        return published(cls, model, _MEMIT, "layers=[...], share=0.5")


@dataclass(frozen=True, kw_only=True)
class EMMETConfig(SpreadSettings):
    """Settings of EMMET: all values met exactly, unless there is damping; `for_model` knows the published ones."""

    damping: float = 0.0
    """Taken where there are several requests: then the update is MEMIT's of this weight. The program has 0.1 times its
    ``mom2_update_weight``: 100 for GPT-2 XL."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        self.check_positive("damping", least=0.0)

    @classmethod
    def for_model(cls, model: Model) -> "EMMETConfig":
        """The published settings for this model (unified-model-editing).

        Raises:
            ValueError: If none are published for it.
        """
        return published(cls, model, _EMMET, "layers=[...]")


@dataclass(frozen=True, kw_only=True)
class AlphaEditConfig(SpreadSettings):
    """Settings of AlphaEdit; `for_model` knows the published ones."""

    nullspace_threshold: float = 2e-2
    """Directions in which ``C`` has less than this may change (program: 2e-2, whatever the model)."""
    relative_threshold: bool = False
    """Whether it counts in mean eigenvalues of ``C``; otherwise it depends on how large activations are (program)."""
    weight: float = 10.0
    """Of ``|D|^2`` (program: 10; EasyEdit: 1 for Llama 3 and Qwen)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        self.check_positive("nullspace_threshold", "weight")
        if type(self.relative_threshold) is not bool:
            raise ValueError(
                f"AlphaEditConfig: relative_threshold is {self.relative_threshold!r}; expected True or False; leave it "
                "out for the published rule."
            )

    @classmethod
    def for_model(cls, model: Model) -> "AlphaEditConfig":
        """The published settings for this model (the AlphaEdit program's, EasyEdit's weight for Llama 3).

        Raises:
            ValueError: If none are published for it.
        """
        return published(cls, model, _ALPHA, "layers=[...], nullspace_threshold=0.02, relative_threshold=True")


@dataclass(frozen=True, kw_only=True)
class PMETConfig(SpreadSettings):
    """Settings of PMET; `for_model` knows the published ones."""

    mom2_update_weight: float = 6000.0
    """As MEMIT's (program: 6000 for GPT-J)."""
    v_lr: float = 0.2
    """Adam's learning rate (program: 0.2 for GPT-J)."""
    v_num_grad_steps: int = 30
    """Loss evaluations (program: 30 for GPT-J)."""
    kl_factor: float = 1.0
    """Weight of the KL term (program: 1 for GPT-J)."""
    stop_kl: float | None = 0.01
    """See `ValueSearch.stop_kl` (program: 0.01)."""

    def __post_init__(self) -> None:
        """Refuse settings that cannot work."""
        super().__post_init__()
        self.check_positive("mom2_update_weight")

    @classmethod
    def for_model(cls, model: Model) -> "PMETConfig":
        """The published settings for this model (the PMET program's).

        Raises:
            ValueError: If none are published for it.
        """
        return published(cls, model, _PMET, "layers=[...]")


_EASYEDIT: dict[str, Any] = {
    "layers": (4, 5, 6, 7, 8),
    "mom2_update_weight": 15000.0,
    "clamp_norm_factor": 4.0,
    "v_num_grad_steps": 25,
    "v_weight_decay": 1e-3,
}
# The bundled model: chosen on development facts, for 100 to 300 edits; lambda 200 is a share of 0.82.
_OWN: dict[str, Any] = {"layers": (0, 1), "clamp_norm_factor": 1.0}
_XL, _J = (13, 14, 15, 16, 17), (3, 4, 5, 6, 7, 8)
_MEMIT: dict[str, dict[str, Any]] = {
    "tl-edit-fact-model": {**_OWN, "mom2_update_weight": 200.0},
    "gpt2-xl": {"layers": _XL, "mom2_update_weight": 20000.0},
    "gpt-j-6b": {"layers": _J, "mom2_update_weight": 15000.0, "v_num_grad_steps": 25},
    "gpt-neox-20b": {"layers": (6, 7, 8, 9, 10), "mom2_update_weight": 6000.0, "clamp_norm_factor": 0.8},
    "llama-2-7b-hf": _EASYEDIT,
    "llama-3.2-3b": _EASYEDIT,
    "mistral-7b-v0.1": _EASYEDIT,
    "qwen2-7b": _EASYEDIT,
    "qwen2.5-7b": _EASYEDIT,
}
_EMMET: dict[str, dict[str, Any]] = {
    "tl-edit-fact-model": {**_OWN, "damping": 10.0},
    "gpt2-xl": {"layers": (17,), "damping": 100.0},
    "gpt-j-6b": {"layers": (5,), "damping": 0.1, "v_num_grad_steps": 25},
    "llama-2-7b-hf": {
        "layers": (5,),
        "damping": 0.1,
        "clamp_norm_factor": 4.0,
        "v_num_grad_steps": 25,
        "v_weight_decay": 1e-3,
    },
}
_ALPHA: dict[str, dict[str, Any]] = {
    "tl-edit-fact-model": {**_OWN, "nullspace_threshold": 0.5, "relative_threshold": True, "weight": 3.0},
    "gpt2-xl": {"layers": _XL},
    "gpt-j-6b": {"layers": _J, "v_num_grad_steps": 25},
    "meta-llama-3-8b": {"layers": (4, 5, 6, 7, 8), "v_lr": 0.1, "v_num_grad_steps": 25, "weight": 1.0},
}
_PMET: dict[str, dict[str, Any]] = {
    "tl-edit-fact-model": {
        "layers": (0, 1),
        "mom2_update_weight": 50.0,
        "clamp_norm_factor": 4.0,
        "v_lr": 0.5,
        "v_num_grad_steps": 20,
        "kl_factor": 0.0625,
    },
    "gpt-j-6b": {"layers": _J},
    "gpt-neox-20b": {"layers": (6, 7, 8, 9, 10), "mom2_update_weight": 15000.0, "v_lr": 0.5, "kl_factor": 0.8},
}

Settings = TypeVar("Settings", bound=SpreadSettings)


def published(kind: type[Settings], model: Model, table: Mapping[str, Mapping[str, Any]], example: str) -> Settings:
    """The settings of ``table`` for this model.

    Raises:
        ValueError: If there are none.
    """
    name = host.model_name(model).split("/")[-1].lower()
    if name not in table:
        raise ValueError(
            f"{kind.__name__}.for_model: no published settings for {host.model_name(model)!r}; known are "
            f"{', '.join(table)}; choose some, e.g. {kind.__name__}({example}), and check them with a sweep."
        )
    return kind(**table[name])


def as_layers(name: str, layers: object) -> tuple[int, ...]:
    """The layers as a tuple; whether the model has them is seen when there is one.

    Raises:
        ValueError: If they are not integers in ascending order, each once.
    """
    listed = tuple(cast(Sequence[object], layers)) if isinstance(layers, Sequence) else (None,)
    if any(type(layer) is not int for layer in listed):
        raise ValueError(f"{name}: layers is {layers!r}; expected integers in ascending order; write e.g. (3, 4, 5).")
    numbers = cast(tuple[int, ...], listed)
    if list(numbers) != sorted(set(numbers)):
        raise ValueError(
            f"{name}: layers is {numbers}; expected ascending order and each once, since the change of a layer depends "
            f"on those before it; write {tuple(sorted(set(numbers)))}."
        )
    return numbers
