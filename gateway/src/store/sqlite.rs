//! SQLite: the store of an installation that is one process. One file, its write-ahead log beside it.
//!
//! A commit is on the disk before it is acknowledged (`synchronous = FULL`). One connection writes,
//! so writers queue up here rather than collide in SQLite; a few others read.

use super::{StoreError, sql};
use sqlx::migrate::MigrateError;
use sqlx::sqlite::{
    SqliteConnectOptions, SqliteJournalMode, SqlitePool, SqlitePoolOptions, SqliteSynchronous,
};
use sqlx::{ConnectOptions, Connection};
use std::fs::{self, OpenOptions};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::Path;
use std::time::Duration;

pub struct SqliteStore {
    writer: SqlitePool,
    reader: SqlitePool,
}

impl SqliteStore {
    /// Opens the file, creating it and its directory if absent. Refuses a file that is damaged, that
    /// belongs to another program or that a newer version wrote.
    pub async fn open(file: &Path) -> Result<SqliteStore, StoreError> {
        create_private(file)?;
        // Looks first without changing a byte; turning the write-ahead log on would.
        let plain =
            SqliteConnectOptions::new().filename(file).busy_timeout(BUSY_TIMEOUT).disable_statement_logging();
        check_owner(file, &plain).await?;
        let options = plain.journal_mode(SqliteJournalMode::Wal).synchronous(SqliteSynchronous::Full);
        let pool = |connections| {
            SqlitePoolOptions::new()
                .max_connections(connections)
                .acquire_timeout(BUSY_TIMEOUT)
                // On a full disk SQLite rolls back by itself; sqlx's own rollback then fails, and it
                // would take the connection to be inside a transaction for ever.
                .before_acquire(|connection, _| Box::pin(async { Ok(!connection.is_in_transaction()) }))
        };
        let writer = pool(1).connect_with(options.clone()).await.map_err(|error| unusable(file, &error))?;
        sqlx::query(SET_APPLICATION_ID).execute(&writer).await.map_err(|error| unusable(file, &error))?;
        migrate(file, &writer).await?;
        let reader = pool(READERS)
            .connect_with(options.read_only(true))
            .await
            .map_err(|error| unusable(file, &error))?;
        Ok(SqliteStore { writer, reader })
    }
}

sql::implement_store!(SqliteStore, shared: false, begin: "BEGIN IMMEDIATE", error: unavailable);

const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/sqlite/0001_incidents.sql"),
    include_str!("../../migrations/sqlite/0002_audit_version.sql"),
    include_str!("../../migrations/sqlite/0003_profiles.sql"),
    include_str!("../../migrations/sqlite/0004_signals.sql"),
];

/// "GaiW" in the file's header: <https://www.sqlite.org/fileformat2.html#application_id>
const APPLICATION_ID: i64 = 0x4761_6957;
/// A pragma takes no parameter.
const SET_APPLICATION_ID: &str = "PRAGMA application_id = 0x47616957";
/// How long one statement waits for the file: another process may be reading or backing it up.
const BUSY_TIMEOUT: Duration = Duration::from_secs(5);
const READERS: u32 = 3;
/// Files up to this size are checked as a whole when opened; a bigger one would delay the start.
const CHECK_BYTES_MAX: u64 = 64 * 1024 * 1024;

/// SQLite creates files readable by everybody; ours exists before SQLite opens it. The log and the
/// shared-memory file inherit its mode.
fn create_private(file: &Path) -> Result<(), StoreError> {
    let cannot = |what: &str, error: std::io::Error| {
        StoreError::Unusable(format!("cannot {what} {}: {error}; check `data` and its owner", file.display()))
    };
    if let Some(directory) = file.parent().filter(|directory| !directory.as_os_str().is_empty()) {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(directory)
            .map_err(|error| cannot("create the directory of", error))?;
    }
    let opened = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(file)
        .map_err(|error| cannot("open", error))?;
    let mode = opened.metadata().map_err(|error| cannot("read", error))?.permissions().mode();
    if mode & 0o077 != 0 {
        tracing::warn!(file = %file.display(), "the store was open to other users of this machine; closed it");
        opened
            .set_permissions(fs::Permissions::from_mode(0o600))
            .map_err(|error| cannot("restrict the mode of", error))?;
    }
    Ok(())
}

/// Refuses a file of another program, and one that is damaged.
async fn check_owner(file: &Path, options: &SqliteConnectOptions) -> Result<(), StoreError> {
    let failed = |error: sqlx::Error| unusable(file, &error);
    let mut connection = options.connect().await.map_err(failed)?;
    let owner: i64 =
        sqlx::query_scalar("PRAGMA application_id").fetch_one(&mut connection).await.map_err(failed)?;
    let tables: i64 = sqlx::query_scalar("SELECT COUNT(*) FROM sqlite_master")
        .fetch_one(&mut connection)
        .await
        .map_err(failed)?;
    if owner != APPLICATION_ID && (owner != 0 || tables != 0) {
        return Err(StoreError::Unusable(format!(
            "{} belongs to another program; name another `data` directory",
            file.display()
        )));
    }
    if fs::metadata(file).map_or(0, |metadata| metadata.len()) <= CHECK_BYTES_MAX {
        let verdict: String =
            sqlx::query_scalar("PRAGMA quick_check(1)").fetch_one(&mut connection).await.map_err(failed)?;
        if verdict != "ok" {
            return Err(damaged(file, &verdict));
        }
    }
    connection.close().await.map_err(failed)
}

async fn migrate(file: &Path, writer: &SqlitePool) -> Result<(), StoreError> {
    sql::migrator(MIGRATIONS).run(writer).await.map_err(|error| match error {
        MigrateError::VersionMissing(version) => StoreError::Unusable(format!(
            "{} was written by a newer version of Gaitway (schema {version}); run that version, or restore a backup",
            file.display()
        )),
        MigrateError::Execute(error) | MigrateError::ExecuteMigration(error, _) => unusable(file, &error),
        other => StoreError::Unusable(format!("cannot update the tables in {}: {other}", file.display())),
    })
}

fn unusable(file: &Path, error: &sqlx::Error) -> StoreError {
    match primary_code(error) {
        Some(SQLITE_CORRUPT | SQLITE_NOTADB) => damaged(file, &error.to_string()),
        Some(SQLITE_FULL) => {
            StoreError::Unusable(format!("cannot write {}: the disk is full", file.display()))
        }
        _ => StoreError::Unusable(format!("cannot use {}: {error}", file.display())),
    }
}

fn damaged(file: &Path, detail: &str) -> StoreError {
    StoreError::Unusable(format!(
        "{} is damaged or not a database ({detail}); move it away together with its -wal and -shm files, \
         and restore a backup or start with an empty store",
        file.display()
    ))
}

fn unavailable(error: sqlx::Error) -> StoreError {
    match primary_code(&error) {
        Some(SQLITE_FULL) => StoreError::Unavailable("the disk is full".into()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}

const SQLITE_CORRUPT: i32 = 11;
const SQLITE_FULL: i32 = 13;
const SQLITE_NOTADB: i32 = 26;

/// SQLite's primary result code; sqlx gives the extended one, which has it in its low byte.
fn primary_code(error: &sqlx::Error) -> Option<i32> {
    let code: i32 = error.as_database_error()?.code()?.parse().ok()?;
    Some(code & 0xff)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::{Step, Store};
    use gaitway_models::Timestamp;
    use gaitway_policies::engine::{Action, Mode};
    use gaitway_policies::facts::Facts;
    use gaitway_policies::{Identity, Incident, SessionId};

    #[tokio::test]
    async fn a_full_disk_is_unavailability_and_heals() {
        let directory = tempfile::tempdir().unwrap();
        let store = SqliteStore::open(&directory.path().join("store.sqlite")).await.unwrap();
        let pages: i64 = sqlx::query_scalar("PRAGMA page_count").fetch_one(&store.writer).await.unwrap();
        // SQLite's own limit gives the error that a full disk gives: SQLITE_FULL.
        let limit = |pages: i64| sqlx::AssertSqlSafe(format!("PRAGMA max_page_count = {pages}"));
        sqlx::query(limit(pages + 2)).execute(&store.writer).await.unwrap();
        let mut recorded = 0;
        let error = loop {
            match store.record(&incident(recorded), &[Step::pending("mail", Timestamp(0))]).await {
                Ok(()) => recorded += 1,
                Err(error) => break error,
            }
            assert!(recorded < 1_000, "the limit never bit");
        };
        assert!(matches!(&error, StoreError::Unavailable(why) if why == "the disk is full"), "{error}");
        assert_eq!(store.due(Timestamp(1), 2_000).await.unwrap().len(), recorded, "no half of an incident");
        sqlx::query(limit(pages + 1_000)).execute(&store.writer).await.unwrap();
        store.record(&incident(recorded), &[]).await.unwrap();
    }

    fn incident(number: usize) -> Incident {
        Incident {
            id: format!("G-{number}"),
            at: Timestamp(1),
            identity: Identity {
                session: SessionId([7; 16]),
                subject: None,
                token: None,
                expires_at: None,
                issued_at: None,
                groups: Vec::new(),
            },
            rule: "r".into(),
            action: Action::Logout,
            mode: Mode::Enforce,
            by: "policy".into(),
            reason: "x".repeat(900),
            policy_version: "v".into(),
            facts: Facts::default(),
            until: Timestamp(2),
        }
    }
}
