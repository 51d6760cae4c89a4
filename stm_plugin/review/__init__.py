"""A page to look at a shot and correct it: `stm review`. It needs what `install.py --review` installs."""
