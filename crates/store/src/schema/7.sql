-- Snapshots of sessions that are kept by themselves: templates with a name, and suspended sessions with an identifier. A row is
-- there only while its files are, which are in the folder of snapshots. Others belong to the sessions that began with them.
CREATE TABLE session_snapshots (
    id          TEXT PRIMARY KEY,
    pool_key    TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    name        TEXT,
    identifier  TEXT,
    doc         TEXT NOT NULL
) WITHOUT ROWID;
CREATE UNIQUE INDEX session_snapshots_by_name ON session_snapshots (pool_key, name) WHERE name IS NOT NULL;
CREATE UNIQUE INDEX session_snapshots_by_identifier ON session_snapshots (pool_key, identifier) WHERE identifier IS NOT NULL;
