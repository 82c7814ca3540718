"""``python -m vramcalc``, and the ``vramcalc`` script: what has to happen before anything large is imported."""

import gc
import os
import sys


def main() -> None:
    """Run the command.

    It ends within a second: the cycle collector would cost more than it frees, also when the interpreter goes through
    everything once more at its end, and pydantic would look through every installed distribution for plugins.
    """
    gc.disable()
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    try:
        from vramcalc.cli.main import main as run
    except KeyboardInterrupt:
        sys.exit(130)
    except Exception as err:
        from vramcalc.cli.bugs import end_with

        end_with(err)
    try:
        run()
    finally:
        gc.freeze()


if __name__ == "__main__":
    main()
