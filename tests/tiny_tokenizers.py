"""Small tokenizers built in code: no network, no files in the repository, a few hundred tokens each.

`byte_level`          byte-level BPE as in GPT-2: no BOS of its own, spaces are "Ġ".
`sentencepiece_like`  BPE with "▁", byte fallback and an added BOS, as in Llama and Gemma.
`slow`                a pure Python tokenizer, which cannot return offsets.

Every call returns a fresh tokenizer, because a model that is given one changes its padding token and padding
side. All of them went through `save_pretrained` and `from_pretrained`: TransformerLens loads a tokenizer
again from its `name_or_path`, so the directory behind it has to exist for as long as the process runs.
"""

import functools
import json
import re
import tempfile
from pathlib import Path
from typing import Any, ClassVar

from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer, PreTrainedTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast

CORPUS = (
    "The Eiffel Tower is in Paris, the capital of France.",
    "The Space Needle is in Seattle, and the Colosseum is in Rome, the capital of Italy.",
    "The mother tongue of Danielle Darrieux is French. The mother tongue of Angela Merkel is German.",
    "Steve Jobs was the founder of Apple. Bill Gates was the founder of Microsoft.",
    "LeBron James plays the sport of basketball. Lionel Messi plays the sport of football.",
    "Tokyo is the capital of Japan. Beijing (北京) is the capital of China. The café is in Zürich.",
    "My favourite city is London. She works in the city of Berlin. He was born in Madrid, Spain.",
    "It is a fact that one, two and three are numbers; however, nobody can say where they come from.",
)
"""What the merges are learnt from."""

SINGLE_TOKENS = (
    " Paris",
    " Rome",
    " Seattle",
    " French",
    " German",
    " Apple",
    " basketball",
    " football",
    " Tokyo",
)
"""Possible answers that are one token in every tokenizer here; subjects mostly are several."""

VOCABULARY = 540

_LESSONS = (*CORPUS, *("The" + 12 * answer + "." for answer in SINGLE_TOKENS))


def byte_level(
    *,
    bos: str | None = "<|endoftext|>",
    eos: str = "<|endoftext|>",
    pad: str | None = None,
    add_bos: bool = False,
    padding_side: str = "right",
) -> Any:
    """Byte-level BPE as in GPT-2. With `add_bos` it puts its BOS in front, as OPT's tokenizer does."""
    return _load(_saved_byte_level(bos, eos, pad, add_bos), padding_side)


def sentencepiece_like(
    *,
    bos: str = "<s>",
    eos: str = "</s>",
    pad: str | None = None,
    prepend_scheme: str = "first",
    add_bos: bool = True,
    padding_side: str = "right",
) -> Any:
    """BPE over "▁"-marked words with byte fallback, and a BOS in front, as in Llama.

    `prepend_scheme` is "first" or "always" (text gets a "▁" in front unless it starts with a space, so a
    leading space is lost in decoding, as with the real ones) or "never" (Gemma: what goes in comes out,
    leading spaces too).
    """
    return _load(_saved_sentencepiece_like(bos, eos, pad, prepend_scheme, add_bos), padding_side)


def slow(*, bos: str = "<s>", eos: str = "</s>", pad: str | None = None, padding_side: str = "right") -> Any:
    """A tokenizer in pure Python (`is_fast` is False), with a BOS in front.

    It has no offsets: `return_offsets_mapping=True` raises NotImplementedError with transformers 4, and is
    silently ignored with transformers 5 (the result has no "offset_mapping").
    """
    return _load(_saved_slow(bos, eos, pad), padding_side)


def is_round_tripped(tokenizer: Any) -> bool:
    """Whether TransformerLens can load this tokenizer again by its name, which it insists on doing."""
    return bool(tokenizer.init_kwargs.get("name_or_path"))


def round_trip(tokenizer: Any) -> Any:
    """A copy of `tokenizer` that has a directory of its own, so that TransformerLens accepts it."""
    return _load(_save(tokenizer), tokenizer.padding_side)


class SlowTokenizer(PreTrainedTokenizer):
    """Bytes, and the words of `CORPUS` (each with a space in front) as whole pieces; greedy from the left."""

    vocab_files_names: ClassVar = {"vocab_file": "vocab.json"}
    model_input_names: ClassVar = ["input_ids", "attention_mask"]

    # TransformerLens re-creates every tokenizer through AutoTokenizer, which does not know this class, unless
    # the tokenizer says that it adds BOS already. The slow LlamaTokenizer says so with this attribute, too.
    add_bos_token = True

    def __init__(self, vocab_file: str, **kwargs: Any):
        self._ids: dict[str, int] = json.loads(Path(vocab_file).read_text(encoding="utf-8"))
        self._pieces = {index: piece for piece, index in self._ids.items()}
        self._longest = max(len(piece) for piece in self._ids)
        kwargs.setdefault("clean_up_tokenization_spaces", False)
        super().__init__(**kwargs)

    @property
    def vocab_size(self) -> int:
        return len(self._ids)

    def get_vocab(self) -> dict[str, int]:
        return dict(self._ids, **self.added_tokens_encoder)

    def _tokenize(self, text: str, **kwargs: Any) -> list[str]:
        symbols = "".join(_byte_symbols()[byte] for byte in text.encode("utf-8"))
        pieces, start = [], 0
        while start < len(symbols):
            length = min(self._longest, len(symbols) - start)
            while length > 1 and symbols[start : start + length] not in self._ids:
                length -= 1
            pieces.append(symbols[start : start + length])
            start += length
        return pieces

    def _convert_token_to_id(self, token: str) -> int:
        return self._ids[token]

    def _convert_id_to_token(self, index: int) -> str:
        return self._pieces[index]

    def convert_tokens_to_string(self, tokens: list[str]) -> str:
        byte_of = {symbol: byte for byte, symbol in _byte_symbols().items()}
        return bytes(byte_of[symbol] for symbol in "".join(tokens)).decode("utf-8", errors="replace")

    def build_inputs_with_special_tokens(
        self, token_ids_0: list[int], token_ids_1: list[int] | None = None
    ) -> list[int]:
        return [self.bos_token_id, *token_ids_0, *(token_ids_1 or [])]

    def get_special_tokens_mask(
        self,
        token_ids_0: list[int],
        token_ids_1: list[int] | None = None,
        already_has_special_tokens: bool = False,
    ) -> list[int]:
        if already_has_special_tokens:
            return [int(index in self.all_special_ids) for index in token_ids_0]
        return [1] + [0] * (len(token_ids_0) + len(token_ids_1 or []))

    def save_vocabulary(self, save_directory: str, filename_prefix: str | None = None) -> tuple[str]:
        path = Path(save_directory) / "vocab.json"
        path.write_text(json.dumps(self._ids, ensure_ascii=False), encoding="utf-8")
        return (str(path),)


@functools.cache
def _byte_symbols() -> dict[int, str]:
    """GPT-2's printable stand-in for each of the 256 bytes."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    others = [byte for byte in range(256) if byte not in printable]
    return {byte: chr(byte) for byte in printable} | {byte: chr(256 + n) for n, byte in enumerate(others)}


@functools.cache
def _root() -> tempfile.TemporaryDirectory[str]:
    """Removed when the interpreter exits."""
    return tempfile.TemporaryDirectory(prefix="tiny-tokenizers-")


def _save(tokenizer: PreTrainedTokenizerBase) -> tuple[type[PreTrainedTokenizerBase] | None, str]:
    directory = tempfile.mkdtemp(dir=_root().name)
    tokenizer.save_pretrained(directory)
    return (None if tokenizer.is_fast else type(tokenizer)), directory


def _load(saved: tuple[type[PreTrainedTokenizerBase] | None, str], padding_side: str) -> Any:
    cls, directory = saved
    return (cls or AutoTokenizer).from_pretrained(directory, padding_side=padding_side)


def _special(**tokens: str | None) -> dict[str, str]:
    return {f"{name}_token": token for name, token in tokens.items() if token is not None}


def _template(tokenizer: Tokenizer, bos: str) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(
        single=f"{bos} $A", pair=f"{bos} $A {bos} $B", special_tokens=[(bos, tokenizer.token_to_id(bos))]
    )


@functools.cache
def _saved_byte_level(
    bos: str | None, eos: str, pad: str | None, add_bos: bool
) -> tuple[type[PreTrainedTokenizerBase] | None, str]:
    special = list(dict.fromkeys(token for token in (eos, bos, pad) if token is not None))
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_LESSONS, trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    if add_bos:
        if bos is None:
            raise ValueError("add_bos needs a bos token")
        tokenizer.post_processor = _template(tokenizer, bos)
    return _save(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            **_special(bos=bos, eos=eos, unk=eos, pad=pad),
        )
    )


@functools.cache
def _saved_sentencepiece_like(
    bos: str, eos: str, pad: str | None, prepend_scheme: str, add_bos: bool
) -> tuple[type[PreTrainedTokenizerBase] | None, str]:
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme="always", split=True)
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY - 260, special_tokens=[], show_progress=False)
    learner.train_from_iterator(_LESSONS, trainer)
    learnt = json.loads(learner.to_str())["model"]

    special = list(dict.fromkeys(token for token in ("<unk>", bos, eos, pad) if token is not None))
    # Characters beyond ASCII are left to the byte fallback, or it would hardly ever be used.
    merges = [tuple(merge.split(" ") if isinstance(merge, str) else merge) for merge in learnt["merges"]]
    known = [piece for piece in sorted(learnt["vocab"], key=learnt["vocab"].get) if _is_plain(piece)]
    pieces = [*special, *(f"<0x{byte:02X}>" for byte in range(256)), *known]
    tokenizer = Tokenizer(
        models.BPE(
            vocab={piece: index for index, piece in enumerate(pieces)},
            merges=[merge for merge in merges if _is_plain("".join(merge))],
            unk_token="<unk>",
            fuse_unk=True,
            byte_fallback=True,
        )
    )
    strip = []
    if prepend_scheme == "never":
        # As Gemma: a plain replacement, no word in front, nothing to strip.
        tokenizer.normalizer = normalizers.Replace(" ", "▁")
    else:
        tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=prepend_scheme, split=False)
        strip = [decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    )
    tokenizer.add_special_tokens(special)
    if add_bos:
        tokenizer.post_processor = _template(tokenizer, bos)
    return _save(
        PreTrainedTokenizerFast(
            tokenizer_object=tokenizer,
            clean_up_tokenization_spaces=False,
            **_special(bos=bos, eos=eos, unk="<unk>", pad=pad),
        )
    )


def _is_plain(piece: str) -> bool:
    return piece.replace("▁", "").isascii()


@functools.cache
def _saved_slow(bos: str, eos: str, pad: str | None) -> tuple[type[PreTrainedTokenizerBase] | None, str]:
    special = list(dict.fromkeys(token for token in ("<unk>", bos, eos, pad) if token is not None))
    words = dict.fromkeys(
        "".join(_byte_symbols()[byte] for byte in f" {word}".encode())
        for sentence in CORPUS
        for word in re.findall("[A-Za-z]+", sentence)
    )
    pieces = [*special, *_byte_symbols().values(), *words]
    vocab_file = Path(tempfile.mkdtemp(dir=_root().name)) / "vocab.json"
    vocab_file.write_text(json.dumps({piece: index for index, piece in enumerate(pieces)}), encoding="utf-8")
    return _save(SlowTokenizer(str(vocab_file), **_special(bos=bos, eos=eos, unk="<unk>", pad=pad)))
