"""The stage `evaluate`: the scores of a finished run. It reads prepared files and writes one."""
