//! Tells the OpenID provider that the tokens of a revoked login are no longer good (RFC 7009), so that the
//! login does not live on there. The step's row in the outbox names the session and nothing else: tokens
//! are looked up, sealed, when the step is taken.
//!
//! Must not know: how a login is kept, what the provider does with the news.

use super::{AlertError, AlertSink};
use crate::proxy::identity::login::{Login, ProviderTold};
use crate::store::ends_login;
use async_trait::async_trait;
use gaitway_policies::Incident;
use std::sync::Arc;

pub struct ProviderSink(Arc<Login>);

impl ProviderSink {
    pub fn new(login: Arc<Login>) -> ProviderSink {
        ProviderSink(login)
    }
}

#[async_trait]
impl AlertSink for ProviderSink {
    fn name(&self) -> &'static str {
        "provider"
    }

    /// A measure for a while is no end of the login.
    fn wants(&self, incident: &Incident) -> bool {
        ends_login(incident)
    }

    async fn deliver(&self, incident: &Incident) -> Result<(), AlertError> {
        match self.0.revoke_tokens(incident.identity.session).await {
            Ok(_) => Ok(()),
            Err(ProviderTold::Later(why)) => Err(AlertError::Temporary(why)),
            Err(ProviderTold::Never(why)) => Err(AlertError::Permanent(why)),
        }
    }
}
