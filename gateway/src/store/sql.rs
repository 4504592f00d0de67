//! The statements both databases share, and the code around them.
//!
//! Only types that SQLite and PostgreSQL read alike occur: TEXT, BIGINT and plain bytes. `$1` is a
//! parameter in both. Must not know: how a connection is made.

use super::{
    AuditRecord, BoardEffect, IncidentRow, ProfileRow, ProfileVersion, Step, StepState, StoreError,
    audit_word, in_force_until,
};
use crate::revocation::{Pardon, Revocation, Scope};
use gaitway_models::Timestamp;
use gaitway_policies::Incident;
use gaitway_policies::engine::Action;
use sqlx::migrate::{Migration, MigrationType, Migrator};
use sqlx::{ColumnIndex, Decode, Row, SqlSafeStr, Type};

/// Writes `impl Store` for a type with the pools `writer` and `reader`. A macro, because the bounds
/// that make these few functions generic over sqlx's databases are longer than the functions.
macro_rules! implement_store {
    ($store:ty, shared: $shared:literal, begin: $begin:literal, error: $error:path) => {
        #[async_trait::async_trait]
        impl crate::store::Store for $store {
            async fn record(
                &self,
                incident: &gaitway_policies::Incident,
                steps: &[crate::store::Step],
            ) -> Result<(), crate::store::StoreError> {
                let columns = sql::IncidentColumns::of(incident)?;
                let mut transaction = self.writer.begin_with($begin).await.map_err($error)?;
                let inserted = sqlx::query(sql::INSERT_INCIDENT)
                    .bind(&columns.id)
                    .bind(columns.at)
                    .bind(columns.until)
                    .bind(&columns.session)
                    .bind(&columns.subject)
                    .bind(&columns.token)
                    .bind(&columns.action)
                    .bind(&columns.mode)
                    .bind(columns.effect)
                    .bind(&columns.who)
                    .bind(&columns.reason)
                    .bind(&columns.body)
                    .execute(&mut *transaction)
                    .await
                    .map_err($error)?;
                if inserted.rows_affected() == 0 {
                    return Ok(());
                }
                for (position, step) in (0i64..).zip(steps) {
                    sqlx::query(sql::INSERT_STEP)
                        .bind(&columns.id)
                        .bind(&step.name)
                        .bind(position)
                        .bind(sql::state_name(step.state))
                        .bind(i64::from(step.attempts))
                        .bind(sql::milliseconds(step.retry_at))
                        .bind(sql::text(&step.outcome))
                        .execute(&mut *transaction)
                        .await
                        .map_err($error)?;
                }
                if let Some(word) = &columns.audit {
                    sqlx::query(sql::INSERT_AUDIT)
                        .bind(columns.at)
                        .bind(&columns.who)
                        .bind(word)
                        .bind(Some(&columns.session))
                        .bind(Some(&columns.id))
                        .bind(&columns.reason)
                        .bind(&columns.policy_version)
                        .execute(&mut *transaction)
                        .await
                        .map_err($error)?;
                }
                transaction.commit().await.map_err($error)
            }

            async fn due(
                &self,
                now: gaitway_models::Timestamp,
                limit: u32,
            ) -> Result<Vec<crate::store::IncidentRow>, crate::store::StoreError> {
                self.due_steps(None, now, limit).await
            }

            async fn due_for(
                &self,
                step: &str,
                now: gaitway_models::Timestamp,
                limit: u32,
            ) -> Result<Vec<crate::store::IncidentRow>, crate::store::StoreError> {
                self.due_steps(Some(step), now, limit).await
            }

            async fn claim(
                &self,
                incident: &str,
                step: &str,
                now: gaitway_models::Timestamp,
                until: gaitway_models::Timestamp,
            ) -> Result<bool, crate::store::StoreError> {
                Ok(self.postpone(incident, Some(step), now, until).await? > 0)
            }

            async fn release(&self, now: gaitway_models::Timestamp) -> Result<(), crate::store::StoreError> {
                sqlx::query(sql::RELEASE_STEPS)
                    .bind(sql::milliseconds(now))
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(())
            }

            async fn pending(&self) -> Result<u64, crate::store::StoreError> {
                let count: i64 =
                    sqlx::query_scalar(sql::COUNT_PENDING).fetch_one(&self.reader).await.map_err($error)?;
                Ok(u64::try_from(count).unwrap_or(0))
            }

            fn is_shared(&self) -> bool {
                $shared
            }

            async fn update_step(
                &self,
                incident: &str,
                step: &crate::store::Step,
            ) -> Result<(), crate::store::StoreError> {
                sqlx::query(sql::UPDATE_STEP)
                    .bind(incident)
                    .bind(&step.name)
                    .bind(sql::state_name(step.state))
                    .bind(i64::from(step.attempts))
                    .bind(sql::milliseconds(step.retry_at))
                    .bind(sql::text(&step.outcome))
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(())
            }

            async fn incidents(
                &self,
                filter: &crate::store::IncidentFilter,
            ) -> Result<Vec<crate::store::IncidentRow>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_INCIDENTS)
                    .bind(filter.session.map(|session| session.to_string()))
                    .bind(filter.since.map_or(0, sql::milliseconds))
                    .bind(sql::rows(filter.limit))
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                Ok(sql::incident_rows(&rows)?.0)
            }

            async fn incident(
                &self,
                id: &str,
            ) -> Result<Option<crate::store::IncidentRow>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_INCIDENT)
                    .bind(id)
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                let (mut found, unreadable) = sql::incident_rows(&rows)?;
                match unreadable.into_iter().next() {
                    Some(id) => Err(crate::store::StoreError::Corrupt(format!("incident {id}"))),
                    None => Ok(found.pop()),
                }
            }

            async fn audit(
                &self,
                record: &crate::store::AuditRecord,
            ) -> Result<(), crate::store::StoreError> {
                sqlx::query(sql::INSERT_AUDIT)
                    .bind(sql::milliseconds(record.at))
                    .bind(sql::text(&record.who))
                    .bind(sql::text(&record.what))
                    .bind(record.session.map(|session| session.to_string()))
                    .bind(record.incident.as_deref().map(sql::text))
                    .bind(sql::text(&record.why))
                    .bind(record.policy_version.as_deref().map(sql::text))
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(())
            }

            async fn audit_trail(
                &self,
                limit: u32,
            ) -> Result<Vec<crate::store::AuditRecord>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_AUDIT)
                    .bind(sql::rows(limit))
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                rows.iter().map(sql::audit_record).collect()
            }

            async fn active_revocations(
                &self,
                now: gaitway_models::Timestamp,
            ) -> Result<Vec<crate::revocation::Revocation>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_ACTIVE)
                    .bind(sql::milliseconds(now))
                    .bind(sql::REVOCATIONS_MAX)
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                let mut active = Vec::with_capacity(rows.len());
                for row in &rows {
                    sql::push_active(&mut active, row)?;
                }
                Ok(active)
            }

            async fn pardons(
                &self,
                since: gaitway_models::Timestamp,
            ) -> Result<Vec<crate::revocation::Pardon>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_PARDONS)
                    .bind(sql::milliseconds(since))
                    .bind(sql::REVOCATIONS_MAX)
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                let mut pardons = Vec::with_capacity(rows.len());
                for row in &rows {
                    sql::push_pardon(&mut pardons, row)?;
                }
                Ok(pardons)
            }

            async fn queue_signal(
                &self,
                stream: &str,
                jti: &str,
                at: gaitway_models::Timestamp,
                sealed: &str,
            ) -> Result<(), crate::store::StoreError> {
                sqlx::query(sql::INSERT_SIGNAL)
                    .bind(stream)
                    .bind(jti)
                    .bind(sql::milliseconds(at))
                    .bind(sealed)
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(())
            }

            async fn signals(
                &self,
                stream: &str,
                limit: u32,
            ) -> Result<Vec<(String, String)>, crate::store::StoreError> {
                sqlx::query_as(sql::SELECT_SIGNALS)
                    .bind(stream)
                    .bind(sql::rows(limit))
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)
            }

            async fn forget_signal(&self, stream: &str, jti: &str) -> Result<bool, crate::store::StoreError> {
                let gone = sqlx::query(sql::DELETE_SIGNAL)
                    .bind(stream)
                    .bind(sql::text(jti))
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(gone.rows_affected() > 0)
            }

            async fn trim_signals(
                &self,
                stream: &str,
                before: gaitway_models::Timestamp,
                most: u32,
            ) -> Result<u64, crate::store::StoreError> {
                let gone = sqlx::query(sql::TRIM_SIGNALS)
                    .bind(stream)
                    .bind(sql::milliseconds(before))
                    .bind(i64::from(most))
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(gone.rows_affected())
            }

            async fn prune(
                &self,
                before: gaitway_models::Timestamp,
            ) -> Result<u64, crate::store::StoreError> {
                Ok(self.prune_with(sql::PRUNE_INCIDENTS, before).await?
                    + self.prune_with(sql::PRUNE_AUDIT, before).await?)
            }

            async fn budget_trip(
                &self,
            ) -> Result<Option<crate::store::BudgetTrip>, crate::store::StoreError> {
                let trip: Option<(String, i64, String)> = sqlx::query_as(sql::SELECT_TRIP)
                    .bind(crate::store::BUDGET_RESET)
                    .fetch_optional(&self.reader)
                    .await
                    .map_err($error)?;
                Ok(trip.map(|(incident, at, reason)| crate::store::BudgetTrip {
                    incident,
                    at: sql::timestamp(at),
                    reason,
                }))
            }

            async fn profile(
                &self,
                subject: gaitway_policies::SubjectId,
            ) -> Result<Option<crate::store::ProfileRow>, crate::store::StoreError> {
                let row = sqlx::query(sql::SELECT_PROFILE)
                    .bind(subject.to_string())
                    .fetch_optional(&self.reader)
                    .await
                    .map_err($error)?;
                row.as_ref().map(sql::profile_row).transpose()
            }

            async fn save_profile(
                &self,
                subject: gaitway_policies::SubjectId,
                bytes: &[u8],
                over: Option<crate::store::ProfileVersion>,
                now: gaitway_models::Timestamp,
            ) -> Result<bool, crate::store::StoreError> {
                let statement = if over.is_some() { sql::UPDATE_PROFILE } else { sql::INSERT_PROFILE };
                let mut query =
                    sqlx::query(statement).bind(subject.to_string()).bind(bytes).bind(sql::milliseconds(now));
                if let Some(crate::store::ProfileVersion(at)) = over {
                    query = query.bind(sql::milliseconds(at));
                }
                let saved = query.execute(&self.writer).await.map_err($error)?;
                Ok(saved.rows_affected() > 0)
            }

            async fn forget_profile(
                &self,
                subject: gaitway_policies::SubjectId,
                now: gaitway_models::Timestamp,
            ) -> Result<bool, crate::store::StoreError> {
                let mut transaction = self.writer.begin_with($begin).await.map_err($error)?;
                let known = sqlx::query(sql::LOCK_PROFILE)
                    .bind(subject.to_string())
                    .execute(&mut *transaction)
                    .await
                    .map_err($error)?;
                sqlx::query(sql::FORGET_PROFILE)
                    .bind(subject.to_string())
                    .bind(sql::milliseconds(now))
                    .execute(&mut *transaction)
                    .await
                    .map_err($error)?;
                transaction.commit().await.map_err($error)?;
                Ok(known.rows_affected() > 0)
            }

            async fn expire_profiles(
                &self,
                before: gaitway_models::Timestamp,
            ) -> Result<u64, crate::store::StoreError> {
                self.prune_with(sql::EXPIRE_PROFILES, before).await
            }

            async fn profiles(&self) -> Result<u64, crate::store::StoreError> {
                let count: i64 =
                    sqlx::query_scalar(sql::COUNT_PROFILES).fetch_one(&self.reader).await.map_err($error)?;
                Ok(u64::try_from(count).unwrap_or(0))
            }
        }

        impl $store {
            /// Deletes what the statement names as older than `before`, a few rows at a time.
            async fn prune_with(
                &self,
                statement: &'static str,
                before: gaitway_models::Timestamp,
            ) -> Result<u64, crate::store::StoreError> {
                let mut pruned = 0;
                loop {
                    let deleted = sqlx::query(statement)
                        .bind(sql::milliseconds(before))
                        .bind(sql::PRUNE_ROWS)
                        .execute(&self.writer)
                        .await
                        .map_err($error)?
                        .rows_affected();
                    pruned += deleted;
                    if deleted == 0 {
                        return Ok(pruned);
                    }
                }
            }

            /// Incidents with this step, or any, due by `now`: due for longest first, or those that are put off
            /// each time would hide the others.
            async fn due_steps(
                &self,
                step: Option<&str>,
                now: gaitway_models::Timestamp,
                limit: u32,
            ) -> Result<Vec<crate::store::IncidentRow>, crate::store::StoreError> {
                let rows = sqlx::query(sql::SELECT_DUE)
                    .bind(sql::milliseconds(now))
                    .bind(sql::rows(limit))
                    .bind(step)
                    .fetch_all(&self.reader)
                    .await
                    .map_err($error)?;
                let (found, unreadable) = sql::incident_rows(&rows)?;
                for id in unreadable {
                    // Left alone it would stay at the head of the queue for ever. Another replica,
                    // or the next version, may be able to read it.
                    self.postpone(&id, None, now, now.plus(sql::UNREADABLE_RETRY)).await?;
                }
                Ok(found)
            }

            /// Moves this pending step, or all, from "due by `now`" to `until`; returns how many.
            async fn postpone(
                &self,
                incident: &str,
                step: Option<&str>,
                now: gaitway_models::Timestamp,
                until: gaitway_models::Timestamp,
            ) -> Result<u64, crate::store::StoreError> {
                let postponed = sqlx::query(sql::POSTPONE_STEPS)
                    .bind(incident)
                    .bind(sql::milliseconds(now))
                    .bind(sql::milliseconds(until))
                    .bind(step)
                    .execute(&self.writer)
                    .await
                    .map_err($error)?;
                Ok(postponed.rows_affected())
            }
        }
    };
}
pub(super) use implement_store;

pub(super) const INSERT_INCIDENT: &str = "INSERT INTO gaitway_incidents \
    (id, at_ms, until_ms, session, subject, token, action, mode, effect, who, reason, body) \
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12) ON CONFLICT (id) DO NOTHING";

pub(super) const INSERT_STEP: &str = "INSERT INTO gaitway_steps \
    (incident, name, position, state, attempts, retry_at_ms, outcome) VALUES ($1, $2, $3, $4, $5, $6, $7)";

pub(super) const INSERT_AUDIT: &str = "INSERT INTO gaitway_audit \
    (at_ms, who, what, session, incident, why, policy_version) VALUES ($1, $2, $3, $4, $5, $6, $7)";

/// The incident's columns, its steps, one a row, and the first pardon that reached it, the
/// session's own before that of another session of the same person.
macro_rules! select_rows {
    ($from:literal, $order:literal) => {
        concat!(
            "SELECT i.id, i.body, s.name, s.state, s.attempts, s.retry_at_ms, s.outcome, ",
            "p.id AS pardon_id, p.at_ms AS pardon_at_ms, p.who AS pardon_who, p.reason AS pardon_reason, ",
            "p.session AS pardon_session FROM (",
            $from,
            ") AS i LEFT JOIN gaitway_steps AS s ON s.incident = i.id ",
            "LEFT JOIN gaitway_incidents AS p ON i.effect = 'revoke' AND p.number = COALESCE(",
            "(SELECT q.number FROM gaitway_incidents AS q WHERE q.effect = 'pardon' ",
            "AND q.session = i.session AND q.at_ms >= i.at_ms ORDER BY q.at_ms, q.number LIMIT 1), ",
            "(SELECT q.number FROM gaitway_incidents AS q WHERE q.effect = 'pardon' ",
            "AND i.action = 'logout-everywhere' AND q.subject = i.subject AND q.at_ms >= i.at_ms ",
            "ORDER BY q.at_ms, q.number LIMIT 1)) ",
            "ORDER BY ",
            $order,
            ", s.position"
        )
    };
}

pub(super) const SELECT_DUE: &str = select_rows!(
    "SELECT d.*, due.due_ms FROM (SELECT incident, MIN(retry_at_ms) AS due_ms FROM gaitway_steps \
     WHERE state = 'pending' AND retry_at_ms <= $1 AND ($3 IS NULL OR name = $3) GROUP BY incident) AS due \
     JOIN gaitway_incidents AS d ON d.id = due.incident ORDER BY due.due_ms, d.at_ms, d.number LIMIT $2",
    "i.due_ms, i.at_ms, i.number"
);

pub(super) const SELECT_INCIDENTS: &str = select_rows!(
    "SELECT * FROM gaitway_incidents WHERE ($1 IS NULL OR session = $1) AND at_ms >= $2 \
     ORDER BY at_ms DESC, number DESC LIMIT $3",
    "i.at_ms DESC, i.number DESC"
);

pub(super) const SELECT_INCIDENT: &str =
    select_rows!("SELECT * FROM gaitway_incidents WHERE id = $1", "i.number");

pub(super) const SELECT_TRIP: &str = "SELECT id, at_ms, reason FROM gaitway_incidents \
    WHERE action = 'budget-trip' AND mode = 'enforce' AND at_ms > \
    (SELECT COALESCE(MAX(at_ms), 0) FROM gaitway_audit WHERE what = $1) ORDER BY at_ms DESC LIMIT 1";

pub(super) const POSTPONE_STEPS: &str = "UPDATE gaitway_steps SET retry_at_ms = $3 \
    WHERE incident = $1 AND state = 'pending' AND retry_at_ms <= $2 AND ($4 IS NULL OR name = $4)";

pub(super) const INSERT_SIGNAL: &str = "INSERT INTO gaitway_signals (stream, jti, at_ms, sealed) \
     VALUES ($1, $2, $3, $4) ON CONFLICT (stream, jti) DO NOTHING";
pub(super) const SELECT_SIGNALS: &str =
    "SELECT jti, sealed FROM gaitway_signals WHERE stream = $1 ORDER BY at_ms, jti LIMIT $2";
pub(super) const DELETE_SIGNAL: &str = "DELETE FROM gaitway_signals WHERE stream = $1 AND jti = $2";
pub(super) const TRIM_SIGNALS: &str = "DELETE FROM gaitway_signals WHERE stream = $1 AND (at_ms < $2 OR jti IN \
     (SELECT jti FROM gaitway_signals WHERE stream = $1 ORDER BY at_ms DESC, jti DESC LIMIT 1000000 OFFSET $3))";
pub(super) const RELEASE_STEPS: &str =
    "UPDATE gaitway_steps SET retry_at_ms = $1 WHERE state = 'pending' AND retry_at_ms > $1";

pub(super) const COUNT_PENDING: &str =
    "SELECT CAST(COUNT(*) AS BIGINT) FROM gaitway_steps WHERE state = 'pending'";

pub(super) const UPDATE_STEP: &str = "UPDATE gaitway_steps \
    SET state = $3, attempts = $4, retry_at_ms = $5, outcome = $6 WHERE incident = $1 AND name = $2";

pub(super) const SELECT_AUDIT: &str = "SELECT at_ms, who, what, session, incident, why, policy_version FROM gaitway_audit \
    ORDER BY number DESC LIMIT $1";

pub(super) const SELECT_ACTIVE: &str = "SELECT i.id, i.at_ms, i.until_ms, i.session, i.subject, i.token, \
    i.action, CAST(CASE WHEN EXISTS (SELECT 1 FROM gaitway_incidents AS p WHERE p.effect = 'pardon' \
    AND p.session = i.session AND p.at_ms >= i.at_ms) THEN 1 ELSE 0 END AS BIGINT) AS session_pardoned, \
    CAST(CASE WHEN EXISTS (SELECT 1 FROM gaitway_incidents AS p WHERE p.effect = 'pardon' \
    AND p.subject = i.subject AND p.at_ms >= i.at_ms) THEN 1 ELSE 0 END AS BIGINT) AS subject_pardoned \
    FROM gaitway_incidents AS i WHERE i.effect = 'revoke' AND i.until_ms > $1 ORDER BY i.number DESC LIMIT $2";

pub(super) const SELECT_PARDONS: &str = "SELECT at_ms, until_ms, session, subject, token FROM gaitway_incidents \
    WHERE effect = 'pardon' AND at_ms > $1 ORDER BY number DESC LIMIT $2";

/// A pardon outlives every revocation it lifted: without it, the next start would put the
/// revocation back in force.
pub(super) const PRUNE_INCIDENTS: &str = "DELETE FROM gaitway_incidents WHERE number IN (\
    SELECT i.number FROM gaitway_incidents AS i WHERE i.at_ms < $1 \
    AND (i.effect = 'none' OR i.until_ms < $1) \
    AND NOT EXISTS (SELECT 1 FROM gaitway_steps AS s WHERE s.incident = i.id AND s.state = 'pending') \
    AND NOT (i.effect = 'pardon' AND EXISTS (SELECT 1 FROM gaitway_incidents AS r \
    WHERE r.effect = 'revoke' AND r.until_ms >= $1 AND r.at_ms <= i.at_ms \
    AND (r.session = i.session OR r.subject = i.subject))) \
    AND NOT (i.action = 'budget-trip' AND i.mode = 'enforce' AND NOT EXISTS (SELECT 1 FROM gaitway_audit AS a \
    WHERE a.what = 'budget-reset' AND a.at_ms >= i.at_ms)) LIMIT $2)";

pub(super) const PRUNE_AUDIT: &str = "DELETE FROM gaitway_audit WHERE number IN \
    (SELECT number FROM gaitway_audit WHERE at_ms < $1 LIMIT $2)";

pub(super) const SELECT_PROFILE: &str = "SELECT body, updated_ms FROM gaitway_profiles WHERE subject = $1";

pub(super) const INSERT_PROFILE: &str = "INSERT INTO gaitway_profiles (subject, body, updated_ms) \
    VALUES ($1, $2, $3) ON CONFLICT (subject) DO NOTHING";

/// A version is never given twice, even if a replica's clock is behind.
macro_rules! next_version {
    ($now:literal) => {
        concat!(
            "CASE WHEN ",
            $now,
            " > gaitway_profiles.updated_ms THEN ",
            $now,
            " ELSE gaitway_profiles.updated_ms + 1 END"
        )
    };
}

pub(super) const UPDATE_PROFILE: &str = concat!(
    "UPDATE gaitway_profiles SET body = $2, updated_ms = ",
    next_version!("$3"),
    " WHERE subject = $1 AND updated_ms = $4"
);

/// Finds out whether anything is known, and keeps others from writing until the transaction ends.
pub(super) const LOCK_PROFILE: &str =
    "UPDATE gaitway_profiles SET body = NULL WHERE subject = $1 AND body IS NOT NULL";

pub(super) const FORGET_PROFILE: &str = concat!(
    "INSERT INTO gaitway_profiles (subject, body, updated_ms) VALUES ($1, NULL, $2) \
     ON CONFLICT (subject) DO UPDATE SET body = NULL, updated_ms = ",
    next_version!("$2")
);

pub(super) const EXPIRE_PROFILES: &str = "DELETE FROM gaitway_profiles WHERE subject IN \
    (SELECT subject FROM gaitway_profiles WHERE updated_ms < $1 LIMIT $2)";

pub(super) const COUNT_PROFILES: &str =
    "SELECT CAST(COUNT(*) AS BIGINT) FROM gaitway_profiles WHERE body IS NOT NULL";

/// Rows deleted in one transaction, so that pruning never holds up an incident for long.
pub(super) const PRUNE_ROWS: i64 = 500;
/// The board's own largest size; see `revocation.entries_max`.
pub(super) const REVOCATIONS_MAX: i64 = 1_000_000;
/// Incidents or audit records in one answer.
const ROWS_MAX: u32 = 10_000;
/// Free text of an operator or a sink kept in a column.
const TEXT_CHARS_MAX: usize = 1_000;
/// How long a record that this version cannot read is left alone.
pub(super) const UNREADABLE_RETRY: std::time::Duration = std::time::Duration::from_secs(300);

/// The migrations compiled into this version, numbered from one.
pub(super) fn migrator(statements: &[&'static str]) -> Migrator {
    let migrations = (1..)
        .zip(statements)
        .map(|(version, sql)| {
            Migration::new(version, "gaitway".into(), MigrationType::Simple, sql.into_sql_str(), false)
        })
        .collect();
    let mut migrator = Migrator::with_migrations(migrations);
    // Its own name, because the database may be shared with another program that uses sqlx.
    migrator.dangerous_set_table_name("gaitway_schema");
    migrator
}

/// An incident as columns.
pub(super) struct IncidentColumns {
    pub(super) id: String,
    pub(super) at: i64,
    pub(super) until: i64,
    pub(super) session: String,
    pub(super) subject: Option<String>,
    pub(super) token: Option<String>,
    pub(super) action: String,
    pub(super) mode: String,
    pub(super) effect: &'static str,
    pub(super) who: String,
    pub(super) reason: String,
    pub(super) audit: Option<String>,
    pub(super) policy_version: Option<String>,
    pub(super) body: String,
}

impl IncidentColumns {
    pub(super) fn of(incident: &Incident) -> Result<IncidentColumns, StoreError> {
        let body = serde_json::to_string(&finite(incident))
            .map_err(|error| StoreError::Corrupt(format!("incident {}: {error}", incident.id)))?;
        Ok(IncidentColumns {
            id: text(&incident.id),
            at: milliseconds(incident.at),
            until: milliseconds(in_force_until(incident)),
            session: incident.identity.session.to_string(),
            subject: incident.identity.subject.map(|subject| subject.to_string()),
            token: incident.identity.token.map(|token| token.to_string()),
            action: word(&incident.action),
            mode: word(&incident.mode),
            effect: match BoardEffect::of(incident) {
                BoardEffect::None => "none",
                BoardEffect::Revoke => "revoke",
                BoardEffect::Pardon => "pardon",
            },
            who: text(&incident.by),
            reason: text(&incident.reason),
            audit: audit_word(incident),
            policy_version: (incident.by == "policy").then(|| text(&incident.policy_version)),
            body,
        })
    }
}

/// JSON has no NaN and no infinity: written as `null`, they would make the record unreadable. A
/// feature without a value is such a NaN.
fn finite(incident: &Incident) -> Incident {
    let mut incident = incident.clone();
    let mend = |number: &mut f32| {
        if !number.is_finite() {
            *number = 0.0;
        }
    };
    let assessment = &mut incident.facts.assessment;
    assessment.bot_score = assessment.bot_score.filter(|score| score.is_finite());
    assessment.owner_score = assessment.owner_score.filter(|score| score.is_finite());
    mend(&mut assessment.bot_evidence);
    mend(&mut assessment.owner_evidence);
    mend(&mut assessment.evidence.seconds);
    for reason in &mut assessment.reasons {
        for number in
            [&mut reason.value, &mut reason.usual_low, &mut reason.usual_high, &mut reason.contribution]
        {
            mend(number);
        }
    }
    for number in [&mut incident.facts.session_age_seconds, &mut incident.facts.requests_per_minute] {
        if !number.is_finite() {
            *number = 0.0;
        }
    }
    incident
}

/// Incidents read from joined rows, and the ids of those this version cannot read.
pub(super) fn incident_rows<R>(rows: &[R]) -> Result<(Vec<IncidentRow>, Vec<String>), StoreError>
where
    R: Row,
    for<'r> String: Decode<'r, R::Database>,
    String: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let mut found: Vec<IncidentRow> = Vec::new();
    let mut unreadable: Vec<String> = Vec::new();
    let mut previous: Option<String> = None;
    for row in rows {
        let id: String = column(row, "id")?;
        if previous.as_ref() != Some(&id) {
            match serde_json::from_str(&column::<String, R>(row, "body")?) {
                Ok(incident) => {
                    found.push(IncidentRow { incident, steps: Vec::new(), pardoned: pardon(row)? });
                }
                Err(error) => {
                    tracing::warn!(incident.id = %id, %error, "skipped an incident this version cannot read");
                    unreadable.push(id.clone());
                }
            }
        }
        if unreadable.last() != Some(&id)
            && let Some(row_found) = found.last_mut()
            && let Some(name) = column::<Option<String>, R>(row, "name")?
        {
            row_found.steps.push(Step {
                name,
                state: state(&column::<String, R>(row, "state")?)?,
                attempts: u32::try_from(column::<i64, R>(row, "attempts")?).unwrap_or(u32::MAX),
                retry_at: timestamp(column(row, "retry_at_ms")?),
                outcome: column(row, "outcome")?,
            });
        }
        previous = Some(id);
    }
    Ok((found, unreadable))
}

fn pardon<R>(row: &R) -> Result<Option<AuditRecord>, StoreError>
where
    R: Row,
    for<'r> String: Decode<'r, R::Database>,
    String: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let Some(id) = column::<Option<String>, R>(row, "pardon_id")? else { return Ok(None) };
    Ok(Some(AuditRecord {
        at: timestamp(column(row, "pardon_at_ms")?),
        who: column(row, "pardon_who")?,
        what: "pardon".into(),
        session: Some(pseudonym(&column::<String, R>(row, "pardon_session")?)?),
        incident: Some(id),
        why: column(row, "pardon_reason")?,
        policy_version: None,
    }))
}

pub(super) fn audit_record<R>(row: &R) -> Result<AuditRecord, StoreError>
where
    R: Row,
    for<'r> String: Decode<'r, R::Database>,
    String: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let session: Option<String> = column(row, "session")?;
    Ok(AuditRecord {
        at: timestamp(column(row, "at_ms")?),
        who: column(row, "who")?,
        what: column(row, "what")?,
        session: session.map(|text| pseudonym(&text)).transpose()?,
        incident: column(row, "incident")?,
        why: column(row, "why")?,
        policy_version: column(row, "policy_version")?,
    })
}

pub(super) fn profile_row<R>(row: &R) -> Result<ProfileRow, StoreError>
where
    R: Row,
    for<'r> Vec<u8>: Decode<'r, R::Database>,
    Vec<u8>: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let version = ProfileVersion(timestamp(column(row, "updated_ms")?));
    Ok(ProfileRow { bytes: column(row, "body")?, version })
}

/// Appends the revocations of one incident that no pardon has lifted.
pub(super) fn push_active<R>(active: &mut Vec<Revocation>, row: &R) -> Result<(), StoreError>
where
    R: Row,
    for<'r> String: Decode<'r, R::Database>,
    String: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let decided_at = timestamp(column(row, "at_ms")?);
    let mut scopes = Vec::with_capacity(3);
    if column::<i64, R>(row, "session_pardoned")? == 0 {
        scopes.push(Scope::Session(pseudonym(&column::<String, R>(row, "session")?)?));
        if let Some(token) = column::<Option<String>, R>(row, "token")? {
            scopes.push(Scope::Token(pseudonym(&token)?));
        }
    }
    let everywhere = column::<String, R>(row, "action")? == word(&Action::LogoutEverywhere);
    if everywhere
        && column::<i64, R>(row, "subject_pardoned")? == 0
        && let Some(subject) = column::<Option<String>, R>(row, "subject")?
    {
        scopes.push(Scope::Subject { subject: pseudonym(&subject)?, before: decided_at });
    }
    let incident: String = column(row, "id")?;
    let until = timestamp(column(row, "until_ms")?);
    active.extend(scopes.into_iter().map(|scope| Revocation {
        scope,
        incident: incident.clone(),
        decided_at,
        until,
    }));
    Ok(())
}

pub(super) fn push_pardon<R>(pardons: &mut Vec<Pardon>, row: &R) -> Result<(), StoreError>
where
    R: Row,
    for<'r> String: Decode<'r, R::Database>,
    String: Type<R::Database>,
    for<'r> i64: Decode<'r, R::Database>,
    i64: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    let decided_at = timestamp(column(row, "at_ms")?);
    let until = timestamp(column(row, "until_ms")?);
    let mut scopes = vec![Scope::Session(pseudonym(&column::<String, R>(row, "session")?)?)];
    if let Some(token) = column::<Option<String>, R>(row, "token")? {
        scopes.push(Scope::Token(pseudonym(&token)?));
    }
    if let Some(subject) = column::<Option<String>, R>(row, "subject")? {
        scopes.push(Scope::Subject { subject: pseudonym(&subject)?, before: decided_at });
    }
    pardons.extend(scopes.into_iter().map(|scope| Pardon { scope, decided_at, until }));
    Ok(())
}

fn column<T, R>(row: &R, name: &'static str) -> Result<T, StoreError>
where
    R: Row,
    for<'r> T: Decode<'r, R::Database>,
    T: Type<R::Database>,
    for<'c> &'c str: ColumnIndex<R>,
{
    row.try_get(name).map_err(|error| StoreError::Corrupt(format!("column {name}: {error}")))
}

fn pseudonym<T: std::str::FromStr<Err: std::fmt::Display>>(text: &str) -> Result<T, StoreError> {
    text.parse().map_err(|error| StoreError::Corrupt(format!("a pseudonym: {error}")))
}

/// The serde name of a plain enum.
pub(super) fn word<T: serde::Serialize>(value: &T) -> String {
    match serde_json::to_value(value) {
        Ok(serde_json::Value::String(word)) => word,
        _ => String::new(),
    }
}

pub(super) fn state_name(state: StepState) -> &'static str {
    match state {
        StepState::Pending => "pending",
        StepState::Done => "done",
        StepState::Failed => "failed",
    }
}

fn state(name: &str) -> Result<StepState, StoreError> {
    match name {
        "pending" => Ok(StepState::Pending),
        "done" => Ok(StepState::Done),
        "failed" => Ok(StepState::Failed),
        other => Err(StoreError::Corrupt(format!("step state {other:?}"))),
    }
}

/// Both databases count in signed numbers; "for ever" is their largest.
pub(super) fn milliseconds(at: Timestamp) -> i64 {
    i64::try_from(at.0).unwrap_or(i64::MAX)
}

pub(super) fn timestamp(milliseconds: i64) -> Timestamp {
    Timestamp(u64::try_from(milliseconds).unwrap_or(0))
}

pub(super) fn rows(limit: u32) -> i64 {
    i64::from(limit.min(ROWS_MAX))
}

/// Free text for a column: bounded, and without the NUL that PostgreSQL refuses.
pub(super) fn text(text: &str) -> String {
    text.chars().filter(|&character| character != '\0').take(TEXT_CHARS_MAX).collect()
}
