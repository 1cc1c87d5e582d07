"""Every picture leads to itself at full size, for a reader whose screen shows it small."""

from docutils import nodes
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
            image.replace_self(link)
            link += image
