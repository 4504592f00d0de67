//! The proxy: pingora's phases from top to bottom, short calls only.
//!
//! Reads the two boards (`standing`, `revocation`), never writes them. When a step of ours fails
//! the page still flows; only a board refuses.

pub mod country;
pub mod csp;
pub mod forward;
pub mod framing;
pub mod identity;
pub mod inject;
pub mod limits;
pub mod listen;
pub mod rates;
pub mod upstream;

use crate::alert::AppSink;
use crate::clock;
use crate::config::Config;
use crate::edge::{self, Edge, EdgeRequest};
use crate::revocation::{Refusal, Revocations};
use crate::shards::Shards;
use crate::signals::{Asked, Signals};
use crate::standing::{Standings, Verdict};
use arc_swap::ArcSwap;
use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use country::Countries;
use forward::Visitor;
use gaitway_models::Timestamp;
use gaitway_models::session::RequestSeen;
use gaitway_policies::facts::Facts;
use gaitway_policies::limit::IPV6_PREFIX;
use gaitway_policies::route::{Outage, RequestLine, Sources};
use gaitway_policies::{Identity, Input, PolicySet, SessionId};
use http::{HeaderMap, Method, StatusCode, Version, header};
use identity::login::{LOGGED_OUT, Login, Presence};
use identity::{Caller, Identified, Identifier};
use inject::{Injection, Injector, Plan, Prepared};
use ipnet::IpNet;
use limits::{Connection, Phase};
use metrics::{Counter, Histogram, counter, gauge, histogram};
use pingora_core::protocols::http::ServerSession;
use pingora_core::upstreams::peer::HttpPeer;
use pingora_core::{Error, ErrorType, Result};
use pingora_http::{RequestHeader, ResponseHeader};
use pingora_proxy::{FailToProxy, ProxyHttp, Session};
use rates::{Counted, Fields, Over, Rates, Requester};
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::io::AsyncWriteExt;
use tokio::sync::{Semaphore, SemaphorePermit};
use tracing::info;
use upstream::Upstream;

/// A refused request's body up to this size is read to its end, so that the answer arrives.
const DRAIN_BYTES_MAX: u64 = 32 * 1024;
/// How long that may take.
const DRAIN_TIMEOUT: Duration = Duration::from_secs(5);
/// Characters of a path written to the access log at most.
const LOG_PATH_CHARS_MAX: usize = 200;

/// Everything the phases read. One per process.
pub struct Gateway {
    pub upstream: Arc<Upstream>,
    pub identifier: Arc<Identifier>,
    login: Option<Arc<Login>>,
    signals: Option<Arc<Signals>>,
    app_logout: Option<Arc<AppSink>>,
    pub revocations: Arc<Revocations>,
    pub standings: Arc<Standings>,
    pub shards: Arc<Shards>,
    pub edge: Arc<Edge>,
    countries: Countries,
    rates: Arc<Rates>,
    /// Answers that a tarpit may hold back at a time.
    tarpits: Semaphore,
    policies: Arc<ArcSwap<PolicySet>>,
    /// Keyed anew in each process: paths are counted, never kept.
    path_hasher: RandomState,
    injector: Option<Injector>,
    cookies_to_clear: Vec<String>,
    trusted_proxies: Vec<IpNet>,
    preserve_host: bool,
    request_body_bytes_max: u64,
    request_header_bytes_max: usize,
    /// How long an HTTP/2 stream may stand still.
    body_idle: Duration,
    access_log: bool,
    meters: Meters,
}

/// Handles kept, because looking a metric up by name costs more than counting.
struct Meters {
    responses: [Counter; 6],
    seconds: Histogram,
    own_seconds: Histogram,
}

/// Why a request is answered here instead of by the app.
enum Held {
    LoggedOut { incident: String },
    TooMany(Over),
    Challenge,
    StepUp { acr_values: String, max_age_seconds: u64 },
    Tarpit { incident: String, delay: Duration },
}

/// What a policy route says of a request.
struct Terms {
    /// While Redis is out of reach.
    outage: Outage,
    needs_login: bool,
    sources: Sources,
}

/// What one request carries from phase to phase.
pub struct Visit {
    started: Instant,
    connection: Option<Arc<Connection>>,
    visitor: Option<Visitor>,
    /// The session, if the caller presented one.
    identity: Option<Arc<Identity>>,
    /// Everybody the request claims to be: the session and further verified identities.
    identities: Vec<Arc<Identity>>,
    /// Who is logged in at the provider, for the app.
    login: Option<Arc<identity::login::Session>>,
    /// Number of this request on its connection, while it is under way.
    entered: Option<u64>,
    navigation: bool,
    upgrade: bool,
    /// Should the request be refused, then for an identity that its address alone proves.
    by_link: bool,
    /// Name of the policy route; empty for the default one.
    route: String,
    /// The route wants the collector in its pages.
    inject: bool,
    tag: Option<String>,
    /// What the response says about rate limits.
    rate_fields: Fields,
    prepared: Prepared,
    injection: Option<Box<Injection>>,
    request_bytes: u64,
    /// Answered here, nothing went upstream.
    own: bool,
    /// Status of an answer that was written past pingora.
    status: Option<u16>,
}

impl Gateway {
    #[expect(clippy::too_many_arguments, reason = "the composition root hands every part over once")]
    pub fn new(
        config: &Config,
        upstream: Arc<Upstream>,
        identifier: Arc<Identifier>,
        login: Option<Arc<Login>>,
        app_logout: Option<Arc<AppSink>>,
        revocations: Arc<Revocations>,
        standings: Arc<Standings>,
        shards: Arc<Shards>,
        edge: Arc<Edge>,
        (rates, countries): (Arc<Rates>, Countries),
        policies: Arc<ArcSwap<PolicySet>>,
    ) -> Gateway {
        Gateway {
            upstream,
            rates,
            countries,
            tarpits: Semaphore::new(config.limits.tarpits_max as usize),
            cookies_to_clear: {
                let login = login.iter().map(|login| login.cookie().to_owned());
                identifier.cookies_to_clear().into_iter().chain(login).collect()
            },
            identifier,
            login,
            signals: None,
            app_logout,
            revocations,
            standings,
            shards,
            edge,
            policies,
            path_hasher: RandomState::new(),
            injector: config.collector.inject.then(|| Injector::new(&config.collector)),
            trusted_proxies: config.proxy.trusted_proxies.clone(),
            preserve_host: config.proxy.preserve_host,
            request_body_bytes_max: config.limits.request_body_bytes_max,
            request_header_bytes_max: config.limits.request_header_bytes_max as usize,
            body_idle: Duration::from_millis(config.limits.body_idle_timeout_ms),
            access_log: config.log.access,
            meters: Meters::new(),
        }
    }

    /// Opens the doors for security events.
    pub fn with_signals(mut self, signals: Option<Arc<Signals>>) -> Gateway {
        self.signals = signals;
        self
    }

    /// Everything that may end a request before it goes upstream. `Ok(true)`: answered.
    async fn admit(&self, session: &mut Session, visit: &mut Visit) -> Result<bool> {
        visit.connection = Connection::of(session.digest()).cloned();
        if let Err(fault) = self.check_framing(session) {
            counter!("gaitway_framing_refused_total", "fault" => fault.as_str()).increment(1);
            return self.refuse_malformed(session, visit, fault.status()).await;
        }
        let Some(connection) = visit.connection.clone() else {
            return Error::e_explain(ErrorType::InternalError, "a session without a connection");
        };
        if session.is_http2() {
            connection.set_phase(Phase::Multiplexed);
            // One stream that nobody reads must not hold its task for ever.
            session.as_downstream_mut().set_write_timeout(Some(self.body_idle));
            name_host(session.req_header_mut())?;
        } else {
            // The connection's own clocks rule; pingora's would end idle WebSockets after a minute.
            session.as_downstream_mut().set_read_timeout(None);
            session.as_downstream_mut().set_write_timeout(None);
        }
        let request = session.req_header();
        let upgrade = request.headers.get(header::UPGRADE).map(|value| value.as_bytes());
        visit.upgrade =
            session.is_upgrade_req() && upgrade.is_some_and(|value| value.eq_ignore_ascii_case(b"websocket"));
        visit.navigation = is_navigation(request);
        let visitor = Visitor::of(connection.peer, connection.tls, &self.trusted_proxies, request);
        let https = visitor.https;
        visit.visitor = Some(visitor);
        if self.request_body_bytes_max > 0 && declared_length(request) > self.request_body_bytes_max {
            return self.refuse_malformed(session, visit, 413).await;
        }

        if self.signals.as_ref().is_some_and(|signals| signals.owns(request.uri.path())) {
            connection.set_phase(Phase::Body);
            return self.serve_signals(session, visit).await;
        }

        let now = clock::now();
        let is_own = self.edge.endpoint(request.uri.path()).is_some();
        let terms = if is_own { self.terms_of_page(request) } else { self.take_route(request, visit) };
        let mut presence = self.presence(&request.headers, now).await;
        let answers = self.identifier.introspect(&request.headers, now).await;
        if answers.denied {
            return self.refuse_malformed(session, visit, 503).await;
        }
        // Own endpoints are asked by our own script, which puts no token into an address.
        let query = request.uri.query().filter(|_| !is_own);
        let mut identified = self.identifier.identify(&request.headers, query, now, terms.sources, is_own);
        identified = identified.introspected(&answers, terms.sources);
        if let Presence::Present(login) = &presence {
            identified = identified.logged_in(login, terms.sources);
        }
        if !terms.sources.oidc {
            presence = Presence::Absent;
        }
        let Identified { caller, others, linked } = identified;
        // The app may honour any identity in the request, so a revoked one behind a good one counts.
        let all = || caller.known().into_iter().chain(&others);
        let is_revoked = |identity: &Arc<Identity>| self.revocations.check(identity, now);
        let refusal = all().filter(|identity| !linked.contains(identity)).find_map(is_revoked);
        visit.by_link = refusal.is_none() && !linked.is_empty();
        let refusal = refusal.or_else(|| all().find_map(is_revoked));
        if is_own {
            connection.set_phase(Phase::Body);
            let revoked = refusal.map(|refusal| refusal.incident);
            return self.serve_own(session, visit, (&caller, &others), https, revoked).await;
        }
        connection.set_phase(Phase::Body);
        visit.identity = caller.known().cloned();
        visit.identities.extend(caller.known().cloned());
        visit.identities.extend(others);
        // From here on a revocation reaches this request, whatever it is waiting for.
        visit.entered = Some(connection.enter(visit.identities.clone()));
        // Asked again now that a cut would find the request, so that none falls between.
        let refusal = refusal.or_else(|| self.refusal(&visit.identities));
        if terms.outage == Outage::Deny && !self.revocations.health().connected {
            return self.refuse_malformed(session, visit, 503).await;
        }
        if let Presence::Present(login) = &presence {
            visit.login = Some(login.clone());
        }
        // Also of who is refused: to the app the session may live on.
        if let (Some(sink), Some(identity)) = (&self.app_logout, caller.known())
            && !linked.contains(identity)
        {
            sink.note(&identity.session, &session.req_header().headers);
        }
        let held = match (refusal, caller.known()) {
            (Some(refusal), known) => Some(self.turn_away(visit, refusal, known, now)),
            (None, known) => self.count(visit).or_else(|| self.hold(visit, &known?.session, now)),
        };
        if let Some(held) = held {
            return self.refuse(session, visit, &caller, https, held).await;
        }
        match &self.login {
            Some(login) if terms.needs_login && self.lacks_login(&presence, &caller) => {
                self.ask_to_log_in(session, visit, &caller, https, (login, &presence)).await
            }
            _ => Ok(false),
        }
    }

    /// A revocation refuses; if a tarpit made it here, slowly. Never so where an allow rule speaks.
    fn turn_away(
        &self,
        visit: &Visit,
        refusal: Refusal,
        known: Option<&Arc<Identity>>,
        now: Timestamp,
    ) -> Held {
        match known.map(|identity| self.standings.verdict(&identity.session, now)) {
            Some(Verdict::Tarpit { incident, delay }) if !self.is_allowed(&self.policies.load(), visit) => {
                Held::Tarpit { incident, delay }
            }
            _ => Held::LoggedOut { incident: refusal.incident },
        }
    }

    /// Counts the request against the limits of its route.
    fn count(&self, visit: &mut Visit) -> Option<Held> {
        let policies = self.policies.load();
        if policies.limits().is_empty() {
            return None;
        }
        let requester = Requester {
            session: visit.identity.as_ref().map(|identity| &identity.session),
            address: visit.visitor.as_ref()?.address,
            route: &visit.route,
        };
        let counted = self.rates.count(&policies, &requester, || self.is_allowed(&policies, visit));
        take_fields(visit, counted)
    }

    /// Whether an allow rule over what the request itself says speaks for it.
    fn is_allowed(&self, policies: &PolicySet, visit: &Visit) -> bool {
        let identity = visit.identity.as_ref();
        let (net_ip, net_country) = self.place_of(visit);
        let facts = Facts {
            route: visit.route.clone(),
            net_ip,
            net_country,
            user_id: identity.map(|identity| identity.user_id()).unwrap_or_default(),
            user_groups: identity.map(|identity| identity.groups.clone()).unwrap_or_default(),
            ..Facts::default()
        };
        policies.allows_at_door(&facts).is_some()
    }

    /// Address and country of the visitor, as facts have them.
    fn place_of(&self, visit: &Visit) -> (String, String) {
        let address = visit.visitor.as_ref().map(|visitor| visitor.address);
        let country = address.map(|address| self.countries.of(address)).unwrap_or_default();
        (address.map(|address| address.to_string()).unwrap_or_default(), country.to_owned())
    }

    /// What stands against the session, unless an allow rule speaks for this very request.
    fn hold(&self, visit: &mut Visit, session: &SessionId, now: Timestamp) -> Option<Held> {
        match self.standings.verdict(session, now) {
            Verdict::Allow => None,
            Verdict::Deny { incident } => Some(Held::LoggedOut { incident }),
            _ if self.is_allowed(&self.policies.load(), visit) => None,
            Verdict::Tag(value) => {
                visit.tag = Some(value);
                None
            }
            Verdict::Throttle(rate) => take_fields(visit, self.rates.throttle(session, rate)),
            Verdict::Challenge => Some(Held::Challenge),
            Verdict::StepUp { acr_values, max_age_seconds } => {
                Some(Held::StepUp { acr_values, max_age_seconds })
            }
            Verdict::Tarpit { incident, delay } => Some(Held::Tarpit { incident, delay }),
        }
    }

    /// Who is logged in at the provider. Whoever logged out is nobody again, wherever they did so.
    async fn presence(&self, headers: &HeaderMap, now: Timestamp) -> Presence {
        let Some(login) = &self.login else { return Presence::Absent };
        let presence = login.presence(headers, now).await;
        if let Presence::Present(session) = &presence
            && self.revocations.check(&session.identity, now).is_some_and(|r| r.incident == LOGGED_OUT)
        {
            return Presence::Absent;
        }
        presence
    }

    /// A verified token of the app is a login, too: that of a program.
    fn lacks_login(&self, presence: &Presence, caller: &Caller) -> bool {
        !matches!(presence, Presence::Present(_))
            && caller.known().is_none_or(|identity| identity.token.is_none())
    }

    async fn ask_to_log_in(
        &self,
        session: &mut Session,
        visit: &mut Visit,
        caller: &Caller,
        https: bool,
        (login, presence): (&Arc<Login>, &Presence),
    ) -> Result<bool> {
        visit.own = true;
        let header = session.req_header();
        let (path, query) = (header.uri.path().to_owned(), header.uri.query().map(str::to_owned));
        let response = {
            let target = (path.as_str(), query.as_deref());
            let request = self.own_request(header, target, (caller, &[]), https, None, Bytes::new());
            match presence {
                Presence::Unknown => self.edge.login_unknown(),
                _ => self.edge.login_needed(login, visit.navigation && !visit.upgrade, &request),
            }
        };
        self.prepare_refusal(session);
        write_response(session, response).await?;
        Ok(true)
    }

    /// What visitors of a page are known by, as far as requests of that page to our own endpoints say
    /// where they come from; the telemetry socket does not, and finds its session by its page token.
    fn terms_of_page(&self, request: &RequestHeader) -> Terms {
        let mut terms = Terms { outage: Outage::ServeKnown, needs_login: false, sources: Sources::ALL };
        let policies = self.policies.load();
        let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        let page = header("referer").and_then(|page| page.parse::<http::Uri>().ok());
        if let (Some(page), false) = (page, policies.routes().is_empty()) {
            let host = page.host().unwrap_or_default();
            let line = RequestLine { host, path: page.path(), method: "GET", header: &|_| None };
            terms.sources = policies.route(&line).sources;
        }
        terms
    }

    /// Finds the policy route of a request, and what it says of the request.
    fn take_route(&self, request: &RequestHeader, visit: &mut Visit) -> Terms {
        let policies = self.policies.load();
        let is_required = |route: Option<bool>| {
            self.login.as_ref().is_some_and(|login| login.is_required(route, request.uri.path()))
        };
        if policies.routes().is_empty() {
            let (outage, sources) = (Outage::ServeKnown, Sources::ALL);
            return Terms { outage, needs_login: is_required(None), sources };
        }
        let header = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
        let authority = request.uri.authority().map(|authority| authority.as_str());
        let host = header("host").or(authority).unwrap_or_default();
        let line = RequestLine {
            host: without_port(host),
            path: request.uri.path(),
            method: request.method.as_str(),
            header: &header,
        };
        let route = policies.route(&line);
        visit.route.clone_from(&route.name);
        visit.inject = route.injection;
        Terms { outage: route.outage, needs_login: is_required(route.login), sources: route.sources }
    }

    fn check_framing(&self, session: &Session) -> std::result::Result<(), framing::Fault> {
        match session.as_downstream().as_http1() {
            Some(http1) => framing::check(&http1.get_headers_raw_bytes(), self.request_header_bytes_max),
            // HTTP/2 has no textual framing; the h2 crate enforces its rules and size limits.
            None => Ok(()),
        }
    }

    async fn refuse_malformed(&self, session: &mut Session, visit: &mut Visit, status: u16) -> Result<bool> {
        visit.own = true;
        session.set_keepalive(None);
        write_response(session, edge::failure(status)).await?;
        Ok(true)
    }

    /// A board refuses: say so in the form this client understands. A POST is never redirected.
    async fn refuse(
        &self,
        session: &mut Session,
        visit: &mut Visit,
        caller: &Caller,
        https: bool,
        held: Held,
    ) -> Result<bool> {
        visit.own = true;
        let page = visit.navigation && !visit.upgrade;
        let header = session.req_header();
        let (path, query) = (header.uri.path().to_owned(), header.uri.query().map(str::to_owned));
        let mut response = {
            let mut request =
                self.own_request(header, (&path, query.as_deref()), (caller, &[]), https, None, Bytes::new());
            request.by_link = visit.by_link;
            match &held {
                Held::LoggedOut { incident } | Held::Tarpit { incident, .. } if page => {
                    self.edge.logout_page(incident, &request)
                }
                Held::LoggedOut { incident } | Held::Tarpit { incident, .. } => {
                    self.edge.logout_problem(incident, &request)
                }
                Held::TooMany(over) if page => self.edge.slow_down_page(over.retry_after_seconds, &request),
                Held::TooMany(over) => edge::slow_down_problem(&over.limit, over.retry_after_seconds),
                Held::StepUp { acr_values, max_age_seconds } if page => {
                    let ask = (acr_values.as_str(), *max_age_seconds);
                    self.edge.step_up_page(caller.identity(), visit.login.is_some(), ask, &request)
                }
                Held::Challenge if page => self.edge.challenge_page(caller.identity(), &request),
                Held::StepUp { acr_values, max_age_seconds } => {
                    self.edge.step_up_problem(acr_values, *max_age_seconds)
                }
                Held::Challenge => self.edge.challenge_problem(),
            }
        };
        for (name, value) in std::mem::take(&mut visit.rate_fields).into_pairs() {
            response.headers_mut().insert(name, value);
        }
        // Every answer held back costs a connection of ours, too; past the cap it is an ordinary refusal.
        let mire = match held {
            Held::Tarpit { delay, .. } => Mire::enter(&self.tarpits).map(|mire| (mire, delay)),
            _ => None,
        };
        let outcome = match (&held, &mire) {
            (Held::Tarpit { .. }, Some(_)) => "tarpit",
            (Held::Tarpit { .. } | Held::LoggedOut { .. }, _) => "deny",
            (Held::TooMany(_), _) => "throttle",
            (Held::Challenge, _) => "challenge",
            (Held::StepUp { .. }, _) => "step_up",
        };
        counter!("gaitway_requests_refused_total", "outcome" => outcome).increment(1);
        self.prepare_refusal(session);
        match mire {
            Some((_mire, delay)) => {
                if let (Some(connection), false) = (&visit.connection, session.is_http2()) {
                    connection.set_phase(Phase::Response);
                }
                visit.status = Some(response.status().as_u16());
                drip_response(session, response, delay).await?;
            }
            None => write_response(session, response).await?,
        }
        Ok(true)
    }

    /// A body still on its way would reset the connection and the answer with it.
    fn prepare_refusal(&self, session: &mut Session) {
        if length_of(&session.req_header().headers).is_some_and(|length| length <= DRAIN_BYTES_MAX) {
            session.as_downstream_mut().set_total_drain_timeout(Some(DRAIN_TIMEOUT));
        } else if !session.as_downstream_mut().is_body_empty() {
            session.set_keepalive(None);
        }
    }

    /// One of Gaitway's own endpoints.
    async fn serve_own(
        &self,
        session: &mut Session,
        visit: &mut Visit,
        (caller, others): (&Caller, &[Arc<Identity>]),
        https: bool,
        revoked: Option<String>,
    ) -> Result<bool> {
        visit.own = true;
        let body = match read_body(session, self.body_idle).await? {
            Some(body) => body,
            None => return self.refuse_malformed(session, visit, 413).await,
        };
        let header = session.req_header();
        let (path, query) = (header.uri.path().to_owned(), header.uri.query().map(str::to_owned));
        let wants_socket = visit.upgrade && self.edge.endpoint(&path) == Some("t");
        let ticket = {
            let target = (path.as_str(), query.as_deref());
            let mut request =
                self.own_request(header, target, (caller, others), https, revoked.as_deref(), body);
            let visitor = visit.visitor.as_ref();
            request.network = visitor.map(|visitor| limits::network_of(visitor.address, IPV6_PREFIX));
            if !wants_socket {
                let response = self.edge.answer(&request).await;
                write_response(session, response).await?;
                return Ok(true);
            }
            match self.edge.open_socket(&request) {
                Ok(ticket) => {
                    // Asked again now that the socket is known: whoever was revoked before is told as it
                    // opens, whoever is revoked from here on is found.
                    let again = || {
                        let mut proved = caller.known().into_iter().chain(others);
                        proved.find_map(|identity| self.revocations.check(identity, clock::now()))
                    };
                    if let Some(incident) =
                        revoked.clone().or_else(|| again().map(|refusal| refusal.incident))
                    {
                        ticket.end(incident);
                    }
                    ticket
                }
                Err(response) => {
                    write_response(session, *response).await?;
                    return Ok(true);
                }
            }
        };
        let accept = header
            .headers
            .get(header::SEC_WEBSOCKET_KEY)
            .map(|key| tokio_tungstenite::tungstenite::handshake::derive_accept_key(key.as_bytes()));
        let Some(accept) = accept else { return self.refuse_malformed(session, visit, 400).await };
        let mut stream = take_over(session).await?;
        if let Some(connection) = &visit.connection {
            connection.set_phase(Phase::Tunnel);
        }
        let switching = format!(
            "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Accept: {accept}\r\n\r\n"
        );
        tokio::spawn(async move {
            let sent = async {
                stream.write_all(switching.as_bytes()).await?;
                stream.flush().await
            };
            if sent.await.is_ok() {
                ticket.run(stream).await;
            }
        });
        Ok(true)
    }

    /// The doors for security events. Whoever comes is nobody's visitor, and is not looked at as one: its
    /// token is no token of the app and must not be shown to anybody.
    async fn serve_signals(&self, session: &mut Session, visit: &mut Visit) -> Result<bool> {
        visit.own = true;
        let Some(body) = read_body(session, self.body_idle).await? else {
            return self.refuse_malformed(session, visit, 413).await;
        };
        let (Some(signals), Some(visitor)) = (&self.signals, &visit.visitor) else { return Ok(false) };
        let header = session.req_header();
        let asked = Asked {
            method: &header.method,
            path: header.uri.path(),
            headers: &header.headers,
            from: visitor.address,
            body,
        };
        let response = signals.answer(&asked).await;
        write_response(session, response).await?;
        Ok(true)
    }

    fn own_request<'a>(
        &'a self,
        header: &'a RequestHeader,
        (path, query): (&'a str, Option<&'a str>),
        (caller, others): (&'a Caller, &'a [Arc<Identity>]),
        https: bool,
        revoked: Option<&'a str>,
        body: Bytes,
    ) -> EdgeRequest<'a> {
        EdgeRequest {
            method: &header.method,
            path,
            query,
            headers: &header.headers,
            caller,
            others,
            https,
            network: None,
            revoked,
            cookies_to_clear: &self.cookies_to_clear,
            by_link: false,
            body,
        }
    }

    /// Not one more byte of a revoked session, whichever connection it shares.
    fn check_still_welcome(&self, visit: &Visit) -> Result<()> {
        match self.refusal(&visit.identities) {
            Some(_) => Error::e_explain(ErrorType::ConnectionClosed, "the session was revoked"),
            None => Ok(()),
        }
    }

    fn refusal(&self, identities: &[Arc<Identity>]) -> Option<Refusal> {
        let now = identities.first().map(|_| clock::now())?;
        identities.iter().find_map(|identity| self.revocations.check(identity, now))
    }

    fn report(&self, session: &Session, error: Option<&Error>, visit: &Visit) {
        let written = session.response_written().map(|response| response.status.as_u16());
        let status = written.or(visit.status).unwrap_or(0);
        let elapsed = visit.started.elapsed();
        self.meters.responses[usize::from(status / 100).min(5)].increment(1);
        if visit.own { &self.meters.own_seconds } else { &self.meters.seconds }.record(elapsed.as_secs_f64());
        if !self.access_log {
            return;
        }
        let request = session.req_header();
        let path: String = request.uri.path().chars().take(LOG_PATH_CHARS_MAX).collect();
        let session_id = visit.identity.as_ref().map(|identity| identity.session.to_string());
        let method = request.method.as_str();
        let cause = error.map(|error| error.etype().as_str());
        let duration_ms = elapsed.as_secs_f64() * 1e3;
        info!(
            target: "gaitway::access",
            {
                request.method = method,
                request.path = path,
                response.status = status,
                response.bytes = session.body_bytes_sent(),
                duration_ms,
                session.id = session_id,
                request.own = visit.own,
                error.kind = cause,
            },
            "request"
        );
    }
}

#[async_trait]
impl ProxyHttp for Gateway {
    type CTX = Visit;

    fn new_ctx(&self) -> Visit {
        Visit {
            started: Instant::now(),
            connection: None,
            visitor: None,
            identity: None,
            identities: Vec::new(),
            login: None,
            entered: None,
            navigation: false,
            upgrade: false,
            by_link: false,
            route: String::new(),
            inject: true,
            tag: None,
            rate_fields: Fields::default(),
            prepared: Prepared::default(),
            injection: None,
            request_bytes: 0,
            own: false,
            status: None,
        }
    }

    async fn request_filter(&self, session: &mut Session, visit: &mut Visit) -> Result<bool> {
        let answered = self.admit(session, visit).await?;
        if !answered
            && session.as_downstream_mut().is_body_empty()
            && let Some(connection) = &visit.connection
        {
            connection.set_phase(Phase::Response);
        }
        Ok(answered)
    }

    async fn request_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        visit: &mut Visit,
    ) -> Result<()> {
        self.check_still_welcome(visit)?;
        visit.request_bytes += body.as_ref().map_or(0, |chunk| chunk.len() as u64);
        if self.request_body_bytes_max > 0
            && visit.request_bytes > self.request_body_bytes_max
            && !visit.upgrade
        {
            return Error::e_explain(ErrorType::HTTPStatus(413), "the request body exceeds the limit");
        }
        if end_of_stream
            && !visit.upgrade
            && let Some(connection) = &visit.connection
        {
            connection.set_phase(Phase::Response);
        }
        Ok(())
    }

    async fn upstream_peer(&self, _session: &mut Session, _visit: &mut Visit) -> Result<Box<HttpPeer>> {
        Ok(self.upstream.peer())
    }

    async fn upstream_request_filter(
        &self,
        session: &mut Session,
        upstream: &mut RequestHeader,
        visit: &mut Visit,
    ) -> Result<()> {
        let client = session.req_header();
        // HTTP/2 names the host in `:authority`, an absolute target names it in the request line.
        let host = client
            .headers
            .get(header::HOST)
            .and_then(|value| value.to_str().ok())
            .or_else(|| client.uri.authority().map(|authority| authority.as_str()))
            .map(str::to_owned);
        if client.uri.scheme().is_some() {
            let path = client.uri.path_and_query().map_or("/", |path| path.as_str());
            upstream.set_raw_path(path.as_bytes())?;
        }
        if let (Some(visitor), Some(connection)) = (&visit.visitor, &visit.connection) {
            forward::apply(visitor, connection.peer, host.as_deref(), upstream)?;
        }
        match host {
            Some(host) if self.preserve_host => upstream.insert_header(header::HOST, host)?,
            _ => upstream.insert_header(header::HOST, self.upstream.authority())?,
        }
        if let Some(login) = &self.login {
            let cookie = login.cookie();
            forward::withhold_cookies(upstream, |name| {
                name.strip_prefix(cookie).is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
            })?;
        }
        if let Some((user, groups)) = visit.login.as_ref().map(|login| login.told()) {
            for (name, value) in [("X-Gaitway-User", user), ("X-Gaitway-Groups", groups)] {
                if let Some(value) = value {
                    upstream.insert_header(name, value)?;
                }
            }
        }
        if let Some(tag) = visit.tag.take() {
            upstream.insert_header("X-Gaitway-Tag", tag)?;
        }
        if let Some(injector) = self.injector.as_ref().filter(|_| visit.inject) {
            visit.prepared = injector.prepare(client, upstream);
        }
        Ok(())
    }

    async fn response_filter(
        &self,
        session: &mut Session,
        response: &mut ResponseHeader,
        visit: &mut Visit,
    ) -> Result<()> {
        self.check_still_welcome(visit)?;
        if response.status == StatusCode::SWITCHING_PROTOCOLS {
            if let Some(connection) = &visit.connection {
                connection.set_phase(Phase::Tunnel);
            }
            return Ok(());
        }
        if response.version < Version::HTTP_11 {
            // The version is each hop's own (RFC 9110, section 2.5), and this one keeps connections.
            response.set_version(Version::HTTP_11);
        }
        if session.req_header().version == Version::HTTP_10 {
            // HTTP/1.0 knows no chunks: a body without a length ends with the connection.
            response.remove_header(&header::TRANSFER_ENCODING);
            session.set_keepalive(None);
        }
        for (name, value) in std::mem::take(&mut visit.rate_fields).into_pairs() {
            response.append_header(name, value)?;
        }
        let (Some(injector), Some(visitor), true) = (&self.injector, &visit.visitor, visit.inject) else {
            return Ok(());
        };
        match injector.plan(&visit.prepared, session.req_header(), visitor.scheme(), response) {
            Plan::Inject(injection) => visit.injection = Some(injection),
            Plan::Untouched(skip) if visit.navigation => {
                counter!("gaitway_injection_skipped_total", "reason" => skip.as_str()).increment(1);
            }
            Plan::Untouched(_) => {}
        }
        Ok(())
    }

    fn response_body_filter(
        &self,
        _session: &mut Session,
        body: &mut Option<Bytes>,
        end_of_stream: bool,
        visit: &mut Visit,
    ) -> Result<Option<Duration>> {
        self.check_still_welcome(visit)?;
        if let Some(injection) = &mut visit.injection {
            injection.feed(body, end_of_stream);
        }
        Ok(None)
    }

    /// With trailers the body ends here, not in the body filter.
    async fn response_trailer_filter(
        &self,
        _session: &mut Session,
        _trailers: &mut HeaderMap,
        visit: &mut Visit,
    ) -> Result<Option<Bytes>> {
        let mut rest = None;
        if let Some(injection) = &mut visit.injection {
            injection.feed(&mut rest, true);
        }
        Ok(rest)
    }

    async fn logging(&self, session: &mut Session, error: Option<&Error>, visit: &mut Visit) {
        let mut injected = false;
        if let Some(injection) = visit.injection.take() {
            let outcome = injection.outcome();
            injected = outcome == inject::Outcome::Injected;
            counter!("gaitway_injections_total", "outcome" => outcome.as_str()).increment(1);
        }
        self.report(session, error, visit);
        let identity = visit.identity.take();
        if let Some(connection) = &visit.connection {
            if let Some(number) = visit.entered.take() {
                connection.leave(number);
            }
            // A socket that was taken over keeps its own phase.
            if !(visit.own && connection.phase() == Phase::Tunnel) {
                connection.set_phase(Phase::Idle);
            }
        }
        let (Some(identity), false) = (identity, visit.own) else { return };
        let path = session.req_header().uri.path();
        let request = RequestSeen {
            navigation: visit.navigation,
            path_hash: self.path_hasher.hash_one(path),
            collector_injected: injected,
            response_bytes: session.body_bytes_sent() as u64,
        };
        let (net_ip, net_country) = self.place_of(visit);
        let input = Input::Request {
            identity: Identity::clone(&identity),
            request,
            route: std::mem::take(&mut visit.route),
            net_ip,
            net_country,
        };
        self.shards.offer(&identity.session, input);
    }

    fn suppress_error_log(&self, _session: &Session, _visit: &Visit, _error: &Error) -> bool {
        true
    }

    fn suppress_proxy_warn_log(
        &self,
        _session: &Session,
        _visit: &Visit,
        _error: &Error,
        _context: pingora_proxy::ProxyWarnLogContext,
    ) -> bool {
        true
    }

    /// The upstream failed us or the client left. Says so plainly; never with a cause.
    async fn fail_to_proxy(&self, session: &mut Session, error: &Error, visit: &mut Visit) -> FailToProxy {
        use pingora_core::ErrorSource;
        let code = match (error.etype(), error.esource()) {
            (ErrorType::HTTPStatus(code), _) => *code,
            (ErrorType::ConnectTimedout | ErrorType::ReadTimedout, ErrorSource::Upstream) => 504,
            (_, ErrorSource::Upstream) => 502,
            (
                ErrorType::WriteError | ErrorType::ReadError | ErrorType::ConnectionClosed,
                ErrorSource::Downstream,
            ) => 0,
            (ErrorType::ConnectionClosed, _) => 0,
            (_, ErrorSource::Downstream) => 400,
            _ => 500,
        };
        let source = error.esource().as_str();
        counter!("gaitway_proxy_errors_total", "source" => source, "kind" => kind(error)).increment(1);
        visit.own |= code > 0;
        if code > 0 && session.response_written().is_none() {
            session.set_keepalive(None);
            let _ = write_response(session, edge::failure(code)).await;
        }
        FailToProxy { error_code: code, can_reuse_downstream: false }
    }
}

impl Meters {
    fn new() -> Meters {
        let responses = ["none", "1xx", "2xx", "3xx", "4xx", "5xx"]
            .map(|class| counter!("gaitway_responses_total", "class" => class));
        Meters {
            responses,
            seconds: histogram!("gaitway_request_seconds", "answered_by" => "upstream"),
            own_seconds: histogram!("gaitway_request_seconds", "answered_by" => "gateway"),
        }
    }
}

/// Keeps the header fields for the response.
fn take_fields(visit: &mut Visit, counted: Counted) -> Option<Held> {
    visit.rate_fields = counted.fields;
    counted.over.map(Held::TooMany)
}

/// A bounded label for an error.
fn kind(error: &Error) -> &'static str {
    match error.etype() {
        ErrorType::ConnectTimedout => "connect_timeout",
        ErrorType::ConnectRefused => "connect_refused",
        ErrorType::ConnectError | ErrorType::ConnectNoRoute => "connect",
        ErrorType::TLSHandshakeFailure | ErrorType::InvalidCert => "tls",
        ErrorType::ReadTimedout | ErrorType::WriteTimedout => "timeout",
        ErrorType::ConnectionClosed => "closed",
        ErrorType::ReadError | ErrorType::WriteError => "io",
        ErrorType::InvalidHTTPHeader => "header",
        ErrorType::HTTPStatus(_) => "limit",
        _ => "other",
    }
}

/// A page load by the browser itself. `Sec-Fetch-*` tells; older browsers by what they accept.
fn is_navigation(request: &RequestHeader) -> bool {
    let text = |name: &str| request.headers.get(name).and_then(|value| value.to_str().ok());
    if let Some(mode) = text("sec-fetch-mode") {
        return mode == "navigate";
    }
    if text("x-requested-with").is_some() {
        return false;
    }
    text("accept").is_some_and(|accept| accept.contains("text/html"))
}

/// HTTP/2 names the host in `:authority`; everything after this reads `Host`.
fn name_host(request: &mut RequestHeader) -> Result<()> {
    if !request.headers.contains_key(header::HOST)
        && let Some(authority) = request.uri.authority().map(|authority| authority.as_str().to_owned())
    {
        request.insert_header(header::HOST, authority)?;
    }
    Ok(())
}

/// `host:8000` and `[::1]:8000` without the port.
fn without_port(host: &str) -> &str {
    match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|byte| byte.is_ascii_digit()) => name,
        _ => host,
    }
}

fn declared_length(request: &RequestHeader) -> u64 {
    length_of(&request.headers).unwrap_or(0)
}

fn length_of(headers: &HeaderMap) -> Option<u64> {
    headers.get(header::CONTENT_LENGTH)?.to_str().ok()?.parse().ok()
}

/// The body of a request to an own endpoint; `None` if it is larger than any of them reads.
async fn read_body(session: &mut Session, patience: Duration) -> Result<Option<Bytes>> {
    if matches!(session.req_header().method, Method::GET | Method::HEAD) {
        return Ok(Some(Bytes::new()));
    }
    let mut body = BytesMut::new();
    loop {
        let Ok(chunk) = tokio::time::timeout(patience, session.read_request_body()).await else {
            return Error::e_explain(
                ErrorType::ReadTimedout,
                "the body of an own endpoint's request stopped",
            );
        };
        let Some(chunk) = chunk? else { break };
        if body.len() + chunk.len() > edge::BODY_BYTES_MAX {
            return Ok(None);
        }
        body.extend_from_slice(&chunk);
    }
    Ok(Some(body.freeze()))
}

/// A place among the answers that are held back, given up when dropped.
struct Mire<'g> {
    _permit: SemaphorePermit<'g>,
}

impl Mire<'_> {
    fn enter(places: &Semaphore) -> Option<Mire<'_>> {
        let _permit = places.try_acquire().ok()?;
        gauge!("gaitway_tarpits").increment(1.0);
        Some(Mire { _permit })
    }
}

impl Drop for Mire<'_> {
    fn drop(&mut self) {
        gauge!("gaitway_tarpits").decrement(1.0);
    }
}

/// Writes a response over `delay`, a piece a second: whoever waits for its end waits, and no idle timeout
/// sets them free.
async fn drip_response(
    session: &mut Session,
    response: http::Response<Bytes>,
    delay: Duration,
) -> Result<()> {
    if session.req_header().method == Method::HEAD {
        tokio::time::sleep(delay).await;
        return write_response(session, response).await;
    }
    let (parts, mut body) = response.into_parts();
    let pieces = usize::try_from(delay.as_secs()).unwrap_or(1).clamp(1, body.len().max(1));
    let pause = delay / u32::try_from(pieces).unwrap_or(1);
    let piece = body.len().div_ceil(pieces);
    if session.is_http2() {
        session.write_response_header(Box::new(response_header(&parts, body.len())?), false).await?;
        while !body.is_empty() {
            tokio::time::sleep(pause).await;
            let next = body.split_to(piece.min(body.len()));
            session.write_response_body(Some(next), body.is_empty()).await?;
        }
        return Ok(());
    }
    // pingora keeps HTTP/1 bodies of known length back until they are whole.
    let mut stream = take_over(session).await?;
    let reason = parts.status.canonical_reason().unwrap_or_default();
    let mut next = format!(
        "HTTP/1.1 {} {reason}\r\nConnection: close\r\nContent-Length: {}\r\n",
        parts.status.as_u16(),
        body.len()
    )
    .into_bytes();
    for (name, value) in &parts.headers {
        next.extend([name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"].concat());
    }
    next.extend(b"\r\n");
    // Whoever leaves has given up, which is no error.
    while stream.write_all(&next).await.is_ok() && stream.flush().await.is_ok() && !body.is_empty() {
        tokio::time::sleep(pause).await;
        next = body.split_to(piece.min(body.len())).into();
    }
    Ok(())
}

async fn write_response(session: &mut Session, response: http::Response<Bytes>) -> Result<()> {
    let (parts, body) = response.into_parts();
    let head_only = session.req_header().method == Method::HEAD;
    let header = response_header(&parts, body.len())?;
    let empty = body.is_empty() || head_only;
    session.write_response_header(Box::new(header), empty).await?;
    if !empty {
        session.write_response_body(Some(body), true).await?;
    }
    Ok(())
}

fn response_header(parts: &http::response::Parts, length: usize) -> Result<ResponseHeader> {
    let mut header = ResponseHeader::build(parts.status, Some(parts.headers.len() + 1))?;
    for (name, value) in &parts.headers {
        header.append_header(name, value)?;
    }
    if parts.status != StatusCode::NO_CONTENT && parts.status != StatusCode::NOT_MODIFIED {
        header.insert_header(header::CONTENT_LENGTH, length)?;
    }
    Ok(header)
}

/// Takes the HTTP/1 connection away from pingora, which is left with a finished stand-in.
async fn take_over(session: &mut Session) -> Result<pingora_core::protocols::Stream> {
    const STAND_IN: &[u8] = b"GET / HTTP/1.1\r\nHost: taken-over\r\n\r\n";
    let (mut near, far) = tokio::io::duplex(STAND_IN.len());
    if near.write_all(STAND_IN).await.is_err() {
        return Error::e_explain(ErrorType::InternalError, "the stand-in cannot be written");
    }
    let mut stand_in = ServerSession::new_http1(Box::new(far));
    stand_in.read_request().await?;
    stand_in.set_keepalive(None);
    match std::mem::replace(session.as_downstream_mut(), stand_in) {
        ServerSession::H1(http1) => Ok(http1.into_inner()),
        other => {
            *session.as_downstream_mut() = other;
            Error::e_explain(ErrorType::HTTPStatus(400), "only HTTP/1 connections can be taken over")
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(headers: &[(&str, &str)]) -> RequestHeader {
        let mut request = RequestHeader::build("GET", b"/", None).unwrap();
        for (name, value) in headers {
            request.append_header((*name).to_owned(), *value).unwrap();
        }
        request
    }

    #[test]
    fn a_host_loses_its_port_and_nothing_else() {
        for (host, name) in [("a:80", "a"), ("a", "a"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("", "")] {
            assert_eq!(without_port(host), name);
        }
    }

    #[test]
    fn page_loads_are_told_from_scripts() {
        let check = |headers: &[(&str, &str)], expect: bool| {
            assert_eq!(is_navigation(&request(headers)), expect, "{headers:?}");
        };
        check(&[("sec-fetch-mode", "navigate"), ("accept", "*/*")], true);
        check(&[("sec-fetch-mode", "cors"), ("accept", "text/html")], false);
        check(&[("accept", "text/html,application/xhtml+xml")], true);
        check(&[("accept", "text/html"), ("x-requested-with", "XMLHttpRequest")], false);
        check(&[("accept", "application/json")], false);
        check(&[], false);
    }
}
