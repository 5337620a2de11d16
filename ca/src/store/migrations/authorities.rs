//! The tables of authorities, revocations and revocation lists, in both dialects.

pub(super) const SQLITE: &str = "
    CREATE TABLE authority (
        position    INTEGER PRIMARY KEY AUTOINCREMENT,
        fingerprint TEXT NOT NULL UNIQUE,    -- SHA-256 of the certificate, lower-case hex
        kind        TEXT NOT NULL,           -- root, intermediate
        state       TEXT NOT NULL,           -- prepared, active, old, tainted, revoked
        issuer      TEXT REFERENCES authority (fingerprint), -- NULL: a root
        certificate BLOB NOT NULL,           -- DER
        created_at  INTEGER NOT NULL,
        changed_at  INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE bundle (
        one          INTEGER PRIMARY KEY CHECK (one = 1),
        sequence     INTEGER NOT NULL,       -- changes of the roots
        version      INTEGER NOT NULL,       -- changes that a running server takes up
        refresh_hint INTEGER NOT NULL,       -- seconds
        revocations  INTEGER NOT NULL        -- the number of the newest one
    ) STRICT;
    INSERT INTO bundle (one, sequence, version, refresh_hint, revocations) VALUES (1, 0, 0, 60, 0);
    CREATE TABLE revocation (
        seq        INTEGER PRIMARY KEY,
        serial     TEXT NOT NULL UNIQUE,     -- of the certificate, lower-case hex
        issuer     TEXT NOT NULL REFERENCES authority (fingerprint),
        reason     TEXT NOT NULL,            -- as in RFC 5280
        not_after  INTEGER NOT NULL,
        revoked_at INTEGER NOT NULL,
        hash       BLOB NOT NULL CHECK (length(hash) = 32) -- over this row and the hash before
    ) STRICT;
    CREATE INDEX revocation_by_issuer ON revocation (issuer, not_after);
    CREATE TABLE blocked_id (
        id         TEXT PRIMARY KEY,         -- SPIFFE id
        blocked_at INTEGER NOT NULL
    ) STRICT;
    CREATE TABLE crl (
        issuer      TEXT PRIMARY KEY REFERENCES authority (fingerprint),
        number      INTEGER NOT NULL,
        newest      INTEGER NOT NULL,        -- the newest revocation that it takes account of
        made_at     INTEGER NOT NULL,
        next_update INTEGER NOT NULL,
        der         BLOB NOT NULL
    ) STRICT;
    CREATE INDEX issued_by_end ON issued (not_after);
    CREATE TRIGGER revocation_is_not_changed BEFORE UPDATE ON revocation
        BEGIN SELECT RAISE(ABORT, 'revocations are append-only'); END;
    CREATE TRIGGER revocation_is_not_removed BEFORE DELETE ON revocation
        BEGIN SELECT RAISE(ABORT, 'revocations are append-only'); END;
";

pub(super) const POSTGRES: &str = "
    CREATE TABLE authority (
        position    BIGINT GENERATED ALWAYS AS IDENTITY,
        fingerprint TEXT NOT NULL UNIQUE,    -- SHA-256 of the certificate, lower-case hex
        kind        TEXT NOT NULL,           -- root, intermediate
        state       TEXT NOT NULL,           -- prepared, active, old, tainted, revoked
        issuer      TEXT REFERENCES authority (fingerprint), -- NULL: a root
        certificate BYTEA NOT NULL,           -- DER
        created_at  BIGINT NOT NULL,
        changed_at  BIGINT NOT NULL
    );
    CREATE TABLE bundle (
        one          BIGINT PRIMARY KEY CHECK (one = 1),
        sequence     BIGINT NOT NULL,       -- changes of the roots
        version      BIGINT NOT NULL,       -- changes that a running server takes up
        refresh_hint BIGINT NOT NULL,       -- seconds
        revocations  BIGINT NOT NULL        -- the number of the newest one
    );
    INSERT INTO bundle (one, sequence, version, refresh_hint, revocations) VALUES (1, 0, 0, 60, 0);
    CREATE TABLE revocation (
        seq        BIGINT PRIMARY KEY,
        serial     TEXT NOT NULL UNIQUE,     -- of the certificate, lower-case hex
        issuer     TEXT NOT NULL REFERENCES authority (fingerprint),
        reason     TEXT NOT NULL,            -- as in RFC 5280
        not_after  BIGINT NOT NULL,
        revoked_at BIGINT NOT NULL,
        hash       BYTEA NOT NULL CHECK (octet_length(hash) = 32) -- over this row and the hash before
    );
    CREATE INDEX revocation_by_issuer ON revocation (issuer, not_after);
    CREATE TABLE blocked_id (
        id         TEXT PRIMARY KEY,         -- SPIFFE id
        blocked_at BIGINT NOT NULL
    );
    CREATE TABLE crl (
        issuer      TEXT PRIMARY KEY REFERENCES authority (fingerprint),
        number      BIGINT NOT NULL,
        newest      BIGINT NOT NULL,        -- the newest revocation that it takes account of
        made_at     BIGINT NOT NULL,
        next_update BIGINT NOT NULL,
        der         BYTEA NOT NULL
    );
    CREATE INDEX issued_by_end ON issued (not_after);
    CREATE FUNCTION revocation_is_append_only() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'revocations are append-only'; END $$;
    CREATE TRIGGER revocation_is_append_only BEFORE UPDATE OR DELETE ON revocation
        FOR EACH ROW EXECUTE FUNCTION revocation_is_append_only();
    CREATE TRIGGER revocation_is_not_truncated BEFORE TRUNCATE ON revocation
        FOR EACH STATEMENT EXECUTE FUNCTION revocation_is_append_only();
";
