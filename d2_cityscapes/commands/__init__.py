"""The command lines, one module each: they parse, call and print."""
