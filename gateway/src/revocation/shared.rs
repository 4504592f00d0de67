//! Makes the board durable and common to all replicas through Redis.
//!
//! A change is one key with a time to live and one entry of a stream, written together by a script.
//! Every replica follows the stream and is pushed each entry; entries are numbered, so a gap is seen and
//! answered by reading all keys. If Redis may have lost something (restarted, failed over), every replica
//! writes back what it knows and Redis does not. Invariant: nothing here removes a record from the board,
//! so a lost Redis neither revokes nor forgets. Must not know: why something is revoked.

use super::board::{Applied, Board};
use super::record::{Key, Record};
use super::servers::{Node, Servers, broken, history, is_master, one_slot};
use redis::aio::MultiplexedConnection;
use redis::streams::{StreamId, StreamReadReply};
use redis::{ErrorKind, RedisError};
use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, Once, PoisonError};
use std::time::Duration;
use tokio::sync::{Notify, oneshot, watch};

pub(super) struct Shared {
    servers: Servers,
    names: Names,
    board: Arc<Board>,
    queue: Mutex<Queue>,
    /// Something to write.
    wake: Notify,
    /// Redis answers again, so a writer that pauses after a failure need not.
    answers: Notify,
    /// True while the stream is followed and the board is caught up.
    synced: watch::Sender<bool>,
    /// Where the reader is connected. The writer's connection leads to the same server and goes with the
    /// reader's: a server that we have left may acknowledge what nobody else will ever hear of.
    link: Mutex<Option<Link>>,
    /// So that a Redis that does not name itself is one line in the log.
    unnamed: Once,
    /// So that an outage is one line in the log, not one a second.
    writer_failing: AtomicBool,
}

/// A connection of the reader.
#[derive(Clone, PartialEq, Eq)]
struct Link {
    /// Of all since the start.
    number: u64,
    node: Option<Node>,
    /// What [`history`] names there. One address may lead to several servers.
    history: Option<String>,
}

/// Names in Redis.
struct Names {
    record: String,
    stream: String,
    sequence: String,
    epoch: String,
}

impl Names {
    fn new(prefix: &str, address: &str) -> Names {
        let prefix = one_slot(prefix, address);
        Names {
            record: format!("{prefix}revocation:"),
            stream: format!("{prefix}revocations"),
            sequence: format!("{prefix}revocations:sequence"),
            epoch: format!("{prefix}revocations:epoch"),
        }
    }
}

/// Changes on their way to Redis.
struct Queue {
    /// In the order in which they were made.
    order: VecDeque<Key>,
    waiting: HashMap<Key, Waiting>,
    /// Keys whose records Redis lost; written when nothing newer waits, as they are now.
    backlog: VecDeque<Key>,
    waiting_max: usize,
}

struct Waiting {
    record: Record,
    acknowledge: Vec<oneshot::Sender<()>>,
}

/// Where in Redis' history the board stands.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Position {
    /// Made up whenever a replica finds none: another one means another, possibly empty, Redis.
    epoch: String,
    /// The server's own name for its history, where it tells.
    history: Option<String>,
    /// Number of the last entry.
    sequence: u64,
    /// The stream's own name for it.
    last_id: String,
}

impl Shared {
    pub(super) fn new(
        config: &crate::config::Revocation,
        address: &str,
        board: Arc<Board>,
    ) -> Result<Shared, super::RevocationError> {
        let names = Names::new(&config.key_prefix, address);
        let servers = Servers::new(
            address,
            config.redis_password_file.as_deref(),
            config.redis_ca.as_deref(),
            &names.record,
        )?;
        Ok(Shared {
            servers,
            names,
            board,
            queue: Mutex::new(Queue {
                order: VecDeque::new(),
                waiting: HashMap::new(),
                backlog: VecDeque::new(),
                waiting_max: config.queue_max,
            }),
            wake: Notify::new(),
            answers: Notify::new(),
            synced: watch::channel(false).0,
            link: Mutex::new(None),
            unnamed: Once::new(),
            writer_failing: AtomicBool::new(false),
        })
    }

    /// Queues a record; the receiver hears when Redis has it. `None` if the queue is full.
    pub(super) fn enqueue(&self, key: Key, record: Record) -> Option<oneshot::Receiver<()>> {
        let (acknowledge, acknowledged) = oneshot::channel();
        let mut queue = self.lock();
        let is_full = queue.waiting.len() >= queue.waiting_max;
        match queue.waiting.get_mut(&key) {
            Some(waiting) => {
                waiting.record = record.max(waiting.record.clone());
                waiting.acknowledge.retain(|other| !other.is_closed());
                waiting.acknowledge.push(acknowledge);
            }
            None if is_full => return None,
            None => {
                queue.order.push_back(key);
                queue.waiting.insert(key, Waiting { record, acknowledge: vec![acknowledge] });
            }
        }
        drop(queue);
        self.wake.notify_one();
        Some(acknowledged)
    }

    pub(super) fn queued(&self) -> usize {
        let queue = self.lock();
        queue.waiting.len() + queue.backlog.len()
    }

    pub(super) fn is_synced(&self) -> bool {
        *self.synced.borrow()
    }

    pub(super) async fn until_synced(&self) {
        // The sender lives as long as `self`.
        let _ = self.synced.subscribe().wait_for(|synced| *synced).await;
    }

    // ---- reading

    /// Follows the stream until the task is dropped.
    pub(super) async fn read_forever(&self) {
        let mut position = None;
        let mut pause = Backoff::default();
        let mut is_failing = false;
        for number in 0.. {
            let begun = tokio::time::Instant::now();
            let Err(error) = self.follow(number, &mut position, &mut is_failing).await;
            *self.link() = None;
            if begun.elapsed() > STEADY {
                pause.reset();
            }
            if !error.is_io_error() {
                // An answer we cannot read may be an entry we cannot read; do not stumble over it for ever.
                position = None;
            }
            if self.synced.send_replace(false) || !is_failing {
                is_failing = true;
                tracing::warn!(%error, "the shared revocations are out of reach; known ones stay in force");
            }
            metrics::gauge!("gaitway_revocation_backend_up").set(0.0);
            tokio::time::sleep(pause.next()).await;
        }
    }

    async fn follow(
        &self,
        number: u64,
        position: &mut Option<Position>,
        is_failing: &mut bool,
    ) -> Result<std::convert::Infallible, RedisError> {
        let (mut connection, node) = self.servers.connect_somewhere(BLOCK + ANSWER_TIMEOUT).await?;
        let history = history(&mut connection).await?;
        if history.is_none() {
            self.unnamed.call_once(|| {
                tracing::warn!(
                    "Redis does not tell its run_id: allow +info, or each reconnect reads everything"
                );
            });
        }
        // Before anything is read, so that what is acknowledged over an older link is known to us by then.
        *self.link() = Some(Link { number, node: node.clone(), history: history.clone() });
        tokio::select! {
            ended = self.follow_on(connection, history, position, is_failing) => ended,
            () = self.servers.until_moved(node.as_ref()) => {
                Err(RedisError::from((ErrorKind::Io, "another server is master now")))
            }
        }
    }

    async fn follow_on(
        &self,
        mut connection: MultiplexedConnection,
        history: Option<String>,
        position: &mut Option<Position>,
        is_failing: &mut bool,
    ) -> Result<std::convert::Infallible, RedisError> {
        let found = self.ask_position(&mut connection, &history).await?;
        let mut at = match position.take() {
            Some(known) if self.continues(&mut connection, &known, &found).await? => {
                if history.is_none() || history != known.history {
                    self.compare(&mut connection, false).await?;
                }
                Position { history: history.clone(), ..known }
            }
            _ => self.read_all(&mut connection, found).await?,
        };
        let mut is_behind = true;
        let mut silent_rounds = 0;
        loop {
            *position = Some(at.clone());
            let block = if is_behind { None } else { Some(BLOCK) };
            let entries = self.next_entries(&mut connection, &at, block).await?;
            if self.take_entries(&entries, &mut at) {
                let found = self.ask_position(&mut connection, &history).await?;
                at = self.read_all(&mut connection, found).await?;
                continue;
            }
            if is_behind {
                // Synced only now: what happened while we were away had to be read first.
                is_behind = entries.len() >= ENTRIES_AT_ONCE_MAX;
                if !is_behind {
                    *is_failing = false;
                    self.announce_synced();
                }
                continue;
            }
            if !entries.is_empty() {
                silent_rounds = 0;
                continue;
            }
            if !is_master(&mut connection).await? {
                return Err(RedisError::from((ErrorKind::Client, "the server is no longer master")));
            }
            let found = self.ask_position(&mut connection, &history).await?;
            silent_rounds += 1;
            // Numbers that never arrive as entries: somebody deleted or trimmed the stream.
            let is_stuck = found.sequence > at.sequence && silent_rounds > 2;
            let is_other = found.sequence == at.sequence && found.last_id != at.last_id;
            if found.epoch != at.epoch || found.sequence < at.sequence || is_other || is_stuck {
                at = self.read_all(&mut connection, found).await?;
                silent_rounds = 0;
            }
        }
    }

    fn announce_synced(&self) {
        metrics::gauge!("gaitway_revocation_backend_up").set(1.0);
        if !self.synced.send_replace(true) {
            tracing::info!(entries = self.board.len(), "the shared revocations are caught up with");
        }
        self.answers.notify_waiters();
    }

    /// The present end of the history; begins one where there is none.
    async fn ask_position(
        &self,
        connection: &mut MultiplexedConnection,
        history: &Option<String>,
    ) -> Result<Position, RedisError> {
        let fresh: [u8; 16] = crate::secret::random()
            .map_err(|_| RedisError::from((ErrorKind::Client, "the operating system gives no randomness")))?;
        let (epoch, sequence, last_id): (String, u64, String) = redis::cmd("EVAL")
            .arg(POSITION_SCRIPT)
            .arg(3)
            .arg(&self.names.epoch)
            .arg(&self.names.sequence)
            .arg(&self.names.stream)
            .arg(format!("{:032x}", u128::from_be_bytes(fresh)))
            .query_async(connection)
            .await?;
        Ok(Position { epoch, history: history.clone(), sequence, last_id })
    }

    /// Whether the history in Redis is the one we know, only longer: our last entry is still in it. It
    /// is not after a failover that lost what we had read from the old master. What the old master had
    /// acknowledged and we had not read, [`Shared::compare`] finds.
    async fn continues(
        &self,
        connection: &mut MultiplexedConnection,
        known: &Position,
        found: &Position,
    ) -> Result<bool, RedisError> {
        if known.epoch != found.epoch || known.sequence > found.sequence {
            return Ok(false);
        }
        if known.last_id == found.last_id || known.sequence == 0 {
            return Ok(true);
        }
        let ours: redis::streams::StreamRangeReply = redis::cmd("XRANGE")
            .arg(&self.names.stream)
            .arg(&known.last_id)
            .arg(&known.last_id)
            .query_async(connection)
            .await?;
        Ok(!ours.ids.is_empty())
    }

    async fn next_entries(
        &self,
        connection: &mut MultiplexedConnection,
        at: &Position,
        block: Option<Duration>,
    ) -> Result<Vec<StreamId>, RedisError> {
        let mut command = redis::cmd("XREAD");
        command.arg("COUNT").arg(ENTRIES_AT_ONCE_MAX);
        if let Some(block) = block {
            command.arg("BLOCK").arg(u64::try_from(block.as_millis()).unwrap_or(1000));
        }
        command.arg("STREAMS").arg(&self.names.stream).arg(&at.last_id);
        let reply: Option<StreamReadReply> = command.query_async(connection).await?;
        Ok(reply.into_iter().flat_map(|reply| reply.keys).flat_map(|stream| stream.ids).collect())
    }

    /// Applies entries; true if their numbers do not follow on one another.
    fn take_entries(&self, entries: &[StreamId], at: &mut Position) -> bool {
        let now = crate::clock::now();
        let mut is_gap = false;
        for entry in entries {
            at.last_id.clone_from(&entry.id);
            let parsed = (|| {
                let sequence: u64 = entry.get("n")?;
                let key = Key::parse(&entry.get::<String>("k")?)?;
                Some((sequence, key, Record::decode(&entry.get::<String>("r")?)?))
            })();
            let Some((sequence, key, record)) = parsed else {
                metrics::counter!("gaitway_revocation_entries_unreadable_total").increment(1);
                is_gap = true;
                continue;
            };
            is_gap |= sequence != at.sequence + 1;
            at.sequence = sequence;
            let decided_at = record.decided_at;
            if self.apply(key, record, now) == Applied::Changed {
                metrics::histogram!("gaitway_revocation_propagation_seconds")
                    .record(now.since(decided_at).as_secs_f64());
            }
        }
        is_gap
    }

    /// Reads every record, and queues for writing what Redis lacks. `found` is from before, so whatever
    /// changes while we read comes by the stream.
    async fn read_all(
        &self,
        connection: &mut MultiplexedConnection,
        found: Position,
    ) -> Result<Position, RedisError> {
        self.compare(connection, true).await?;
        Ok(found)
    }

    /// Looks at every record, and queues for writing what Redis lacks. What we lack is taken only if it does
    /// not come by the stream, in its order.
    async fn compare(&self, connection: &mut MultiplexedConnection, takes: bool) -> Result<(), RedisError> {
        let mut present = HashSet::new();
        let mut cursor = 0u64;
        loop {
            let (next, names): (u64, Vec<Vec<u8>>) = redis::cmd("SCAN")
                .arg(cursor)
                .arg("MATCH")
                .arg(format!("{}*", glob_literal(&self.names.record)))
                .arg("COUNT")
                .arg(SCAN_COUNT)
                .query_async(connection)
                .await?;
            if !names.is_empty() {
                let texts: Vec<Option<Vec<u8>>> =
                    redis::cmd("MGET").arg(&names).query_async(connection).await?;
                let now = crate::clock::now();
                for (name, text) in names.iter().zip(texts) {
                    let name =
                        str::from_utf8(name).ok().and_then(|name| name.strip_prefix(&self.names.record));
                    let text = text.as_deref().and_then(|text| str::from_utf8(text).ok());
                    let (key, record) = (name.and_then(Key::parse), text.and_then(Record::decode));
                    let (Some(key), Some(record)) = (key, record) else { continue };
                    if takes {
                        self.apply(key, record.clone(), now);
                    }
                    // What the board could not take (it is full) is not ours to write back either.
                    if self.board.get(&key).is_none_or(|known| known == record)
                        && present.len() < SCAN_KEYS_MAX
                    {
                        present.insert(key);
                    }
                }
            }
            cursor = next;
            if cursor == 0 {
                break;
            }
        }
        let now = crate::clock::now();
        let lost = self.board.keys(|key, record| record.keep > now && !present.contains(key));
        if !lost.is_empty() {
            tracing::info!(records = lost.len(), "writing back revocations that Redis does not have");
            self.lock().backlog = lost.into();
            self.wake.notify_one();
        }
        Ok(())
    }

    fn apply(&self, key: Key, record: Record, now: gaitway_models::Timestamp) -> Applied {
        let applied = self.board.apply(key, record, now);
        if applied == Applied::Full {
            metrics::counter!("gaitway_revocations_dropped_total").increment(1);
        }
        applied
    }

    // ---- writing

    /// Writes what is queued until the task is dropped.
    pub(super) async fn write_forever(&self) {
        let mut connection = None;
        let mut pause = Backoff::default();
        loop {
            let batch = self.next_batch();
            metrics::gauge!("gaitway_revocation_queue").set(count(self.queued()));
            if batch.is_empty() {
                self.wake.notified().await;
                continue;
            }
            match self.write(&mut connection, &batch).await {
                Ok(()) => {
                    pause.reset();
                    self.writer_failing.store(false, Ordering::Relaxed);
                    self.delivered(&batch);
                }
                Err(error) => {
                    connection = None;
                    // Without a link the reader has told.
                    if self.link().is_some() && !self.writer_failing.swap(true, Ordering::Relaxed) {
                        tracing::warn!(%error, queued = self.queued(), "cannot write revocations; they wait");
                    }
                    tokio::select! {
                        () = tokio::time::sleep(pause.next()) => {}
                        () = self.answers.notified() => {}
                    }
                }
            }
        }
    }

    fn next_batch(&self) -> Vec<(Key, Record)> {
        let now = crate::clock::now();
        let mut queue = self.lock();
        let queue = &mut *queue;
        let batch: Vec<(Key, Record)> = queue
            .order
            .iter()
            .take(BATCH_MAX)
            .filter_map(|key| Some((*key, queue.waiting.get(key)?.record.clone())))
            .collect();
        if !batch.is_empty() {
            return batch;
        }
        // What expired or vanished since it was found lost needs no writing.
        let mut batch = Vec::new();
        while batch.len() < BATCH_MAX {
            let Some(key) = queue.backlog.pop_front() else { break };
            if let Some(record) = self.board.get(&key).filter(|record| record.keep > now) {
                batch.push((key, record));
            }
        }
        // Back in front until they are delivered.
        for (key, _) in batch.iter().rev() {
            queue.backlog.push_front(*key);
        }
        batch
    }

    async fn write(
        &self,
        connection: &mut Option<(Link, MultiplexedConnection)>,
        batch: &[(Key, Record)],
    ) -> Result<(), RedisError> {
        let Some(link) = self.link().clone() else { return Err(broken("the stream is not followed")) };
        if connection.as_ref().is_none_or(|(of, _)| *of != link) {
            let mut to_the_same = self.servers.connect_to(link.node.as_ref(), ANSWER_TIMEOUT).await?;
            if link.history.is_some() && history(&mut to_the_same).await? != link.history {
                return Err(broken("the address leads to another server than before"));
            }
            *connection = Some((link.clone(), to_the_same));
        }
        let Some((_, connection)) = connection else { return Ok(()) };
        let now = crate::clock::now();
        let mut pipeline = redis::pipe();
        for (key, record) in batch.iter().filter(|(_, record)| record.keep > now) {
            pipeline
                .cmd("EVAL")
                .arg(WRITE_SCRIPT)
                .arg(3)
                .arg(format!("{}{key}", self.names.record))
                .arg(&self.names.stream)
                .arg(&self.names.sequence)
                .arg(record.encode())
                .arg(record.keep.0)
                .arg(STREAM_ENTRIES_MAX)
                .arg(key.to_string())
                .ignore();
        }
        pipeline.query_async::<()>(connection).await?;
        // Acknowledged by a server that we have left: whoever reads there now is not told.
        if self.link().as_ref() == Some(&link) {
            Ok(())
        } else {
            Err(broken("the server was left meanwhile"))
        }
    }

    fn delivered(&self, batch: &[(Key, Record)]) {
        let mut queue = self.lock();
        for (key, record) in batch {
            if queue.order.front() == Some(key) {
                queue.order.pop_front();
                let is_newest = queue.waiting.get(key).is_some_and(|waiting| waiting.record == *record);
                if !is_newest {
                    // It changed on its way; the newer record takes its turn.
                    queue.order.push_back(*key);
                } else if let Some(waiting) = queue.waiting.remove(key) {
                    for acknowledge in waiting.acknowledge {
                        // Whoever asked may have stopped waiting.
                        let _ = acknowledge.send(());
                    }
                }
            } else if queue.backlog.front() == Some(key) {
                queue.backlog.pop_front();
            }
        }
    }

    fn link(&self) -> MutexGuard<'_, Option<Link>> {
        self.link.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, Queue> {
        self.queue.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Pauses that double, with some chance in them so that replicas do not knock all at once.
#[derive(Default)]
struct Backoff {
    failures: u32,
}

impl Backoff {
    fn next(&mut self) -> Duration {
        let pause = (RETRY_MIN * 2u32.pow(self.failures.min(10))).min(RETRY_MAX);
        self.failures = self.failures.saturating_add(1);
        pause.mul_f64(rand::Rng::random_range(&mut rand::rng(), 0.5..1.0))
    }

    fn reset(&mut self) {
        self.failures = 0;
    }
}

/// A prefix as part of a SCAN pattern, its own wildcards taken literally.
fn glob_literal(text: &str) -> String {
    let mut literal = String::with_capacity(text.len());
    for character in text.chars() {
        if matches!(character, '*' | '?' | '[' | ']' | '\\' | '^' | '-') {
            literal.push('\\');
        }
        literal.push(character);
    }
    literal
}

#[expect(clippy::cast_precision_loss, reason = "counts stay far below 2^52")]
pub(super) fn count(n: usize) -> f64 {
    n as f64
}

/// Writes a record and its stream entry unless Redis knows the same or better. KEYS: record, stream,
/// sequence. ARGV: record, when it may go, stream length, key. Texts of records compare like the records.
const WRITE_SCRIPT: &str = "\
local known = redis.call('GET', KEYS[1])
if known and known >= ARGV[1] then return 0 end
redis.call('SET', KEYS[1], ARGV[1], 'PXAT', ARGV[2])
local n = redis.call('INCR', KEYS[3])
redis.call('XADD', KEYS[2], 'MAXLEN', '~', ARGV[3], '*', 'n', n, 'k', ARGV[4], 'r', ARGV[1])
return 1";

/// Says where the history stands, and begins one if there is none. KEYS: epoch, sequence, stream. ARGV: a
/// new epoch.
const POSITION_SCRIPT: &str = "\
local epoch = redis.call('GET', KEYS[1])
if not epoch then
  epoch = ARGV[1]
  redis.call('SET', KEYS[1], epoch)
end
local n = redis.call('GET', KEYS[2]) or '0'
local last = redis.call('XREVRANGE', KEYS[3], '+', '-', 'COUNT', 1)
return {epoch, n, last[1] and last[1][1] or '0-0'}";

/// How long one read waits for news. Also how often a silent Redis is asked whether it is still the same.
const BLOCK: Duration = Duration::from_millis(1000);
/// For one answer; a batch of writes takes about 5 ms.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(1);
const RETRY_MIN: Duration = Duration::from_millis(20);
const RETRY_MAX: Duration = Duration::from_secs(2);
/// A connection that lasted as long was none of those that break as soon as they are made.
const STEADY: Duration = Duration::from_secs(5);
/// Writes in one round trip.
const BATCH_MAX: usize = 128;
const ENTRIES_AT_ONCE_MAX: usize = 1000;
const SCAN_COUNT: usize = 1000;
/// Records a reader remembers having seen in Redis while it looks for lost ones, 17 bytes each. Beyond it
/// some are written back needlessly.
const SCAN_KEYS_MAX: usize = 4_000_000;
/// Entries the stream keeps, about 200 bytes each. A replica further behind reads all records instead.
const STREAM_ENTRIES_MAX: usize = 10_000;
