"""Model servers as declared services: what a program is told, and the units it runs in."""
