//! The pages and doors of a login at the OpenID provider: to it, back from it, out of it, and the door
//! through which the provider itself ends sessions.
//!
//! Must not know: tokens, or what makes an answer of the provider genuine.

use super::{Edge, EdgeRequest, empty, html, is_same_origin, parameter, percent_decode, plain, problem};
use crate::clock;
use crate::proxy::identity::login::{Begun, Login, LoginError, LogoutError, is_local_path};
use crate::proxy::identity::provider::Ask;
use crate::standing::Verdict;
use bytes::Bytes;
use gaitway_models::Timestamp;
use gaitway_policies::{Identity, Input};
use http::{Method, Response, StatusCode, header};
use metrics::counter;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};

/// Logout tokens whose signature is checked in one second, all senders together: that is what costs, and a
/// provider that ends everybody's sessions at once repeats what was refused.
pub(super) const LOGOUTS_PER_SECOND_MAX: u32 = 200;

/// Counts what was let through in the present second, half of it at most from one network.
#[derive(Default)]
pub(super) struct Turnstile(Mutex<Passed>);

#[derive(Default)]
struct Passed {
    second: u64,
    all: u32,
    /// As many entries as were let through.
    of: HashMap<Option<IpAddr>, u32>,
}

impl Turnstile {
    pub(super) fn lets(&self, now: Timestamp, network: Option<IpAddr>, per_second_max: u32) -> bool {
        let mut passed = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let second = now.0 / 1000;
        if passed.second != second {
            *passed = Passed { second, ..Passed::default() };
        }
        if passed.all >= per_second_max {
            return false;
        }
        let of = passed.of.entry(network).or_default();
        if *of >= per_second_max.div_ceil(2) {
            return false;
        }
        *of += 1;
        passed.all += 1;
        true
    }
}

impl Edge {
    /// Answers one of the login's own endpoints; `None`: there is no such one.
    pub(super) async fn login_door(
        &self,
        login: &Arc<Login>,
        endpoint: &str,
        request: &EdgeRequest<'_>,
    ) -> Option<Response<Bytes>> {
        let is_get = matches!(*request.method, Method::GET | Method::HEAD);
        let is_post = *request.method == Method::POST;
        Some(match endpoint {
            "login" if is_get => {
                let wanted = request.query.and_then(|query| parameter(query, "rd"));
                let back = wanted.and_then(percent_decode).unwrap_or_default();
                self.to_provider(login, &back, request)
            }
            "login/callback" if is_get => self.back_from_provider(login, request).await,
            "logout" if is_get => {
                let action = format!("{}/logout", self.prefix);
                let origin = login.provider_origin();
                html(StatusCode::OK, self.pages.log_out(request.headers, &action, origin.as_deref()))
            }
            // Somebody else's page or link must log nobody out.
            "logout" if is_post && is_same_origin(request.headers) => {
                counter!("gaitway_logins_total", "outcome" => "logged_out").increment(1);
                redirect(StatusCode::SEE_OTHER, login.log_out(request.headers, clock::now()).await)
            }
            "logout" if is_post => plain(StatusCode::FORBIDDEN, "refused\n"),
            "logout/done" if is_get => html(StatusCode::OK, self.pages.logged_out(request.headers)),
            "backchannel-logout" if is_post => self.logout_by_provider(login, request).await,
            "login" | "login/callback" | "logout" | "logout/done" | "backchannel-logout" => {
                plain(StatusCode::METHOD_NOT_ALLOWED, "method not allowed\n")
            }
            _ => return None,
        })
    }

    /// What somebody gets who must log in first: a page load goes to the provider, everything else is told
    /// so. What was posted is never sent anywhere else.
    pub fn login_needed(
        &self,
        login: &Arc<Login>,
        navigation: bool,
        request: &EdgeRequest<'_>,
    ) -> Response<Bytes> {
        counter!("gaitway_logins_total", "outcome" => "needed").increment(1);
        if navigation && matches!(*request.method, Method::GET | Method::HEAD) {
            let back = match request.query {
                Some(query) => format!("{}?{query}", request.path),
                None => request.path.to_owned(),
            };
            return self.to_provider(login, &back, request);
        }
        let address = format!("{}/login", self.prefix);
        if navigation {
            return html(StatusCode::UNAUTHORIZED, self.pages.login_needed(request.headers, &address));
        }
        let body = serde_json::json!({
            "type": "about:blank",
            "title": "Login needed",
            "status": 401,
            "detail": "Send the browser to the login address, then try again.",
            "login": address,
        });
        problem(StatusCode::UNAUTHORIZED, &body)
    }

    /// Where the page load of a session goes that must prove more: to the provider it was `provided` by, with
    /// what is asked of it (RFC 9470); any other session is asked for presence.
    pub fn step_up_page(
        &self,
        identity: &Identity,
        provided: bool,
        (acr_values, max_age_seconds): (&str, u64),
        request: &EdgeRequest<'_>,
    ) -> Response<Bytes> {
        let Some(login) = self.login.as_ref().filter(|_| provided) else {
            return self.challenge_page(identity, request);
        };
        if !matches!(*request.method, Method::GET | Method::HEAD) {
            // What was posted is sent nowhere else; the page's own address leads to the provider.
            let address = if is_local_path(request.path) { request.path } else { "/" };
            return html(StatusCode::UNAUTHORIZED, self.pages.login_needed(request.headers, address));
        }
        let back = match request.query {
            Some(query) => format!("{}?{query}", request.path),
            None => request.path.to_owned(),
        };
        let ask = asked(acr_values, max_age_seconds);
        match login.begin(request.headers, &back, &ask, Some(identity.session), clock::now()) {
            Some(begun) => redirect(StatusCode::FOUND, begun),
            None => self.login_failed(&LoginError::Unreachable, request),
        }
    }

    /// There is a login, and nobody can say whose: neither in nor out.
    pub fn login_unknown(&self) -> Response<Bytes> {
        let body = serde_json::json!({
            "type": "about:blank",
            "title": "Logins cannot be looked up",
            "status": 503,
            "detail": "You are still logged in. Try again in a moment.",
        });
        let mut response = problem(StatusCode::SERVICE_UNAVAILABLE, &body);
        response.headers_mut().insert(header::RETRY_AFTER, header::HeaderValue::from_static("1"));
        response
    }

    fn to_provider(&self, login: &Arc<Login>, back: &str, request: &EdgeRequest<'_>) -> Response<Bytes> {
        // Nothing but a page of the app: not another site, and not an endpoint of ours.
        let back = if is_local_path(back) && self.endpoint(back).is_none() { back } else { "/" };
        // Who comes with a login that was ended for security reasons proves anew who they are.
        let ask = Ask { anew: request.revoked.is_some(), ..Ask::default() };
        match login.begin(request.headers, back, &ask, None, clock::now()) {
            Some(begun) => redirect(StatusCode::FOUND, begun),
            None => self.login_failed(&LoginError::Unreachable, request),
        }
    }

    async fn back_from_provider(&self, login: &Arc<Login>, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let query = request.query.unwrap_or_default();
        match login.finish(query, request.headers, clock::now()).await {
            Ok(finished) => {
                counter!("gaitway_logins_total", "outcome" => "logged_in").increment(1);
                let session = finished.identity().session;
                // A rule may ask for more by now; then the page sends the person to the provider again.
                let is_enough = match self.standings.verdict(&session, clock::now()) {
                    Verdict::StepUp { acr_values, max_age_seconds } => {
                        finished.is_enough(&asked(&acr_values, max_age_seconds), clock::now())
                    }
                    _ => true,
                };
                if finished.stepped_up && is_enough {
                    self.shards.offer(&session, Input::StepUpPassed { session, vouched: true });
                    self.until_unchallenged(&session).await;
                }
                let begun = Begun { location: finished.back, set_cookies: finished.set_cookies };
                redirect(StatusCode::SEE_OTHER, begun)
            }
            Err(LoginError::Anew(begun)) => {
                counter!("gaitway_logins_total", "outcome" => "anew").increment(1);
                redirect(StatusCode::SEE_OTHER, *begun)
            }
            Err(error) => self.login_failed(&error, request),
        }
    }

    fn login_failed(&self, error: &LoginError, request: &EdgeRequest<'_>) -> Response<Bytes> {
        counter!("gaitway_logins_total", "outcome" => error.label()).increment(1);
        let status = match error {
            LoginError::Unreachable => StatusCode::SERVICE_UNAVAILABLE,
            _ => StatusCode::FORBIDDEN,
        };
        let again = format!("{}/login", self.prefix);
        html(status, self.pages.login_failed(request.headers, &again))
    }

    async fn logout_by_provider(&self, login: &Arc<Login>, request: &EdgeRequest<'_>) -> Response<Bytes> {
        let now = clock::now();
        let form = std::str::from_utf8(&request.body).unwrap_or_default();
        let lets = || self.logouts.lets(now, request.network, LOGOUTS_PER_SECOND_MAX);
        let (label, response) = match login.log_out_by_provider(form, now, lets).await {
            Ok(()) => ("done", empty(StatusCode::OK)),
            Err(LogoutError::Unreachable) => {
                ("unreachable", plain(StatusCode::SERVICE_UNAVAILABLE, "try again\n"))
            }
            Err(LogoutError::Invalid(why)) => {
                tracing::warn!(why, "a logout that claims to come from the provider is refused");
                let body = serde_json::json!({"error": "invalid_request", "error_description": why});
                ("refused", super::json(StatusCode::BAD_REQUEST, &body.to_string()))
            }
        };
        counter!("gaitway_provider_logouts_total", "outcome" => label).increment(1);
        response
    }
}

/// What a step-up asks the provider for.
fn asked(acr_values: &str, max_age_seconds: u64) -> Ask {
    // A rule that asks for nothing in particular wants a person to answer, not a cookie. The browser carries
    // the question, so that it was asked proves nothing: the moment of the answer does, and an age asked for
    // is what makes providers name it.
    let anew = acr_values.is_empty() && max_age_seconds == 0;
    Ask {
        anew,
        age_seconds_max: (anew || max_age_seconds > 0).then_some(max_age_seconds.max(1)),
        acr_values: (!acr_values.is_empty()).then(|| acr_values.to_owned()),
    }
}

fn redirect(status: StatusCode, begun: Begun) -> Response<Bytes> {
    let mut response = empty(status);
    let headers = response.headers_mut();
    match begun.location.parse() {
        Ok(location) => headers.insert(header::LOCATION, location),
        Err(_) => return plain(StatusCode::BAD_REQUEST, "bad request\n"),
    };
    // The address may hold a state or a token; pages must not pass it on.
    headers.insert(header::REFERRER_POLICY, header::HeaderValue::from_static("no-referrer"));
    for cookie in begun.set_cookies {
        if let Ok(cookie) = cookie.parse() {
            headers.append(header::SET_COOKIE, cookie);
        }
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn so_many_pass_in_a_second_and_no_more() {
        let turnstile = Turnstile::default();
        let from = |last: u8| Some(IpAddr::from([192, 0, 2, last]));
        let passed =
            |at: u64, last: u8| (0..10).filter(|_| turnstile.lets(Timestamp(at), from(last), 6)).count();
        assert_eq!(passed(5_000, 1), 3, "nobody takes more than half");
        assert_eq!((passed(5_000, 2), passed(5_000, 3)), (3, 0));
        assert_eq!(passed(5_999, 1), 0);
        assert_eq!(passed(6_000, 1), 3);
        assert!(!turnstile.lets(Timestamp(6_000), from(1), 6) && turnstile.lets(Timestamp(6_000), None, 6));
    }
}
