"""``python -m vramcalc``, and the ``vramcalc`` script: what has to happen before anything large is imported."""

import gc
import os


def main() -> None:
    """Run the command.

    It ends within a second: the cycle collector would cost more than it frees, and pydantic would look through every
    installed distribution for plugins.
    """
    gc.disable()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from vramcalc.cli import main as run

    run()


if __name__ == "__main__":
    main()
