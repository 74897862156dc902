//! `show`: one operation.

use clap::Args;
use serde_json::json;

use crate::args::Global;
use crate::failure::Failure;
use crate::output::Output;
use crate::select::Select;
use crate::session::{Access, Session};
use crate::view::{View, content, details};

/// Shows one operation: its state, attempts, ages, holder, mark, lease and fence.
#[derive(Debug, Args)]
pub struct Show {
    /// Its id, as `list` shows it
    id: Option<String>,
    #[command(flatten)]
    select: Select,
    /// Shows the response, error and checkpoint, and the key if the store has it
    #[arg(long)]
    content: bool,
}

impl Show {
    pub(crate) async fn run(self, global: &Global) -> Result<(), Failure> {
        let id = self.select.one(self.id.as_deref())?;
        let session = Session::open(global, Access::Read).await?;
        let Some(seen) = session.engine.inspect_id(&id).await? else {
            return Err(Failure::NothingFound(format!(
                "there is no record of {id}: the next begin executes"
            )));
        };
        let shown = if self.content { session.engine.content_id(&id).await? } else { None };
        let output = Output { json: global.json };
        if output.json {
            let view = View::of(&id, &seen);
            let view = if self.content { view.with_key(&seen) } else { view };
            let mut value = json!(view);
            if let Some(shown) = &shown {
                value["content"] = content(shown);
            }
            return output.json(&value);
        }
        let mut rows = details(&id, &seen);
        if self.content {
            rows.push(vec!["key".to_owned(), seen.key.clone().unwrap_or_else(|| "not kept".to_owned())]);
        }
        let parts = shown.as_ref().map(content);
        for (name, value) in parts.iter().filter_map(|parts| parts.as_object()).flatten() {
            rows.push(vec![name.clone(), value.as_str().unwrap_or_default().to_owned()]);
        }
        output.table(&[], rows)
    }
}
