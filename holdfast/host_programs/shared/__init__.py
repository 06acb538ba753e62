"""Code that several host programs share. No file in here is copied to a host.

`holdfast.shipping.text_of` replaces the import of a module in here with its text. So a program on a
host is one file, and root imports only Python's own library. Module and program share one
namespace: no name may be defined in both.
"""
