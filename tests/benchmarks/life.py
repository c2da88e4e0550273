"""What applying and undoing edits takes on one ``W_out`` of GPT-2 XL's size: ``python tests/benchmarks/life.py``.

Six edits of rank one, float32, random weights, one thread. Seconds of CPU time, and bytes of a file.
"""

import contextlib
import io
import sys
import tempfile
import time
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).parents[1]))

import tiny_models

from tl_edit import Edit, LowRank, applied_edits, undo_edits

D_MLP, D_MODEL = 6400, 1600


def model():
    """One layer, with whichever interface there is."""
    options = {"n_layers": 1, "d_model": D_MODEL, "d_mlp": D_MLP, "n_ctx": 32, "d_head": 64, "n_heads": 25}
    options |= {"d_vocab": 100, "act_fn": "gelu_new"}
    if tiny_models.HOOKED_TRANSFORMER in tiny_models.interfaces():
        from transformer_lens import HookedTransformer, HookedTransformerConfig

        return HookedTransformer(HookedTransformerConfig(**options, device="cpu"))
    from transformer_lens.config import TransformerBridgeConfig
    from transformer_lens.model_bridge import TransformerBridge

    return TransformerBridge.boot_native(TransformerBridgeConfig(**options, normalization_type="LN"), device="cpu")


def main():
    """Print a line for each operation."""
    torch.set_num_threads(1)
    torch.manual_seed(0)
    edited = model()

    def timed(name, action):
        start = time.process_time()
        result = action()
        print(f"{name:40} {time.process_time() - start:6.3f}")
        return result

    def made():
        change = LowRank(0.01 * torch.randn(D_MLP, 1).double(), 0.01 * torch.randn(1, D_MODEL).double())
        return Edit.of(edited, {0: change}, method="random", prepend_bos=False)

    edits = [timed("computing an edit's base (hashes)", made), *(made() for _ in range(5))]
    for i, edit in enumerate(edits):
        timed(f"apply, with {i} on the layer", lambda edit=edit: edit.apply(edited))
    timed("applied_edits", lambda: applied_edits(edited))
    timed("undo, with 5 that stay", lambda: edits[0].undo(edited))
    timed("undo_edits", lambda: undo_edits(edited))
    edits[0].apply(edited)
    with contextlib.redirect_stdout(io.StringIO()):
        edited.to(torch.bfloat16)
    timed("applied_edits after a cast", lambda: applied_edits(edited))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "edit"
        timed("save", lambda: edits[0].save(path))
        timed("load", lambda: Edit.load(path))
        print(f"{'bytes of the file':40} {path.stat().st_size:6}")


if __name__ == "__main__":
    main()
