//! The tables, and how a database comes to have them.

use super::server::{Session, Trouble};

/// All there have ever been, in order; `parallax.migrations` says which of them a database has seen.
const MIGRATIONS: &[&str] = &["
    CREATE TABLE parallax.scripts (hash text PRIMARY KEY, source text NOT NULL);
    -- Room on each page, so that a run that grows stays on its page and no index hears of it.
    CREATE TABLE parallax.runs (
        tenant text COLLATE \"C\" NOT NULL, id text COLLATE \"C\" NOT NULL, pattern text NOT NULL,
        status text NOT NULL, owner text NOT NULL, len bigint NOT NULL, script_hash text NOT NULL,
        summary text NOT NULL, given bigint, PRIMARY KEY (tenant, id)
    ) WITH (fillfactor = 60);
    CREATE INDEX runs_by_status ON parallax.runs (tenant, status, id);
    CREATE INDEX runs_by_pattern ON parallax.runs (tenant, pattern, id);
    CREATE INDEX runs_alive ON parallax.runs (owner, id) WHERE status IN ('pending', 'running');
    -- Large entries are apart: then the entry in the row is null.
    CREATE TABLE parallax.entries (
        tenant text COLLATE \"C\", run text COLLATE \"C\", position bigint, entry text,
        PRIMARY KEY (tenant, run, position)
    );
    CREATE TABLE parallax.payloads (
        tenant text COLLATE \"C\", run text COLLATE \"C\", position bigint, entry text NOT NULL,
        PRIMARY KEY (tenant, run, position)
    );
    CREATE TABLE parallax.owners (id text PRIMARY KEY, expires_at timestamptz NOT NULL);
"];
/// Of the advisory lock under which one process at a time migrates: any number that is nobody else's.
const LOCK: i64 = 0x7061_7261_6c6c_6178;

/// Brings the tables up to date. A role that may not create a schema can use one that is.
pub(super) async fn migrate(session: &Session) -> Result<(), Trouble> {
    let begin = format!("BEGIN; SELECT pg_advisory_xact_lock({LOCK})");
    session.within(session.client.batch_execute(&begin)).await?;
    let made = "SELECT to_regclass('parallax.migrations') IS NOT NULL";
    if !session.within(session.client.query_one(made, &[])).await?.get::<_, bool>(0) {
        let make = "CREATE SCHEMA IF NOT EXISTS parallax; CREATE TABLE parallax.migrations (
            number bigint PRIMARY KEY, applied_at timestamptz NOT NULL DEFAULT now())";
        session.within(session.client.batch_execute(make)).await?;
    }
    let seen = "SELECT coalesce(max(number), 0) FROM parallax.migrations";
    let seen: i64 = session.within(session.client.query_one(seen, &[])).await?.get(0);
    let Some(unseen) = usize::try_from(seen).ok().and_then(|seen| MIGRATIONS.get(seen..)) else {
        return Err(Trouble::Refused(format!(
            "it was written by a newer Parallax (version {seen} of its tables, this one knows {})",
            MIGRATIONS.len()
        )));
    };
    for (number, migration) in (seen + 1..).zip(unseen) {
        let step = format!("{migration}; INSERT INTO parallax.migrations (number) VALUES ({number})");
        session.within(session.client.batch_execute(&step)).await?;
    }
    session.within(session.client.batch_execute("COMMIT")).await
}
