//! The scripts that run on the server: [`Scripts`].

use ::redis::{Cmd, Pipeline, Script, Value, cmd};

use super::connection::Connections;
use super::error::{is_forbidden, store_error, unusable};
use crate::error::StoreError;

/// Detail of the error for a server that cannot wait for replicas.
pub(super) const CANNOT_WAIT: &str = "waiting for replicas needs the command WAIT, which it does not know or this user may \
                                      not call: allow +wait, or connect without `replicated`";
const CANNOT_ASK: &str =
    "slots that move need the command ASKING, which this user may not call: allow +asking";
const TOO_OLD: &str = "it does not know `#!lua` scripts: Redis 7.0 or Valkey is the oldest that does";

/// The scripts of a store. Each has a `#!lua` header. With it the server checks its memory before
/// the script starts and can refuse it as a whole; without it, only at the first write of the
/// script.
#[derive(Debug)]
pub(super) struct Scripts {
    replace: OneScript,
    refusable: OneScript,
    always: OneScript,
    touch: OneScript,
}

/// The name of a script.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ScriptName {
    /// The replacement of a record with a known stamp by bytes that already contain theirs. Allowed
    /// over `maxmemory`.
    Replace,
    /// The swap by the server's clock, refused while the server is over `maxmemory`.
    Refusable,
    /// The same, allowed over `maxmemory`.
    Always,
}

#[derive(Debug)]
struct OneScript {
    code: String,
    hash: String,
}

impl ScriptName {
    pub(super) const ALL: [ScriptName; 3] = [ScriptName::Replace, ScriptName::Refusable, ScriptName::Always];

    /// Splits the script's reply to `count` items into values: for each a mark (as a number), or
    /// the three of a swap. Returns none if the reply is not of that form.
    pub(super) fn split(self, reply: Value, count: usize) -> std::vec::IntoIter<Value> {
        let parts = match (self, reply) {
            (ScriptName::Replace, Value::BulkString(marks)) if marks.len() == count => {
                marks.into_iter().map(|mark| Value::Int(mark.into())).collect()
            }
            (ScriptName::Refusable | ScriptName::Always, Value::Array(parts)) if parts.len() == 3 * count => {
                parts
            }
            _ => Vec::new(),
        };
        parts.into_iter()
    }
}

impl Scripts {
    pub(super) fn new() -> Scripts {
        let swap = include_str!("swap.lua");
        Scripts {
            replace: OneScript::new("#!lua flags=allow-oom", include_str!("replace.lua")),
            refusable: OneScript::new("#!lua", swap),
            always: OneScript::new("#!lua flags=allow-oom", swap),
            touch: OneScript::new("#!lua flags=allow-oom", include_str!("touch.lua")),
        }
    }

    /// Loads them into the server's cache, and checks that this user may run them and, if there are
    /// replicas to wait for, may wait, and in a cluster may ask for slots on their way.
    pub(super) async fn load(
        &self,
        connections: &Connections,
        waits: bool,
        asks: bool,
    ) -> Result<(), StoreError> {
        let mut commands = Pipeline::new();
        // It holds for the next command, which has no key.
        if asks {
            commands.cmd("ASKING");
        }
        for name in ScriptName::ALL {
            commands.add_command(self.load_command(name)).add_command(self.call(name, 0, 0));
        }
        let count = commands.len();
        if waits {
            commands.add_command(self.load_touch()).cmd("WAIT").arg(0).arg(1);
        }
        for (number, reply) in connections.call(&commands, commands.len()).await?.into_iter().enumerate() {
            if let Err(error) = reply.extract_error() {
                if asks && number == 0 {
                    let forbidden = is_forbidden(&error);
                    return Err(if forbidden { unusable(CANNOT_ASK) } else { store_error(&error) });
                }
                if number >= count {
                    let forbidden = is_forbidden(&error);
                    return Err(if forbidden { unusable(CANNOT_WAIT) } else { store_error(&error) });
                }
                let is_old = error.detail().is_some_and(|detail| detail.contains("compiling"));
                return Err(if is_old { unusable(TOO_OLD) } else { store_error(&error) });
            }
        }
        Ok(())
    }

    /// Builds the command that loads a script into the server's cache.
    pub(super) fn load_command(&self, name: ScriptName) -> Cmd {
        self.script(name).load()
    }

    /// Builds the command that loads the script of [`call_touch`](Scripts::call_touch).
    pub(super) fn load_touch(&self) -> Cmd {
        self.touch.load()
    }

    /// Builds the start of a call of the script that writes one record back as it is.
    pub(super) fn call_touch(&self) -> Cmd {
        let mut command = cmd("EVALSHA");
        command.arg(&self.touch.hash).arg(1);
        command
    }

    /// Builds the start of a call for `count` keys, whose arguments follow.
    pub(super) fn call(&self, name: ScriptName, count: usize, bytes: usize) -> Cmd {
        // Each key takes its name and three arguments, and 96 bytes besides those of the record.
        let mut command = Cmd::with_capacity(3 + 4 * count, 64 + bytes + 96 * count);
        command.arg("EVALSHA").arg(&self.script(name).hash).arg(count);
        command
    }

    fn script(&self, name: ScriptName) -> &OneScript {
        match name {
            ScriptName::Replace => &self.replace,
            ScriptName::Refusable => &self.refusable,
            ScriptName::Always => &self.always,
        }
    }
}

impl OneScript {
    fn new(header: &str, code: &str) -> OneScript {
        let code = format!("{header}\n{code}");
        let hash = Script::new(&code).get_hash().to_owned();
        OneScript { code, hash }
    }

    fn load(&self) -> Cmd {
        let mut command = cmd("SCRIPT");
        command.arg("LOAD").arg(&self.code);
        command
    }
}
