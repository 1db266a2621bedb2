"""Bad configuration gets a clear error: which key, why, what to try."""

from __future__ import annotations

from pathlib import Path

import pytest

from tracer import config
from tracer.errors import RmapdError


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "rmapd.toml"
    path.write_text(text)
    return config.load(path)


def test_defaults_and_overrides(tmp_path: Path) -> None:
    assert config.load(None) == config.Config()
    loaded = config.load(None, listen="127.0.0.1:1", fidelity=None)
    assert (loaded.address, loaded.fidelity) == (("127.0.0.1", 1), "auto")
    assert load(tmp_path, "[maps]\nledger_rows = 8\n").maps.sizes()["LEDGER_ROWS"] == 8
    assert config.load(None, listen="[::1]:9").address == ("::1", 9)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("fidelty = 'full'", "fidelity"),
        ("[maps]\nledger_row = 1", "ledger_rows"),
        ("strict = 'yes'", r"Expected `bool`, got `str` - at `\$.strict`"),
        ("[maps]\nledger_rows = 'many'", r"at `\$.maps.ledger_rows`"),
        ("[maps]\nring_pages = 3", "power of two"),
        ("[maps]\nledger_rows = 0", "maps.ledger_rows"),
        ("listen = '9743'", "ADDR:PORT"),
        ("listen = 'localhost:99999'", "ADDR:PORT"),
        ("fidelity = 'most'", "auto, full, owner, migration"),
        ("welcome_seconds = -1.0", "welcome_seconds"),
        ("welcome_seconds = nan", "welcome_seconds"),
        ("= 3", "rmapd.toml"),
    ],
)
def test_what_is_wrong_is_named(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RmapdError) as raised:
        load(tmp_path, text)
    import re

    assert re.search(expected, str(raised.value)), str(raised.value)


def test_no_such_file(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="No such file"):
        config.load(tmp_path / "absent.toml")


def test_the_documentation_names_every_key_with_its_default() -> None:
    text = (Path(__file__).parent.parent.parent / "docs/CONFIGURATION.md").read_text()
    for owner in (config.Config(), config.Maps()):
        for name in owner.__struct_fields__:
            if name != "maps":
                value = getattr(owner, name)
                shown = f'"{value}"' if isinstance(value, str) else str(value).lower()
                assert f"| `{name}` | `{shown}` |" in text, f"{name} = {shown}"
