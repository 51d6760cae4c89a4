"""What an installation consists of, besides its environment, and what it puts elsewhere on the machine.

Standard library and `stm_plugin.errors` only: `install.py` uses these rooms from the sources, before there is
an environment, and to take away one that no longer works.
"""
