"""The programs that can serve engines: a module for each, with its data as `SERVER`.

The name of the module is the key under which an inventory declares engines for it.
"""
