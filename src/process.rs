//! The process that a resource was made in: [`Process`].

/// The process that started threads, opened files or made connections. A forked child has a copy of
/// its memory, but neither the threads nor the right to use the files and connections.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Process(u32);

impl Process {
    /// The calling process. Costs a system call, some 50 ns.
    ///
    /// A child in its own PID namespace may have the same process id as its parent, and cannot be
    /// told apart then.
    pub(crate) fn current() -> Process {
        Process(if cfg!(target_family = "wasm") { 0 } else { std::process::id() })
    }

    #[cfg(any(feature = "sqlite", feature = "redis", feature = "postgres"))]
    pub(crate) fn is_current(self) -> bool {
        self == Process::current()
    }
}
