//! YAML file to validated `PolicySet`; CEL in `when:` over the fixed typed facts.

use serde::{Deserialize, Serialize};

#[derive(Clone, Debug)]
pub struct PolicySet {}

/// One mistake in a policy file; all mistakes of a file are reported at once.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{file}:{line}:{column}: {field}: {message}")]
pub struct PolicyError {
    pub file: String,
    pub line: usize,
    pub column: usize,
    pub field: String,
    pub message: String,
    pub hint: Option<String>,
}

impl PolicySet {
    pub fn parse(_file: &str, _yaml: &str) -> Result<PolicySet, Vec<PolicyError>> {
        todo!()
    }
    /// First 16 hex digits of the SHA-256 of the policy text; carried by every decision.
    pub fn version(&self) -> &str {
        todo!()
    }
}
