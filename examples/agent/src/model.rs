//! The model: here a script.

use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::Failure;

/// A reply of the model. Without calls it ends the conversation.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Reply {
    #[serde(default)]
    pub(crate) calls: Vec<Call>,
    #[serde(default)]
    pub(crate) say: String,
}

/// A call that the model asks for. The model may ask for anything, so this may be no tool at all.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Call {
    pub(crate) tool: String,
    pub(crate) arguments: Value,
}

/// A model that gives the same replies whatever it is told.
pub(crate) struct Script(Vec<Reply>);

impl Script {
    pub(crate) fn open(path: &Path) -> Result<Script, Failure> {
        let text =
            fs::read_to_string(path).map_err(|error| format!("cannot read {}: {error}", path.display()))?;
        let replies = serde_json::from_str(&text);
        Ok(Script(replies.map_err(|error| format!("{} is no script: {error}", path.display()))?))
    }

    /// The reply of this turn, counted from 1. A real model gets the conversation so far: its own
    /// replies and the results of the calls.
    pub(crate) fn reply(&self, turn: usize, _results: &[String]) -> Result<Reply, Failure> {
        let reply = self.0.get(turn - 1);
        Ok(reply.ok_or_else(|| format!("the script has no reply for turn {turn}"))?.clone())
    }
}
