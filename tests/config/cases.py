"""Pairs of a configuration and what is said about it, a file each: input, `----`, findings."""

from pathlib import Path

from extproc.config import load_config
from extproc.errors import ConfigError

FOLDER = Path(__file__).parent / "errors"
SEPARATOR = "----\n"


def findings(text: str, folder: Path) -> str:
    """What loading the text as `homing.yaml` says, "" where it is right.

    Beside the file are `tok`, a tokenizer's folder, and `empty`, a folder without files.
    """
    (folder / "tok").mkdir()
    (folder / "tok" / "tokenizer.json").write_text("{}")
    (folder / "empty").mkdir()
    file = folder / "homing.yaml"
    file.write_text(text)
    try:
        load_config(file)
    except ConfigError as error:
        return str(error).replace(f"{folder}/", "")
    return ""
