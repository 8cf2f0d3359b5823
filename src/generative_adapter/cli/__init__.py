"""The command `genadapter`: one thin file per command, and `main.py` that puts them together."""
