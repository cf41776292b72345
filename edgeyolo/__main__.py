"""``python -m edgeyolo`` is ``edgeyolo``."""

from edgeyolo.cli import main

if __name__ == "__main__":
    main(prog_name="edgeyolo")
