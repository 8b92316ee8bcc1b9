"""Does the suite notice? `python -m tests.mutants` breaks the product in many small ways.

Each mutant is one replacement in a copy of the tree, in a temporary folder: a check left out, a
step in the wrong order, a clock that is not the database's. The tests named with it must pass on
the original and fail on the mutant. Ends with 0 only if every mutant is caught.

    python -m tests.mutants                  all of them, some minutes
    python -m tests.mutants rescue fsync     those whose names hold one of these words
"""

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

PROJECT = Path(__file__).parent.parent
_COPIED = ("visual_search", "tests", "migrations", "configs", "pyproject.toml")
_TESTS_FAILED = 1


@dataclass(frozen=True, kw_only=True)
class Mutant:
    """A way to break the product.

    Attributes:
        name: What is wrong with it.
        path: Below the project.
        old: What stands there once.
        new: What stands there instead.
        tests: What pytest is told; of these, some must fail.
    """

    name: str
    path: str
    old: str
    new: str
    tests: tuple[str, ...]


_CONDITIONAL = "visual_search/download/conditional.py"
_DUE = "visual_search/claim/due.py"
_LEASES = "visual_search/claim/leases.py"
_SEEDING = "visual_search/claim/seeding.py"
_RECORD = "visual_search/record.py"
_SHARD_WRITER = "visual_search/shard/writer.py"
_SHARD_READING = "visual_search/shard/reading.py"
_FOLDER = "visual_search/storage/folder.py"
_OUTDATED = "visual_search/refresh/outdated.py"
_PASSES = "visual_search/refresh/passes.py"
_RECORDING = "visual_search/refresh/recording.py"
_REMOVAL = "visual_search/catalog/removal.py"
_UPKEEP = "visual_search/upkeep.py"
_RECORDER = "visual_search/pipeline/recorder.py"
_FAILURE_RATE = "visual_search/pipeline/failure_rate.py"
_CONNECTION = "visual_search/database/connection.py"

_TEST_CLAIM = "tests/database/test_claim.py"
_TEST_REFRESH = "tests/database/test_refresh.py"
_TEST_RECORD = "tests/database/test_record.py"
_TEST_UPKEEP = "tests/database/test_upkeep.py"
_TEST_COMPACTION = "tests/database/test_compaction.py"
_TEST_CONTENTION = "tests/faults/test_contention.py"
_TEST_DAMAGE = "tests/faults/test_damage.py"
_TEST_DATABASE_AWAY = "tests/faults/test_database_away.py"
_TEST_DISK = "tests/faults/test_disk.py"
_TEST_GARBAGE = "tests/faults/test_garbage.py"
_TEST_HOPELESS = "tests/faults/test_hopeless.py"
_TEST_LOST_REPLIES = "tests/faults/test_lost_replies.py"
_TEST_POINTS = "tests/faults/test_points.py"
_TEST_RUNS = "tests/faults/test_runs.py"
_TEST_STATE_MACHINE = "tests/faults/test_state_machine.py"
_TEST_ZOMBIES = "tests/faults/test_zombies.py"

MUTANTS = (
    Mutant(
        name="a claim does not lock what it picks",
        path=_DUE,
        old="""
                LIMIT :rows
                FOR UPDATE SKIP LOCKED
""",
        new="""
                LIMIT :rows
""",
        tests=(f"{_TEST_CLAIM}::test_two_open_claims_share_no_image",),
    ),
    Mutant(
        name="a claim takes what is not due",
        path=_DUE,
        old="                  AND next_attempt_at <= statement_timestamp()\n",
        new="",
        tests=(
            f"{_TEST_CLAIM}::test_an_image_is_not_claimed_before_it_is_due",
            _TEST_STATE_MACHINE,
        ),
    ),
    Mutant(
        name="a worker never begins anew",
        path=_DUE,
        old="    if len(images) < rows and begin.due_at is not None:",
        new="    if len(images) < 0:",
        tests=(
            f"{_TEST_CLAIM}::test_a_worker_goes_on_behind_its_last_claim_and_at_the_end_begins_anew",
        ),
    ),
    Mutant(
        name="a removal is not counted",
        path="visual_search/catalog/removal.py",
        old="    add_to_count(connection, -images)\n",
        new="",
        tests=("tests/database/test_catalog_removal.py",),
    ),
    Mutant(
        name="a lease runs by the worker's clock",
        path=_LEASES,
        old="""
            VALUES (:token, :model_key, :run_id,
                    clock_timestamp() + make_interval(secs => :lease_s), :checking)
            ON CONFLICT (lease_token) DO NOTHING
        \"""),
        {""",
        new="""
            VALUES (:token, :model_key, :run_id,
                    to_timestamp(:now) + make_interval(secs => :lease_s), :checking)
            ON CONFLICT (lease_token) DO NOTHING
        \"""),
        {"now": __import__("time").time(), """,
        tests=(f"{_TEST_ZOMBIES}::test_a_worker_with_a_wrong_clock_neither_steals_nor_is_robbed",),
    ),
    Mutant(
        name="a heartbeat renews anybody's lease",
        path=_LEASES,
        old="WHERE run_id = :run_id AND lease_token = ANY(CAST(:tokens AS uuid[]))",
        new="WHERE lease_token = ANY(CAST(:tokens AS uuid[]))",
        tests=(_TEST_CLAIM, _TEST_STATE_MACHINE),
    ),
    Mutant(
        name="a lease that is gone locks nobody out",
        path=_LEASES,
        old="    if held is None:\n",
        new="    if held is None and not token:\n",
        tests=(_TEST_CLAIM, _TEST_STATE_MACHINE),
    ),
    Mutant(
        name="a rescue counts no death",
        path=_LEASES,
        old="THEN now() END,\n                crashes = crashes + 1,\n",
        new="THEN now() END,\n",
        tests=(_TEST_CLAIM, _TEST_STATE_MACHINE),
    ),
    Mutant(
        name="a rescue takes living leases, too",
        path=_LEASES,
        old="WHERE model_key = :model_key AND expires_at < clock_timestamp()\n",
        new="WHERE model_key = :model_key\n",
        tests=(_TEST_CLAIM, _TEST_STATE_MACHINE),
    ),
    Mutant(
        name="a rescue takes the worker's own leases",
        path=_LEASES,
        old="              AND run_id IS DISTINCT FROM CAST(:own_run AS uuid)\n",
        new="              AND CAST(:own_run AS uuid) IS NOT DISTINCT FROM :own_run\n",
        tests=(f"{_TEST_ZOMBIES}::test_whose_heartbeats_are_lost_takes_nothing_from_itself",),
    ),
    Mutant(
        name="a rescue blames workers for the server's absence",
        path=_LEASES,
        old="clock_timestamp() > pg_postmaster_start_time() + make_interval(secs => :lease_s)",
        new="make_interval(secs => :lease_s) IS NOT NULL",
        tests=(
            f"{_TEST_DATABASE_AWAY}::test_an_outage_longer_than_the_leases_costs_nobody_anything",
        ),
    ),
    Mutant(
        name="a commit does not look at the lease's token",
        path=_RECORD,
        old="""
              AND e.lease_token = :token AND e.status = 'claimed'
        \"""),
        {
            "shard_id": shard.shard_id,""",
        new="""
              AND CAST(:token AS uuid) IS NOT NULL
        \"""),
        {
            "shard_id": shard.shard_id,""",
        tests=(f"{_TEST_RECORD}::test_rows_that_are_not_this_leases_stop_the_commit",),
    ),
    Mutant(
        name="two workers check the same vector",
        path=_OUTDATED,
        old="""image_id <= :last
                  AND status = 'done' AND lease_token IS NULL""",
        new="""image_id <= :last
                  AND status = 'done'""",
        tests=(f"{_TEST_REFRESH}::test_nobody_else_claims_what_is_being_checked",),
    ),
    Mutant(
        name="a sweep ends though something was given back behind it",
        path=_OUTDATED,
        old="sweep.start, False, not sweep.fruitful",
        new="sweep.start, False, True",
        tests=(f"{_TEST_REFRESH}::test_what_was_given_back_behind_a_sweep_is_found_by_the_next",),
    ),
    Mutant(
        name="a pass is complete while somebody still checks",
        path=_PASSES,
        old="""SELECT FROM extractions
                WHERE model_key = :model_key""",
        new="""SELECT FROM extractions
                WHERE lease_token IS NULL AND model_key = :model_key""",
        tests=(f"{_TEST_REFRESH}::test_a_pass_is_kept_until_it_is_complete",),
    ),
    Mutant(
        name="shards do not learn that a vector of theirs was replaced",
        path=_RECORDING,
        old="SET removed_rows = s.removed_rows + old.rows",
        new="SET removed_rows = s.removed_rows",
        tests=(f"{_TEST_REFRESH}::test_new_vectors_take_the_place_of_old_ones_in_one_step",),
    ),
    Mutant(
        name="a vector is replaced under a lease that is not held",
        path=_RECORDING,
        old="""                crashes = 0, finished_at = now()
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:positions AS integer[]),
                        CAST(:digests AS bytea[]), CAST(:etags AS text[]),
                        CAST(:modified_s AS bigint[]), CAST(:validators_urls AS bytea[]))
                 AS r (image_id, row_in_shard, content_sha256, etag, modified_s, validators_url)
            WHERE e.model_key = :model_key AND e.image_id = r.image_id
              AND e.lease_token = :token AND e.status = 'done'""",
        new="""                crashes = 0, finished_at = now()
            FROM unnest(CAST(:image_ids AS bigint[]), CAST(:positions AS integer[]),
                        CAST(:digests AS bytea[]), CAST(:etags AS text[]),
                        CAST(:modified_s AS bigint[]), CAST(:validators_urls AS bytea[]))
                 AS r (image_id, row_in_shard, content_sha256, etag, modified_s, validators_url)
            WHERE e.model_key = :model_key AND e.image_id = r.image_id""",
        tests=(
            f"{_TEST_REFRESH}::test_images_of_a_shard_discarded_meanwhile_are_embedded_by_the_next_run",
        ),
    ),
    Mutant(
        name="a removal does not wait for checks",
        path=_REMOVAL,
        old="AND e.lease_token IS NOT NULL",
        new="AND e.status = 'claimed'",
        tests=(f"{_TEST_REFRESH}::test_a_removal_waits_for_checks_under_way",),
    ),
    Mutant(
        name="any URL is asked by what another one said",
        path=_CONDITIONAL,
        old="if known is None or known.url_hash != _hash(url):",
        new="if known is None:",
        tests=("tests/unit/test_conditional.py",),
    ),
    Mutant(
        name="a commit does not count its rows",
        path=_RECORD,
        old="if done + removed != shard.rows:",
        new="if done + removed < 0:",
        tests=(f"{_TEST_RECORD}::test_rows_that_are_not_this_leases_stop_the_commit",),
    ),
    Mutant(
        name="a repeated commit does not look whether the first one counted",
        path=_RECORDER,
        old="""
            if state is ShardState.COMMITTED:
                return
""",
        new="",
        tests=(
            f"{_TEST_LOST_REPLIES}::test_a_shard_counts_once_whether_its_commit_or_only_the_reply_was_lost",
        ),
    ),
    Mutant(
        name="a repeated commit does not wait for the first one",
        path=_RECORD,
        old='text("SELECT state FROM shards WHERE shard_id = :shard_id FOR UPDATE")',
        new='text("SELECT state FROM shards WHERE shard_id = :shard_id")',
        tests=(
            f"{_TEST_LOST_REPLIES}::test_a_shard_counts_once_whether_its_commit_or_only_the_reply_was_lost",
        ),
    ),
    Mutant(
        name="a shard cannot be named twice",
        path=_RECORD,
        old="            ON CONFLICT (shard_id) DO NOTHING\n",
        new="",
        tests=(f"{_TEST_LOST_REPLIES}::test_any_transaction_may_be_repeated",),
    ),
    Mutant(
        name="a failure is charged again when its recording is repeated",
        path=_RECORDER,
        old="if any(record.took_place(connection, earlier) for earlier in tries):",
        new="if not all(record.took_place(connection, earlier) is not None for earlier in tries):",
        tests=(
            f"{_TEST_LOST_REPLIES}::test_a_failure_is_charged_once_even_if_the_image_was_claimed_again_meanwhile",
        ),
    ),
    Mutant(
        name="the end of a run keeps its open shards",
        path=_RECORDER,
        old="""
        for shard in self._shards():
            self._close(shard)
""",
        new="",
        tests=(f"{_TEST_POINTS}::test_what_was_embedded_before_an_error_is_kept",),
    ),
    Mutant(
        name="a shard given up keeps its claims",
        path=_RECORDER,
        old="""
            claim.close_lease(connection, shard.token)

        self._in_database(step)
""",
        new="""
        self._in_database(step)
""",
        tests=(
            f"{_TEST_GARBAGE}::test_a_writer_that_sleeps_through_gc_gives_its_shard_up_and_goes_on",
        ),
    ),
    Mutant(
        name="a shard has its name before it is on the disk",
        path=_SHARD_WRITER,
        old="""
            os.fsync(file.fileno())
            size = file.seek(0, os.SEEK_END)
            digest = sha256_of(file)
            self._new.publish()
""",
        new="""
            size = file.seek(0, os.SEEK_END)
            digest = sha256_of(file)
            descriptor = os.dup(file.fileno())
            self._new.publish()
            os.fsync(descriptor)
            os.close(descriptor)
""",
        tests=(f"{_TEST_DISK}::test_a_shard_is_on_the_disk_before_it_has_its_name",),
    ),
    Mutant(
        name="no fsync of a shard's file",
        path=_SHARD_WRITER,
        old="            os.fsync(file.fileno())\n",
        new="",
        tests=(f"{_TEST_DISK}::test_a_shard_is_on_the_disk_before_it_has_its_name",),
    ),
    Mutant(
        name="no fsync of a shard's folder",
        path=_FOLDER,
        old="        _sync_folder(self._path.parent)\n",
        new="",
        tests=(f"{_TEST_DISK}::test_a_shard_is_on_the_disk_before_it_has_its_name",),
    ),
    Mutant(
        name="verify does not look at the sha256",
        path=_SHARD_READING,
        old="            if digest != record.sha256:\n                return",
        new="            if not digest:\n                return",
        tests=(_TEST_DAMAGE,),
    ),
    Mutant(
        name="gc grants no time",
        path=_UPKEEP,
        old=" if file.modified_at <= youngest]",
        new=" if youngest]",
        tests=(f"{_TEST_UPKEEP}::test_young_files_are_left_alone",),
    ),
    Mutant(
        name="gc takes living writers' files",
        path=_UPKEEP,
        old="        if record.is_being_written(connection, shard_id):\n",
        new="        if not connection:\n",
        tests=(_TEST_STATE_MACHINE,),
    ),
    Mutant(
        name="gc deletes what it has not abandoned",
        path=_UPKEEP,
        old="connection, shard_id, abandon=delete, superseded",
        new="connection, shard_id, abandon=False, superseded",
        tests=(
            f"{_TEST_GARBAGE}::test_a_writer_that_sleeps_through_gc_gives_its_shard_up_and_goes_on",
        ),
    ),
    Mutant(
        name="gc collects in another catalogue's folder",
        path=_UPKEEP,
        old="    check_owner(storage, database.run(record.catalogue_id))\n",
        new="",
        tests=(f"{_TEST_UPKEEP}::test_another_catalogues_folder_is_refused",),
    ),
    Mutant(
        name="gc takes a living merge's file",
        path=_RECORD,
        old="greatest(expires_at, held_until) >",
        new="expires_at >",
        tests=(f"{_TEST_COMPACTION}::test_gc_takes_a_dead_merges_file_and_no_living_ones",),
    ),
    Mutant(
        name="gc deletes what was merged a moment ago",
        path=_UPKEEP,
        old="    if state is ShardState.SUPERSEDED and not _was_superseded(",
        new="    if state is ShardState.WRITING and not _was_superseded(",
        tests=(f"{_TEST_COMPACTION}::test_superseded_files_stay_for_a_while",),
    ),
    Mutant(
        name="a merge does not look whether another has its shards",
        path="visual_search/compaction/table.py",
        old=" or held.merged_into != shard.shard_id:",
        new=":",
        tests=(
            f"{_TEST_COMPACTION}::test_a_dead_merge_keeps_no_shard_from_the_next_and_is_refused_when_it_wakes",
        ),
    ),
    Mutant(
        name="a merge copies what is not as recorded",
        path=_SHARD_READING,
        old="""
            if digest != record.sha256:
                raise _damaged""",
        new="""
            if not digest:
                raise _damaged""",
        tests=(f"{_TEST_COMPACTION}::test_a_damaged_shard_is_named_and_never_copied[vector]",),
    ),
    Mutant(
        name="a stopped worker may hold its locks for ever",
        path=_CONNECTION,
        old="set_config('idle_in_transaction_session_timeout', :idle, true)",
        new="set_config('vsearch.idle', :idle, true)",
        tests=(
            f"{_TEST_POINTS}::test_whatever_happens_there_the_next_run_ends_with_every_image_once[P11-frozen]",
        ),
    ),
    Mutant(
        name="a missing image is asked for again",
        path="visual_search/errors.py",
        old='    NOT_FOUND = "not_found", False\n',
        new='    NOT_FOUND = "not_found", True\n',
        tests=(f"{_TEST_RUNS}::test_tries_and_attempts_are_counted_exactly",),
    ),
    Mutant(
        name="dead links stop a run",
        path=_FAILURE_RATE,
        old="        if failure.reason.retryable:\n",
        new="        if failure.reason:\n",
        tests=(
            f"{_TEST_HOPELESS}::test_a_thousand_dead_links_at_the_head_of_the_queue_hold_nothing_up",
        ),
    ),
    Mutant(
        name="a host's port does not belong to its name",
        path=_FAILURE_RATE,
        old="self._hosts.add(host_of(failure.image.url))",
        new="self._hosts.add(host_of(failure.image.url).partition(':')[0])",
        tests=(
            f"{_TEST_HOPELESS}::test_hosts_that_refuse_everything_stop_the_run_and_condemn_no_image",
        ),
    ),
    Mutant(
        name="whoever comes quantises",
        path="visual_search/pipeline/quantise.py",
        old="if registry.try_quantisation_lock(connection, recipe.name):",
        new="if True:",
        tests=("tests/end_to_end/test_runtimes.py::test_two_workers_at_once_quantise_once",),
    ),
    Mutant(
        name="a damaged artefact is computed with",
        path="visual_search/models/artefacts.py",
        old="if digest != spec.artefact_sha256:",
        new="if not digest:",
        tests=("tests/unit/test_runtimes.py::test_a_damaged_artefact_is_named",),
    ),
    Mutant(
        name="a converted network is believed",
        path="visual_search/embed/embedder.py",
        old="if not _alike(vectors,",
        new="if vectors is None and not _alike(vectors,",
        tests=("tests/unit/test_runtimes.py::test_a_runtime_that_gives_other_vectors_is_not_used",),
    ),
)


def main(words: Sequence[str]) -> int:
    """Try the mutants whose names hold one of `words`, or all; 0 if all were caught."""
    mutants = [m for m in MUTANTS if not words or any(word in m.name for word in words)]
    if not mutants:
        raise SystemExit(f"no mutant's name holds any of {', '.join(words)}")
    with tempfile.TemporaryDirectory(prefix="vsearch-mutants-") as folder:
        tree = Path(folder) / "tree"
        _copy(tree)
        for mutant in mutants:  # before anything is run
            _mutated(tree, mutant)
        tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        code, seconds = _run(tree, tests)
        print(f"{len(tests)} groups of tests on the original: exit {code}, {seconds:.0f} s")
        if code != 0:
            raise SystemExit("the tests must pass on the original first")
        survivors = [mutant for mutant in mutants if not _is_caught(tree, mutant)]
    print(f"{len(mutants) - len(survivors)} of {len(mutants)} mutants caught")
    return int(bool(survivors))


def _is_caught(tree: Path, mutant: Mutant) -> bool:
    path = tree / mutant.path
    original = path.read_text()
    path.write_text(_mutated(tree, mutant))
    try:
        code, seconds = _run(tree, mutant.tests)
    finally:
        path.write_text(original)
    if code not in (0, _TESTS_FAILED):
        raise SystemExit(f"{mutant.name}: pytest ended with {code}, which says nothing")
    caught = code == _TESTS_FAILED
    print(f"{'caught' if caught else 'SURVIVED':8}  {seconds:4.0f} s  {mutant.name}", flush=True)
    return caught


def _mutated(tree: Path, mutant: Mutant) -> str:
    source = (tree / mutant.path).read_text()
    count = source.count(mutant.old)
    if count != 1:
        raise SystemExit(f"{mutant.name}: {mutant.path} has {count} places like {mutant.old!r}")
    return source.replace(mutant.old, mutant.new)


def _copy(tree: Path) -> None:
    tree.mkdir()
    for name in _COPIED:
        source = PROJECT / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(source, tree / name)


def _run(tree: Path, tests: Sequence[str]) -> tuple[int, float]:
    begun = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-x", "-q", "-m", "not long", "-p", "no:cacheprovider",
         "--timeout", "120", *tests],
        cwd=tree,
        # Bytecode of an original must not be taken for a mutant's of the same second and size.
        env=os.environ | {"PYTHONDONTWRITEBYTECODE": "1", "PYTHONPATH": str(tree)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )  # fmt: skip
    if done.returncode not in (0, _TESTS_FAILED):
        print(done.stdout[-3000:])
    return done.returncode, time.monotonic() - begun


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
