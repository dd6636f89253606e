"""The program of a warm worker's sandbox, by its path: Python 3.13 and later would show the text of
one that is given by `-c` in place of every line that an app makes and runs itself."""

import os
import sys

__all__: list[str] = []

if __name__ == "__main__":
    sys.path[0] = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    from pairio_warm.inside import main  # type: ignore[import-not-found]

    main()
