"""What is wrong with a drawn figure: texts that run out of it, a legend on its data."""

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.text import Text


def misplaced(figure: Figure) -> set[str]:
    """Texts that reach out of the figure, and its legend where it does or lies on a panel.

    Labels of ticks beyond an axis are never drawn, and do not count.
    """
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    renderer = canvas.get_renderer()
    width, height = canvas.get_width_height()
    ticks = {
        label
        for ax in figure.axes
        for label in [*ax.get_xticklabels(which="both"), *ax.get_yticklabels(which="both")]
    }
    found = set()
    for text in set(figure.findobj(Text)) - ticks:
        if not (
            text.get_visible() and text.get_text().strip() and (text.axes is None or text.axes.get_visible())
        ):
            continue
        box = text.get_window_extent(renderer)
        inside = box.x0 >= -1 and box.y0 >= -1 and box.x1 <= width + 1 and box.y1 <= height + 1
        if box.width > 1 and not inside:
            found.add(text.get_text())
    for legend in figure.legends:
        frame = legend.get_window_extent(renderer)
        if frame.x0 < -1 or frame.x1 > width + 1 or frame.y0 < -1 or frame.y1 > height + 1:
            found.add("legend")
        if any(ax.get_window_extent(renderer).overlaps(frame) for ax in figure.axes):
            found.add("legend on data")
    return found
