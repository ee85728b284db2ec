"""``python -m resval_lens.analyses`` is ``resval-lens``."""

from resval_lens.analyses.cli.app import main

if __name__ == "__main__":
    main()
