import pytest

from pruning.errors import InputError
from service.settings import LogLevel, Settings, load_settings


def test_defaults_are_the_safe_ones() -> None:
    settings = load_settings()
    assert (settings.database_url, settings.host, settings.port) == ("sqlite:///lop.db", "127.0.0.1", 8000)
    assert settings.is_loopback


def test_environment_is_read_with_the_prefix_and_overrides_win(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOP_PORT", "9001")
    monkeypatch.setenv("LOP_LOG_LEVEL", "WARNING")
    monkeypatch.setenv("LOP_DATABASE_URL", "postgresql://lop:hunter2@db/lop")
    settings = load_settings(port=9002, host=None)
    assert (settings.port, settings.host, settings.log_level) == (9002, "127.0.0.1", LogLevel.WARNING)
    assert settings.database_url == "postgresql://lop:hunter2@db/lop"
    assert "hunter2" not in repr(settings)


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.168.0.2", "example.org"])
def test_hosts_that_others_can_reach(host: str) -> None:
    assert not load_settings(host=host).is_loopback


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "::1", "localhost"])
def test_loopback_hosts(host: str) -> None:
    assert load_settings(host=host).is_loopback


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ({"port": 70000}, "LOP_PORT"),
        ({"port": -1}, "LOP_PORT"),
        ({"max_request_bytes": 10}, "LOP_MAX_REQUEST_BYTES"),
        ({"max_request_bytes": 2**40}, "LOP_MAX_REQUEST_BYTES"),
        ({"log_level": "loud"}, "LOP_LOG_LEVEL"),
        ({"database_url": "mysql://root@db/lop"}, "LOP_DATABASE_URL"),
        ({"database_url": "sqlite://"}, "LOP_DATABASE_URL"),
        ({"host": ""}, "LOP_HOST"),
        ({"prot": 80}, "LOP_PROT"),
        ({"key_limit": "many"}, "LOP_KEY_LIMIT"),
    ],
)
def test_an_unsafe_value_is_refused_by_name(override: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        load_settings(**override)


def test_a_refused_database_url_does_not_show_its_password() -> None:
    with pytest.raises(InputError) as caught:
        load_settings(database_url="mysql://root:hunter2@db/lop")
    assert "hunter2" not in str(caught.value)
    assert caught.value.__suppress_context__


def test_settings_do_not_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Settings().port = 1  # type: ignore[misc]
