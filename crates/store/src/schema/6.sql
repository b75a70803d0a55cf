-- What sessions of pools took: written with the sessions themselves, kept when they and their pools are gone. `digest`: of the
-- identifier, which is a secret and not in here. Times in milliseconds since 1970.
CREATE TABLE session_use (
    replica       TEXT PRIMARY KEY,
    pool_key      TEXT NOT NULL,
    guid          TEXT NOT NULL,
    generation    TEXT NOT NULL,
    digest        BLOB,
    cpu_milli     INTEGER NOT NULL,
    memory_bytes  INTEGER NOT NULL,
    created_at    INTEGER NOT NULL,
    ready_at      INTEGER,
    allocated_at  INTEGER,
    ended_at      INTEGER,
    reason        TEXT,
    cpu_us        INTEGER NOT NULL DEFAULT 0
) WITHOUT ROWID;
CREATE INDEX session_use_by_pool ON session_use (pool_key, created_at);
CREATE INDEX session_use_by_digest ON session_use (pool_key, digest, allocated_at) WHERE digest IS NOT NULL;
CREATE INDEX session_use_by_end ON session_use (ended_at) WHERE ended_at IS NOT NULL;

-- The same of those that are not kept one by one any more, summed.
CREATE TABLE session_use_sums (
    pool_key       TEXT PRIMARY KEY,
    sessions       INTEGER NOT NULL,
    allocated      INTEGER NOT NULL,
    ready_ms       INTEGER NOT NULL,
    allocated_ms   INTEGER NOT NULL,
    cpu_us         INTEGER NOT NULL,
    core_us        INTEGER NOT NULL,
    memory_kib_ms  INTEGER NOT NULL
) WITHOUT ROWID;
