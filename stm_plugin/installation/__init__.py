"""Installing: the private environment, and the files elsewhere on the machine.

These modules import the standard library and `stm_plugin.errors` only: `install.py` runs them from the
sources, before there is an environment, and to remove a broken one.
"""
