"""A fact's story, on a terminal and as a page: what a model says, where it keeps it, the edit, the check, the undo."""

from tl_edit.story.answers import as_object, top_answers
from tl_edit.story.page import save_before_and_after, save_story
from tl_edit.story.terminal import Story, Told

__all__ = ["Story", "Told", "as_object", "save_before_and_after", "save_story", "top_answers"]
