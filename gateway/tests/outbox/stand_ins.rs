//! A sink that remembers, and a store that fails or stops on demand in front of a real one.

use async_trait::async_trait;
use gaitway::alert::{AlertError, AlertSink};
use gaitway::revocation::{Pardon, Revocation};
use gaitway::store::{
    AuditRecord, BudgetTrip, IncidentFilter, IncidentRow, ProfileRow, ProfileVersion, Step, Store, StoreError,
};
use gaitway_models::Timestamp;
use gaitway_policies::{Incident, SubjectId};
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};

/// Remembers every message as the ids of its incidents; answers as told, then with success.
#[derive(Default)]
pub struct MemorySink {
    pub messages: Mutex<Vec<Vec<String>>>,
    pub answers: Mutex<VecDeque<Answer>>,
    pub per_hour_max: Option<u32>,
}

pub enum Answer {
    Temporary,
    Permanent,
    Panic,
    /// Never.
    Silence,
}

impl MemorySink {
    pub fn answering(answers: impl IntoIterator<Item = Answer>) -> Arc<MemorySink> {
        Arc::new(MemorySink { answers: Mutex::new(answers.into_iter().collect()), ..MemorySink::default() })
    }

    /// Every incident told, as often as it was.
    pub fn told(&self) -> Vec<String> {
        let mut told: Vec<String> = self.messages.lock().unwrap().iter().flatten().cloned().collect();
        told.sort();
        told
    }
}

#[async_trait]
impl AlertSink for MemorySink {
    fn name(&self) -> &'static str {
        "memory"
    }

    fn wants(&self, _: &Incident) -> bool {
        true
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        self.deliver_digest(std::slice::from_ref(incident)).await
    }

    fn deliveries_per_hour_max(&self) -> Option<u32> {
        self.per_hour_max
    }

    async fn deliver_digest(&self, incidents: &[Incident]) -> Result<(), AlertError> {
        let answer = self.answers.lock().unwrap().pop_front();
        match answer {
            Some(Answer::Temporary) => Err(AlertError::Temporary("come back later".into())),
            Some(Answer::Permanent) => Err(AlertError::Permanent("never".into())),
            Some(Answer::Panic) => panic!("a mistake in a sink"),
            Some(Answer::Silence) => std::future::pending().await,
            None => {
                let ids = incidents.iter().map(|incident| incident.id.clone()).collect();
                self.messages.lock().unwrap().push(ids);
                Ok(())
            }
        }
    }
}

/// A real store that can be cut off, and that can stop for ever before or after a call.
pub struct Switch {
    pub store: Arc<dyn Store>,
    /// Nothing can be written nor read.
    pub is_down: AtomicBool,
    /// Nothing can be written: a full disk.
    pub is_full: AtomicBool,
    /// Told of every call before and after it is carried out; whoever is told may never return.
    pub watch: Box<dyn Fn(&str) -> bool + Send + Sync>,
}

impl Switch {
    pub fn new(store: Arc<dyn Store>) -> Arc<Switch> {
        Switch::watched(store, |_| false)
    }

    /// `watch` gives true where the call must stop for ever.
    pub fn watched(
        store: Arc<dyn Store>,
        watch: impl Fn(&str) -> bool + Send + Sync + 'static,
    ) -> Arc<Switch> {
        Arc::new(Switch {
            store,
            is_down: AtomicBool::new(false),
            is_full: AtomicBool::new(false),
            watch: Box::new(watch),
        })
    }

    async fn pass(&self, call: String) {
        if (self.watch)(&call) {
            std::future::pending::<()>().await;
        }
    }

    fn read(&self) -> Result<&dyn Store, StoreError> {
        if self.is_down.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("cut off".into()));
        }
        Ok(&*self.store)
    }

    fn write(&self) -> Result<&dyn Store, StoreError> {
        if self.is_full.load(Ordering::SeqCst) {
            return Err(StoreError::Unavailable("the disk is full".into()));
        }
        self.read()
    }
}

#[async_trait]
impl Store for Switch {
    async fn record(&self, incident: &Incident, steps: &[Step]) -> Result<(), StoreError> {
        self.pass(format!("before record {}", incident.id)).await;
        self.write()?.record(incident, steps).await?;
        self.pass(format!("after record {}", incident.id)).await;
        Ok(())
    }
    async fn due(&self, now: Timestamp, limit: u32) -> Result<Vec<IncidentRow>, StoreError> {
        self.read()?.due(now, limit).await
    }
    async fn due_for(&self, step: &str, now: Timestamp, limit: u32) -> Result<Vec<IncidentRow>, StoreError> {
        self.read()?.due_for(step, now, limit).await
    }
    async fn claim(
        &self,
        incident: &str,
        step: &str,
        now: Timestamp,
        until: Timestamp,
    ) -> Result<bool, StoreError> {
        self.write()?.claim(incident, step, now, until).await
    }
    async fn release(&self, now: Timestamp) -> Result<(), StoreError> {
        self.write()?.release(now).await
    }
    async fn pending(&self) -> Result<u64, StoreError> {
        self.read()?.pending().await
    }
    fn is_shared(&self) -> bool {
        self.store.is_shared()
    }
    async fn update_step(&self, incident: &str, step: &Step) -> Result<(), StoreError> {
        self.pass(format!("before mark {}", step.name)).await;
        self.write()?.update_step(incident, step).await?;
        self.pass(format!("after mark {}", step.name)).await;
        Ok(())
    }
    async fn incidents(&self, filter: &IncidentFilter) -> Result<Vec<IncidentRow>, StoreError> {
        self.read()?.incidents(filter).await
    }
    async fn incident(&self, id: &str) -> Result<Option<IncidentRow>, StoreError> {
        self.read()?.incident(id).await
    }
    async fn audit(&self, record: &AuditRecord) -> Result<(), StoreError> {
        self.write()?.audit(record).await
    }
    async fn audit_trail(&self, limit: u32) -> Result<Vec<AuditRecord>, StoreError> {
        self.read()?.audit_trail(limit).await
    }
    async fn active_revocations(&self, now: Timestamp) -> Result<Vec<Revocation>, StoreError> {
        self.read()?.active_revocations(now).await
    }
    async fn pardons(&self, since: Timestamp) -> Result<Vec<Pardon>, StoreError> {
        self.read()?.pardons(since).await
    }
    async fn queue_signal(
        &self,
        stream: &str,
        jti: &str,
        at: Timestamp,
        sealed: &str,
    ) -> Result<(), StoreError> {
        self.write()?.queue_signal(stream, jti, at, sealed).await
    }
    async fn signals(&self, stream: &str, limit: u32) -> Result<Vec<(String, String)>, StoreError> {
        self.read()?.signals(stream, limit).await
    }
    async fn forget_signal(&self, stream: &str, jti: &str) -> Result<bool, StoreError> {
        self.write()?.forget_signal(stream, jti).await
    }
    async fn trim_signals(&self, stream: &str, before: Timestamp, most: u32) -> Result<u64, StoreError> {
        self.write()?.trim_signals(stream, before, most).await
    }
    async fn prune(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.write()?.prune(before).await
    }
    async fn budget_trip(&self) -> Result<Option<BudgetTrip>, StoreError> {
        self.read()?.budget_trip().await
    }
    async fn profile(&self, subject: SubjectId) -> Result<Option<ProfileRow>, StoreError> {
        self.pass("before profile".into()).await;
        self.read()?.profile(subject).await
    }
    async fn save_profile(
        &self,
        subject: SubjectId,
        bytes: &[u8],
        over: Option<ProfileVersion>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        self.pass("before save".into()).await;
        self.write()?.save_profile(subject, bytes, over, now).await
    }
    async fn forget_profile(&self, subject: SubjectId, now: Timestamp) -> Result<bool, StoreError> {
        self.write()?.forget_profile(subject, now).await
    }
    async fn expire_profiles(&self, before: Timestamp) -> Result<u64, StoreError> {
        self.write()?.expire_profiles(before).await
    }
    async fn profiles(&self) -> Result<u64, StoreError> {
        self.read()?.profiles().await
    }
}
