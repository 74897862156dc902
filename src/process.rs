//! The process that something was made in: [`Process`].

/// The process that threads were started in, files opened or connections made. A forked child has a copy of all that,
/// but neither the threads nor a right to the rest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The process that asks: some 50 ns, a system call.
    ///
    /// A child in a PID namespace of its own may have the number of its parent, and is not told from it then.
    pub(crate) fn current() -> Process {
        Process(if cfg!(target_family = "wasm") { 0 } else { std::process::id() })
    }

    #[cfg(any(feature = "sqlite", feature = "redis"))]
    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }
}
