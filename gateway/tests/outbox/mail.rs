//! Alert mails against a real SMTP server.

use crate::incidents::{logout, until, with};
use crate::smtp::{Message, SmtpServer};
use expect_test::expect;
use gaitway::alert::{AlertError, AlertSink, MailSink};
use gaitway::config::{Alerts, Mail, MailEncryption};
use gaitway_models::Timestamp;
use gaitway_policies::Incident;
use gaitway_policies::engine::{Action, Mode};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use std::path::PathBuf;
use tempfile::TempDir;

const AT: Timestamp = Timestamp(1_790_000_000_123);

fn mail(port: u16) -> Mail {
    Mail {
        host: "127.0.0.1".into(),
        port,
        encryption: MailEncryption::None,
        from: "Gaitway <gaitway@example.com>".into(),
        to: vec!["security@example.com".into()],
        ..Mail::default()
    }
}

fn sink(mail: &Mail) -> MailSink {
    let alerts = Alerts {
        mails_per_hour_max: 60,
        ops_url: Some("https://ops.example.com/".into()),
        ..Alerts::default()
    };
    MailSink::new(mail, &alerts).unwrap()
}

async fn received(server: &SmtpServer, count: usize) -> Vec<Message> {
    until(&format!("{count} messages"), async || server.messages().len() >= count).await;
    let messages = server.messages();
    assert_eq!(messages.len(), count);
    messages
}

#[tokio::test]
async fn a_mail_says_who_when_why_and_how_to_undo_it() {
    let server = SmtpServer::start();
    sink(&mail(server.port)).deliver(&logout(1, AT)).await.unwrap();
    let message = received(&server, 1).await.remove(0);
    assert_eq!(
        (message.from.as_str(), message.to),
        ("gaitway@example.com", vec!["security@example.com".into()])
    );
    assert_eq!(message.headers.iter().find(|(name, _)| name == "To").unwrap().1, "security@example.com");
    let fixed: Vec<_> = message
        .headers
        .into_iter()
        .filter(|(name, _)| !["Date", "Content-Type"].contains(&name.as_str()))
        .collect();
    expect![[r#"
        From: Gaitway <gaitway@example.com>
        Subject: [Gaitway] logout by certain-bot (score 0.97, s_01010101)
        Message-ID: <incident-G-001@example.com>
        Auto-Submitted: auto-generated
        To: security@example.com
        MIME-Version: 1.0
    "#]]
    .assert_eq(&fixed.iter().map(|(name, value)| format!("{name}: {value}\n")).collect::<String>());
    expect![[r#"
        A session was logged out.

        Session   s_01010101010101010101010101010101
        Person    u_64646464646464646464646464646464
        Time      2026-09-21T14:13:20.123Z (UTC)
        Rule      certain-bot
        Action    logout
        Mode      enforce
        Until     2026-09-21T15:13:20.123Z (UTC)
        Decided   by policy
        Score     0.97 of 1 that this is a bot
        Evidence  11.5 nats over 6 windows; 21.0 s of mouse input, 1430 events
        Model     00112233445566aa, has learnt this site
        Policy    0123456789abcdef
        Incident  G-001

        Why: the pointer moves like a script
          - the pointer moves faster than people's (pointer_speed_p95: 9120 px/s; usual for people: 400 to 3200 px/s; for this person: 600 to 1450 in 6 sessions)

        If this was a person, let the session in again with
            gaitway session pardon s_01010101010101010101010101010101

        https://ops.example.com/sessions/s_01010101010101010101010101010101
    "#]]
    .assert_eq(&message.text.replace("\r\n", "\n"));
    for part in
        ["<td>s_01010101010101010101010101010101</td>", "people&#39;s", "<code>gaitway session pardon s_0101"]
    {
        assert!(message.html.contains(part), "{part} is missing in {}", message.html);
    }
    let all = format!("{}{}", message.text, message.html);
    assert!(!all.contains("t_01010101") && !all.contains("staff"), "tokens and groups are nobody's business");
}

#[tokio::test]
async fn shadow_and_lesser_actions_are_mailed_only_when_asked_for() {
    let shadow = with(logout(1, AT), |incident| incident.mode = Mode::Shadow);
    let throttle = with(logout(1, AT), |incident| incident.action = Action::Throttle);
    let pardon = with(logout(1, AT), |incident| incident.action = Action::Pardon);
    let quiet = sink(&mail(1));
    assert!(quiet.wants(&logout(1, AT)));
    assert!(!quiet.wants(&shadow) && !quiet.wants(&throttle) && !quiet.wants(&pardon));
    let curious = sink(&Mail { shadow: true, ..mail(1) });
    assert!(curious.wants(&shadow) && !curious.wants(&throttle));

    let server = SmtpServer::start();
    sink(&Mail { shadow: true, ..mail(server.port) }).deliver(&shadow).await.unwrap();
    let message = received(&server, 1).await.remove(0);
    assert!(message.header("Subject").contains("shadow: logout"), "{message:?}");
    assert!(
        message.text.contains("nothing was done") && !message.text.contains("pardon"),
        "{}",
        message.text
    );
}

/// Whatever the fields hold: one message, our headers, our receivers, no markup of theirs.
#[tokio::test]
async fn hostile_fields_stay_inside_their_mail() {
    let server = SmtpServer::start();
    let sink = sink(&mail(server.port));
    let corpus = [
        "\r\nBcc: victim@example.com\r\n\r\nnew body",
        "\n.\nMAIL FROM:<evil@example.com>\n",
        "\r\n.\r\nQUIT\r\n",
        ".\r\n..\r\n...",
        "\rlone carriage return",
        "=?utf-8?B?QmNjOiBh?= =?utf-8?Q?=0D=0AX: y?=",
        "<script>alert(1)</script><img src=x onerror=alert(1)>",
        "\"><a href='javascript:1'>",
        "NUL \0 BEL \u{7} ESC \u{1b}[31m",
        "right\u{202E}to left \u{2066}isolate\u{2069}",
        "线路 🚶‍♀️ ünïcödé ﷽",
        "--boundary\r\nContent-Type: text/html\r\n\r\n<b>",
        &"x".repeat(20_000),
        &"ü".repeat(5_000),
        "",
        " ",
    ];
    for (number, hostile) in corpus.iter().enumerate() {
        let incident = with(logout(7, AT), |incident| {
            incident.id = format!("{number}{hostile}");
            incident.rule = (*hostile).into();
            incident.by = (*hostile).into();
            incident.reason = (*hostile).into();
            incident.policy_version = (*hostile).into();
            incident.facts.assessment.model = (*hostile).into();
            for reason in &mut incident.facts.assessment.reasons {
                reason.text = (*hostile).into();
                reason.feature = (*hostile).into();
                reason.unit = (*hostile).into();
                reason.value = f32::NAN;
            }
        });
        sink.deliver(&incident).await.unwrap();
        let message = received(&server, number + 1).await.remove(number);
        let names: Vec<&str> = message.headers.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(
            names,
            ["From", "Subject", "Message-ID", "Auto-Submitted", "To", "MIME-Version", "Date", "Content-Type"],
            "{hostile:?}"
        );
        assert_eq!(message.to, ["security@example.com"]);
        assert_eq!(message.parts, 3, "{hostile:?}");
        let subject = message.header("Subject");
        assert!(subject.chars().count() <= 120 && subject.starts_with("[Gaitway] logout"), "{subject:?}");
        assert!(!subject.chars().any(char::is_control), "{subject:?}");
        let id = message.header("Message-ID");
        assert!(id.starts_with(&format!("<incident-{number}")) && id.ends_with("@example.com>"), "{id}");
        assert!(message.longest_line <= 998, "{hostile:?}: {}", message.longest_line);
        assert!(message.text.len() < 20_000 && message.html.len() < 40_000, "{hostile:?}");
        assert!(message.text.contains("gaitway session pardon s_0707"), "{hostile:?}");
        for tag in ["<script", "<img", "<b>", "<a href='"] {
            assert!(!message.html.contains(tag), "{hostile:?}");
        }
        assert!(!message.text.contains(['\u{202E}', '\u{1b}', '\0']), "{hostile:?}");
    }
}

#[tokio::test]
async fn encryption_and_login_are_kept_to() {
    let certificates = Certificates::new();
    for (name, encryption) in [("starttls", MailEncryption::Starttls), ("tls", MailEncryption::Tls)] {
        let server = SmtpServer::start_with(&[
            "--encryption",
            name,
            "--certificate",
            certificates.path("server.pem").to_str().unwrap(),
            "--key",
            certificates.path("server.key").to_str().unwrap(),
            "--login",
            "gaitway:open sesame",
        ]);
        let good = Mail {
            host: "localhost".into(),
            encryption,
            username: Some("gaitway".into()),
            password_file: Some(certificates.file("password", "open sesame\n")),
            ca: Some(certificates.path("ca.pem")),
            ..mail(server.port)
        };
        sink(&good).deliver(&logout(1, AT)).await.unwrap();
        let message = received(&server, 1).await.remove(0);
        assert!(message.tls && message.login, "{name}: {message:?}");

        let wrong_password =
            Mail { password_file: Some(certificates.file("wrong", "sesame")), ..good.clone() };
        let why = temporary(sink(&wrong_password).deliver(&logout(1, AT)).await);
        assert!(why.contains("login") && !why.contains("sesame"), "{name}: {why}");

        // Another authority, and the public ones, must not be able to speak for the server.
        for ca in [Some(certificates.path("other-ca.pem")), None] {
            let why = temporary(sink(&Mail { ca, ..good.clone() }).deliver(&logout(1, AT)).await);
            assert!(why.contains("TLS") || why.contains("connection"), "{name}: {why}");
        }
        let other_name = Mail { host: "127.0.0.1".into(), ..good };
        temporary(sink(&other_name).deliver(&logout(1, AT)).await);
        assert_eq!(server.messages().len(), 1, "{name}");
    }
}

#[tokio::test]
async fn a_server_without_encryption_gets_nothing() {
    let server = SmtpServer::start();
    for encryption in [MailEncryption::Starttls, MailEncryption::Tls] {
        temporary(
            sink(&Mail { encryption, host: "localhost".into(), ..mail(server.port) })
                .deliver(&logout(1, AT))
                .await,
        );
    }
    assert_eq!(server.messages().len(), 0);
}

#[tokio::test]
async fn a_refused_receiver_silences_nobody_else() {
    let server = SmtpServer::start();
    let to = |names: &[&str]| names.iter().map(|name| format!("{name}@example.com")).collect::<Vec<_>>();
    let deliver = async |names: &[&str]| {
        sink(&Mail { to: to(names), ..mail(server.port) }).deliver(&logout(1, AT)).await
    };

    deliver(&["refuse550", "anna", "refuse553", "otto"]).await.unwrap();
    let receivers: Vec<String> =
        received(&server, 2).await.into_iter().flat_map(|message| message.to).collect();
    assert_eq!(receivers, ["anna@example.com", "otto@example.com"]);

    let why = permanent(deliver(&["refuse550"]).await);
    assert_eq!(why, "the mail server refused the mail (550) (receiver 1 of 1)");
    assert!(permanent(deliver(&["full552"]).await).contains("552"));
    assert!(temporary(deliver(&["later451"]).await).contains("451"));
    assert!(temporary(deliver(&["refuse550", "later451"]).await).contains("451"), "hope remains");
    assert_eq!(server.messages().len(), 2);
}

#[tokio::test]
async fn a_repeated_mail_goes_only_where_it_is_missing() {
    let server = SmtpServer::start();
    let to = vec!["anna@example.com".into(), "later451@example.com".into()];
    let sink = sink(&Mail { to, ..mail(server.port) });
    for _ in 0..3 {
        temporary(sink.deliver(&logout(1, AT)).await);
    }
    temporary(sink.deliver(&logout(2, AT)).await);
    let ids: Vec<String> =
        received(&server, 2).await.iter().map(|message| message.header("Message-ID").into()).collect();
    assert_eq!(ids, ["<incident-G-001@example.com>", "<incident-G-002@example.com>"]);
}

#[tokio::test]
async fn a_digest_names_every_incident() {
    let server = SmtpServer::start();
    let incidents: Vec<Incident> = (0..=255)
        .map(|number| with(logout(number, AT), |incident| incident.rule = "<b>\r\n.\r\n".into()))
        .collect();
    let sink = sink(&mail(server.port));
    assert_eq!(sink.deliveries_per_hour_max(), Some(60));
    sink.deliver_digest(&incidents).await.unwrap();
    sink.deliver_digest(&incidents).await.unwrap();
    sink.deliver_digest(&incidents[..1]).await.unwrap();
    let messages = received(&server, 3).await;
    assert_eq!(messages[0].header("Message-ID"), messages[1].header("Message-ID"), "the same digest again");
    assert!(messages[2].header("Subject").contains("logout by"), "a digest of one is a plain mail");
    for incident in &incidents {
        for body in [&messages[0].text, &messages[0].html] {
            assert!(
                body.contains(&format!("{}  {}", incident.id, incident.identity.session)),
                "{}",
                incident.id
            );
        }
    }
    assert!(!messages[0].html.contains("<b>"));
    assert!(messages[0].header("Subject").starts_with("[Gaitway] 256 incidents, 2026-09-21"));
}

#[test]
fn settings_are_checked_at_start_and_named() {
    let certificates = Certificates::new();
    let cases: [(&str, Box<dyn Fn(&mut Mail)>); 11] = [
        ("alerts.mail.from is not a mail address", Box::new(|mail| mail.from = "nobody".into())),
        ("alerts.mail.from is not a mail address", Box::new(|mail| mail.from = "a@b\r\nBcc: c@d".into())),
        ("alerts.mail.to names no receiver", Box::new(|mail| mail.to.clear())),
        ("alerts.mail.to[1] is not a mail address", Box::new(|mail| mail.to.push("x@".into()))),
        ("more than 20 receivers", Box::new(|mail| mail.to = vec!["a@example.com".into(); 21])),
        ("alerts.mail.host is missing", Box::new(|mail| mail.host.clear())),
        ("needs alerts.mail.password_file", Box::new(|mail| mail.username = Some("u".into()))),
        (
            "alerts.mail.password_file: cannot read",
            Box::new(|mail| mail.password_file = Some("/no/such".into())),
        ),
        (
            "GAITWAY_TEST_UNSET is not set",
            Box::new(|mail| mail.password_env = Some("GAITWAY_TEST_UNSET".into())),
        ),
        (
            "holds no PEM certificate",
            Box::new({
                let file = certificates.file("empty.pem", "");
                move |mail| {
                    mail.encryption = MailEncryption::Tls;
                    mail.ca = Some(file.clone());
                }
            }),
        ),
        (
            "password in the clear",
            Box::new({
                let file = certificates.file("password", "x");
                move |mail| {
                    mail.host = "mail.example.com".into();
                    mail.username = Some("u".into());
                    mail.password_file = Some(file.clone());
                }
            }),
        ),
    ];
    for (expected, change) in cases {
        let mut mail = mail(25);
        change(&mut mail);
        match MailSink::new(&mail, &Alerts::default()) {
            Err(AlertError::Permanent(message)) => assert!(message.contains(expected), "{message}"),
            Err(other) => panic!("{other}"),
            Ok(_) => panic!("{expected}: accepted"),
        }
    }
    let alerts = Alerts { ops_url: Some("javascript:alert(1)".into()), ..Alerts::default() };
    assert!(MailSink::new(&mail(25), &alerts).is_err());
    let names = |config: &Alerts| {
        gaitway::alert::sinks(config).unwrap().iter().map(|sink| sink.name()).collect::<Vec<_>>()
    };
    assert_eq!(names(&Alerts::default()), ["log"]);
    assert_eq!(names(&Alerts { mail: Some(mail(25)), ..Alerts::default() }), ["log", "mail"]);
}

fn temporary(outcome: Result<(), AlertError>) -> String {
    match outcome {
        Err(AlertError::Temporary(why)) => clean(why),
        other => panic!("{other:?}"),
    }
}

fn permanent(outcome: Result<(), AlertError>) -> String {
    match outcome {
        Err(AlertError::Permanent(why)) => clean(why),
        other => panic!("{other:?}"),
    }
}

/// Outcomes are kept and shown: the server's words, with the receiver's address, must not be in them.
fn clean(why: String) -> String {
    assert!(!why.contains('@') && !why.contains("example.com"), "{why}");
    why
}

/// A private authority, a server's certificate it signed, and another authority.
struct Certificates {
    directory: TempDir,
}

impl Certificates {
    fn new() -> Certificates {
        let certificates = Certificates { directory: tempfile::tempdir().unwrap() };
        for name in ["other-ca.pem", "ca.pem"] {
            let mut params = CertificateParams::new(Vec::new()).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let key = KeyPair::generate().unwrap();
            certificates.file(name, &params.self_signed(&key).unwrap().pem());
            let issuer = Issuer::new(params, key);
            let server = KeyPair::generate().unwrap();
            let certificate = CertificateParams::new(vec!["localhost".into()]).unwrap();
            certificates.file("server.pem", &certificate.signed_by(&server, &issuer).unwrap().pem());
            certificates.file("server.key", &server.serialize_pem());
        }
        certificates
    }

    fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }

    fn file(&self, name: &str, text: &str) -> PathBuf {
        std::fs::write(self.path(name), text).unwrap();
        self.path(name)
    }
}
