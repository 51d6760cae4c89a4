"""The page of `stm review`, to check and correct a shot. It needs the packages of `install.py --review`."""
