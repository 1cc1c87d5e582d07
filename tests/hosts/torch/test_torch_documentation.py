"""What the pages and docstrings show."""


def test_documentation(check_documentation):
    check_documentation("torch")
