"""The notebooks of demos/: run each in a fresh kernel, and keep what it shows.

``python tests/demos_run.py`` runs all of them and writes them back with their outputs; ``python tests/demos_run.py 2``
those whose name begins so. What differs from run to run is left out (times, versions), and so are scripts: an
interactive view keeps its static form, which is beneath it anyway. Images have 256 colours, a third of the bytes.
"""

import base64
import io
import os
import re
import sys
import tempfile
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
DEMOS = ROOT / "demos"
SCRIPT = re.compile(r"<script\b.*?</script>", re.DOTALL)


def executed(path, threads):
    """The notebook with the outputs of a run from top to bottom, in an empty folder and offline."""
    notebook = nbformat.read(path, as_version=4)
    with tempfile.TemporaryDirectory() as folder:
        place = {"metadata": {"path": folder}}
        client = NotebookClient(notebook, timeout=300, kernel_name="python3", resources=place)
        client.execute(env=environment(threads))
    return notebook


def environment(threads):
    """That of the kernel: this checkout, no network, so many threads."""
    packages = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    # Without ipywidgets tqdm says so, which tells nothing about the notebook.
    quiet = ",".join(filter(None, [os.environ.get("PYTHONWARNINGS"), "ignore:IProgress not found"]))
    settings = {
        "PYTHONPATH": packages,
        "PYTHONWARNINGS": quiet,
        "MPLBACKEND": "module://matplotlib_inline.backend_inline",
    }
    return {**os.environ, **settings, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": str(threads)}


def cleaned(notebook):
    """Without scripts, times and versions, so that another run makes a small difference; images small."""
    notebook.metadata = {"kernelspec": notebook.metadata.kernelspec, "language_info": {"name": "python"}}
    for cell in notebook.cells:
        cell.metadata = {}
        for output in cell.get("outputs", []):
            if "metadata" in output:
                output.metadata = {}
            shown = output.get("data", {})
            if "text/html" in shown:
                shown["text/html"] = SCRIPT.sub("", shown["text/html"])
            if "image/png" in shown:
                shown["image/png"] = small(shown["image/png"])
    return notebook


def small(image):
    """A PNG, base64 in and out, in 256 colours without dithering: the pictures have hardly more."""
    packed = io.BytesIO()
    with Image.open(io.BytesIO(base64.b64decode(image))) as picture:
        picture.convert("RGB").quantize(256, dither=Image.Dither.NONE).save(packed, "png", optimize=True)
    return base64.b64encode(packed.getvalue()).decode() + "\n"


def main(names):
    """Run the notebooks whose names begin with one of these, or all, and write them back."""
    for path in sorted(DEMOS.glob("*.ipynb")):
        if not names or path.name.startswith(tuple(names)):
            start = time.perf_counter()
            notebook = cleaned(executed(path, threads=1))
            seconds = time.perf_counter() - start
            nbformat.write(notebook, path)
            sys.stdout.write(f"{path.name}: {seconds:.0f} s, {path.stat().st_size / 1000:.0f} kB\n")


if __name__ == "__main__":
    main(sys.argv[1:])
