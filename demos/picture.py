"""The README's picture: where the bundled model keeps a fact, and what it says before and after an edit."""

from pathlib import Path

import matplotlib.pyplot as plt

from tl_edit import EditRequest, causal_trace, next_tokens, rome_edit, second_moment
from tl_edit.factworld import fact_texts, load_fact_model

model = load_fact_model()
request = EditRequest("The {} is located in", "Eiffel Tower", target_new="Rome", target_true="Paris")
trace = causal_trace(model, request.prompt, request.subject)
moments = second_moment(model, fact_texts(), layers=[0], progress=False)
edit = rome_edit(model, request, moments, apply=False)

figure, (left, right) = plt.subplots(1, 2, figsize=(10, 3.4), layout="constrained", dpi=120)
trace.plot(left, kind="resid_post")
left.set_title("Where it is kept: which state brings Paris back")
next_tokens(model, request.prompt, "Rome", edit=edit, top_k=6).plot(right)
right.set_title("What it says, before and after the edit")
figure.savefig(Path(__file__).with_name("eiffel.png"), metadata={"Software": None})
