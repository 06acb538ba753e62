"""What an attacker runs: programs of the drill's exploits, each copied to where it attacks from."""
