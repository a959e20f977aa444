"""The home folder."""

from pathlib import Path

import platformdirs


def default_home() -> Path:
    """Return the user's data folder of this program."""
    return platformdirs.user_data_path("nbtl-search")
