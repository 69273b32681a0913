"""`python -m fedsvd.audit`; see `fedsvd.audit.command`."""

import sys

from fedsvd.audit.command import main

if __name__ == "__main__":
    sys.exit(main())
