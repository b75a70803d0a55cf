-- Values of secrets are sealed with AES-256-GCM: `sealed` is nonce, ciphertext and tag, bound to key and name; `key_id` says
-- which key of `secrets.key` opens it. The clear values of schema 1 are moved here by the program.
CREATE TABLE sealed_secrets (
    key     TEXT NOT NULL REFERENCES resources (key) ON DELETE CASCADE,
    name    TEXT NOT NULL,
    key_id  TEXT NOT NULL,
    sealed  BLOB NOT NULL,
    PRIMARY KEY (key, name)
) WITHOUT ROWID;

-- Values of the server itself that nobody may read: the key of tokens.
CREATE TABLE sealed_settings (
    name    TEXT PRIMARY KEY,
    key_id  TEXT NOT NULL,
    sealed  BLOB NOT NULL
) WITHOUT ROWID;
