//! One OpenID provider as its client sees it: what it says of itself, its keys, and the questions it is
//! asked. Tokens pass through and are never kept or logged here.
//!
//! Invariant: nothing it says is believed before its signature is checked, and a provider that does not
//! answer changes nothing that is known. Must not know: cookies, sessions, policies.

use super::IdentityError;
use super::jwks::{Jwks, Keys, Timing, is_loopback};
use super::keys::KeySet;
use super::login::ProviderTold;
use super::signed;
use super::token::{self, Claims, Rejection, Rules};
use arc_swap::ArcSwapOption;
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use futures_util::future::BoxFuture;
use gaitway_models::Timestamp;
use jsonwebtoken::Algorithm;
use oauth2::basic::{
    BasicErrorResponse, BasicRevocationErrorResponse, BasicTokenIntrospectionResponse, BasicTokenType,
};
use oauth2::url::form_urlencoded;
use oauth2::{
    AuthType, AuthUrl, AuthorizationCode, ClientId, ClientSecret, CsrfToken, EndpointNotSet, EndpointSet,
    ExtraTokenFields, PkceCodeChallenge, PkceCodeVerifier, RedirectUrl, RefreshToken, RequestTokenError,
    Scope, StandardRevocableToken, StandardTokenResponse, TokenResponse, TokenUrl,
};
use reqwest::Url;
use serde::{Deserialize, Serialize};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

pub(super) struct Provider {
    issuer: String,
    client_id: String,
    client_secret: Option<String>,
    http: Http,
    metadata: ArcSwapOption<Metadata>,
    keys: Arc<Keys>,
    id_token_rules: Rules,
}

/// What the provider says of itself, as far as it concerns us.
#[derive(Debug)]
pub(super) struct Metadata {
    authorization: AuthUrl,
    token: TokenUrl,
    jwks_uri: String,
    pub(super) end_session: Option<Url>,
    revocation: Option<Url>,
    /// It names itself in every answer (RFC 9207), so an answer without its name is somebody else's.
    pub(super) names_itself: bool,
    secret_in_body: bool,
}

/// What a login at the provider shall be like.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Ask {
    /// Even somebody who is logged in there proves anew who they are.
    pub anew: bool,
    /// At most so long ago.
    pub age_seconds_max: Option<u64>,
    /// Ways of proving it, the preferred first, separated by spaces (RFC 9470).
    pub acr_values: Option<String>,
}

/// Tokens as the provider issued them; only the ID token is looked into.
pub(super) struct Tokens {
    pub(super) access: String,
    pub(super) refresh: Option<String>,
    pub(super) id: Option<String>,
    pub(super) access_lasts: Option<Duration>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum ProviderError {
    /// Nothing is known; asking again may help.
    #[error("the provider does not answer: {0}")]
    Unreachable(String),
    /// Its decision, by its own short code.
    #[error("the provider refused")]
    Refused { is_over: bool },
    #[error("the provider's answer cannot be believed: {0}")]
    Unbelievable(&'static str),
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
struct IdToken {
    id_token: Option<String>,
}
impl ExtraTokenFields for IdToken {}

type Client = oauth2::Client<
    BasicErrorResponse,
    StandardTokenResponse<IdToken, BasicTokenType>,
    BasicTokenIntrospectionResponse,
    StandardRevocableToken,
    BasicRevocationErrorResponse,
    EndpointSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointNotSet,
    EndpointSet,
>;

impl Provider {
    pub(super) fn new(
        issuer: &str,
        client_id: &str,
        client_secret: Option<String>,
    ) -> Result<Provider, IdentityError> {
        Ok(Provider {
            issuer: issuer.to_owned(),
            client_id: client_id.to_owned(),
            client_secret,
            http: Http::new()?,
            metadata: ArcSwapOption::empty(),
            keys: Arc::new(Keys::fixed(KeySet::empty())),
            id_token_rules: Rules {
                algorithms: ALGORITHMS.to_vec(),
                issuer: Some(issuer.to_owned()),
                audience: Some(client_id.to_owned()),
                session_claims: Vec::new(),
                subject_claim: "sub".into(),
                groups_claim: String::new(),
                leeway_ms: LEEWAY_MS,
                require_expiry: true,
                token_bytes_max: TOKEN_BYTES_MAX,
            },
        })
    }

    pub(super) fn issuer(&self) -> &str {
        &self.issuer
    }

    pub(super) fn client_id(&self) -> &str {
        &self.client_id
    }

    /// `None` until it has answered once.
    pub(super) fn metadata(&self) -> Option<Arc<Metadata>> {
        self.metadata.load_full()
    }

    /// Reads what it says of itself and its keys, now and again every hour; runs until dropped.
    pub(super) async fn keep_known(self: Arc<Self>) {
        let mut failures = 0u32;
        loop {
            let known = match self.discover().await {
                Ok(metadata) => {
                    failures = 0;
                    let uri = metadata.jwks_uri.clone();
                    self.metadata.store(Some(Arc::new(metadata)));
                    Some(uri)
                }
                Err(error) => {
                    failures = failures.saturating_add(1);
                    tracing::warn!(%error, failures, "the OpenID provider cannot be asked; logins under way wait, people logged in go on");
                    self.metadata().map(|metadata| metadata.jwks_uri.clone())
                }
            };
            let pause = match failures {
                0 => DISCOVERY_EVERY,
                _ => (DISCOVERY_RETRY * 2u32.pow(failures.min(6) - 1)).min(DISCOVERY_EVERY),
            };
            let keys = async {
                let jwks =
                    known.and_then(|uri| Jwks::new(&uri, &self.issuer, &ALGORITHMS, Timing::default()).ok());
                let Some(jwks) = jwks else { return std::future::pending().await };
                let first = jwks.refresh(&self.keys).await;
                jwks.keep_fresh(Arc::clone(&self.keys), first).await;
            };
            let _ = tokio::time::timeout(pause, keys).await;
        }
    }

    /// Waits a moment for the provider to become known; for the start, so that the first visitor finds it.
    pub(super) async fn until_known(&self, patience: Duration) {
        let known = async {
            while self.metadata.load().is_none() || self.keys.current().len() == 0 {
                tokio::time::sleep(POLL).await;
            }
        };
        let _ = tokio::time::timeout(patience, known).await;
    }

    async fn discover(&self) -> Result<Metadata, ProviderError> {
        let address = format!("{}/.well-known/openid-configuration", self.issuer.trim_end_matches('/'));
        let request = http::Request::get(address).body(Vec::new());
        let request = request.map_err(|_| ProviderError::Unbelievable("the issuer is no address"))?;
        let response = self.send(request).await.map_err(|error| ProviderError::Unreachable(error.0))?;
        if response.status() != http::StatusCode::OK {
            return Err(ProviderError::Unreachable(format!("status {}", response.status().as_u16())));
        }
        Metadata::read(response.body(), &self.issuer).map_err(ProviderError::Unbelievable)
    }

    /// The address to send a browser to. `challenge` is of the verifier that [`Provider::redeem`] shows.
    pub(super) fn login_address(
        &self,
        metadata: &Metadata,
        redirect: &RedirectUrl,
        scopes: &[String],
        (state, nonce, challenge): (&str, &str, PkceCodeChallenge),
        ask: &Ask,
    ) -> Url {
        let client = self.client(metadata, redirect);
        let mut request = client
            .authorize_url(|| CsrfToken::new(state.to_owned()))
            .add_scopes(scopes.iter().cloned().map(Scope::new))
            .add_extra_param("nonce", nonce.to_owned())
            .set_pkce_challenge(challenge);
        // OpenID Connect Core §11: without consent asked for, providers ignore the scope.
        let is_offline = scopes.iter().any(|scope| scope == "offline_access");
        match (ask.anew, is_offline) {
            (true, true) => request = request.add_extra_param("prompt", "login consent"),
            (true, false) => request = request.add_extra_param("prompt", "login"),
            (false, true) => request = request.add_extra_param("prompt", "consent"),
            (false, false) => {}
        }
        if let Some(age) = ask.age_seconds_max {
            request = request.add_extra_param("max_age", age.to_string());
        }
        if let Some(values) = &ask.acr_values {
            request = request.add_extra_param("acr_values", values.clone());
        }
        request.url().0
    }

    /// Tokens for the code that a browser brought back.
    pub(super) async fn redeem(
        &self,
        redirect: &RedirectUrl,
        code: &str,
        verifier: &str,
    ) -> Result<Tokens, ProviderError> {
        let metadata = self.metadata().ok_or_else(unknown)?;
        let client = self.client(&metadata, redirect);
        let request = client
            .exchange_code(AuthorizationCode::new(code.to_owned()))
            .set_pkce_verifier(PkceCodeVerifier::new(verifier.to_owned()));
        let answer = request.request_async(self).await;
        counted("token", tokens(answer))
    }

    /// New tokens for a refresh token; `Refused` with `is_over` if the provider ended the login.
    pub(super) async fn renew(&self, redirect: &RedirectUrl, refresh: &str) -> Result<Tokens, ProviderError> {
        let metadata = self.metadata().ok_or_else(unknown)?;
        let client = self.client(&metadata, redirect);
        let refresh = RefreshToken::new(refresh.to_owned());
        let answer = client.exchange_refresh_token(&refresh).request_async(self).await;
        counted("token", tokens(answer))
    }

    /// Verifies an ID token. A key that is not known is fetched first: providers change theirs.
    pub(super) async fn id_token(&self, token: &str, now: Timestamp) -> Result<Claims, Rejection> {
        let claims = self.open(token, &["jwt"], now).await?;
        // A token about a logout or another event proves no login.
        if claims.all.contains_key("events") || claims.issued_at.is_none() {
            return Err(Rejection::Claim);
        }
        let party = claims.all.get("azp");
        let is_shared = claims.all.get("aud").and_then(|aud| aud.as_array()).is_some_and(|aud| aud.len() > 1);
        match party {
            None if is_shared => Err(Rejection::Audience),
            Some(party) if party.as_str() != Some(&self.client_id) => Err(Rejection::Audience),
            _ => Ok(claims),
        }
    }

    /// Verifies the signature, issuer, audience and time of a logout token, not what it asks for.
    pub(super) async fn logout_token(&self, token: &str, now: Timestamp) -> Result<Claims, Rejection> {
        self.open(token, &LOGOUT_TYPES, now).await
    }

    /// Refuses what is plainly no logout token of this provider for us. Costs no signature check, and proves
    /// nothing of what it lets pass.
    pub(super) fn glance_at_logout_token(&self, token: &str, now: Timestamp) -> Result<(), Rejection> {
        token::glance(token, &self.id_token_rules, &LOGOUT_TYPES, now)
    }

    async fn open(&self, token: &str, types: &[&str], now: Timestamp) -> Result<Claims, Rejection> {
        signed::open(token, &self.keys, &self.id_token_rules, types, now).await
    }

    fn client(&self, metadata: &Metadata, redirect: &RedirectUrl) -> Client {
        let mut client = oauth2::Client::new(ClientId::new(self.client_id.clone()))
            .set_auth_uri(metadata.authorization.clone())
            .set_token_uri(metadata.token.clone())
            .set_redirect_uri(redirect.clone())
            .set_auth_type(if metadata.secret_in_body { AuthType::RequestBody } else { AuthType::BasicAuth });
        if let Some(secret) = &self.client_secret {
            client = client.set_client_secret(ClientSecret::new(secret.clone()));
        }
        client
    }

    /// RFC 7009. `false`: it takes no such news.
    pub(super) async fn revoke(&self, token: &str, hint: &str) -> Result<bool, ProviderTold> {
        let Some(metadata) = self.metadata() else {
            return Err(ProviderTold::Later("the provider has not told its addresses yet".into()));
        };
        let Some(address) = &metadata.revocation else { return Ok(false) };
        let endpoint = Endpoint {
            url: address.clone(),
            client_id: self.client_id.clone(),
            client_secret: self.client_secret.clone(),
            secret_in_body: metadata.secret_in_body,
            http: self.http.clone(),
        };
        let (outcome, told) = match endpoint.post(&[("token", token), ("token_type_hint", hint)]).await {
            Ok((200, _)) => ("ok", Ok(true)),
            Ok((status @ 400..500, _)) if status != 429 => {
                ("refused", Err(ProviderTold::Never(format!("the provider answered with status {status}"))))
            }
            Ok((status, _)) => (
                "unreachable",
                Err(ProviderTold::Later(format!("the provider answered with status {status}"))),
            ),
            Err(why) => ("unreachable", Err(ProviderTold::Later(why))),
        };
        metrics::counter!("gaitway_provider_requests_total", "endpoint" => "revocation", "outcome" => outcome)
            .increment(1);
        told
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Unanswered> {
        self.http.send(request).await
    }
}

/// How this process speaks to providers.
#[derive(Clone)]
struct Http(reqwest::Client);

impl Http {
    fn new() -> Result<Http, IdentityError> {
        let client = reqwest::Client::builder()
            .timeout(ANSWER_TIMEOUT)
            // A redirect would let the answer choose who gets the client's secret.
            .redirect(reqwest::redirect::Policy::none())
            .build();
        client.map(Http).map_err(|error| IdentityError::Provider(error.to_string()))
    }

    async fn send(&self, request: http::Request<Vec<u8>>) -> Result<http::Response<Vec<u8>>, Unanswered> {
        // Addresses may hold a code or a secret; they stay out of every message.
        let plain = |error: reqwest::Error| Unanswered(error.without_url().to_string());
        let request = reqwest::Request::try_from(request).map_err(plain)?;
        let mut response = self.0.execute(request).await.map_err(plain)?;
        let mut answer = http::Response::builder().status(response.status());
        if let Some(headers) = answer.headers_mut() {
            headers.clone_from(response.headers());
        }
        let mut body = Vec::new();
        while let Some(chunk) = response.chunk().await.map_err(plain)? {
            if body.len() + chunk.len() > ANSWER_BYTES_MAX {
                return Err(Unanswered(format!("more than {ANSWER_BYTES_MAX} bytes")));
            }
            body.extend_from_slice(&chunk);
        }
        answer.body(body).map_err(|error| Unanswered(error.to_string()))
    }
}

/// An address of a provider where its client shows who it is.
pub(super) struct Endpoint {
    url: Url,
    client_id: String,
    client_secret: Option<String>,
    secret_in_body: bool,
    http: Http,
}

impl Endpoint {
    pub(super) fn new(
        url: &str,
        client_id: &str,
        client_secret: Option<String>,
    ) -> Result<Endpoint, IdentityError> {
        let url = Url::parse(url).map_err(|error| IdentityError::Provider(error.to_string()))?;
        let (client_id, http) = (client_id.to_owned(), Http::new()?);
        Ok(Endpoint { url, client_id, client_secret, secret_in_body: false, http })
    }

    /// Posts a form; the answer's status and body.
    pub(super) async fn post(&self, form: &[(&str, &str)]) -> Result<(u16, Vec<u8>), String> {
        let request = self.request(form).map_err(|error| error.to_string())?;
        let answer = self.http.send(request).await.map_err(|error| error.0)?;
        Ok((answer.status().as_u16(), answer.into_body()))
    }

    fn request(&self, form: &[(&str, &str)]) -> Result<http::Request<Vec<u8>>, http::Error> {
        let mut body = form_urlencoded::Serializer::new(String::new());
        body.extend_pairs(form);
        let mut request = http::Request::post(self.url.as_str())
            .header(http::header::CONTENT_TYPE, "application/x-www-form-urlencoded")
            .header(http::header::ACCEPT, "application/json");
        match &self.client_secret {
            Some(secret) if !self.secret_in_body => {
                // RFC 6749 §2.3.1: both parts are form-encoded first.
                let part = |text: &str| form_urlencoded::byte_serialize(text.as_bytes()).collect::<String>();
                let login = STANDARD.encode(format!("{}:{}", part(&self.client_id), part(secret)));
                request = request.header(http::header::AUTHORIZATION, format!("Basic {login}"));
            }
            Some(secret) => {
                body.append_pair("client_id", &self.client_id).append_pair("client_secret", secret);
            }
            None => {
                body.append_pair("client_id", &self.client_id);
            }
        }
        request.body(body.finish().into_bytes())
    }
}

/// The secret a client shows, from a file or a variable; one line break at its end does not count.
pub(super) fn client_secret(
    file: Option<&Path>,
    variable: Option<&str>,
) -> Result<Option<String>, IdentityError> {
    let text = match (file, variable) {
        (Some(path), _) => std::fs::read_to_string(path)
            .map_err(|source| IdentityError::ClientSecret { path: path.to_owned(), source })?,
        (None, Some(variable)) => {
            std::env::var(variable).map_err(|_| IdentityError::KeyVariable(variable.to_owned()))?
        }
        (None, None) => return Ok(None),
    };
    Ok(Some(text.trim_end_matches(['\r', '\n']).to_owned()))
}

impl<'c> oauth2::AsyncHttpClient<'c> for Provider {
    type Error = Unanswered;
    type Future = BoxFuture<'c, Result<http::Response<Vec<u8>>, Unanswered>>;

    fn call(&'c self, request: http::Request<Vec<u8>>) -> Self::Future {
        Box::pin(self.send(request))
    }
}

impl Metadata {
    fn read(document: &[u8], issuer: &str) -> Result<Metadata, &'static str> {
        #[derive(Deserialize)]
        struct Document {
            issuer: String,
            authorization_endpoint: String,
            token_endpoint: String,
            jwks_uri: String,
            end_session_endpoint: Option<String>,
            revocation_endpoint: Option<String>,
            token_endpoint_auth_methods_supported: Option<Vec<String>>,
            code_challenge_methods_supported: Option<Vec<String>>,
            #[serde(default)]
            authorization_response_iss_parameter_supported: bool,
        }
        let document: Document =
            serde_json::from_slice(document).map_err(|_| "its description of itself is incomplete")?;
        // OpenID Connect Discovery §4.3: otherwise one provider could speak for another.
        if document.issuer != issuer {
            return Err("it calls itself another issuer than identity.oidc.issuer");
        }
        let methods = document.code_challenge_methods_supported;
        if methods.is_some_and(|methods| !methods.iter().any(|method| method == "S256")) {
            return Err("it does not know PKCE with S256");
        }
        let plain_allowed = Url::parse(issuer).is_ok_and(|url| is_plain_and_near(&url));
        let sound = |address: String| {
            let url = Url::parse(&address).map_err(|_| "it names something that is no address")?;
            match url.scheme() {
                "https" => Ok(address),
                "http" if plain_allowed && is_plain_and_near(&url) => Ok(address),
                _ => Err("it names an address without TLS"),
            }
        };
        let secret_in_body = document
            .token_endpoint_auth_methods_supported
            .is_some_and(|methods| !methods.iter().any(|method| method == "client_secret_basic"));
        let end_session = document.end_session_endpoint.map(sound).transpose()?;
        let revocation = document.revocation_endpoint.map(sound).transpose()?;
        Ok(Metadata {
            authorization: AuthUrl::new(sound(document.authorization_endpoint)?).map_err(|_| "no address")?,
            token: TokenUrl::new(sound(document.token_endpoint)?).map_err(|_| "no address")?,
            jwks_uri: sound(document.jwks_uri)?,
            end_session: end_session.and_then(|address| Url::parse(&address).ok()),
            revocation: revocation.and_then(|address| Url::parse(&address).ok()),
            names_itself: document.authorization_response_iss_parameter_supported,
            secret_in_body,
        })
    }
}

/// No answer, or none that could be read to its end.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub(super) struct Unanswered(String);

fn unknown() -> ProviderError {
    ProviderError::Unreachable("it has not told its addresses yet".into())
}

fn is_plain_and_near(url: &Url) -> bool {
    url.scheme() == "http" && url.host_str().is_some_and(is_loopback)
}

fn tokens(
    answer: Result<
        StandardTokenResponse<IdToken, BasicTokenType>,
        RequestTokenError<Unanswered, BasicErrorResponse>,
    >,
) -> Result<Tokens, ProviderError> {
    match answer {
        Ok(tokens) => Ok(Tokens {
            access: tokens.access_token().secret().clone(),
            refresh: tokens.refresh_token().map(|token| token.secret().clone()),
            id: tokens.extra_fields().id_token.clone(),
            access_lasts: tokens.expires_in(),
        }),
        Err(RequestTokenError::ServerResponse(refusal)) => {
            use oauth2::basic::BasicErrorResponseType;
            let code = refusal.error();
            let is_over = matches!(code, BasicErrorResponseType::InvalidGrant);
            tracing::warn!(error.code = code.as_ref(), "the OpenID provider gave no tokens");
            Err(ProviderError::Refused { is_over })
        }
        Err(RequestTokenError::Request(Unanswered(why))) => Err(ProviderError::Unreachable(why)),
        // A server in trouble answers with a page rather than a token.
        Err(RequestTokenError::Parse(..) | RequestTokenError::Other(_)) => {
            Err(ProviderError::Unreachable("an answer that is no token".into()))
        }
    }
}

fn counted<T>(endpoint: &'static str, outcome: Result<T, ProviderError>) -> Result<T, ProviderError> {
    let label = match &outcome {
        Ok(_) => "ok",
        Err(ProviderError::Unreachable(_)) => "unreachable",
        Err(ProviderError::Refused { .. }) => "refused",
        Err(ProviderError::Unbelievable(_)) => "unbelievable",
    };
    metrics::counter!("gaitway_provider_requests_total", "endpoint" => endpoint, "outcome" => label)
        .increment(1);
    outcome
}

/// Every algorithm with a public key: each key says for itself which of them it is for.
pub(super) const ALGORITHMS: [Algorithm; 9] = [
    Algorithm::RS256,
    Algorithm::RS384,
    Algorithm::RS512,
    Algorithm::PS256,
    Algorithm::PS384,
    Algorithm::PS512,
    Algorithm::ES256,
    Algorithm::ES384,
    Algorithm::EdDSA,
];
/// A minute on both sides: providers' clocks are somebody else's.
pub(super) const LEEWAY_MS: u64 = 60_000;
/// ID tokens with many groups; a longer one would not fit the address of a logout either.
pub(super) const TOKEN_BYTES_MAX: usize = 16 * 1024;
/// One question, from connecting to the last byte.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// Several tokens, or a description with many algorithms; a whole web page is no answer.
const ANSWER_BYTES_MAX: usize = 128 * 1024;
/// A provider moves rarely, and says so long before.
const DISCOVERY_EVERY: Duration = Duration::from_secs(3600);
/// First wait after a failure; doubles.
const DISCOVERY_RETRY: Duration = Duration::from_secs(1);
/// Older providers call their logout tokens plain JWT.
const LOGOUT_TYPES: [&str; 2] = ["logout+jwt", "jwt"];
/// How long a login waits for a key it has not seen.
pub(super) const KEY_WAIT: Duration = Duration::from_secs(3);
pub(super) const POLL: Duration = Duration::from_millis(20);

#[cfg(test)]
mod tests {
    use super::*;

    fn described(change: &str, to: &str) -> Result<Metadata, &'static str> {
        let document = r#"{"issuer":"https://login.example","authorization_endpoint":"https://login.example/auth",
            "token_endpoint":"https://login.example/token","jwks_uri":"https://login.example/jwks",
            "end_session_endpoint":"https://login.example/end"}"#;
        assert!(document.contains(change), "{change}");
        Metadata::read(document.replace(change, to).as_bytes(), "https://login.example")
    }

    #[test]
    fn a_provider_speaks_for_itself_and_with_tls_only() {
        described("https://login.example/token", "https://elsewhere.example/token").unwrap();
        for (change, to) in [
            ("\"issuer\":\"https://login.example\"", "\"issuer\":\"https://login.example/\""),
            ("\"issuer\":\"https://login.example\"", "\"issuer\":\"https://evil.example\""),
            ("https://login.example/token", "http://login.example/token"),
            ("https://login.example/jwks", "http://127.0.0.1/jwks"),
            ("https://login.example/jwks", "file:///etc/passwd"),
            ("https://login.example/end", "javascript:alert(1)"),
            ("\"jwks_uri\"", "\"keys\""),
            ("\"jwks_uri\"", "\"code_challenge_methods_supported\":[\"plain\"],\"jwks_uri\""),
        ] {
            assert!(described(change, to).is_err(), "{change} → {to}");
        }
    }
}
