"""How torch's threads wait for each other."""

import os


def let_idle_threads_sleep() -> None:
    """Let threads that wait for the next piece of a network's work give their core away.

    Before torch is imported, whose OpenMP reads this once. Unasked, they turn in circles, for
    longer than a decoder needs for an image; and where decoders share the cores, there is always
    one that waits for another that cannot run. Whoever has set the variable is left alone.
    """
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
