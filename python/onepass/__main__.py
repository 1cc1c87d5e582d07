"""`python -m onepass` is `onepass`."""

import sys

from onepass.lab.cli import main

sys.exit(main())
