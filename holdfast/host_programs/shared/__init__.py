"""Code that several host programs need. No file in here is placed on a host.

`holdfast.shipping.text_of` puts the text of a module in here in place of the import of it, so that
a program on a host is one file, and root imports nothing but Python's own library. Module and
program then share one namespace: no name may be defined in both.
"""
