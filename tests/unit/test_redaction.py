"""Nothing that is shown or logged holds a password, a token or a line break."""

import pytest

from visual_search.redaction import mask_dsn, printable, redact_url, redact_urls


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://shop.example/a/b.jpg", "https://shop.example/a/b.jpg"),
        ("https://shop.example:8443/b.jpg", "https://shop.example:8443/b.jpg"),
        ("https://me:secret@shop.example/b.jpg", "https://shop.example/b.jpg"),
        ("https://secret@shop.example/b.jpg", "https://shop.example/b.jpg"),
        ("https://cdn.example/b.jpg?sig=secret", "https://cdn.example/b.jpg?…"),
        ("https://cdn.example/b.jpg#secret", "https://cdn.example/b.jpg"),
        ("http://me:secret@[::1]:8080/b.jpg?x=secret", "http://[::1]:8080/b.jpg?…"),
        ("/srv/photos/b.jpg", "/srv/photos/b.jpg"),
    ],
)
def test_url_is_shown_without_credentials_query_and_fragment(url: str, shown: str) -> None:
    assert redact_url(url) == shown


@pytest.mark.parametrize("url", ["http://[secret/b.jpg", "http://h:secret/b.jpg"])
def test_url_that_cannot_be_parsed_is_shown_as_its_scheme(url: str) -> None:
    assert redact_url(url) == "'http': unreadable URL"


def test_text_is_one_printable_line_of_limited_length() -> None:
    assert printable("a\nb\x1b[31m\u202e") == "a\\nb\\x1b[31m\\u202e"
    assert printable("größe 尺寸") == "größe 尺寸"
    assert printable("x" * 10, limit=4) == "xxxx…"
    assert len(redact_url("http://h/" + "x" * 9_000)) <= 301


def test_text_without_a_limit_is_shown_whole() -> None:
    assert printable("x" * 9_000 + "\n", None) == "x" * 9_000 + "\\n"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("no URL here", "no URL here"),
        ("url='https://me:secret@h/a?sig=secret'", "url='https://h/a?…'"),
        ('"HTTPS://h/a?secret" and <http://h/b#secret>', '"https://h/a?…" and <http://h/b>'),
        ("a\n  http://h/?secret\nb", "a\n  http://h/?…\nb"),
        ("postgresql://me:secret@db/shop", "postgresql://db/shop"),
        ("s3://key:secret@bucket/v", "s3://bucket/v"),
        ("http://h:secret/", "'http': unreadable URL"),
    ],
)
def test_urls_inside_a_text_are_shown_like_others(text: str, shown: str) -> None:
    assert redact_urls(text) == shown


@pytest.mark.parametrize(
    ("dsn", "shown"),
    [
        ("postgresql://me:secret@db/shop", "postgresql://me:***@db/shop"),
        ("postgresql://me:secret@db:6432/shop", "postgresql://me:***@db:6432/shop"),
        ("postgresql://me:secret@[::1]:5/shop", "postgresql://me:***@[::1]:5/shop"),
        ("postgresql://me@db/shop", "postgresql://me@db/shop"),
        ("postgresql://db/shop", "postgresql://db/shop"),
        ("postgresql:///shop?host=/run/pg", "postgresql:///shop?host=/run/pg"),
        (
            "postgresql://db/shop?user=me&password=secret&sslmode=require",
            "postgresql://db/shop?user=***&password=***&sslmode=require",
        ),
    ],
)
def test_database_url_is_shown_without_its_password(dsn: str, shown: str) -> None:
    assert mask_dsn(dsn) == shown


@pytest.mark.parametrize("mark", ["/", "?", "#", "@", ":", "%", "&", "=", "12/"])
def test_unescaped_characters_in_a_password_do_not_show_it(mark: str) -> None:
    """SQLAlchemy takes such a URL, so it works, and is shown."""
    shown = mask_dsn(f"postgresql://me:sec{mark}ret@db/shop")
    assert shown == "postgresql://me:***@db/shop"


@pytest.mark.parametrize(
    "dsn",
    [
        "host=db password=secret",
        "me:secret@db/shop",
        "secret",
        "postgresql://db/x?password=secret@y",
        "postgresql://db/shop password=secret",
        "postgresql://db:secret/shop",
        "postgresql://db,other:secret/shop",
    ],
)
def test_what_is_no_url_is_not_shown_at_all(dsn: str) -> None:
    assert mask_dsn(dsn) == "***"
