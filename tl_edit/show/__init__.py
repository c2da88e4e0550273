"""Pictures: labelled arrays in, HTML, views, axes or frames out. Knows no method, and draws nothing by itself.

HTML uses inline styles only and nothing from the network, so that it survives untrusted notebooks and saved pages.
circuitsvis' components (`View`) bring their script along, above a static form. Labels are escaped here and nowhere
else.
"""

from tl_edit.show.components import attention_view, layers_view, log_probs_view, samples_view, tokens_view
from tl_edit.show.figures import plot_heatmaps, plot_lines, plot_points
from tl_edit.show.heatmaps import heatmaps_html
from tl_edit.show.marked import Marked, marked_table
from tl_edit.show.page import page, save_html
from tl_edit.show.tables import frame, frame_of_rows, table
from tl_edit.show.text import visible
from tl_edit.show.view import View, joined

__all__ = [
    "Marked",
    "View",
    "attention_view",
    "frame",
    "frame_of_rows",
    "heatmaps_html",
    "joined",
    "layers_view",
    "log_probs_view",
    "marked_table",
    "page",
    "plot_heatmaps",
    "plot_lines",
    "plot_points",
    "samples_view",
    "save_html",
    "table",
    "tokens_view",
    "visible",
]
