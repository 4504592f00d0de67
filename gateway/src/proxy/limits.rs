//! Connections with a clock: every downstream socket is wrapped so that slow, idle and revoked
//! clients end, whatever pingora is waiting for. pingora itself sets none of these limits.
//!
//! Owns the registry of open connections. Must not know: HTTP.

use futures_util::task::AtomicWaker;
use gaitway_policies::Identity;
use gaitway_policies::limit::IPV6_PREFIX;
use ipnet::IpNet;
use pingora_core::protocols::raw_connect::ProxyDigest;
use pingora_core::protocols::tls::SslDigest;
use pingora_core::protocols::{
    ALPN, Digest, GetProxyDigest, GetSocketDigest, GetTimingDigest, Peek, Shutdown, SocketDigest, Ssl,
    TimingDigest, UniqueID, UniqueIDType,
};
use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::os::fd::AsRawFd;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::{Instant, Sleep};

/// Small writes are joined up to this size, so that a response header and a small body leave in
/// one system call.
const WRITE_JOIN_BYTES: usize = 8 * 1024;
/// Write buffers above this capacity are given back once flushed; idle sockets stay small.
const WRITE_KEEP_BYTES: usize = 1024;
/// How long a slow body may take before its average rate counts.
const BODY_RATE_GRACE: Duration = Duration::from_secs(10);
/// A first read may bring body bytes along with the header; pingora reads 4 KiB at a time.
const HEADER_SLACK_BYTES: usize = 16 * 1024;

/// The timeouts of one connection.
#[derive(Clone, Copy, Debug)]
pub struct Clocks {
    pub header_read: Duration,
    pub idle: Duration,
    pub body_idle: Duration,
    pub body_rate_min: u32,
    pub tunnel_idle: Duration,
    /// Bytes of one request header at most, checked again exactly once it is complete.
    pub header_bytes_max: usize,
}

/// What a connection is doing; decides which clock runs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Phase {
    /// Waiting for the first byte of a request.
    Idle = 0,
    /// Between the first byte and the end of the request header.
    Header = 1,
    /// The request body is still coming.
    Body = 2,
    /// The request is complete; the app may take its time.
    Response = 3,
    /// A WebSocket or other upgraded stream.
    Tunnel = 4,
    /// HTTP/2: requests come and go. Only a connection with no byte at all is idle; streams have clocks
    /// of their own.
    Multiplexed = 5,
}

impl Phase {
    fn from_u8(value: u8) -> Phase {
        match value {
            0 => Phase::Idle,
            1 => Phase::Header,
            2 => Phase::Body,
            3 => Phase::Response,
            4 => Phase::Tunnel,
            _ => Phase::Multiplexed,
        }
    }
}

/// The handle to one open connection, shared by the stream, the proxy and the registry.
pub struct Connection {
    pub peer: SocketAddr,
    pub tls: bool,
    phase: AtomicU8,
    cut: AtomicBool,
    read_waker: AtomicWaker,
    write_waker: AtomicWaker,
    /// Milliseconds since `born` of the last byte in either direction.
    last_byte_ms: AtomicU64,
    born: Instant,
    /// Requests under way. One at most on HTTP/1.
    active: Mutex<Vec<Active>>,
}

/// One request under way: its number on the connection, and everybody it claims to be.
struct Active {
    number: u64,
    identities: Vec<Arc<Identity>>,
}

impl Connection {
    pub fn new(peer: SocketAddr, tls: bool) -> Connection {
        Connection {
            peer,
            tls,
            phase: AtomicU8::new(Phase::Idle as u8),
            cut: AtomicBool::new(false),
            read_waker: AtomicWaker::new(),
            write_waker: AtomicWaker::new(),
            last_byte_ms: AtomicU64::new(0),
            born: Instant::now(),
            active: Mutex::new(Vec::new()),
        }
    }

    /// The connection a pingora session runs on.
    pub fn of(digest: Option<&Digest>) -> Option<&Arc<Connection>> {
        digest?.proxy_digest.as_ref()?.user_data.as_ref()?.downcast_ref::<Arc<Connection>>()
    }

    pub fn phase(&self) -> Phase {
        Phase::from_u8(self.phase.load(Ordering::Relaxed))
    }

    /// HTTP/2 connections stay `Multiplexed` whatever one of their streams does.
    pub fn set_phase(&self, phase: Phase) {
        if self.phase() != Phase::Multiplexed {
            self.phase.store(phase as u8, Ordering::Relaxed);
            if matches!(phase, Phase::Tunnel | Phase::Multiplexed) {
                self.touch();
            }
        }
    }

    /// A request begins here, of everybody in `identities`; nobody for a stranger. Returns its number.
    pub fn enter(&self, identities: Vec<Arc<Identity>>) -> u64 {
        let mut active = lock(&self.active);
        let number = active.last().map_or(0, |last| last.number + 1);
        active.push(Active { number, identities });
        number
    }

    /// The request with this number ended.
    pub fn leave(&self, number: u64) {
        lock(&self.active).retain(|request| request.number != number);
    }

    /// From now on not one more byte passes in either direction; whoever waits is woken.
    pub fn cut(&self) {
        self.cut.store(true, Ordering::Release);
        self.read_waker.wake();
        self.write_waker.wake();
    }

    fn is_cut(&self) -> bool {
        self.cut.load(Ordering::Acquire)
    }

    fn carries_only(&self, ends: &impl Fn(&Identity) -> bool) -> bool {
        let active = lock(&self.active);
        let is_ended = |request: &Active| request.identities.iter().any(|identity| ends(identity));
        !active.is_empty() && active.iter().all(is_ended)
    }

    fn touch(&self) {
        let now = u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX);
        self.last_byte_ms.store(now, Ordering::Relaxed);
    }

    fn quiet_for(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.last_byte_ms.load(Ordering::Relaxed)))
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// All open connections; refuses one too many.
pub struct Connections {
    connections_max: u32,
    per_address_max: u32,
    /// A proxy we trust carries many visitors on one address.
    trusted_proxies: Vec<IpNet>,
    open: AtomicU32,
    next_id: AtomicU64,
    registry: Mutex<Registry>,
}

#[derive(Default)]
struct Registry {
    connections: HashMap<u64, Arc<Connection>>,
    per_address: HashMap<IpAddr, u32>,
}

/// Frees the connection's place when dropped.
pub struct Place {
    connections: Arc<Connections>,
    id: u64,
    address: IpAddr,
}

impl Connections {
    pub fn new(config: &crate::config::Config) -> Arc<Connections> {
        Arc::new(Connections {
            connections_max: config.limits.connections_max,
            per_address_max: config.limits.connections_per_address_max,
            trusted_proxies: config.proxy.trusted_proxies.clone(),
            open: AtomicU32::new(0),
            next_id: AtomicU64::new(0),
            registry: Mutex::default(),
        })
    }

    /// Registers a connection, or says which limit it would break.
    pub fn admit(self: &Arc<Self>, connection: &Arc<Connection>) -> Result<Place, &'static str> {
        let peer = connection.peer.ip().to_canonical();
        let shared = self.trusted_proxies.iter().any(|net| net.contains(&peer));
        let address = network_of(peer, IPV6_PREFIX);
        let mut registry = lock(&self.registry);
        if registry.connections.len() >= self.connections_max as usize {
            return Err("connections_max");
        }
        let count = registry.per_address.entry(address).or_insert(0);
        if *count >= self.per_address_max && !shared {
            return Err("connections_per_address_max");
        }
        *count += 1;
        let id = self.next_id.fetch_add(1, Ordering::Relaxed);
        registry.connections.insert(id, connection.clone());
        self.open.fetch_add(1, Ordering::Relaxed);
        Ok(Place { connections: self.clone(), id, address })
    }

    pub fn open(&self) -> u32 {
        self.open.load(Ordering::Relaxed)
    }

    /// Cuts every connection whose requests under way all belong to identities that `ends` names;
    /// returns how many.
    pub fn cut(&self, ends: impl Fn(&Identity) -> bool) -> usize {
        let matching: Vec<Arc<Connection>> = {
            let registry = lock(&self.registry);
            registry.connections.values().filter(|c| c.carries_only(&ends)).cloned().collect()
        };
        matching.iter().for_each(|connection| connection.cut());
        matching.len()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut registry = lock(&self.connections.registry);
        registry.connections.remove(&self.id);
        if let Some(count) = registry.per_address.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                registry.per_address.remove(&self.address);
            }
        }
        let open = self.connections.open.fetch_sub(1, Ordering::Relaxed) - 1;
        metrics::gauge!("gaitway_connections").set(f64::from(open));
    }
}

/// One customer: an IPv4 address, or the `ipv6_prefix` bits an IPv6 customer is given.
pub fn network_of(address: IpAddr, ipv6_prefix: u8) -> IpAddr {
    match address.to_canonical() {
        IpAddr::V4(v4) => IpAddr::V4(v4),
        IpAddr::V6(v6) => {
            let host = u128::MAX.checked_shr(u32::from(ipv6_prefix)).unwrap_or(0);
            IpAddr::V6(Ipv6Addr::from(v6.to_bits() & !host))
        }
    }
}

/// A plain or TLS socket.
pub enum Transport {
    Plain(TcpStream),
    Tls(Box<tokio_rustls::server::TlsStream<TcpStream>>),
}

/// The stream that pingora sees: a transport, a write buffer and the clocks.
pub struct Guarded {
    transport: Transport,
    connection: Arc<Connection>,
    clocks: Clocks,
    /// Present until the request takes the connection over for good.
    _place: Option<Place>,
    write_buffer: Vec<u8>,
    written: usize,
    read_clock: Option<Pin<Box<Sleep>>>,
    write_clock: Option<Pin<Box<Sleep>>>,
    /// When waiting for bytes ends, and in which phase that was decided.
    read_deadline: Option<(Phase, Instant)>,
    header_bytes: usize,
    body_bytes: u64,
    /// Time spent waiting for body bytes, and since when.
    body_waited: Duration,
    waiting_since: Option<Instant>,
    socket_digest: Arc<SocketDigest>,
    proxy_digest: Arc<ProxyDigest>,
    ssl_digest: Option<Arc<SslDigest>>,
}

impl std::fmt::Debug for Guarded {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Guarded").field("phase", &self.connection.phase()).finish_non_exhaustive()
    }
}

impl Guarded {
    pub fn new(
        transport: Transport,
        connection: Arc<Connection>,
        clocks: Clocks,
        place: Place,
    ) -> Result<Guarded, Box<pingora_core::Error>> {
        let (fd, ssl_digest) = match &transport {
            Transport::Plain(tcp) => (tcp.as_raw_fd(), None),
            Transport::Tls(tls) => {
                let version = tls.get_ref().1.protocol_version().and_then(|v| v.as_str()).unwrap_or("TLS");
                let digest = SslDigest::new("", version, None, None, Vec::new());
                (tls.get_ref().0.as_raw_fd(), Some(Arc::new(digest)))
            }
        };
        let socket_digest = SocketDigest::from_raw_fd(fd);
        let _ = socket_digest.peer_addr.set(Some(connection.peer.into()));
        // pingora hands one user-defined value from the stream to the session: the proxy digest's.
        let response = Box::new(pingora_http::ResponseHeader::build(200, Some(0))?);
        let proxy_digest = ProxyDigest::new(response, Some(Box::new(connection.clone())));
        Ok(Guarded {
            transport,
            connection,
            clocks,
            _place: Some(place),
            write_buffer: Vec::new(),
            written: 0,
            read_clock: None,
            write_clock: None,
            read_deadline: None,
            header_bytes: 0,
            body_bytes: 0,
            body_waited: Duration::ZERO,
            waiting_since: None,
            socket_digest: Arc::new(socket_digest),
            proxy_digest: Arc::new(proxy_digest),
            ssl_digest,
        })
    }

    /// After `Pending` from the transport: has the clock of this phase run out?
    ///
    /// Most waits are short, so a timer is set rarely: one that is already running is left to fire
    /// early and is then set for what remains.
    fn poll_read_clock(&mut self, cx: &mut Context<'_>) -> Poll<io::Error> {
        let phase = self.connection.phase();
        let Some(limit) = self.read_limit(phase) else {
            self.read_deadline = None;
            return Poll::Pending;
        };
        let deadline = match self.read_deadline {
            Some((set_for, deadline)) if set_for == phase => deadline,
            _ => {
                let deadline = Instant::now() + limit;
                self.read_deadline = Some((phase, deadline));
                deadline
            }
        };
        let clock = self.read_clock.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(deadline)));
        if clock.deadline() > deadline {
            clock.as_mut().reset(deadline);
        }
        loop {
            ready!(clock.as_mut().poll(cx));
            let deadline = self.read_deadline.map_or(deadline, |(_, deadline)| deadline);
            let mut left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() && matches!(phase, Phase::Tunnel | Phase::Multiplexed) {
                // Bytes in the other direction count too.
                left = self.clocks.tunnel_idle.saturating_sub(self.connection.quiet_for());
            }
            if left.is_zero() {
                return Poll::Ready(timed_out());
            }
            let later = Instant::now() + left;
            self.read_deadline = Some((phase, later));
            clock.as_mut().reset(later);
        }
    }

    fn read_limit(&self, phase: Phase) -> Option<Duration> {
        match phase {
            Phase::Idle => Some(self.clocks.idle),
            Phase::Header => Some(self.clocks.header_read),
            Phase::Body => Some(self.clocks.body_idle),
            Phase::Tunnel | Phase::Multiplexed => Some(self.clocks.tunnel_idle),
            Phase::Response => None,
        }
    }

    /// Bytes arrived: move the clocks on. The header clock runs from the first byte to the last.
    fn on_read(&mut self, bytes: usize) -> io::Result<()> {
        if let Some(since) = self.waiting_since.take() {
            self.body_waited += since.elapsed();
        }
        match self.connection.phase() {
            Phase::Idle => {
                self.connection.set_phase(Phase::Header);
                self.read_deadline = Some((Phase::Header, Instant::now() + self.clocks.header_read));
                self.header_bytes = bytes;
                self.body_bytes = 0;
                self.body_waited = Duration::ZERO;
            }
            Phase::Header => {
                self.header_bytes += bytes;
                if self.header_bytes > self.clocks.header_bytes_max + HEADER_SLACK_BYTES {
                    return Err(io::Error::new(io::ErrorKind::InvalidData, "request header too large"));
                }
            }
            Phase::Body => {
                self.read_deadline = None;
                self.body_bytes += bytes as u64;
                let enough = f64::from(self.clocks.body_rate_min) * self.body_waited.as_secs_f64();
                if self.body_waited > BODY_RATE_GRACE && (self.body_bytes as f64) < enough {
                    return Err(timed_out());
                }
            }
            Phase::Tunnel | Phase::Multiplexed => {
                self.read_deadline = None;
                self.connection.touch();
            }
            Phase::Response => {}
        }
        Ok(())
    }

    /// Passes `result` on; while it is pending, the peer's time to take bytes runs.
    fn poll_write_clock<T>(
        &mut self,
        cx: &mut Context<'_>,
        result: Poll<io::Result<T>>,
    ) -> Poll<io::Result<T>> {
        if result.is_ready() {
            self.write_clock = None;
            return result;
        }
        let limit = self.clocks.body_idle;
        let clock = self.write_clock.get_or_insert_with(|| Box::pin(tokio::time::sleep(limit)));
        ready!(clock.as_mut().poll(cx));
        Poll::Ready(Err(timed_out()))
    }

    /// Writes out the buffer, then `tail`. Returns how many bytes of `tail` went out.
    fn poll_drain(&mut self, cx: &mut Context<'_>, tail: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let buffered = &self.write_buffer[self.written..];
            if buffered.is_empty() && tail.is_empty() {
                break;
            }
            let slices = [io::IoSlice::new(buffered), io::IoSlice::new(tail)];
            let slices = if buffered.is_empty() { &slices[1..] } else { &slices[..] };
            let result = match &mut self.transport {
                Transport::Plain(tcp) => Pin::new(tcp).poll_write_vectored(cx, slices),
                Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_write_vectored(cx, slices),
            };
            let count = ready!(self.poll_write_clock(cx, result))?;
            if count == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            if matches!(self.connection.phase(), Phase::Tunnel | Phase::Multiplexed) {
                self.connection.touch();
            }
            let from_buffer = count.min(self.write_buffer.len() - self.written);
            self.written += from_buffer;
            if self.written == self.write_buffer.len() {
                self.written = 0;
                if self.write_buffer.capacity() > WRITE_KEEP_BYTES {
                    self.write_buffer = Vec::new();
                } else {
                    self.write_buffer.clear();
                }
            }
            if count > from_buffer {
                return Poll::Ready(Ok(count - from_buffer));
            }
        }
        Poll::Ready(Ok(0))
    }
}

impl Drop for Guarded {
    /// When an app breaks off in the middle, what it sent before still goes out.
    fn drop(&mut self) {
        if let Transport::Plain(tcp) = &self.transport
            && !self.connection.is_cut()
            && self.written < self.write_buffer.len()
        {
            let _ = tcp.try_write(&self.write_buffer[self.written..]);
        }
    }
}

fn timed_out() -> io::Error {
    io::ErrorKind::TimedOut.into()
}

fn was_cut() -> io::Error {
    io::Error::new(io::ErrorKind::ConnectionAborted, "the session was revoked")
}

impl AsyncRead for Guarded {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.connection.read_waker.register(cx.waker());
        if this.connection.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        let before = buf.filled().len();
        let result = match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_read(cx, buf),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_read(cx, buf),
        };
        match result {
            Poll::Ready(Ok(())) => {
                let count = buf.filled().len() - before;
                Poll::Ready(if count > 0 { this.on_read(count) } else { Ok(()) })
            }
            Poll::Ready(Err(error)) => Poll::Ready(Err(error)),
            Poll::Pending => {
                if this.connection.phase() == Phase::Body && this.waiting_since.is_none() {
                    this.waiting_since = Some(Instant::now());
                }
                this.poll_read_clock(cx).map(Err)
            }
        }
    }
}

impl AsyncWrite for Guarded {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.connection.write_waker.register(cx.waker());
        if this.connection.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        if this.write_buffer.len() + buf.len() <= WRITE_JOIN_BYTES {
            this.write_buffer.extend_from_slice(buf);
            return Poll::Ready(Ok(buf.len()));
        }
        this.poll_drain(cx, buf)
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        this.connection.write_waker.register(cx.waker());
        if this.connection.is_cut() {
            return Poll::Ready(Err(was_cut()));
        }
        ready!(this.poll_drain(cx, &[]))?;
        let result = match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_flush(cx),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_flush(cx),
        };
        this.poll_write_clock(cx, result)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if this.connection.is_cut() {
            // Without the TLS goodbye: what a session layer still holds must not go out.
            return Poll::Ready(Ok(()));
        }
        ready!(this.poll_drain(cx, &[]))?;
        let result = match &mut this.transport {
            Transport::Plain(tcp) => Pin::new(tcp).poll_shutdown(cx),
            Transport::Tls(tls) => Pin::new(tls.as_mut()).poll_shutdown(cx),
        };
        this.poll_write_clock(cx, result)
    }
}

#[async_trait::async_trait]
impl Shutdown for Guarded {
    async fn shutdown(&mut self) {
        let _ = tokio::io::AsyncWriteExt::shutdown(self).await;
    }
}

impl UniqueID for Guarded {
    fn id(&self) -> UniqueIDType {
        match &self.transport {
            Transport::Plain(tcp) => tcp.as_raw_fd(),
            Transport::Tls(tls) => tls.get_ref().0.as_raw_fd(),
        }
    }
}

impl Ssl for Guarded {
    fn get_ssl_digest(&self) -> Option<Arc<SslDigest>> {
        self.ssl_digest.clone()
    }

    fn selected_alpn_proto(&self) -> Option<ALPN> {
        match &self.transport {
            Transport::Tls(tls) if tls.get_ref().1.alpn_protocol() == Some(b"h2") => Some(ALPN::H2),
            _ => None,
        }
    }
}

impl GetTimingDigest for Guarded {
    fn get_timing_digest(&self) -> Vec<Option<TimingDigest>> {
        Vec::new()
    }
}

impl GetProxyDigest for Guarded {
    fn get_proxy_digest(&self) -> Option<Arc<ProxyDigest>> {
        Some(self.proxy_digest.clone())
    }
}

impl GetSocketDigest for Guarded {
    fn get_socket_digest(&self) -> Option<Arc<SocketDigest>> {
        Some(self.socket_digest.clone())
    }
}

#[async_trait::async_trait]
impl Peek for Guarded {
    /// Fills `buf` as far as the client has sent, without consuming; for the HTTP/2 preface.
    async fn try_peek(&mut self, buf: &mut [u8]) -> io::Result<bool> {
        let Transport::Plain(tcp) = &self.transport else { return Ok(false) };
        let wait = tokio::time::timeout(self.clocks.idle, tcp.peek(buf));
        // Fewer bytes than the preface are not the preface; pingora compares the whole buffer.
        wait.await.map_err(|_| timed_out())??;
        Ok(true)
    }
}
