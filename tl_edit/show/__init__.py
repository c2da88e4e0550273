"""Pictures: labelled arrays in, HTML, views, axes or frames out. Knows no method, and draws nothing by itself.

HTML uses inline styles only and nothing from the network, so that it survives untrusted notebooks and saved pages.
circuitsvis' components (`View`) bring their script along, above a static form. Labels are escaped here and nowhere
else.
"""

from tl_edit.show.components import attention_view, layers_view, log_probs_view, samples_view, tokens_view
from tl_edit.show.curves import plot_bars, plot_lines, plot_losses, plot_panels, plot_points
from tl_edit.show.depth import plot_depth, plot_grid, plot_probabilities
from tl_edit.show.figures import BOTH_WAYS, plot_heatmaps, plot_matrix, several_axes
from tl_edit.show.heatmaps import heatmaps_html
from tl_edit.show.marked import Marked, marked_table
from tl_edit.show.page import page, save_html
from tl_edit.show.tables import frame, frame_of_rows, table
from tl_edit.show.text import ending, spaced, visible
from tl_edit.show.view import View

__all__ = [
    "BOTH_WAYS",
    "Marked",
    "View",
    "attention_view",
    "ending",
    "frame",
    "frame_of_rows",
    "heatmaps_html",
    "layers_view",
    "log_probs_view",
    "marked_table",
    "page",
    "plot_bars",
    "plot_depth",
    "plot_grid",
    "plot_heatmaps",
    "plot_lines",
    "plot_losses",
    "plot_matrix",
    "plot_panels",
    "plot_points",
    "plot_probabilities",
    "samples_view",
    "save_html",
    "several_axes",
    "spaced",
    "table",
    "tokens_view",
    "visible",
]
