"""Models by name or folder, whatever the installed TransformerLens can load."""

import os
from pathlib import Path
from typing import Any

import torch

from tl_edit.factworld import MODEL_NAME, load_fact_model
from tl_edit.host import OLDEST_BRIDGE, installed_version

CONFIG = "config.json"
DTYPES = ("float64", "float32", "bfloat16", "float16")


def is_bundled(name: str | None) -> bool:
    """Whether the bundled model is meant."""
    return name in (None, MODEL_NAME)


def load_model(
    name: str | None, *, device: str | None = None, dtype: str | None = None, processing: bool = False
) -> Any:
    """The bundled model, one from a folder, or one by its name in TransformerLens.

    Args:
        name: A name; a folder that ``save_pretrained`` wrote, with the tokenizer; None for the bundled model.
        device: Where to put it; None for what TransformerLens chooses, of several processes each its own GPU.
        dtype: One of `DTYPES`; None for float32.
        processing: Whether a HookedTransformer has layer norms folded and weights centred, which the published programs
            know nothing of.

    Raises:
        ValueError: If it cannot be loaded.
    """
    check_device(device)
    check_model(name)
    place = _place(device)
    weights = getattr(torch, dtype or "float32")
    try:
        if name is None or is_bundled(name):
            return load_fact_model(dtype=weights, device=place)
        if (Path(name).expanduser() / CONFIG).exists():
            return _from_folder(Path(os.path.abspath(Path(name).expanduser())), place, weights)
        return _by_name(name, place, weights, processing)
    except Exception as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        is_folder = name is not None and Path(name).expanduser().is_dir()
        lacking = f"; the folder of that name has no {_lacking(Path(name).expanduser())}" if name and is_folder else ""
        raise ValueError(
            f"--model {name or MODEL_NAME}: TransformerLens could not load it ({type(error).__name__}: "
            f"{reason[:200]}{lacking}); expected the name of a model that is on this machine or can be downloaded, or "
            "a folder with its config.json, weights and tokenizer; check the name and the network, or leave --model "
            "out to use the bundled model."
        ) from error


def check_device(device: str | None) -> None:
    """Refuse a device that this machine, or this PyTorch, does not have.

    Raises:
        ValueError: If numbers cannot be put there and read again.
    """
    if device is None:
        return
    try:
        torch.zeros(1, device=device).item()
    except Exception as error:  # each device fails in its own way
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        there = ["cpu"]
        there += [f"cuda:{i}" for i in range(torch.cuda.device_count())] if torch.cuda.is_available() else []
        there += ["mps"] if torch.backends.mps.is_available() else []
        raise ValueError(
            f"--device {device}: PyTorch cannot use it here ({reason[:120]}); expected one of {', '.join(there)}; "
            "choose one, or leave it out."
        ) from error


def check_model(name: str | None) -> None:
    """Refuse a name that is none, and a folder without a model.

    A folder without config.json is refused only where the name is written as a path: beside the model ``gpt2`` there
    may be a folder ``gpt2`` with results.

    Raises:
        ValueError: saying what the folder lacks.
    """
    if name is None:
        return
    if not name.strip():
        raise ValueError("--model is empty; expected a model's name or folder; leave it out for the bundled model.")
    path = Path(name).expanduser()
    written_as_path = path.is_absolute() or name.startswith(".") or name.endswith(("/", os.sep))
    if written_as_path and not path.is_dir():
        raise ValueError(
            f"--model {name}: there is no such folder; expected one with a model, or the name of a model; check the "
            "path."
        )
    lacking = _lacking(path) if written_as_path or (path / CONFIG).exists() else ""
    if lacking:
        raise ValueError(
            f"--model {name}: the folder has no {lacking}; expected a model as save_pretrained of Hugging Face writes "
            "it, with its tokenizer; save what is missing there, or choose another folder."
        )


def _lacking(path: Path) -> str:
    """What a model's folder lacks, in words; "" if nothing."""
    needed = {
        CONFIG: [path / CONFIG],
        "weights (*.safetensors or *.bin)": [*path.glob("*.safetensors"), *path.glob("*.bin")],
        "tokenizer (tokenizer.json or the like)": [
            *path.glob("tokenizer*"),
            *path.glob("vocab*"),
            *path.glob("*.model"),
        ],
    }
    return " and no ".join(name for name, files in needed.items() if not any(file.exists() for file in files))


def _place(device: str | None) -> str | None:
    """A GPU for each of several processes of a launcher."""
    if device is None and processes_said() > 1 and torch.cuda.is_available():
        return f"cuda:{int(os.environ.get('LOCAL_RANK') or 0) % torch.cuda.device_count()}"
    return device


def _by_name(name: str, device: str | None, dtype: torch.dtype, processing: bool) -> Any:
    try:
        from transformer_lens import HookedTransformer  # pyright: ignore

        hooked: Any = HookedTransformer
    except ImportError:
        from transformer_lens.model_bridge import TransformerBridge

        return TransformerBridge.boot_transformers(name, device=device, dtype=dtype)
    if processing:
        return hooked.from_pretrained(name, device=device, dtype=dtype)
    return hooked.from_pretrained_no_processing(name, device=device, dtype=dtype)


def _from_folder(path: Path, device: str | None, dtype: torch.dtype) -> Any:
    """As a bridge, where there is a good one: HookedTransformer guesses the architecture from words in the path."""
    version = tuple(int(part) for part in installed_version("transformer-lens").split(".")[:2])
    if version >= OLDEST_BRIDGE:
        from transformer_lens.model_bridge import TransformerBridge

        model = TransformerBridge.boot_transformers(path.as_posix(), device=device, dtype=dtype)
    else:
        model = _hooked_from_folder(path, device, dtype)
    # Published settings and numbers are found by the name, and files shall not depend on where the folder is.
    model.cfg.model_name = path.name
    return model


def _hooked_from_folder(path: Path, device: str | None, dtype: torch.dtype) -> Any:
    """`HookedTransformer.from_pretrained` takes names only; what it is made of takes paths."""
    from transformer_lens import HookedTransformer  # pyright: ignore
    from transformer_lens import loading_from_pretrained as loading  # pyright: ignore
    from transformers import AutoTokenizer

    known: Any = loading
    tokenizer: Any = AutoTokenizer
    config = known.get_pretrained_model_config(path.as_posix(), device=device, dtype=dtype, fold_ln=False)
    weights = known.get_pretrained_state_dict(path.as_posix(), config, None, dtype=dtype)
    hooked: Any = HookedTransformer
    model = hooked(config, tokenizer=tokenizer.from_pretrained(path.as_posix()))
    processing = ("fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases")
    model.load_and_process_state_dict(weights, **dict.fromkeys(processing, False))
    return model.eval()


def processes_said() -> int:
    """How many processes a launcher says there are."""
    return int(os.environ.get("WORLD_SIZE") or 1)
