"""Every picture leads to itself at full size, for a reader whose screen shows it small.

The style sheet lets wide ones scroll there, by their class.
"""

from pathlib import Path

from docutils import nodes
from PIL import Image
from sphinx.application import Sphinx
from sphinx.util.osutil import relative_uri


def setup(app: Sphinx) -> dict[str, bool]:
    """Connect the hook."""
    app.connect("doctree-resolved", _link)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _link(app: Sphinx, doctree: nodes.document, page: str) -> None:
    """Link the pictures that have no `:target:` of their own."""
    folder = relative_uri(app.builder.get_target_uri(page), app.builder.imagedir)
    for image in list(doctree.findall(nodes.image)):
        found = app.env.images.get(image["uri"])
        if found and not isinstance(image.parent, nodes.reference):
            _, name = found  # under which the builder copies it
            link = nodes.reference("", "", refuri=f"{folder}/{name}", internal=True)
            link["classes"] += _shape(Path(app.srcdir, image["uri"]))
            image.replace_self(link)
            link += image


def _shape(picture: Path) -> list[str]:
    """Return the class of a picture whose words are too small where it is as wide as a phone."""
    if picture.suffix == ".svg":
        return []
    with Image.open(picture) as opened:
        width, height = opened.size
    if width > 2.2 * height:
        return ["wide", "panorama"]
    return ["wide"] if width > 1.3 * height else []
