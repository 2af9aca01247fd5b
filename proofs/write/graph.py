"""The graph of what rests on what, drawn chapter by chapter."""

import io
from textwrap import fill

import networkx as nx

from proofs.registry import CHAPTERS, chapter_of, load, theorem_ids

# Nodes per row; more would need a page wider than a screen.
PER_ROW = 10
# Of the column of headings, and of the nodes beside it.
LEFT, WIDTH = 3.0, 11.0
_COLOURS = ("#1f6f8b", "#7a5195", "#c0603b", "#2e7d4f", "#8a6d1f", "#4b5d8a", "#9b3d5b")


def edges() -> list[tuple[str, str]]:
    """Pairs (theorem, one that builds on it), in reading order."""
    return [(used, identifier) for identifier in theorem_ids() for used in load(identifier).uses]


def order_of(pairs: list[tuple[str, str]]) -> nx.DiGraph:
    """The graph; `networkx.NetworkXUnfeasible` if theorems rest on each other in a circle.

    Raises:
        networkx.NetworkXUnfeasible: there is a circle.
    """
    graph = nx.DiGraph()
    graph.add_nodes_from(theorem_ids())
    graph.add_edges_from(pairs)
    if not nx.is_directed_acyclic_graph(graph):
        raise nx.NetworkXUnfeasible(f"theorems rest on each other: {nx.find_cycle(graph)}")
    return graph


def draw() -> str:
    """The graph as an SVG element without a header, each node a link to its theorem."""
    import matplotlib as mpl
    from matplotlib.figure import Figure

    graph = order_of(edges())
    chapters = [c for c in CHAPTERS if any(chapter_of(i) == c for i in graph)]
    places: dict[str, tuple[float, float]] = {}
    headings: list[tuple[float, str]] = []
    height = 0.0
    for chapter in chapters:
        members = [i for i in graph if chapter_of(i) == chapter]
        rows = [members[k : k + PER_ROW] for k in range(0, len(members), PER_ROW)]
        headings.append((-height - 0.3 * (len(rows) - 1), CHAPTERS[chapter][0]))
        for row in rows:
            # Spread over the width, so that few arrows run through a node.
            for index, identifier in enumerate(row):
                places[identifier] = (LEFT + (index + 0.5) * WIDTH / len(row), -height)
            height += 0.6
        height += 0.4
    with mpl.rc_context({"svg.hashsalt": "fpcheck", "svg.fonttype": "none"}):
        figure = Figure(figsize=(11, 0.75 * height + 0.3))
        axes = figure.add_axes((0.0, 0.0, 1.0, 1.0))
        axes.set_axis_off()
        axes.set_xlim(0, LEFT + WIDTH)
        axes.set_ylim(0.4 - height, 0.6)
        for source, target in graph.edges:
            axes.annotate(
                "",
                xy=places[target],
                xytext=places[source],
                arrowprops={
                    "arrowstyle": "-|>",
                    "color": "0.55",
                    "lw": 0.8,
                    "shrinkA": 12,
                    "shrinkB": 12,
                    "connectionstyle": "arc3,rad=0.12",
                },
                zorder=1,
            )
        for number, (level, heading) in enumerate(headings, start=1):
            axes.text(0.1, level, fill(f"{number}. {heading}", 24), fontsize=10, va="center", color="0.25", zorder=3)
        for identifier, (x, y) in places.items():
            colour = _COLOURS[chapters.index(chapter_of(identifier)) % len(_COLOURS)]
            text = axes.text(
                x, y, identifier, fontsize=9, ha="center", va="center", color="white", weight="bold", zorder=4,
                bbox={"boxstyle": "round,pad=0.35", "facecolor": colour, "edgecolor": "white"},
            )  # fmt: skip
            text.set_url(f"#{identifier}")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    svg = buffer.getvalue()
    return svg[svg.index("<svg") :]
