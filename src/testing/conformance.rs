//! The macro that mounts the [`checks`](super::checks) on a store.

/// Mounts every conformance check on a store, as one named test each in a module of its own.
///
/// The setup is a future that makes an empty store and a guard, which is dropped after the check (a temporary folder,
/// a server, or `()`). It is evaluated anew for each check. The third argument names the function that runs futures,
/// if the store needs more than [`block_on`](crate::testing::block_on) (Redis: tokio).
///
/// ```
/// # #[cfg(feature = "memory")]
/// nevertwice::conformance!(memory, async { (nevertwice::MemoryStore::new(), ()) });
/// # fn main() {}
/// ```
#[macro_export]
macro_rules! conformance {
    ($name:ident, $setup:expr) => {
        $crate::conformance!($name, $setup, $crate::testing::block_on);
    };
    ($name:ident, $setup:expr, $block_on:path) => {
        $crate::conformance! { @tests $name, $setup, $block_on,
            a_fresh_key_is_granted
        }
    };
    (@tests $name:ident, $setup:expr, $block_on:path, $($check:ident)*) => {
        mod $name {
            #[allow(unused_imports)]
            use super::*;
            $(
                #[test]
                fn $check() {
                    $block_on(async {
                        let (store, guard) = $setup.await;
                        $crate::testing::checks::$check(::std::sync::Arc::new(store)).await;
                        drop(guard);
                    });
                }
            )*
        }
    };
}
