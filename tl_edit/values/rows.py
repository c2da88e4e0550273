"""The prompts of a search, and what is read after them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from tl_edit import host, tokens
from tl_edit.forward import at_least_float32
from tl_edit.request import EditRequest
from tl_edit.values.asked import Asked

KL_RELATION = "{} is a"


@dataclass(frozen=True, kw_only=True, eq=False)
class Row:
    """One prompt of one request: behind a prefix, with all but the last of the target's tokens, or the KL prompt."""

    request: int
    """Index of the request it belongs to, among those that are searched together."""
    tokens: Int[Tensor, " pos"]
    lookup: int
    """The position that delta is added at."""
    target: Int[Tensor, " _"]
    """What shall be said, from the last position of the prompt on; empty for the KL prompt, read at ``lookup``."""
    weight: float
    """Of each target token in the request's mean."""

    @property
    def reads(self) -> range:
        """The positions whose next-token probabilities count."""
        if not len(self.target):
            return range(self.lookup, self.lookup + 1)
        return range(len(self.tokens) - len(self.target), len(self.tokens))

    @property
    def tail(self) -> int:
        """Number of positions from the lookup one to the last that is read."""
        return self.reads[-1] + 1 - self.lookup


def rows_of(asked: Asked) -> list[list[Row]]:
    """By request: the bare prompt, the prompt behind each prefix, and the KL prompt; each counts itself as request 0.

    Raises:
        ValueError: If a subject cannot be located, or prompt and target do not fit the context.
    """
    return [list(_rows(asked, request)) for request in asked.requests]


def _rows(asked: Asked, request: EditRequest) -> Iterator[Row]:
    model, bos = asked.model, asked.prepend_bos
    target = tokens.target_tokens(model, request.prompt, request.target_new, prepend_bos=bos)
    for prefix in ("{}", *asked.prefixes):
        prompt = tokens.tokenize_request(model, request, prefix=prefix, prepend_bos=bos)
        # The prompt fits the context alone; the target stands behind it.
        needed, context = len(prompt.tokens) + len(target) - 1, int(model.cfg.n_ctx)
        if needed > context:
            raise ValueError(
                f"{asked.operation}: {prompt.text[:40]!r}... with the target {request.target_new!r} needs {needed} "
                f"tokens; {host.model_name(model)} has a context of {context}; shorten the prefix, the prompt or "
                "the target."
            )
        row = torch.cat([prompt.tokens, target[:-1]])
        weight = 1.0 / (len(target) * (1 + len(asked.prefixes)))
        yield Row(request=0, tokens=row, lookup=prompt.subject_last, target=target, weight=weight)
    kl = tokens.tokenize_request(model, EditRequest(KL_RELATION, request.subject, request.target_new), prepend_bos=bos)
    yield Row(request=0, tokens=kl.tokens, lookup=kl.subject_last, target=target[:0], weight=0.0)


@dataclass(frozen=True, kw_only=True, eq=False)
class Terms:
    """The losses of requests that a piece of their rows gives; zero for requests without a row in it."""

    nll: Float[Tensor, " request"]
    """Negative log-likelihood of the target per token, averaged over prefixes, in nats."""
    kl: Float[Tensor, " request"]
    """KL(edited || unedited) of the token after the subject in the KL prompt, in nats."""
    said: Bool[Tensor, " request"]
    """Whether every token of the target is the likeliest."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Piece:
    """Rows that run together, and where their probabilities are read."""

    rows: tuple[Row, ...]
    owner: Int[Tensor, " row"]
    """Index of each row's request."""
    lookup: Int[Tensor, " row"]
    read_row: Int[Tensor, " read"]
    read_pos: Int[Tensor, " read"]
    token: Int[Tensor, " read"]
    """The target's token; -1 for the KL prompt."""
    weight: Float[Tensor, " read"]

    @classmethod
    def of(cls, rows: Sequence[Row]) -> "Piece":
        """These rows."""
        reads = [(i, pos) for i, row in enumerate(rows) for pos in row.reads]
        token = [row.target if len(row.target) else torch.tensor([-1]) for row in rows]
        return cls(
            rows=tuple(rows),
            owner=torch.tensor([row.request for row in rows]),
            lookup=torch.tensor([row.lookup for row in rows]),
            read_row=torch.tensor([row for row, _ in reads]),
            read_pos=torch.tensor([pos for _, pos in reads]),
            token=torch.cat(token),
            weight=torch.tensor([rows[row].weight for row, _ in reads], dtype=torch.float64),
        )

    def terms(
        self, logits: Float[Tensor, "read d_vocab"], unedited: dict[int, Float[Tensor, " d_vocab"]], requests: int
    ) -> Terms:
        """The losses, of the logits at ``read_row`` and ``read_pos``.

        ``unedited`` holds the log-probabilities after the subject by request; those that are missing are taken to be
        the first ones, of an unedited model, and are put in.
        """
        log_probs = torch.log_softmax(at_least_float32(logits), dim=-1)
        device = log_probs.device
        owner, token = self.owner[self.read_row].to(device), self.token.to(device)
        zero = torch.zeros(requests, dtype=log_probs.dtype, device=device)
        target, after = (token >= 0).nonzero()[:, 0], (token < 0).nonzero()[:, 0]
        weight = self.weight.to(log_probs.dtype).to(device)[target]  # rounded first: not all devices have float64
        nll = zero.index_add(0, owner[target], -weight * log_probs[target, token[target]])
        missed = (log_probs.detach().argmax(-1) != token)[target]
        wrong = zero.index_add(0, owner[target], missed.to(zero))
        kl = zero
        if len(after):
            now = log_probs[after]
            before = [unedited.setdefault(int(i), row) for i, row in zip(owner[after], now.detach(), strict=True)]
            each = torch.nn.functional.kl_div(torch.stack(before), now, log_target=True, reduction="none").sum(-1)
            kl = zero.index_add(0, owner[after], each)
        return Terms(nll=nll, kl=kl, said=wrong == 0)


def pieces(rows: Sequence[Row], max_rows: int, *, from_lookup: bool = False) -> Iterator[Piece]:
    """The rows in pieces of at most ``max_rows`` positions, or of one row.

    Counted are rows padded to the longest, or only the positions ``from_lookup`` on.
    """
    chunk: list[Row] = []
    longest = used = 0
    for row in rows:
        longest, used = max(longest, len(row.tokens)), used + row.tail
        if chunk and (used if from_lookup else (len(chunk) + 1) * longest) > max_rows:
            yield Piece.of(chunk)
            chunk, longest, used = [], len(row.tokens), row.tail
        chunk.append(row)
    if chunk:
        yield Piece.of(chunk)
