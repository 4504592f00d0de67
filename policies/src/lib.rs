//! What do we do? Policies in, decisions and effects out.
//!
//! Pure: no sockets, files, clock, OS randomness, async or environment. Knows models' vocabulary;
//! must not know: how anything is carried out.

pub mod alert;
pub mod backtest;
pub mod budget;
pub mod case;
pub mod condition;
pub mod decide;
pub mod document;
pub mod engine;
pub mod facts;
pub mod format;
pub mod identity;
pub mod limit;
pub mod policy;
pub mod record;
pub mod report;
pub mod route;

pub use budget::SharedBudget;
pub use engine::{Effect, Engine, Incident, Input, Standing};
pub use identity::{Identity, SessionId, SubjectId, TokenId};
pub use policy::{DEFAULT, DEMO, PolicySet};
