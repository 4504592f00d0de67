//! Logging in at a real OpenID provider, staying logged in, and logging out from either side; and every
//! answer of the provider that must not be believed.

use crate::app::App;
use crate::gateway::{DEADLINE, Gateway, eventually};
use crate::servers::{Provider, Redis, free_port};
use futures_util::StreamExt;
use reqwest::header::{COOKIE, LOCATION, SET_COOKIE};
use reqwest::{Client, Method, Response, StatusCode, Url};
use serde_json::{Value, json};
use std::collections::{BTreeMap, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};

/// A browser: a cookie jar for each origin, and page loads that follow redirects one by one.
pub struct Browser {
    http: Client,
    jar: HashMap<String, BTreeMap<String, String>>,
    account: &'static str,
    acr: Option<&'static str>,
}

impl Browser {
    pub fn of(account: &'static str) -> Browser {
        let http = Client::builder().redirect(reqwest::redirect::Policy::none()).build().unwrap();
        Browser { http, jar: HashMap::new(), account, acr: None }
    }

    async fn send(&mut self, method: Method, url: &str, headers: &[(&str, &str)], body: &str) -> Response {
        let url = Url::parse(url).unwrap();
        let origin = url.origin().ascii_serialization();
        let mut request = self.http.request(method, url).header("x-account", self.account);
        if let Some(acr) = self.acr {
            request = request.header("x-acr", acr);
        }
        let jar = self.jar.entry(origin.clone()).or_default();
        if !jar.is_empty() {
            let pairs: Vec<String> = jar.iter().map(|(name, value)| format!("{name}={value}")).collect();
            request = request.header(COOKIE, pairs.join("; "));
        }
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        if !body.is_empty() {
            request =
                request.header("content-type", "application/x-www-form-urlencoded").body(body.to_owned());
        }
        let response = request.send().await.unwrap();
        for cookie in response.headers().get_all(SET_COOKIE) {
            let text = cookie.to_str().unwrap();
            assert!(text.to_lowercase().contains("httponly"), "{text}");
            let (name, value) = text.split(';').next().unwrap().split_once('=').unwrap();
            let is_gone = value.is_empty()
                || text.contains("Max-Age=0")
                || text.to_lowercase().contains("expires=thu, 01 jan 1970");
            match is_gone {
                true => jar.remove(name),
                false => jar.insert(name.to_owned(), value.to_owned()),
            };
        }
        response
    }

    async fn navigate(&mut self, url: &str) -> Response {
        self.send(Method::GET, url, &[("sec-fetch-mode", "navigate"), ("accept", "text/html")], "").await
    }

    /// Follows redirects until there is none, or one leads to a path that begins with `stop`.
    async fn follow(&mut self, mut response: Response, stop: &str) -> Response {
        for _ in 0..20 {
            let Some(to) = location(&response) else { return response };
            if !stop.is_empty() && to.contains(stop) {
                return response;
            }
            response = self.navigate(&to).await;
        }
        panic!("redirected without end");
    }

    pub async fn open(&mut self, url: &str) -> Response {
        let first = self.navigate(url).await;
        self.follow(first, "").await
    }

    pub async fn fetch(&mut self, url: &str) -> Response {
        self.send(Method::GET, url, &[("sec-fetch-mode", "cors")], "").await
    }

    fn cookie(&self, origin: &str, name: &str) -> Option<&String> {
        self.jar.get(origin)?.get(name)
    }
}

fn location(response: &Response) -> Option<String> {
    let to = response.headers().get(LOCATION)?.to_str().unwrap();
    Some(response.url().join(to).unwrap().into())
}

pub struct Site {
    app: App,
    pub provider: Provider,
    pub gateway: Gateway,
    origin: String,
}

impl Site {
    async fn start() -> Site {
        Site::start_with(json!({}), "", "").await
    }

    pub async fn start_with(options: Value, oidc: &str, more: &str) -> Site {
        let port = free_port();
        let origin = format!("http://127.0.0.1:{port}");
        let mut options = options;
        options["gateway"] = json!(origin);
        let provider = Provider::start(&options);
        let app = App::start().await;
        let more = more.replace("{issuer}", &provider.url(""));
        let gateway = Gateway::start_with(&app.url(), &settings(port, &provider, oidc, &more), SECRETS);
        Site { app, provider, gateway, origin }
    }

    pub fn url(&self, path: &str) -> String {
        format!("{}{path}", self.origin)
    }

    /// What the app was told about the last request for a path.
    fn told(&self, path: &str) -> String {
        let heads = self.app.heads();
        heads.into_iter().rev().find(|head| head.contains(path)).unwrap_or_default().to_lowercase()
    }
}

const SECRETS: &[(&str, &str)] = &[
    ("TEST_CLIENT_SECRET", "the gateway and the provider share this"),
    ("GAITWAY_SECRET", "replicas share this secret of enough bytes"),
];

fn settings(port: u16, provider: &Provider, oidc: &str, more: &str) -> String {
    format!(
        "listen: 127.0.0.1:{port}\nidentity:\n  oidc:\n    issuer: {}\n    client_id: gaitway\n    client_secret_env: TEST_CLIENT_SECRET\n    public_url: http://127.0.0.1:{port}\n    scopes: [openid, profile]\n    user_claim: preferred_username\n{oidc}\n{more}",
        provider.url("")
    )
}

#[tokio::test(flavor = "multi_thread")]
async fn a_person_logs_in_is_known_to_the_app_and_logs_out_at_the_provider() {
    let site = Site::start().await;
    let mut alice = Browser::of("alice");

    let first = alice.navigate(&site.url("/page?item=1&n=2")).await;
    assert_eq!(first.status(), StatusCode::FOUND);
    let asked = Url::parse(&location(&first).unwrap()).unwrap();
    let parameter = |name: &str| asked.query_pairs().find(|(key, _)| key == name).unwrap().1.into_owned();
    assert_eq!(parameter("code_challenge_method"), "S256");
    assert!(parameter("state").len() >= 22 && parameter("nonce").len() >= 22);
    let page = alice.follow(first, "").await;
    assert_eq!((page.status(), page.url().path()), (StatusCode::OK, "/page"));
    assert_eq!(page.url().query(), Some("item=1&n=2"), "back where the person wanted to go");
    let told = site.told("/page?item");
    assert!(told.contains("x-gaitway-user: alice@shop.example\r\n"), "{told}");
    assert!(told.contains("x-gaitway-groups: staff,alice\r\n"), "{told}");
    assert!(!told.contains("gaitway_login"), "the app is not shown the login: {told}");
    assert!(!told.contains("eyj"), "nor any token: {told}");

    // What a client says of itself reaches nobody.
    let forged = [("x-gaitway-user", "root"), ("x_gaitway_user", "root"), ("sec-fetch-mode", "cors")];
    alice.send(Method::GET, &site.url("/json?forged"), &forged, "").await;
    let told = site.told("/json?forged");
    assert!(told.contains("alice@shop.example") && !told.contains("root"), "{told}");

    // Names need not be English, and no group smuggles another one in.
    let names = json!({"preferred_username": "Jürgen Öz", "groups": ["staff", "a,admin", "x\u{7}", "Größe"]});
    site.provider.door("tamper", &json!({"claims": names})).await;
    let mut other = Browser::of("bob");
    assert_eq!(other.open(&site.url("/page?other")).await.status(), StatusCode::OK);
    let told = site.told("/page?other");
    assert!(told.contains("x-gaitway-user: jürgen öz\r\n"), "{told}");
    assert!(told.contains("x-gaitway-groups: staff,größe\r\n"), "{told}");

    // A link logs nobody out, nor does somebody else's form.
    assert_eq!(alice.navigate(&site.url("/_gaitway/logout")).await.status(), StatusCode::OK);
    let foreign = [("sec-fetch-site", "cross-site"), ("sec-fetch-mode", "navigate")];
    let refused = alice.send(Method::POST, &site.url("/_gaitway/logout"), &foreign, "a=b").await;
    assert_eq!(refused.status(), StatusCode::FORBIDDEN);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);

    let stolen = alice.cookie(&site.origin, "gaitway_login").unwrap().clone();
    let own = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")];
    let out = alice.send(Method::POST, &site.url("/_gaitway/logout"), &own, "a=b").await;
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    let asked = alice.follow(out, "").await;
    assert!(asked.url().path().starts_with("/session/end"), "{}", asked.url());
    let form = asked.text().await.unwrap();
    let value = |name: &str| {
        let rest = form.split_once(&format!("name=\"{name}\" value=\"")).unwrap().1;
        rest.split('"').next().unwrap().to_owned()
    };
    let body = format!("xsrf={}&logout=yes", value("xsrf"));
    let confirm = site.provider.url("/session/end/confirm");
    let confirmed = alice.send(Method::POST, &confirm, &[("sec-fetch-mode", "navigate")], &body).await;
    let done = alice.follow(confirmed, "").await;
    assert_eq!(done.url().path(), "/_gaitway/logout/done");

    let mut thief = Browser::of("alice");
    thief.jar.entry(site.origin.clone()).or_default().insert("gaitway_login".into(), stolen);
    assert_eq!(thief.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn forms_and_scripts_are_told_and_never_redirected_and_nobody_is_sent_off_the_site() {
    let site = Site::start().await;
    let mut visitor = Browser::of("alice");
    let answer = visitor.fetch(&site.url("/json")).await;
    assert_eq!(answer.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem: Value = answer.json().await.unwrap();
    assert_eq!(problem["login"], "/_gaitway/login");
    let form = [("sec-fetch-mode", "navigate"), ("accept", "text/html")];
    let posted = visitor.send(Method::POST, &site.url("/upload"), &form, "a=b").await;
    assert_eq!(posted.status(), StatusCode::UNAUTHORIZED);
    assert!(posted.text().await.unwrap().contains("/_gaitway/login"));
    assert!(site.app.heads().is_empty(), "nothing reached the app: {:?}", site.app.heads());

    for wicked in [
        "https://evil.example/",
        "//evil.example/",
        "/\\evil.example/",
        "/%0d%0aSet-Cookie:%20a=b",
        "javascript:alert(1)",
        "/_gaitway/logout",
    ] {
        let mut browser = Browser::of("alice");
        let encoded: String = wicked.bytes().map(|byte| format!("%{byte:02x}")).collect();
        let url = site.url(&format!("/_gaitway/login?rd={encoded}"));
        let landed = browser.open(&url).await;
        let expected = if wicked.contains("%0d") { wicked } else { "/" };
        assert_eq!(landed.url().as_str(), site.url(expected), "{wicked}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_route_may_be_open_and_a_disguised_path_never_is() {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("policy.yaml");
    std::fs::write(
        &file,
        "routes:\n  - {name: open, match: {path: /page}, login: optional}\n  - {name: pay, match: {path: /pay/**}, login: required}\nrules:\n  - {name: note, when: bot.score > 0.99, action: log}\n",
    )
    .unwrap();
    let more = format!("policy:\n  file: {}\n", file.display());
    let site = Site::start_with(json!({}), "", &more).await;
    let mut visitor = Browser::of("alice");
    assert_eq!(visitor.fetch(&site.url("/page")).await.status(), StatusCode::OK);
    assert_eq!(visitor.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
    assert!(!site.told("/page").contains("x-gaitway-user"));

    let site = Site::start_with(json!({}), "    login: optional\n", &more).await;
    assert_eq!(visitor.fetch(&site.url("/json")).await.status(), StatusCode::OK);
    assert_eq!(visitor.fetch(&site.url("/pay/now")).await.status(), StatusCode::UNAUTHORIZED);
    let disguised = site
        .gateway
        .raw(b"GET //pay/now HTTP/1.1\r\nHost: a\r\nsec-fetch-mode: cors\r\nConnection: close\r\n\r\n", "");
    assert!(disguised.starts_with("HTTP/1.1 401"), "{disguised}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_forged_expired_or_confused_answer_logs_anybody_in() {
    let site = Site::start().await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let tampered = [
        json!({"stranger": true}),
        json!({"drop": true}),
        json!({"claims": {"nonce": "another"}}),
        json!({"without": ["nonce"]}),
        json!({"claims": {"iss": "https://evil.example"}}),
        json!({"claims": {"aud": "another"}}),
        json!({"claims": {"aud": ["gaitway", "another"]}}),
        json!({"claims": {"aud": ["gaitway", "another"], "azp": "another"}}),
        json!({"claims": {"azp": "another"}}),
        json!({"claims": {"exp": now - 3600}}),
        json!({"claims": {"exp": "9999999999"}}),
        json!({"claims": {"nbf": now + 3600}}),
        json!({"without": ["exp"]}),
        json!({"without": ["iat"]}),
        json!({"without": ["sub"]}),
        json!({"claims": {"sub": 7}}),
        json!({"without": ["auth_time"]}),
        json!({"claims": {"auth_time": now - 2 * 86400}}),
        json!({"claims": {"preferred_username": "a\r\nx-gaitway-groups: admin"}}),
        json!({"claims": {"preferred_username": ["alice"]}}),
        json!({"claims": {"events": {}}}),
        json!({"header": {"alg": "none"}}),
        json!({"header": {"alg": "HS256"}}),
        json!({"header": {"alg": "RS384"}}),
        json!({"header": {"kid": "another"}}),
        json!({"header": {"typ": "logout+jwt"}}),
        json!({"header": {"typ": "at+jwt"}}),
        json!({"header": {"crit": ["b64"]}}),
    ];
    for change in tampered {
        site.provider.door("tamper", &change).await;
        let mut browser = Browser::of("alice");
        let answer = browser.open(&site.url("/page")).await;
        assert_eq!(answer.status(), StatusCode::FORBIDDEN, "{change}");
        assert!(browser.cookie(&site.origin, "gaitway_login").is_none(), "{change}");
    }
    assert!(site.app.heads().is_empty());
    // The provider's way of doing it works, so the refusals above were about what was changed.
    assert_eq!(Browser::of("alice").open(&site.url("/page")).await.status(), StatusCode::OK);

    // Answers to somebody else, twice, without a cookie, with an issuer of another name.
    let mut browser = Browser::of("alice");
    let begun = browser.navigate(&site.url("/page")).await;
    let back = browser.follow(begun, "/_gaitway/login/callback").await;
    let callback = location(&back).unwrap();
    assert_eq!(Browser::of("mallory").navigate(&callback).await.status(), StatusCode::FORBIDDEN);
    let renamed = callback.replace(&encoded(&site.provider.url("")), "https%3A%2F%2Fevil.example");
    assert_ne!(renamed, callback);
    assert_eq!(browser.navigate(&renamed).await.status(), StatusCode::FORBIDDEN);
    let unnamed = callback.split("&iss=").next().unwrap();
    assert_eq!(browser.navigate(unnamed).await.status(), StatusCode::FORBIDDEN);
    let swapped = format!("{callback}x").replace("code=", "code=x");
    assert_eq!(browser.navigate(&swapped).await.status(), StatusCode::FORBIDDEN);
    let jar = browser.jar.clone();
    assert_eq!(browser.navigate(&callback).await.status(), StatusCode::SEE_OTHER);
    browser.jar = jar;
    assert_eq!(browser.navigate(&callback).await.status(), StatusCode::FORBIDDEN, "a code works once");
    // Cookies nobody gave out are nobody's.
    for made_up in ["", "x", &"A".repeat(43), &"A".repeat(9000)] {
        let mut browser = Browser::of("alice");
        let jar = browser.jar.entry(site.origin.clone()).or_default();
        jar.insert("gaitway_login".into(), made_up.into());
        assert_eq!(browser.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
    }
}

fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'0'..=b'9' | b'.' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_renewed_and_a_provider_that_is_down_logs_nobody_out() {
    let mut site = Site::start_with(json!({"access_seconds": 4}), "", "").await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    eventually("the tokens are renewed", async || {
        assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
        site.gateway.metric("gaitway_login_renewals_total", "\"ok\"").await >= 1.0
    })
    .await;
    site.provider.kill();
    eventually("a renewal fails", async || {
        assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
        site.gateway.metric("gaitway_login_renewals_total", "unreachable").await >= 1.0
    })
    .await;
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
    // Whoever is not logged in cannot, and is told so in words.
    let refused = Browser::of("bob").navigate(&site.url("/page")).await;
    assert_eq!(refused.status(), StatusCode::FOUND, "the provider's address is known, so it is tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_starts_without_its_provider_and_says_so() {
    let app = App::start().await;
    let port = free_port();
    let mut provider = Provider::start(&json!({"gateway": format!("http://127.0.0.1:{port}")}));
    provider.kill();
    let _gateway = Gateway::start_with(&app.url(), &settings(port, &provider, "", ""), SECRETS);
    let answer = Browser::of("alice").navigate(&format!("http://127.0.0.1:{port}/page")).await;
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert!(answer.text().await.unwrap().contains("The login did not work"));
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_share_logins_and_the_provider_ends_them_everywhere() {
    let redis = Redis::start();
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let site = Site::start_with(json!({}), "", &more).await;
    let other = free_port();
    let second = settings(other, &site.provider, "", &more)
        .replace(&format!("public_url: http://127.0.0.1:{other}"), &format!("public_url: {}", site.origin));
    let second = Gateway::start_with(&site.app.url(), &second, SECRETS);
    let mut alice = Browser::of("alice");
    let mut phone = Browser::of("alice");
    let mut bob = Browser::of("bob");
    for browser in [&mut alice, &mut phone, &mut bob] {
        assert_eq!(browser.open(&site.url("/page")).await.status(), StatusCode::OK);
        // Cookies belong to a host whatever its port; here each origin has a jar.
        let jar = browser.jar[&site.origin].clone();
        browser.jar.insert(format!("http://{}", second.address), jar);
        assert_eq!(browser.fetch(&second.url("/json")).await.status(), StatusCode::OK);
    }
    // The vault is unreadable to whoever reads Redis.
    let stored = redis.dump();
    assert!(stored.contains("gaitway:login:"), "{stored}");
    assert!(!stored.contains("alice") && !stored.contains("eyJ"), "{stored}");

    let sid = site.provider.sessions("alice")[0].clone();
    let token = logout_token(&site, json!({"sid": sid, "sub": "alice"})).await;
    assert_eq!(say(&site, &token).await, StatusCode::OK);
    eventually("that browser is logged out everywhere", async || {
        alice.fetch(&second.url("/json")).await.status() == StatusCode::UNAUTHORIZED
            && alice.fetch(&site.url("/json")).await.status() == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(phone.fetch(&second.url("/json")).await.status(), StatusCode::OK, "another session");
    assert_eq!(bob.fetch(&second.url("/json")).await.status(), StatusCode::OK);

    assert_eq!(say(&site, &logout_token(&site, json!({"sub": "alice"})).await).await, StatusCode::OK);
    eventually("the person is logged out everywhere", async || {
        phone.fetch(&second.url("/json")).await.status() == StatusCode::UNAUTHORIZED
    })
    .await;
    assert_eq!(bob.fetch(&second.url("/json")).await.status(), StatusCode::OK);
    // The provider still takes them for logged in: it is asked to ask again, and then they are in.
    let again = phone.open(&site.url("/page")).await;
    assert_eq!(again.status(), StatusCode::OK, "{}", again.url());
    assert!(site.gateway.metric("gaitway_logins_total", "\"anew\"").await >= 1.0);
}

#[tokio::test(flavor = "multi_thread")]
async fn two_replicas_renew_one_login_at_once_and_its_refresh_token_is_used_once() {
    let redis = Redis::start();
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let site = Site::start_with(json!({"access_seconds": 2, "rotate": true}), "", &more).await;
    let other = free_port();
    let second = settings(other, &site.provider, "", &more)
        .replace(&format!("public_url: http://127.0.0.1:{other}"), &format!("public_url: {}", site.origin));
    let second = Gateway::start_with(&site.app.url(), &second, SECRETS);
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    let cookie = format!("gaitway_login={}", alice.cookie(&site.origin, "gaitway_login").unwrap());
    // Both are asked at once, and go on being asked, until the token has changed several times.
    let addresses = [site.url("/json"), second.url("/json")];
    eventually("the token was changed five times", async || {
        let asked = (0..8).map(|n| {
            let request = alice.http.get(&addresses[n % 2]).header(COOKIE, &cookie);
            request.header("sec-fetch-mode", "cors").send()
        });
        for answer in futures_util::future::join_all(asked).await {
            assert_eq!(answer.unwrap().status(), StatusCode::OK);
        }
        site.provider.count("refresh_token.consumed") >= 5
    })
    .await;
    assert_eq!(site.provider.count("grant.revoked"), 0, "no token came twice");
    let mut renewed = 0.0;
    for gateway in [&site.gateway, &second] {
        renewed += gateway.metric("gaitway_login_renewals_total", "\"ok\"").await;
        assert_eq!(gateway.metric("gaitway_login_renewals_total", "refused").await, 0.0);
        assert_eq!(gateway.metric("gaitway_login_renewals_total", "over").await, 0.0);
    }
    assert!(renewed >= 4.0, "{renewed}: the fifth may be under way");
}

async fn logout_token(site: &Site, claims: Value) -> String {
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let mut payload = json!({
        "iss": site.provider.url(""), "aud": "gaitway", "iat": now, "exp": now + 120,
        "jti": format!("{:x}", rand::random::<u128>()),
        "events": {"http://schemas.openid.net/event/backchannel-logout": {}},
    });
    for (claim, value) in claims.as_object().unwrap() {
        match value {
            Value::Null => payload.as_object_mut().unwrap().remove(claim),
            value => payload.as_object_mut().unwrap().insert(claim.clone(), value.clone()),
        };
    }
    let header = json!({"typ": "logout+jwt"});
    site.provider.door("sign", &json!({"header": header, "payload": payload})).await
}

async fn say(site: &Site, token: &str) -> StatusCode {
    let mut provider = Browser::of("provider");
    let url = site.url("/_gaitway/backchannel-logout");
    provider.send(Method::POST, &url, &[], &format!("logout_token={token}")).await.status()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_logout_token_that_is_not_the_providers_logs_nobody_out() {
    let site = Site::start().await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    for change in [
        json!({"iss": "https://evil.example"}),
        json!({"aud": "another"}),
        json!({"aud": null}),
        json!({"exp": now - 3600}),
        json!({"exp": null}),
        json!({"iat": now - 3600}),
        json!({"iat": now + 3600}),
        json!({"iat": null}),
        json!({"jti": null}),
        json!({"jti": 7}),
        json!({"events": null}),
        json!({"events": {}}),
        json!({"events": {"http://schemas.openid.net/event/backchannel-logout": 1}}),
        json!({"events": "http://schemas.openid.net/event/backchannel-logout"}),
        json!({"nonce": "x"}),
        json!({"sub": null}),
        json!({"sub": ["alice"]}),
    ] {
        let mut claims = json!({"sub": "alice"});
        claims.as_object_mut().unwrap().extend(change.as_object().unwrap().clone());
        let token = logout_token(&site, claims).await;
        assert_eq!(say(&site, &token).await, StatusCode::BAD_REQUEST, "{change}");
    }
    let good = logout_token(&site, json!({"sub": "alice"})).await;
    let (signed, _) = good.rsplit_once('.').unwrap();
    for forged in [
        signed.to_owned(),
        format!("{signed}."),
        format!("{signed}.AAAA"),
        String::new(),
        "x".repeat(20_000),
        site.provider
            .door(
                "sign",
                &json!({"foreign": true, "payload": {"iss": site.provider.url(""), "aud": "gaitway"}}),
            )
            .await,
    ] {
        assert_eq!(say(&site, &forged).await, StatusCode::BAD_REQUEST, "{forged}");
    }
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK, "nobody is logged out yet");

    assert_eq!(say(&site, &good).await, StatusCode::OK);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK, "and in again");
    assert_eq!(say(&site, &good).await, StatusCode::BAD_REQUEST, "a logout token works once");
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_keeps_the_providers_logouts_out_by_sending_many() {
    let site = Site::start().await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    let attacker =
        Client::builder().local_address("127.0.0.2".parse::<std::net::IpAddr>().unwrap()).build().unwrap();
    let url = site.url("/_gaitway/backchannel-logout");
    let flood = async |token: &str| {
        let form = format!("logout_token={token}");
        let posts = (0..400).map(|_| {
            let post = attacker.post(&url).header("content-type", "application/x-www-form-urlencoded");
            post.body(form.clone()).send()
        });
        let answers: Vec<_> = futures_util::stream::iter(posts).buffer_unordered(32).collect().await;
        let of = |status: u16| {
            answers.iter().filter(|answer| answer.as_ref().unwrap().status().as_u16() == status).count()
        };
        (of(400), of(503))
    };
    // Well made, but signed by a stranger: only the signature tells, so only so many are looked at.
    let genuine = logout_token(&site, json!({"sub": "nobody"})).await;
    let (signed, _) = genuine.rsplit_once('.').unwrap();
    let forged = format!("{signed}.{}", "A".repeat(342));
    let junk = forged.replacen('.', "", 1);
    // As fast as that, what is refused at a glance takes nobody's place.
    assert_eq!(flood(&junk).await, (400, 0));
    eventually("more come than are looked at", async || {
        let (refused, later) = flood(&forged).await;
        assert_eq!(refused + later, 400);
        later > 0
    })
    .await;
    // While they come, the provider from its own address is heard the first time.
    let over = AtomicBool::new(false);
    let storm = async {
        while !over.load(Ordering::Relaxed) {
            flood(&forged).await;
        }
    };
    let heard = async {
        for _ in 0..20 {
            let token = logout_token(&site, json!({"sub": "nobody"})).await;
            assert_eq!(say(&site, &token).await, StatusCode::OK);
        }
        assert_eq!(say(&site, &logout_token(&site, json!({"sub": "alice"})).await).await, StatusCode::OK);
        over.store(true, Ordering::Relaxed);
    };
    tokio::join!(storm, heard);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lost_redis_logs_nobody_out_and_lets_nobody_in() {
    let mut redis = Redis::start();
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let site = Site::start_with(json!({}), "", &more).await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    redis.kill();
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK, "known to this replica");
    let mut bob = Browser::of("bob");
    let answer = tokio::time::timeout(DEADLINE, bob.open(&site.url("/page"))).await.unwrap();
    assert_eq!(answer.status(), StatusCode::SERVICE_UNAVAILABLE, "a login that cannot be kept is none");
    redis.restart();
    eventually("logins work again", async || {
        Browser::of("bob").open(&site.url("/page")).await.status() == StatusCode::OK
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_redis_that_has_forgotten_everything_logs_nobody_out() {
    let mut redis = Redis::start();
    let more = format!("revocation:\n  redis: {}\n", redis.url());
    let site = Site::start_with(json!({"access_seconds": 4}), "", &more).await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    redis.restart();
    assert!(!redis.dump().contains("gaitway:login:"));
    eventually("the tokens are renewed", async || {
        assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::OK);
        site.gateway.metric("gaitway_login_renewals_total", "\"ok\"").await >= 1.0
    })
    .await;
    assert!(redis.dump().contains("gaitway:login:"), "it is told again what it forgot");
    // Its provider can still end it by the number that it gave it.
    let sid = site.provider.sessions("alice")[0].clone();
    let token = logout_token(&site, json!({"sid": sid})).await;
    assert_eq!(say(&site, &token).await, StatusCode::OK);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_revocation_tells_the_provider_that_the_tokens_are_no_longer_good() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "operators share this password").unwrap();
    let more = format!("ops:\n  listen: 127.0.0.1:0\n  password_file: {}\n", password.display());
    let site = Site::start_with(json!({}), "", &more).await;
    let mut alice = Browser::of("alice");
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    assert_eq!(site.provider.count("grant.revoked"), 0);
    let api = format!("http://{}/api/sessions", site.gateway.ops);
    let operator = Client::new();
    let ask = |request: reqwest::RequestBuilder| request.bearer_auth("operators share this password").send();
    let mut session = String::new();
    eventually("the session is listed", async || {
        let list: Value = ask(operator.get(&api)).await.unwrap().json().await.unwrap();
        session = list["sessions"][0]["identity"]["session"].as_str().unwrap_or_default().to_owned();
        !session.is_empty()
    })
    .await;
    let revoke = operator.post(format!("{api}/{session}/revoke")).json(&json!({"why": "a test asked"}));
    assert!(ask(revoke).await.unwrap().status().is_success());
    eventually("the session is over", async || {
        alice.fetch(&site.url("/json")).await.status() == StatusCode::UNAUTHORIZED
    })
    .await;
    eventually("the provider knows", async || site.provider.count("grant.revoked") >= 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_logs_out_is_not_among_the_denied() {
    let directory = tempfile::tempdir().unwrap();
    let password = directory.path().join("password");
    std::fs::write(&password, "operators share this password").unwrap();
    let more = format!("ops:\n  listen: 127.0.0.1:0\n  password_file: {}\n", password.display());
    let site = Site::start_with(json!({}), "", &more).await;
    let (mut alice, mut bob) = (Browser::of("alice"), Browser::of("bob"));
    let api = format!("http://{}/api/sessions", site.gateway.ops);
    let operator = Client::new();
    let list = async || -> Vec<Value> {
        let request = operator.get(&api).bearer_auth("operators share this password");
        let list: Value = request.send().await.unwrap().json().await.unwrap();
        list["sessions"].as_array().unwrap().clone()
    };
    assert_eq!(bob.open(&site.url("/page")).await.status(), StatusCode::OK);
    eventually("one session is listed", async || list().await.len() == 1).await;
    let denied = list().await[0]["identity"]["session"].as_str().unwrap().to_owned();
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);
    eventually("both are listed", async || list().await.len() == 2).await;

    let own = [("sec-fetch-site", "same-origin"), ("sec-fetch-mode", "navigate")];
    let out = alice.send(Method::POST, &site.url("/_gaitway/logout"), &own, "a=b").await;
    assert_eq!(out.status(), StatusCode::SEE_OTHER);
    assert_eq!(alice.fetch(&site.url("/json")).await.status(), StatusCode::UNAUTHORIZED);
    // What is told of hers is told before his.
    let revoke = operator.post(format!("{api}/{denied}/revoke")).json(&json!({"why": "a test asked"}));
    revoke.bearer_auth("operators share this password").send().await.unwrap().error_for_status().unwrap();
    let is_denied = |session: &Value| session["standing"]["standing"] == "deny";
    eventually("his is denied", async || list().await.iter().any(is_denied)).await;
    let sessions = list().await;
    assert_eq!(sessions.iter().filter(|session| is_denied(session)).count(), 1, "{sessions:?}");
}

const STEP_UPS: &str = "mode: enforce
routes:
  - {name: pay, match: {path: /pay}}
  - {name: settings, match: {path: /settings}}
  - {name: keys, match: {path: /keys}}
rules:
  - {name: pay, when: route == \"pay\", action: step-up, step_up: {acr_values: strong}, cool_down: 1h, for: 1h}
  - {name: settings, when: route == \"settings\", action: step-up, step_up: {max_age: 5m}, cool_down: 1h, for: 1h}
  - {name: keys, when: route == \"keys\", action: step-up, cool_down: 1h, for: 1h}
";

async fn site_with_step_ups(directory: &std::path::Path) -> Site {
    let file = directory.join("policy.yaml");
    std::fs::write(&file, STEP_UPS).unwrap();
    Site::start_with(json!({}), "", &format!("policy:\n  file: {}\n", file.display())).await
}

/// Logs in, and asks for what a rule waits for until more proof is wanted.
async fn log_in_and_trip(site: &Site, browser: &mut Browser, path: &str) {
    assert_eq!(browser.open(&site.url("/page")).await.status(), StatusCode::OK);
    trip(site, browser, path).await;
}

async fn trip(site: &Site, browser: &mut Browser, path: &str) {
    browser.fetch(&site.url(path)).await;
    eventually("more proof is asked for", async || {
        browser.fetch(&site.url("/page")).await.status() == StatusCode::UNAUTHORIZED
    })
    .await;
}

/// What the provider is asked by a redirect to it.
fn asked(response: &Response) -> BTreeMap<String, String> {
    Url::parse(&location(response).unwrap()).unwrap().query_pairs().into_owned().collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn stronger_proof_is_given_at_the_provider_by_the_same_person_for_the_same_session() {
    let directory = tempfile::tempdir().unwrap();
    let site = site_with_step_ups(directory.path()).await;
    let mut alice = Browser::of("alice");
    log_in_and_trip(&site, &mut alice, "/pay").await;
    let cookie = alice.cookie(&site.origin, "gaitway_login").unwrap().clone();

    // A script is told (RFC 9470), and what a form holds goes nowhere else.
    let told = alice.fetch(&site.url("/page")).await;
    let challenge = told.headers()["www-authenticate"].to_str().unwrap();
    assert!(challenge.starts_with("Bearer error=\"insufficient_user_authentication\""), "{challenge}");
    assert!(challenge.ends_with(", acr_values=\"strong\""), "{challenge}");
    let form = [("sec-fetch-mode", "navigate"), ("accept", "text/html")];
    let posted = alice.send(Method::POST, &site.url("/upload"), &form, "a=b").await;
    assert_eq!((posted.status(), location(&posted)), (StatusCode::UNAUTHORIZED, None));

    // The same proof as before, and somebody else's, are none.
    let weak = alice.open(&site.url("/page")).await;
    assert_eq!(weak.status(), StatusCode::FORBIDDEN, "{}", weak.url());
    let begun = alice.navigate(&site.url("/page?item=1")).await;
    assert_eq!(begun.status(), StatusCode::FOUND);
    assert_eq!(asked(&begun)["acr_values"], "strong");
    let mut mallory = Browser::of("mallory");
    mallory.acr = Some("strong");
    mallory.jar.insert(site.origin.clone(), alice.jar[&site.origin].clone());
    let stolen = mallory.follow(begun, "").await;
    assert_eq!(stolen.status(), StatusCode::FORBIDDEN, "{}", stolen.url());
    // Nor does it count for another session, not even of the same person.
    let begun = alice.navigate(&site.url("/page?item=1")).await;
    let mut elsewhere = Browser::of("alice");
    elsewhere.acr = Some("strong");
    assert_eq!(elsewhere.open(&site.url("/page")).await.status(), StatusCode::OK);
    let mut pending = alice.jar[&site.origin].clone();
    pending.remove("gaitway_login");
    elsewhere.jar.get_mut(&site.origin).unwrap().extend(pending);
    assert_eq!(elsewhere.follow(begun, "").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(alice.fetch(&site.url("/page")).await.status(), StatusCode::UNAUTHORIZED);

    alice.acr = Some("strong");
    let strong = alice.open(&site.url("/page?item=1")).await;
    assert_eq!((strong.status(), strong.url().as_str()), (StatusCode::OK, &*site.url("/page?item=1")));
    assert_eq!(alice.cookie(&site.origin, "gaitway_login"), Some(&cookie), "the same session");
    assert_eq!(alice.fetch(&site.url("/page")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn proof_from_before_it_was_asked_for_is_no_new_proof() {
    let directory = tempfile::tempdir().unwrap();
    let site = site_with_step_ups(directory.path()).await;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let an_hour_ago = json!({"claims": {"auth_time": now - 3600}});

    let mut alice = Browser::of("alice");
    log_in_and_trip(&site, &mut alice, "/settings").await;
    let begun = alice.navigate(&site.url("/page")).await;
    assert_eq!(asked(&begun)["max_age"], "300");
    // A provider that answers with the login it has is asked once more, and not a third time.
    site.provider.door("tamper", &an_hour_ago).await;
    let again = alice.follow(begun, "prompt=login").await;
    assert_eq!(asked(&again)["max_age"], "300");
    site.provider.door("tamper", &an_hour_ago).await;
    assert_eq!(alice.follow(again, "").await.status(), StatusCode::FORBIDDEN);
    assert_eq!(alice.fetch(&site.url("/page")).await.status(), StatusCode::UNAUTHORIZED);
    assert_eq!(alice.open(&site.url("/page")).await.status(), StatusCode::OK);

    // The question travels through the browser, where it can be taken out.
    let mut bob = Browser::of("bob");
    log_in_and_trip(&site, &mut bob, "/keys").await;
    for answer in [an_hour_ago, json!({"without": ["auth_time"]})] {
        let begun = bob.navigate(&site.url("/page")).await;
        assert_eq!(asked(&begun)["prompt"], "login");
        let mut address = Url::parse(&location(&begun).unwrap()).unwrap();
        let kept = asked(&begun).into_iter().filter(|(name, _)| name != "prompt" && name != "max_age");
        address.query_pairs_mut().clear().extend_pairs(kept);
        site.provider.door("tamper", &answer).await;
        assert_eq!(bob.open(address.as_str()).await.status(), StatusCode::FORBIDDEN, "{answer}");
        assert_eq!(bob.fetch(&site.url("/page")).await.status(), StatusCode::UNAUTHORIZED);
    }
    assert_eq!(bob.open(&site.url("/page")).await.status(), StatusCode::OK);
    assert_eq!(bob.fetch(&site.url("/page")).await.status(), StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_weaker_proof_asked_for_earlier_does_not_stand_for_a_stronger_one() {
    let directory = tempfile::tempdir().unwrap();
    let site = site_with_step_ups(directory.path()).await;
    let mut carol = Browser::of("carol");
    log_in_and_trip(&site, &mut carol, "/settings").await;
    let first = carol.navigate(&site.url("/page")).await;
    let second = carol.navigate(&site.url("/page")).await;
    let kept = carol.jar[&site.origin].clone();
    assert_eq!(carol.follow(first, "").await.status(), StatusCode::OK);

    trip(&site, &mut carol, "/pay").await;
    carol.jar.insert(site.origin.clone(), kept);
    let page = carol.follow(second, "acr_values=strong").await;
    assert!(location(&page).is_some(), "asked for what is asked for now, not let in: {}", page.url());
    assert_eq!(carol.fetch(&site.url("/page")).await.status(), StatusCode::UNAUTHORIZED);
    carol.acr = Some("strong");
    assert_eq!(carol.open(&site.url("/page")).await.status(), StatusCode::OK);
    assert_eq!(carol.fetch(&site.url("/page")).await.status(), StatusCode::OK);
}
