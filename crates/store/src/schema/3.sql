-- Found without reading every document: resources by their name, and what lives in an environment. A query uses an index
-- on an expression only when it spells the expression exactly so.
CREATE INDEX resources_by_name ON resources (kind, substr(key, length(rtrim(key, replace(key, '/', ''))) + 1), key);
CREATE INDEX resources_by_environment ON resources (kind, lower(spec ->> '$.environment'), key)
    WHERE spec ->> '$.environment' IS NOT NULL;
