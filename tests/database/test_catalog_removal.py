"""Removals: what goes, what stays, and that the numbers add up whatever workers do meanwhile."""

from collections.abc import Iterator, Sequence

import pytest
from sqlalchemy import Connection, text

from tests.catalogue import add_images, make_model, statuses
from tests.database.test_catalog_import import (
    Scans,
    another,
    blocked,
    import_rows,
    select,
    source,
    stored,
    urls,
)
from tests.database.test_claim import open_lease, take
from tests.database.test_record import Worker
from visual_search import claim, record, status
from visual_search.catalog import (
    Columns,
    Removed,
    Source,
    preview_removal,
    removal,
    remove_images,
)
from visual_search.catalog.chunk import collect
from visual_search.catalog.rows import BadRow, BadRows
from visual_search.database.connection import Database
from visual_search.errors import FailureReason
from visual_search.status import ModelStatus

BY_KEY = Columns(url=None, image_key="photo")
H = "http://h.test/{}.jpg"


@pytest.fixture(autouse=True)
def count_of_images(database: Database) -> Iterator[None]:
    """Whatever a test does, the number that `status` tells stays right."""
    yield
    counted = "SELECT images, (SELECT count(*) FROM images) FROM catalogue"
    ((told, there),) = select(database, counted)
    assert told == there


def remove(database: Database, *names: object, by_key: bool = False) -> Removed:
    return remove_images(database, named(names, by_key=by_key))


def named(names: Sequence[object], *, by_key: bool = False) -> Source:
    column = "photo" if by_key else "image_url"
    return source((column,), [(name,) for name in names], BY_KEY if by_key else None)


def chunk_of(*names: str) -> removal._Names:
    (chunk,) = removal._chunks(named(names), BadRows())
    return chunk


def urls_of(start: int, stop: int) -> list[str]:
    return [H.format(n) for n in range(start, stop)]


def keys(database: Database) -> set[str]:
    return {row[0] for row in select(database, "SELECT image_key FROM images")}


def the_status(database: Database) -> ModelStatus:
    (found,) = status.model_statuses(database)
    assert found.total == found.done + found.pending + found.claimed + found.failed
    return found


def close(connection: Connection, worker: Worker) -> None:
    """As the recorder closes a shard: its state, its lease, its rows."""
    record.shard_state(connection, worker.shard_id)
    claim.lock_lease(connection, worker.token)
    record.commit_shard(
        connection,
        token=worker.token,
        model_key=worker.model_key,
        shard=worker.written(len(worker.images)),
        rows=worker.rows(len(worker.images)),
    )
    claim.close_lease(connection, worker.token)


def test_an_image_goes_with_its_product_and_history(database: Database) -> None:
    import_rows(database, ("image_url", "title"), [(H.format(n), "x") for n in range(3)])
    model_key = make_model(database)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
    assert remove(database, H.format(1)) == Removed(rows=1, images=1, products=1)
    assert keys(database) == {H.format(0), H.format(2)}
    assert select(database, "SELECT count(*) FROM products") == [(2,)]
    assert select(database, "SELECT count(*) FROM product_images") == [(2,)]
    assert statuses(database, model_key) == {"pending": 2}


def test_removing_again_removes_nothing(database: Database) -> None:
    import_rows(database, ("image_url",), urls(0, 3))
    assert remove(database, H.format(1), H.format(2)).images == 2
    assert remove(database, H.format(1), H.format(2)) == Removed(rows=2, unknown=2)


def test_a_product_stays_while_it_has_an_image(database: Database) -> None:
    rows = [
        ("coat", "front", H.format(1)),
        ("coat", "back", H.format(2)),
        ("set", "front", H.format(1)),
        ("hat", "hat", H.format(3)),
    ]
    columns = Columns(product_id="sku", image_key="photo")
    import_rows(database, ("sku", "photo", "image_url"), rows, columns)
    assert remove(database, "front", "hat", by_key=True) == Removed(rows=2, images=2, products=2)
    assert select(database, "SELECT product_id FROM products") == [("coat",)]
    assert select(database, "SELECT product_id FROM product_images") == [("coat",)]


def test_a_url_names_the_images_that_have_it_now(database: Database) -> None:
    columns = Columns(image_key="photo")
    names = ("photo", "image_url")
    rows = [("a", H.format("old")), ("b", H.format("shared")), ("c", H.format("shared"))]
    import_rows(database, names, rows, columns)
    import_rows(database, names, [("a", H.format("new"))], columns)
    assert remove(database, H.format("old")) == Removed(rows=1, unknown=1)
    assert remove(database, H.format("new")).images == 1
    assert remove(database, H.format("shared")).images == 2
    assert keys(database) == set()


def test_a_url_names_the_image_it_was_imported_as(database: Database) -> None:
    import_rows(database, ("image_url",), urls(0, 2))
    with database.transaction() as connection:
        connection.execute(text("UPDATE images SET url = 'http://moved.test/' || image_id"))
    assert remove(database, H.format(0)).images == 1


def test_keys_are_not_taken_for_urls(database: Database) -> None:
    columns = Columns(image_key="photo")
    import_rows(database, ("photo", "image_url"), [(7, H.format(7)), (8, H.format(8))], columns)
    assert remove(database, H.format(7), by_key=True) == Removed(rows=1, unknown=1)
    assert remove(database, 7, by_key=True).images == 1
    assert keys(database) == {"8"}


def test_bad_and_repeated_names_do_no_harm(database: Database) -> None:
    import_rows(database, ("image_url",), urls(0, 2))
    found = remove(database, "", H.format(0), "ftp://h.test", H.format(0), H.format("'); --"))
    assert (found.rows, found.images, found.unknown, found.bad) == (3, 1, 1, 2)
    assert found.bad_rows == (
        BadRow(line=1, reason="the URL is empty"),
        BadRow(line=3, reason="the URL does not begin with http:// or https://"),
    )


def test_progress_is_told_after_each_chunk(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(removal, "_MAX_NAMES", 2)
    import_rows(database, ("image_url",), urls(0, 5))
    told: list[int] = []
    found = remove_images(
        database, named(urls_of(0, 5)), on_progress=lambda rows, _bad: told.append(rows)
    )
    assert told == [2, 4, 5]
    assert found.images == found.products == 5


def test_a_preview_says_what_a_removal_does_and_changes_nothing(
    database: Database, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a product's images are named in more than one chunk, and a name twice."""
    monkeypatch.setattr(removal, "_MAX_NAMES", 2)
    columns = Columns(product_id="sku")
    rows = [("p", H.format(n)) for n in range(3)] + [("q", H.format(2)), ("r", H.format(3))]
    import_rows(database, ("sku", "image_url"), rows, columns)
    worker = Worker(database, 0)
    with database.transaction() as connection:
        claim.seed_images(connection, worker.model_key)
        worker.images = take(connection, worker.model_key, worker.token)
        close(connection, worker)
    names = [H.format(0), "", H.format(1), H.format(9), H.format(2)]
    foreseen = preview_removal(database, named(names))
    assert keys(database) == set(urls_of(0, 4))
    assert the_status(database).done == 4
    done = remove_images(database, named(names))
    assert foreseen == done
    assert (done.images, done.products, done.vectors, done.unknown) == (3, 2, 3, 1)
    again = preview_removal(database, named([H.format(3), H.format(3), H.format(3)]))
    assert again.images == 1


def test_all_models_forget_an_image_in_every_state(database: Database) -> None:
    first, second = make_model(database, "first"), make_model(database, "second")
    add_images(database, 5)
    with database.transaction() as connection:
        claim.seed_images(connection, first)
        connection.execute(
            text("""
                UPDATE extractions SET status = 'failed', failure_reason = 'gone'
                WHERE image_id = 1;
                UPDATE extractions SET status = 'claimed', lease_token = gen_random_uuid()
                WHERE image_id = 2
            """)
        )
        claim.seed_images(connection, second)
    assert remove(database, *urls_of(0, 3)).images == 3
    assert statuses(database, first) == statuses(database, second) == {"pending": 2}


def test_images_that_were_not_seeded_yet_never_are(database: Database) -> None:
    model_key = make_model(database)
    import_rows(database, ("image_url",), urls(0, 3))
    remove(database, H.format(1))
    with database.transaction() as connection:
        assert claim.seed_images(connection, model_key) == 2


def test_a_removed_image_that_comes_back_is_a_new_one(database: Database) -> None:
    worker = Worker(database, 2)
    worker.commit(2)
    remove(database, H.format(0))
    import_rows(database, ("image_url",), urls(0, 1))
    with database.transaction() as connection:
        assert claim.seed_images(connection, worker.model_key) == 1
    found = the_status(database)
    assert (found.total, found.done, found.pending) == (2, 1, 1)


def test_rows_of_written_shards_are_counted_as_removed(database: Database) -> None:
    worker = Worker(database, 4)
    worker.commit(4)
    assert remove(database, H.format(0), H.format(3)).vectors == 2
    found = the_status(database)
    assert (found.total, found.done, found.pending) == (2, 2, 0)
    assert remove(database, *urls_of(0, 4)).vectors == 2
    assert select(database, "SELECT rows, removed_rows FROM shards") == [(4, 4)]
    found = the_status(database)
    assert (found.total, found.done) == (0, 0)


def test_a_shard_counts_images_removed_while_it_was_written(database: Database) -> None:
    worker = Worker(database, 4)
    assert remove(database, H.format(1)) == Removed(rows=1, images=1)
    found = the_status(database)
    assert (found.total, found.claimed) == (3, 3)
    worker.commit(4)
    found = the_status(database)
    assert (found.total, found.done, found.claimed) == (3, 3, 0)
    assert remove(database, H.format(0)).vectors == 1
    assert select(database, "SELECT rows, removed_rows FROM shards") == [(4, 2)]


def test_a_failure_of_a_removed_image_is_not_recorded(database: Database) -> None:
    worker = Worker(database, 2)
    remove(database, H.format(0))
    assert worker.fail(FailureReason.NOT_FOUND) == 0
    assert statuses(database, worker.model_key) == {"claimed": 1}


def test_a_removal_waits_for_a_commit_before_it_touches_a_row(
    database: Database, database_url: str
) -> None:
    """Or each would hold rows that the other wants."""
    worker = Worker(database, 4)
    with another(database_url) as other:
        with database.transaction() as committing:
            record.shard_state(committing, worker.shard_id)
            claim.lock_lease(committing, worker.token)
            removing = blocked(database_url, lambda: remove(other, H.format(0), H.format(1)))
            close(committing, worker)
        found = removing.result(30)
    assert (found.images, found.vectors) == (2, 2)
    assert select(database, "SELECT rows, removed_rows FROM shards") == [(4, 2)]
    assert (the_status(database).total, the_status(database).done) == (2, 2)


def test_a_removal_waits_for_a_repair_before_it_touches_a_row(
    database: Database, database_url: str
) -> None:
    worker = Worker(database, 3)
    worker.commit(3)
    with another(database_url) as other:
        with database.transaction() as repairing:
            record.shard_state(repairing, worker.shard_id)
            removing = blocked(database_url, lambda: remove(other, H.format(0)))
            assert record.discard_shard(repairing, worker.shard_id) == 3
        assert removing.result(30) == Removed(rows=1, images=1)
    found = the_status(database)
    assert (found.total, found.pending, found.done) == (2, 2, 0)


def test_an_image_that_gets_another_url_meanwhile_stays(
    database: Database, database_url: str
) -> None:
    columns = Columns(image_key="photo")
    import_rows(database, ("photo", "image_url"), [("a", H.format("old"))], columns)
    with another(database_url) as other:
        with database.transaction() as importing:
            (collected,) = collect(
                source(("photo", "image_url"), [("a", H.format("new"))], columns).blocks,
                lambda _bad: None,
            )
            stored(importing, collected.chunk())
            removing = blocked(database_url, lambda: remove(other, H.format("old")))
        assert removing.result(30) == Removed(rows=1, unknown=1)
    assert keys(database) == {"a"}


def test_a_commit_waits_for_the_removal_of_its_images(
    database: Database, database_url: str
) -> None:
    worker = Worker(database, 4)
    names = chunk_of(H.format(0), H.format(1))

    def commit(other: Database) -> None:
        with other.transaction() as connection:
            close(connection, worker)

    with another(database_url) as other:
        with database.transaction() as removing:
            assert removal._remove(removing, names).images == 2
            committing = blocked(database_url, lambda: commit(other))
        committing.result(30)
    assert select(database, "SELECT rows, removed_rows FROM shards") == [(4, 2)]
    assert (the_status(database).total, the_status(database).done) == (2, 2)


def test_a_removal_of_what_is_being_claimed_waits_and_takes_the_claims_too(
    database: Database, database_url: str
) -> None:
    model_key = make_model(database)
    add_images(database, 3)
    with database.transaction() as connection:
        claim.seed_images(connection, model_key)
    with another(database_url) as other:
        with database.transaction() as claiming:
            token = open_lease(claiming, model_key)
            assert len(take(claiming, model_key, token)) == 3
            removing = blocked(database_url, lambda: remove(other, H.format(0)))
        assert removing.result(30).images == 1
    assert statuses(database, model_key) == {"claimed": 2}


def test_an_import_waits_for_a_removal(database: Database, database_url: str) -> None:
    import_rows(database, ("image_url",), urls(0, 3))
    names = chunk_of(H.format(0))
    with another(database_url) as other:
        with database.transaction() as removing:
            removal._remove(removing, names)
            importing = blocked(
                database_url, lambda: import_rows(other, ("image_url",), urls(0, 2))
            )
        assert importing.result(30).new == 1
    assert keys(database) == set(urls_of(0, 3))


def test_a_discarded_shard_gives_back_only_what_is_left(database: Database) -> None:
    worker = Worker(database, 3)
    worker.commit(3)
    remove(database, H.format(0))
    with database.transaction() as connection:
        assert record.discard_shard(connection, worker.shard_id) == 2
    found = the_status(database)
    assert (found.total, found.pending, found.done) == (2, 2, 0)


def test_a_small_removal_does_not_read_a_large_history(database: Database) -> None:
    """One pass over the images, to find those that have the URL now, and that without locks."""
    worker = Worker(database, 20_000)
    worker.commit(20_000)
    names = chunk_of(*urls_of(0, 500))
    with database.transaction() as connection:
        scans = Scans(connection)
        assert removal._remove(connection, names).vectors == 500
        assert scans.rows("extractions") == 0
        assert scans.rows("product") == 0
        assert scans.rows("images") == 20_000
