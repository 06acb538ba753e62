"""Model servers as declared services: a program's configuration, and the units it runs in."""
