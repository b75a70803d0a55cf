-- Sessions of pools: `doc` is written by the controller. A row is there before its replica is made and until nothing is left
-- of it. `is_ended`: its identifier is free again.
CREATE TABLE sessions (
    replica     TEXT PRIMARY KEY,
    pool_key    TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    identifier  TEXT,
    is_ended    INTEGER NOT NULL,
    doc         TEXT NOT NULL
) WITHOUT ROWID;
-- An identifier has one session, whatever happened in between.
CREATE UNIQUE INDEX sessions_by_identifier ON sessions (pool_key, identifier) WHERE identifier IS NOT NULL AND is_ended = 0;
CREATE INDEX sessions_by_pool ON sessions (pool_key);
