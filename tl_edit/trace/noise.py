"""How the subject's embeddings are corrupted.

Draws are those of the published program (Meng et al. 2022; its ``--noise_level``): numpy's ``RandomState(seed)``, in
float64, shaped [sample, subject token, d_model], the same for every restored state.
"""

import math
import reprlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal, cast, get_args

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from tl_edit import forward, host, tokens
from tl_edit.forward import at_least_float32
from tl_edit.hooks import gaussian_draws
from tl_edit.host import HookFn, Model

Distribution = Literal["gaussian", "uniform", "multivariate", "student_t"]

STUDENT_SEED = 2
"""Of the factors that make a Gaussian draw a Student one; the published program fixes it, too."""


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class Noise:
    """Noise on the subject's embeddings; the class methods make the usual kinds.

    Raises:
        ValueError: If a number cannot work, or the distribution lacks what it needs.
    """

    distribution: Distribution = "gaussian"
    multiple: float = 3.0
    """Gaussian: standard deviation, as a multiple of that of the subject's own embeddings."""
    std: float | None = None
    """Gaussian: standard deviation in absolute units; overrides ``multiple``."""
    bound: float = 0.0
    """Uniform: the noise lies between minus and plus this, in absolute units."""
    mean: Float[Tensor, " d_model"] | None = None
    """Multivariate, Student: mean of the noise."""
    root: Float[Tensor, "d_model d_model"] | None = None
    """Multivariate, Student: ``root @ root.T`` is the covariance."""
    degrees: int = 3
    """Student: degrees of freedom, at least 3; the covariance is the same for all."""
    replace: bool = False
    """Put the noise in place of the embeddings, not on top."""

    def __post_init__(self) -> None:
        """Check the numbers."""
        if self.distribution not in get_args(Distribution):
            raise ValueError(
                f"Noise: distribution {self.distribution!r}; expected one of {', '.join(get_args(Distribution))}; "
                "write Noise.gaussian(3.0)."
            )
        numbers: dict[str, float | None] = {"multiple": self.multiple, "std": self.std, "bound": self.bound}
        for name, value in numbers.items():
            if name == "std" and value is None:
                continue
            number = isinstance(cast(object, value), int | float | np.number) and value is not True
            if value is None or not number or not 0 <= value < math.inf:
                raise ValueError(f"Noise: {name} is {value!r}; expected a number, 0 or more; the paper's noise is 3.0.")
            # Python's, so that 3 and 3.0 are the same noise, in files, too.
            object.__setattr__(self, name, float(value))
        if self.distribution in ("multivariate", "student_t") and (self.mean is None or self.root is None):
            raise ValueError(
                f"Noise: {self.distribution} noise without mean and root; expected both; measure them with "
                "Noise.multivariate(model, texts) or Noise.student_t(model, texts)."
            )
        if self.distribution == "student_t" and self.degrees < 3:
            raise ValueError(
                f"Noise: {self.degrees} degrees of freedom have no variance; expected 3 or more; the published program "
                "takes 3."
            )

    @property
    def is_nothing(self) -> bool:
        """Whether it leaves the embeddings as they are."""
        size = {"gaussian": self.multiple if self.std is None else self.std, "uniform": self.bound}
        return not self.replace and size.get(self.distribution) == 0

    @classmethod
    def gaussian(cls, multiple: float = 3.0, *, std: float | None = None, replace: bool = False) -> "Noise":
        """Independent Gaussian noise; ``std`` is absolute and overrides ``multiple``."""
        return cls(multiple=multiple, std=std, replace=replace)

    @classmethod
    def uniform(cls, bound: float, *, replace: bool = False) -> "Noise":
        """Uniform noise between ``-bound`` and ``bound``, in absolute units."""
        return cls(distribution="uniform", bound=bound, replace=replace)

    @classmethod
    def multivariate(cls, model: Model, texts: Iterable[str], *, replace: bool = False) -> "Noise":
        """Gaussian noise with the mean and covariance of the embeddings of ``texts``.

        Seeds are the published program's; its root of the covariance may differ from this one in the signs of its
        columns, as both are eigenvectors.
        """
        mean, root = _fit(model, texts)
        return cls(distribution="multivariate", mean=mean, root=root, replace=replace)

    @classmethod
    def student_t(cls, model: Model, texts: Iterable[str], degrees: int = 3, *, replace: bool = False) -> "Noise":
        """The same with heavier tails: a multivariate Student distribution of equal covariance."""
        mean, root = _fit(model, texts)
        return cls(distribution="student_t", mean=mean, root=root, degrees=degrees, replace=replace)

    def draws(self, shape: tuple[int, ...], *, seed: int, own_std: float) -> Float[Tensor, "sample pos d_model"]:
        """The noise [sample pos d_model], scaled; ``own_std`` is the standard deviation of the subject's embeddings."""
        if self.distribution == "uniform":
            gaussian_draws((0,), seed=seed)  # refuses a seed that numpy cannot take
            return torch.from_numpy(np.random.RandomState(seed).uniform(-self.bound, self.bound, shape))
        if self.root is not None and tuple(self.root.shape) != (shape[-1], shape[-1]):
            raise ValueError(
                f"Noise: a covariance of {list(self.root.shape)} for embeddings of width {shape[-1]}; expected "
                "one that was measured on this model; call Noise.multivariate(model, texts) with it."
            )
        normal = gaussian_draws(shape, seed=seed)
        if self.mean is None or self.root is None:
            return self.scale(own_std) * normal
        drawn = self.mean.double() + normal @ self.root.double().T
        if self.distribution == "student_t":
            size = shape[0] * shape[1]
            chi = np.random.RandomState(STUDENT_SEED).chisquare(df=self.degrees, size=max(1000, size))[:size]
            drawn = drawn * torch.from_numpy(np.sqrt((self.degrees - 2) / chi)).view(*shape[:2], 1)
        return drawn

    def scale(self, own_std: float) -> float:
        """Standard deviation of independent Gaussian noise, in units of the embedding."""
        return self.multiple * own_std if self.std is None else self.std

    def hook(self, span: tuple[int, int], draws: Float[Tensor, "sample pos d_model"]) -> HookFn:
        """A hook for ``hook_embed`` that corrupts the subject; rows take the draws in turn."""
        start, end = span

        def corrupt(act: Tensor, hook: object = None) -> Tensor:
            out = act.clone()
            # Added in float64 and rounded once, as the published program does; on the CPU, as some devices lack it.
            subject = act[:, start:end].to("cpu", torch.float64)
            noise = draws.repeat(len(act) // len(draws), 1, 1)
            out[:, start:end] = (noise if self.replace else subject + noise).to(act.device, act.dtype)
            return out

        return corrupt

    def _rms(self) -> float:
        """Root of the mean variance of an entry, which tells one fit from another."""
        return 0.0 if self.root is None else float(self.root.double().square().sum(1).mean().sqrt())

    def __repr__(self) -> str:
        parts = {
            "gaussian": f"std {self.std:.6g}" if self.std is not None else f"{self.multiple:g} x the subject's own std",
            "uniform": f"within ± {self.bound:.6g}",
            "multivariate": f"with the covariance of texts (rms {self._rms():.6g})",
            "student_t": f"with the covariance of texts (rms {self._rms():.6g}), {self.degrees} degrees of freedom",
        }
        instead = " in place of the embeddings" if self.replace else ""
        return f"{self.distribution} noise, {parts[self.distribution]}{instead}"


def embedding_std(model: Model, subjects: Sequence[str]) -> float:
    """Standard deviation over all entries of the embeddings of ``subjects``, each tokenised alone, without BOS.

    The paper's noise is ``noise_std=3 * embedding_std(model, subjects)`` over the subjects of its facts.

    Raises:
        ValueError: If there are none.
    """
    return float(_embeddings(model, subjects, "embedding_std").std())


def _fit(model: Model, texts: Iterable[str]) -> tuple[Tensor, Tensor]:
    """Mean of the embeddings of ``texts``, and a root of their covariance."""
    embeddings = _embeddings(model, texts, "Noise.multivariate")
    if len(embeddings) < 2:
        raise ValueError("Noise.multivariate: texts hold fewer than 2 tokens; expected a sample of ordinary text.")
    values, vectors = cast(tuple[Tensor, Tensor], torch.linalg.eigh(torch.cov(embeddings.T)))
    return embeddings.mean(0), vectors * values.clamp(min=0).sqrt()


def _embeddings(model: Model, texts: Iterable[str], operation: str) -> Float[Tensor, "token d_model"]:
    """Embeddings of every token of ``texts``, in float64; empty ones have none."""
    host.check_ready(model, operation)
    wrong = isinstance(texts, str) or not isinstance(cast(object, texts), Iterable)
    listed: list[object] = [] if wrong else list(texts)
    strings = [text for text in listed if isinstance(text, str)]
    rows = [tokens.encode(model, text, prepend_bos=False) for text in strings if text]
    if len(strings) < len(listed) or not rows:
        raise ValueError(
            f"{operation}: found {reprlib.repr(texts)}; expected a list of strings, at least one of them not empty."
        )
    found: list[Tensor] = []
    for start in range(0, len(rows), 64):
        batch = tokens.pad(model, rows[start : start + 64])
        act = forward.activations(model, batch, [host.EMBED])[host.EMBED]
        found.append(at_least_float32(act[batch.attention_mask.bool().to(act.device)]).cpu().double())
    return torch.cat(found)
