"""The configuration of file, environment and flags; errors name the key and the reason."""

from __future__ import annotations

import json
import re
from pathlib import Path

import msgspec
import pytest
from click.testing import CliRunner

from tracer import config
from tracer.cli import main
from tracer.config_maps import Maps
from tracer.errors import RmapdError


def load(tmp_path: Path, text: str) -> config.Config:
    path = tmp_path / "rmapd.toml"
    path.write_text(text)
    return config.load(path)


def test_flags_override_defaults(tmp_path: Path) -> None:
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
        ("listen = 'localhost:²'", "ADDR:PORT"),
        (f"listen = 'localhost:{'9' * 5000}'", "ADDR:PORT"),
        ("fidelity = 'most'", "auto, full, sampled, owner, migration"),
        ("max_entry_age_seconds = -1.0", "max_entry_age_seconds"),
        ("max_entry_age_seconds = nan", "max_entry_age_seconds"),
        ("log_level = 'most'", "'most' is no level(.|\n)*emerg, alert, crit, err, warning, notice"),
        ("log_format = 'xml'", "'xml' is not one of text, json"),
        ("= 3", "rmapd.toml"),
    ],
)
def test_wrong_key_or_value_is_named_in_the_error(tmp_path: Path, text: str, expected: str) -> None:
    with pytest.raises(RmapdError) as raised:
        load(tmp_path, text)
    assert re.search(expected, str(raised.value)), str(raised.value)


def test_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(RmapdError, match="No such file"):
        config.load(tmp_path / "absent.toml")


ROOT = Path(__file__).parent.parent.parent


def test_documentation_has_every_key_with_default_and_meaning() -> None:
    text = (ROOT / "docs/CONFIGURATION.md").read_text()
    for owner in (config.Config(), Maps()):
        for field in msgspec.structs.fields(owner):
            if field.name != "maps":
                default = json.dumps(getattr(owner, field.name))
                line = f"| `{field.name}` | `{default}` | {config.meaning(field)} |"
                assert line in text, line


def test_example_file_is_generated_and_equals_the_defaults(tmp_path: Path) -> None:
    assert (ROOT / "docs/rmapd.toml").read_text() == config.example(), (
        "rmapd check-config --example > docs/rmapd.toml"
    )
    assert load(tmp_path, config.example()) == config.Config()
    set_all = re.sub(r"^#(\w+ = )", r"\1", config.example(), flags=re.MULTILINE)
    assert set_all.count("\n#") < config.example().count("\n#")
    assert load(tmp_path, set_all) == config.Config()


def test_effective_configuration_reads_back_equal(tmp_path: Path) -> None:
    mine = config.load(None, {"RMAPD_REQUIRE": "M1,L2", "RMAPD_MAPS_RING_PAGES": "2"}, strict=True)
    assert load(tmp_path, config.in_force(mine)) == mine


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://tenant:s3cret@host/v1/logs", "https://…@host/v1/logs"),
        ("https://u:p@ss@host:4318/v1/logs", "https://…@host:4318/v1/logs"),
        ("http://host/v1/logs?token=s3cret", "http://host/v1/logs?…"),
        ("http://host:4318/v1/logs", "http://host:4318/v1/logs"),
    ],
)
def test_login_is_not_printed(tmp_path: Path, url: str, shown: str) -> None:
    """`systemctl reload` prints the configuration into the journal."""
    mine = load(tmp_path, f'otlp_endpoint = "{url}"')
    assert mine.otlp_endpoint == url
    assert f'otlp_endpoint = "{shown}"' in config.in_force(mine)


def test_environment_overrides_the_file_and_flags_override_both(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.toml"
    path.write_text(
        "listen = '127.0.0.1:1'\nmax_entry_age_seconds = 1.0\n"
        "[maps]\nledger_rows = 8\nmm_rows = 9\n"
    )
    environ = {
        "RMAPD_LISTEN": "127.0.0.1:2",
        "RMAPD_STRICT": "true",
        "RMAPD_MAX_ENTRY_AGE_SECONDS": "20",
        "RMAPD_MAPS_LEDGER_ROWS": "16",
    }
    found = config.load(
        path, environ | {"RMAPD_REQUIRE": "M1, L2", "RMAPD_DEBUG": "1", "HOME": "/"}, strict=False
    )
    assert (found.listen, found.strict, found.max_entry_age_seconds, found.require) == (
        "127.0.0.1:2",
        False,
        20.0,
        ["M1", "L2"],
    )
    assert (found.maps.ledger_rows, found.maps.mm_rows) == (16, 9)


@pytest.mark.parametrize(
    ("variable", "value", "expected"),
    [
        ("RMAPD_LISTN", "x", "RMAPD_LISTEN"),
        ("RMAPD_MAPS_LEDGER_ROW", "8", "RMAPD_MAPS_LEDGER_ROWS"),
        ("RMAPD_STRICT", "perhaps", "RMAPD_STRICT in the environment is wrong"),
        (
            "RMAPD_MAX_ENTRY_AGE_SECONDS",
            "ten",
            "RMAPD_MAX_ENTRY_AGE_SECONDS in the environment is wrong",
        ),
        ("RMAPD_FIDELITY", "most", "auto, full, sampled, owner, migration"),
    ],
)
def test_wrong_variable_is_named_in_the_error(variable: str, value: str, expected: str) -> None:
    with pytest.raises(RmapdError, match=re.escape(expected)):
        config.load(None, {variable: value})


def test_check_config_prints_the_configuration_or_its_error(tmp_path: Path) -> None:
    path = tmp_path / "rmapd.toml"
    path.write_text("scan_seconds = 7.0\n")
    run = CliRunner().invoke
    good = run(main, ["check-config", "--config", str(path)])
    assert (good.exit_code, "scan_seconds = 7.0" in good.output) == (0, True)
    path.write_text("scan_second = 7.0\n")
    bad = run(main, ["check-config", "--config", str(path)])
    assert bad.exit_code == 2
    assert "scan_seconds" in bad.output
    path.write_text("require = ['M9']\n")
    assert "no invariant M9" in run(main, ["check-config", "--config", str(path)]).output
    assert run(main, ["check-config", "--example"]).output == config.example()
