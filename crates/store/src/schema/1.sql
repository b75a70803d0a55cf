-- Times are RFC 3339 text in UTC; documents are JSON text. `key` is the resource id in lower case.
CREATE TABLE resources (
    key          TEXT PRIMARY KEY,
    id           TEXT NOT NULL,
    kind         TEXT NOT NULL,          -- lower case, 'microsoft.app/containerapps'; groups: 'resourcegroups'
    doc          TEXT NOT NULL,          -- what the user gave, canonical, without secret values
    spec         TEXT,                   -- the same as a model value, for resources that are reconciled
    generation   INTEGER NOT NULL,
    etag         TEXT NOT NULL,
    state        TEXT NOT NULL,          -- Provisioning
    error        TEXT,                   -- Failure, when state is Failed
    created_at   TEXT NOT NULL,
    updated_at   TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX resources_by_kind ON resources (kind, key);

CREATE TABLE secrets (
    key    TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    name   TEXT NOT NULL,
    value  TEXT NOT NULL,
    PRIMARY KEY (key, name)
) WITHOUT ROWID;

CREATE TABLE revisions (
    app_key   TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    name      TEXT NOT NULL,
    number    INTEGER NOT NULL,
    revision  TEXT NOT NULL,
    doc       TEXT NOT NULL,
    status    TEXT NOT NULL,
    PRIMARY KEY (app_key, name)
) WITHOUT ROWID;

CREATE TABLE operations (
    id            TEXT PRIMARY KEY,
    resource_key  TEXT NOT NULL,
    resource_id   TEXT NOT NULL,
    kind          TEXT NOT NULL,
    generation    INTEGER NOT NULL,
    status        TEXT NOT NULL,
    error         TEXT,
    started_at    TEXT NOT NULL,
    ended_at      TEXT
) WITHOUT ROWID;
CREATE INDEX operations_open ON operations (resource_key) WHERE ended_at IS NULL;

-- What was last seen of replicas; a copy for the API, the driver is the truth.
CREATE TABLE replicas (
    app_key      TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    revision     TEXT NOT NULL,
    name         TEXT NOT NULL,
    observation  TEXT NOT NULL,
    PRIMARY KEY (app_key, revision, name)
) WITHOUT ROWID;

-- The autoscaler's memory per revision.
CREATE TABLE counts (
    app_key   TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    revision  TEXT NOT NULL,
    state     TEXT NOT NULL,
    PRIMARY KEY (app_key, revision)
) WITHOUT ROWID;

-- Executed plans: what was done for an app and why; the newest 100 per app are kept.
CREATE TABLE plans (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    app_key     TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    at          TEXT NOT NULL,
    generation  INTEGER NOT NULL,
    actions     TEXT NOT NULL
);
CREATE INDEX plans_by_app ON plans (app_key, seq);

CREATE TABLE settings (
    name   TEXT PRIMARY KEY,
    value  TEXT NOT NULL
) WITHOUT ROWID;
