"""Formulas as MathML: every browser shows it, with no script and no network."""

from docutils import nodes
from latex2mathml.converter import convert
from sphinx.application import Sphinx
from sphinx.writers.html5 import HTML5Translator


def setup(app: Sphinx) -> dict[str, bool]:
    """Tell Sphinx about the renderer."""
    app.add_html_math_renderer("mathml", (_inline, None), (_block, None))
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _inline(translator: HTML5Translator, node: nodes.math) -> None:
    translator.body.append(convert(node.astext()))
    raise nodes.SkipNode


def _block(translator: HTML5Translator, node: nodes.math_block) -> None:
    latex = node.astext().strip()
    if "\\\\" in latex and not latex.startswith("\\begin"):
        latex = f"\\begin{{split}}{latex}\\end{{split}}"
    translator.body.append(f'<div class="math">{convert(latex, display="block")}</div>')
    raise nodes.SkipNode
