//! Small values that outlive a request and not their moment, such as logins: sealed, in this process's
//! memory or, where replicas must share them, in Redis.
//!
//! Invariant: nothing is kept or sent in clear; whoever reads the memory of Redis reads pseudonyms and
//! ciphertext. Must not know: what the values mean.

use crate::clock;
use crate::revocation::RevocationError;
use crate::revocation::servers::{Servers, one_slot};
use crate::secret::InstallSecret;
use gaitway_models::Timestamp;
use redis::RedisError;
use redis::aio::MultiplexedConnection;
use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// What a name names; the same name of two kinds is two entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    /// A login, by its session.
    Login,
    /// The sessions of one session at the provider.
    ProviderSession,
    /// A login's renewal is under way.
    Renewal,
    /// An identifier that was used once and must not be used again.
    Used,
    /// What an issuer said of a token.
    Introspected,
    /// What an issuer calls a session and its person.
    Named,
}

impl Kind {
    fn as_str(self) -> &'static str {
        match self {
            Kind::Login => "login",
            Kind::ProviderSession => "provider-session",
            Kind::Renewal => "renewal",
            Kind::Used => "used",
            Kind::Introspected => "introspected",
            Kind::Named => "named",
        }
    }
}

/// A pseudonym made from whatever names the entry.
pub type Name = [u8; 16];

#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum VaultError {
    #[error("the shared store of logins does not answer")]
    Unreachable,
    #[error("no room for another entry")]
    Full,
}

/// One for the process.
pub struct Vault {
    secret: Arc<InstallSecret>,
    shelf: Shelf,
}

enum Shelf {
    Memory { entries: Mutex<HashMap<(Kind, Name), Entry>>, entries_max: usize },
    Redis(Box<Remote>),
}

struct Entry {
    sealed: Arc<[u8]>,
    until: Timestamp,
}

struct Remote {
    servers: Servers,
    prefix: String,
    link: tokio::sync::Mutex<Link>,
}

#[derive(Default)]
struct Link {
    connection: Option<MultiplexedConnection>,
    /// Nobody waits for a server that did not answer a moment ago.
    closed_until: Option<Instant>,
}

impl Vault {
    /// In Redis if revocations are there, else in memory, at most `entries_max`. Connects when first used.
    pub fn open(
        config: &crate::config::Revocation,
        entries_max: usize,
        secret: Arc<InstallSecret>,
    ) -> Result<Vault, RevocationError> {
        let shelf = match &config.redis {
            None => Shelf::Memory { entries: Mutex::default(), entries_max },
            Some(address) => {
                let prefix = one_slot(&config.key_prefix, address);
                let password = config.redis_password_file.as_deref();
                let servers = Servers::new(address, password, config.redis_ca.as_deref(), &prefix)?;
                Shelf::Redis(Box::new(Remote { servers, prefix, link: tokio::sync::Mutex::default() }))
            }
        };
        Ok(Vault { secret, shelf })
    }

    /// The value, if there is one that is not over. What cannot be unsealed, such as an entry of an older
    /// secret, is not there.
    pub async fn get(&self, kind: Kind, name: &Name) -> Result<Option<Vec<u8>>, VaultError> {
        let sealed: Option<Arc<[u8]>> = match &self.shelf {
            Shelf::Memory { entries, .. } => {
                let now = clock::now();
                let entries = lock(entries);
                entries.get(&(kind, *name)).filter(|e| e.until > now).map(|e| Arc::clone(&e.sealed))
            }
            Shelf::Redis(remote) => {
                let mut command = redis::cmd("GET");
                command.arg(remote.key(kind, name));
                remote.ask::<Option<Vec<u8>>>(&command).await?.map(Into::into)
            }
        };
        Ok(sealed.and_then(|sealed| self.secret.unseal(&place(kind, name), &sealed)))
    }

    /// Keeps the value until the moment; one that is past keeps nothing.
    pub async fn put(
        &self,
        kind: Kind,
        name: &Name,
        value: &[u8],
        until: Timestamp,
    ) -> Result<(), VaultError> {
        self.write(kind, name, value, until, false).await.map(|_| ())
    }

    /// The same only if there is no such entry; whether it was kept. Of several that try at once, on
    /// whatever replica, one succeeds.
    pub async fn put_first(
        &self,
        kind: Kind,
        name: &Name,
        value: &[u8],
        until: Timestamp,
    ) -> Result<bool, VaultError> {
        self.write(kind, name, value, until, true).await
    }

    pub async fn remove(&self, kind: Kind, name: &Name) -> Result<(), VaultError> {
        match &self.shelf {
            Shelf::Memory { entries, .. } => {
                lock(entries).remove(&(kind, *name));
                Ok(())
            }
            Shelf::Redis(remote) => {
                let mut command = redis::cmd("DEL");
                command.arg(remote.key(kind, name));
                remote.ask::<u64>(&command).await.map(|_| ())
            }
        }
    }

    async fn write(
        &self,
        kind: Kind,
        name: &Name,
        value: &[u8],
        until: Timestamp,
        only_first: bool,
    ) -> Result<bool, VaultError> {
        let now = clock::now();
        let Ok(left_ms @ 1..) = u64::try_from(until.since(now).as_millis()) else { return Ok(true) };
        let sealed = self.secret.seal(&place(kind, name), value).ok_or(VaultError::Full)?;
        match &self.shelf {
            Shelf::Memory { entries, entries_max } => {
                let mut entries = lock(entries);
                let known = entries.get(&(kind, *name)).is_some_and(|entry| entry.until > now);
                if known && only_first {
                    return Ok(false);
                }
                if !known && entries.len() >= *entries_max {
                    entries.retain(|_, entry| entry.until > now);
                    if entries.len() >= *entries_max {
                        return Err(VaultError::Full);
                    }
                }
                entries.insert((kind, *name), Entry { sealed: sealed.into(), until });
                Ok(true)
            }
            Shelf::Redis(remote) => {
                let mut command = redis::cmd("SET");
                command.arg(remote.key(kind, name)).arg(sealed).arg("PX").arg(left_ms);
                if only_first {
                    command.arg("NX");
                }
                Ok(remote.ask::<Option<String>>(&command).await?.is_some())
            }
        }
    }
}

impl Remote {
    fn key(&self, kind: Kind, name: &Name) -> String {
        format!("{}{}:{:032x}", self.prefix, kind.as_str(), u128::from_be_bytes(*name))
    }

    async fn ask<T: redis::FromRedisValue>(&self, command: &redis::Cmd) -> Result<T, VaultError> {
        let mut connection = self.connection().await?;
        match tokio::time::timeout(ANSWER_TIMEOUT, command.query_async(&mut connection)).await {
            Ok(Ok(answer)) => Ok(answer),
            Ok(Err(error)) => Err(self.broken(Some(&error)).await),
            Err(_) => Err(self.broken(None).await),
        }
    }

    async fn connection(&self) -> Result<MultiplexedConnection, VaultError> {
        let mut link = self.link.lock().await;
        if let Some(connection) = &link.connection {
            return Ok(connection.clone());
        }
        if link.closed_until.is_some_and(|until| until > Instant::now()) {
            return Err(VaultError::Unreachable);
        }
        match self.servers.connect(ANSWER_TIMEOUT).await {
            Ok(connection) => {
                link.connection = Some(connection.clone());
                Ok(connection)
            }
            Err(error) => {
                tracing::warn!(%error, "the shared store of logins does not answer");
                link.closed_until = Some(Instant::now() + RETRY_AFTER);
                Err(VaultError::Unreachable)
            }
        }
    }

    /// The next question opens a new connection, to whoever is master then.
    async fn broken(&self, error: Option<&RedisError>) -> VaultError {
        match error {
            Some(error) => tracing::warn!(%error, "the shared store of logins failed"),
            None => tracing::warn!("the shared store of logins did not answer in time"),
        }
        let mut link = self.link.lock().await;
        link.connection = None;
        link.closed_until = Some(Instant::now() + RETRY_AFTER);
        VaultError::Unreachable
    }
}

fn place(kind: Kind, name: &Name) -> [&[u8]; 3] {
    [b"vault", kind.as_str().as_bytes(), name]
}

fn lock(entries: &Mutex<HashMap<(Kind, Name), Entry>>) -> MutexGuard<'_, HashMap<(Kind, Name), Entry>> {
    entries.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A question about one key; a server slower than this is down.
const ANSWER_TIMEOUT: Duration = Duration::from_millis(500);
/// After a failure questions fail at once for this long, so that requests do not queue up behind it.
const RETRY_AFTER: Duration = Duration::from_millis(250);

#[cfg(test)]
mod tests {
    use super::*;

    fn vault(entries_max: usize) -> Vault {
        let secret = Arc::new(InstallSecret::from_text(&[7; 32], "test").unwrap());
        Vault::open(&crate::config::Revocation::default(), entries_max, secret).unwrap()
    }

    fn later() -> Timestamp {
        clock::now().plus(Duration::from_secs(60))
    }

    #[tokio::test]
    async fn values_come_back_until_they_are_over_or_removed() {
        let vault = vault(10);
        vault.put(Kind::Login, &[1; 16], b"one", later()).await.unwrap();
        assert_eq!(vault.get(Kind::Login, &[1; 16]).await.unwrap().as_deref(), Some(&b"one"[..]));
        assert_eq!(vault.get(Kind::Renewal, &[1; 16]).await.unwrap(), None, "another kind");
        vault.put(Kind::Login, &[2; 16], b"two", clock::now()).await.unwrap();
        assert_eq!(vault.get(Kind::Login, &[2; 16]).await.unwrap(), None, "over before it came");
        vault.remove(Kind::Login, &[1; 16]).await.unwrap();
        assert_eq!(vault.get(Kind::Login, &[1; 16]).await.unwrap(), None);
    }

    #[tokio::test]
    async fn of_several_only_the_first_keeps_its_value() {
        let vault = vault(10);
        assert!(vault.put_first(Kind::Used, &[1; 16], b"a", later()).await.unwrap());
        assert!(!vault.put_first(Kind::Used, &[1; 16], b"b", later()).await.unwrap());
        assert_eq!(vault.get(Kind::Used, &[1; 16]).await.unwrap().as_deref(), Some(&b"a"[..]));
    }

    #[tokio::test]
    async fn a_full_vault_takes_nothing_new_until_something_is_over() {
        let vault = vault(2);
        let soon = clock::now().plus(Duration::from_millis(30));
        vault.put(Kind::Login, &[1; 16], b"1", soon).await.unwrap();
        vault.put(Kind::Login, &[2; 16], b"2", later()).await.unwrap();
        assert_eq!(vault.put(Kind::Login, &[3; 16], b"3", later()).await, Err(VaultError::Full));
        vault.put(Kind::Login, &[2; 16], b"again", later()).await.unwrap();
        while clock::now() < soon {
            tokio::task::yield_now().await;
        }
        vault.put(Kind::Login, &[3; 16], b"3", later()).await.unwrap();
    }
}
