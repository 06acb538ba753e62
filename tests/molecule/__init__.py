"""Molecule's scenarios: `docs/testing.md` says how they are run."""
