//! `derive-key`: the downstream key of an operation.

use clap::Args;
use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::select::Select;
use crate::session::derived_key;

/// Derives the downstream key of an operation, as its attempts do for the provider. Needs no store.
#[derive(Debug, Args)]
pub struct DeriveKey {
    /// ID LABEL, or LABEL with --scope and --key: the label is the one that the application derives
    /// its key for
    #[arg(required = true, num_args = 1..=2, value_names = ["ID", "LABEL"])]
    names: Vec<String>,
    #[command(flatten)]
    select: Select,
}

impl DeriveKey {
    pub(crate) fn run(self, global: &Global) -> Result<(), Failure> {
        let (id, label) = match self.names.as_slice() {
            [label] if self.select.key.is_some() => (None, label),
            [id, label] => (Some(id.as_str()), label),
            _ => return Err(Failure::Usage("name the label too: derive-key ID LABEL".to_owned())),
        };
        let id = self.select.one(id)?;
        let key = derived_key(&id, label)?;
        let output = Output { json: global.json };
        if output.json {
            return output.json(&json!({ "id": id.to_string(), "label": label, "key": key }));
        }
        output.line(&key)
    }
}
