//! PostgreSQL: the store that several replicas share.
//!
//! The same tables and statements as SQLite. Errors never carry the address, which may hold a
//! password.

use super::{StoreError, sql};
use sqlx::ConnectOptions;
use sqlx::migrate::MigrateError;
use sqlx::postgres::{PgConnectOptions, PgPool, PgPoolOptions};
use std::str::FromStr;
use std::time::Duration;

pub struct PostgresStore {
    writer: PgPool,
    reader: PgPool,
}

impl PostgresStore {
    /// Connects to a `postgres://` address and creates or updates the tables. Replicas may start at
    /// the same moment: migrations run under an advisory lock.
    pub async fn open(address: &str) -> Result<PostgresStore, StoreError> {
        let options = PgConnectOptions::from_str(address)
            .map_err(|_| StoreError::Unusable("store.postgres is not a valid postgres:// address".into()))?
            .application_name("gaitway")
            .options([
                ("statement_timeout", STATEMENT_TIMEOUT),
                ("lock_timeout", STATEMENT_TIMEOUT),
                ("idle_in_transaction_session_timeout", STATEMENT_TIMEOUT),
            ])
            // Statements hold reasons and pseudonyms; the caller logs the error itself.
            .disable_statement_logging();
        let pool = PgPoolOptions::new()
            .max_connections(CONNECTIONS)
            .acquire_timeout(ACQUIRE_TIMEOUT)
            .connect_with(options)
            .await
            .map_err(|error| StoreError::Unusable(format!("cannot connect to PostgreSQL: {error}")))?;
        sql::migrator(MIGRATIONS).run(&pool).await.map_err(|error| match error {
            MigrateError::VersionMissing(version) => StoreError::Unusable(format!(
                "the PostgreSQL database was written by a newer version of Gaitway (schema {version}); \
                 run that version, or restore a backup"
            )),
            other => StoreError::Unusable(format!("cannot update the tables in PostgreSQL: {other}")),
        })?;
        Ok(PostgresStore { writer: pool.clone(), reader: pool })
    }
}

sql::implement_store!(PostgresStore, shared: true, begin: "BEGIN", error: unavailable);

const MIGRATIONS: &[&str] = &[
    include_str!("../../migrations/postgres/0001_incidents.sql"),
    include_str!("../../migrations/postgres/0002_audit_version.sql"),
    include_str!("../../migrations/postgres/0003_profiles.sql"),
    include_str!("../../migrations/postgres/0004_signals.sql"),
];

/// A replica holds few connections, because PostgreSQL allows about a hundred in all.
const CONNECTIONS: u32 = 8;
const ACQUIRE_TIMEOUT: Duration = Duration::from_secs(5);
/// In milliseconds; every statement touches a few rows through an index.
const STATEMENT_TIMEOUT: &str = "10000";

fn unavailable(error: sqlx::Error) -> StoreError {
    match error.as_database_error().and_then(|database| database.code()).as_deref() {
        Some("53100") => StoreError::Unavailable("the database's disk is full".into()),
        _ => StoreError::Unavailable(error.to_string()),
    }
}
