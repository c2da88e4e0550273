"""The notebooks of demos/ run from top to bottom, and what is kept of their outputs is small, static and up to date."""

import ast
import base64
import inspect
import re

import demos_run
import nbformat
import pytest
import transformer_lens

import tl_edit
from tl_edit.data.published import FILES
from tl_edit.factworld.records import sample_records
from tl_edit.moment.corpora import NAMED

NOTEBOOKS = sorted(demos_run.DEMOS.glob("*.ipynb"))
each_notebook = pytest.mark.parametrize("path", NOTEBOOKS, ids=[path.stem for path in NOTEBOOKS])

MOST_BYTES = 400_000
FETCHED = re.compile(r"https?://|src=[\"']?//|@import|url\(", re.IGNORECASE)


def code_cells(notebook):
    return [cell for cell in notebook.cells if cell.cell_type == "code"]


def shows(cell):
    """Whether the cell prints, or its last line is worth something: then it must have an output."""
    body = ast.parse(cell.source).body
    calls = [node.func for node in ast.walk(ast.Module(body, [])) if isinstance(node, ast.Call)]
    printed = any(isinstance(call, ast.Name) and call.id == "print" for call in calls)
    return printed or (bool(body) and isinstance(body[-1], ast.Expr))


def kinds(cell):
    """What the outputs are, without what they say."""
    found = set()
    for output in cell.outputs:
        found |= set(output.data) if "data" in output else {output.get("name", output.output_type)}
    return found - {"stderr"}


@each_notebook
def test_it_runs_and_shows_what_is_kept(path):
    kept = code_cells(nbformat.read(path, as_version=4))
    cells = code_cells(demos_run.executed(path, threads=1))
    for before, now in zip(kept, cells, strict=True):
        assert not any(output.output_type == "error" for output in now.outputs)
        assert bool(now.outputs) >= shows(now), now.source
        assert kinds(before) == kinds(now), now.source


@each_notebook
def test_what_is_kept_is_static_and_small(path):
    notebook = nbformat.read(path, as_version=4)
    nbformat.validate(notebook)
    assert path.stat().st_size <= MOST_BYTES
    assert set(notebook.metadata) == {"kernelspec", "language_info"}
    counts = [cell.execution_count for cell in code_cells(notebook)]
    assert counts == list(range(1, len(counts) + 1))
    for cell in notebook.cells:
        assert not cell.metadata
        outputs = cell.get("outputs", [])
        assert all(output.get("name") != "stderr" and output.output_type != "error" for output in outputs), cell.source
        for data in (output.data for output in outputs if "data" in output):
            html = data.get("text/html", "")
            assert "<script" not in html.lower()
            assert not FETCHED.search(html)
            if "image/png" in data:
                assert base64.b64decode(data["image/png"]).startswith(b"\x89PNG")


def test_they_are_numbered_say_how_to_change_the_model_and_end_with_a_check():
    assert [path.name[:2] for path in NOTEBOOKS] == ["1_", "2_", "3_", "4_"]
    for path in NOTEBOOKS:
        notebook = nbformat.read(path, as_version=4)
        assert notebook.cells[0].cell_type == "markdown"
        assert sum(cell.source.startswith("# --- GPT-2 XL ---") for cell in code_cells(notebook)) == 1
        assert "\nassert " in notebook.cells[-1].source


@each_notebook
def test_the_cell_that_changes_the_model(path, monkeypatch, fact_model, world):
    """It is never run as it stands, so: with the bundled model for GPT-2 XL's, and calls that are checked."""
    cells = [cell.source for cell in code_cells(nbformat.read(path, as_version=4))]
    (at,) = (i for i, source in enumerate(cells) if source.startswith("# --- GPT-2 XL ---"))
    code = "\n".join(line.removeprefix("#").removeprefix(" ") for line in cells[at].splitlines()[1:])
    loaded = []

    class Loader:
        @staticmethod
        def from_pretrained_no_processing(name, *, default_prepend_bos):
            loaded.append((name, default_prepend_bos))
            return fact_model

    def reader(name, known, found):
        real = inspect.signature(getattr(tl_edit, name))

        def read(*given, **others):
            source = real.bind(*given, **others).arguments["source"]
            assert source in known
            return found

        monkeypatch.setattr(tl_edit, name, read)

    # Version 4 has none, and says so where one asks.
    monkeypatch.setitem(vars(transformer_lens), "HookedTransformer", Loader)
    reader("read_records", FILES, sample_records(world[:40], world, 3, seed=0))
    reader("read_known_facts", FILES, [(fact.trained_templates[0], fact.subject, fact.object) for fact in world[:3]])
    reader("read_texts", NAMED, ["A text.", "Another."])
    names = {}
    exec(compile(code, path.name, "exec"), names)
    assert loaded == [("gpt2-xl", False)]
    assigned = {name for name, value in names.items() if not name.startswith("__") and not callable(value)} | {"model"}
    before = {
        node.id
        for node in ast.walk(ast.parse("\n".join(cells[:at])))
        if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)
    }
    assert assigned - {"HookedTransformer", "beyond"} <= before, "it only changes what the cells above have set"


def test_only_the_script_of_a_view_is_left_out():
    html = '<div data-tl-edit="1"><b>static</b></div><script>run("<\\u002fscript")\n</script><p>'
    output = nbformat.v4.new_output("display_data", {"text/html": html}, metadata={"x": 1})
    cell = nbformat.v4.new_code_cell("x", outputs=[output], metadata={"execution": {"time": "1"}})
    kernelspec = {"name": "python3", "display_name": "Python 3"}
    notebook = nbformat.v4.new_notebook(cells=[cell], metadata={"kernelspec": kernelspec, "y": 1})
    [cleaned] = demos_run.cleaned(notebook).cells
    assert cleaned.outputs[0].data["text/html"] == '<div data-tl-edit="1"><b>static</b></div><p>'
    assert not cleaned.metadata
    assert not cleaned.outputs[0].metadata
