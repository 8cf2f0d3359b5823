"""Ways to make a frozen language model use a context, one file each, behind one protocol (`protocol`)."""
