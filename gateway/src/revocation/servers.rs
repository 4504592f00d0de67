//! Where the Redis that may be written to is right now: one server, the master that Sentinels name, or
//! the Cluster node that owns the board's slot.
//!
//! All keys of the board live in one slot, so a Cluster is to us one server that may move. Must not
//! know: what is kept there.

use super::RevocationError;
use redis::aio::MultiplexedConnection;
use redis::{
    AsyncConnectionConfig, Client, ConnectionInfo, ErrorKind, IntoConnectionInfo, RedisError,
    TlsCertificates, Value,
};
use std::path::Path;
use std::time::Duration;

pub(crate) struct Servers {
    kind: Kind,
    /// Login, database and transport; the address in it is replaced where discovery finds another.
    template: ConnectionInfo,
    tls: Option<TlsCertificates>,
}

enum Kind {
    One,
    Sentinels { nodes: Vec<Node>, master: String },
    Cluster { nodes: Vec<Node>, slot: u16 },
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Node {
    host: String,
    port: u16,
}

impl Servers {
    /// Understands `redis://[user[:password]@]host[:port][/db]`, the same with several hosts as
    /// `redis+sentinel://host:port,host:port/master-name[/db]` and `redis+cluster://host:port,host:port`,
    /// and each with `rediss` for TLS. Blocking: reads the password and certificate files.
    pub(crate) fn new(
        address: &str,
        password_file: Option<&Path>,
        ca_file: Option<&Path>,
        slot_key: &str,
    ) -> Result<Servers, RevocationError> {
        let wrong = |why: &str| RevocationError::Address(why.to_owned());
        let (scheme, rest) = address.split_once("://").ok_or_else(|| wrong("a scheme is missing"))?;
        let (base, discovery) = scheme.split_once('+').map_or((scheme, None), |(base, d)| (base, Some(d)));
        if !matches!(base, "redis" | "rediss") {
            return Err(wrong("the scheme must be redis or rediss"));
        }
        let (login, rest) = rest.rsplit_once('@').map_or(("", rest), |(login, rest)| (login, rest));
        let (hosts, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (kind, path) = match discovery {
            None => (Kind::One, path),
            Some("sentinel") => {
                let (master, db) = path.split_once('/').unwrap_or((path, ""));
                if master.is_empty() {
                    return Err(wrong("the master's name is missing: redis+sentinel://host:port/name"));
                }
                (Kind::Sentinels { nodes: nodes(hosts, 26379)?, master: master.to_owned() }, db)
            }
            Some("cluster") => (Kind::Cluster { nodes: nodes(hosts, 6379)?, slot: slot(slot_key) }, ""),
            Some(_) => return Err(wrong("after the plus only sentinel or cluster is known")),
        };
        // One host for the template; discovery puts another in its place.
        let host = if discovery.is_some() { "discovered.invalid" } else { hosts };
        let login = if login.is_empty() { String::new() } else { format!("{login}@") };
        let template = format!("{base}://{login}{host}/{path}").into_connection_info().map_err(|error| {
            // The library's message may repeat the address, and with it a password.
            wrong(error.category())
        })?;
        let read = |path: &Path| {
            std::fs::read(path).map_err(|source| RevocationError::File { path: path.to_owned(), source })
        };
        // Naming the client would be one more command to allow in an ACL.
        let mut settings = template.redis_settings().clone().set_skip_set_lib_name();
        if let Some(path) = password_file {
            let text = read(path)?;
            let password = std::str::from_utf8(crate::secret::without_line_break(&text))
                .map_err(|_| wrong("the password file is not text"))?;
            settings = settings.set_password(password);
        }
        let tls = match (base, ca_file) {
            ("rediss", Some(path)) => {
                Some(TlsCertificates { client_tls: None, root_cert: Some(read(path)?) })
            }
            _ => None,
        };
        if base == "rediss" {
            // Both ring and aws-lc are linked, so rustls wants to be told; a second time does nothing.
            let _ = rustls::crypto::aws_lc_rs::default_provider().install_default();
        }
        let tcp = template.tcp_settings().clone().set_nodelay(true);
        let servers =
            Servers { kind, template: template.set_redis_settings(settings).set_tcp_settings(tcp), tls };
        servers.client(None)?;
        Ok(servers)
    }

    /// Connects to the server that takes writes. Every answer on the connection must come within `answer`.
    pub(crate) async fn connect(&self, answer: Duration) -> Result<MultiplexedConnection, RedisError> {
        // Boxed, or every request's future would hold the room that discovery takes.
        Ok(Box::pin(self.connect_somewhere(answer)).await?.0)
    }

    /// The same, and which server that is; for [`Servers::until_moved`].
    pub(super) async fn connect_somewhere(
        &self,
        answer: Duration,
    ) -> Result<(MultiplexedConnection, Option<Node>), RedisError> {
        let node = self.present().await?;
        Ok((self.connect_to(node.as_ref(), answer).await?, node))
    }

    /// Connects to that server; an error if it is no master.
    pub(super) async fn connect_to(
        &self,
        node: Option<&Node>,
        answer: Duration,
    ) -> Result<MultiplexedConnection, RedisError> {
        let client = self.client(node).map_err(|_| broken("address"))?;
        let mut connection = open(&client, answer).await?;
        if !is_master(&mut connection).await? {
            return Err(broken("the server is no master"));
        }
        Ok(connection)
    }

    /// Waits until those who know name another server. A former master that was only slow takes itself for
    /// master, and writes, for ten seconds more, until Sentinels get round to telling it.
    pub(super) async fn until_moved(&self, from: Option<&Node>) {
        loop {
            tokio::time::sleep(MOVED_ASK_EVERY).await;
            // Whoever cannot be asked has said nothing.
            if self.present().await.is_ok_and(|node| node.as_ref() != from) {
                return;
            }
        }
    }

    /// Where to write now; `None`: at the one address there is.
    async fn present(&self) -> Result<Option<Node>, RedisError> {
        Ok(match &self.kind {
            Kind::One => None,
            Kind::Sentinels { nodes, master } => Some(self.master(nodes, master).await?),
            Kind::Cluster { nodes, slot } => Some(self.owner(nodes, *slot).await?),
        })
    }

    /// Asks each Sentinel in turn; the first answer counts, as each speaks for the quorum.
    async fn master(&self, nodes: &[Node], master: &str) -> Result<Node, RedisError> {
        let mut failure = broken("no Sentinel is named");
        for node in nodes {
            let asked = async {
                // Sentinels have no databases and their own users; they are asked without a login.
                let info = self.without_login(node)?;
                let mut connection = open(&info, DISCOVERY_TIMEOUT).await?;
                redis::cmd("SENTINEL")
                    .arg("get-master-addr-by-name")
                    .arg(master)
                    .query_async::<Option<(String, u16)>>(&mut connection)
                    .await
            };
            match asked.await {
                Ok(Some((host, port))) => return Ok(Node { host, port }),
                Ok(None) => failure = broken("the Sentinels do not know that master"),
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    async fn owner(&self, nodes: &[Node], slot: u16) -> Result<Node, RedisError> {
        let mut failure = broken("no Cluster node is named");
        for node in nodes {
            let asked = async {
                let client = self.client(Some(node)).map_err(|_| broken("address"))?;
                let mut connection = open(&client, DISCOVERY_TIMEOUT).await?;
                redis::cmd("CLUSTER").arg("SLOTS").query_async::<Value>(&mut connection).await
            };
            match asked.await {
                Ok(slots) => match owner_in(&slots, slot, node) {
                    Some(owner) => return Ok(owner),
                    None => failure = broken("no Cluster node owns the board's slot"),
                },
                Err(error) => failure = error,
            }
        }
        Err(failure)
    }

    fn without_login(&self, node: &Node) -> Result<Client, RedisError> {
        let info = self.template.clone().set_redis_settings(redis::RedisConnectionInfo::default());
        self.client_of(info, Some(node)).map_err(|_| broken("address"))
    }

    fn client(&self, node: Option<&Node>) -> Result<Client, RevocationError> {
        self.client_of(self.template.clone(), node)
    }

    fn client_of(&self, mut info: ConnectionInfo, node: Option<&Node>) -> Result<Client, RevocationError> {
        if let Some(Node { host, port }) = node {
            let mut address = info.addr().clone();
            match &mut address {
                redis::ConnectionAddr::Tcp(old_host, old_port) => {
                    (*old_host, *old_port) = (host.clone(), *port)
                }
                redis::ConnectionAddr::TcpTls { host: old_host, port: old_port, .. } => {
                    (*old_host, *old_port) = (host.clone(), *port);
                }
                _ => {}
            }
            info = info.set_addr(address);
        }
        match &self.tls {
            Some(tls) => Client::build_with_tls(info, tls.clone()),
            None => Client::open(info),
        }
        .map_err(|error| RevocationError::Address(error.category().to_owned()))
    }
}

async fn open(client: &Client, answer: Duration) -> Result<MultiplexedConnection, RedisError> {
    let config = AsyncConnectionConfig::new()
        .set_connection_timeout(Some(CONNECT_TIMEOUT))
        .set_response_timeout(Some(answer));
    client.get_multiplexed_async_connection_with_config(&config).await
}

/// Names the history of writes that the server tells: another process, or one that became master since,
/// may tell another one. `None` where a server does not say (an ACL, a proxy in between).
pub(super) async fn history(connection: &mut MultiplexedConnection) -> Result<Option<String>, RedisError> {
    let told = match redis::cmd("INFO").query_async::<Value>(connection).await {
        Ok(Value::BulkString(told)) => String::from_utf8_lossy(&told).into_owned(),
        Ok(Value::VerbatimString { text, .. }) => text,
        Err(error) if error.is_io_error() => return Err(error),
        Ok(_) | Err(_) => return Ok(None),
    };
    let field = |name: &str| told.lines().find_map(|line| line.strip_prefix(name));
    Ok(field("run_id:").zip(field("master_replid:")).map(|(process, since)| format!("{process} {since}")))
}

/// Whether the server takes writes. One that may not or cannot say (an ACL, a proxy in between) is
/// believed to be master; the first write tells.
pub(super) async fn is_master(connection: &mut MultiplexedConnection) -> Result<bool, RedisError> {
    match redis::cmd("ROLE").query_async::<Value>(connection).await {
        Ok(Value::Array(fields)) => Ok(match fields.first() {
            Some(Value::BulkString(role)) => role == b"master",
            _ => true,
        }),
        Ok(_) => Ok(true),
        Err(error) if matches!(error.kind(), ErrorKind::Server(_) | ErrorKind::Extension) => Ok(true),
        Err(error) => Err(error),
    }
}

pub(super) fn broken(what: &'static str) -> RedisError {
    RedisError::from((ErrorKind::Client, what))
}

fn nodes(hosts: &str, default_port: u16) -> Result<Vec<Node>, RevocationError> {
    let wrong = || RevocationError::Address("hosts are written host:port,host:port".into());
    let node = |text: &str| {
        // The colons of an IPv6 address stand within brackets.
        let (host, port) = match text.rsplit_once(':') {
            Some((host, port)) if !port.contains(']') => (host, port.parse().map_err(|_| wrong())?),
            _ => (text, default_port),
        };
        let host = host.trim_matches(['[', ']']).to_owned();
        if host.is_empty() { Err(wrong()) } else { Ok(Node { host, port }) }
    };
    hosts.split(',').take(NODES_MAX).map(node).collect()
}

/// CLUSTER SLOTS: ranges of `[first, last, [host, port, …], replicas …]`. An empty host means the node
/// that was asked.
fn owner_in(slots: &Value, slot: u16, asked: &Node) -> Option<Node> {
    let Value::Array(ranges) = slots else { return None };
    for range in ranges {
        let Value::Array(range) = range else { continue };
        let [Value::Int(first), Value::Int(last), Value::Array(owner), ..] = &range[..] else { continue };
        if !(*first..=*last).contains(&i64::from(slot)) {
            continue;
        }
        let [host, Value::Int(port), ..] = &owner[..] else { continue };
        let host = match host {
            Value::BulkString(host) if !host.is_empty() && host != b"?" => {
                String::from_utf8(host.clone()).ok()?
            }
            _ => asked.host.clone(),
        };
        return Some(Node { host, port: u16::try_from(*port).ok()? });
    }
    None
}

/// The prefix of all names: on a Cluster they must share a slot, hence the braces.
pub(crate) fn one_slot(prefix: &str, address: &str) -> String {
    if address.contains("+cluster://") && !prefix.contains('{') {
        format!("{{{prefix}}}")
    } else {
        prefix.to_owned()
    }
}

/// The Cluster specification's slot of a key: CRC-16/XMODEM of the part in braces.
fn slot(key: &str) -> u16 {
    let tag = key
        .split_once('{')
        .and_then(|(_, rest)| rest.split_once('}'))
        .map(|(tag, _)| tag)
        .filter(|tag| !tag.is_empty())
        .unwrap_or(key);
    let crc = tag.bytes().fold(0u16, |crc, byte| {
        (0..8).fold(crc ^ (u16::from(byte) << 8), |crc, _| {
            if crc & 0x8000 == 0 { crc << 1 } else { (crc << 1) ^ 0x1021 }
        })
    });
    crc % 16384
}

/// To open a connection, TLS and login included; a server that hangs must not hold us longer.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);
/// A connection and a question a second for each replica: nothing to a Sentinel.
const MOVED_ASK_EVERY: Duration = Duration::from_secs(1);
/// For one question to one Sentinel or Cluster node.
const DISCOVERY_TIMEOUT: Duration = Duration::from_millis(500);
/// Sentinels or Cluster nodes looked at; discovery needs one that answers.
const NODES_MAX: usize = 32;

#[cfg(test)]
mod tests {
    use super::*;

    fn check(address: &str, is_good: bool) {
        let made = Servers::new(address, None, None, "{gaitway:}");
        assert_eq!(made.is_ok(), is_good, "{address}: {:?}", made.err().map(|error| error.to_string()));
    }

    #[test]
    fn addresses_are_understood_or_refused() {
        for good in [
            "redis://127.0.0.1",
            "redis://127.0.0.1:6379",
            "redis://localhost/2",
            "redis://:secret@h:1/0",
            "redis://user:s%40cret@h:1",
            "rediss://h:1",
            "redis://[::1]:6379",
            "redis+sentinel://a,b:1,[::1]:2/main",
            "redis+sentinel://user:p@a:1/main/3",
            "rediss+cluster://a:1,b:2",
            "redis+cluster://u:p@a",
        ] {
            check(good, true);
        }
        for bad in [
            "",
            "127.0.0.1",
            "http://a",
            "redis+x://a",
            "redis+sentinel://a:1",
            "redis+sentinel:///main",
            "redis+cluster://",
            "redis+sentinel://a:x/main",
            "redis://h:1/x",
        ] {
            check(bad, false);
        }
    }

    #[test]
    fn a_refused_address_keeps_its_password() {
        let error = Servers::new("redis://:hunter2@h:1/notanumber", None, None, "x").err().unwrap();
        assert!(!error.to_string().contains("hunter2"), "{error}");
    }

    #[test]
    fn slots_are_those_of_the_specification() {
        assert_eq!(slot("123456789"), 0x31C3);
        assert_eq!(slot("foo"), 12182);
        assert_eq!(slot("{foo}bar"), 12182);
        assert_eq!(slot("x{foo}{bar}"), 12182);
        assert_eq!(slot("{}foo"), slot("{}foo"));
    }
}
