-- Executions of jobs: `doc` is written by the controller; what a user asks of one has a column of its own, so that neither
-- overwrites the other. `outcome`: NULL while it runs, 1 succeeded, 0 any other end.
CREATE TABLE executions (
    seq                INTEGER PRIMARY KEY AUTOINCREMENT,
    job_key            TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    name               TEXT NOT NULL,
    cause              TEXT NOT NULL,
    status             TEXT NOT NULL,
    outcome            INTEGER,
    stop_requested_at  TEXT,
    doc                TEXT NOT NULL
);
CREATE UNIQUE INDEX executions_by_name ON executions (job_key, name);
-- One execution per tick, whatever happened in between.
CREATE UNIQUE INDEX executions_by_cause ON executions (job_key, cause);
CREATE INDEX executions_by_outcome ON executions (job_key, outcome, seq);

-- What starts executions remembers per job: the last tick, the last poll. Its content is the autoscaler's own.
CREATE TABLE job_states (
    job_key  TEXT PRIMARY KEY REFERENCES resources (key) ON DELETE CASCADE,
    state    TEXT NOT NULL
) WITHOUT ROWID;
