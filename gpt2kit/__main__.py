"""`python -m gpt2kit` is `gpt2kit`."""

import sys

from gpt2kit.cli import main

if __name__ == "__main__":
    sys.exit(main())
