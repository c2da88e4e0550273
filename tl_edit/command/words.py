"""What the library advises to somebody who writes Python, for somebody who writes options."""

import re

SAID: tuple[tuple[str, str], ...] = (
    # Whom an operation's errors are about.
    (r"^read_records: ", "--records: "),
    (r"^read_known_facts: ", "--facts: "),
    (r"^TfIdf\.load: ", "--tfidf: "),
    (r"^Edit\.load: ", "--edit: "),
    (r"^SecondMoments?\.(load|from_npz|save): ", "--moments: "),
    (r"(--(?:texts|perplexity) [^:]*: )read_texts: ", r"\1"),
    # Calls.
    (r"read_records\(['\"]([^'\"]+)['\"]\)", r"--records \1"),
    (r"read_known_facts\(['\"]([^'\"]+)['\"]\)", r"--facts \1"),
    (r"read_texts\(['\"]([^'\"]+)['\"]\)", r"the file \1"),
    (r"read it with read_known_facts(, for trace_facts)?", "give it to --facts of the command trace"),
    (r"read it with read_records", "give it to --records"),
    (r"TfIdf\.fit\(texts\)", "leave --tfidf out"),
    (r"call second_moment\(\.\.\.\) with", "measure again with --texts of"),
    (r"\bmoments?\.with_ridge\(([^)]*)\)", r"--ridge \1"),
    (r"files of the published programs are for SecondMoment.*", "or name another."),
    # Arguments.
    (r"\bprepend_bos=True\b", "--prepend-bos"),
    (r"\bprepend_bos=False\b", "--no-prepend-bos"),
    (r"\bvariant=['\"](\w)-ROME['\"]", r"the method \1-rome"),
    (r"\blayer=(?=\d)", "--layer "),
    (r"\blayer=", "--layer"),
    (r"\blayers=\[(\d+), (\d+)\]", r"--layers \1 \2"),
    (r"\blayers=\[(\d+)\]", r"--layers \1"),
    (r"\blayers=", "--layers"),
    (r"\bn_tokens=(?=\d)", "--generate "),
    (r"\bbatch_size=(?=\d)", "--batch-size "),
    (r"\bfolder=", "--folder"),
    (r"\bsnippets=", "--snippets"),
    (r"\bmax_tokens\b", "--max-tokens"),
    (r", compute the edit on this one, or pass [^;]*allow_mismatch=True[^;]* if this is meant", ", or compute it here"),
    (r"(rename them|rename or leave out) with columns=\{.*", "rename them in the file, or leave them out there."),
)
"""Patterns in the library's messages, where they would mislead, and what stands for them on a command line."""


def as_options(message: str) -> str:
    """The message with the options' names in place of the library's."""
    for pattern, words in SAID:
        message = re.sub(pattern, words, message)
    return message
