//! Tokens that say nothing by themselves: their issuer is asked (RFC 7662), and its answer counts for a
//! while, in memory and, where there is Redis, for all replicas.
//!
//! Invariant: a token is active only if the issuer said so; no answer lets nobody new in and throws nobody
//! out. Must not know: cookies' meaning, policies, revocations.

use super::provider::Endpoint;
use super::token::{self, Rejection, Rules};
use super::{CacheKey, Fingerprints, IdentityError, Kind as Presented, bearer_tokens, cookies, ends};
use crate::clock;
use crate::config::{Introspection, TokenOutage};
use crate::secret::InstallSecret;
use crate::vault::{Kind, Vault};
use gaitway_models::Timestamp;
use gaitway_policies::Identity;
use http::HeaderMap;
use quick_cache::sync::Cache;
use serde_json::{Map, Value};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Semaphore;

/// One for the process.
pub(super) struct Introspector {
    settings: Introspection,
    endpoint: Endpoint,
    rules: Rules,
    secret: Arc<InstallSecret>,
    vault: Vault,
    fingerprints: Fingerprints,
    answers: Cache<CacheKey, Arc<Answer>>,
    under_way: Semaphore,
    breaker: Breaker,
}

/// What the issuers of a request's tokens say.
#[derive(Default)]
pub struct Introspected {
    pub(super) active: Vec<Arc<Identity>>,
    /// Nobody answered, nothing is known, and such requests are to be refused.
    pub denied: bool,
}

struct Answer {
    /// `None`: the token is not active.
    identity: Option<Arc<Identity>>,
    /// Asked again after this.
    fresh_until: Timestamp,
    /// The token's own end; it is believed until then if its issuer does not answer.
    valid_until: Timestamp,
    /// Held by whoever asks again.
    turn: tokio::sync::Mutex<()>,
}

/// Nobody waits for an issuer that did not answer a moment ago; one at a time tries whether it does again.
#[derive(Default)]
struct Breaker(Mutex<Option<Instant>>);

impl Breaker {
    fn lets(&self, now: Instant) -> bool {
        let mut closed_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        match &mut *closed_until {
            None => true,
            Some(until) if *until > now => false,
            Some(until) => {
                *until = now + TRIAL_LASTS_MAX;
                true
            }
        }
    }

    fn heard(&self, is_answer: bool, now: Instant) {
        let mut closed_until = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *closed_until = (!is_answer).then_some(now + RETRY_AFTER);
    }
}

impl Introspector {
    pub(super) fn new(
        settings: &Introspection,
        answers_max: usize,
        vault: Vault,
        secret: Arc<InstallSecret>,
    ) -> Result<Introspector, IdentityError> {
        let client_secret = super::provider::client_secret(
            settings.client_secret_file.as_deref(),
            settings.client_secret_env.as_deref(),
        )?;
        let endpoint = Endpoint::new(&settings.url, &settings.client_id, client_secret)?;
        let rules = Rules {
            algorithms: Vec::new(),
            issuer: settings.issuer.clone(),
            audience: settings.audience.clone(),
            session_claims: settings.session_claims.clone(),
            subject_claim: settings.subject_claim.clone(),
            groups_claim: settings.groups_claim.clone(),
            leeway_ms: 0,
            require_expiry: false,
            token_bytes_max: settings.token_bytes_max,
        };
        Ok(Introspector {
            settings: settings.clone(),
            endpoint,
            rules,
            secret,
            vault,
            fingerprints: Fingerprints::new()?,
            answers: Cache::new(answers_max),
            under_way: Semaphore::new(UNDER_WAY_MAX),
            breaker: Breaker::default(),
        })
    }

    pub(super) fn cookie(&self) -> Option<&str> {
        self.settings.cookie.as_deref()
    }

    /// Memory only for tokens asked about lately; else one question to Redis or the issuer each.
    pub(super) async fn look(&self, headers: &HeaderMap, now: Timestamp) -> Introspected {
        let mut found = Introspected::default();
        let cookie = self.settings.cookie.as_deref().unwrap_or_default();
        let in_cookie = ends(cookies(headers, cookie)).filter(|_| !cookie.is_empty());
        let in_header = ends(bearer_tokens(headers)).filter(|_| self.settings.header);
        for token in in_cookie.chain(in_header).take(TOKENS_MAX) {
            if token.is_empty() || token.len() > self.rules.token_bytes_max {
                continue;
            }
            match self.answer(token, now).await {
                Some(answer) => found.active.extend(answer.identity.clone()),
                None => found.denied |= self.settings.outage == TokenOutage::Deny,
            }
        }
        found
    }

    /// `None`: nothing is known, and nobody answers.
    async fn answer(&self, token: &str, now: Timestamp) -> Option<Arc<Answer>> {
        let key = self.fingerprints.of(Presented::Token, token.as_bytes());
        let known = self.answers.get(&key).filter(|answer| now < answer.valid_until);
        let mut turn = None;
        if let Some(known) = &known {
            if now < known.fresh_until {
                return Some(Arc::clone(known));
            }
            // Of a page's many requests one asks; the others go on with what is known, or wait for what that
            // one hears if what is known is not good enough.
            turn = match known.turn.try_lock() {
                Ok(turn) => Some(turn),
                Err(_) if self.settings.outage == TokenOutage::ServeKnown => return Some(Arc::clone(known)),
                Err(_) => {
                    let turn = known.turn.lock().await;
                    let heard = self.answers.get(&key).filter(|answer| !Arc::ptr_eq(answer, known));
                    if let Some(heard) = heard.filter(|answer| clock::now() < answer.valid_until) {
                        return Some(heard);
                    }
                    Some(turn)
                }
            };
        }
        let name = self.secret.token(&[b"introspected", token.as_bytes()]).0;
        let shared = self.vault.get(Kind::Introspected, &name).await.ok().flatten();
        let shared = shared.and_then(|text| self.read(token, &text, now)).filter(|a| now < a.fresh_until);
        let answer = match shared {
            Some(answer) => Some(answer),
            None => self.ask(token, &name).await,
        };
        let answer = answer.map(Arc::new);
        if let Some(answer) = &answer {
            self.answers.insert(key, Arc::clone(answer));
        }
        drop(turn);
        // An issuer that is down logs nobody out, unless we are told so.
        answer.or_else(|| known.filter(|_| self.settings.outage == TokenOutage::ServeKnown))
    }

    async fn ask(&self, token: &str, name: &[u8; 16]) -> Option<Answer> {
        let form = [("token", token), ("token_type_hint", "access_token")];
        let asked = match self.under_way.try_acquire() {
            Ok(_permit) if self.breaker.lets(Instant::now()) => {
                let asked = self.endpoint.post(&form).await;
                // A status about the token is an answer: whoever makes tokens up must not stop the others.
                let is_answer = asked.as_ref().is_ok_and(|(status, _)| !matches!(status, 429 | 502..=504));
                self.breaker.heard(is_answer, Instant::now());
                asked
            }
            // Nothing to log: whoever waited in vain has said so, and a flood must not fill the log.
            _ => {
                metrics::counter!("gaitway_introspections_total", "outcome" => "failed").increment(1);
                return None;
            }
        };
        let now = clock::now();
        let answer = match asked {
            Ok((200, body)) => {
                let wrapped = [&now.0.to_be_bytes()[..], &body].concat();
                let answer = self.read(token, &wrapped, now);
                if let Some(answer) = &answer {
                    let _ = self.vault.put(Kind::Introspected, name, &wrapped, answer.fresh_until).await;
                }
                answer.ok_or_else(|| "an answer that is none".to_owned())
            }
            Ok((status, _)) => Err(format!("status {status}")),
            Err(why) => Err(why),
        };
        let outcome = match &answer {
            Ok(Answer { identity: Some(_), .. }) => "active",
            Ok(_) => "inactive",
            Err(_) => "failed",
        };
        metrics::counter!("gaitway_introspections_total", "outcome" => outcome).increment(1);
        answer
            .inspect_err(|why| tracing::warn!(%why, "a token's issuer does not say whether it is active"))
            .ok()
    }

    /// The moment of the answer and the answer; `None` if it is no answer of the standard.
    fn read(&self, token: &str, wrapped: &[u8], now: Timestamp) -> Option<Answer> {
        let (at, body) = wrapped.split_first_chunk::<8>()?;
        let at = Timestamp(u64::from_be_bytes(*at));
        let claims = token::distinct(body)?;
        let inactive = || {
            let until = at.plus(Duration::from_secs(self.settings.inactive_seconds));
            Answer {
                identity: None,
                fresh_until: until,
                valid_until: until,
                turn: tokio::sync::Mutex::default(),
            }
        };
        match claims.get("active") {
            Some(Value::Bool(true)) => {}
            Some(Value::Bool(false)) => return Some(inactive()),
            _ => return None,
        }
        match self.identity(token, claims, now) {
            Ok((identity, valid_until)) => {
                let fresh = at.plus(Duration::from_secs(self.settings.cache_seconds));
                Some(Answer {
                    identity: Some(Arc::new(identity)),
                    fresh_until: fresh.min(valid_until),
                    valid_until,
                    turn: tokio::sync::Mutex::default(),
                })
            }
            // Active, but over, for somebody else or with claims of the wrong type: nothing to us.
            Err(rejection) => {
                metrics::counter!("gaitway_tokens_rejected_total", "reason" => rejection.label())
                    .increment(1);
                Some(inactive())
            }
        }
    }

    fn identity(
        &self,
        token: &str,
        claims: Map<String, Value>,
        now: Timestamp,
    ) -> Result<(Identity, Timestamp), Rejection> {
        let claims = token::check_claims(claims, &self.rules, now)?;
        let verified = token::verified(claims, token.as_bytes(), &self.rules, &self.secret)?;
        Ok((verified.identity, verified.valid_until))
    }
}

/// Tokens asked about for one request: each may cost a question.
const TOKENS_MAX: usize = 2;
/// After a question without an answer none is asked for so long.
const RETRY_AFTER: Duration = Duration::from_secs(1);
/// Longer than one question takes: the next trial begins then if nobody heard the end of the last.
const TRIAL_LASTS_MAX: Duration = Duration::from_secs(6);
/// Questions at once; a flood of made-up tokens must not become a flood at the issuer.
const UNDER_WAY_MAX: usize = 64;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_silent_issuer_is_asked_by_one_at_a_time_until_it_answers() {
        let (breaker, start) = (Breaker::default(), Instant::now());
        assert!(breaker.lets(start) && breaker.lets(start), "whoever wants");
        breaker.heard(false, start);
        assert!(!breaker.lets(start + RETRY_AFTER / 2));
        let trial = start + RETRY_AFTER;
        assert!(breaker.lets(trial) && !breaker.lets(trial), "one tries");
        assert!(breaker.lets(trial + TRIAL_LASTS_MAX), "the one that tried went away");
        breaker.heard(true, trial);
        assert!(breaker.lets(trial) && breaker.lets(trial), "whoever wants again");
    }
}
