"""`python -m onepass` is `onepass`."""

import sys

from onepass.cli import main

sys.exit(main())
