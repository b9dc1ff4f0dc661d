from typing import Final

PATIENCE: Final[float]

def set_patience(seconds: float) -> None: ...
