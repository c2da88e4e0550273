"""The house keeps its rules: floors, light imports, no printing, no pickle."""

import ast
import inspect
import subprocess
import sys
from pathlib import Path

import pytest

import tl_edit

PACKAGE = Path(tl_edit.__file__).parent

FLOORS = {
    "counted": -2,
    "extras": -2,
    "sources": -2,
    "show": -1,
    "host": 0,
    "digest": 0,
    "processes": 0,
    "request": 0,
    "settings": 0,
    "attach": 1,
    "stream": 1,
    "archive": 1,
    "identity": 1,
    "tokens": 1,
    "hooks": 1,
    "forward": 2,
    "readout": 3,
    "edit": 3,
    "blocks": 3,
    "moment": 4,
    "arguments": 5,
    "keys": 3,
    "values": 4,
    "prefixes": 3,
    "data": 3,
    "trace": 4,
    "rome": 6,
    "memit": 6,
    "export": 5,
    "evaluate": 7,
    "effects": 8,
    "follow": 8,
    "memory": 8,
    "sweep": 8,
    "factworld": 9,
    "story": 10,
    "reproduce": 10,
    "command": 11,
    "__main__": 12,
    "__init__": 9,
}
"""A file imports only from lower floors (within ``factworld/`` the order is its own)."""


def modules() -> list[Path]:
    return sorted(PACKAGE.rglob("*.py"))


def room(path: Path) -> str:
    parts = path.relative_to(PACKAGE).with_suffix("").parts
    return parts[0]


def imports_of(path: Path) -> set[str]:
    """Rooms of tl_edit that a file imports, at its top or within functions."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "tl_edit":
            parts = (node.module or "").split(".")
            names = [parts[1]] if len(parts) > 1 else [alias.name for alias in node.names]
            found |= {name for name in names if (PACKAGE / f"{name}.py").exists() or (PACKAGE / name).is_dir()}
            if len(parts) == 1 and set(names) - found:
                found.add("__init__")
        elif isinstance(node, ast.Import):
            found |= {"__init__" for alias in node.names if alias.name.split(".")[0] == "tl_edit"}
    return found


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path):
    own = room(path)
    for other in imports_of(path) - {own}:
        assert FLOORS[other] < FLOORS[own], f"{own} (floor {FLOORS[own]}) imports {other} (floor {FLOORS[other]})"


@pytest.mark.parametrize("path", modules(), ids=lambda path: str(path.relative_to(PACKAGE)))
def test_no_print_no_pickle_no_global_state(path):
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
            assert node.func.id != "print", f"print at line {node.lineno}"
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] + [getattr(node, "module", "") or ""]
            assert not {"pickle", "dill", "joblib"} & {name.split(".")[0] for name in names}
        assert not isinstance(node, ast.Global), f"global at line {node.lineno}"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True).stdout.strip()


def test_import_is_light():
    """What torch itself brings does not count; nothing of this list is torch's."""
    heavy = "matplotlib pandas datasets transformers transformer_lens circuitsvis pyarrow sklearn nltk scipy"
    code = (
        "import torch, sys; before = set(sys.modules); import tl_edit; from tl_edit import factworld; "
        f"print(*[m for m in '{heavy}'.split() if m in sys.modules and m not in before])"
    )
    assert run(code) == ""


def test_every_public_name_exists_and_is_documented():
    assert len(tl_edit.__all__) <= 90
    for name in tl_edit.__all__:
        assert getattr(tl_edit, name).__doc__, name


def test_version_is_the_installed_one():
    from importlib import metadata

    try:
        installed = metadata.version("tl-edit")
    except metadata.PackageNotFoundError:
        pytest.skip("tl-edit is not installed, only on the path")
    assert installed == tl_edit.__version__


def test_the_package_is_typed_and_short():
    assert (PACKAGE / "py.typed").exists()
    for path in modules():
        lines = len(path.read_text("utf-8").splitlines())
        assert lines <= 420, f"{path.name} has {lines} lines"


WRONG_TYPES = {
    "rome_edit(model, {'prompt': '{} is in'}, moments)": "type dict",
    "rome_edit(model, request, None)": "type NoneType",
    "rome_edit('gpt2', request, moments)": "found builtins.str",
    "rome_edit(model, [request, request], moments)": "found 2; call it once",
    "rome_edit(model, request, moments, config={'layer': 0})": "type dict",
    "rome_edit(model, request, moments, layer='0')": "layers ['0']",
    "extract_keys_values(model, ['The Eiffel Tower'], [0])": "type str",
    "extract_keys_values(model, request, 0)": "layers 0",
    "extract_keys_values(model, request, [0], prefixes='It was. {}')": "one string",
    "extract_keys_values(model, request, [0], prefixes=['It was. {}', 5])": "prefixes holds 5 of type int",
    "optimize_value(model, 'The Eiffel Tower', 0)": "type str",
    "optimize_value(model, request, 0, prefixes='It was. {}')": "one string",
    "optimize_value(model, request, 0, prefixes=5)": "prefixes is of type int",
    "optimize_values(model, request, 0, site='mlp')": "site is 'mlp'",
    "optimize_values(model, request, 0, site=('value', 5))": "site is ('value', 5)",
    "alpha_update(torch.eye(3), torch.ones(1, 3), torch.ones(1, 4), cache=torch.eye(2))": "cache has the shape [2, 2]",
    "memit_update([[1.0]], torch.ones(1, 1), torch.ones(1, 4), weight=1.0)": "the matrix is of type list",
    "memit_edit(model, moments, request)": "type SecondMoments",
    "optimize_values(model, request, 0, site=5)": "site is 5",
    "optimize_values(model, request, 0, engine='fast')": "engine is 'fast'",
    "optimize_values(model, request, 0, max_rows='5')": "max_rows is '5'",
    "optimize_values(model, request, 0, search={'v_lr': 1})": "search is of type dict",
    "rome_edit(model, request, moments, prefixes='It was. {}')": "one string",
    "rome_edit(model, request, moments, prefixes={'It was. {}': 1})": "prefixes is of type dict",
    "EditRequest('{} is in', 5, 'Rome')": "subject is 5 of type int",
    "EditRecord(request, paraphrase_prompts='The Eiffel Tower is in')": "one string",
    "evaluate(model, request)": "type EditRequest",
    "Evaluation(scores=()).success('specificity')": "no group 'specificity'",
    "ValueSearch(v_lr='0.5')": "v_lr is '0.5'",
    "ValueSearch(v_num_grad_steps=20.0)": "v_num_grad_steps is 20.0",
    "ROMEConfig(seed=None)": "seed is None",
    "ROMEConfig(prefix_lengths=5)": "prefix_lengths is 5",
    "second_moment(model, [torch.zeros(4)], [0])": "a tensor of torch.float32, shape [4]",
    "second_moment(model, [torch.zeros(2, 4).long()], [0])": "shape [2, 4]",
    "second_moment(model, [[3, 4]], [0])": "of type list",
    "second_moment(model, {'a': 'Rome'}, [0])": "type dict",
    "second_moment(model, 5, [0])": "type int",
    "second_moment(model, ['Rome'], [0], max_tokens='9')": "max_tokens is '9'",
    "second_moment(model, ['Rome'], [0], max_length=0.5)": "max_length is 0.5",
    "second_moment(model, ['Rome'], [0], seed=None)": "seed is None",
    "second_moment(model, ['Rome'], [0], count_bos='yes')": "count_bos is 'yes'",
    "second_moment(model, ['Rome'], [0], split_halves=1)": "split_halves is 1",
    "second_moment(model, ['Rome'], [0], ridge='0.1')": "ridge is '0.1'",
    "second_moment(model, ['Rome'], [0], ridge=float('nan'))": "ridge is nan",
    "second_moment(model, ['Rome'], [0], corpus=5)": "corpus is 5",
    "second_moment(model, ['Rome'], [0], checkpoint=5)": "checkpoint is 5",
    "second_moment(model, ['Rome'], [0], checkpoint_seconds=None)": "checkpoint_seconds is None",
    "moments[0].with_ridge(None)": "ridge is None",
    "moments[0].solve(torch.ones(3))": "shape [3]",
    "moments[0].solve([1.0])": "of type list",
    "moments[0].convergence(torch.ones(3))": "shape [3]",
    "moments[0].save('x', dtype='float32')": "dtype is float32",
    "moments[0].to_npz('x')": "of 0 tokens",
    "SecondMoment.from_npz('missing.npz', '17')": "layer is '17'",
    "SecondMoment.from_npz('missing.npz', 17)": "cannot be read",
    "SecondMoment.load('missing')": "cannot be read",
    "SecondMoments.load('missing')": "holds no files",
    "save_html(5, 'text')": "path is 5 of type int",
    "save_html('x.html', 'text', title=None)": "title is None",
    "read_texts(['a', 'b'])": "type list",
    "read_texts('missing.txt')": "no file or folder",
    "read_texts('missing.txt', n_texts='9')": "n_texts is '9'",
    "read_texts('missing.txt', seed='x')": "seed is 'x'",
    "read_records(5)": "source is of type int",
    "read_records('missing.json')": "no file 'missing.json'",
    "read_records('x.json', limit='5')": "limit is '5'",
    "read_records('x.json', limit=True)": "limit is True",
    "read_records('x.json', start=None)": "start is None",
    "read_records('x.json', split=1)": "split is 1",
    "read_records('x.json', columns='object')": "columns is 'object'",
    "read_records('x.json', columns={'object': 1})": "columns is {'object': 1}",
    "read_records('x.json', snippets=5)": "snippets is of type int",
    "read_known_facts(None)": "source is of type NoneType",
    "write_records(5, EditRecord(request))": "path is of type int",
    "write_records('x.jsonl', request)": "type EditRequest",
    "SecondMoment(layer=0, matrix=torch.zeros(3), count=1)": "matrix is of shape [3]; expected a tensor [d_mlp d_mlp]",
    "SecondMoment(layer=0, matrix=torch.zeros(3, 4), count=1)": "matrix is of shape [3, 4]",
    "trace_facts(model, ['a prompt'])": "fact 0 is 'a prompt'",
    "trace_facts(model, [('a prompt', 5)])": "fact 0 is ('a prompt', 5)",
    "trace_facts(model, None)": "found None",
    "trace_facts(model, [('Rome is in', 'Rome'), ('Paris is in', 'Rome')])": "fact 1, ('Paris is in', 'Rome', None): ",
    "trace_facts(model, [('Rome is in', 'Rome')], kinds='mlp')": "kinds ['mlp']",
    "trace_facts(model, [('Rome is in', 'Rome')], layers=0)": "layers is 0",
    "trace_facts(model, [('Rome is in', 'Rome')], measure='logit_diff')": "a second answer for each fact",
    "average_traces(5)": "found 5",
    "average_traces([5])": "found [5]",
    "trace_difference(causal_trace(model, 'Rome is in', 'Rome', n_samples=1), None)": "found None",
    "embedding_std(model, [None])": "found [None]",
    "embedding_std(model, None)": "found None",
    "Noise.multivariate(model, [])": "found []",
    "Noise.gaussian(None)": "multiple is None",
    "Noise.gaussian(True)": "multiple is True",
    "Noise(distribution='cauchy')": "distribution 'cauchy'",
    "causal_trace(model, 'Rome is in', 'Rome', layers=1)": "layers is 1",
    "causal_trace(model, request)": "pass request.prompt, request.subject",
    "causal_trace(model, 'Rome is in')": "the subject is missing",
    "causal_trace(model, 'Rome is in', 'Rome', layers='01')": "layers is '01'",
    "causal_trace(model, 'Rome is in', 'Rome', layers=[True])": "layers [True]",
    "causal_trace(model, 'Rome is in', 'Rome', layers=torch.tensor(1))": "layers is tensor(1)",
    "causal_trace(model, 'Rome is in', 'Rome', positions=3)": "positions is 3",
    "causal_trace(model, 'Rome is in', 'Rome', positions=None)": "positions is None",
    "causal_trace(model, 'Rome is in', 'Rome', kinds=None)": "kinds is None",
    "causal_trace(model, 'Rome is in', 'Rome', kinds=['mlp_out', 'mlp_out'])": "each once",
    "causal_trace(model, 'Rome is in', 'Rome', noise=None)": "noise is None",
    "causal_trace(model, 'Rome is in', 'Rome', noise=[1])": "noise is [1]",
    "causal_trace(model, 'Rome is in', 'Rome', noise_std=torch.ones(2))": "noise_std is tensor",
    "causal_trace(model, 'Rome is in', 'Rome', n_samples=True)": "n_samples is True",
    "causal_trace(model, 'Rome is in', 'Rome', seed=1.0)": "seed is 1.0",
    "causal_trace(model, 'Rome is in', 'Rome', prepend_bos='yes')": "prepend_bos is 'yes'",
    "causal_trace(model, 'Rome is in', 'Rome', noise=Noise(distribution='multivariate', mean=torch.zeros(2), "
    "root=torch.eye(2)))": "a covariance of [2, 2]",
    "causal_trace(model, 'Rome is in', 'Rome', n_samples=2.5)": "n_samples is 2.5",
    "causal_trace(model, 'Rome is in', 'Rome', window='3')": "window is '3'",
    "causal_trace(model, 'Rome is in', 'Rome', kinds='resid_pre')": "kinds ['resid_pre']",
    "causal_trace(model, 'Rome is in', 'Rome', positions='first')": "positions is 'first'",
    "causal_trace(model, 'Rome is in', 'Rome', measure='accuracy')": "measure is 'accuracy'",
    "causal_trace(model, 'Rome is in', 'Rome', engine='fast')": "engine is 'fast'",
    "causal_trace(model, 'Rome is in', 'Rome', noise='3')": "noise is '3'",
    "causal_trace(model, 'Rome is in', 'Rome', answer=5)": "answer is 5",
    "causal_trace(model, request, 'Rome')": "prompt is EditRequest(",
    "second_moment(model, torch.zeros(2, 4).long(), [0])": "one tensor of shape [2, 4]",
    "second_moment(model, None, [0])": "texts is of type NoneType",
    "second_moment(model, {'a text': 1}, [0])": "texts is of type dict",
    "second_moment(model, ['a text'], [0], max_tokens='50')": "max_tokens is '50'",
    "second_moment(model, ['a text'], [0], max_tokens=50.0)": "max_tokens is 50.0",
    "second_moment(model, ['a text'], [0], batch_tokens='50')": "batch_tokens is '50'",
    "tokenize_prompt(model, None, 'x')": "the prompt is None of type NoneType",
    "tokenize_prompt(model, 'x 5', 5)": "the subject is 5 of type int",
    "EditRecord('x')": "request is of type str",
    "EditRecord(request, other_facts=(('The Louvre is in', 5),))": "holds ('The Louvre is in', 5)",
    "EditRecord(request, other_facts=('ab', 'cd'))": "holds 'ab'",
    "EditRecord(request, other_facts='ab')": "other_facts is one string",
    "EditRecord(request, other_facts=None)": "other_facts is of type NoneType",
    "EditRecord(request, paraphrase_prompts=None)": "paraphrase_prompts is of type NoneType",
    "evaluate(model, EditRecord(request), edit='x')": "edit is of type str",
    "evaluate(model, EditRecord(request), batch_size='3')": "batch_size is '3'",
    "evaluate(model, EditRecord(request), generate=True)": "generate is of type bool",
    "Generation(n_tokens='100')": "n_tokens is '100'",
    "Generation(seed=None)": "seed is None",
    "Generation(top_k=True)": "top_k is True",
    "Generation(tfidf='idf.npy')": "tfidf is of type str",
    "generate_texts(model, 5)": "prompts is 5",
    "generate_texts(model, ['Rome', 5])": "prompts is ['Rome', 5]",
    "generate_texts(model, 'Rome', n_tokens=20.0)": "n_tokens is 20.0",
    "generate_texts(model, 'Rome', seed='x')": "seed is 'x'",
    "generate_texts(model, 'Rome', hooks='x')": "hooks is of type str",
    "generate_texts(model, 'Rome', n_tokens=20, engine='fast')": "engine is 'fast'",
    "generate_texts(model, 'Rome', n_tokens=20, prepend_bos=1)": "prepend_bos is 1",
    "generate_texts('gpt2', 'Rome')": "found builtins.str",
    "TfIdf.load(5)": "5 cannot be read",
    "TfIdf.fit(['a text', 5])": "type list that give no words",
    "TfIdf.fit(5)": "texts of type int",
    "evaluate(model, EditRecord(request), hooks='x')": "hooks is of type str",
    "evaluate(model, EditRecord(request), hooks=print)": "hooks is of type builtin_function_or_method",
    "evaluate(model, EditRecord(request), hooks=('blocks.0', print))": "hooks holds 'blocks.0'",
    "evaluate(model, EditRecord(request), edit=own, texts=5)": "texts is of type int",
    "evaluate(model, EditRecord(request), edit=own, texts=['Rome is old', 5])": "texts holds 5",
    "evaluate(model, EditRecord(request), distracted='no')": "distracted is 'no'",
    "evaluate(model, EditRecord(request), edit=own, kl=1)": "kl is 1",
    "evaluate(model, [EditRecord(request)]).success('ES')": "no group 'ES'",
    "evaluate(model, [EditRecord(request)]).kept('efficacy')": "no facts 'efficacy'",
    "evaluate(model, [EditRecord(request)]).to_dataframe('fact')": "by is 'fact'",
    "evaluate(model, [EditRecord(request)]).to_markdown('EA')": "keys is 'EA'",
    "evaluate(model, [EditRecord(request)]).to_latex([5])": "keys is [5]",
    "evaluate(model, [EditRecord(request)]).accuracy('efficacy').interval('0.9')": "level is '0.9'",
    "evaluate(model, [EditRecord(request)]).accuracy('efficacy').interval(n_resamples=1.5)": "n_resamples is 1.5",
    "evaluate(model, [EditRecord(request)]).accuracy('efficacy').interval(seed='0')": "seed is '0'",
    "compare({'a': evaluate(model, [EditRecord(request)])}).test('EA', 'a', 'a', seed=None)": "seed is None",
    "Evaluation.of([evaluate(model, [EditRecord(request)]), 5])": "type int",
    "compare([evaluate(model, EditRecord(request))])": "of type list",
    "compare({'a': 5})": "'a' with something of type int",
    "compare({5: evaluate(model, EditRecord(request))})": "found 5",
    "sweep(model, request, {'none': no_edit})": "type EditRequest",
    "sweep(model, EditRecord(request), [no_edit])": "methods is of type list",
    "sweep(model, EditRecord(request), {'ROME': 'rome'})": "'ROME' with something of type str",
    "sweep(model, EditRecord(request), {5: no_edit})": "methods holds 5",
    "sweep(model, EditRecord(request), {'none': no_edit}, batch='2')": "batch is '2'",
    "sweep(model, EditRecord(request), {'none': no_edit}, folder=5)": "folder is 5",
    "sweep(model, EditRecord(request), {'none': no_edit}, kl='no')": "kl is 'no'",
    "sweep('gpt2', EditRecord(request), {'none': no_edit})": "found builtins.str",
    "random_direction('rome')": "method is of type str",
    "random_direction(no_edit, seed='1')": "seed is '1'",
    "locate_vs_edit(model, request, [0, 1], moments)": "type EditRequest",
    "locate_vs_edit(model, EditRecord(request), 0, moments)": "layers 0",
    "locate_vs_edit(model, EditRecord(request), ['0', '1'], moments)": "layers ['0', '1']",
    "locate_vs_edit(model, EditRecord(request), [0, 1], {})": "moments is of type dict",
    "locate_vs_edit(model, EditRecord(request), [0, 1], editor='rome')": "editor is of type str",
    "locate_vs_edit(model, EditRecord(request), [0, 1], moments, kind='mlp')": "kind is 'mlp'",
    "dose_response(model, 'x', EditRecord(request))": "edit is of type str",
    "dose_response(model, own, request)": "type EditRequest",
    "dose_response('gpt2', own, EditRecord(request))": "found builtins.str",
    "dose_response(model, own, EditRecord(request), 0.5)": "scales is 0.5 of type float",
    "dose_response(model, own, EditRecord(request), '01')": "scales is '01' of type str",
    "dose_response(model, own, EditRecord(request), [0, '1'])": "scales holds '1'",
    "dose_response(model, own, EditRecord(request), [1, True])": "scales holds True",
    "dose_response(model, own, EditRecord(request), texts='Rome')": "texts is one string",
    "dose_response(model, own, EditRecord(request), texts=5)": "texts is of type int",
    "dose_response(model, own, EditRecord(request), texts=['Rome', 5])": "texts holds 5 of type int",
    "dose_response(model, own, EditRecord(request), prepend_bos='no')": "prepend_bos is 'no'",
    "dose_response(model, own, EditRecord(request), batch_size='3')": "batch_size is '3'",
    "interference(model, own, EditRecord(request))": "found 1; expected two edits",
    "interference(model, 'ab', [EditRecord(request)] * 2)": "found 'ab'",
    "interference(model, None, [EditRecord(request)] * 2)": "found None",
    "interference(model, [own, 5], [EditRecord(request)] * 2)": "edits holds something of type int",
    "interference(model, [own, -own], [request] * 2)": "type EditRequest",
    "interference('gpt2', [own, -own], [EditRecord(request)] * 2)": "found builtins.str",
    "interference(model, [own, -own], [EditRecord(request)] * 2, n_orders=2.0)": "n_orders is 2.0",
    "interference(model, [own, -own], [EditRecord(request)] * 2, seed=None)": "seed is None",
    "interference(model, [own, -own], [EditRecord(request)] * 2, prepend_bos=1)": "prepend_bos is 1",
    "interference(model, [own, -own], [EditRecord(request)] * 2, batch_size=True)": "batch_size is True",
    "next_tokens(model, request, 'Rome')": "prompt is EditRequest(",
    "next_tokens(model, 'Rome is in', 5)": "an answer is 5 of type int",
    "next_tokens(model, 'Rome is in', 'Rome', edit='x')": "edit is of type str",
    "next_tokens(model, 'Rome is in', 'Rome', hooks='x')": "hooks is of type str",
    "next_tokens(model, 'Rome is in', 'Rome', top_k='3')": "top_k is '3'",
    "next_tokens(model, 'Rome is in', 'Rome', top_k=True)": "top_k is True",
    "next_tokens(model, 'Rome is in', 'Rome', prepend_bos=1)": "prepend_bos is 1",
    "next_tokens('gpt2', 'Rome is in', 'Rome')": "found builtins.str",
    "logit_lens(model, 'Rome is in', 'Italy')": "answers is 'Italy'",
    "logit_lens(model, 'Rome is in', None)": "answers is None",
    "logit_lens(model, 'Rome is in', ['Italy', 5])": "an answer is 5 of type int",
    "logit_lens(model, 'Rome is in', ['Italy'], subject=5)": "the subject is 5 of type int",
    "logit_lens(model, 5, ['Italy'])": "prompt is 5 of type int",
    "attention_change(model, 'Rome is in', layers=0.0)": "layers is 0.0",
    "attention_change(model, 'Rome is in', layers=True)": "layers is True",
    "attention_change(model, 'Rome is in', layers='01')": "layers is '01'",
    "attention_change(model, 'Rome is in', heads=[True])": "heads is [True]",
    "attention_change(model, 'Rome is in', heads=[0.0])": "heads is [0.0]",
    "attention_change(model, 'Rome is in', hooks=[print]).strongest()": "hooks holds <built-in function print>",
    "attention_change(model, 'Rome is in', edit=own).strongest('3')": "k is '3'",
    "attention_change(model, 'Rome is in').view('change')": "which is 'change'",
    "edit_circuit(model, 'Rome is in', 'Italy', None)": "an answer is None",
    "edit_circuit(model, 'Rome is in', 'Italy', 'France', edit=own, subject=['Rome'])": "the subject is ['Rome']",
    "edit_circuit('gpt2', 'Rome is in', 'Italy', 'France')": "found builtins.str",
    "key_value_memory('gpt2', 0, [0], ['a text'])": "found builtins.str",
    "key_value_memory(model, '0', [0], ['a text'])": "layers '0'",
    "key_value_memory(model, 0.5, [0], ['a text'])": "layers 0.5",
    "key_value_memory(model, True, [0], ['a text'])": "layers True",
    "key_value_memory(model, 0, 5, ['a text'])": "neurons is 5",
    "key_value_memory(model, 0, '01', ['a text'])": "neurons is '01'",
    "key_value_memory(model, 0, [1.0], ['a text'])": "neurons holds 1.0",
    "key_value_memory(model, 0, [True], ['a text'])": "neurons holds True",
    "key_value_memory(model, 0, None, ['a text'], n_neurons='5')": "n_neurons is '5'",
    "key_value_memory(model, 0, [0], None)": "texts is of type NoneType",
    "key_value_memory(model, 0, [0], ['a text', 5])": "is 5 of type int",
    "key_value_memory(model, 0, [0], ['a text'], n_triggers='5')": "n_triggers is '5'",
    "key_value_memory(model, 0, [0], ['a text'], window=2.5)": "window is 2.5",
    "key_value_memory(model, 0, [0], ['a text'], one_per_text=1)": "one_per_text is 1",
    "key_value_memory(model, 0, [0], ['a text'], final_norm='no')": "final_norm is 'no'",
    "key_value_memory(model, 0, [0], ['a text'], seed=None)": "seed is None",
    "key_value_memory(model, 0, [0], ['a text'], prepend_bos='no')": "prepend_bos is 'no'",
    "key_value_memory(model, 0, [0], ['a text'], progress=False).triggers('0')": "no memory '0'",
    "key_value_memory(model, 0, [0], ['a text'], progress=False).triggers(0, layer='0')": "no memory 0 in layer '0'",
    "key_value_memory(model, 0, [0], ['a text'], progress=False).top_tokens(0, '3')": "n is '3'",
    "key_value_memory(model, 0, [0], ['a text'], progress=False).plot(by='neuron')": "by is 'neuron'",
    "key_value_memory(model, 0, [0], ['a text'], progress=False).view(n_triggers=None)": "n_triggers is None",
    "edit_memory(model, 'x', ['a text'])": "edit is of type str",
    "edit_memory('gpt2', own, ['a text'])": "found builtins.str",
    "edit_memory(model, own, ['a text'], allow_mismatch=1)": "allow_mismatch is 1",
    "extract_keys_values(model, request, [0], batch_size='3')": "batch_size '3'",
    "corrupt_subject('ab')": "span is 'ab'",
    "corrupt_subject(slice(1, 3))": "span is slice(1, 3, None)",
    "corrupt_subject(3)": "span is 3",
    "corrupt_subject((1.5, 3))": "span is (1.5, 3)",
    "memit_edit(model, [{'prompt': '{} is in'}], moments, layers=[0])": "type dict",
    "memit_edit(model, request, None, layers=[0])": "type NoneType",
    "memit_edit('gpt2', request, moments, layers=[0])": "found builtins.str",
    "memit_edit(model, request, moments, layers=0)": "layers is 0",
    "memit_edit(model, request, moments, layers=['0'])": "layers is ['0']",
    "memit_edit(model, request, moments, config=ROMEConfig(layer=0))": "type ROMEConfig",
    "memit_edit(model, request, moments, layers=[0], conflicts='both')": "conflicts is 'both'",
    "memit_edit(model, request, moments, layers=[0], prefixes='It was. {}')": "one string",
    "memit_edit(model, request, moments, layers=[0], prefixes=[['It was. {}'], 5])": "prefixes holds ['It was. {}']",
    "memit_edit(model, request, moments, layers=[0], max_rows='3')": "max_rows is '3'",
    "alpha_edit(model, request, moments, layers=[0], cache={})": "cache is of type dict",
    "emmet_edit(model, request, moments, layers=[0], config={})": "type dict",
    "pmet_edit(model, request, moments, layers=[0], prepend_bos='no')": "prepend_bos is 'no'",
    "MEMITConfig(share='0.5')": "share is '0.5'",
    "MEMITConfig(share=0.5, layers=0)": "layers is 0",
    "MEMITConfig(share=0.5, prefix_starts='The')": "prefix_starts is 'The'",
    "MEMITConfig(mom2_update_weight=True)": "mom2_update_weight is True",
    "EMMETConfig(damping=None)": "damping is None",
    "AlphaEditConfig(relative_threshold=1)": "relative_threshold is 1",
    "PMETConfig(prefix_length=1.5)": "prefix_length is 1.5",
    "ROMEConfig(variant='R-ROME')": "variant is 'R-ROME'",
    "memit_update(torch.eye(3), torch.ones(2), torch.ones(1, 4), weight=1.0)": "keys [2]",
    "memit_update(torch.eye(3), torch.ones(1, 3), torch.ones(2, 4), weight=1.0)": "residuals [2, 4]",
    "memit_update(torch.eye(3), torch.ones(1, 3), torch.ones(1, 4), weight='1')": "weight is '1'",
    "memit_update(torch.eye(3), torch.ones(1, 3), torch.ones(1, 4), weight=1.0, form='both')": "form is 'both'",
    "emmet_update(torch.eye(3), torch.ones(1, 3), torch.ones(1, 4), damping=-1.0)": "damping is -1.0",
    "alpha_update(torch.eye(3), torch.ones(1, 2), torch.ones(1, 4))": "keys [1, 2]",
    "generate_prefixes(model, starts='The')": "starts is 'The'",
    "generate_prefixes(model, lengths=5)": "lengths is 5",
    "generate_prefixes(model, lengths=(5.0,))": "lengths is (5.0,)",
    "generate_prefixes(model, seed='x')": "seed is 'x'",
    "generate_prefixes(model, top_k=None)": "top_k is None",
    "rome_update(torch.eye(3), torch.ones(2), torch.ones(4), torch.ones(4))": "factor [3, 3], key [2], value [4]",
    "rome_update(torch.eye(3), torch.ones(3), torch.ones(4), torch.ones(1))": "v_star [1]",
    "rome_update(torch.eye(3), torch.ones(3), torch.ones(4), torch.ones(4), direction_key=torch.ones(1, 3))": "[1, 3]",
    "load_fact_model(interface='Bridge')": "interface is 'Bridge'",
    "Edit.of(model, {0: LowRank(torch.ones(896, 1), torch.ones(2, 192))}, method='x')": "[896, 1] and [2, 192]",
    "Edit.of(model, {'0': LowRank(torch.ones(896, 1), torch.ones(1, 192))}, method='x')": "the layers are ['0']",
    "Edit.of(model, [0], method='x')": "deltas is of type list",
    "Edit.of(model, {0: 1.0}, method='x')": "of layer 0 is of type float",
    "own * '2'": "the scale is '2'",
    "own * None": "the scale is None",
    "own.layers(0)": "0; expected some of [0]",
    "own.layers(['0'])": "['0']; expected some of [0]",
    "own.truncate(1.0)": "rank is 1.0",
    "own.hooks(scale='1')": "the scale is '1'",
    "own.hooks('gpt2')": "found builtins.str",
    "own.apply('gpt2')": "found builtins.str",
    "own.apply(model, allow_mismatch='no')": "allow_mismatch is 'no'",
    "Edit.load(5)": "the path is 5",
    "own.save(None)": "the path is None",
    "applied_edits(5)": "found builtins.int",
    "to_hugging_face(model, 'gpt2')": "hf_model is of type str",
    "to_hugging_face(model, torch.nn.Linear(2, 2), tolerance='1')": "tolerance is '1'",
    "capture({}, 'x', 1.0)(torch.zeros(1, 2, 3))": "positions are 1.0",
}


def test_wrong_types_get_advice_without_shape_checks():
    """In the test run the shape checker speaks first, so this is asked in a process without it."""
    code = f"""
import torch
from tl_edit import *
from tl_edit.evaluate import Generation, TfIdf, generate_texts
from tl_edit.factworld import load_fact_model
from tl_edit.trace import *
from tl_edit.values import *
model, request = load_fact_model(), EditRequest("{{}} is in", "Rome", "Paris")
moments = SecondMoments.identity(model, [0])
own = Edit.of(model, {{0: LowRank(torch.ones(896, 1), torch.ones(1, 192))}}, method="own")
for call in {list(WRONG_TYPES)!r}:
    try:
        eval(call)
        print("no error")
    except ValueError as error:
        print(error)
"""
    for message, (call, words) in zip(run(code).splitlines(), WRONG_TYPES.items(), strict=True):
        assert words in message, call
        assert "expected" in message or "call it once" in message, call


NO_RESULTS = {
    "configurations": {"AlphaEditConfig", "EMMETConfig", "MEMITConfig", "PMETConfig", "ROMEConfig", "ValueSearch"},
    "what is asked for": {"EditRecord", "EditRequest", "Generation", "KnownFact", "Noise"},
    "parts": {"KeyCache", "LowRank", "Malformed", "TfIdf", "View"},
    "an export": {"HuggingFaceExport"},
}
TABLES_ONLY = {"KnownFacts", "Records"}


def test_every_result_shows_itself_and_draws_itself():
    classes = {name for name in tl_edit.__all__ if isinstance(getattr(tl_edit, name), type)}
    others = set().union(*NO_RESULTS.values())
    assert others <= classes
    for name in classes - others:
        kind = getattr(tl_edit, name)
        assert callable(getattr(kind, "_repr_html_", None)), name
        if name not in TABLES_ONLY:
            assert next(iter(inspect.signature(kind.plot).parameters.items()))[0] == "self", name
            assert inspect.signature(kind.plot).parameters["ax"].default is None, name
