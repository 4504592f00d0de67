//! The mail sink: SMTP through lettre, one message per incident or one digest for many.
//!
//! Every receiver is a transaction of its own, so one refused address silences nobody else. Errors
//! carry reply codes, never the server's words, which may repeat an address.

use super::letter::Letter;
use super::{AlertError, AlertSink};
use crate::config::{Alerts, Mail, MailEncryption};
use async_trait::async_trait;
use gaitway_policies::Incident;
use gaitway_policies::engine::{Action, Mode};
use lettre::address::Envelope;
use lettre::message::header::{Header, HeaderName, HeaderValue};
use lettre::message::{Mailbox, MultiPart};
use lettre::transport::smtp::authentication::Credentials;
use lettre::transport::smtp::client::{Certificate, CertificateStore, Tls, TlsParameters, TlsVersion};
use lettre::transport::smtp::{self, PoolConfig};
use lettre::{AsyncSmtpTransport, AsyncTransport, Message, Tokio1Executor};
use sha2::{Digest, Sha256};
use std::collections::VecDeque;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;
use tokio::time::Instant;

pub struct MailSink {
    server: Server,
    /// Made when first used, because its pool needs a runtime. Dropped when a dialogue was cut off:
    /// that connection must not be used again.
    transport: Mutex<Option<AsyncSmtpTransport<Tokio1Executor>>>,
    from: Mailbox,
    to: Vec<Mailbox>,
    ops_url: Option<String>,
    shadow: bool,
    mails_per_hour_max: Option<u32>,
    partial: Mutex<VecDeque<Partial>>,
}

/// A message that some receivers have and others do not yet.
struct Partial {
    message_id: String,
    accepted: Vec<bool>,
}

impl MailSink {
    /// Checks every setting; opens no connection.
    pub fn new(mail: &Mail, alerts: &Alerts) -> Result<MailSink, AlertError> {
        let from = mailbox("alerts.mail.from", &mail.from)?;
        if mail.to.is_empty() {
            return Err(wrong("alerts.mail.to names no receiver"));
        }
        if mail.to.len() > RECEIVERS_MAX {
            return Err(wrong(&format!(
                "alerts.mail.to names more than {RECEIVERS_MAX} receivers; use a list"
            )));
        }
        let to = mail
            .to
            .iter()
            .enumerate()
            .map(|(index, address)| mailbox(&format!("alerts.mail.to[{index}]"), address))
            .collect::<Result<Vec<_>, _>>()?;
        let server = Server::new(mail)?;
        Ok(MailSink {
            transport: Mutex::new(None),
            server,
            from,
            to,
            ops_url: alerts.ops_url.as_deref().map(check_url).transpose()?,
            shadow: mail.shadow,
            mails_per_hour_max: (alerts.mails_per_hour_max > 0).then_some(alerts.mails_per_hour_max),
            partial: Mutex::new(VecDeque::new()),
        })
    }

    /// Sends a letter to every receiver that does not have it yet.
    async fn send(&self, letter: Letter, id: &str) -> Result<(), AlertError> {
        let message_id = format!("<{id}@{}>", self.from.email.domain());
        let message = self.message(letter, &message_id)?;
        let deadline = Instant::now() + SEND_TIMEOUT;
        let mut accepted = self.take_partial(&message_id);
        let (mut temporary, mut permanent) = (None, None);
        for (index, receiver) in self.to.iter().enumerate() {
            if accepted[index] {
                continue;
            }
            let envelope = Envelope::new(Some(self.from.email.clone()), vec![receiver.email.clone()])
                .map_err(|error| AlertError::Permanent(format!("cannot address a mail: {error}")))?;
            match self.transact(&envelope, &message, deadline).await {
                Ok(()) => accepted[index] = true,
                Err(AlertError::Permanent(why)) => {
                    metrics::counter!("gaitway_mail_receivers_refused_total").increment(1);
                    permanent = Some(format!("{why} (receiver {} of {})", index + 1, self.to.len()));
                }
                Err(AlertError::Temporary(why)) => temporary = Some(why),
            }
            if Instant::now() >= deadline {
                break;
            }
        }
        match (temporary, permanent) {
            (Some(why), _) => {
                self.keep_partial(message_id, accepted);
                Err(AlertError::Temporary(why))
            }
            (None, Some(why)) if !accepted.contains(&true) => Err(AlertError::Permanent(why)),
            (None, Some(why)) => {
                tracing::warn!(%why, "some receivers of alert mails are refused; check alerts.mail.to");
                Ok(())
            }
            (None, None) if accepted.contains(&false) => {
                self.keep_partial(message_id, accepted);
                Err(AlertError::Temporary("the mail server is too slow for all receivers".into()))
            }
            (None, None) => Ok(()),
        }
    }

    async fn transact(
        &self,
        envelope: &Envelope,
        message: &[u8],
        deadline: Instant,
    ) -> Result<(), AlertError> {
        let transport = {
            let mut transport = self.transport.lock().unwrap_or_else(PoisonError::into_inner);
            transport.get_or_insert_with(|| self.server.connect()).clone()
        };
        let deadline = deadline.min(Instant::now() + RECEIVER_TIMEOUT);
        let (error, is_broken) =
            match tokio::time::timeout_at(deadline, transport.send_raw(envelope, message)).await {
                Ok(Ok(_)) => return Ok(()),
                Ok(Err(error)) => (judge(&error), error.status().is_none()),
                Err(_) => (AlertError::Temporary("the mail server did not answer in time".into()), true),
            };
        if is_broken {
            // The pool would hand the same connection out again, in the middle of a dialogue.
            *self.transport.lock().unwrap_or_else(PoisonError::into_inner) = None;
        }
        Err(error)
    }

    fn message(&self, letter: Letter, message_id: &str) -> Result<Vec<u8>, AlertError> {
        let mut builder = Message::builder()
            .from(self.from.clone())
            .subject(letter.subject)
            .message_id(Some(message_id.to_string()))
            .header(AutoSubmitted);
        for receiver in &self.to {
            builder = builder.to(receiver.clone());
        }
        let message = builder
            .multipart(MultiPart::alternative_plain_html(letter.text, letter.html))
            .map_err(|error| AlertError::Permanent(format!("cannot write a mail: {error}")))?;
        Ok(message.formatted())
    }

    fn take_partial(&self, message_id: &str) -> Vec<bool> {
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        let found = partial.iter().position(|partial| partial.message_id == message_id);
        found
            .and_then(|index| partial.remove(index))
            .map_or_else(|| vec![false; self.to.len()], |partial| partial.accepted)
    }

    fn keep_partial(&self, message_id: String, accepted: Vec<bool>) {
        if !accepted.contains(&true) {
            return;
        }
        let mut partial = self.partial.lock().unwrap_or_else(PoisonError::into_inner);
        if partial.len() == PARTIAL_MAX {
            partial.pop_front();
        }
        partial.push_back(Partial { message_id, accepted });
    }
}

#[async_trait]
impl AlertSink for MailSink {
    fn name(&self) -> &'static str {
        "mail"
    }

    /// What takes a login away. The rest is on the ops page and in the log: too much mail goes unread.
    fn wants(&self, incident: &Incident) -> bool {
        // With the budget used up nothing is enforced any more, or somebody is spared: always worth a mail.
        incident.action == Action::BudgetTrip
            || incident.action.shuts_out() && (self.shadow || incident.mode == Mode::Enforce)
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        self.send(Letter::of(incident, self.ops_url.as_deref()), &message_name(&incident.id)).await
    }

    fn deliveries_per_hour_max(&self) -> Option<u32> {
        self.mails_per_hour_max
    }

    async fn deliver_digest(&self, incidents: &[Incident]) -> Result<(), AlertError> {
        if let [incident] = incidents {
            return self.deliver(incident).await;
        }
        let mut hash = Sha256::new();
        for incident in incidents {
            hash.update(incident.id.as_bytes());
            hash.update([0]);
        }
        let name: String = hash.finalize().iter().take(12).map(|byte| format!("{byte:02x}")).collect();
        self.send(Letter::digest(incidents, self.ops_url.as_deref()), &format!("digest-{name}")).await
    }
}

/// More people are better served by a mailing list.
const RECEIVERS_MAX: usize = 20;
/// Messages some receivers wait for; past it the oldest may come twice to the others.
const PARTIAL_MAX: usize = 1_000;
/// For one receiver: connection, TLS, login and message.
const RECEIVER_TIMEOUT: Duration = Duration::from_secs(30);
/// For all receivers of one message; what is left is tried again.
const SEND_TIMEOUT: Duration = Duration::from_secs(90);
/// A server's process per connection is dear, and alerts are few.
const CONNECTIONS_MAX: u32 = 2;

/// How to reach the mail server.
struct Server {
    host: String,
    port: u16,
    tls: Tls,
    credentials: Option<Credentials>,
}

impl Server {
    fn new(mail: &Mail) -> Result<Server, AlertError> {
        if mail.host.is_empty() {
            return Err(wrong("alerts.mail.host is missing"));
        }
        let credentials = match (&mail.username, password(mail)?) {
            (Some(user), Some(password)) => Some(Credentials::new(user.clone(), password)),
            (None, None) => None,
            (Some(_), None) => {
                return Err(wrong("alerts.mail.username needs alerts.mail.password_file or password_env"));
            }
            (None, Some(_)) => return Err(wrong("alerts.mail has a password but no username")),
        };
        let tls = match mail.encryption {
            MailEncryption::None if credentials.is_some() && !is_loopback(&mail.host) => {
                return Err(wrong(
                    "alerts.mail.encryption: none would send the password in the clear; use starttls or tls",
                ));
            }
            MailEncryption::None => Tls::None,
            MailEncryption::Starttls => Tls::Required(tls_parameters(mail)?),
            MailEncryption::Tls => Tls::Wrapper(tls_parameters(mail)?),
        };
        Ok(Server { host: mail.host.clone(), port: mail.port, tls, credentials })
    }

    /// A transport with an empty pool; connects when first used.
    fn connect(&self) -> AsyncSmtpTransport<Tokio1Executor> {
        // "Dangerous" is about its default of no encryption, which `tls` replaces.
        let mut builder = AsyncSmtpTransport::<Tokio1Executor>::builder_dangerous(&self.host)
            .port(self.port)
            .tls(self.tls.clone())
            .timeout(Some(RECEIVER_TIMEOUT))
            .pool_config(PoolConfig::new().max_size(CONNECTIONS_MAX));
        if let Some(credentials) = &self.credentials {
            builder = builder.credentials(credentials.clone());
        }
        builder.build()
    }
}

fn tls_parameters(mail: &Mail) -> Result<TlsParameters, AlertError> {
    let mut builder = TlsParameters::builder(mail.host.clone()).set_min_tls_version(TlsVersion::Tlsv12);
    if let Some(file) = &mail.ca {
        let pem = read("alerts.mail.ca", file)?;
        let authority = Certificate::from_pem(pem.as_bytes())
            .map_err(|_| wrong(&format!("alerts.mail.ca: {} holds no PEM certificate", file.display())))?;
        if !pem.contains("BEGIN CERTIFICATE") {
            return Err(wrong(&format!("alerts.mail.ca: {} holds no PEM certificate", file.display())));
        }
        // A private authority replaces the public ones: nobody else may speak for this server.
        builder = builder.certificate_store(CertificateStore::None).add_root_certificate(authority);
    }
    builder.build().map_err(|error| wrong(&format!("alerts.mail: TLS cannot be set up: {error}")))
}

fn password(mail: &Mail) -> Result<Option<String>, AlertError> {
    match (&mail.password_file, &mail.password_env) {
        (Some(_), Some(_)) => Err(wrong("alerts.mail has both password_file and password_env; keep one")),
        (Some(file), None) => {
            let text = read("alerts.mail.password_file", file)?;
            Ok(Some(text.trim_end_matches(['\r', '\n']).to_string()))
        }
        (None, Some(name)) => std::env::var(name)
            .map(Some)
            .map_err(|_| wrong(&format!("alerts.mail.password_env: the variable {name} is not set"))),
        (None, None) => Ok(None),
    }
}

fn read(setting: &str, file: &Path) -> Result<String, AlertError> {
    std::fs::read_to_string(file)
        .map_err(|error| wrong(&format!("{setting}: cannot read {}: {error}", file.display())))
}

fn mailbox(setting: &str, text: &str) -> Result<Mailbox, AlertError> {
    text.parse().map_err(|error| wrong(&format!("{setting} is not a mail address: {error}")))
}

fn check_url(text: &str) -> Result<String, AlertError> {
    let is_http = text.starts_with("https://") || text.starts_with("http://");
    if is_http && !text.chars().any(|character| character.is_control() || character.is_whitespace()) {
        Ok(text.to_string())
    } else {
        Err(wrong("alerts.ops_url is not an http:// or https:// address"))
    }
}

fn is_loopback(host: &str) -> bool {
    host == "localhost" || host.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

fn wrong(what: &str) -> AlertError {
    AlertError::Permanent(what.to_string())
}

/// Whether another try can help. A refused login or certificate is the operator's to mend, and the
/// mail must still be there when it is mended.
fn judge(error: &smtp::Error) -> AlertError {
    match error.status().map(u16::from) {
        Some(code @ (530 | 534 | 535 | 538)) => {
            AlertError::Temporary(format!("the mail server refused our login ({code})"))
        }
        Some(code) if error.is_permanent() => {
            AlertError::Permanent(format!("the mail server refused the mail ({code})"))
        }
        Some(code) => AlertError::Temporary(format!("the mail server cannot take the mail now ({code})")),
        None if error.is_timeout() => AlertError::Temporary("the mail server did not answer in time".into()),
        None if error.is_tls() => {
            AlertError::Temporary(format!("no trusted TLS connection to the mail server: {error}"))
        }
        None => AlertError::Temporary(format!("no connection to the mail server: {error}")),
    }
}

/// The part of a Message-ID before the `@`: the same for every copy of an incident's mail, so that
/// mail programs show a repeated one once.
fn message_name(id: &str) -> String {
    let clean = |character: char| character.is_ascii_alphanumeric() || matches!(character, '-' | '_' | '.');
    let name: String = id.chars().filter(|&character| clean(character)).take(64).collect();
    format!("incident-{name}")
}

/// RFC 3834: keeps out-of-office programs from answering.
#[derive(Clone)]
struct AutoSubmitted;

impl Header for AutoSubmitted {
    fn name() -> HeaderName {
        HeaderName::new_from_ascii_str("Auto-Submitted")
    }

    fn parse(_: &str) -> Result<AutoSubmitted, Box<dyn std::error::Error + Send + Sync>> {
        Ok(AutoSubmitted)
    }

    fn display(&self) -> HeaderValue {
        HeaderValue::new(Self::name(), "auto-generated".into())
    }
}
