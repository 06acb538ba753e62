"""What one run said to its host and heard from it."""

# Imported by a run that is timed: the standard library and nothing more.
from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path


@dataclass(frozen=True)
class Answer:
    """One remote command as it went over the channel, and what came back after ``seconds``."""

    command: str
    stdout: str
    stderr: str
    status: int
    seconds: float = 0.0


@dataclass
class Transcript:
    """One run: its remote commands in order; times in seconds of this machine's monotonic clock."""

    connecting: float = 0.0
    connected: float = 0.0
    answers: list[Answer] = field(default_factory=list)

    @property
    def asking(self) -> float:
        """Seconds from sending a command to having its answer, all commands together."""
        return sum(answer.seconds for answer in self.answers)

    def write(self, path: Path) -> None:
        """Keep it in a file only its owner may read: it holds what the host said."""
        path.touch(mode=0o600)
        path.write_text(json.dumps(asdict(self)))

    @classmethod
    def read(cls, path: Path) -> Transcript:
        """A transcript that was written."""
        kept = json.loads(path.read_text())
        return cls(**kept | {"answers": [Answer(**answer) for answer in kept["answers"]]})
